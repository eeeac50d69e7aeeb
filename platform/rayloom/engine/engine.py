"""The step loop: schedule, run, select. One thread drives it; `service` gives it to many callers.

Shape letters: R rows whose logits a step wants, V vocabulary.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import torch

from rayloom.engine.adapters import LoraBank
from rayloom.engine.assembling import assemble
from rayloom.engine.blocks import BLOCK
from rayloom.engine.events import Done, Event, Failed
from rayloom.engine.plan import Limits, Plan
from rayloom.engine.prompts import score_prompts
from rayloom.engine.request import EngineRequest, Group, Sequence
from rayloom.engine.rows import RowStates
from rayloom.engine.runners import Runner
from rayloom.engine.scheduler import Scheduler
from rayloom.engine.selecting import Selector
from rayloom.engine.stats import EngineStats, Stopwatch
from rayloom.errors import RayloomError, RequestError

MAX_LENGTH = 4096
"""Longest sequence of a model without positions of its own (T5)."""


class _Places:
    """The bank, as the scheduler sees it.

    Attributes:
        broken: Adapters that had made room and cannot be read any more, and why.
    """

    def __init__(self, bank: Callable[[], LoraBank]) -> None:
        self._bank = bank
        self.broken: dict[str, RayloomError] = {}

    def hold(self, name: str) -> bool:
        """See `adapter_turns.Places`."""
        try:
            return self._bank().hold(name)
        except RayloomError as error:
            self.broken[name] = error
            return False

    def let_go(self, name: str) -> None:
        """See `adapter_turns.Places`."""
        self._bank().let_go(name)


class Engine:
    """Continuous batching over one model: requests come and go between steps.

    Args:
        runner: Computes logits.
        limits: How much runs at once.
        clock: Seconds; injected by tests.
        debug: Check the scheduler's invariants after every step.
    """

    def __init__(
        self, runner: Runner, limits: Limits, *, clock: Callable[[], float] = time.monotonic, debug: bool = False
    ) -> None:
        self.runner, self.limits = runner, limits
        self._clock, self._debug = clock, debug
        self._max_length = min(runner.max_positions or MAX_LENGTH, limits.num_blocks * BLOCK)
        self._places = _Places(self._bank)
        self._scheduler = Scheduler(limits, places=self._places)
        self._device = runner.device
        states = RowStates(limits.max_sequences, runner.vocab_size, self._max_length, self._device)
        self._selector = Selector(states, self._scheduler)
        self._groups: dict[int, Group] = {}
        self._timed: dict[int, Group] = {}
        self._memories: dict[int, dict[str, Any]] = {}  # what the runner keeps of prompts that are being read
        self._stopwatch = Stopwatch(clock)
        self._num_steps = 0
        self._ids = itertools.count()

    @property
    def has_work(self) -> bool:
        """Whether any request is in flight."""
        return bool(self._groups)

    def stats(self) -> EngineStats:
        """What it does now, and has done. Any thread may ask; figures of a step that is being made may be mixed."""
        scheduler, limits, bank = self._scheduler, self.limits, self.runner.lora
        return EngineStats(
            **scheduler.counts(),
            num_sequences=limits.max_sequences - scheduler.num_free_slots,
            max_sequences=limits.max_sequences,
            num_blocks=limits.num_blocks,
            num_steps=self._num_steps,
            num_adapters=len(bank.residents) if bank else 0,
            max_adapters=bank.max_adapters if bank else 0,
            adapter_requests=bank.requests if bank else {},
        )

    def submit(self, request: EngineRequest) -> int:
        """Take a request; returns its id.

        Raises:
            RequestError: It can never be answered here.
        """
        self._refuse(request)
        constraints = tuple(constraint.fork() for constraint in request.constraints)
        first = Sequence(0, list(request.start_ids), constraints=constraints)
        group = Group(next(self._ids), request, self._clock(), sequences=[first])
        self._selector.expect(group)
        with contextlib.ExitStack() as undo:
            undo.callback(self._selector.forget, group)
            if request.adapter is not None:
                self._bank().acquire(request.adapter)  # its place is held only while the request runs
                undo.callback(self._bank().release, request.adapter)
            self._scheduler.add(group)
            undo.pop_all()
        self._groups[group.group_id] = group
        if request.params.max_time is not None:
            self._timed[group.group_id] = group
        return group.group_id

    def load_adapter(self, name: str, folder: Path) -> None:
        """Make a PEFT adapter known, or replace the one of that name, while others run.

        Raises:
            ModelError: It cannot be served here, or requests in flight use an older one of this name.
            RequestError: Requests in flight use all places.
        """
        self._bank().load(name, folder)
        self._scheduler.forget_adapter(name)  # its cached keys and values may be those of older weights

    def evict_adapter(self, name: str) -> None:
        """Forget an adapter.

        Raises:
            RequestError: Unknown.
            ModelError: Requests in flight use it.
        """
        self._bank().evict(name)
        self._scheduler.forget_adapter(name)

    def cancel(self, group_id: int) -> None:
        """Drop a request, unless it is finished: all that it holds is free for the next step."""
        if group := self._groups.get(group_id):
            self._scheduler.cancel(group)
            self._forget(group)

    def step(self) -> list[Event]:
        """Compute one step, and tell what came of it."""
        expired = self._expire()
        plan = self._scheduler.schedule()
        self._stopwatch.seated(plan.admitted)
        told: list[Event] = self._fail_broken()
        if not plan.is_empty:
            scored, logits_RV = self._run(plan)
            self._scheduler.computed(plan)
            told += scored + self._selector.select(plan, logits_RV)
            self._num_steps += 1
        self._stopwatch.stepped()
        told = self._finished(told)
        if self._debug:
            self._scheduler.check()
        return expired + told

    def _run(self, plan: Plan) -> tuple[list[Event], torch.Tensor]:
        """Scores of prompts that are complete now, and the logits that tokens are chosen from."""
        self._selector.open_rows(plan)
        self.runner.cache.copy_blocks(plan.copies)
        batch = assemble(plan, self._adapter_index, self._device, self._memory(plan))
        with torch.inference_mode():
            return score_prompts(plan, self.runner.run(batch))

    def _memory(self, plan: Plan) -> dict[str, Any] | None:
        for group in plan.preempted:
            self._memories.pop(group.group_id, None)
        if plan.reading is None:
            return None
        group, _, end = plan.reading
        memory = self._memories.setdefault(group.group_id, {})
        if end == self.limits.encoder_layers:
            del self._memories[group.group_id]
        return memory

    def _expire(self) -> list[Event]:
        """End those whose time is over: with what they have, were it nothing."""
        now = self._clock()
        late = [g for g in self._timed.values() if now - g.arrival > (g.request.params.max_time or 0.0)]
        return self._finished([Done(group.group_id, self._selector.give_up(group)) for group in late])

    def _fail_broken(self) -> list[Event]:
        """Drop requests whose adapter had made room and cannot be read any more."""
        broken = self._places.broken
        if not broken:
            return []
        self._places.broken = {}
        lost = [group for group in self._groups.values() if group.request.adapter in broken]
        for group in lost:
            self.cancel(group.group_id)
        return [Failed(group.group_id, broken[str(group.request.adapter)]) for group in lost]

    def _finished(self, events: Seq[Event]) -> list[Event]:
        """The events, after requests that are done have left."""
        return [self._leave(event) if isinstance(event, Done) else event for event in events]

    def _leave(self, event: Done) -> Done:
        group = self._groups[event.group_id]
        timed = self._stopwatch.stop(event, group)
        self._scheduler.finish(group)
        self._forget(group)
        return timed

    def _forget(self, group: Group) -> None:
        del self._groups[group.group_id]
        self._timed.pop(group.group_id, None)
        self._memories.pop(group.group_id, None)
        self._stopwatch.forget(group)
        self._selector.forget(group)
        if group.request.adapter is not None:
            self._bank().release(group.request.adapter)

    def _refuse(self, request: EngineRequest) -> None:
        if not request.start_ids:
            raise RequestError("the prompt is empty: there is nothing to go on from")
        if self.runner.seq2seq and not request.encoder_ids:
            raise RequestError("the prompt is empty: the encoder has nothing to read")
        if request.max_length > self._max_length:
            raise RequestError(
                f"prompt and answer may take {request.max_length} tokens, but {self._max_length} are held at most"
            )

    def _adapter_index(self, name: str | None) -> int:
        return -1 if name is None else self._bank().index(name)

    def _bank(self) -> LoraBank:
        if self.runner.lora is None:
            raise RequestError("this engine was opened without adapters")
        return self.runner.lora
