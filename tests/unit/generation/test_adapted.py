"""Several adapters on one model that is open: each writes as its own artifact does, and only its own kind is let in."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from torch import nn

from rayloom.artifacts import BASE_FOLDER, BaseModelRef, Limits, Manifest, publish
from rayloom.config import GenerationConfig, LoraConfig, ServingConfig
from rayloom.data import Encoder, PromptInput, PromptTemplate
from rayloom.errors import ArtifactError, RequestError
from rayloom.generation import TextGenerator, TransformersGenerator, make_golden
from rayloom.models import attach_lora, copy_base, load_model, resolve_source, save_model
from rayloom.serving.answering import answer
from rayloom.serving.calls import Call, Completion, Outcome, Part, Prompt, Started, TextCall
from rayloom.serving.model import TextGeneratorModel
from tests.unit.generation.artifacts import ROWS, run_config

ASKED = ["Where does river number 3 flow?", "River 7", "sea"]


def publish_llama(folder: Path, name: str, *, init_seed: int = 3, adapter_seed: int | None = None, **size: int) -> str:
    """A LLaMA of random weights; with a seed, an adapter on it that carries it."""
    folder = folder / name
    (folder / "build").mkdir(parents=True)
    texts = [" ".join(row.values()) for row in ROWS]
    source = resolve_source(run_config(folder, "llama", **size).model, corpus=lambda: texts, seed=init_seed)
    loaded = load_model(source)
    # Each has a template of its own, to be told apart by prompts as well.
    template = PromptTemplate(task="question-answering", seq2seq=False, prompt=f"{name}: {{input}}")
    model = loaded.model
    if adapter_seed is None:
        copy_base(source, folder / "build" / "model")
    else:
        model = attach_lora(model, LoraConfig(r=4), loaded.family)
        torch.manual_seed(adapter_seed)
        for parameter in (p for p in model.parameters() if p.requires_grad):
            nn.init.normal_(parameter, std=0.7)
        save_model(model, loaded.tokenizer, folder / "build" / "adapter")
        copy_base(source, folder / "build" / BASE_FOLDER)
    model.eval()
    encoder = Encoder(loaded.tokenizer, template, max_input_length=48, max_target_length=12)
    generator = TransformersGenerator(model, loaded.tokenizer, seq2seq=False)
    manifest = Manifest(
        name=name,
        kind="full" if adapter_seed is None else "adapter",
        family="llama",
        seq2seq=False,
        base=None if adapter_seed is None else BaseModelRef(name=BASE_FOLDER),
        template=template.model_dump(),
        limits=Limits(max_input_length=48, max_target_length=12),
        generation=GenerationConfig(max_new_tokens=10),
        golden=make_golden(generator, encoder, [PromptInput(text) for text in ASKED[:2]]),
        data_hash="d",
        config_hash="c",
        code_version="0",
        created="2026-01-01T00:00:00+00:00",
    )
    (folder / "build" / "config.yaml").write_text("model: {name: tiny}\n")
    return publish(folder / "build", str(folder / "artifact"), manifest)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("llamas")
    adapters = {name: publish_llama(root, name, adapter_seed=seed) for name, seed in (("fr", 1), ("de", 2), ("it", 4))}
    other = publish_llama(root, "other", init_seed=5, adapter_seed=1)
    return {"base": publish_llama(root, "base"), "other": other, **adapters}


@pytest.fixture(scope="module")
def several(places: dict[str, str]) -> TextGenerator:
    """Three adapters, of which two fit in memory at once."""
    adapters = {name: places[name] for name in ("fr", "de", "it")}
    return TextGenerator(places["base"], adapters=adapters, max_adapters=2)


def test_each_adapter_writes_as_its_own_artifact_does(several: TextGenerator, places: dict[str, str]) -> None:
    written = {}
    for name in ("fr", "de", "it"):
        alone = TextGenerator(places[name])
        written[name] = several.adapted(name).generate_batch(ASKED)
        assert written[name] == alone.generate_batch(ASKED)
    written["base"] = several.generate_batch(ASKED)
    assert written["base"] == TextGenerator(places["base"]).generate_batch(ASKED)
    assert len({tuple(texts) for texts in written.values()}) == 4


def test_adapters_take_turns_where_not_all_fit(several: TextGenerator) -> None:
    alone = {name: several.adapted(name).generate(ASKED[0]) for name in several.adapters}
    served = TextGeneratorModel(several, max_time_s=60.0)

    async def all_at_once() -> list[Outcome]:
        calls = [Call(Prompt(ASKED[0]), model=name) for name in several.adapters] * 4
        return await asyncio.gather(*(answer(served, call) for call in calls))

    for outcome in asyncio.run(all_at_once()):
        assert isinstance(outcome, Completion)
        assert outcome.started.adapter == outcome.started.model
        assert outcome.texts == (alone[outcome.started.model],)
    assert served.figures().tokens_in_flight == 0


def test_a_served_adapter_is_a_model_of_its_own(several: TextGenerator) -> None:
    served = TextGeneratorModel(several, max_time_s=60.0, changes={"max_new_tokens": 3})
    assert [(each.name, each.parent) for each in served.info.adapters] == [
        (name, "base") for name in ("fr", "de", "it")
    ]

    async def events() -> list[Started | Part]:
        return [event async for event in served.stream(Call(Prompt("sea"), model="de"))]

    started, *parts = asyncio.run(events())
    assert isinstance(started, Started)
    assert (started.model, started.adapter) == ("de", "de")
    text = "".join(part.text for part in parts if isinstance(part, Part))
    assert text == several.adapted("de").generate("sea", max_new_tokens=3)
    prompt = TextCall(Prompt("sea"), model="de")
    assert len(served.tokens(prompt).token_ids) == started.prompt_tokens
    fingerprints = {asyncio.run(served.complete(Call(Prompt("sea"), model=name))).started.fingerprint
                    for name in (None, "fr", "de")}  # fmt: skip
    assert len(fingerprints) == 3


def test_tokens_in_flight_are_those_of_prompts_and_of_answers_to_come(several: TextGenerator) -> None:
    served = TextGeneratorModel(several, max_time_s=60.0)

    async def begun() -> tuple[int, int]:
        call = Call(Prompt("sea"), {"max_new_tokens": 5, "do_sample": True, "num_return_sequences": 2}, model="fr")
        events = served.stream(call)
        first = await anext(events)
        during = served.figures().tokens_in_flight
        await events.aclose()
        assert isinstance(first, Started)
        return during, first.prompt_tokens

    during, num_prompt = asyncio.run(begun())
    assert during == num_prompt + 2 * 5
    assert served.figures().tokens_in_flight == 0


def test_a_model_may_be_called_something_else(places: dict[str, str]) -> None:
    served = TextGeneratorModel.open(ServingConfig(artifact=places["base"], name="assistant", replay_golden=False))
    assert served.info.name == "assistant"


@pytest.mark.parametrize(
    ("base", "adapter", "message"),
    [
        ("base", "other", "is an adapter of another model"),
        ("base", "base", "is no adapter"),
        ("fr", "other", "is an adapter of another model"),
    ],
)
def test_what_does_not_belong_is_refused(places: dict[str, str], base: str, adapter: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        TextGenerator(places[base], adapters={"x": places[adapter]}, replay_golden=False)


def test_an_adapter_may_stand_beside_a_model_that_is_one(places: dict[str, str]) -> None:
    both = TextGenerator(places["fr"], adapters={"de": places["de"]}, replay_golden=False)
    assert both.adapted("de").generate("sea") == TextGenerator(places["de"], replay_golden=False).generate("sea")
    with pytest.raises(RequestError, match="there is no adapter 'it'; there are: de"):
        both.adapted("it")
    with pytest.raises(ArtifactError, match="has the name of the model itself"):
        TextGenerator(places["fr"], adapters={"fr": places["de"]}, replay_golden=False)
