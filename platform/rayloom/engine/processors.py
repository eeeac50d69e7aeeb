"""Logits processors of ``transformers.generate``, over rows that each have their own settings.

Order and meaning are those of transformers' ``generate``: penalties, bans and length rules, then the masks of
constraints, then (with ``do_sample``) the warpers. What a step's rows do not use costs nothing.

Shape letters: R rows, V vocabulary, L tokens of a sequence, C ids of a list, W words of a bitmask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from rayloom.engine import kernels
from rayloom.engine.rankings import change_rows, cut_where, take_rows
from rayloom.engine.rows import Ids, IdTable, RowStates, Uses, as_ids
from rayloom.engine.warpers import warp

Mask = npt.NDArray[np.uint32]
Rows = npt.NDArray[np.int64]

_BANS = Uses.NGRAM | Uses.MIN_NEW | Uses.FORCED_BOS | Uses.FORCED_EOS | Uses.SUPPRESS | Uses.BEGIN_SUPPRESS
"""What may leave a constrained row without any token."""
_MOST = 1e30
"""Exponential decay grows without end; float32 does not."""


@dataclass(frozen=True)
class _Step:
    """The rows of one call: their scores, slots and records."""

    states: RowStates
    scores_RV: torch.Tensor
    slots_R: npt.NDArray[np.int64]
    records_R: npt.NDArray[np.void]

    def ids(self, ids: npt.NDArray[np.int64]) -> torch.Tensor:
        """Host integers on the scores' device."""
        return torch.from_numpy(ids).to(self.scores_RV.device)

    def numbers(self, values: npt.NDArray[np.floating]) -> torch.Tensor:
        """One float per row, as a column on the scores' device."""
        return torch.from_numpy(values.astype(np.float32))[:, None].to(self.scores_RV.device)


def process(
    scores_RV: torch.Tensor,
    slots_R: Ids,
    states: RowStates,
    masks: Sequence[Mask | None] | None = None,
    *,
    overwrite: bool = False,
) -> torch.Tensor:
    """Scores as the rows' requests want them.

    Where a row's other rules forbid all that its mask allows, the mask wins: an answer that was promised to follow
    a grammar does.

    Args:
        scores_RV: float32: logits; for beams log-probabilities of the next token.
        slots_R: The rows' slots.
        states: What their requests say, and their tokens so far.
        masks: Allowed tokens of each row, see `apply_masks`; they come after the processors and before the warpers.
        overwrite: Work in the memory of ``scores_RV``, which saves a copy.

    Returns:
        The scores themselves where there is nothing to do (or ``overwrite``), else a new tensor.
    """
    slots = as_ids(slots_R)
    records_R = states.records[slots]
    work = [(change, rows) for change, rows in _work(records_R) if rows.size]
    masked = _masked_rows(masks)
    warped = np.flatnonzero(records_R["flags"] & Uses.WARP)
    if not (work or masked.size or warped.size):
        return scores_RV
    if not overwrite:
        scores_RV = scores_RV.clone()
    risky = np.intersect1d(masked, np.flatnonzero(records_R["flags"] & _BANS))
    raw_RV = take_rows(scores_RV, risky).clone() if risky.size else None
    step = _Step(states, scores_RV, slots, records_R)
    for change, rows in work:
        change(step, rows)
    if masks is not None and masked.size:
        apply_masks(scores_RV, masks)
        if raw_RV is not None:
            _revive(scores_RV, risky, raw_RV, masks)
    if warped.size:
        change_rows(scores_RV, warped, lambda block_RV: warp(block_RV, records_R[warped]))
    return scores_RV


def changes_any(slots_R: Ids, states: RowStates) -> bool:
    """Whether `process`, without masks, would change any of these rows."""
    records_R = states.records[as_ids(slots_R)]
    return bool((records_R["flags"] & Uses.WARP).any()) or any(rows.size for _, rows in _work(records_R))


def apply_masks(scores_RV: torch.Tensor, masks: Sequence[Mask | None]) -> torch.Tensor:
    """Set tokens that are not allowed to -inf, in place.

    Args:
        scores_RV: Scores.
        masks: Per row: token t is allowed where bit t % 32 of word t // 32 is set; None allows all. At least
            ceil(V / 32) words each.

    Returns:
        ``scores_RV``.
    """
    rows, given = _masked_rows(masks), [mask for mask in masks if mask is not None]
    if rows.size and not kernels.apply_masks(scores_RV, rows, given):
        banned_RV = _banned(given, scores_RV.shape[1])
        change_rows(scores_RV, rows, lambda block_RV: cut_where(block_RV, banned_RV))
    return scores_RV


def _masked_rows(masks: Sequence[Mask | None] | None) -> Rows:
    return np.array([row for row, mask in enumerate(masks or ()) if mask is not None], dtype=np.int64)


def _banned(masks: Sequence[Mask], vocab_size: int) -> npt.NDArray[np.bool_]:
    """Bitmasks of allowed tokens as booleans of those that are not, ``(R, V)``."""
    num_words = -(-vocab_size // 32)
    words_RW = ~np.stack([mask[:num_words] for mask in masks])
    bits_RV = np.unpackbits(words_RW.astype("<u4", copy=False).view(np.uint8), axis=1, bitorder="little")
    return bits_RV[:, :vocab_size].view(np.bool_)


def _revive(scores_RV: torch.Tensor, rows: Rows, raw_RV: torch.Tensor, masks: Sequence[Mask | None]) -> None:
    """Give rows that have no token left what their mask alone would leave them."""
    best_R = take_rows(scores_RV, rows).amax(dim=1)
    dead = np.flatnonzero(best_R.cpu().numpy() == -np.inf)
    if dead.size:
        index = torch.from_numpy(rows[dead]).to(scores_RV.device)
        block_RV = raw_RV[torch.from_numpy(dead).to(raw_RV.device)]
        scores_RV[index] = apply_masks(block_RV, [masks[row] for row in rows[dead].tolist()])


Change = Callable[[_Step, Rows], None]


def _work(records_R: npt.NDArray[np.void]) -> list[tuple[Change, Rows]]:
    """Which processor changes which rows at this step, in transformers' order."""
    flags_R = records_R["flags"]
    if not np.bitwise_or.reduce(flags_R, initial=0) & ~(Uses.WARP | Uses.SAMPLE):
        return []
    lengths_R = records_R["length"]
    num_new_R = lengths_R - records_R["start_length"]

    def rows(use: Uses, is_due_R: npt.NDArray[np.bool_] | bool = True) -> Rows:
        return np.flatnonzero(((flags_R & use) != 0) & is_due_R)

    return [
        (_add_biases, rows(Uses.BIAS)),
        (_penalise_source, rows(Uses.ENCODER_REPETITION)),
        (_penalise_repetition, rows(Uses.REPETITION, records_R["known_token"] >= 0)),
        (_ban_ngrams, rows(Uses.NGRAM, lengths_R >= records_R["ngram_size"])),
        (_ban("eos"), rows(Uses.MIN_NEW, num_new_R < records_R["min_new_tokens"])),
        (_force_first, rows(Uses.FORCED_BOS, lengths_R == 1)),
        (_force_last, rows(Uses.FORCED_EOS, lengths_R == records_R["max_length"] - 1)),
        (_favour_ending, rows(Uses.DECAY, lengths_R > records_R["decay_start"])),
        (_ban("suppressed"), rows(Uses.SUPPRESS)),
        (_ban("begin_suppressed"), rows(Uses.BEGIN_SUPPRESS, lengths_R == records_R["begin_index"])),
    ]


def _add_biases(step: _Step, rows: Rows) -> None:
    """Add to single tokens' scores. Padding repeats a row's first token with its bias: all its writes are equal."""
    slots_R = step.slots_R[rows]
    places = step.ids(rows)[:, None], step.ids(step.states.biased.rows(slots_R))
    biases_RC = torch.from_numpy(step.states.biases.rows(slots_R)).to(step.scores_RV.device)
    step.scores_RV[places] = step.scores_RV[places] + biases_RC


def _penalise_source(step: _Step, rows: Rows) -> None:
    """Favour the encoder's tokens: a penalty upside down."""
    penalties_R = 1 / step.records_R["encoder_repetition_penalty"][rows].astype(np.float64)
    _penalise(step, rows, step.states.source.rows(step.slots_R[rows]), penalties_R)


def _penalise_repetition(step: _Step, rows: Rows) -> None:
    """Keskar et al. 2019 (CTRL), section 4.1."""
    tokens_RL = step.states.tokens(step.slots_R[rows]).astype(np.int64)
    records_R = step.records_R[rows]
    has_token_RL = np.arange(tokens_RL.shape[1]) < records_R["length"][:, None]
    # Any token of the sequence serves as padding: penalised once is penalised.
    is_known_RL = has_token_RL & (tokens_RL < step.scores_RV.shape[1])
    ids_RL = np.where(is_known_RL, tokens_RL, records_R["known_token"][:, None])
    _penalise(step, rows, ids_RL, records_R["repetition_penalty"])


def _penalise(step: _Step, rows: Rows, ids_RC: npt.NDArray[np.int64], penalties_R: npt.NDArray[np.floating]) -> None:
    """Make scores of ids smaller. The same id may come several times: all its writes are equal."""
    places = step.ids(rows)[:, None], step.ids(ids_RC)
    penalties_R1 = step.numbers(penalties_R)
    scores_RC = step.scores_RV[places]
    step.scores_RV[places] = torch.where(scores_RC < 0, scores_RC * penalties_R1, scores_RC / penalties_R1)


def _ban_ngrams(step: _Step, rows: Rows) -> None:
    """Ban each token that followed the sequence's last n - 1 tokens before."""
    tokens_RL = step.states.tokens(step.slots_R[rows])
    lengths_R, sizes_R = step.records_R["length"][rows], step.records_R["ngram_size"][rows]
    place_L = np.arange(tokens_RL.shape[1])
    ends_RL = (place_L >= sizes_R[:, None] - 1) & (place_L < lengths_R[:, None])
    for back in range(1, int(sizes_R.max())):
        last_R = tokens_RL[np.arange(rows.size), np.maximum(lengths_R - back, 0)]
        is_short_R = sizes_R <= back
        ends_RL[:, back:] &= (tokens_RL[:, : -back or None] == last_R[:, None]) | is_short_R[:, None]
    which, places = np.nonzero(ends_RL)
    tokens = tokens_RL[which, places].astype(np.int64)
    known = tokens < step.scores_RV.shape[1]
    step.scores_RV[step.ids(rows[which[known]]), step.ids(tokens[known])] = -torch.inf


def _ban(name: str) -> Change:
    """A processor that sets the tokens of one of the states' lists to -inf."""

    def change(step: _Step, rows: Rows) -> None:
        table: IdTable = getattr(step.states, name)
        step.scores_RV[step.ids(rows)[:, None], step.ids(table.rows(step.slots_R[rows]))] = -torch.inf

    return change


def _force_first(step: _Step, rows: Rows) -> None:
    _force(step, rows, step.records_R["forced_bos"][rows][:, None])


def _force_last(step: _Step, rows: Rows) -> None:
    _force(step, rows, step.states.forced_eos.rows(step.slots_R[rows]))


def _force(step: _Step, rows: Rows, ids_RC: npt.NDArray[np.int64]) -> None:
    index_R = step.ids(rows)
    step.scores_RV[index_R] = -torch.inf
    step.scores_RV[index_R[:, None], step.ids(ids_RC)] = 0.0


def _favour_ending(step: _Step, rows: Rows) -> None:
    """Raise the end's score by a factor that grows with every token past the start of the regulation."""
    records_R = step.records_R[rows]
    with np.errstate(over="ignore"):
        powers_R = records_R["decay_factor"] ** (records_R["length"] - records_R["decay_start"])
    places = step.ids(rows)[:, None], step.ids(step.states.eos.rows(step.slots_R[rows]))
    scores_RC = step.scores_RV[places]
    raised_RC = scores_RC + scores_RC.abs() * step.numbers(np.minimum(powers_R, _MOST) - 1)
    step.scores_RV[places] = torch.where(scores_RC.isfinite(), raised_RC, scores_RC)
