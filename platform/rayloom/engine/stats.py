"""What an engine has done, and how long its requests took. No tensors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from rayloom.engine.events import Done, Timing
from rayloom.engine.request import Group


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """An engine at one moment. Counts never fall while the engine lives.

    Attributes:
        num_running: Requests that hold slots and cache blocks.
        num_waiting: Requests that wait for room.
        num_sequences: Slots in use: sequences, those that running requests will still fork included.
        max_sequences: Slots.
        num_used_blocks: Cache blocks that running requests hold.
        num_idle_blocks: Cache blocks that nobody holds, kept for prompts that begin alike.
        num_blocks: Cache blocks.
        num_seated_tokens: Count: tokens, encoders' included, of requests when they came to run.
        num_matched_tokens: Count: those of them that the cache had already.
        num_preempted: Count: requests that had to make room.
        num_steps: Count: steps that computed something.
        num_adapters: Adapters in memory.
        max_adapters: Adapters that fit.
        adapter_requests: Requests in flight by adapter, for adapters in memory or in use.
    """

    num_running: int
    num_waiting: int
    num_sequences: int
    max_sequences: int
    num_used_blocks: int
    num_idle_blocks: int
    num_blocks: int
    num_seated_tokens: int
    num_matched_tokens: int
    num_preempted: int
    num_steps: int
    num_adapters: int = 0
    max_adapters: int = 0
    adapter_requests: Mapping[str, int] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class _Times:
    """When a request was seated first, and when it got its first token."""

    seated: float | None = None
    begun: float | None = None


class Stopwatch:
    """Takes the times of requests in flight.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._times: dict[int, _Times] = {}
        self._unbegun: dict[int, Group] = {}

    def seated(self, groups: Iterable[Group]) -> None:
        """Groups came to run; that they did so before is remembered."""
        for group in groups:
            if group.group_id not in self._times:
                self._times[group.group_id] = _Times(self._clock())
                self._unbegun[group.group_id] = group

    def stepped(self) -> None:
        """A step was computed."""
        begun = [group for group in self._unbegun.values() if _has_begun(group)]
        for group in begun:
            self._times[group.group_id].begun = self._clock()
            del self._unbegun[group.group_id]

    def stop(self, event: Done, group: Group) -> Done:
        """The event with its request's times."""
        now, times = self._clock(), self._times.get(group.group_id, _Times())
        seated = now if times.seated is None else times.seated
        begun = now if times.begun is None else times.begun
        timing = Timing(
            submitted_at=time.time() - (now - group.arrival),
            queued_s=seated - group.arrival,
            prefill_s=begun - seated,
            decode_s=now - begun,
            num_steps=max((len(each.tokens) for each in event.hypotheses), default=0),
        )
        return replace(event, timing=timing)

    def forget(self, group: Group) -> None:
        """A request is gone."""
        self._times.pop(group.group_id, None)
        self._unbegun.pop(group.group_id, None)


def _has_begun(group: Group) -> bool:
    """Whether it has a token, or had one: a group without sequences is done."""
    return not group.sequences or len(group.sequences[0].tokens) > len(group.request.start_ids)
