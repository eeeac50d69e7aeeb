"""A caller's wish as a grammar in llguidance's Lark dialect.

Vocabularies that cannot write every text (T5's has no brace) lead into dead ends where a grammar does not know of it:
expressions are narrowed to the letters there are, and where that cannot be done the grammar is marked as wary.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llguidance import regex_to_lark

from rayloom.engine.margins import choice_margin, is_plain, json_margin, regex_margin
from rayloom.engine.vocabulary import Vocabulary
from rayloom.errors import RequestError

Kind = Literal["json_schema", "json", "regex", "choice"]

_WHITESPACE = r"( |\r?\n[ \t]{0,40})"
"""Between the parts of a JSON text, once: models that may write any amount write nothing else."""
_UNFORCED = '%llguidance {"no_forcing": true}\n'
"""Let every spelling in tokens through, not only the tokenizer's own."""
_JSON_LETTERS = frozenset('{}[]":,.-+0123456789eEtrufalsn')


@dataclass(frozen=True)
class Wording:
    """A grammar.

    Attributes:
        text: In Lark.
        margin: By how much one token can lengthen the way to the end (see `margins.py`).
        is_wary: Not everything that it allows can be written on to an end: each token is looked at first.
        is_plain: JSON of which what follows does not depend on finished values (see `margins.py`).
    """

    text: str
    margin: int
    is_wary: bool = False
    is_plain: bool = False


def word(kind: Kind, spec: Any, lead: str, forbidden: Sequence[str], vocabulary: Vocabulary) -> Wording:
    """The grammar of one wish.

    Args:
        kind: See `compile_grammar`.
        spec: See `compile_grammar`.
        lead: May stand before the answer, of which it is no part.
        forbidden: Words that an expression's match or a choice must not hold.
        vocabulary: What tokens write.

    Raises:
        RequestError: The spec is of the wrong type, or leaves nothing to choose.
    """
    if kind in ("json_schema", "json"):
        schema = {"type": "object"} if kind == "json" else spec
        if not isinstance(schema, dict):
            raise RequestError(f"json_schema: expected an object, not {type(schema).__name__}")
        return _word_schema(schema, lead, vocabulary)
    if kind == "choice":
        choices = _allowed_choices(spec, forbidden)
        _check_writable(choices, vocabulary)
        regex = "|".join(re.escape(choice) for choice in choices)
        return Wording(_word_regex(regex, lead, (), None), choice_margin(choices), _is_wary(choices, vocabulary))
    if not isinstance(spec, str):
        raise RequestError(f"regex: expected a text, not {type(spec).__name__}")
    return Wording(_word_regex(spec, lead, forbidden, vocabulary.letters), regex_margin(spec))


def _word_schema(schema: dict[str, Any], lead: str, vocabulary: Vocabulary) -> Wording:
    guided = schema | {"x-guidance": {"whitespace_pattern": _WHITESPACE}}
    begin = f"{json.dumps(lead)}? body" if lead else "body"
    text = f"{_UNFORCED}start: {begin}\nbody: %json {json.dumps(guided)}\n"
    letters = vocabulary.letters
    wary = letters is not None and not letters.issuperset(_JSON_LETTERS.union(*_texts(schema)))
    return Wording(text, json_margin(schema), wary, is_plain(schema))


def _word_regex(regex: str, lead: str, forbidden: Sequence[str], letters: frozenset[str] | None) -> str:
    """A lead may stand before the match; a match that begins like the lead must have it twice, then."""
    led = re.escape(lead)
    parts = [f"BODY: {_literal(f'(?:{regex})')}", "start: WHOLE"]
    whole = "BODY"
    if lead:
        parts.append(f"LED: {_literal(f'{led}(?:{regex})')}")
        parts.append(f"UNLED: BODY & ~{_literal(f'{led}(?s:.*)')}")
        whole = "(LED | UNLED)"
    if letters is not None:
        written = "".join(re.escape(letter) for letter in sorted(letters))
        whole += f" & {_literal(f'(?:{led})?[{written}]*')}"
    for forbidden_word in forbidden:
        start = r"(?s:(?:.*\W)?)" if re.match(r"\w", forbidden_word) else "(?s:.*)"
        whole += f" & ~{_literal(f'{start}{re.escape(forbidden_word)}(?s:.*)')}"
    return _UNFORCED + "\n".join([*parts, f"WHOLE: {whole}"]) + "\n"


def _literal(regex: str) -> str:
    # Digits are 0-9: libraries do not agree on which other ones Unicode has.
    return f"/{regex_to_lark(regex, 'd')}/".replace("\n", r"\n").replace("\r", r"\r")


def _allowed_choices(choices: Any, forbidden: Sequence[str]) -> list[str]:
    if not isinstance(choices, list | tuple) or not choices or not all(isinstance(item, str) for item in choices):
        raise RequestError("choice: expected a list of texts, at least one")
    starts = [(r"(?<!\w)" if re.match(r"\w", item) else "") + re.escape(item) for item in forbidden]
    kept = [choice for choice in choices if not any(re.search(start, choice) for start in starts)]
    if not kept:
        raise RequestError("choice: forbidden_words leave none of the texts")
    return kept


def _is_wary(texts: Sequence[str], vocabulary: Vocabulary) -> bool:
    return vocabulary.letters is not None and not vocabulary.letters.issuperset("".join(texts))


def _check_writable(choices: Sequence[str], vocabulary: Vocabulary) -> None:
    if not _is_wary(choices, vocabulary):
        return
    pieces = {piece for piece in vocabulary.tokens if piece}
    for choice in choices:
        leads = (b" ", b"") if vocabulary.drops_space else (b"",)
        if not any(_is_writable(lead + choice.encode(), pieces) for lead in leads):
            raise RequestError(f"choice: this model's vocabulary cannot write {choice!r}")


def _is_writable(text: bytes, pieces: set[bytes]) -> bool:
    reached, longest = {0}, max(map(len, pieces), default=0)
    for end in range(1, len(text) + 1):
        if any(start in reached and text[start:end] in pieces for start in range(max(end - longest, 0), end)):
            reached.add(end)
    return len(text) in reached


def _texts(schema: Any) -> Iterator[str]:
    """Everything in a schema that an answer may hold word for word, and more."""
    if isinstance(schema, str):
        yield json.dumps(schema, ensure_ascii=False)
    elif isinstance(schema, dict):
        for key, value in schema.items():
            yield key
            yield from _texts(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _texts(value)
