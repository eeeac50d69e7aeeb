"""From a plan (integers) to a `StepBatch` (tensors).

Shape letters: see `batch`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch

from rayloom.engine.batch import EncodeBatch, ReadBatch, StepBatch
from rayloom.engine.blocks import BLOCK
from rayloom.engine.cache import AttentionView
from rayloom.engine.plan import Plan, Reading, Span
from rayloom.engine.prompts import num_scored
from rayloom.engine.request import Group


def assemble(
    plan: Plan,
    adapter_index: Callable[[str | None], int],
    device: torch.device,
    memory: dict[str, Any] | None = None,
) -> StepBatch:
    """The tensors of one step.

    Args:
        plan: What to compute.
        adapter_index: Place of an adapter in the bank, -1 for None.
        device: Where the runner computes.
        memory: What the runner keeps of the prompt that is being read.
    """
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    starts, adapters = [0], []
    logit_rows: list[int] = []
    for span in plan.spans:
        blocks, first, end = span.sequence.blocks, span.start, span.start + span.length
        tokens += span.sequence.tokens[first:end]
        positions += range(first, end)
        slots += [blocks[place // BLOCK] * BLOCK + place % BLOCK for place in range(first, end)]
        logit_rows += range(starts[-1], starts[-1] + num_scored(span))
        starts.append(len(tokens))
        adapters += [adapter_index(span.group.request.adapter)] * span.length
        if span.wants_logits:
            logit_rows.append(len(tokens) - 1)
    return StepBatch(
        tokens_T=torch.tensor(tokens, device=device),
        positions_T=torch.tensor(positions, device=device),
        slots_T=torch.tensor(slots, device=device),
        view=_self_view(plan.spans, starts, device),
        logit_rows_R=torch.tensor(logit_rows, dtype=torch.int64, device=device),
        adapters_T=torch.tensor(adapters, device=device) if any(index >= 0 for index in adapters) else None,
        encode=_encode(plan.encode, adapter_index, device) if plan.encode else None,
        cross_view=_cross_view(plan.spans, starts, device) if plan.spans and plan.spans[0].group.cross_blocks else None,
        reading=_reading(plan.reading, adapter_index, device, memory) if plan.reading else None,
    )


def _self_view(spans: Sequence[Span], starts: list[int], device: torch.device) -> AttentionView:
    lengths = [span.start + span.length for span in spans]
    tables = [span.sequence.blocks[: -(-length // BLOCK)] for span, length in zip(spans, lengths, strict=True)]
    return _view(tables, lengths, starts, device)


def _cross_view(spans: Sequence[Span], starts: list[int], device: torch.device) -> AttentionView:
    """One row for all tokens of a group: nothing is masked, so its beams read their prompt's keys together."""
    firsts = [place for place, span in enumerate(spans) if not place or span.group is not spans[place - 1].group]
    groups = [spans[place].group for place in firsts]
    lengths = [len(group.request.encoder_ids) for group in groups]
    group_starts = [starts[place] for place in (*firsts, len(spans))]
    return _view([group.cross_blocks for group in groups], lengths, group_starts, device)


def _view(
    tables: Sequence[Sequence[int]], lengths: list[int], starts: list[int], device: torch.device
) -> AttentionView:
    width = max((len(table) for table in tables), default=0)
    padded = [[*table, *[0] * (width - len(table))] for table in tables]
    return AttentionView(
        tables_SN=torch.tensor(padded, dtype=torch.int32, device=device).view(len(tables), width),
        lengths_S=torch.tensor(lengths, dtype=torch.int32, device=device),
        starts_S=torch.tensor(starts, dtype=torch.int32, device=device),
        max_queries=max((end - start for start, end in pairwise(starts)), default=0),
        max_keys=max(lengths, default=0),
    )


def _encode(groups: Sequence[Group], adapter_index: Callable[[str | None], int], device: torch.device) -> EncodeBatch:
    slots = [
        group.cross_blocks[place // BLOCK] * BLOCK + place % BLOCK
        for group in groups
        for place in range(len(group.request.encoder_ids))
    ]
    return EncodeBatch(
        prompts=tuple(group.request.encoder_ids for group in groups),
        slots_T=torch.tensor(slots, device=device),
        adapters=tuple(adapter_index(group.request.adapter) for group in groups),
    )


def _reading(
    reading: Reading,
    adapter_index: Callable[[str | None], int],
    device: torch.device,
    memory: dict[str, Any] | None,
) -> ReadBatch:
    batch = _encode([reading.group], adapter_index, device)
    return ReadBatch(batch, reading.first, reading.end, {} if memory is None else memory)
