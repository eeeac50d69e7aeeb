"""From a call's prompt to what the model sees: through the artifact's template, or as it is."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

from rayloom.config import GenerationConfig
from rayloom.data import PromptInput
from rayloom.data.tokenization import Texts
from rayloom.errors import RequestError
from rayloom.generation import GenerationRequest, TextGenerator
from rayloom.serving.calls import Prompt


@dataclass(frozen=True)
class Asked:
    """A prompt as the generator takes it.

    Attributes:
        request: Prompt, parameters and forced prefix as tokens.
        start: What the template makes answers start with; no part of them.
        text: The prompt as the model sees it, where that was wanted.
    """

    request: GenerationRequest
    start: str
    text: str


class PromptReader:
    """Encodes prompts for one model.

    Args:
        generator: The opened model.
    """

    def __init__(self, generator: TextGenerator) -> None:
        self._encoder, self._template = generator.encoder, generator.template
        self._tokenizer = generator.encoder.tokenizer
        self._vocab_size = generator.generator.resolver.vocab_size
        self._texts = Texts(self._tokenizer, seq2seq=generator.family.seq2seq)

    def ask(
        self, prompt: Prompt, config: GenerationConfig, *, prompt_logprobs: int | None = None, echoes: bool = False
    ) -> Asked:
        """The request for a prompt.

        Args:
            prompt: The prompt.
            config: How to answer.
            prompt_logprobs: See `GenerationRequest`.
            echoes: Whether the prompt's text is wanted.

        Raises:
            RequestError: The prompt is empty, or the model cannot take it.
        """
        as_it_is = prompt.raw or prompt.token_ids is not None
        prefix_ids: list[int] = []
        if config.prefix:
            encode = self._continuation if as_it_is else self._encoder.prefix_ids
            prefix_ids = encode(config.prefix)
        request = GenerationRequest(self.token_ids(prompt), config, prefix_ids, prompt_logprobs)
        start = "" if as_it_is else self._template.target_prefix
        return Asked(request, start, self.text(prompt) if as_it_is and echoes else "")

    def token_ids(self, prompt: Prompt, *, adds_special_tokens: bool = True) -> list[int]:
        """A prompt's tokens.

        Raises:
            RequestError: As `ask`.
        """
        if prompt.token_ids is not None:
            return self._known(prompt.token_ids)
        if prompt.raw:
            ids = self._texts.ids(prompt.text)
            return self._texts.sequence(ids) if adds_special_tokens else ids
        return self._encoder.prompt_ids(self._input(prompt))

    def text(self, prompt: Prompt) -> str:
        """A raw prompt as text."""
        if prompt.token_ids is None:
            return prompt.text
        ids = self._known(prompt.token_ids)
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _known(self, token_ids: Sequence[int]) -> list[int]:
        """Tokens that the model has: any other would break the whole batch."""
        for token in token_ids:
            if not 0 <= token < self._vocab_size:
                raise RequestError(f"the prompt has token {token}; this model has 0 … {self._vocab_size - 1}")
        return list(token_ids)

    def _continuation(self, text: str) -> list[int]:
        return self._texts.ids(text) if self._template.seq2seq else self._texts.continuation(text)

    def _input(self, prompt: Prompt) -> PromptInput:
        if prompt.messages is None:
            return PromptInput(text=prompt.text, context=prompt.context)
        if self._template.chat:
            return PromptInput(messages=tuple(dict(message) for message in prompt.messages))
        if [message.get("role") for message in prompt.messages] != ["user"]:
            raise RequestError(
                "this model has no chat template: send one message, from the user; it fills the template that the "
                "model was trained with. For another prompt use POST /v1/completions"
            )
        return PromptInput(text=prompt.messages[0]["content"])


def offsets_in(text: str, pieces: Sequence[bytes]) -> list[int]:
    """Where in a text each of its tokens begins, in characters.

    Args:
        text: The text.
        pieces: What each token writes. One that the text does not show (special tokens that were added to it) takes
            no room; one that writes a part of a character begins where the character does.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    offsets, place = [], 0
    for piece in pieces:
        offsets.append(place)
        written = decoder.decode(piece)
        # Some tokenizers write a space before every text, which decoding takes away again.
        for shown in (written, written.removeprefix(" ")):
            if text.startswith(shown, place):
                place += len(shown)
                break
    return offsets
