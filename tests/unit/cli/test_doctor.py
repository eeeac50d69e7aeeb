from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from rayloom.cli.doctor import doctor, duration, gib
from rayloom.errors import ConfigError, ModelError

app = typer.Typer()
app.command()(doctor)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    rows = [{"question": f"Who is number {n}?", "answer": f"Number {n}."} for n in range(100)]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    path = tmp_path / "config.yaml"
    path.write_text(f"""
model: {{name: t5-small}}
dataset: {{train_file: train.json}}
distributed: {{num_workers: 2, zero_stage: 2}}
output: {{storage_path: {tmp_path}}}
""")
    return path


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_a_known_model_is_sized_without_a_hub(config: Path) -> None:
    text = run(str(config), "--memory", "80", "--cpu")
    assert "60,506,624" in text
    assert "> 2" in text
    assert "30 (10 per epoch)" in text or "15 (5 per epoch)" in text
    assert "zero_stage 0 fits already" in text


def test_traps_are_told(config: Path) -> None:
    text = run(str(config), "--set", "training.fp16=true", "--memory", "1", "--gpu")
    assert "T5 in fp16" in text
    assert "no ZeRO stage fits" in text


@pytest.mark.parametrize("asked", [["--gpu"], ["-s", "distributed.use_gpu=true"]])
def test_this_machines_memory_is_not_taken_for_that_of_a_gpu(
    config: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="--memory 80"):
        run(str(config), *asked)


def test_random_models_are_sized_before_their_tokenizer_exists(config: Path) -> None:
    text = run(str(config), "-s", "model.random_init={family: gpt_neo}", "-s", "model.name=tiny", "--memory", "80")
    assert "gpt_neo, causal" in text
    assert "starts knowing nothing" in text


def test_a_contradiction_is_an_error(config: Path) -> None:
    with pytest.raises(ModelError, match="is a seq2seq model"):
        run(str(config), "-s", "model.generation_type=causal")


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_gib() -> None:
    assert (gib(0), gib(1 << 20), gib(3 << 29)) == ("0.00", "0.001", "1.50")


def test_advice_is_a_line_for_the_config(config: Path) -> None:
    text = run(str(config), "--memory", "80", "--gpu")
    assert "advice: plain PyTorch" in text
    assert "distributed: {zero_stage: null}" in text
    followed = run(str(config), "--memory", "80", "--gpu", "-s", "distributed.zero_stage=null")
    assert "the config says so already" in followed
    tight = run(str(config), "--memory", "2.2", "--cpu", "-s", "distributed.num_workers=8")
    assert "advice: DeepSpeed ZeRO" in tight
    assert "no ZeRO stage fits" not in tight


def test_without_any_room_there_is_no_advice(config: Path) -> None:
    text = run(str(config), "--memory", "0.5", "--cpu")
    assert "advice:" not in text
    assert "no setting fits" in text
