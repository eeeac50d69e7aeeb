"""Beam search, beam sampling, diverse and lexically constrained beams: many requests' searches in one step.

Plain beams do what ``transformers.generate`` (5.23) does, but for one thing. Where masks, bans or stop strings leave
fewer ways to go on than there are beams, transformers carries beams of score -1e9 along, and may answer with one. Here
there are fewer beams then; and a request gets fewer answers than it asked for if no more are possible.

Diverse beams (A. Vijayakumar et al., "Diverse Beam Search", 2016): groups choose one after another within a step, and a
group's log-probabilities are lowered by the penalty for every live beam of an earlier group that took the same token at
this step. Each group ends by the rules of plain beams; a group that is done penalises nobody; answers are the best of
all groups.

Lexically constrained beams: `RequiredWords` among the request's constraints; see `beam_pools.py`.

Shape letters: R rows of logits (live beams of all searches, end to end), V vocabulary, P rows of one round.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import accumulate

import torch

from rayloom.engine.beam_candidates import best_candidates, best_of_logits, drawn_candidates
from rayloom.engine.beam_pools import Beam, BeamPool, Candidate, Finished
from rayloom.engine.choosing import token_scores
from rayloom.engine.constraints import reason_of_end, replayed
from rayloom.engine.kernels.selection import log_softmax
from rayloom.engine.request import EngineRequest, FinishReason, Hypothesis, Params, TokenScore
from rayloom.errors import RequestError

Process = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(scores_PV, rows_P) -> scores_PV: logits processors, warpers and masks for these rows of the step's logits.

May write into its argument. Rows can come several times in a step: diverse groups share the prompt's row."""


@dataclass(frozen=True)
class Advance:
    """What becomes of one search's live beams in a step.

    Attributes:
        parents: For each new live beam, in order: the old one that it continues. Empty when done.
        tokens: The token that each takes.
        done: Whether the search is over.
    """

    parents: list[int]
    tokens: list[int]
    done: bool


class BeamSearch:
    """One request's beams. It starts with one row, the prompt's; after each step the live beams are its rows.

    Raises:
        RequestError: Numbers of beams, groups and answers that do not fit together.
    """

    def __init__(self, request: EngineRequest) -> None:
        params = request.params
        _check(params)
        self.params, self._constraints = params, request.constraints
        width = params.num_beams // params.num_beam_groups
        self.pools = [BeamPool(request, width) for _ in range(params.num_beam_groups)]

    @property
    def done(self) -> bool:
        """Whether no beam is live."""
        return all(pool.done for pool in self.pools)

    def give_up(self) -> list[Hypothesis]:
        """End between two steps because time is over: live beams as they are, and what has finished."""
        for pool in self.pools:
            if not pool.done:
                pool.give_up("time")
        return self.hypotheses()

    def hypotheses(self) -> list[Hypothesis]:
        """The best ``num_return_sequences`` finished hypotheses, best first; fewer where there are fewer."""
        finished = [item for pool in self.pools for item in pool.finished]
        finished.sort(key=lambda item: item.score, reverse=True)
        scored = self.params.logprobs is not None
        return [
            Hypothesis(item.beam.tokens, self._reason(item), item.score, item.beam.logprobs if scored else None)
            for item in finished[: self.params.num_return_sequences]
        ]

    def _reason(self, item: Finished) -> FinishReason:
        if item.reason == "stop":
            return item.reason
        return reason_of_end(replayed(self._constraints, item.beam.tokens), item.reason)

    def settle(self) -> Advance:
        """End of a step: number the live beams anew."""
        beams = [beam for pool in self.pools for beam in pool.beams]
        result = Advance([beam.row for beam in beams], [beam.tokens[-1] for beam in beams], self.done)
        for row, beam in enumerate(beams):
            beam.row = row
        return result


@dataclass(frozen=True)
class _Turn:
    """A pool that chooses in this round, and where its search's rows begin."""

    search: BeamSearch
    pool: BeamPool
    first_row: int

    @property
    def rows(self) -> list[int]:
        return [self.first_row + beam.row for beam in self.pool.beams]


def advance(
    searches: Seq[BeamSearch], logits_RV: torch.Tensor, row_counts: Seq[int], process: Process | None
) -> list[Advance]:
    """One step of many searches of any widths and ages.

    Args:
        searches: None that is done.
        logits_RV: float32 logits of the next token, the searches' rows end to end.
        row_counts: Rows of each search.
        process: See `Process`; None where it would change no row of this step.
    """
    firsts = list(accumulate(row_counts, initial=0))[:-1]
    for number in range(max((len(search.pools) for search in searches), default=0)):
        turns = [
            _Turn(search, search.pools[number], first)
            for search, first in zip(searches, firsts, strict=True)
            if number < len(search.pools) and not search.pools[number].done
        ]
        if turns:
            _play(turns, number, logits_RV, process)
    return [search.settle() for search in searches]


def _play(turns: Seq[_Turn], number: int, logits_RV: torch.Tensor, process: Process | None) -> None:
    """One round: at most one pool of each search."""
    rows = [row for turn in turns for row in turn.rows]
    rows_P = torch.tensor(rows, device=logits_RV.device)
    whole = rows == list(range(logits_RV.shape[0]))
    raw_PV = logits_RV if whole else logits_RV[rows_P]
    if process is None and not any(_needs_whole_rows(turn, number) for turn in turns):
        found = best_of_logits(raw_PV, [turn.pool for turn in turns])
    else:
        scores_PV = log_softmax(raw_PV)
        _penalise(scores_PV, turns, number)
        found = _candidates(scores_PV if process is None else process(scores_PV, rows_P), turns)
    grown = [turn.pool.step(items) for turn, items in zip(turns, found, strict=True)]
    _score(turns, grown, logits_RV)


def _needs_whole_rows(turn: _Turn, number: int) -> bool:
    """Whether more than each row's best log-probabilities is looked at."""
    params = turn.search.params
    return params.do_sample or turn.pool.allocates or (number > 0 and params.diversity_penalty != 0.0)


def _penalise(scores_PV: torch.Tensor, turns: Seq[_Turn], number: int) -> None:
    """Lower what the earlier groups of the same search took at this step."""
    places: list[int] = []
    tokens: list[int] = []
    penalties: list[float] = []
    row = 0
    for turn in turns:
        size = len(turn.pool.beams)
        taken = [beam.tokens[-1] for pool in turn.search.pools[:number] for beam in pool.beams]
        for token in taken:
            places += range(row, row + size)
            tokens += [token] * size
            penalties += [-turn.search.params.diversity_penalty] * size
        row += size
    if places:
        device = scores_PV.device
        index = (torch.tensor(places, device=device), torch.tensor(tokens, device=device))
        scores_PV.index_put_(index, torch.tensor(penalties, device=device), accumulate=True)


def _candidates(scores_PV: torch.Tensor, turns: Seq[_Turn]) -> list[list[Candidate]]:
    """Each pool's candidates: those that do not sample all at once."""
    if not any(turn.search.params.do_sample for turn in turns):
        return best_candidates(scores_PV, [turn.pool for turn in turns])
    parts = torch.split(scores_PV, [len(turn.pool.beams) for turn in turns])
    plain = [place for place, turn in enumerate(turns) if not turn.search.params.do_sample]
    found: dict[int, list[Candidate]] = {}
    if plain:
        pools = [turns[place].pool for place in plain]
        found.update(zip(plain, best_candidates(torch.cat([parts[place] for place in plain]), pools), strict=True))
    for place, turn in enumerate(turns):
        if place not in found:
            found[place] = drawn_candidates(parts[place], turn.pool, turn.search.params.seed)
    return [found[place] for place in range(len(turns))]


def _score(turns: Seq[_Turn], grown: Seq[Seq[Beam]], logits_RV: torch.Tensor) -> None:
    """Append the log-probability of their new token to beams of requests that asked for it."""
    wanted = [
        (turn.first_row + beam.row, beam, turn.search.params.logprobs)
        for turn, beams in zip(turns, grown, strict=True)
        if turn.search.params.logprobs is not None
        for beam in beams
    ]
    if not wanted:
        return
    rows_P, tokens_P = (
        torch.tensor(side, device=logits_RV.device)
        for side in ([row for row, _, _ in wanted], [beam.tokens[-1] for _, beam, _ in wanted])
    )
    scores = token_scores(logits_RV[rows_P], tokens_P, max(num_top or 0 for _, _, num_top in wanted))
    for (_, beam, num_top), score in zip(wanted, scores, strict=True):
        beam.logprobs += (TokenScore(score.logprob, score.top[:num_top]),)


def _check(params: Params) -> None:
    if params.num_beams % params.num_beam_groups:
        raise RequestError(
            f"num_beams ({params.num_beams}) is no multiple of num_beam_groups ({params.num_beam_groups})"
        )
    if params.num_return_sequences > params.num_beams:
        raise RequestError(
            f"num_return_sequences ({params.num_return_sequences}) is larger than num_beams ({params.num_beams})"
        )
    if params.do_sample and params.num_beam_groups > 1:
        raise RequestError("num_beam_groups > 1 (diverse beams) and do_sample exclude each other")
