from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayloom.config import LoraConfig, RandomInit, RunConfig
from rayloom.models import attach_lora, trainable_parameters
from rayloom.models.random_init import planned_config
from rayloom.models.sizing import GIB, Rows, Sizing, estimate, shape_of, sizing_table
from rayloom.models.throughput import training_rate
from rayloom.models.traps import traps
from rayloom.models.variants import known_variant
from tests.unit.models import tiny_models as tiny

TINY = planned_config(RandomInit(family="llama", hidden_size=32, vocab_size=300))


def run_config(tmp: Path | str = "/tmp", **sections: Any) -> RunConfig:
    sections.setdefault("model", {"name": "gpt2"})
    output = {"storage_path": str(tmp)}
    dataset = {"train_file": "x.jsonl"} | sections.pop("dataset", {})
    return RunConfig.model_validate({"dataset": dataset, "output": output} | sections)


def sized(config: RunConfig, **more: Any) -> Sizing:
    return estimate(config, known_variant(config.model.name), **more)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # As the published checkpoints have them.
        ("t5-small", 60_506_624),
        ("google-t5/t5-base", 222_903_552),
        ("google/flan-t5-small", 76_961_152),
        ("gpt2", 124_439_808),
        ("openai-community/gpt2-large", 774_030_080),
        ("EleutherAI/gpt-neo-125m", 125_198_592),
        ("EleutherAI/gpt-neo-1.3B", 1_315_575_808),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 1_100_048_384),
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
        ("meta-llama/Llama-3.2-1B", 1_235_814_400),
    ],
)
def test_known_sizes(name: str, parameters: int) -> None:
    assert shape_of(run_config(), known_variant(name)).parameters == parameters


@pytest.mark.parametrize("name", ["nobody/gpt2", "gpt2-xxl", "my-t5-small", "t5-small-finetuned"])
def test_other_models_are_not_taken_for_known_ones(name: str) -> None:
    assert known_variant(name) is None


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("targets", [None, "all-linear"])
def test_lora_parameters_are_counted_as_peft_makes_them(family: str, targets: str | None) -> None:
    lora = LoraConfig(r=3, target_modules=targets)  # type: ignore[arg-type]
    loaded = tiny.tiny_model(family)
    shape = shape_of(run_config(lora=lora.model_dump()), loaded.model.config)
    model = attach_lora(loaded.model, lora, loaded.family)
    assert shape.trainable == sum(parameter.numel() for parameter in trainable_parameters(model).values())
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("precision", "per_parameter"),
    [({"bf16": True}, (2, 2, 12)), ({"fp16": True}, (2, 2, 12)), ({}, (4, 4, 8))],
)
def test_bytes_per_parameter_follow_zero(precision: dict[str, bool], per_parameter: tuple[int, int, int]) -> None:
    config = run_config(training=precision, distributed={"num_workers": 4, "zero_stage": 1})
    sizing = sized(config)
    count = sizing.shape.parameters
    weights, gradients, optimizer = (each * count for each in per_parameter)
    zero, one, two, three = sizing.stages
    assert (zero.weights, zero.gradients) == (weights, gradients)
    assert (one.weights, one.gradients, one.optimizer) == (weights, gradients, optimizer // 4)
    assert (two.weights, two.gradients, two.optimizer) == (weights, gradients // 4, optimizer // 4)
    gathered = 2 * per_parameter[0] * sizing.shape.largest_layer
    assert (three.weights, three.gradients) == (weights // 4 + gathered, gradients // 4)


def test_offload_moves_bytes_to_the_host() -> None:
    plain = sized(run_config(distributed={"num_workers": 2, "zero_stage": 3}))
    moved = sized(run_config(distributed={"num_workers": 2, "zero_stage": 3, "offload": "cpu"}))
    assert plain.chosen.host == 0
    assert moved.chosen.optimizer == 0
    assert moved.chosen.host + moved.chosen.device == plain.chosen.device
    assert moved.stages[0] == plain.stages[0]


@settings(max_examples=25)
@given(
    workers=st.integers(1, 16),
    rows=st.integers(1, 64),
    checkpointing=st.booleans(),
    length=st.integers(16, 1024),
)
def test_higher_stages_and_more_workers_never_need_more(
    workers: int, rows: int, checkpointing: bool, length: int
) -> None:
    training = {"bf16": True, "batch_size": rows, "gradient_checkpointing": checkpointing}
    sections = {"training": training, "dataset": {"max_input_length": length}}
    few = estimate(run_config(**sections, distributed={"num_workers": workers}), TINY)
    many = estimate(run_config(**sections, distributed={"num_workers": 2 * workers}), TINY)
    sizes = [memory.device for memory in few.stages[:3]]
    assert few.stages[1].device >= few.stages[2].device
    assert all(more.device <= less.device for more, less in zip(many.stages, few.stages, strict=True))
    assert min(sizes) > few.shape.parameters
    shorter = estimate(run_config(**sections), TINY, rows=Rows(10, 5.0, longest_example=8))
    assert shorter.chosen.activations <= few.chosen.activations


def test_plain_workers_of_one_machine_share_weights_and_optimizer() -> None:
    def stages(num_workers: int, *, one_machine: bool, **sections: Any):
        config = run_config(distributed={"num_workers": num_workers}, **sections)
        return sized(config, one_machine=one_machine).stages

    apart, shared = stages(4, one_machine=False), stages(4, one_machine=True)
    assert 4 * shared[0].weights == apart[0].weights
    assert 4 * shared[0].optimizer == apart[0].optimizer
    assert shared[0].gradients == apart[0].gradients
    assert shared[1:] == apart[1:]
    assert stages(1, one_machine=True) == stages(1, one_machine=False)
    fp16 = {"training": {"fp16": True}}
    assert stages(4, one_machine=True, **fp16) == stages(4, one_machine=False, **fp16)
    lora = {"lora": {"r": 8}}
    frozen = stages(4, one_machine=True, **lora)[0].weights
    assert (
        stages(4, one_machine=False, **lora)[0].weights - frozen
        == 3 * stages(4, one_machine=True, **lora)[0].gradients // 4
    )


def test_checkpointing_saves_memory_and_costs_time() -> None:
    rows = Rows(1000, 100.0)
    kept = sized(run_config(), rows=rows, flops=1e11)
    recomputed = sized(run_config(training={"gradient_checkpointing": True}), rows=rows, flops=1e11)
    assert recomputed.chosen.activations < kept.chosen.activations / 1.5
    assert recomputed.amount.seconds == pytest.approx(4 / 3 * kept.amount.seconds)  # type: ignore[operator]


def test_disk_is_that_of_all_checkpoints_that_lie_there_at_once() -> None:
    one, two, five = (sized(run_config(training={"save_total_limit": n})).checkpoint_bytes for n in (1, 2, 5))
    assert one == two, "the best and the last are always kept"
    assert five == 2 * two, "and one is being written"


def test_steps_and_time() -> None:
    training = {"batch_size": 4, "gradient_accumulation_steps": 2, "num_epochs": 3}
    sizing = sized(run_config(training=training, distributed={"num_workers": 2}), rows=Rows(100, 50.0), flops=1e11)
    assert (sizing.amount.steps_per_epoch, sizing.amount.total_steps) == (7, 21)
    assert sizing.amount.total_tokens == 15_000
    assert sizing.amount.seconds == pytest.approx(6 * 124_439_808 * 15_000 / 2e11)
    limited = sized(run_config(training=training | {"max_steps": 5}), rows=Rows(100, 50.0))
    assert limited.amount.total_steps == 5
    assert limited.amount.seconds is None
    assert sized(run_config()).amount.total_steps is None


def test_the_time_of_a_measured_run_is_met() -> None:
    """SmolLM2 + LoRA, bf16, two threads: 1,000 rows, 61,000 tokens, took 310 s at 106 GFLOP/s."""
    config = run_config(model={"name": "SmolLM2-135M"}, lora={"r": 16}, training={"bf16": True, "num_epochs": 1})
    seconds = sized(config, rows=Rows(1000, 61.0), flops=0.35 * 300e9).amount.seconds
    assert seconds == pytest.approx(310, rel=0.2)


def warnings(config: RunConfig, *, on_gpu: bool = True, rows: Rows | None = None, **more: Any) -> str:
    return "\n".join(traps(config, sized(config, rows=rows, **more), on_gpu=on_gpu, rows=rows))


def test_a_sound_config_has_no_warning(tmp_path: Path) -> None:
    config = run_config(tmp_path, training={"bf16": True})
    assert warnings(config, rows=Rows(1000, 50.0), memory_limit=24 * GIB) == ""


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"name": "t5-small"}, "training": {"fp16": True}}, "T5 in fp16"),
        ({"dataset": {"max_input_length": 1000}}, "is 1128, but the model has 1024 positions"),
        ({"distributed": {"zero_stage": 2}}, "ZeRO 2 with one worker shards nothing"),
        ({"lora": {"r": 8}, "distributed": {"zero_stage": 3, "num_workers": 2}}, "4 to 6 times slower"),
        ({"lora": {"r": 8}}, "low for LoRA"),
        ({"training": {"learning_rate": 0.01}}, "high for pretrained weights"),
        ({"training": {"batch_size": 64}}, "one step takes 64 rows, but there are only 50"),
    ],
)
def test_known_traps(sections: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert message in warnings(run_config(tmp_path, **sections), rows=Rows(50, 20.0))


def test_traps_of_cpus_memory_and_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "fp16 on CPU" in warnings(run_config(tmp_path, training={"fp16": True}), on_gpu=False)
    many = run_config(tmp_path, distributed={"num_workers": 10_000})
    assert "ask for 10000 CPUs" in warnings(many, on_gpu=False)
    assert "ask for" not in warnings(many)
    assert "no ZeRO stage fits" in warnings(run_config(tmp_path), memory_limit=GIB)
    two = {"num_workers": 8, "zero_stage": 0}
    small = {"batch_size": 1}
    short = {"max_input_length": 32, "max_target_length": 8}
    tight = run_config(tmp_path, distributed=two, training=small, dataset=short)
    sizing = sized(tight)
    limit = int((sizing.stages[0].device + sizing.stages[1].device) / 2 / 0.9)
    assert "zero_stage 1 is the lowest that fits" in warnings(tight, memory_limit=limit)
    ample = run_config(tmp_path, distributed=two | {"zero_stage": 2}, training=small, dataset=short)
    assert "zero_stage 0 fits already" in warnings(ample, memory_limit=80 * GIB)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: type("Usage", (), {"free": GIB})())
    assert "free: lower training.save_total_limit" in warnings(run_config(tmp_path / "new" / "runs"))
    assert "free:" not in warnings(run_config("s3://bucket/runs"))


def test_table_of_models() -> None:
    rows = {row.model: row for row in sizing_table()}
    assert rows["t5-small"].full == {16: "1 x ZeRO 0", 24: "1 x ZeRO 0", 80: "1 x ZeRO 0"}
    assert rows["Llama-3.1-8B"].full[16] == "-"
    assert rows["Llama-3.1-8B"].lora[24] == "1 x ZeRO 0"
    assert rows["gpt-neo-2.7B"].full[24].endswith(("ZeRO 1", "ZeRO 2", "ZeRO 3"))


def test_throughput_is_measured() -> None:
    assert 1e8 < training_rate("fp32", num_threads=1) < 1e14


def test_recomputing_every_second_block_stands_between() -> None:
    rows = Rows(1000, 100.0)
    none, half, full = (
        sized(run_config(training={"gradient_checkpointing": how}), rows=rows, flops=1e11)
        for how in (False, "selective", True)
    )
    assert full.chosen.activations < half.chosen.activations < none.chosen.activations
    assert half.amount.seconds == pytest.approx(7 / 6 * none.amount.seconds)  # type: ignore[operator]


def test_autocast_keeps_copies_of_the_weights() -> None:
    plain, sharded = (
        sized(run_config(training={"bf16": True}, distributed=workers)) for workers in ({}, {"zero_stage": 0})
    )
    assert plain.chosen.weights == 6 * plain.shape.parameters
    assert sharded.chosen.weights == 2 * sharded.shape.parameters
