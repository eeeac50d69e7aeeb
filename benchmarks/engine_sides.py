"""Who answers in which table of the engine benchmark, and what Rayloom has to reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from contenders import ENGINE, TRANSFORMERS, Contender

ONE, STATIC_16, STATIC_32 = (
    "generate, one at a time, fp32",
    "generate, batches of 16, fp32",
    "generate, batches of 32, fp32",
)
CT2 = "CTranslate2, batches of 32, "
CT2_ALL = "CTranslate2, all 64 at once, "
VLLM, OPENVINO = "vLLM, ", "OpenVINO GenAI, "
OURS = "Rayloom, "

_SLOW = {1: 8, 16: 16, 32: 32}
"""Requests that sides get which would take minutes for all: one batch or a few, with answers of the same lengths."""


@dataclass(frozen=True)
class Target:
    """How many times another side's speed one of Rayloom's must have."""

    ours: str
    theirs: str
    least: float


def ours(precision: str, options: dict[str, Any], *, batch: int | None = None) -> Contender:
    """Rayloom's engine; ``batch`` makes it answer as a static batcher would."""
    name = f"{OURS}{precision}" + (f", batches of {batch}" if batch else "")
    return Contender(name, ENGINE, precision, batch=batch, options=options)


def generate(batch: int, *, whole: bool = False) -> Contender:
    """``generate`` of transformers in fp32; ``whole``: on all requests."""
    name = {1: ONE, 16: STATIC_16, 32: STATIC_32}[batch]
    return Contender(name, TRANSFORMERS, batch=batch, requests=None if whole else _SLOW[batch])


def smollm2_sides(options: dict[str, Any]) -> list[Contender]:
    """Everyone runs LLaMA."""
    return [
        generate(1),
        generate(16),
        generate(32),
        Contender("transformers' continuous batching, fp32", TRANSFORMERS, requests=32, options={"continuous": True}),
        Contender(f"{CT2}fp32", "ctranslate2", "fp32", batch=32, by_length=True),
        Contender(f"{CT2}int8", "ctranslate2", "int8", batch=32, by_length=True),
        Contender(f"{VLLM}bf16", "vllm", "bf16"),
        Contender(f"{VLLM}bf16, eager", "vllm", "bf16", options={"eager": True}),
        Contender(f"{OPENVINO}fp32", "openvino", "fp32"),
        Contender(f"{OPENVINO}bf16", "openvino", "bf16"),
        Contender(f"{OPENVINO}int8", "openvino", "int8"),
        Contender(f"{OPENVINO}int8, 32 in flight", "openvino", "int8", options={"in_flight": 32}),
        *(ours(precision, options) for precision in ("fp32", "bf16", "int8")),
    ]


SMOLLM2_TARGETS = (
    Target(f"{OURS}fp32", ONE, 6.0),
    Target(f"{OURS}int8", ONE, 15.0),
    Target(f"{OURS}bf16", f"{VLLM}bf16", 1.0),
    Target(f"{OURS}int8", f"{VLLM}bf16", 1.3),
    Target(f"{OURS}int8", f"{OPENVINO}int8", 1.0),
    Target(f"{OURS}int8", f"{OPENVINO}int8, 32 in flight", 1.0),
)


def t5_sides(options: dict[str, Any]) -> list[Contender]:
    """Of the peers only CTranslate2 runs T5 faster than transformers."""
    return [
        generate(1),
        generate(16),
        generate(32),
        *(Contender(f"{CT2}{precision}", "ctranslate2", precision, batch=32) for precision in ("fp32", "int8")),
        *(Contender(f"{CT2_ALL}{precision}", "ctranslate2", precision) for precision in ("fp32", "int8")),
        *(ours(precision, options) for precision in ("fp32", "bf16", "int8")),
    ]


T5_TARGETS = (
    Target(f"{OURS}int8", ONE, 15.0),
    Target(f"{OURS}fp32", f"{CT2}fp32", 1.2),
    Target(f"{OURS}int8", f"{CT2}int8", 1.2),
)


def gpt_neo_sides(options: dict[str, Any]) -> list[Contender]:
    """No peer runs GPT-Neo right but ``generate``."""
    return [generate(1), generate(16), generate(32), *(ours(name, options) for name in ("fp32", "bf16", "int8"))]


GPT_NEO_TARGETS = (Target(f"{OURS}int8", ONE, 12.0),)


def beam_sides(options: dict[str, Any]) -> list[Contender]:
    """All requests are one batch, and of one length: CTranslate2 can force none but that with beams."""
    return [
        generate(16),
        *(Contender(f"CTranslate2, {precision}", "ctranslate2", precision) for precision in ("fp32", "int8")),
        *(ours(precision, options) for precision in ("fp32", "bf16", "int8")),
    ]


BEAM_TARGETS = (
    Target(f"{OURS}fp32", "CTranslate2, fp32", 1.5),
    Target(f"{OURS}int8", "CTranslate2, int8", 1.5),
    Target(f"{OURS}fp32", STATIC_16, 4.0),
)


def latency_sides(options: dict[str, Any]) -> list[Contender]:
    """Static batches of `generate`, and of the engine itself: what of the gain is scheduling."""
    return [
        generate(16, whole=True),
        *(ours(precision, options, batch=16) for precision in ("fp32", "int8")),
        *(ours(precision, options) for precision in ("fp32", "int8")),
    ]


def chosen(contenders: Sequence[Contender], only: Sequence[str]) -> list[Contender]:
    """Those whose name holds one of the words; all without words."""
    words = [word.lower() for word in only]
    return [side for side in contenders if not words or any(word in side.name.lower() for word in words)]
