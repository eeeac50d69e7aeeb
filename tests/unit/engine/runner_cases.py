"""Tiny random models, and sequences that a runner computes in random pieces, side by side."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from rayloom.engine.assembling import assemble
from rayloom.engine.blocks import BLOCK
from rayloom.engine.plan import Plan, Span
from rayloom.engine.request import EngineRequest, Group, Params, Sequence
from rayloom.engine.runners import Runner

VOCABULARY = 97
MOST_TOKENS = 60
NUM_BLOCKS = 64


def tiny_model(config: Any, *, seed: int = 0) -> Any:
    """A model whose every parameter is random and matters: norms and biases too."""
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() > 1:
                weight.copy_(noise * weight.shape[-1] ** -0.5)
            else:
                weight.copy_(0.2 * noise + (0.0 if "bias" in name else 1.0))
    return model


@dataclass
class Case:
    """A sequence, the transformers model's logits for all of it, and what the runner found."""

    group: Group
    expected_LV: torch.Tensor
    found: dict[int, torch.Tensor] = field(default_factory=dict)

    @property
    def sequence(self) -> Sequence:
        return self.group.sequences[0]

    @property
    def is_done(self) -> bool:
        return self.sequence.num_computed == len(self.sequence.tokens)


class Stage:
    """A runner, with sequences in a cache full of rubbish whose blocks lie in random order."""

    def __init__(self, model: Any, runner: Runner, seed: int) -> None:
        self.model, self.runner = model, runner
        self.random = random.Random(seed)
        self.cases: list[Case] = []
        self.expected: Callable[[Group], torch.Tensor] = self._whole
        self._free = self.random.sample(range(runner.cache.num_blocks), runner.cache.num_blocks)
        for tensor in (*runner.cache.keys, *runner.cache.values):
            tensor.fill_(float("nan"))

    def tokens(self, least: int, most: int) -> list[int]:
        return [self.random.randrange(VOCABULARY) for _ in range(self.random.randint(least, most))]

    def add(self, *, adapter: str | None = None) -> Case:
        """A new sequence (and prompt) of random length."""
        encoder_ids = tuple(self.tokens(1, 40)) if self.runner.seq2seq else ()
        return self.place(self.tokens(1, MOST_TOKENS), encoder_ids, adapter)

    def fork(self, case: Case) -> Case:
        """A copy that shares full blocks, has its own copy of the last, and goes on with other tokens."""
        old, request = case.sequence, case.group.request
        tokens = old.tokens[: old.num_computed] + self.tokens(1, 20)
        full, rest = divmod(old.num_computed, BLOCK)
        twin = self.place(tokens, request.encoder_ids, request.adapter, shared=old.blocks[:full])
        if rest:
            self.runner.cache.copy_blocks([(old.blocks[full], twin.sequence.blocks[full])])
        twin.sequence.num_computed = old.num_computed
        twin.group.cross_blocks, twin.group.encoded = case.group.cross_blocks, case.group.encoded
        return twin

    def step(self) -> None:
        """Compute random pieces of some sequences, in random order; the longest pieces are whole prompts."""
        chosen = [case for case in self.cases if not case.is_done and self.random.random() < 0.8]
        self.random.shuffle(chosen)
        spans = []
        for case in chosen:
            sequence = case.sequence
            length = min(sequence.remain_len, self.random.choice([1, 1, 2, 7, 30, 100]))
            wants_logits = length == sequence.remain_len or self.random.random() < 0.5
            spans.append(Span(case.group, sequence, sequence.num_computed, length, wants_logits))
        fresh = tuple(case.group for case in chosen if self.runner.seq2seq and not case.group.encoded)
        self._run(fresh, spans, chosen)

    def finish(self) -> None:
        """Step until all is computed."""
        while any(not case.is_done for case in self.cases):
            self.step()

    def largest_difference(self) -> float:
        """Between the logits that were found and those of the whole sequences."""
        assert all(len(case.sequence.tokens) - 1 in case.found for case in self.cases)
        differences = [
            (logits_V - case.expected_LV[place]).abs().max()
            for case in self.cases
            for place, logits_V in case.found.items()
        ]
        return float(torch.stack(differences).max())

    def place(
        self,
        tokens: list[int],
        encoder_ids: tuple[int, ...],
        adapter: str | None = None,
        shared: list[int] | None = None,
    ) -> Case:
        """A new sequence; blocks that it does not share are its own."""
        request = EngineRequest(
            start_ids=tuple(tokens), params=Params(max_new_tokens=1), encoder_ids=encoder_ids, adapter=adapter
        )
        shared = shared or []
        blocks = shared + [self._free.pop() for _ in range(-(-len(tokens) // BLOCK) - len(shared))]
        group = Group(len(self.cases), request, 0.0, sequences=[Sequence(0, tokens, blocks=blocks)])
        group.cross_blocks = [self._free.pop() for _ in range(-(-len(encoder_ids) // BLOCK))]
        self.cases.append(Case(group, self.expected(group)))
        return self.cases[-1]

    def _run(self, fresh: tuple[Group, ...], spans: list[Span], chosen: list[Case]) -> None:
        plan = Plan(encode=fresh, spans=tuple(spans), copies=(), preempted=(), admitted=())
        if not spans:
            return
        index = (lambda name: -1 if name is None else self.runner.lora.index(name)) if self.runner.lora else _no_adapter
        logits_RV = self.runner.run(assemble(plan, index, self.runner.device))
        wanted = [case for case, span in zip(chosen, spans, strict=True) if span.wants_logits]
        assert logits_RV.shape == (len(wanted), self.runner.vocab_size)
        assert logits_RV.dtype is torch.float32
        for span in spans:
            span.sequence.num_computed += span.length
            span.group.encoded = True
        for case, logits_V in zip(wanted, logits_RV, strict=True):
            case.found[case.sequence.num_computed - 1] = logits_V.clone()

    def _whole(self, group: Group) -> torch.Tensor:
        return whole_logits(self.model, group.sequences[0].tokens, group.request.encoder_ids)


def whole_logits(model: Any, tokens: list[int], encoder_ids: tuple[int, ...] = ()) -> torch.Tensor:
    """transformers' own logits ``(L, V)`` of one sequence alone."""
    ids = {"input_ids": torch.tensor([tokens])}
    if encoder_ids:
        ids = {"input_ids": torch.tensor([encoder_ids]), "decoder_input_ids": torch.tensor([tokens])}
    with torch.no_grad():
        logits_LV: torch.Tensor = model(
            **ids, attention_mask=torch.ones_like(ids["input_ids"]), use_cache=False
        ).logits[0]
    return logits_LV.clone()


def _no_adapter(name: str | None) -> int:
    assert name is None
    return -1
