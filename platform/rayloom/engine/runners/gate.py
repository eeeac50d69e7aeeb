"""A model is served only if its runner gives the logits of transformers' own forward pass.

Shape letters: L tokens of a sequence, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from rayloom.engine.assembling import assemble
from rayloom.engine.blocks import BLOCK
from rayloom.engine.linear import Precision
from rayloom.engine.plan import Plan, Span
from rayloom.engine.request import EngineRequest, Group, Params, Sequence
from rayloom.engine.runners.base import Runner
from rayloom.engine.runners.weights import adapters_off
from rayloom.errors import ModelError

TOLERANCES: dict[Precision, float] = {"fp32": 1e-3, "bf16": 0.01, "int8": 0.05}
"""fp32: largest difference, as a share of the logits' own spread; bf16 and int8: 1 - cosine of centred logits, on
average, as single rows of a sharp softmax may well tip over. Unrelated logits have a cosine of about 0."""

_LENGTHS = (37, 22)
_PROMPT_LENGTHS = (29, 18)
_STEPS = ((17, 9), (19, 10), (27, 18), (28, 19), (29, 20), (35, 21), (36, 22), (37, 22))
"""Tokens of the two sequences that are computed after each step: prompts in pieces, then single tokens."""


@dataclass(frozen=True)
class _Line:
    """A random sequence in the cache, and the logits that came of it, by position."""

    group: Group
    found: dict[int, torch.Tensor] = field(default_factory=dict)

    @property
    def sequence(self) -> Sequence:
        return self.group.sequences[0]


def check_parity(model: PreTrainedModel, runner: Runner, *, tolerance: float | None = None) -> None:
    """Compute two random sequences side by side in pieces, and each whole with transformers.

    Args:
        model: What the runner was built from, in evaluation mode. PEFT's adapters are left out.
        runner: Its cache must not be in use.
        tolerance: Largest difference; None takes the one of `TOLERANCES` for the runner's precision.

    Raises:
        ModelError: The logits differ, or are no numbers.
    """
    lines = _random_lines(runner)
    _run_in_pieces(runner, lines)
    limit = TOLERANCES[runner.precision] if tolerance is None else tolerance
    for line in lines:
        expected_LV = _whole(model, line)
        places = sorted(line.found)
        found_LV = torch.stack([line.found[place] for place in places])
        difference = _difference(found_LV, expected_LV[places], runner.precision)
        if not difference <= limit:  # not a number must fail
            raise ModelError(
                f"a model of type '{model.config.model_type}' is not served: its logits differ from those of "
                f"transformers by {difference:.2g} in {runner.precision} (at most {limit:g} is accepted)"
            )


def _random_lines(runner: Runner) -> list[_Line]:
    generator = torch.Generator().manual_seed(20240607)
    most = min(runner.max_positions or _LENGTHS[0], _LENGTHS[0])
    free = iter(range(runner.cache.num_blocks))
    lines: list[_Line] = []
    for length, prompt_length in zip(_LENGTHS, _PROMPT_LENGTHS, strict=True):
        tokens = torch.randint(runner.vocab_size, (min(length, most),), generator=generator).tolist()
        prompt = torch.randint(runner.vocab_size, (prompt_length,), generator=generator).tolist()
        encoder_ids = tuple(prompt) if runner.seq2seq else ()
        request = EngineRequest(start_ids=tuple(tokens), params=Params(max_new_tokens=1), encoder_ids=encoder_ids)
        sequence = Sequence(0, tokens, blocks=_take(free, len(tokens)))
        lines.append(
            _Line(Group(len(lines), request, 0.0, sequences=[sequence], cross_blocks=_take(free, len(encoder_ids))))
        )
    return lines


def _take(free: Any, num_tokens: int) -> list[int]:
    try:
        return [next(free) for _ in range(-(-num_tokens // BLOCK))]
    except StopIteration:
        raise ModelError("the cache has too few blocks to check the model: give it at least 16") from None


def _run_in_pieces(runner: Runner, lines: list[_Line]) -> None:
    encode = tuple(line.group for line in lines) if runner.seq2seq else ()
    for ends in _STEPS:
        spans, owners = [], []
        for line, end in zip(lines, ends, strict=True):
            sequence, start = line.sequence, line.sequence.num_computed
            length = min(end, len(sequence.tokens)) - start
            if length > 0:
                spans.append(Span(line.group, sequence, start, length, True))
                owners.append(line)
                sequence.num_computed += length
        if not spans:
            continue
        plan = Plan(encode=encode, spans=tuple(spans), copies=(), preempted=(), admitted=())
        logits_RV = runner.run(assemble(plan, lambda _: -1, runner.device))
        encode = ()
        for line, logits_V in zip(owners, logits_RV, strict=True):
            line.found[line.sequence.num_computed - 1] = logits_V.float()


def _whole(model: PreTrainedModel, line: _Line) -> torch.Tensor:
    ids = {"input_ids": line.group.request.encoder_ids, "decoder_input_ids": line.sequence.tokens}
    if not line.group.request.encoder_ids:
        ids = {"input_ids": line.sequence.tokens}
    inputs = {name: torch.tensor([tokens], device=model.device) for name, tokens in ids.items()}
    forward: Any = model
    with torch.no_grad(), adapters_off(model):
        output = forward(**inputs, attention_mask=torch.ones_like(inputs["input_ids"]), use_cache=False)
    logits_LV: torch.Tensor = output.logits[0].float()
    return logits_LV


def _difference(found_LV: torch.Tensor, expected_LV: torch.Tensor, precision: Precision) -> float:
    if found_LV.shape != expected_LV.shape:
        return float("inf")
    if precision == "fp32":
        return float((found_LV - expected_LV).abs().max() / expected_LV.std().clamp(min=1e-6))
    # Softmax does not see what is common to all logits of a row.
    found_LV, expected_LV = (rows - rows.mean(-1, keepdim=True) for rows in (found_LV, expected_LV))
    return float(1.0 - torch.cosine_similarity(found_LV, expected_LV, dim=-1).mean())
