"""How many replicas a model needs, by what its calls cost: tokens, and places in the batch.

Serve's controller runs `TokenPolicy` on figures that the replicas report, averaged over `look_back_period_s`. Delays
and bounds of `AutoscalingConfig` are Serve's; so one busy moment adds nothing, and one quiet one takes nothing away.
The module imports little, for it is sent to the controller as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

    from rayloom.config import AutoscalingConfig
    from rayloom.serving.calls import Figures

POLICY = "rayloom.serving.scaling:TokenPolicy"
_TOKENS, _SLOTS, _MOST_SLOTS = "tokens", "slots", "max_slots"
_MARGIN = 0.75
"""Replicas go only where those that stay would be at most so full: between this and 1 nothing changes."""
_NOTHING = 1e-3
"""Replicas' worth of load that counts as none; what is left of a mean when its last call has long ended."""


class TokenPolicy:
    """As many replicas as hold the tokens in flight, and the sequences that are written, at the targets' load.

    Args:
        target_tokens: Tokens in flight per replica.
        target_slots: Share of a batch's places in use.
    """

    def __init__(self, target_tokens: int, target_slots: float) -> None:
        self.target_tokens, self.target_slots = target_tokens, target_slots

    def __call__(self, ctx: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """See Serve's autoscaling policies: the number of replicas, and a state, which this has none of."""
        reported: Mapping[str, Mapping[Any, float]] = ctx.aggregated_metrics or {}
        if not ctx.current_num_replicas or not reported.get(_TOKENS):
            return ctx.target_num_replicas, {}
        needed = self.needed(reported, waiting=ctx.total_queued_requests, running=ctx.total_running_requests)
        return steady(needed, ctx.target_num_replicas), {}

    def needed(self, reported: Mapping[str, Mapping[Any, float]], *, waiting: float, running: float) -> float:
        """Replicas' worth of load.

        Args:
            reported: Mean of each figure, by replica.
            waiting: Calls that no replica has yet; they count as much as the others' mean.
            running: Calls that replicas have.
        """
        tokens = sum(reported[_TOKENS].values())
        tokens += waiting * tokens / running if running > 0.0 else waiting * self.target_tokens
        places = max(reported.get(_MOST_SLOTS, {}).values(), default=1.0)
        slots = sum(reported.get(_SLOTS, {}).values())
        return max(tokens / self.target_tokens, slots / (places * self.target_slots))


def steady(needed: float, now: int) -> int:
    """Replicas to aim at, with a gap between the load that adds one and the load that takes it away.

    Args:
        needed: Replicas' worth of load.
        now: Replicas that are aimed at.
    """
    if needed < _NOTHING:
        return 0
    if needed > now:
        return math.ceil(needed)
    return min(now, max(1, math.ceil(needed / _MARGIN)))


def autoscaling_options(config: AutoscalingConfig) -> dict[str, Any]:
    """Serve's ``autoscaling_config``."""
    options = config.model_dump(exclude_none=True, exclude={"target_tokens", "target_slots"})
    if config.target_tokens is not None:
        given = {"target_tokens": config.target_tokens, "target_slots": config.target_slots}
        options["policy"] = {"policy_function": POLICY, "policy_kwargs": given}
    return options


def report(figures: Figures) -> dict[str, float]:
    """What a replica reports for the policy."""
    return {
        _TOKENS: float(figures.tokens_in_flight),
        _SLOTS: float(figures.numbers.get("num_sequences", 0.0)),
        _MOST_SLOTS: float(figures.numbers.get("max_sequences", 1.0)),
    }
