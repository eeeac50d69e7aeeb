"""A `TextGenerator` as a `ServedModel`. The one file of this room that imports torch; only replicas do."""

from __future__ import annotations

import dataclasses
from typing import Self

from rayloom.config import ServingConfig
from rayloom.data import PromptInput
from rayloom.generation import GenerationOutput, TextGenerator
from rayloom.serving.calls import Call, Completion, ModelInfo


class TextGeneratorModel:
    """Serves a text generator.

    Args:
        generator: The opened model.
        max_time_s: Seconds after which a call stops in any case: nobody waits for it any longer.
    """

    def __init__(self, generator: TextGenerator, *, max_time_s: float) -> None:
        self._generator, self._max_time_s = generator, max_time_s
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
        generator = TextGenerator(
            config.artifact,
            precision=config.precision,
            max_batch_size=config.max_batch_size,
            cache_gib=config.cache_gib,
            replay_golden=config.replay_golden,
        )
        generator.defaults = generator.parameters(config.generation)
        return cls(generator, max_time_s=config.request_timeout_s)

    @property
    def info(self) -> ModelInfo:
        """See `ServedModel`."""
        return self._info

    async def complete(self, call: Call) -> Completion:
        """See `ServedModel`."""
        asked = PromptInput(text=call.prompt.text, context=call.prompt.context)
        wanted = self._generator.parameters(call.parameters).max_time
        max_time = self._max_time_s if wanted is None else min(wanted, self._max_time_s)
        return self._completion(await self._generator.run_async(asked, {**call.parameters, "max_time": max_time}))

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
