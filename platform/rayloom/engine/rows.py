"""Tables with one row per slot: what each running sequence's request says, and the tokens that it has.

They live in numpy on the host whatever the scores' device: a step picks its rows from them at once, and what goes to
the device are short lists of token ids.

Shape letters: R rows of a step, L tokens of a sequence, C ids of a list.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rayloom.engine.request import EngineRequest, Params

Ids = Sequence[int] | npt.NDArray[np.int64] | torch.Tensor
"""Slots or tokens, one per row."""

_NONE = -1
_RECORD = np.dtype(
    [
        ("flags", np.int64),
        ("seed", np.uint64),
        ("index", np.int64),
        ("start_length", np.int64),
        ("length", np.int64),
        ("max_length", np.int64),
        ("known_token", np.int64),
        ("min_new_tokens", np.int64),
        ("begin_index", np.int64),
        ("ngram_size", np.int64),
        ("forced_bos", np.int64),
        ("decay_start", np.int64),
        ("decay_factor", np.float64),
        ("repetition_penalty", np.float32),
        ("encoder_repetition_penalty", np.float32),
        ("min_to_keep", np.int64),
        ("temperature", np.float32),
        ("top_k", np.int64),
        ("top_p", np.float64),
        ("min_p", np.float64),
        ("typical_p", np.float64),
        ("epsilon_cutoff", np.float64),
        ("eta_cutoff", np.float64),
    ]
)


class Uses(enum.IntFlag):
    """What a row's request asks for, so that nothing runs on rows that do not need it."""

    ENCODER_REPETITION = enum.auto()
    REPETITION = enum.auto()
    NGRAM = enum.auto()
    MIN_NEW = enum.auto()
    FORCED_BOS = enum.auto()
    FORCED_EOS = enum.auto()
    DECAY = enum.auto()
    SUPPRESS = enum.auto()
    BEGIN_SUPPRESS = enum.auto()
    WARP = enum.auto()
    SAMPLE = enum.auto()
    BIAS = enum.auto()


def as_ids(values: Ids) -> npt.NDArray[np.int64]:
    """Slots or tokens as numpy integers on the host."""
    if isinstance(values, torch.Tensor):
        return values.cpu().numpy().astype(np.int64, copy=False)
    return np.asarray(values, dtype=np.int64)


class IdTable:
    """A list of ids per slot, in one padded table. Padding repeats a list's first id, so that it changes nothing.

    Args:
        num_slots: Slots of the engine.
        dtype: Of what is kept beside ids, where it is not ids.
    """

    def __init__(self, num_slots: int, dtype: npt.DTypeLike = np.int64) -> None:
        self._ids = np.zeros((num_slots, 1), dtype=dtype)
        self._counts = np.zeros(num_slots, dtype=np.int64)

    def set(self, slot: int, ids: Sequence[int] | Sequence[float]) -> bool:
        """Replace a slot's list. Returns whether it has any id."""
        count = len(ids)
        self._counts[slot] = count
        if count > self._ids.shape[1]:
            wider = np.repeat(self._ids[:, :1], max(count, 2 * self._ids.shape[1]), axis=1)
            wider[:, : self._ids.shape[1]] = self._ids
            self._ids = wider
        if count:
            self._ids[slot] = ids[0]
            self._ids[slot, :count] = ids
        return count > 0

    def rows(self, slots_R: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Lists of slots that have one, ``(R, C)``."""
        return self._ids[slots_R, : int(self._counts[slots_R].max(initial=0))]

    def copy(self, targets: npt.NDArray[np.int64], sources: npt.NDArray[np.int64]) -> None:
        """Give targets the lists that sources have now."""
        self._counts[targets] = self._counts[sources]
        self._ids[targets] = self._ids[sources]


class RowStates:
    """Parameters and tokens of every running sequence, by slot.

    Args:
        num_slots: Slots of the engine.
        vocab_size: Scores of a row.
        max_length: Most tokens of a sequence.
        device: Where scores live.

    Attributes:
        records: One record per slot; see ``_RECORD`` for its fields.
        eos, forced_eos, suppressed, begin_suppressed: Lists of token ids by slot.
        source: Distinct ids of the encoder's input (causal models: of the prompt).
        biased, biases: Tokens whose logits are changed, and what is added to them.
    """

    def __init__(self, num_slots: int, vocab_size: int, max_length: int, device: torch.device | str = "cpu") -> None:
        self.vocab_size = vocab_size
        self.device = torch.device(device)
        self.records = np.zeros(num_slots, dtype=_RECORD)
        self.eos, self.forced_eos = IdTable(num_slots), IdTable(num_slots)
        self.suppressed, self.begin_suppressed = IdTable(num_slots), IdTable(num_slots)
        self.source = IdTable(num_slots)
        self.biased, self.biases = IdTable(num_slots), IdTable(num_slots, np.float32)
        self._tables = (self.eos, self.forced_eos, self.suppressed, self.begin_suppressed, self.source, self.biased,
                        self.biases)  # fmt: skip
        self._tokens = np.zeros((num_slots, max_length), dtype=np.int32)

    def open(self, slot: int, request: EngineRequest, tokens: Sequence[int], index: int) -> None:
        """Begin a sequence in a slot, or go on with one that was preempted.

        Args:
            slot: A free slot.
            request: Whom it answers.
            tokens: Start tokens, then those generated so far.
            index: The sequence's index within the request.
        """
        params, record = request.params, self.records[slot]
        start_length = len(request.start_ids)
        self._tokens[slot, : len(tokens)] = tokens
        record["seed"] = params.seed % 2**64
        record["index"] = index
        record["start_length"], record["length"] = start_length, len(tokens)
        record["max_length"] = request.max_length
        record["known_token"] = next((token for token in tokens if token < self.vocab_size), _NONE)
        record["min_new_tokens"] = params.min_new_tokens
        # transformers leaves a forced first token alone where nothing but the start token precedes it.
        forced_first = start_length == 1 and params.forced_bos_token_id is not None
        record["begin_index"] = start_length + forced_first
        record["ngram_size"] = params.no_repeat_ngram_size
        record["forced_bos"] = _NONE if params.forced_bos_token_id is None else params.forced_bos_token_id
        decay_start, record["decay_factor"] = params.exponential_decay_length_penalty or (0, 1.0)
        record["decay_start"] = start_length + decay_start
        for name in ("repetition_penalty", "encoder_repetition_penalty", "temperature", "top_k", "top_p", "min_p",
                     "typical_p", "epsilon_cutoff", "eta_cutoff"):  # fmt: skip
            record[name] = getattr(params, name)
        # Beams need a token beside every way to end, or all of them could end at once.
        record["min_to_keep"] = max(2, len(params.eos_token_ids) + 1) if params.is_beam else 1
        record["flags"] = self._set_lists(slot, request) | _flags(params)

    def append(self, slots_R: Ids, tokens_R: Ids) -> None:
        """Each of these (different) slots' sequences has taken a token."""
        slots, tokens = as_ids(slots_R), as_ids(tokens_R)
        lengths = self.records["length"]
        self._tokens[slots, lengths[slots]] = tokens
        lengths[slots] += 1
        known = self.records["known_token"]
        known[slots] = np.where(known[slots] == _NONE, tokens, known[slots])

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy rows, all at once: each target gets what its source had before the call.

        The copy has its source's index too; see `reindex`.

        Args:
            pairs: (target slot, source slot) of each.
        """
        if not pairs:
            return
        targets, sources = np.asarray(pairs, dtype=np.int64).T
        self.records[targets] = self.records[sources]
        for table in self._tables:
            table.copy(targets, sources)
        used = int(self.records["length"][targets].max())
        self._tokens[targets, :used] = self._tokens[sources, :used]

    def reindex(self, slots_R: Ids, indices_R: Ids) -> None:
        """Give sequences their index within the request, after a fork: answers must be sampled differently."""
        self.records["index"][as_ids(slots_R)] = as_ids(indices_R)

    def close(self, slot: int) -> None:
        """The sequence has left its slot."""
        self.records[slot] = np.zeros((), dtype=_RECORD)

    def tokens(self, slots_R: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """Tokens of some slots ``(R, L)``; a row counts up to its record's length."""
        return self._tokens[slots_R, : int(self.records["length"][slots_R].max(initial=0))]

    def _set_lists(self, slot: int, request: EngineRequest) -> Uses:
        """Fill the lists; returns what of the request has any use with what they hold."""
        params, uses = request.params, Uses(0)
        favoured = (request.encoder_ids or request.start_ids) if params.encoder_repetition_penalty != 1.0 else ()
        if self.source.set(slot, self._valid(tuple(dict.fromkeys(favoured)))):
            uses |= Uses.ENCODER_REPETITION
        if self.eos.set(slot, self._valid(params.eos_token_ids)):
            uses |= Uses.MIN_NEW if params.min_new_tokens > 0 else 0
            uses |= Uses.DECAY if params.exponential_decay_length_penalty is not None else 0
        if self.forced_eos.set(slot, self._valid(params.forced_eos_token_ids)):
            uses |= Uses.FORCED_EOS
        biases = {token: bias for token, bias in params.logit_bias if 0 <= token < self.vocab_size}
        self.biases.set(slot, tuple(biases.values()))
        if self.biased.set(slot, tuple(biases)):
            uses |= Uses.BIAS
        if self.suppressed.set(slot, self._valid(params.suppress_tokens)):
            uses |= Uses.SUPPRESS
        if self.begin_suppressed.set(slot, self._valid(params.begin_suppress_tokens)):
            uses |= Uses.BEGIN_SUPPRESS
        return uses

    def _valid(self, ids: Sequence[int]) -> list[int]:
        """Those that the model can score: some models embed more tokens than they predict."""
        return [token for token in ids if 0 <= token < self.vocab_size]


def _flags(params: Params) -> Uses:
    uses = Uses(0)
    if params.repetition_penalty != 1.0:
        uses |= Uses.REPETITION
    if params.no_repeat_ngram_size > 0:
        uses |= Uses.NGRAM
    if params.forced_bos_token_id is not None:
        uses |= Uses.FORCED_BOS
    if params.do_sample:
        uses |= Uses.SAMPLE | Uses.WARP if _warps(params) else Uses.SAMPLE
    return uses


def _warps(params: Params) -> bool:
    cutoffs = (params.top_k, params.min_p, params.eta_cutoff, params.epsilon_cutoff)
    return params.temperature != 1.0 or params.top_p < 1.0 or params.typical_p < 1.0 or any(cut > 0 for cut in cutoffs)
