"""Packing is turned on only for models that keep packed rows apart, which is measured before the first step.

What would otherwise happen shows in no error message: rows see their neighbours, and the model learns that.
"""

from __future__ import annotations

import math

from rayloom.config import TrainingConfig
from rayloom.data import Dataset, EncodedDataset, Example, MicroBatch, Packing
from rayloom.errors import TrainingError
from rayloom.training import distributed
from rayloom.training.backends import Backend
from rayloom.training.batches import to_device
from rayloom.training.loss import TokenLoss

_PAIR_TYPES = ("t5", "mt5", "umt5")
"""Encoder-decoders whose attention knows distances only: positions of rows need not start anew."""
_PAIR_ATTENTIONS = ("eager", "sdpa")
_TABLE_TYPES = ("gpt_neo", "gptj", "codegen")
"""Decoders that hold a table of who sees whom, as wide as their longest sequence."""

_SENTINEL_TOKENS = 12
_SAME = 1e-6
_NEAR = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 2e-2}
"""Relative differences of summed losses: of sums in the same order, and in another."""


def enable_packing(backend: Backend, config: TrainingConfig, dataset: Dataset, pad_token_id: int) -> None:
    """Let train micro-batches be packed, if the config says so. Collective: a few forward passes, no randomness.

    Args:
        backend: With the weights that training starts from; its module's ``packing`` is set.
        config: Says whether, and into how long sequences.
        dataset: Train rows, to try it on.
        pad_token_id: Fills up rows.

    Raises:
        TrainingError: The model does not keep packed rows apart.
    """
    if not config.packing:
        return
    module = backend.module
    packing = packing_for(module, config)
    was_training = module.training
    module.eval()  # without dropout, losses can be compared
    try:
        _check(backend, config, dataset, pad_token_id, packing)
    finally:
        module.train(was_training)
    module.packing = packing


def packing_for(module: TokenLoss, config: TrainingConfig) -> Packing:
    """What fits the kind of model and its attention.

    Raises:
        TrainingError: Nothing does.
    """
    kind, attention = module.hf_config.model_type, str(module.hf_config._attn_implementation)
    if module.seq2seq and kind not in _PAIR_TYPES:
        raise _refusal(kind, f"of encoder-decoders only {', '.join(_PAIR_TYPES)} can be packed")
    if module.seq2seq and attention not in _PAIR_ATTENTIONS:
        raise _refusal(kind, f"with attention '{attention}' it cannot be packed, with {_PAIR_ATTENTIONS} it can")
    limit = getattr(module.hf_config, "max_position_embeddings", None)
    if kind in _TABLE_TYPES and limit is not None and (config.packing_length or 0) > limit:
        raise _refusal(kind, f"its attention reaches {limit} positions: lower training.packing_length to that")
    return Packing(config.packing_length, flat="flash" in attention)


def _check(backend: Backend, config: TrainingConfig, dataset: Dataset, pad_token_id: int, packing: Packing) -> None:
    def loss(examples: list[Example], how: Packing | None, *, middle: bool = False) -> float:
        rows = EncodedDataset.from_examples(examples, seq2seq=dataset.seq2seq)
        micro = MicroBatch(tuple(range(len(rows))))
        batch = to_device(rows, micro, pad_token_id=pad_token_id, device=backend.device, packing=how)
        if middle:
            width = len(examples[1].labels)
            places = batch["positions"]
            batch["positions"] = places[(places >= width) & (places < 2 * width)]
        return float(backend.loss(batch))

    kind = backend.module.hf_config.model_type
    ids = dataset.first_ids(config.batch_size * _SENTINEL_TOKENS)
    row = _sentinel(dataset)
    first = [dataset[place] for place in range(min(len(dataset), config.batch_size))]
    one_bin = Packing(3 * _SENTINEL_TOKENS, flat=packing.flat)
    try:
        alone = loss([row], None)
        beside, beside_others = (
            loss([_filled(row, int(token)), row, _filled(row, int(token))], one_bin, middle=True)
            for token in (ids.min(), ids.max())
        )
        padded, packed = loss(first, None), loss(first, packing)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise _refusal(kind, f"its forward pass fails on packed rows: {error}") from error
    near = _NEAR[config.precision]
    leaks = _differ(beside, beside_others, _SAME)
    moves = _differ(alone, beside, near) or _differ(padded, packed, near)
    leaks_anywhere, moves_anywhere = distributed.sum_over_ranks([float(leaks), float(moves)], backend.device)
    if leaks_anywhere:
        raise _refusal(
            kind, f"a row's loss depends on the rows packed beside it ({beside:.7g} becomes {beside_others:.7g})"
        )
    if moves_anywhere:
        changes = f"from {alone:.7g} to {beside:.7g}, or of the first micro-batch from {padded:.7g} to {packed:.7g}"
        raise _refusal(kind, f"packing changes losses, {changes}")


def _sentinel(dataset: Dataset) -> Example:
    """A short row with targets in it: the row with most of them, cut."""
    example = dataset[int(dataset.target_counts.argmax())]
    # An answer stands at the end of a decoder's row.
    part = slice(_SENTINEL_TOKENS) if dataset.seq2seq else slice(-_SENTINEL_TOKENS, None)
    return Example(example.input_ids[part], example.labels[part])


def _filled(example: Example, token: int) -> Example:
    """A row of the same lengths that says nothing but one token, so that it differs from another such row."""
    return Example([token] * len(example.input_ids), [token] * len(example.labels))


def _differ(one: float, other: float, tolerance: float) -> bool:
    """Whether two losses are not the same; a loss that is no number is the loop's to report."""
    if not math.isfinite(one):
        return False
    return not abs(one - other) <= tolerance * max(abs(one), 1.0)


def _refusal(kind: str, reason: str) -> TrainingError:
    return TrainingError(f"rows of model type '{kind}' cannot be packed: {reason}. Or set training.packing: false")
