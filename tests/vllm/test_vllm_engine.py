"""vLLM itself behind the engine's face; the oracle is Rayloom's engine, in fp32."""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rayloom import TextGenerator
from rayloom.engine import EngineRequest, EngineService, NewToken, Params, TokenScore
from rayloom.errors import ArtifactError, RequestError
from tests.unit.generation.test_adapted import publish_llama

pytestmark = pytest.mark.slow

# Attention of vLLM for CPUs wants heads of such a width.
_SIZE = {"hidden_size": 128, "num_heads": 2}
_VOCABULARY = 300


def _python() -> str:
    script = Path(__file__).parents[2] / "benchmarks" / "peers" / "setup.py"
    spec = importlib.util.spec_from_file_location("peers_setup", script)
    assert spec is not None
    assert spec.loader is not None
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    if reason := setup.absence("vllm"):
        pytest.fail(f"vLLM is not there: {reason}")
    return str(setup.python_of("vllm"))


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYLOOM_VLLM_PYTHON", _python())
        yield


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("llamas")
    adapters = {name: publish_llama(root, name, adapter_seed=seed, **_SIZE) for name, seed in (("fr", 3), ("de", 4))}
    return {"base": publish_llama(root, "base", **_SIZE), **adapters}


@pytest.fixture(scope="module")
def sides(places: dict[str, str]) -> tuple[TextGenerator, TextGenerator]:
    """The same artifact and adapters: over vLLM, and over Rayloom's engine."""
    adapters = {name: places[name] for name in ("fr", "de")}
    theirs = TextGenerator(places["base"], adapters=adapters, engine="vllm", max_batch_size=8, cache_gib=0.125)
    return theirs, TextGenerator(places["base"], adapters=adapters)


def services(sides: tuple[TextGenerator, TextGenerator]) -> tuple[EngineService, EngineService]:
    theirs, ours = sides
    return theirs.generator.service, ours.generator.service


def rounded(score: TokenScore) -> object:
    return pytest.approx(score.logprob, abs=1e-3), [(token, pytest.approx(each, abs=1e-3)) for token, each in score.top]


def some_request(dice: random.Random) -> EngineRequest:
    params = Params(
        max_new_tokens=dice.randint(1, 40),
        min_new_tokens=dice.choice((0, 1)),
        repetition_penalty=dice.choice((1.0, 1.0, 1.3)),
        eos_token_ids=tuple(dice.sample(range(_VOCABULARY), dice.choice((0, 1, 20)))),
        logprobs=dice.choice((None, None, 2)),
        logit_bias=dice.choice(((), ((7, 3.0), (9, -100.0)))),
    )
    prompt = tuple(dice.randrange(_VOCABULARY) for _ in range(dice.randint(1, 60)))
    return EngineRequest(start_ids=prompt, params=params, adapter=dice.choice((None, "fr", "de")))


def test_random_requests_get_the_tokens_of_rayloom_s_engine(sides):
    dice = random.Random(0)
    requests = [some_request(dice) for _ in range(100)]
    theirs, ours = services(sides)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(theirs.result, requests))
    assert {answer.reason for (answer,) in found} == {"stop", "length"}
    for request, (answer,) in zip(requests, found, strict=True):
        (expected,) = ours.result(request)
        assert (answer.tokens, answer.reason) == (expected.tokens, expected.reason), request
        if expected.logprobs is not None:
            assert [(each.logprob, list(each.top)) for each in answer.logprobs] == [
                rounded(each) for each in expected.logprobs
            ], request


def test_the_golden_prompts_decide_who_is_let_in(places, tmp_path):
    folder = Path(places["base"])
    copy = tmp_path / "artifact"
    copy.mkdir()
    for path in folder.rglob("*"):
        target = copy / path.relative_to(folder)
        target.mkdir() if path.is_dir() else target.write_bytes(path.read_bytes())
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["golden"][0]["output_ids"][0] += 1
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="golden prompt 1"):
        TextGenerator(str(copy), engine="vllm", cache_gib=0.125)


def test_texts_stop_strings_and_streams_are_the_same(sides):
    theirs, ours = sides
    asked = "Where does river number 3 flow?"
    whole = ours.generate(asked, max_new_tokens=30)
    stop = whole[len(whole) // 2 :][:3]
    for options in ({}, {"stop_strings": [stop]}, {"prefix": "Into"}):
        expected = ours.generate(asked, max_new_tokens=30, **options)
        assert theirs.generate(asked, max_new_tokens=30, **options) == expected
        assert "".join(theirs.stream(asked, max_new_tokens=30, **options)) == expected
    assert theirs.adapted("de").generate(asked) == ours.adapted("de").generate(asked) != ours.generate(asked)


def test_a_seed_gives_the_same_samples_in_any_company(sides):
    theirs, _ = sides
    options = {"do_sample": True, "temperature": 1.5, "seed": 11, "num_return_sequences": 3, "max_new_tokens": 12}
    alone = theirs.generate("River 7", **options)
    assert len(set(alone)) == 3
    with ThreadPoolExecutor(6) as pool:
        company = [pool.submit(theirs.generate, f"sea {n}", max_new_tokens=20) for n in range(5)]
        assert pool.submit(theirs.generate, "River 7", **options).result() == alone
        assert all(each.result() is not None for each in company)


def test_a_request_that_is_left_frees_its_place(sides):
    theirs, _ = services(sides)
    request = EngineRequest(start_ids=(3, 4), params=Params(max_new_tokens=100))
    events = theirs.events(request)
    assert isinstance(next(events), NewToken)
    events.close()
    after = theirs.result(EngineRequest(start_ids=(3, 4), params=Params(max_new_tokens=2)))
    assert len(after[0].tokens) == 2
    assert theirs.stats().num_sequences == 0


def test_what_vllm_has_not_is_refused(sides):
    theirs, _ = sides
    for options in (
        {"num_beams": 2},
        {"no_repeat_ngram_size": 2},
        {"choice": ["a", "b"]},
        {"typical_p": 0.9, "do_sample": True},
    ):
        with pytest.raises(RequestError, match="engine vllm"):
            theirs.generate("River 7", **options)
