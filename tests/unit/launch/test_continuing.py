"""A new run that starts from a checkpoint of another, and what cannot be started from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from rayloom.config import RunConfig, validate
from rayloom.data import EncodedDataset
from rayloom.errors import RayloomError, TrainingError
from rayloom.launch import Run, prepare
from rayloom.launch.shipping import pack
from rayloom.launch.starting import settled
from rayloom.models import attach_lora, load_model, load_trained_weights
from rayloom.training import CheckpointSaver, CheckpointStore, Job, Member, PlainBackend, TokenLoss, load_weights, train

FAMILIES = ("t5", "gpt_neo", "llama")
CPU = torch.device("cpu")


class Stored:
    """A reporter that only keeps checkpoints, with the scores that it is given."""

    def __init__(self, saver: CheckpointSaver, scores: dict[int, float]) -> None:
        self._saver, self._scores = saver, scores

    def __getattr__(self, name):
        return lambda *_: None

    def checkpoint(self, part, progress, metrics) -> None:
        self._saver.save(part, progress, metrics, self._scores.get(progress.step))


def config_of(root: Path, *, name: str, family: str, lora: bool = False, **model) -> RunConfig:
    rows = root / "train.jsonl"
    if not rows.exists():
        lines = ({"question": f"What is number {n}?", "answer": f"It is {n % 7} of many."} for n in range(40))
        rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    init = {
        "family": family,
        "hidden_size": 16,
        "num_layers": 1,
        "num_heads": 2,
        "vocab_size": 300,
        "max_positions": 128,
    }
    values = {
        "model": {"name": "tiny", "random_init": init} | model,
        "dataset": {"train_file": str(rows), "cache_dir": str(root / "encoded")},
        "training": {
            "batch_size": 8,
            "max_steps": 3,
            "checkpoint_every_steps": 1,
            "learning_rate": 1e-2,
            "save_total_limit": 3,
        },
        "output": {"storage_path": str(root / "runs"), "run_name": name},
    }
    return validate(RunConfig, values | ({"lora": {"r": 2}} if lora else {}))


def trained(config: RunConfig, *, scores: dict[int, float] | None = None) -> Run:
    """A run as `rayloom train` leaves it, without its Ray."""
    prepared, run = prepare(config), Run.of(config)
    run.start(config)
    loaded = load_model(prepared.source)
    model = loaded.model
    if config.lora is not None:
        torch.manual_seed(config.training.seed)
        model = attach_lora(model, config.lora, loaded.family)
    identity = run.identity(config, prepared.train.digest)
    store = CheckpointStore(run.checkpoints_path, identity, note=lambda _: None)
    store.take_over("a1")
    backend = PlainBackend(TokenLoss(model, seq2seq=loaded.family.seq2seq), config, CPU)
    nothing = EncodedDataset.from_examples([], seq2seq=loaded.family.seq2seq)
    job = Job(config, prepared.train, nothing, pad_token_id=prepared.tokenizer.pad_token_id)
    with CheckpointSaver(store, Member("a1", 0, 1), keep=3, saved=lambda _: None) as saver:
        train(job, backend, Stored(saver, scores or {}))
    return run


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RAYLOOM_CACHE", str(tmp_path_factory.mktemp("cache")))


def checkpoint(run: Run, step: int) -> Path:
    return Path(run.checkpoints_path) / f"step-{step:08d}-a1"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_new_run_starts_with_the_checkpoints_weights(tmp_path, family):
    run = trained(config_of(tmp_path, name="first", family=family))
    place = checkpoint(run, 2)
    prepared = prepare(again(tmp_path, place))
    loaded = load_model(prepared.source)
    state = loaded.model.state_dict()
    for name, weight in load_weights(place).items():
        assert torch.equal(state[name], weight)
    assert "starting from step 2" in prepared.warnings()[0]
    assert pack(prepared.source)  # other nodes get it too
    assert prepared.train.digest == prepare(config_of(tmp_path, name="first", family=family)).train.digest


def again(root: Path, place: Path | str, **sections) -> RunConfig:
    """A run that starts from a place."""
    values = {
        "model": {"name": str(place)},
        "dataset": {"train_file": str(root / "train.jsonl"), "cache_dir": str(root / "encoded")},
        "training": {"batch_size": 8, "max_steps": 2},
        "output": {"storage_path": str(root / "runs"), "run_name": "second"},
    }
    return validate(RunConfig, values | sections)


def test_an_adapters_checkpoint_is_merged_and_can_carry_another(tmp_path):
    first = config_of(tmp_path, name="first", family="llama", lora=True)
    run = trained(first)
    prepared = prepare(again(tmp_path, checkpoint(run, 3), lora={"r": 2}))
    merged = load_model(prepared.source)
    base = load_model(prepare(first).source)
    adapted = attach_lora(base.model, first.lora, base.family)
    load_trained_weights(adapted, load_weights(checkpoint(run, 3)))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        wanted, untouched = adapted.eval()(ids).logits, load_model(prepare(first).source).model(ids).logits
        torch.testing.assert_close(merged.model(ids).logits, wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(wanted, untouched, atol=1e-5)


def test_a_run_means_its_best_checkpoint_for_good(tmp_path):
    config = config_of(tmp_path, name="first", family="llama")
    run = trained(config, scores={1: -3.0, 2: -1.0, 3: -2.0})
    for name in (run.path, run.checkpoints_path, run.path + "/"):
        assert settled(again(tmp_path, name), note=print).model.name == str(checkpoint(run, 2))
    fixed = again(tmp_path, checkpoint(run, 1))
    assert settled(fixed, note=print).model.name == str(checkpoint(run, 1))
    assert settled(config, note=print) == config


def test_without_scores_it_is_the_last(tmp_path):
    run = trained(config_of(tmp_path, name="first", family="llama"))
    assert settled(again(tmp_path, run.path), note=print).model.name == str(checkpoint(run, 3))


def test_a_run_that_started_from_a_checkpoint_can_be_started_from(tmp_path):
    first = trained(config_of(tmp_path, name="first", family="gpt_neo"))
    second = trained(settled(again(tmp_path, first.path), note=print))
    third = prepare(again(tmp_path, second.path))
    assert [line for line in third.warnings() if line.startswith("starting from step 2")]
    state = load_model(third.source).model.state_dict()
    place = next(Path(second.checkpoints_path).glob("step-00000002-*"))
    assert all(torch.equal(state[name], weight) for name, weight in load_weights(place).items())


def test_a_damaged_best_checkpoint_is_passed_over_aloud(tmp_path):
    run = trained(config_of(tmp_path, name="first", family="llama"), scores={1: -3.0, 2: -1.0, 3: -2.0})
    flip(checkpoint(run, 2) / "weights.safetensors")
    notes: list[str] = []
    assert settled(again(tmp_path, run.path), note=notes.append).model.name == str(checkpoint(run, 3))
    assert "weights.safetensors does not match its checksum" in notes[0]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def no_commit(run: Run, place: Path) -> None:
    (place / "COMMIT.json").unlink()


def bad_weights(run: Run, place: Path) -> None:
    flip(place / "weights.safetensors")


def another_config(run: Run, place: Path) -> None:
    path = Path(run.path) / "config.yaml"
    path.write_text(path.read_text().replace("seed: 42", "seed: 43"))


def no_config(run: Run, place: Path) -> None:
    (Path(run.path) / "config.yaml").unlink()


def torn_config(run: Run, place: Path) -> None:
    (Path(run.path) / "config.yaml").write_text("model: [")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_commit, "never finished|COMMIT.json is gone"),
        (bad_weights, "does not match its checksum"),
        (another_config, "other config"),
        (no_config, "nobody knows what its model is"),
        (torn_config, "config.yaml is damaged"),
    ],
)
def test_what_is_damaged_or_foreign_is_refused(tmp_path, damage, message):
    run = trained(config_of(tmp_path, name="first", family="llama"))
    damage(run, checkpoint(run, 2))
    with pytest.raises(TrainingError, match=message):
        prepare(again(tmp_path, checkpoint(run, 2)))


@pytest.mark.parametrize("name", ["step-00000002-a1", "mine"])
def test_a_checkpoint_away_from_its_run_is_refused(tmp_path, name):
    run = trained(config_of(tmp_path, name="first", family="llama"))
    shutil.copytree(checkpoint(run, 2), tmp_path / "away" / name)
    with pytest.raises(TrainingError, match="put it back into its run's folder"):
        prepare(again(tmp_path, tmp_path / "away" / name))


def test_a_run_without_checkpoints_is_refused(tmp_path):
    config = config_of(tmp_path, name="first", family="llama")
    run = Run.of(config)
    run.start(config)
    with pytest.raises(TrainingError, match="no checkpoint yet"):
        prepare(again(tmp_path, run.path))


def test_other_folders_are_still_models(tmp_path):
    (tmp_path / "empty").mkdir()
    config_of(tmp_path, name="first", family="llama")
    with pytest.raises(RayloomError, match="holds no model"):
        prepare(again(tmp_path, tmp_path / "empty"))
