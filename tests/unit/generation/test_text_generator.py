from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

import rayloom
from rayloom.artifacts import GoldenCase, open_artifact
from rayloom.config import GenerationConfig
from rayloom.data import PromptInput
from rayloom.errors import ArtifactError, RequestError
from rayloom.generation import TextGenerator, make_golden, replay_golden
from rayloom.generation.one_liners import open_generator
from rayloom.generation.text_generator import _without_start
from tests.unit.generation.artifacts import make_artifact

QUESTIONS = ["Where does river number 3 flow?", "River 4?", "Where does it flow to in winter and in spring?"]


@pytest.fixture(scope="module", params=["t5", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYLOOM_CACHE", str(tmp_path_factory.mktemp("cache")))
        return make_artifact(tmp_path_factory.mktemp(request.param), request.param, max_new_tokens=9)


@pytest.fixture(scope="module")
def generator(folder: Path) -> TextGenerator:
    return TextGenerator(folder, device="cpu")


def test_single_batch_call_and_stream_agree(generator: TextGenerator) -> None:
    contexts = ["Long ago.", None, "River 4 meets sea 1."]
    batch = generator.generate_batch(QUESTIONS, contexts=contexts, batch_size=2)
    for question, context, text in zip(QUESTIONS, contexts, batch, strict=True):
        assert generator.generate(question, context=context) == text
        assert generator(question, context=context) == text
        assert "".join(generator.stream(question, context=context)) == text
    assert len(set(batch)) > 1


def test_the_artifacts_defaults_and_a_callers_parameters(generator: TextGenerator) -> None:
    (output,) = generator.run([PromptInput(QUESTIONS[0])])
    assert len(output.sequences[0].token_ids) <= 9
    (longer,) = generator.run([PromptInput(QUESTIONS[0])], {"max_new_tokens": 20})
    assert longer.sequences[0].token_ids[:5] == output.sequences[0].token_ids[:5]
    bounded = generator.parameters({"max_length": 7})
    assert (bounded.max_length, bounded.max_new_tokens) == (7, None)
    texts = generator.generate(QUESTIONS[0], do_sample=True, num_generations=3, seed=1, temperature=3.0)
    assert len(texts) == 3
    assert (
        texts == generator.generate_batch(QUESTIONS, do_sample=True, num_return_sequences=3, seed=1, temperature=3.0)[0]
    )


def test_a_prefix_starts_the_answer(generator: TextGenerator) -> None:
    text = generator.generate(QUESTIONS[0], prefix="Into sea")
    assert text.startswith("Into sea")
    assert "".join(generator.stream(QUESTIONS[0], prefix="Into sea")) == text
    (output,) = generator.run([PromptInput(QUESTIONS[0], prefix="Into sea")])
    assert output.text == text


def test_the_space_between_prompt_and_answer_is_no_part_of_it(generator: TextGenerator) -> None:
    raw = generator.generator.generate([generator.request(PromptInput("River 4?"), GenerationConfig())], batch_size=1)
    assert generator.template.target_prefix in ("", " ")
    assert generator.run([PromptInput("River 4?")], {"max_new_tokens": 12})[0].text == raw[0].text.removeprefix(
        generator.template.target_prefix
    )


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"max_new_token": 5}, "did you mean 'max_new_tokens'"),
        ({"xyzzy": 1}, "unknown generation parameter 'xyzzy'"),
        ({"temperature": 0.5}, "do_sample"),
        ({"top_p": 7}, "top_p"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_beams"),
        ({"regex": "("}, "regex"),
        ({"num_generations": 2, "num_return_sequences": 2}, "same parameter"),
        ({"max_new_tokens": "many"}, "max_new_tokens"),
    ],
    ids=str,
)
def test_wrong_parameters_are_named(generator: TextGenerator, params: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        generator.generate("River 4?", **params)
    with pytest.raises(RequestError, match=message):
        generator.stream("River 4?", **params)


def test_wrong_inputs_are_named(generator: TextGenerator) -> None:
    with pytest.raises(RequestError, match="empty"):
        generator.generate("  ")
    with pytest.raises(RequestError, match="list of texts"):
        generator.generate_batch("River 4?")
    with pytest.raises(RequestError, match="generate_batch"):
        generator.generate(["River 4?"])
    with pytest.raises(RequestError, match="1 contexts for 2 texts"):
        generator.generate_batch(["a", "b"], contexts=["c"])
    with pytest.raises(RequestError, match="chat template"):
        generator.generate(messages=[{"role": "user", "content": "hello"}])
    assert generator.generate_batch([]) == []


def test_golden_prompts_are_replayed_at_opening(folder: Path, tmp_path: Path) -> None:
    golden = open_artifact(str(folder)).manifest.golden
    assert any(case.output_ids for case in golden)
    assert all(case.prompt_ids for case in golden)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    case = next(case for case in manifest["golden"] if case["output_ids"])
    case["output_ids"][0] += 1
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        ArtifactError, match="does not replay golden prompt 1 .*answer's token ids differ from position 0"
    ):
        TextGenerator(copy)
    assert TextGenerator(copy, replay_golden=False).generate("River 4?")
    assert TextGenerator(copy, precision="bf16").generate("River 4?")


def test_a_released_model_is_gone_and_the_engine_goes_on(folder: Path) -> None:
    generator = TextGenerator(folder, device="cpu")
    before, model = generator.generate("River 4?"), weakref.ref(generator.model)
    generator.release_model()
    gc.collect()
    assert model() is None
    assert generator.generate("River 4?") == before
    with pytest.raises(RequestError, match="do not release its model"):
        _ = generator.model


def test_another_template_does_not_replay(generator: TextGenerator) -> None:
    case = generator.artifact.manifest.golden[0]
    changed = GoldenCase(**case.model_dump() | {"prompt": case.prompt + "!"})
    with pytest.raises(ArtifactError, match="prompt's token ids"):
        replay_golden(generator.generator, generator.encoder, [changed])


def test_golden_answers_end_before_a_close_call(generator: TextGenerator) -> None:
    asked = [PromptInput(question) for question in QUESTIONS]
    loose = make_golden(generator.generator, generator.encoder, asked, min_margin=0.0, max_new_tokens=8)
    strict = make_golden(generator.generator, generator.encoder, asked, min_margin=1e9, max_new_tokens=8)
    assert [case.output_ids for case in strict] == [[], [], []]
    greedy = generator.run(asked, {"max_new_tokens": 8})
    assert [case.output_ids for case in loose] == [output.sequences[0].token_ids for output in greedy]


def test_a_plain_model_folder_takes_the_prompt_as_it_is(folder: Path) -> None:
    plain = TextGenerator(folder / "model")
    assert plain.artifact is None
    assert plain.template.task == "language-modeling"
    text = plain.generate("River 4?", max_new_tokens=5)
    assert "".join(plain.stream("River 4?", max_new_tokens=5)) == text
    if not plain.family.seq2seq:
        with pytest.raises(RequestError, match="128 positions"):
            plain.generate("River 4? " * 100)


def test_what_cannot_be_opened_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such folder"):
        TextGenerator(tmp_path / "absent")
    with pytest.raises(ArtifactError, match="neither an artifact"):
        TextGenerator(tmp_path)
    with pytest.raises(RequestError, match="device 'gpu'"):
        TextGenerator(tmp_path, device="gpu")


def test_one_liners_share_an_open_model(folder: Path) -> None:
    text = rayloom.generate_text(folder, "River 4?")
    assert rayloom.batch_generate(str(folder), ["River 4?"]) == [text]
    assert "".join(rayloom.stream_generate(folder, "River 4?")) == text
    assert open_generator(folder) is open_generator(str(folder))
    assert rayloom.generate_text(open_generator(folder), "River 4?", context="x") is not None


def test_import_rayloom_is_light_and_complete() -> None:
    code = "import sys, rayloom; print('torch' in sys.modules, 'ray' in sys.modules); dir(rayloom)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
    assert all(getattr(rayloom, name) is not None for name in rayloom.__all__)
    assert set(rayloom.__all__) <= set(dir(rayloom))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = rayloom.nonsense


@pytest.mark.parametrize(
    ("pieces", "start", "expected"),
    [
        ([" ", "a", "b"], " ", ["a", "b"]),
        ([" a"], " ", ["a"]),
        (["a"], " ", ["a"]),
        (["x", "y", "z"], "xy", ["z"]),
        (["x"], "xy", ["x"]),
        ([], " ", []),
        (["a", " b"], "", ["a", " b"]),
    ],
)
def test_the_start_is_taken_from_the_pieces(pieces: list[str], start: str, expected: list[str]) -> None:
    assert list(_without_start(iter(pieces), start)) == expected


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_lower_precisions_run_and_keep_no_second_copy(folder: Path, precision: str) -> None:
    generator = TextGenerator(folder, precision=precision)
    assert isinstance(generator.generate("River 4?"), str)
    with pytest.raises(RequestError, match=f"opened in {precision}"):
        _ = generator.model


def test_an_unknown_precision_is_named(folder: Path) -> None:
    with pytest.raises(RequestError, match="'fp8': expected fp32, bf16, int8"):
        TextGenerator(folder, precision="fp8")
