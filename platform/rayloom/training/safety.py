"""Losses and gradients that are not finite, and losses that jump: found without a wait for the device per step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rayloom.data import GlobalBatch, MicroBatch
from rayloom.errors import DivergedError
from rayloom.training import distributed

MOST_SKIPS = 20
"""Steps in a row that may be skipped before the run is given up: it learns nothing any more."""

_NAMED_ROWS = 16
_ADVICE = (
    "look at these rows, lower training.learning_rate, set training.max_grad_norm, use bf16 instead of fp16, "
    "or set training.non_finite: skip"
)


@dataclass(frozen=True)
class StepOutcome:
    """One optimizer step on this rank.

    Attributes:
        step: Its number, from 1.
        batch: The rows of all ranks.
        losses: Summed loss of each of this rank's micro-batches; device scalars.
        norm: Gradient norm before clipping, equal on all ranks.
    """

    step: int
    batch: GlobalBatch
    losses: tuple[Tensor, ...]
    norm: Tensor | float

    @property
    def micros(self) -> tuple[MicroBatch, ...]:
        """This rank's micro-batches."""
        return self.batch.micro[distributed.rank()]


class FiniteWatch:
    """Keeps the outcomes of steps, and looks at them together.

    Args:
        device: Where losses are.
        scaled: fp16 with loss scaling: gradients overflow now and then and the scaler deals with it, so that only
            losses count.
        place: Names a train row for people.
    """

    def __init__(self, device: torch.device, *, scaled: bool, place: Callable[[int], str]) -> None:
        self._device, self._scaled, self._place = device, scaled, place
        self._seen: list[StepOutcome] = []
        self._skips_in_a_row = 0
        self.num_skipped = 0
        """Updates left out so far."""

    def saw(self, outcome: StepOutcome) -> None:
        """Remember a step until the next `check`. Does not wait for the device."""
        self._seen.append(outcome)

    def check(self) -> None:
        """Look at the steps since the last call. Collective; waits for the device.

        Raises:
            DivergedError: One was not finite; names its step and rows.
        """
        seen, self._seen = self._seen, []
        bad = next((outcome for outcome in seen if self._is_bad(outcome)), None)
        (num_bad,) = distributed.sum_over_ranks([float(bad is not None)], self._device)
        if not num_bad:
            return
        found = distributed.gather_objects((bad.step, _bad_rows(bad)) if bad is not None else None)
        step = min(one[0] for one in found if one is not None)
        rows = sorted({row for one in found if one is not None and one[0] == step for row in one[1]})
        outcome = next(outcome for outcome in seen if outcome.step == step)
        raise DivergedError(f"step {step}: {self._complaint(rows, outcome.batch)}: {_ADVICE}")

    def skipped(self, outcome: StepOutcome) -> str | None:
        """Count a step whose update was left out, and say why. Collective.

        Returns:
            A line for people; None where a loss scaler backed off, as it does.

        Raises:
            DivergedError: Too many in a row.
        """
        rows = sorted({row for found in distributed.gather_objects(_bad_rows(outcome)) for row in found})
        if self._scaled and not rows:
            return None
        self.num_skipped += 1
        self._skips_in_a_row += 1
        complaint = self._complaint(rows, outcome.batch)
        if self._skips_in_a_row > MOST_SKIPS:
            raise DivergedError(f"{self._skips_in_a_row} steps in a row were skipped, the last one because {complaint}")
        return f"step {outcome.step} skipped: {complaint}"

    def applied(self) -> None:
        """Count a step that was fine."""
        self._skips_in_a_row = 0

    def _is_bad(self, outcome: StepOutcome) -> bool:
        return bool(_bad_rows(outcome)) or not (self._scaled or math.isfinite(float(outcome.norm)))

    def _complaint(self, rows: list[int], batch: GlobalBatch) -> str:
        if rows:
            return f"the loss of {self._named(rows)} is not finite"
        all_rows = sorted(row for rank in batch.micro for micro in rank if not micro.is_filler for row in micro.rows)
        return f"the gradient of {self._named(all_rows)} is not finite, though their loss is"

    def _named(self, rows: list[int]) -> str:
        more = f" and {len(rows) - _NAMED_ROWS} more" if len(rows) > _NAMED_ROWS else ""
        places = ", ".join(self._place(row) for row in rows[:_NAMED_ROWS])
        return f"train rows {', '.join(map(str, rows[:_NAMED_ROWS]))}{more} ({places}{more})"


def _bad_rows(outcome: StepOutcome) -> list[int]:
    """Rows of this rank's micro-batches whose loss is not finite."""
    finite = torch.isfinite(torch.stack(outcome.losses)).tolist()
    pairs = zip(outcome.micros, finite, strict=True)
    return [row for micro, is_finite in pairs if not is_finite for row in micro.rows]


class SpikeWatch:
    """Notices a loss far above those before it.

    The deviation is that of the losses from their running mean, so that a loss that falls steadily does not count
    as calm.

    Args:
        state: Of an earlier part of the run, as `state` gives it.
    """

    FACTOR = 10.0
    """Deviations above the running mean that make a spike."""
    _WARM_UP = 10
    _MEMORY = 0.9

    def __init__(self, state: tuple[int, float, float] = (0, 0.0, 0.0)) -> None:
        self._count, self._mean, self._variance = state

    @property
    def state(self) -> tuple[int, float, float]:
        """Losses seen, their running mean and variance."""
        return self._count, self._mean, self._variance

    def add(self, loss: float, *, step: int) -> str | None:
        """A line for people if this loss is a spike; spikes leave the running figures as they are."""
        deviation = max(math.sqrt(self._variance), 0.01 * abs(self._mean))
        if self._count >= self._WARM_UP and loss > self._mean + self.FACTOR * deviation:
            return (
                f"the loss jumped to {loss:.4g} by step {step}: it was {self._mean:.4g} with a deviation of "
                f"{deviation:.2g}"
            )
        self._count += 1
        memory = min(self._MEMORY, 1.0 - 1.0 / self._count)
        gap = loss - self._mean
        self._mean += (1.0 - memory) * gap
        self._variance = memory * (self._variance + (1.0 - memory) * gap * gap)
        return None
