"""The live and finished beams of one search, and the rules by which they change places.

The rules are those of ``transformers.generate`` (5.23). Where words are required, live beams are chosen by dynamic beam
allocation: M. Post and D. Vilar, "Fast Lexically Constrained Decoding with Dynamic Beam Allocation for Neural Machine
Translation", NAACL 2018.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import NamedTuple

from rayloom.engine.request import EngineRequest, FinishReason, TokenScore
from rayloom.engine.required import RequiredWords


class Candidate(NamedTuple):
    """A beam and a token that it could go on with.

    Attributes:
        score: Sum of the (processed) log-probabilities of all tokens, this one included.
        beam: Place of the beam in its pool.
        token: The token.
    """

    score: float
    beam: int
    token: int


@dataclass(eq=False, slots=True)
class Beam:
    """One live hypothesis.

    Attributes:
        tokens: Generated tokens.
        score: Sum of their processed log-probabilities.
        row: Row of the search that it comes from: its own between steps, its parent's within one.
        words: Which required words it has written.
        logprobs: One per token, if asked for.
    """

    tokens: tuple[int, ...]
    score: float
    row: int
    words: tuple[RequiredWords, ...] = ()
    logprobs: tuple[TokenScore, ...] = ()


@dataclass(eq=False, slots=True)
class Finished:
    """A hypothesis that has ended. `score` is over its length to the power of the length penalty."""

    beam: Beam
    score: float
    reason: FinishReason


class BeamPool:
    """Beams that compete with each other: all of a request's, or one of its diverse groups.

    Args:
        request: What was asked.
        width: Most live and most finished beams.
    """

    def __init__(self, request: EngineRequest, width: int) -> None:
        params = request.params
        self._start_ids, self._stop, self._params = request.start_ids, request.stop, params
        self._eos_ids = frozenset(params.eos_token_ids)
        self.width = width
        self.num_candidates = max(2, 1 + len(self._eos_ids)) * width
        words = tuple(item.fork() for item in request.constraints if isinstance(item, RequiredWords))
        self._num_required = sum(item.total for item in words)
        self.beams = [Beam((), 0.0, 0, words)]
        self.finished: list[Finished] = []
        self.done = False
        self.num_steps = 0

    @property
    def allocates(self) -> bool:
        """Whether live beams are chosen by dynamic beam allocation. Sampled ones are not: their masks must do."""
        return self._num_required > 0 and not self._params.do_sample

    def step(self, candidates: Seq[Candidate]) -> list[Beam]:
        """Choose who goes on and who has finished.

        Args:
            candidates: Best first, or in the order in which they were drawn. With dynamic beam allocation: also each
                beam's best token and all that it wants.

        Returns:
            Beams that got one more token in this step, live or finished.
        """
        going_on, ended = self._parted(candidates)
        if not going_on and not ended:  # masks, bans and stop rules together leave no way to go on
            if self.finished:
                self._close()
            else:
                self.give_up("length")
            return []
        self.num_steps += 1
        parents = self.beams
        self.beams = [_child(parents[item.beam], item) for item in self._selected(going_on)]
        grown = list(self.beams)
        for item, reason in ended:
            is_eos = item.token in self._eos_ids
            beam = parents[item.beam] if is_eos else _child(parents[item.beam], item)
            grown += [] if is_eos else [beam]
            self._finish(beam, item.score, reason)
        self._check_done()
        return grown

    def give_up(self, reason: FinishReason) -> None:
        """End with what there is: live beams count as finished."""
        for beam in self.beams:
            self._finish(beam, beam.score, reason)
        self._close()

    def _parted(self, candidates: Seq[Candidate]) -> tuple[list[Candidate], list[tuple[Candidate, FinishReason]]]:
        """Candidates that go on, and those that end and are among the best `width`.

        The others that end are lost, as in transformers. Where words are required only candidates with all of them are
        ranked, and none with a word missing ends by a stop string; where time or length ends it, no choice is left.
        """
        going_on: list[Candidate] = []
        ended: list[tuple[Candidate, FinishReason]] = []
        rank = 0
        for item in candidates:
            complete = not self._num_required or self._num_met(item) == self._num_required
            reason = self._reason(item)
            if reason is None:
                going_on.append(item)
            elif (complete or reason != "stop") and rank < self.width:
                ended.append((item, reason))
            rank += complete
        return going_on, ended

    def _reason(self, item: Candidate) -> FinishReason | None:
        if item.token in self._eos_ids:
            return "stop"
        tokens = self.beams[item.beam].tokens
        if self._stop is not None and self._stop([*self._start_ids, *tokens, item.token]):
            return "stop"
        if self.num_steps + 1 >= self._params.max_new_tokens:
            return "length"
        return None

    def _selected(self, candidates: list[Candidate]) -> list[Candidate]:
        """The new live beams, best first."""
        candidates = sorted(candidates, key=_score, reverse=True)
        if not self.allocates:
            return candidates[: self.width]
        banks: dict[int, list[Candidate]] = {}
        for item in candidates:
            banks.setdefault(self._num_met(item), []).append(item)
        # One each in turn, those with the most words first: what a bank cannot fill goes to the others.
        turns = [(place, -num_met, item) for num_met, bank in banks.items() for place, item in enumerate(bank)]
        turns.sort(key=lambda turn: turn[:2])
        return sorted((item for _, _, item in turns[: self.width]), key=_score, reverse=True)

    def _num_met(self, item: Candidate) -> int:
        return sum(words.met_after(item.token) for words in self.beams[item.beam].words)

    def _finish(self, beam: Beam, score: float, reason: FinishReason) -> None:
        length = max(1, self.num_steps)  # an end of sequence counts, so it is no len(beam.tokens)
        score /= length**self._params.length_penalty
        self.finished.append(Finished(beam, score, reason))

    def _check_done(self) -> None:
        """Whether live beams can still better the finished ones, by the rule that `early_stopping` names."""
        self.finished = sorted(self.finished, key=_score, reverse=True)[: self.width]
        if not self.beams:
            self._close()
        elif len(self.finished) == self.width:
            params = self._params
            to_the_end = params.early_stopping == "never" and params.length_penalty > 0.0
            length = params.max_new_tokens if to_the_end else self.num_steps
            best = self.beams[0].score / length**params.length_penalty
            if params.early_stopping is True or best <= self.finished[-1].score:
                self._close()

    def _close(self) -> None:
        self.finished = sorted(self.finished, key=_score, reverse=True)[: self.width]
        self.beams = []
        self.done = True


def _score(item: Candidate | Finished) -> float:
    return item.score


def _child(parent: Beam, item: Candidate) -> Beam:
    words = tuple(each.fork() for each in parent.words)
    for each in words:
        each.advance(item.token)
    return Beam((*parent.tokens, item.token), item.score, parent.row, words, parent.logprobs)
