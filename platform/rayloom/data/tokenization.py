"""Text to ids, exactly: no double special tokens, no spurious spaces, chat templates rendered once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import jinja2
import tokenizers
from transformers import PreTrainedTokenizerBase

from rayloom.data.templates import Message
from rayloom.errors import ModelError, RequestError


class Texts:
    """A tokenizer as prompts and targets need it.

    Args:
        tokenizer: Any transformers tokenizer with an end-of-sequence token.
        seq2seq: Sequences go into an encoder: they end with the end-of-sequence token.

    Raises:
        ModelError: The tokenizer has no end-of-sequence token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, seq2seq: bool) -> None:
        if tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no end-of-sequence token, so answers could never end")
        self.tokenizer = tokenizer
        self.eos_id: int = tokenizer.eos_token_id
        self._eos_text = str(tokenizer.eos_token)
        first, last = _affixes(tokenizer)
        self.prefix = first
        self.suffix = (last if last[-1:] == [self.eos_id] else [self.eos_id]) if seq2seq else []
        # Tokenizers of the sentencepiece kind put a space before every text; an anchor in front, cut off
        # again, gives the ids that a text has in the middle of a sequence.
        first_piece = tokenizer.convert_ids_to_tokens(self.ids("a"))[0]
        self._anchor = "\n" if not seq2seq and str(first_piece).startswith("\u2581") else ""

    def ids(self, text: str) -> list[int]:
        """Ids of a text alone, without special tokens added."""
        return list(self.tokenizer.encode(text, add_special_tokens=False, verbose=False))

    def sequence(self, ids: list[int]) -> list[int]:
        """Ids with the special tokens that start (and, for encoders, end) a sequence; never doubled."""
        start = [] if self.prefix and ids[: len(self.prefix)] == self.prefix else self.prefix
        return [*start, *ids, *self.suffix]

    def continuation(self, text: str) -> list[int]:
        """Ids of a text in the middle of a sequence."""
        if self._anchor:
            anchor, whole = self.ids(self._anchor), self.ids(self._anchor + text)
            if whole[: len(anchor)] == anchor:
                return whole[len(anchor) :]
        return self.ids(text)

    def chat_text(self, messages: Sequence[Message], *, answer_next: bool) -> str:
        """A conversation through the chat template; contents are stripped, as many templates do themselves.

        Args:
            messages: The conversation.
            answer_next: End with the start of an assistant turn.

        Raises:
            RequestError: The template does not take these messages.
        """
        stripped = [{**message, "content": message["content"].strip()} for message in messages]
        try:
            text: str = self.tokenizer.apply_chat_template(stripped, tokenize=False, add_generation_prompt=answer_next)
        except (jinja2.TemplateError, IndexError, TypeError) as error:
            raise RequestError(f"the model's chat template does not take these messages: {error}") from error
        return text

    def end_of_turn(self, rest: str, *, is_last: bool = True) -> tuple[str, list[int]]:
        """The part of an assistant turn after its content that the model has to learn to write.

        Args:
            rest: What the chat template writes after the content.
            is_last: The sequence ends here, so it must end with the end-of-sequence token.

        Returns:
            The learned text, and ids to put after it.
        """
        place = rest.find(self._eos_text)
        if place >= 0:
            return rest[: place + len(self._eos_text)], []
        return rest.rstrip(), [self.eos_id] if is_last else []

    def shorten(self, part: str, render: Callable[[str], list[int]], *, over: int, limit: int) -> list[int] | None:
        """Cut the end off one part of a prompt until the whole fits.

        Args:
            part: The text to cut.
            render: Part to the ids of the whole prompt.
            over: Ids that the prompt with the uncut part has too many.
            limit: Ids that the prompt may have.

        Returns:
            The prompt's ids with as much of the part as fits; None if it does not fit with one token of it.
        """
        ends = self._token_ends(part)
        num_kept = len(ends) - over
        while num_kept > 0:
            kept = part[: ends[num_kept - 1]]
            ids = render(kept)
            if len(ids) <= limit:
                return ids if kept.strip() else None
            num_kept -= len(ids) - limit
        return None

    def _token_ends(self, text: str) -> list[int]:
        """Character at which each token of a text ends."""
        if self.tokenizer.is_fast:
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            return [end for _, end in encoded["offset_mapping"]]
        count = len(self.ids(text))
        return [len(text) * (place + 1) // count for place in range(count)]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of all that decides a tokenizer's ids: vocabulary, rules, special tokens, chat template."""
    if tokenizer.is_fast:
        rules: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
        rules.pop("truncation", None)  # state left by earlier calls
        rules.pop("padding", None)
    else:
        rules = {"class": type(tokenizer).__name__, "vocab": tokenizer.get_vocab()}
    content = {
        "library": tokenizers.__version__,
        "rules": rules,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "chat_template": tokenizer.chat_template,
        "affixes": _affixes(tokenizer),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _affixes(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special ids that a tokenizer itself puts before and after a text."""
    plain = list(tokenizer.encode("a", add_special_tokens=False))
    full = list(tokenizer.encode("a", add_special_tokens=True))
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start], full[start + len(plain) :]
    return [], []
