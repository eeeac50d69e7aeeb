"""Forbidden words, held on the level of text: no other spelling in tokens gets a word through."""

from __future__ import annotations

import re
import weakref
from collections import defaultdict
from collections.abc import Sequence

import torch
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from rayloom.generation.words import UNKNOWN, decode

_ANCHOR = "a"
_texts: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, list[str]] = weakref.WeakKeyDictionary()


class ForbiddenWords(LogitsProcessor):  # type: ignore[misc]
    """Gives minus infinity to every token that would write a forbidden word or phrase.

    A word is met where it starts at a word's start: ``cat`` also forbids ``cats``, but not ``concat``. Case
    counts. The answer is looked at, not the prompt.

    Args:
        words: Words or phrases.
        tokenizer: The model's tokenizer.
        start: Length of the (padded) prompt, where the answer starts.
    """

    def __init__(self, words: Sequence[str], tokenizer: PreTrainedTokenizerBase, start: int) -> None:
        self._words = [word.strip() for word in words if word.strip()]
        self._tokenizer, self._start = tokenizer, start
        self._patterns = [re.compile(_pattern(word)) for word in self._words]
        self._tail = max(len(word.encode()) for word in self._words) + 4
        texts = token_texts(tokenizer)
        self._inside = [token for token, text in enumerate(texts) if any(word in text for word in self._words)]
        self._partial = [i for i, text in enumerate(texts) if UNKNOWN in text]
        self._by_start = _tokens_by_start(texts, self._words)
        self._ascii = all(word.isascii() for word in self._words)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Mask the scores ``(rows, vocabulary)`` of the tokens that follow ``input_ids (rows, length)``."""
        scores = scores.clone()  # type: ignore[assignment]
        for row, ids in enumerate(input_ids[:, self._start :].tolist()):
            banned = [token for token in self._banned(ids[-self._tail :]) if token < scores.shape[1]]
            scores[row, banned] = -torch.inf
        return scores

    def _banned(self, tail_ids: list[int]) -> list[int]:
        tail = decode(self._tokenizer, tail_ids)
        candidates = set(self._inside)
        for word in self._words:
            for size in range(len(word)):
                if size == 0 or tail.endswith(word[:size]):
                    candidates |= self._by_start[word[size:]]
        texts = token_texts(self._tokenizer)
        banned = [token for token in candidates if self._completes(tail, tail + texts[token])]
        if not self._ascii:
            banned += [token for token in self._partial if self._completes(tail, self._after(tail_ids, token))]
        return banned

    def _after(self, tail_ids: list[int], token: int) -> str:
        return decode(self._tokenizer, [*tail_ids, token])

    def _completes(self, before: str, after: str) -> bool:
        return any(len(pattern.findall(after)) > len(pattern.findall(before)) for pattern in self._patterns)


def token_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Each token's text as it is in the middle of a sentence."""
    if tokenizer not in _texts:
        anchor = tokenizer.encode(_ANCHOR, add_special_tokens=False)
        skip = len(decode(tokenizer, anchor))
        _texts[tokenizer] = [decode(tokenizer, [*anchor, token])[skip:] for token in range(len(tokenizer))]
    return _texts[tokenizer]


def _pattern(word: str) -> str:
    return (r"(?<!\w)" if re.match(r"\w", word) else "") + re.escape(word)


def _tokens_by_start(texts: Sequence[str], words: Sequence[str]) -> dict[str, set[int]]:
    rests = {word[size:] for word in words for size in range(len(word))}
    found: dict[str, set[int]] = defaultdict(set)
    heads = {rest[0] for rest in rests}
    for token, text in enumerate(texts):
        if text[:1] in heads:
            for rest in rests:
                if text.startswith(rest):
                    found[rest].add(token)
    return found
