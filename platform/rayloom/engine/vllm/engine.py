"""`EngineService` over vLLM: the same requests and events, computed by somebody else."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayloom.engine.events import Done, Event, Failed, NewToken, PromptScored, Timing
from rayloom.engine.request import EngineRequest, FinishReason, Hypothesis, TokenScore
from rayloom.engine.stats import EngineStats
from rayloom.engine.vllm.process import VllmProcess
from rayloom.engine.vllm.translating import sampling_of, score_of
from rayloom.errors import EngineError, RequestError

_WAIT_S = 0.02
"""How long a step waits for vLLM before newcomers are looked for."""


@dataclass(eq=False)
class _Answer:
    """One sequence of a request."""

    tokens: list[int] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    end: tuple[int, TokenScore] | None = None
    reason: FinishReason | None = None


@dataclass(eq=False)
class _Flight:
    """A request that vLLM is answering."""

    group_id: int
    request: EngineRequest
    arrival: float
    answers: list[_Answer]
    begun: float | None = None
    """When its first token came."""


class VllmEngine:
    """vLLM as an engine that `EngineService` steps.

    Args:
        process: Runs vLLM.
        max_sequences: As it was opened with.
        adapters: Folders of LoRA adapters by name.
        neutral: Folder of an adapter that changes nothing, for requests that name none beside those that do; see
            `rayloom.engine.vllm.opening`.
        clock: Seconds; injected by tests.
    """

    def __init__(
        self,
        process: VllmProcess,
        *,
        max_sequences: int,
        adapters: Mapping[str, Path],
        neutral: tempfile.TemporaryDirectory[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._process, self._max_sequences, self._clock = process, max_sequences, clock
        self._adapters = {name: [name, number, str(place)] for number, (name, place) in enumerate(adapters.items(), 1)}
        self._neutral = neutral  # vLLM may read it again at any time
        self._nobody = None if neutral is None else ["neutral", len(adapters) + 1, neutral.name]
        self._flights: dict[int, _Flight] = {}
        self._num_steps = 0
        self._ids = itertools.count()

    @property
    def has_work(self) -> bool:
        """Whether any request is in flight."""
        return bool(self._flights)

    def stats(self) -> EngineStats:
        """What is in flight. vLLM keeps its cache's figures to itself: they are 0."""
        flights = list(self._flights.values())
        by_adapter = {name: sum(flight.request.adapter == name for flight in flights) for name in self._adapters}
        return EngineStats(
            num_running=len(flights),
            num_waiting=0,
            num_sequences=sum(len(flight.answers) for flight in flights),
            max_sequences=self._max_sequences,
            num_used_blocks=0,
            num_idle_blocks=0,
            num_blocks=0,
            num_seated_tokens=0,
            num_matched_tokens=0,
            num_preempted=0,
            num_steps=self._num_steps,
            num_adapters=len(self._adapters),
            max_adapters=len(self._adapters),
            adapter_requests=by_adapter,
        )

    def submit(self, request: EngineRequest) -> int:
        """Take a request; returns its id.

        Raises:
            RequestError: It can never be answered here.
            EngineError: vLLM's process is gone.
        """
        if request.max_length > self._process.max_length:
            raise RequestError(
                f"prompt and answer take {request.max_length} tokens, this model holds {self._process.max_length}: "
                "shorten the prompt, or lower max_new_tokens"
            )
        if request.adapter is not None and request.adapter not in self._adapters:
            raise RequestError(
                f"there is no adapter '{request.adapter}'; there are: {', '.join(self._adapters) or 'none'}"
            )
        group_id = next(self._ids)
        answers = [_Answer() for _ in range(request.params.num_return_sequences)]
        self._process.send(
            {
                "add": str(group_id),
                "prompt": list(request.start_ids),
                "params": sampling_of(request),
                "adapter": self._nobody if request.adapter is None else self._adapters[request.adapter],
                "priority": request.priority,
            }
        )
        self._flights[group_id] = _Flight(group_id, request, self._clock(), answers)
        return group_id

    def cancel(self, group_id: int) -> None:
        """Drop a request, unless it is finished."""
        if self._flights.pop(group_id, None):
            self._process.send({"cancel": str(group_id)})

    def step(self) -> list[Event]:
        """What vLLM has made since the last step.

        Raises:
            EngineError: vLLM's process is gone.
        """
        told = self._process.receive(_WAIT_S)
        self._num_steps += bool(told)
        events = [event for each in told for event in self._read(each)]
        return [*events, *self._late()]

    def _read(self, told: Mapping[str, Any]) -> list[Event]:
        flight = self._flights.get(int(told["id"]))
        if flight is None:
            return []
        if "refused" in told:
            del self._flights[flight.group_id]
            return [Failed(flight.group_id, RequestError(f"vLLM refuses the request: {told['refused']}"))]
        events: list[Event] = []
        if "prompt" in told:
            events.append(PromptScored(flight.group_id, tuple(map(score_of, told["prompt"]))))
        if told["tokens"] and flight.begun is None:
            flight.begun = self._clock()
        events += self._tokens(flight, told)
        return events + self._finished(flight)

    def _tokens(self, flight: _Flight, told: Mapping[str, Any]) -> list[Event]:
        answer, events = flight.answers[told["index"]], list[Event]()
        scores = (
            [score_of(each) for each in told["scores"]] if told["scores"] is not None else [None] * len(told["tokens"])
        )
        for token, score in zip(told["tokens"], scores, strict=True):
            if answer.reason is None and _take(answer, flight.request, token, score):
                events.append(NewToken(flight.group_id, told["index"], token, score))
        if told["reason"] is not None and answer.reason is None:
            if told["reason"] not in ("stop", "length"):
                del self._flights[flight.group_id]
                return [Failed(flight.group_id, EngineError(f"vLLM ended the request: {told['reason']}"))]
            answer.reason = told["reason"]
        return events

    def _finished(self, flight: _Flight) -> list[Event]:
        if flight.group_id not in self._flights or any(answer.reason is None for answer in flight.answers):
            return []
        # vLLM may be writing on, behind a stop string.
        self.cancel(flight.group_id)
        wanted = flight.request.params.logprobs is not None
        hypotheses = tuple(
            Hypothesis(
                tuple(answer.tokens),
                answer.reason or "stop",
                logprobs=tuple(answer.scores) if wanted else None,
                end=answer.end,
            )
            for answer in flight.answers
        )
        return [Done(flight.group_id, hypotheses, self._timing(flight))]

    def _late(self) -> list[Event]:
        """Requests whose time is over end with what they have."""
        now, events = self._clock(), list[Event]()
        for flight in list(self._flights.values()):
            most = flight.request.params.max_time
            if most is not None and now - flight.arrival > most:
                for answer in flight.answers:
                    answer.reason = answer.reason or "time"
                events += self._finished(flight)
        return events

    def _timing(self, flight: _Flight) -> Timing:
        now = self._clock()
        begun = now if flight.begun is None else flight.begun
        return Timing(
            submitted_at=time.time() - (now - flight.arrival),
            queued_s=0.0,  # vLLM does not tell its own queue from reading the prompt
            prefill_s=begun - flight.arrival,
            decode_s=now - begun,
            num_steps=max(len(answer.tokens) for answer in flight.answers),
        )


def _take(answer: _Answer, request: EngineRequest, token: int, score: TokenScore | None) -> bool:
    """Add a token to an answer; False if it was the end of sequence."""
    if token in request.params.eos_token_ids:
        answer.reason = "stop"
        answer.end = None if score is None else (token, score)
        return False
    answer.tokens.append(token)
    if score is not None:
        answer.scores.append(score)
    if request.stop is not None and request.stop([*request.start_ids, *answer.tokens]):
        answer.reason = "stop"
    return True
