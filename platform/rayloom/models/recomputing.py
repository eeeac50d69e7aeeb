"""Activations that are computed again instead of kept (Chen et al., 2016)."""

from __future__ import annotations

from typing import Any, Literal

_BLOCKS_PER_RECOMPUTED: dict[bool | str, int] = {True: 1, "selective": 2}


def recompute_activations(model: Any, how: bool | Literal["selective"]) -> None:
    """Let blocks keep only their inputs, and compute the rest again in the backward pass. Gradients stay the same.

    Args:
        model: A transformers or PEFT model; an encoder-decoder's blocks count as one row of them.
        how: All blocks, every second one from the first on (``selective``), or none.
    """
    if how is False:
        return
    model.activation_checkpointing_enable(
        activation_checkpointing_kwargs={"use_reentrant": False}, every_n_layers=_BLOCKS_PER_RECOMPUTED[how]
    )
