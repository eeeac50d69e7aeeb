"""A config file loads as written, and what is wrong in it is named with line, key and remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rayloom.config import (
    EvaluateJob,
    OutputConfig,
    RunConfig,
    ServingConfig,
    config_hash,
    dump_yaml,
    json_schema,
    load_job,
    load_run_config,
    load_section,
    nearest,
    validate,
)
from rayloom.errors import ConfigError

Write = Callable[[str], Path]
BASE = "model:\n  name: t5-small\ndataset:\n  train_file: train.jsonl\n"  # four lines
CLASSIC = """\
model:
  name: t5-small
  task_type: question-answering
  generation_type: text2text
dataset:
  train_file: data/train.json
  validation_file: data/validation.json
  test_file: /elsewhere/test.json
  input_column: question
  target_column: answer
  context_column: context
  max_input_length: 256
  max_target_length: 64
training:
  num_epochs: 10
  batch_size: 16
  learning_rate: 3e-4
  warmup_steps: 100
  weight_decay: 0.01
  max_grad_norm: 1.0
  gradient_accumulation_steps: 2
  gradient_checkpointing: true
  fp16: false
  bf16: true
  seed: 7
generation:
  max_length: 64
  num_beams: 4
  length_penalty: 1.2
  early_stopping: true
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(text: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return written


def test_a_classic_config_loads_with_its_names_and_meanings(write: Write, tmp_path: Path) -> None:
    config = load_run_config(write(CLASSIC))
    assert config.model.generation_type == "seq2seq"
    assert config.dataset.train_file == str(tmp_path / "data/train.json")
    assert config.dataset.test_file == "/elsewhere/test.json"
    assert config.dataset.context_column == "context"
    assert config.training.learning_rate == 3e-4
    assert config.training.precision == "bf16"
    assert (config.generation.num_beams, config.generation.early_stopping) == (4, True)
    assert config.lora is None


def test_every_name_of_row_a3_is_a_key() -> None:
    sections = {name: field.annotation for name, field in RunConfig.model_fields.items()}
    wanted = {
        "model": "name task_type generation_type",
        "dataset": "train_file validation_file test_file input_column target_column context_column "
        "max_input_length max_target_length",
        "training": "num_epochs batch_size learning_rate warmup_steps warmup_ratio weight_decay "
        "max_grad_norm gradient_accumulation_steps gradient_checkpointing fp16 bf16 seed",
        "generation": "max_new_tokens min_new_tokens max_length min_length temperature top_k top_p min_p "
        "typical_p eta_cutoff epsilon_cutoff do_sample num_beams num_beam_groups diversity_penalty "
        "early_stopping length_penalty repetition_penalty encoder_repetition_penalty no_repeat_ngram_size "
        "exponential_decay_length_penalty pad_token_id eos_token_id bos_token_id max_time stop_strings "
        "num_return_sequences seed prefix required_words forbidden_words json_schema regex logprobs",
    }
    for section, names in wanted.items():
        assert set(names.split()) <= set(sections[section].model_fields), section


@pytest.mark.parametrize(
    ("more", "line", "key", "message"),
    [
        ("training:\n  epochs: 3\n", 6, "training.epochs", "did you mean 'num_epochs'"),
        ("training:\n  batch-size: 8\n", 6, "training.batch-size", "did you mean 'batch_size'"),
        ("training:\n  lr: 1e-4\n", 6, "training.lr", "did you mean 'learning_rate'"),
        ("training:\n  num_beams: 4\n", 6, "training.num_beams", "did you mean 'generation.num_beams'"),
        ("training:\n  list: 4\n", 6, "training.list", "unknown key; known here: num_epochs"),
        ("\nlearning_rate: 1e-4\n", 6, "learning_rate", "did you mean 'training.learning_rate'"),
        ("num_epoch: 1\n", 5, "num_epoch", "did you mean 'training.num_epochs'"),
        ("trainning:\n  seed: 1\n", 5, "trainning", "did you mean 'training'"),
        ("zzz: 1\n", 5, "zzz", "known here: model, dataset, training"),
        ("training:\n  batch_size: 0\n", 6, "training.batch_size", r"greater than or equal to 1 \(got 0\)"),
        ("training:\n  learning_rate: fast\n", 6, "training.learning_rate", r"valid number.*\(got 'fast'\)"),
        ("training:\n  learning_rate: .inf\n", 6, "training.learning_rate", "finite"),
        ("training:\n", 5, "training", "expected a section"),
        ("distributed:\n  use_gpu: perhaps\n", 6, "distributed.use_gpu", "boolean.*, or .*'auto'"),
        ("distributed:\n  zero_stage: 4\n", 6, "distributed.zero_stage", "0, 1, 2 or 3"),
        ("lora:\n  target_modules:\n  - q\n  - 7\n", 8, "lora.target_modules.1", "valid string"),
        ("training:\n  seed: 1\n  seed: 2\n", 7, "training.seed", "twice"),
        ("training: [\n", 6, None, "not valid YAML"),
        ("training:\n\tseed: 1\n", 6, None, "not valid YAML"),
        ("a: \x00\n", None, None, "not valid YAML"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_line(
    write: Write, more: str, line: int | None, key: str | None, message: str
) -> None:
    path = write(BASE + more)
    with pytest.raises(ConfigError, match=message) as caught:
        load_run_config(path)
    assert (caught.value.path, caught.value.line, caught.value.key) == (path, line, key)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("more", "key", "message"),
    [
        ("training: {fp16: true, bf16: true}", "training.fp16", "contradict"),
        ("training: {warmup_steps: 1, warmup_ratio: 0.1}", "training.warmup_steps", "contradict"),
        ("distributed: {num_workers: 2, min_workers: 3}", "distributed.min_workers", "is above num_workers 2"),
        ("training: {metric_for_best: rougeL, eval_rows: 0}", "training.metric_for_best", "needs generated"),
        ("distributed: {backend: plain, zero_stage: 1}", "distributed.zero_stage", "needs backend"),
        ("distributed: {offload: cpu}", "distributed.offload", "needs zero_stage"),
        ("distributed: {offload: nvme, nvme_path: /n, zero_stage: 2}", "distributed.offload", "zero_stage 3"),
        ("distributed: {zero_stage: 3, offload: nvme}", "distributed.offload", "go together"),
        ("training: {compile: true}\ndistributed: {zero_stage: 3}", "training", "does not go with zero_stage 3"),
        ("distributed: {zero_stage: 3, nvme_path: /n}", "distributed.nvme_path", "go together"),
        ("generation: {temperature: 0.7}", "generation.temperature", "do_sample"),
        ("generation: {num_return_sequences: 2}", "generation.num_return_sequences", "greedy"),
        ("generation: {num_beams: 2, num_return_sequences: 3}", "generation.num_return_sequences", "exceeds"),
        ("generation: {num_beams: 4, num_beam_groups: 3}", "generation.num_beams", "multiple"),
        ("generation: {num_beams: 4, diversity_penalty: 0.5}", "generation.diversity_penalty", "groups"),
        ("generation: {num_beams: 2, early_stopping: soon}", "generation.early_stopping", "'never'"),
        ("generation: {regex: a, json_schema: {}}", "generation.json_schema", "give one"),
        ("generation: {min_length: 9, max_length: 8}", "generation.min_length", "exceeds"),
        ("generation: {min_new_tokens: 9, max_new_tokens: 8}", "generation.min_new_tokens", "exceeds"),
        (
            "generation: {num_generations: 2, num_return_sequences: 2, do_sample: true}",
            "generation.num_generations",
            "same parameter",
        ),
    ],
)
def test_contradictory_keys_are_refused(write: Write, more: str, key: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_run_config(write(BASE + more + "\n"))
    assert (caught.value.line, caught.value.key) == (5, key)


@pytest.mark.parametrize(
    ("model", "dataset", "more", "key", "message"),
    [
        ("{name: x}", "{max_input_length: 8}", "", "dataset", "either name"),
        ("{name: x}", "{name: wikitext, train_file: a}", "", "dataset.name", "either name"),
        ("{name: x}", "{name: wikitext, test_file: a}", "", "dataset.test_file", "go with train_file"),
        ("{name: x}", "{train_file: a, subset: b}", "", "dataset.subset", "goes with name"),
        ("{name: x}", "{train_file: a, prompt_template: hi}", "", "dataset.prompt_template", "{input}"),
        (
            "{name: x, task_type: chat, generation_type: seq2seq}",
            "{train_file: a}",
            "",
            "model.task_type",
            "causal",
        ),
        (
            "{name: x, task_type: language-modeling}",
            "{train_file: a}",
            "training: {metric_for_best: bleu}",
            "training.metric_for_best",
            "must be 'loss'",
        ),
        (
            "{name: x, revision: r, random_init: {family: t5}}",
            "{train_file: a}",
            "",
            "model.revision",
            "one of",
        ),
        (
            "{name: x, generation_type: causal, random_init: {family: t5}}",
            "{train_file: a}",
            "",
            "model.generation_type",
            "contradicts",
        ),
        (
            "{name: x, random_init: {family: t5, hidden_size: 30, num_heads: 4}}",
            "{train_file: a}",
            "",
            "model.random_init.hidden_size",
            "multiple",
        ),
        ("{}", "{train_file: a}", "", "model.name", "required"),
        ("{name: x, task_type: qa}", "{train_file: a}", "", "model.task_type", "'question-answering'"),
    ],
)
def test_model_and_dataset_must_fit(write: Write, model: str, dataset: str, more: str, key: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_run_config(write(f"model: {model}\ndataset: {dataset}\n{more}\n"))
    assert caught.value.key == key
    assert caught.value.line == {"model": 1, "dataset": 2, "training": 3}[key.split(".")[0]]


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n", "just text\n"])
def test_a_file_without_a_mapping_is_refused(write: Write, text: str) -> None:
    with pytest.raises(ConfigError, match="expected a mapping"):
        load_run_config(write(text))


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_run_config(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="this is a folder"):
        load_run_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("model: {name: é}".encode("latin-1"))
    with pytest.raises(ConfigError, match="UTF-8"):
        load_run_config(tmp_path / "latin.yaml")


def test_overrides_go_before_the_file(write: Write, tmp_path: Path) -> None:
    path = write(BASE + "training:\n  batch_size: 4\n  seed: 1\n")
    config = load_run_config(
        path,
        [
            "training.batch_size=2",
            "training.learning_rate=1e-3",
            "lora.target_modules=[q, v]",
            "dataset.test_file=test.csv",
            "training.warmup_steps=",
        ],
    )
    assert (config.training.batch_size, config.training.seed, config.training.learning_rate) == (2, 1, 1e-3)
    assert config.lora is not None
    assert config.lora.target_modules == ["q", "v"]
    assert config.dataset.test_file == str(tmp_path / "test.csv")
    assert config.training.warmup_steps is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.batch_size", "expected a.b=c"),
        ("=3", "expected a.b=c"),
        ("training.batch_size=[", "not valid YAML"),
        ("model.name.first=x", "'name' is a value, not a section"),
        ("training.batch_sise=2", "did you mean 'batch_size'"),
        ("training.batch_size=0", "greater than or equal to 1"),
    ],
)
def test_wrong_overrides_are_named_without_a_line_of_the_file(write: Write, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_run_config(write(BASE + "training:\n  batch_size: 4\n"), [override])
    assert not caught.value.line
    assert "config.yaml" not in str(caught.value)


@pytest.mark.parametrize("name", ["2026-01-31", "2026-13-99"])
def test_dates_are_text(write: Write, name: str) -> None:
    assert load_run_config(write(BASE + f"output:\n  run_name: {name}\n")).output.run_name == name
    assert load_run_config(write(BASE), [f"output.run_name={name}"]).output.run_name == name


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "a\\b"])
def test_the_name_of_a_run_is_one_folder(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a run"):
        validate(OutputConfig, {"run_name": name})


def test_numbers_with_exponents_are_numbers_everywhere(write: Write) -> None:
    options = "{layer_norm_epsilon: 1e-5, feed_forward_proj: gated-gelu, window_size: 64}"
    text = f"model: {{name: x, random_init: {{family: t5, options: {options}}}}}\ndataset: {{train_file: a}}\n"
    config = load_run_config(write(text))
    assert config.model.random_init is not None
    assert config.model.random_init.options == {
        "layer_norm_epsilon": 1e-5,
        "feed_forward_proj": "gated-gelu",
        "window_size": 64,
    }


def test_job_files_are_told_apart_by_the_artifact(write: Write) -> None:
    assert isinstance(load_job(write(BASE)), RunConfig)
    job = load_job(write("artifact: runs/a\ngeneration: {num_generations: 2, num_beams: 2}\n"))
    assert isinstance(job, EvaluateJob)
    assert job.splits == ["validation", "test"]
    with pytest.raises(ConfigError, match="did you mean 'num_beams'"):
        load_job(write("artifact: runs/a\ngeneration: {num_beam: 2}\n"))


def test_serving_config_is_checked(write: Write) -> None:
    config = load_section(ServingConfig, write("artifact: a\nautoscaling: {max_replicas: 3}\n"))
    assert config.autoscaling.max_replicas == 3
    with pytest.raises(ConfigError, match="min_replicas 2 exceeds max_replicas 1") as caught:
        validate(ServingConfig, {"artifact": "a", "autoscaling": {"min_replicas": 2}})
    assert caught.value.key == "autoscaling"


def test_a_dumped_config_loads_to_the_same_config(write: Write) -> None:
    config = load_run_config(write(CLASSIC))
    again = load_run_config(write(dump_yaml(config)))
    assert again == config
    assert config_hash(again) == config_hash(config)
    assert config_hash(again) != config_hash(load_run_config(write(CLASSIC), ["training.seed=8"]))


@pytest.mark.parametrize("text", ["7352e10", "-.5E3", "2026-01-31", "null", "yes", "1_000", "a: b # c", "Q:\n A:"])
def test_a_dumped_text_stays_a_text(write: Write, text: str) -> None:
    config = load_run_config(write(CLASSIC)).model_copy(deep=True)
    config = config.model_copy(update={"model": config.model.model_copy(update={"revision": text})})
    assert load_run_config(write(dump_yaml(config))).model.revision == text


def test_json_schema_accepts_what_loads_and_refuses_unknown_keys() -> None:
    schema = json.loads(json.dumps(json_schema()))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(CLASSIC.replace("text2text", "seq2seq").replace("3e-4", "3.0e-4")), schema)
    with pytest.raises(jsonschema.ValidationError, match="lr"):
        jsonschema.validate(yaml.safe_load(BASE) | {"training": {"lr": 1}}, schema)
    assert schema["$defs"]["TrainingConfig"]["properties"]["batch_size"]["description"].startswith("Rows per")


def test_sections_are_frozen() -> None:
    config = RunConfig.model_validate({"model": {"name": "x"}, "dataset": {"train_file": "a"}})
    with pytest.raises(ValueError, match="frozen"):
        config.training.batch_size = 3


@given(key=st.text(max_size=12))
def test_nearest_is_a_known_key_or_none(key: str) -> None:
    known = list(RunConfig.model_fields)
    assert nearest(key, known) in {None, *known}
    assert all(nearest(name, known) == name for name in known)


def test_data_files_may_start_at_the_home_folder(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    config = load_run_config(write(BASE), ["dataset.test_file=~/data/test.jsonl"])
    assert config.dataset.test_file == "/home/somebody/data/test.jsonl"
