"""What the scheduler is limited to, and what it decides for one step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from rayloom.engine.request import Group, Sequence


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What fits at once.

    Attributes:
        num_blocks: Blocks of the cache.
        max_sequences: Running sequences, and so rows of per-sequence tables.
        max_step_tokens: Tokens of one step: those of running answers first, prompts take what is left. At least
            `max_sequences`. Only an encoder prompt longer than this exceeds it, as the step's only prompt.
        max_prefill_tokens: Prompt tokens in a step that also continues running answers, so that these wait no longer
            than this takes.
        encoder_layers: Pieces that reading an encoder prompt can be cut into: layers, since each of its tokens looks
            at all others. 1 if it cannot be cut.

    Raises:
        ValueError: A limit is below 1, or a step could not hold one token of every sequence.
    """

    num_blocks: int
    max_sequences: int = 32
    max_step_tokens: int = 512
    max_prefill_tokens: int = 256
    encoder_layers: int = 1

    def __post_init__(self) -> None:
        if min(self.num_blocks, self.max_sequences, self.max_prefill_tokens, self.encoder_layers) < 1:
            raise ValueError("every limit of the engine must be at least 1")
        if self.max_step_tokens < self.max_sequences:
            raise ValueError(
                f"max_step_tokens ({self.max_step_tokens}) must be at least max_sequences ({self.max_sequences})"
            )


class Span(NamedTuple):
    """Tokens of one sequence to compute in a step.

    A tuple, as a step makes one for every running sequence.

    Attributes:
        group: Whose.
        sequence: Which of the group's sequences.
        start: Position of the first token.
        length: How many; they end at the sequence's last token if `wants_logits`.
        wants_logits: Whether the last one's logits are needed: for all sequences of a group in one step, or for none.
    """

    group: Group
    sequence: Sequence
    start: int
    length: int
    wants_logits: bool


class Reading(NamedTuple):
    """Some encoder layers of a prompt that is too long for one step beside running answers.

    Attributes:
        group: Whose.
        first: The first layer.
        end: The last layer + 1.
    """

    group: Group
    first: int
    end: int


@dataclass(frozen=True)
class Plan:
    """One step. Blocks of every span's tokens are in its sequence's table already.

    Attributes:
        encode: Groups whose encoder prompts are read, before their decoder spans are computed.
        spans: What to compute; a group's spans follow each other, in the order of its sequences.
        copies: (source block, target block), to be copied before anything is written; all at once.
        preempted: Groups that lost slots and blocks. They wait again and will be recomputed.
        admitted: Groups that came to run in this step (again, if they were preempted): their sequences have new slots.
        reading: A long encoder prompt that goes on, or comes to its end; it is not in `encode`.
    """

    encode: tuple[Group, ...]
    spans: tuple[Span, ...]
    copies: tuple[tuple[int, int], ...]
    preempted: tuple[Group, ...]
    admitted: tuple[Group, ...]
    reading: Reading | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to compute."""
        return not (self.spans or self.encode or self.reading)

    @property
    def num_tokens(self) -> int:
        """Tokens that the decoder (or causal model) computes."""
        return sum(span.length for span in self.spans)
