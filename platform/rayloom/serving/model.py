"""A `TextGenerator` as a `ServedModel`. The one file of this room that imports torch; only replicas do."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

from rayloom.config import ServingConfig
from rayloom.data import PromptInput
from rayloom.generation import GenerationOutput, TextGenerator
from rayloom.serving.calls import Completion, ModelInfo, Prompt


class TextGeneratorModel:
    """Serves a text generator.

    Args:
        generator: The opened model.
        batch_size: Most prompts per forward pass.
        max_time_s: Seconds after which a batch stops in any case: nobody waits for it any longer.
    """

    def __init__(self, generator: TextGenerator, *, batch_size: int, max_time_s: float) -> None:
        self._generator, self._batch_size, self._max_time_s = generator, batch_size, max_time_s
        template = generator.template
        self._info = ModelInfo(
            name=generator.name,
            family=generator.family.name,
            task=template.task,
            answers_questions=template.task != "language-modeling",
            takes_context=template.context_prompt is not None,
        )

    @classmethod
    def open(cls, config: ServingConfig) -> Self:
        """Open the artifact, and replay its golden prompts unless the config says not to.

        Raises:
            UserError: The artifact or model cannot be opened, or a value in ``generation`` makes no sense.
        """
        generator = TextGenerator(config.artifact, replay_golden=config.replay_golden)
        generator.defaults = generator.parameters(config.generation)
        return cls(generator, batch_size=config.max_batch_size, max_time_s=config.request_timeout_s)

    @property
    def info(self) -> ModelInfo:
        """See `ServedModel`."""
        return self._info

    def complete(self, prompts: Sequence[Prompt], parameters: Mapping[str, Any]) -> list[Completion]:
        """See `ServedModel`."""
        inputs = [PromptInput(text=prompt.text, context=prompt.context) for prompt in prompts]
        wanted = self._generator.parameters(parameters).max_time
        max_time = self._max_time_s if wanted is None else min(wanted, self._max_time_s)
        outputs = self._generator.run(inputs, {**parameters, "max_time": max_time}, batch_size=self._batch_size)
        return [self._completion(output) for output in outputs]

    def _completion(self, output: GenerationOutput) -> Completion:
        logprobs = tuple(
            [dataclasses.asdict(token) for token in sequence.logprobs]
            for sequence in output.sequences
            if sequence.logprobs is not None
        )
        return Completion(
            model=self._info.name,
            texts=tuple(sequence.text for sequence in output.sequences),
            finish_reason=output.sequences[0].finish_reason,
            prompt_tokens=len(output.prompt_ids),
            completion_tokens=sum(len(sequence.token_ids) for sequence in output.sequences),
            logprobs=logprobs or None,
        )
