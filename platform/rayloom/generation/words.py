"""Between words and tokens: what each token writes, and in which tokens a word can be written."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from rayloom.engine.vocabulary import Vocabulary

UNKNOWN = "\ufffd"
"""What decoding writes for bytes that make no character."""
_BEFORE = "abcdef"


@dataclass(frozen=True)
class Pieces:
    """What the tokens of a tokenizer write in the middle of a text.

    Attributes:
        by_id: Bytes by token id, special tokens by their name; None for an id that no token has.
        in_bytes: Whether a token may be part of a character only.
        falls_back: Whether such tokens are there only for what others cannot write.
    """

    by_id: tuple[bytes | None, ...]
    in_bytes: bool
    falls_back: bool


@dataclass(frozen=True)
class _Audible:
    """What decoding shows of each token.

    Attributes:
        by_id: Bytes by token id, none of special tokens.
        silent: Special tokens.
        drops_space: Whether a space that a text begins with is lost.
    """

    by_id: tuple[bytes, ...]
    silent: frozenset[int]
    drops_space: bool


_audibles: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, _Audible] = weakref.WeakKeyDictionary()
_pieces: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, Pieces] = weakref.WeakKeyDictionary()


def token_pieces(tokenizer: PreTrainedTokenizerBase) -> Pieces:
    """What each token writes; found once per tokenizer.

    Tokens of byte-level and byte-fallback tokenizers are taken byte by byte, any other is decoded behind other
    text, so that the tokenizer's own rules about spaces show.
    """
    if tokenizer not in _pieces:
        kinds = _decoder_kinds(tokenizer)
        vocab: dict[str, int] = tokenizer.get_vocab()
        found: list[bytes | None] = [None] * (max(vocab.values(), default=-1) + 1)
        before = [str(token) for token in tokenizer.convert_ids_to_tokens(_plain_ids(tokenizer, _BEFORE))]
        for token, number in vocab.items():
            piece = _own_bytes(token, kinds)
            found[number] = _written(tokenizer, before, token).encode() if piece is None else piece
        falls_back = "ByteFallback" in kinds
        _pieces[tokenizer] = Pieces(tuple(found), falls_back or "ByteLevel" in kinds, falls_back)
    return _pieces[tokenizer]


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, size: int, eos_ids: Sequence[int] = ()) -> Vocabulary:
    """What a model with this tokenizer writes.

    Args:
        tokenizer: The model's tokenizer.
        size: Width of the model's logits.
        eos_ids: Tokens that end a sequence.
    """
    audible = _audible(tokenizer)
    return Vocabulary(list(audible.by_id), size=size, eos_ids=eos_ids, drops_space=audible.drops_space)


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """Text of tokens, special ones left out, spaces as they are. What does not make a character is ``\ufffd``.

    Of tokenizers with byte fallback, one byte that makes no character (yet) costs the library's own decoding all
    characters that are written in bytes before it: a text that is cut there would lose its end. Here it costs itself.
    """
    text = _decoded(tokenizer, token_ids)
    if UNKNOWN not in text or not token_pieces(tokenizer).falls_back:
        return text
    audible = _audible(tokenizer)
    kept = [token for token in token_ids if token not in audible.silent and token < len(audible.by_id)]
    text = b"".join(audible.by_id[token] for token in kept).decode(errors="replace")
    starts = audible.drops_space and kept and audible.by_id[kept[0]].startswith(b" ")
    return text.removeprefix(" ") if starts else text


def silent_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Special tokens: decoding an answer leaves them out."""
    added: dict[int, Any] = tokenizer.added_tokens_decoder
    return {number for number, token in added.items() if token.special} | set(tokenizer.all_special_ids)


def spellings(tokenizer: PreTrainedTokenizerBase, phrase: str) -> list[list[int]]:
    """Token sequences that write a phrase in running text: behind a space, and by itself."""
    written = [_plain_ids(tokenizer, text) for text in (" " + phrase, phrase)]
    silent = silent_ids(tokenizer)
    kept: list[list[int]] = []
    for ids in written:
        if ids and ids not in kept and not silent.intersection(ids) and phrase in _decoded(tokenizer, ids):
            kept.append(ids)
    return kept


def _audible(tokenizer: PreTrainedTokenizerBase) -> _Audible:
    if tokenizer not in _audibles:
        silent = frozenset(silent_ids(tokenizer))
        pieces = token_pieces(tokenizer).by_id
        by_id = tuple(b"" if number in silent else piece or b"" for number, piece in enumerate(pieces))
        spaced = next((number for number, piece in enumerate(by_id) if piece.startswith(b" ") and len(piece) > 1), None)
        drops_space = spaced is not None and not _decoded(tokenizer, [spaced]).startswith(" ")
        _audibles[tokenizer] = _Audible(by_id, silent, drops_space)
    return _audibles[tokenizer]


def _plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def _written(tokenizer: PreTrainedTokenizerBase, before: list[str], token: str) -> str:
    text: str = tokenizer.convert_tokens_to_string([*before, token])
    return text[text.index(_BEFORE) + len(_BEFORE) :]


def _own_bytes(token: str, kinds: set[str]) -> bytes | None:
    """Bytes that a token stands for by its name; fallback goes before byte-level where a decoder has both."""
    if "ByteFallback" in kinds:
        named = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
        digits = token[3:5] if named else ""
        return bytes.fromhex(digits) if digits and all(digit in _HEX for digit in digits) else None
    if "ByteLevel" in kinds and all(char in _BYTE_OF for char in token):
        return bytes(_BYTE_OF[char] for char in token)
    return None


def _decoder_kinds(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    state = decoder.__getstate__() if decoder is not None else None
    return set(_types(json.loads(state))) if isinstance(state, bytes | str) else set()


def _types(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("type"), str):
            yield node["type"]
        for value in node.values():
            yield from _types(value)
    elif isinstance(node, list):
        for value in node:
            yield from _types(value)


def _byte_names() -> dict[str, int]:
    """Byte-level tokenizers name bytes by characters that print (Radford et al., 2019)."""
    printing = [byte for byte in range(256) if 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or byte >= 0xAE]
    others = [byte for byte in range(256) if byte not in set(printing)]
    return {chr(byte): byte for byte in printing} | {chr(256 + place): byte for place, byte in enumerate(others)}


_HEX = frozenset("0123456789abcdefABCDEF")
_BYTE_OF = _byte_names()
