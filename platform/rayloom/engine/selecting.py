"""From logits to tokens: sampling, beams, constraints, stop rules; who goes on and who is done.

Shape letters: R rows whose logits a step wants, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch

from rayloom.engine.beams import BeamSearch, Process, advance
from rayloom.engine.choosing import choose, token_scores
from rayloom.engine.constraints import MaskPool, reason_of_end
from rayloom.engine.events import Done, Event, NewToken
from rayloom.engine.plan import Plan
from rayloom.engine.processors import changes_any, process
from rayloom.engine.request import FinishReason, Group, Hypothesis, Sequence, TokenScore
from rayloom.engine.rows import RowStates
from rayloom.engine.scheduler import Scheduler


@dataclass(frozen=True)
class _Row:
    """A sequence that waits for its next token, and the row of logits that it comes from."""

    group: Group
    sequence: Sequence
    row: int


class Selector:
    """Chooses tokens and keeps what that needs: rows of parameters and history, beam searches, masks.

    Args:
        states: Per-slot parameters and histories.
        scheduler: Forks sequences.
    """

    def __init__(self, states: RowStates, scheduler: Scheduler) -> None:
        self._states, self._scheduler = states, scheduler
        self._masks: MaskPool | None = None
        self._searches: dict[int, BeamSearch] = {}
        self._answers: dict[int, dict[int, Hypothesis]] = {}

    def expect(self, group: Group) -> None:
        """Get ready for a new group.

        Raises:
            RequestError: Beam parameters that contradict each other.
        """
        if group.request.params.is_beam:
            self._searches[group.group_id] = BeamSearch(group.request)
        else:
            self._answers[group.group_id] = {}

    def forget(self, group: Group) -> None:
        """Drop what was kept for a group."""
        self._searches.pop(group.group_id, None)
        self._answers.pop(group.group_id, None)
        if self._masks:
            self._masks.forget([sequence.constraints for sequence in group.sequences])

    def open_rows(self, plan: Plan) -> None:
        """Fill the rows of sequences that have got a slot in this step."""
        for group in plan.admitted:
            for sequence in group.sequences:
                self._states.open(sequence.slot, group.request, sequence.tokens, sequence.index)

    def select(self, plan: Plan, logits_RV: torch.Tensor) -> list[Event]:
        """Give every sequence with logits its next token.

        Args:
            plan: The step that was computed.
            logits_RV: One row for each span that wants logits, in their order.
        """
        plain: list[_Row] = []
        beams: dict[int, list[_Row]] = {}
        spans = (span for span in plan.spans if span.wants_logits)
        for number, span in enumerate(spans):
            row = _Row(span.group, span.sequence, number)
            if span.group.request.params.is_beam:
                beams.setdefault(span.group.group_id, []).append(row)
            else:
                plain += self._fanned_out(row)
        events = self._select_plain(plain, logits_RV) if plain else []
        return events + (self._select_beams(list(beams.values()), logits_RV) if beams else [])

    def give_up(self, group: Group) -> tuple[Hypothesis, ...]:
        """The answers of a group whose time is over, as far as they have come."""
        if search := self._searches.get(group.group_id):
            return tuple(search.give_up())
        answers = self._answers[group.group_id]
        if self._masks:
            self._masks.settle([sequence.constraints for sequence in group.sequences])
        for sequence in group.sequences:
            answers[sequence.index] = _hypothesis(group, sequence, reason_of_end(sequence.constraints, "time"))
        # Before its first token a group has one sequence for all of its answers.
        return tuple(answers.get(index, answers[0]) for index in range(group.request.params.num_return_sequences))

    def _fork(self, group: Group, parents: Seq[int]) -> list[tuple[int, int]]:
        """Continue the given sequences: constraints follow the cache.

        Returns:
            (target slot, source slot) of rows that are to be copied.
        """
        old = group.sequences
        copies = self._scheduler.fork(group, parents)
        seen: set[int] = set()
        for sequence, parent in zip(group.sequences, parents, strict=True):
            held = old[parent].constraints
            sequence.constraints = tuple(item.fork() for item in held) if parent in seen else held
            seen.add(parent)
        return copies

    def _fanned_out(self, row: _Row) -> list[_Row]:
        """The prompt's last row serves all answers of a request."""
        group, num_answers = row.group, row.group.request.params.num_return_sequences
        if num_answers == 1 or len(row.sequence.tokens) > len(group.request.start_ids):
            return [row]
        self._states.copy(self._fork(group, [0] * num_answers))
        slots, indices = zip(*((each.slot, each.index) for each in group.sequences), strict=True)
        self._states.reindex(slots, indices)  # each samples by its own index
        return [_Row(group, sequence, row.row) for sequence in group.sequences]

    def _select_plain(self, rows: Seq[_Row], logits_RV: torch.Tensor) -> list[Event]:
        raw_RV = _rows_of(logits_RV, [row.row for row in rows])
        slots = [row.sequence.slot for row in rows]
        scored = any(row.group.request.params.logprobs is not None for row in rows)
        with torch.inference_mode():  # the runner's own tensors are changed only there
            scores_RV = self._processed(raw_RV, slots, [row.sequence for row in rows], overwrite=not scored)
        tokens_R = choose(scores_RV, slots, self._states)
        tokens = tokens_R.tolist()
        best = scores_RV.gather(1, tokens_R[:, None])[:, 0].tolist()
        self._states.append(slots, tokens)
        self._score(rows, raw_RV, tokens_R)
        events: list[Event] = []
        for place, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if row.sequence.constraints and best[place] == -math.inf:
                # Its constraints contradict each other here: no token may follow.
                self._answers[row.group.group_id][row.sequence.index] = _hypothesis(row.group, row.sequence, "stop")
            else:
                events += self._take(row, token)
        self._prepare([row.sequence for row in rows if row.sequence.index not in self._answers[row.group.group_id]])
        for group in {row.group.group_id: row.group for row in rows}.values():
            events += self._part(group)
        return events

    def _processed(
        self, scores_RV: torch.Tensor, slots: Seq[int], sequences: Seq[Sequence], *, overwrite: bool = False
    ) -> torch.Tensor:
        masks = None
        if any(sequence.constraints for sequence in sequences):
            masks = self._mask_pool.collect([sequence.constraints for sequence in sequences])
        return process(scores_RV, slots, self._states, masks, overwrite=overwrite)

    def _score(self, rows: Seq[_Row], raw_RV: torch.Tensor, tokens_R: torch.Tensor) -> None:
        """Log-probabilities for those that asked."""
        wanted = [place for place, row in enumerate(rows) if row.group.request.params.logprobs is not None]
        if not wanted:
            return
        most = max(rows[place].group.request.params.logprobs or 0 for place in wanted)
        places = torch.tensor(wanted, device=raw_RV.device)
        for place, score in zip(wanted, token_scores(raw_RV[places], tokens_R[places], most), strict=True):
            num_top = rows[place].group.request.params.logprobs
            rows[place].sequence.logprobs.append(TokenScore(score.logprob, score.top[:num_top]))

    def _take(self, row: _Row, token: int) -> list[Event]:
        """Append one token; where the sequence ends by it, its answer is kept."""
        group, sequence = row.group, row.sequence
        params, answers = group.request.params, self._answers[group.group_id]
        if token in params.eos_token_ids:
            answers[sequence.index] = _hypothesis(group, sequence, "stop", ended_by=token)
            return []
        sequence.tokens.append(token)
        for constraint in sequence.constraints:
            constraint.advance(token)
        if (stop := group.request.stop) is not None and stop(sequence.tokens):
            answers[sequence.index] = _hypothesis(group, sequence, "stop")
        elif len(sequence.tokens) >= group.request.max_length:
            answers[sequence.index] = _hypothesis(group, sequence, reason_of_end(sequence.constraints, "length"))
        score = sequence.logprobs[-1] if params.logprobs is not None else None
        return [NewToken(group.group_id, sequence.index, token, score)]

    def _part(self, group: Group) -> list[Event]:
        """Let finished sequences go; tell when all are."""
        answers = self._answers[group.group_id]
        going_on = [place for place, sequence in enumerate(group.sequences) if sequence.index not in answers]
        if not going_on:
            return [Done(group.group_id, tuple(answers[index] for index in sorted(answers)))]
        if len(going_on) < len(group.sequences):
            self._states.copy(self._fork(group, going_on))
        return []

    def _select_beams(self, groups: Seq[Seq[_Row]], logits_RV: torch.Tensor) -> list[Event]:
        flat = [row for rows in groups for row in rows]
        raw_RV = _rows_of(logits_RV, [row.row for row in flat])
        searches = [self._searches[rows[0].group.group_id] for rows in groups]
        process_rows = self._beam_process([row.sequence for row in flat])
        steps = advance(searches, raw_RV, [len(rows) for rows in groups], process_rows)
        events: list[Event] = []
        going_on: list[Sequence] = []
        copies: list[tuple[int, int]] = []
        for rows, search, step in zip(groups, searches, steps, strict=True):
            group = rows[0].group
            if step.done:
                events.append(Done(group.group_id, tuple(search.hypotheses())))
                continue
            copies += self._fork(group, step.parents)
            for sequence, token in zip(group.sequences, step.tokens, strict=True):
                sequence.tokens.append(token)
                for constraint in sequence.constraints:
                    constraint.advance(token)
            going_on += group.sequences
        self._states.copy(copies)  # at once for all groups: each has slots of its own
        self._states.append([each.slot for each in going_on], [each.tokens[-1] for each in going_on])
        self._prepare(going_on)
        return events

    def _beam_process(self, sequences: Seq[Sequence]) -> Process | None:
        constrained = any(sequence.constraints for sequence in sequences)
        if not constrained and not changes_any([each.slot for each in sequences], self._states):
            return None

        def processed(scores_PV: torch.Tensor, rows_P: torch.Tensor) -> torch.Tensor:
            chosen = [sequences[row] for row in rows_P.tolist()]
            return self._processed(scores_PV, [each.slot for each in chosen], chosen)

        return processed

    def _prepare(self, sequences: Seq[Sequence]) -> None:
        """Start on the masks of the next step, while the model runs."""
        constrained = [sequence.constraints for sequence in sequences if sequence.constraints]
        if constrained:
            self._mask_pool.prepare(constrained)

    @property
    def _mask_pool(self) -> MaskPool:
        if self._masks is None:
            self._masks = MaskPool()
        return self._masks


def _rows_of(logits_RV: torch.Tensor, rows: list[int]) -> torch.Tensor:
    if rows == list(range(logits_RV.shape[0])):
        return logits_RV
    return logits_RV[torch.tensor(rows, device=logits_RV.device)]


def _hypothesis(group: Group, sequence: Sequence, reason: FinishReason, *, ended_by: int | None = None) -> Hypothesis:
    tokens = tuple(sequence.tokens[len(group.request.start_ids) :])
    if group.request.params.logprobs is None:
        return Hypothesis(tokens, reason)
    end = None if ended_by is None else (ended_by, sequence.logprobs[-1])
    return Hypothesis(tokens, reason, logprobs=tuple(sequence.logprobs[: len(tokens)]), end=end)
