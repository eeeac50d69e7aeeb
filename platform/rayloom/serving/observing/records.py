"""What is known of one request while it is answered."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fastapi import Request

from rayloom.serving.calls import Call, Completion, Part, Problem, Prompt, Started, Timing
from rayloom.serving.streams import Tagged

STATE = "record"
_LONGEST_ID = 128


@dataclass(eq=False)
class CallRecord:
    """One call of a request: a prompt with its answers.

    Attributes:
        started: What the model said first.
        num_tokens: Tokens written.
        timing: The engine's own account of a call that was finished.
    """

    started: Started | None = None
    num_tokens: int = 0
    timing: Timing | None = None


@dataclass(eq=False)
class Record:
    """One request.

    Attributes:
        request_id: The client's own, or a new one.
        method: HTTP method.
        route: Path as the documentation writes it; ``other`` for paths that there are not.
        key: Name of the API key.
        wanted_model: Model that was asked for, whether it is there or not.
        is_stream: Whether the answer goes out in parts.
        calls: Those that were let in.
        prompts: As they came; only kept where they are to be logged.
        status: HTTP status; 0 before there is one.
        reason: Type of the problem that it ended with, if it did.
        is_gone: Whether the client went away before the end.
        began_s: When it came, by the monotonic clock.
        first_s: Seconds until the first token was there; known of streams.
        gaps_s: Seconds between parts of a stream.
        duration_s: Seconds in all.
    """

    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    method: str = ""
    route: str = "other"
    key: str = ""
    wanted_model: str | None = None
    is_stream: bool = False
    calls: Sequence[CallRecord] = ()
    prompts: Sequence[Prompt] = ()
    status: int = 0
    reason: str = ""
    is_gone: bool = False
    began_s: float = field(default_factory=time.monotonic)
    first_s: float | None = None
    gaps_s: list[float] = field(default_factory=list)
    duration_s: float = 0.0
    _last_s: float = 0.0

    @property
    def started(self) -> Started | None:
        """What the model said first, if it said anything."""
        return next((call.started for call in self.calls if call.started), None)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts that were read."""
        return sum(call.started.prompt_tokens for call in self.calls if call.started)

    @property
    def generated_tokens(self) -> int:
        """Tokens of all answers, as far as they came here."""
        return sum(call.num_tokens for call in self.calls)

    @property
    def timings(self) -> Sequence[Timing]:
        """Of the calls that were finished."""
        return [call.timing for call in self.calls if call.timing]

    def enter(self, calls: Sequence[Call], key: str) -> None:
        """Calls arrived: they may still be refused."""
        self.key, self.wanted_model = key, calls[0].model
        self.prompts = [call.prompt for call in calls]
        self.calls = [CallRecord() for _ in calls]

    def complete(self, number: int, completion: Completion) -> None:
        """A call has its whole answer."""
        call = self.calls[number]
        call.started, call.num_tokens, call.timing = completion.started, completion.completion_tokens, completion.timing

    def told(self, events: Iterable[Tagged]) -> None:
        """Parts of a stream have come."""
        is_text = False
        for number, event in events:
            is_text |= isinstance(event, Part)
            self._add(self.calls[number], event)
        if is_text:
            self._tick(time.monotonic())

    def refuse(self, problem: Problem) -> None:
        """It ends with a problem."""
        self.reason = problem.type

    def _tick(self, now_s: float) -> None:
        if self.first_s is None:
            self.first_s = now_s - self.began_s
        else:
            self.gaps_s.append(now_s - self._last_s)
        self._last_s = now_s

    def _add(self, call: CallRecord, event: Started | Part | Problem) -> None:
        if isinstance(event, Problem):
            self.refuse(event)
        elif isinstance(event, Started):
            call.started = event
        else:
            call.num_tokens += event.num_tokens
            call.timing = event.timing or call.timing


def record_of(request: Request) -> Record:
    """The request's record; one that nobody reads where nobody watches."""
    record: Record | None = getattr(request.state, STATE, None)
    return Record() if record is None else record


def clean_id(given: str) -> str:
    """A client's request id, of printable characters and of bounded length, so that it may stand in a log."""
    return re.sub(r"[^\w.:/+=@-]", "_", given[:_LONGEST_ID], flags=re.ASCII)
