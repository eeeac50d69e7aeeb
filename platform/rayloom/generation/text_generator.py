"""`TextGenerator`: text in, text out, over an artifact or a plain model."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch

from rayloom.artifacts import Artifact
from rayloom.config import GenerationConfig
from rayloom.data import Encoder, PromptInput, PromptTemplate
from rayloom.engine import EngineOptions
from rayloom.errors import RequestError
from rayloom.generation.adapted import encoder_of, generator_of, open_adapters
from rayloom.generation.golden import refuse_unproven
from rayloom.generation.golden import replay_golden as replay
from rayloom.generation.opening import Opened, open_path, pick_device, pick_engine, pick_precision, start_engine
from rayloom.generation.parameters import parse_parameters
from rayloom.generation.streaming import WithoutStart
from rayloom.generation.types import GenerationOutput, GenerationRequest


class TextGenerator:
    """Writes text with a fine-tuned or plain model.

    ::

        generator = TextGenerator("runs/qa/artifact")
        generator.generate("Who wrote Faust?", context="…", num_beams=4)

    Parameters are those of `GenerationConfig`, on top of the artifact's own defaults.

    Args:
        path_or_name: Artifact (folder or URI), model folder or hub name. A plain model takes the
            prompt as it is, or as a user's message if it has a chat template.
        endpoint: URL of a server that holds the model: the same methods over HTTP. Where it has several, the path
            or name is the name of one.
        api_key: Of the server, if it wants one.
        device: ``cpu``, ``cuda``, …; the first GPU if there is one where not given.
        precision: Of the weights: ``fp32``, ``bf16`` or ``int8``.
        engine: What computes: ``rayloom``, or ``vllm``: decoder models, in an environment of its own, and only where
            the golden prompts replay to the token.
        max_batch_size: Most sequences (beams and answers counted one by one) in one step of the engine.
        cache_gib: Memory for keys and values in GiB; what `max_batch_size` sequences of full length take, but at
            most a quarter of the free memory (on CPUs 2 GiB), where not given.
        replay_golden: Prove that the artifact's golden prompts give the tokens that were recorded
            (answers are compared in fp32 only; prompts always).
        adapters: Artifacts of LoRA adapters of this very model, by names for `adapted`. They share its batch.
        max_adapters: Most adapters in memory at once; others are read again when they are asked for.

    Raises:
        ArtifactError: No artifact, a damaged one, or one that does not replay.
        ModelError: The model cannot be loaded.
    """

    def __new__(cls, *args: Any, endpoint: Any = None, **options: Any) -> TextGenerator:
        """A remote one, if there is an endpoint."""
        if endpoint is None or cls is not TextGenerator:
            return super().__new__(cls)
        from rayloom.generation.remote import RemoteTextGenerator

        return super().__new__(RemoteTextGenerator)

    def __init__(  # noqa: PLR0913 - what a model takes, and what a server takes
        self,
        path_or_name: str | Path | None = None,
        *,
        endpoint: str | None = None,
        api_key: str | None = None,
        device: str | torch.device | None = None,
        precision: str = "fp32",
        engine: str = "rayloom",
        max_batch_size: int = 32,
        cache_gib: float | None = None,
        replay_golden: bool = True,
        adapters: Mapping[str, str] | None = None,
        max_adapters: int = 32,
    ) -> None:
        if path_or_name is None or api_key is not None:
            raise RequestError("name an artifact or a model; or give an endpoint, and its api_key if it wants one")
        chosen = pick_device(device)
        options = EngineOptions(
            kind=pick_engine(engine),
            precision=pick_precision(precision),
            max_sequences=max_batch_size,
            cache_bytes=None if cache_gib is None else int(cache_gib * 2**30),
            max_adapters=max_adapters,
        )
        opened = open_path(path_or_name)
        added = open_adapters(opened, adapters or {})
        if options.kind != "rayloom":
            refuse_unproven(opened.artifact, *added.values(), will_replay=replay_golden)
        self._set_up(opened, chosen, options, added)
        if replay_golden:
            for each in (self, *map(self.adapted, self.adapters)):
                each._replay()

    @classmethod
    def from_opened(cls, opened: Opened, *, device: str | torch.device | None = None) -> Self:
        """Over a model that is loaded already."""
        self = object.__new__(cls)
        self._set_up(opened, pick_device(device), EngineOptions(), {})
        return self

    def _set_up(
        self, opened: Opened, device: torch.device, options: EngineOptions, adapters: Mapping[str, Artifact]
    ) -> None:
        self.name: str = opened.name
        self.artifact: Artifact | None = opened.artifact
        self.encoder: Encoder = opened.encoder
        self.defaults: GenerationConfig = opened.generation
        self.family = opened.loaded.family
        self.engine, self.precision, self.device = options.kind, options.precision, device
        shares = self.engine == "rayloom" and self.precision == "fp32"
        model: Any = opened.loaded.model.to(device) if self.engine == "rayloom" else opened.loaded.model
        # An engine that has weights of its own is alone with them: two copies would take more, not less.
        self._model: torch.nn.Module | None = model if shares else None
        self.adapters: Mapping[str, Artifact] = adapters
        self.generator = start_engine(opened, options, device, adapters)

    def adapted(self, name: str) -> TextGenerator:
        """The same model with one of the adapters that it was opened with; its calls share this one's batch.

        Raises:
            RequestError: It was not opened with such an adapter.
        """
        if name not in self.adapters:
            raise RequestError(f"there is no adapter '{name}'; there are: {', '.join(self.adapters) or 'none'}")
        artifact, view = self.adapters[name], copy.copy(self)
        view.name, view.artifact, view.adapters = name, artifact, {}
        view.encoder, view.defaults = encoder_of(artifact), artifact.manifest.generation
        view.generator = generator_of(self.generator, name, view.encoder)
        return view

    @property
    def template(self) -> PromptTemplate:
        """How prompts are made."""
        return self.encoder.template

    @property
    def model(self) -> torch.nn.Module:
        """The transformers model. On GPUs and on CPUs with AMX it shares its weights with the engine.

        Raises:
            RequestError: In bf16 and int8, with vLLM, and after `release_model`, only the engine's weights are kept.
        """
        if self._model is None:
            raise RequestError(
                f"opened in {self.precision} with engine {self.engine}, only the engine's weights are kept: open it in "
                "fp32 with engine rayloom, and do not release its model"
            )
        return self._model

    def release_model(self) -> None:
        """Let go of the transformers model, which the engine does without.

        In fp32 on most CPUs the engine's products have weights of their own: whoever only generates need not hold both.
        """
        self._model = None

    def generate(
        self,
        text: str = "",
        *,
        context: str | None = None,
        messages: Sequence[Mapping[str, str]] | None = None,
        **params: Any,
    ) -> str | list[str]:
        """Write an answer.

        Args:
            text: Question, document, instruction or prompt: what the model's template takes.
            context: Context of the question, if the template has a place for it.
            messages: A conversation of ``{role, content}`` instead of text.
            params: Generation parameters, see `GenerationConfig`.

        Returns:
            The answer; a list if ``num_return_sequences`` is above 1.

        Raises:
            RequestError: An unknown or unavailable parameter, or an unusable prompt.
        """
        (output,) = self.run([asked_for(text, context, messages)], params)
        return _texts(output, self.parameters(params))

    __call__ = generate

    def generate_batch(
        self,
        texts: Sequence[str],
        *,
        contexts: Sequence[str | None] | None = None,
        batch_size: int = 16,
        **params: Any,
    ) -> list[str] | list[list[str]]:
        """Write an answer to each text, in order; see `generate`.

        Args:
            texts: Questions, documents or prompts.
            contexts: One for each text.
            batch_size: Most prompts in flight.
            params: Generation parameters, the same for all.
        """
        if isinstance(texts, str):
            raise RequestError("generate_batch takes a list of texts; for one text use generate")
        if contexts is not None and len(contexts) != len(texts):
            raise RequestError(f"{len(contexts)} contexts for {len(texts)} texts: give one for each")
        inputs = [
            PromptInput(text, context) for text, context in zip(texts, contexts or [None] * len(texts), strict=True)
        ]
        config = self.parameters(params)
        return [_texts(output, config) for output in self.run(inputs, params, batch_size=batch_size)]  # type: ignore[return-value]

    def stream(
        self,
        text: str = "",
        *,
        context: str | None = None,
        messages: Sequence[Mapping[str, str]] | None = None,
        **params: Any,
    ) -> Iterator[str]:
        """Write an answer piece by piece; together the pieces are what `generate` gives.

        Arguments are checked at the call, not at the first piece. See `generate`.
        """
        config = self.parameters(params)
        request = self.request(asked_for(text, context, messages), config)
        return _without_start(self.generator.stream(request), self._start)

    def run(
        self, inputs: Sequence[PromptInput], params: Mapping[str, Any] | None = None, *, batch_size: int = 16
    ) -> list[GenerationOutput]:
        """Answers with their token ids, finish reasons, scores and log-probabilities.

        Args:
            inputs: What to ask.
            params: Generation parameters, the same for all.
            batch_size: Most prompts in flight.
        """
        if batch_size < 1:
            raise RequestError(f"batch_size must be at least 1, not {batch_size}")
        config = self.parameters(params or {})
        requests = [self.request(asked, config) for asked in inputs]
        return [self._cleaned(output) for output in self.generator.generate(requests, batch_size=batch_size)]

    async def run_async(self, asked: PromptInput, params: Mapping[str, Any] | None = None) -> GenerationOutput:
        """As `run`, for one prompt. It shares the engine's batch with all others; cancelling the task stops it."""
        request = self.request(asked, self.parameters(params or {}))
        return self._cleaned(await self.generator.generate_async(request))

    def parameters(self, params: Mapping[str, Any]) -> GenerationConfig:
        """A caller's parameters on top of the model's defaults, checked."""
        return parse_parameters(self.defaults, params)

    def request(self, asked: PromptInput, config: GenerationConfig) -> GenerationRequest:
        """Encode one prompt, its forced prefix included."""
        prefix = asked.prefix if asked.prefix is not None else config.prefix
        return GenerationRequest(
            self.encoder.prompt_ids(asked), config, self.encoder.prefix_ids(prefix) if prefix else []
        )

    def _replay(self) -> None:
        if self.artifact is not None:
            # Of bf16 and int8 nobody promises the very tokens; another engine has to bring them to be let in.
            exact = self.precision == "fp32" or self.engine != "rayloom"
            replay(self.generator, self.encoder, self.artifact.manifest.golden, check_outputs=exact)

    @property
    def _start(self) -> str:
        # Causal models learn to write a space between prompt and answer; it is no part of the answer.
        return self.template.target_prefix

    def _cleaned(self, output: GenerationOutput) -> GenerationOutput:
        sequences = [
            dataclasses.replace(sequence, text=sequence.text.removeprefix(self._start)) for sequence in output.sequences
        ]
        return dataclasses.replace(output, sequences=sequences)


def asked_for(text: str, context: str | None, messages: Sequence[Mapping[str, str]] | None) -> PromptInput:
    """The prompt that a caller means.

    Raises:
        RequestError: Several texts where one is taken.
    """
    if not isinstance(text, str):
        raise RequestError("generate takes one text; for a list use generate_batch")
    return PromptInput(text, context, tuple(dict(message) for message in messages) if messages is not None else None)


def _texts(output: GenerationOutput, config: GenerationConfig) -> str | list[str]:
    texts = [sequence.text for sequence in output.sequences]
    return texts if config.num_return_sequences > 1 or len(texts) > 1 else texts[0]  # a server's default may be above 1


def _without_start(pieces: Iterator[str], start: str) -> Iterator[str]:
    """Pieces without the given start of the whole."""
    cutter = WithoutStart(start)
    for piece in pieces:
        if kept := cutter.add(piece):
            yield kept
    if kept := cutter.finish():
        yield kept
