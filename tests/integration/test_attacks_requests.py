"""Attacks that are requests: bodies, names, keys and parameters that were made to hurt."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rayloom.generation import TextGenerator
from rayloom.serving.access import Access, LiveKeys
from rayloom.serving.keys import KeyStore, Terms
from rayloom.serving.model import TextGeneratorModel
from tests.integration.attacking import PROMPT, Service, bystander, flat_memory, leaks
from tests.integration.local_server import LIMITS, listening

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
BOMB = "(a{1,1000}){1,1000}"


def deep(levels: int, inner: Any = 1) -> Any:
    for _ in range(levels):
        inner = {"a": inner}
    return inner


def tree_of_references(width: int) -> dict[str, Any]:
    """Walked down as written it has width ** depth leaves."""
    node = {"type": "object", "properties": {str(place): {"$ref": "#/$defs/a"} for place in range(width)},
            "required": [str(place) for place in range(width)]}  # fmt: skip
    return {"$defs": {"a": node}, "$ref": "#/$defs/a"}


@pytest.fixture(scope="module")
def generator(tiny_artifact_llama: Path) -> TextGenerator:
    return TextGenerator(tiny_artifact_llama, max_batch_size=4)


@pytest.fixture(scope="module")
def service(generator: TextGenerator) -> Iterator[Service]:
    limits = dataclasses.replace(LIMITS, max_in_flight=64)
    with listening(TextGeneratorModel(generator, max_time_s=60.0), limits) as url:
        yield Service(url, generator)


def test_deep_json(service: Service) -> None:
    with bystander(service):
        for path in ("/generate", "/answer", COMPLETIONS, CHAT, "/tokenize", "/detokenize"):
            for opening, closing, levels in ((b"[", b"]", 70), (b'{"a":', b"}", 990), (b"[", b"]", 100_000)):
                body = b'{"json_schema": ' + opening * levels + b"1" + closing * levels + b"}"
                for raw in (body, opening * levels):
                    answer = service.post(raw, path)
                    assert answer.status_code in (400, 422), (levels, answer.text)
                    assert len(answer.content) < 2000


def test_deep_schemas(service: Service) -> None:
    with bystander(service):
        for levels in (60, 66, 400):
            schema = deep(levels)
            form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
            chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4, "response_format": form}
            expected = (200, 400) if levels < 64 else (400, 422)
            assert service.post({"prompt": "x", "max_tokens": 4, "json_schema": schema}).status_code in expected
            assert service.post(chat, CHAT).status_code in expected
            assert service.post({"prompt": "x", "json_schema": schema}, "/generate").status_code in expected


@pytest.mark.parametrize(
    "raw",
    [
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\xc0\xaf"}',
        b'{"prompt": "\xed\xa0\x80"}',
        b'{"\xff": 1}',
        b'{"prompt": "\\ud800"}',
        b'{"\\ud800": 1, "prompt": "x"}',
        b'{"prompt": "x", "stop": ["\\udfff"]}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "\\ud800", "content": "x"}]}',
        b'{"question": "\\ud800"}',
        b'{"model": "\\ud800", "prompt": "x"}',
        b'{"prompt": "x", "logit_bias": {"\\ud800": 1}}',
    ],
)
@pytest.mark.parametrize("path", ["/generate", "/answer", COMPLETIONS, CHAT, "/tokenize", "/detokenize"])
def test_bad_unicode(service: Service, path: str, raw: bytes) -> None:
    answer = service.post(raw, path)
    assert answer.status_code in (400, 422), answer.text
    assert answer.json()["error"]["message"].isprintable()


def test_bad_unicode_elsewhere(service: Service) -> None:
    with bystander(service):
        lines = [b"GET /v1/models/%ed%a0%80%ff HTTP/1.1", b"GET /\xff HTTP/1.1", b"GET /v1/models/%00 HTTP/1.1"]
        for line in lines:
            answer = service.send([line + b"\r\nHost: x\r\nConnection: close\r\n\r\n"])
            assert answer.startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 400 "))
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
        answer = service.send([head + b'X-Request-Timeout: 1\xe9\r\nContent-Length: 15\r\n\r\n{"prompt": "x"}'])
        assert answer.startswith(b"HTTP/1.1 400 ")


TRAVERSALS = [
    "../../../../etc/passwd",
    "/etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "..\\..\\windows\\win.ini",
    "file:///etc/passwd",
    "s3://bucket/model",
    "hf.co/../../x",
    "tiny\x00",
    "a" * 100_000,
    "{{7*7}}",
    "%s%s%n",
]


def test_model_names_that_lead_elsewhere(service: Service) -> None:
    with bystander(service):
        for name in TRAVERSALS:
            check_unknown(service, name)


def check_unknown(service: Service, name: str) -> None:
    chat = {"messages": [{"role": "user", "content": "x"}]}
    for path, body in ((COMPLETIONS, {"prompt": "x"}), ("/tokenize", {"prompt": "x"}), (CHAT, chat)):
        answer = service.post({**body, "model": name}, path)
        assert answer.status_code == 404, answer.text
        assert "root:" not in answer.text
        assert len(answer.text) < 1000
    quoted = "".join(f"%{byte:02x}" for byte in name[:1000].encode())
    for raw in (quoted.encode(), b"../../../etc/passwd", b"%2e%2e/%2e%2e/etc/passwd"):
        answer_bytes = service.send([b"GET /v1/models/" + raw + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"])
        assert answer_bytes.startswith(b"HTTP/1.1 404 ")
        assert b"root:" not in answer_bytes


INJECTIONS = [
    "{{ 7 * 7 }}",
    "{% for x in y %}{{ x }}{% endfor %}",
    "{question}{context}{0.__class__}%(question)s$question",
    "{{ x.__init__.__globals__ }}",
]


@pytest.mark.parametrize("text", INJECTIONS)
def test_templates_in_prompts_stay_text(service: Service, generator: TextGenerator, text: str) -> None:
    from rayloom.data import PromptInput

    def shown(message: str) -> str:
        ids = service.post({"messages": [{"role": "user", "content": message}]}, "/tokenize").json()["tokens"]
        prompt: str = service.post({"tokens": ids}, "/detokenize").json()["prompt"]
        return prompt

    tokenizer = generator.encoder.tokenizer
    plain = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))
    assert plain in shown(text)
    assert shown(text).replace(plain, "x") == shown("x")
    assert (
        generator.encoder.prompt_ids(PromptInput(text))
        == (service.post({"messages": [{"role": "user", "content": text}]}, "/tokenize").json()["tokens"])
    )
    for part in ({"role": text, "content": "x"}, {"role": "user", "content": "x", "name": text}):
        assert service.post({"messages": [part]}, CHAT).status_code == 400


REGEXES = [BOMB, "(a|a)*b" * 200, "(.*a){50}", "(x+x+)+y", "((a?){300}a{300})", "a{2000000000}", "(" * 5000,
           "(" * 900 + "a" + ")" * 900, "[" * 20_000, "\\p{L}{1,5000}", "(.{1,200}){1,200}!", "(?i)" + "(ab|cd)" * 2000,
           "(?=x)", "\\1", "a**", "*", "\x00"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("regex", REGEXES, ids=lambda regex: regex[:20])
def test_regex_bombs(service: Service, regex: str) -> None:
    with bystander(service), flat_memory(256):
        for body in ({"regex": regex}, {"json_schema": {"type": "string", "pattern": regex}}):
            answer = service.post({"prompt": PROMPT, "max_tokens": 6, **body})
            assert answer.status_code in (200, 400), answer.text


SCHEMAS: list[Any] = [
    tree_of_references(30),
    {"$ref": "#"},
    {"$ref": "#/nowhere"},
    {"$ref": "https://example.org/schema.json"},
    {"$ref": "file:///etc/passwd"},
    {"type": "array", "minItems": 10**9},
    {"type": "string", "minLength": 10**12, "maxLength": 10**13},
    {"type": "array", "minItems": float("inf")},
    {"type": "object", "required": 5},
    {"type": "object", "required": [["x"], {}]},
    {"type": "object", "properties": {str(place): {"type": "integer"} for place in range(600)}},
    {"anyOf": [{"anyOf": [{"const": str(place)} for place in range(20)]}] * 20},
    {"enum": ["x" * 50] * 300},
    {"type": "integer", "minimum": -(10**300), "maximum": 10**300, "multipleOf": 1e-300},
    {"type": "no such type"},
]


@pytest.mark.slow
@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: str(schema)[:30])
def test_schema_bombs(service: Service, schema: Any) -> None:
    with bystander(service), flat_memory(256):
        answer = service.post({"prompt": PROMPT, "max_tokens": 12, "json_schema": schema})
        assert answer.status_code in (200, 400), answer.text
        assert len(answer.content) < 4000


HUGE = 10**30
PARAMETERS: list[dict[str, Any]] = [
    *({name: HUGE} for name in ("n", "best_of", "num_beams", "num_return_sequences", "max_tokens", "max_new_tokens",
                                "top_k", "seed", "min_new_tokens", "no_repeat_ngram_size", "eos_token_id",
                                "pad_token_id", "bos_token_id", "max_length", "min_length")),
    *({name: 1e308} for name in ("temperature", "repetition_penalty", "length_penalty", "diversity_penalty",
                                 "encoder_repetition_penalty", "max_time")),
    *({name: 5e-324} for name in ("temperature", "repetition_penalty", "top_p", "typical_p", "max_time", "eta_cutoff",
                                  "encoder_repetition_penalty", "epsilon_cutoff", "min_p")),
    {"num_beams": 4, "length_penalty": 1e308},
    {"num_beams": 4, "length_penalty": -1e308},
    {"num_beams": 4, "num_beam_groups": 4, "diversity_penalty": 1e308},
    {"num_beams": 2, "num_beam_groups": 10**9},
    {"exponential_decay_length_penalty": [0, 1e308]},
    {"exponential_decay_length_penalty": [-(10**30), -1e308]},
    {"logit_bias": {str(place): 100 for place in range(50_000)}},
    {"logit_bias": {"-1": 1}},
    {"logit_bias": {str(HUGE): 1}},
    {"logit_bias": {str(place): -100 for place in range(400)}},
    {"stop": ["x" * 100_000]},
    {"stop": ["x"] * 100_000},
    {"stop_strings": ["x"] * 9000},
    {"stop_strings": [1] * 200_000},
    {"stop": ["the " * 4000]},
    {"required_words": ["mill"] * 1000},
    {"required_words": ["mill " * 3000]},
    {"forbidden_words": [str(place) for place in range(1000)]},
    {"choice": [str(place) for place in range(1024)]},
    {"choice": ["a" * 19_000, "b"]},
    {"prefix": "x" * 19_000},
    {"prefix": "x" * 90_000},
    {"n": 8, "best_of": 8, "max_tokens": 2},
    {"eos_token_id": list(range(5000))},
    {"prompt": [[5]] * 100_000},
    {"prompt": ["x"] * 100_000},
    {"prompt": [5] * 100_000},
    {"prompt": [HUGE]},
    {"prompt": "x" * 4_000_000},
    {"prompt": ""},
    {"prompt": []},
    {"prompt": [[]]},
    {f"field {place}": 1 for place in range(100_000)},
    {"x" * 3_000_000: 1},
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("more", PARAMETERS, ids=lambda more: str(more)[:40])
def test_parameters_beyond_reason(service: Service, more: dict[str, Any]) -> None:
    """Requests beside it have their answers, too: what breaks a step breaks it for all."""
    body = {"prompt": PROMPT, "max_tokens": 4, **more}
    if "max_new_tokens" in more or "max_length" in more:
        del body["max_tokens"]
    with bystander(service), flat_memory(256):
        for sampled in ({}, {"do_sample": True}):
            answer = service.post({**body, **sampled}, **{"X-Request-Timeout": "5"})
            assert answer.status_code in (200, 400, 413, 504), answer.text
            assert len(answer.content) < 20_000


WORST: list[dict[str, Any]] = [
    {"top_k": HUGE, "do_sample": True},
    {"no_repeat_ngram_size": HUGE},
    {"temperature": 1e308},
    {"encoder_repetition_penalty": 5e-324},
    {"num_beams": 4, "length_penalty": 1e308},
    {"exponential_decay_length_penalty": [-HUGE, 1.0]},
    {"seed": HUGE, "do_sample": True},
    {"n": HUGE},
    {"best_of": HUGE},
    {"logit_bias": {str(place): 100 for place in range(50_000)}},
    {"stop": ["the " * 4000]},
    {"stop_strings": ["x"] * 9000},
    {"required_words": ["mill"] * 1000},
    {"choice": ["a" * 19_000, "b"]},
    {"eos_token_id": list(range(5000))},
    {"prompt": [[5]] * 100_000},
    {"regex": BOMB},
    {"regex": "(.*a){20}"},
    {"regex": "[" * 3000},
    {"json_schema": tree_of_references(5)},
    {"json_schema": {"type": "array", "minItems": float("inf")}},
    {"json_schema": {"type": "object", "required": 5}},
]
"""What once broke a step, and so everybody's answers, held up the event loop, or was a 500; with the others' best."""


def test_the_worst_of_all(service: Service) -> None:
    with bystander(service), flat_memory(256):
        for more in WORST:
            answer = service.post({"prompt": PROMPT, "max_tokens": 4, **more})
            assert answer.status_code in (200, 400), (str(more)[:100], answer.text)
            assert len(answer.content) < 4000


def test_lists_of_mistakes_are_one_mistake(service: Service) -> None:
    bad = ["x"] * 200_000
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/detokenize", {"tokens": bad}),
        ("/tokenize", {"messages": bad}),
        (CHAT, {"messages": bad}),
        (CHAT, {"messages": [{"role": "user", "content": bad}]}),
        (COMPLETIONS, {"prompt": [*bad, 1]}),
        (COMPLETIONS, {"prompt": "x", "logit_bias": dict.fromkeys(map(str, range(100_000)), "x")}),
        ("/generate", {"prompt": "x", "required_words": [1] * 200_000}),
    ]
    with bystander(service), flat_memory(256):
        for path, body in bodies:
            answer = service.post(body, path)
            assert answer.status_code in (400, 422), answer.text
            assert len(answer.content) < 1000


def test_guessing_keys(generator: TextGenerator, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = KeyStore(tmp_path / "keys.yaml")
    secret = store.create("app", Terms())
    guesses = [b"", b" ", b"x", secret[:-1].encode(), secret.encode() + b"x", secret.upper().encode(), b"\xff\xfe",
               b"rl-' OR 1=1 --", b"../keys.yaml", store.all()[0].sha256.encode(), b"a" * 50_000]  # fmt: skip
    guesses += [b"rl-" + os.urandom(16).hex().encode() for _ in range(300)]
    request = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nAuthorization: Bearer "
    with listening(TextGeneratorModel(generator, max_time_s=60.0), access=Access(LiveKeys(store.path))) as url:
        service = Service(url, generator)
        with caplog.at_level(logging.DEBUG), flat_memory(64):
            for guess in guesses:
                answer = service.send([request + guess + b"\r\nConnection: close\r\n\r\n"])
                assert answer.startswith(b"HTTP/1.1 401 "), guess
                assert b"www-authenticate: bearer" in answer.lower()
                assert secret.encode() not in answer
            two = b"\r\nAuthorization: Bearer ".join([secret.encode(), secret.encode()])
            assert service.send([request + two + b"\r\nConnection: close\r\n\r\n"]).startswith(b"HTTP/1.1 401 ")
        good = service.post({"prompt": PROMPT, "max_tokens": 2}, Authorization=f"Bearer {secret}")
        assert good.status_code == 200
        assert secret not in caplog.text
        assert "rl-" not in caplog.text
    assert leaks(generator) == {}


def test_what_is_measured_of_a_guess_says_nothing_of_keys(tmp_path: Path) -> None:
    """The hash is looked up, so that a guess with a good beginning is as far off as any other."""
    store = KeyStore(tmp_path / "keys.yaml")
    secret = store.create("app", Terms()).encode()
    keys = LiveKeys(store.path)
    assert keys.find(secret) is not None
    stored = json.dumps(list(keys._keys))
    assert secret.decode() not in stored
    assert all(keys.find(secret[:length]) is None for length in range(len(secret)))
