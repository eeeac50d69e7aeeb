"""Random walks through grammars: whatever is chosen among the allowed tokens, the answer follows, and ends in time."""

from __future__ import annotations

import json
import logging
import random
import re
from typing import Any

import jsonschema
import pytest

from rayloom.engine.brackets import Brackets
from rayloom.engine.grammar import Frame, GrammarConstraint, compile_grammar
from rayloom.engine.masks import tokens_of
from rayloom.engine.vocabulary import Vocabulary
from rayloom.errors import RequestError
from rayloom.generation.words import read_vocabulary
from tests.unit.generation.tokenizers import KINDS, tokenizer_of

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "ok": {"type": "boolean"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
SCHEMAS: list[dict[str, Any]] = [
    PERSON,
    {"type": "object"},
    {"type": "array", "items": PERSON, "minItems": 1},
    {"type": "array", "items": {"enum": ["a", "cat", None, 3]}, "maxItems": 4},
    {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"mill": PERSON}, "required": ["mill"]}]},
    {"type": "string", "minLength": 3, "maxLength": 9},
    {"type": "string", "pattern": "^[a-c]{2,12}x$"},
    {"type": "number", "minimum": 5},
    {"const": {"the": ["old", 1]}},
    {
        "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}, "v": {"type": "null"}}}},
        "$ref": "#/$defs/node",
    },
]
REGEXES = ["[a-c]{3,20}t", "a|b[a-z]{12}", r"\d{4}-\d{2}", "(cat|the mill|old mill)s?", " ?a+ ", "x*", "[^a-z]{2}/\n?"]


def walk(constraint: GrammarConstraint, vocabulary: Vocabulary, rng: random.Random, left: int) -> list[int] | None:
    """Tokens chosen at random, as long as some are left; None if the answer was not complete then."""
    ids: list[int] = []
    for _ in range(left):
        allowed = tokens_of(constraint.mask())
        assert allowed
        token = rng.choice(allowed[-3:] if rng.random() < 0.2 else allowed)
        if rng.random() < 0.1:
            constraint, dropped = constraint.fork(), constraint
            dropped.advance(rng.choice(allowed))
        constraint.advance(token)
        if token in vocabulary.eos_ids:
            return ids
        ids.append(token)
    return ids if constraint.is_complete else None


def decoded(kind: str, ids: list[int]) -> str:
    return tokenizer_of(kind).decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def vocabulary_of(kind: str) -> Vocabulary:
    tokenizer = tokenizer_of(kind)
    return read_vocabulary(tokenizer, len(tokenizer) + 9, [tokenizer.eos_token_id])


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def vocabulary(kind: str) -> Vocabulary:
    return vocabulary_of(kind)


def test_json_always_parses_and_ends_in_time(kind: str, vocabulary: Vocabulary, caplog) -> None:
    rng = random.Random(6)
    for schema in SCHEMAS:
        for left in (14, 30, 60):
            try:
                constraint = compile_grammar("json_schema", schema, vocabulary, Frame(max_new_tokens=left))
            except RequestError as error:
                assert re.search("shortest answer|cannot write", str(error))  # noqa: PT017
                continue
            ids = walk(constraint, vocabulary, rng, left)
            assert ids is not None, (schema, left)
            jsonschema.validate(json.loads(decoded(kind, ids)), schema)
    assert not caplog.records


def test_matches_always_match_and_end_in_time(kind: str, vocabulary: Vocabulary, caplog) -> None:
    rng, walked = random.Random(7), 0
    for regex in REGEXES:
        for left in (1, 6, 14, 60):
            try:
                constraint = compile_grammar("regex", regex, vocabulary, Frame(max_new_tokens=left))
            except RequestError as error:
                assert re.search("shortest answer|cannot write", str(error))  # noqa: PT017
                continue
            for _ in range(2):
                ids = walk(constraint.fork(), vocabulary, rng, left)
                assert ids is not None, (regex, left)
                assert re.fullmatch(regex, decoded(kind, ids)), (regex, decoded(kind, ids))
                walked += 1
    assert walked > 30
    assert not caplog.records


def test_each_of_a_choice_can_come_and_nothing_else(kind: str, vocabulary: Vocabulary) -> None:
    choices = ["cat", "cats", "the [old] mill", "a", " a", "naïve"]
    if vocabulary.letters is not None:
        choices = [choice for choice in choices if vocabulary.letters.issuperset(choice)]
    rng = random.Random(8)
    found = set()
    for _ in range(150):
        ids = walk(compile_grammar("choice", choices, vocabulary, Frame(max_new_tokens=40)), vocabulary, rng, 40)
        found.add(decoded(kind, ids))
    assert found == set(choices)


def test_every_spelling_of_a_text_is_let_through(kind: str, vocabulary: Vocabulary) -> None:
    """Not only the tokenizer's own: the mask is exactly the tokens that begin a rest of the text."""
    text = b" the mill" if vocabulary.drops_space else b"the mill"
    constraint = compile_grammar("choice", ["the mill"], vocabulary)
    rng, written = random.Random(9), b""
    while written != text:
        allowed = tokens_of(constraint.mask())
        rests = [text[len(written) :]] + ([text[1:]] if vocabulary.drops_space and not written else [])
        starts = {
            token
            for token, piece in enumerate(vocabulary.tokens)
            if piece and any(rest.startswith(piece) for rest in rests)
        }
        assert set(allowed) == starts
        token = rng.choice(allowed)
        constraint.advance(token)
        piece = vocabulary.tokens[token]
        written = text[
            : len(written) + len(piece) + (bool(vocabulary.drops_space) and not written and piece[:1] != b" ")
        ]
    assert tokens_of(constraint.mask()) == list(vocabulary.eos_ids)


def test_masks_do_not_depend_on_what_others_wrote() -> None:
    """Ways to the end are shared by requests of one grammar: each sees the masks that it would have seen alone."""
    tokenizer, rng = tokenizer_of("byte_level"), random.Random(16)
    rows = {"type": "object", "properties": {"rows": {"type": "array", "items": PERSON}}, "required": ["rows"]}
    for schema in (PERSON, SCHEMAS[1], SCHEMAS[2], SCHEMAS[4], rows):
        shared = vocabulary_of("byte_level")
        for left in (90, 75, 90):
            alone = read_vocabulary(tokenizer, len(tokenizer) + 9, [tokenizer.eos_token_id])
            pair = [
                compile_grammar("json_schema", schema, each, Frame(max_new_tokens=left)) for each in (shared, alone)
            ]
            for _ in range(left):
                allowed, expected = (tokens_of(constraint.mask()) for constraint in pair)
                assert allowed == expected
                token = rng.choice(allowed)
                if token in shared.eos_ids:
                    break
                for constraint in pair:
                    constraint.advance(token)
            assert all(constraint.is_complete for constraint in pair)


def test_an_outline_keeps_what_decides() -> None:
    text = b'{ "a\\"b" : "x, [" ,\n"c":[ 12, -3.50,{"d":"' + b"y"
    for counts, outline in ((True, b'{"a\\"b":"","c":[0,-0.0,{"d":"'), (False, b'{"a\\"b":"","c":[,{"d":"')):
        brackets = Brackets(counts=counts)
        for byte in text:
            brackets.write(bytes((byte,)))
        assert (brackets.outline, brackets.depth, brackets.quoted) == (outline, 3, True)
        assert text[brackets.opened :] == b'"y'


def test_a_prefix_is_part_of_the_answer(kind: str, vocabulary: Vocabulary) -> None:
    tokenizer, rng = tokenizer_of(kind), random.Random(10)
    prefix = tuple(tokenizer.encode('{"name": "the', add_special_tokens=False))
    ids = walk(
        compile_grammar("json_schema", PERSON, vocabulary, Frame(prefix_ids=prefix, max_new_tokens=50)),
        vocabulary,
        rng,
        50,
    )
    value = json.loads(decoded(kind, [*prefix, *ids]))
    jsonschema.validate(value, PERSON)
    assert value["name"].startswith("the")
    with pytest.raises(RequestError, match="prefix"):
        compile_grammar("regex", "[0-9]+", vocabulary, Frame(prefix_ids=prefix))


@pytest.mark.parametrize(
    ("grammar", "spec", "text", "is_over"),
    [
        ("json_schema", PERSON, '{"name":"a","age":1}', True),
        ("json_schema", PERSON, '{"name":"a","age":1', False),
        ("json", None, '{"a": [1]}', True),
        ("json_schema", {"type": "string"}, '"ab"', True),
        ("json_schema", {"type": "integer"}, "12", False),
        ("json_schema", {"const": 12}, "12", True),
        ("regex", "a+", "aaa", False),
        ("regex", "a{3}", "aaa", True),
        ("regex", "a{4}", "aaa", False),
        ("choice", ["cat", "cats"], "cat", False),
        ("choice", ["cat", "cats"], "cats", True),
    ],
)
def test_an_answer_is_over_when_nothing_but_the_end_may_follow(
    grammar: Any, spec: Any, text: str, is_over: bool
) -> None:
    """The same whether its tokens are used up or not."""
    vocabulary = vocabulary_of("byte_level")
    letters = [vocabulary.tokens.index(bytes((byte,))) for byte in text.encode()]
    for left in (len(letters), None):
        try:
            constraint = compile_grammar(grammar, spec, vocabulary, Frame(max_new_tokens=left))
        except RequestError:
            assert (spec, left) in (("a{4}", 3), (PERSON, len(letters)))  # it does not fit
            continue
        for letter in letters:
            constraint.advance(letter)
        assert constraint.is_over is constraint.fork().is_over is is_over


def test_a_text_before_the_answer_is_no_part_of_it() -> None:
    vocabulary, rng = vocabulary_of("byte_level"), random.Random(11)
    led = 0
    for _ in range(60):
        frame = Frame(start_text=" ", max_new_tokens=30)
        ids = walk(compile_grammar("regex", " ?[ab]{2}", vocabulary, frame), vocabulary, rng, 30)
        text = decoded("byte_level", ids)
        led += text.startswith(" ")
        assert re.fullmatch(" ?[ab]{2}", text.removeprefix(" "))
    assert led > 5


def test_forbidden_words_and_an_expression_never_contradict() -> None:
    vocabulary, rng = vocabulary_of("byte_level"), random.Random(12)
    for _ in range(20):
        frame = Frame(forbidden=("cat", "at"), max_new_tokens=40)
        text = decoded(
            "byte_level", walk(compile_grammar("regex", "[cat ]{3,9}t", vocabulary, frame), vocabulary, rng, 40)
        )
        assert re.fullmatch("[cat ]{3,9}t", text)
        assert not re.search(r"(?<!\w)c?at", text)
    frame = Frame(forbidden=("cat",))
    ids = walk(compile_grammar("choice", ["cat", "dog", "concat"], vocabulary, frame), vocabulary, rng, 20)
    assert decoded("byte_level", ids) in ("dog", "concat")
    with pytest.raises(RequestError, match="leave none"):
        compile_grammar("choice", ["cat", "the cats"], vocabulary, frame)


def test_a_token_that_the_model_forces_first_is_let_through_and_writes_nothing() -> None:
    vocabulary = vocabulary_of("byte_level")
    constraint = compile_grammar("choice", ["a"], vocabulary, Frame(first_token=0, max_new_tokens=3))
    assert tokens_of(constraint.mask()) == [0]
    constraint.advance(0)
    assert [vocabulary.tokens[token] for token in tokens_of(constraint.mask())] == [b"a"]


def test_a_sequence_that_leaves_the_grammar_ends(caplog: pytest.LogCaptureFixture) -> None:
    """Beams may be handed a token of no likelihood at all."""
    vocabulary = vocabulary_of("byte_level")
    constraint = compile_grammar("choice", ["a"], vocabulary)
    with caplog.at_level(logging.WARNING):
        constraint.advance(vocabulary.tokens.index(b"z"))
    assert tokens_of(constraint.mask()) == list(vocabulary.eos_ids)
    assert "leaves its grammar" in caplog.text


@pytest.mark.parametrize(
    ("kind", "spec", "message"),
    [
        ("json_schema", {"type": "strin"}, "Invalid type: strin"),
        ("json_schema", {"not": {}}, "not"),
        ("json_schema", {"enum": []}, "Unsatisfiable"),
        ("json_schema", [1], "expected an object"),
        ("regex", "a(", "unclosed group"),
        ("regex", "(?=a)b", "look-around"),
        ("regex", r"(a)\1", "backreferences"),
        ("regex", 7, "expected a text"),
        ("choice", [], "at least one"),
        ("choice", ["a", 1], "list of texts"),
        ("regex", "\u3042", "cannot write"),
        ("json_schema", {"const": "\u3042"}, "cannot write"),
    ],
    ids=str,
)
def test_what_cannot_be_followed_is_refused_by_name(kind: Any, spec: Any, message: str) -> None:
    with pytest.raises(RequestError, match=f"{kind}: .*{message}"):
        compile_grammar(kind, spec, vocabulary_of("unigram"))


def test_no_end_of_sequence_and_no_room_are_refused() -> None:
    vocabulary = vocabulary_of("byte_level")
    with pytest.raises(RequestError, match="end-of-sequence"):
        compile_grammar("json", None, vocabulary.ending_with([]))
    with pytest.raises(RequestError, match="raise max_new_tokens"):
        compile_grammar("json_schema", PERSON, vocabulary, Frame(max_new_tokens=6))
