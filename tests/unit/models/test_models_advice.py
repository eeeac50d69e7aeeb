"""The doctor's advice: the fastest setting that fits, with the same rows per step, as keys that the config takes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayloom.config import RunConfig
from rayloom.models.advice import Advice, advise
from rayloom.models.sizing import GIB, Rows, Shape, layout_of, shape_of, worker_memory
from rayloom.models.variants import known_variant

ROWS = Rows(1000, 100.0, longest_example=300)


SHAPES: dict[str, Shape] = {}


def run_config(name: str = "gpt2", **sections: Any) -> RunConfig:
    return RunConfig.model_validate({"model": {"name": name}, "dataset": {"train_file": "x.jsonl"}} | sections)


def advised(config: RunConfig, gib: float, *, on_gpu: bool = True) -> Advice:
    return advise(config, shape(config), memory_limit=int(gib * GIB), on_gpu=on_gpu, rows=ROWS)


def shape(config: RunConfig) -> Shape:
    name = config.model.name
    if name not in SHAPES:
        SHAPES[name] = shape_of(config, known_variant(name))
    return SHAPES[name]


def setting(advice: Advice):
    assert advice.chosen is not None
    chosen = advice.chosen.setting
    return chosen.stage, chosen.offload, chosen.recompute, chosen.halvings


def test_with_room_for_all_nothing_is_sharded_or_recomputed() -> None:
    config = run_config(
        training={"gradient_checkpointing": True, "batch_size": 4}, distributed={"num_workers": 4, "zero_stage": 3}
    )
    advice = advised(config, 80)
    assert setting(advice) == (None, False, False, 0)
    assert advice.refused == ()
    assert advice.changes(config) == {
        "training": {"gradient_checkpointing": False},
        "distributed": {"zero_stage": None},
    }
    assert advice.most_rows >= 16


def test_the_less_there_is_the_more_is_given_up() -> None:
    config = run_config(training={"bf16": True, "batch_size": 8}, distributed={"num_workers": 8})
    found = [advised(config, gib) for gib in (40, 4, 2.4, 2.2, 1.8)]
    costs = [advice.chosen.setting.cost for advice in found if advice.chosen]
    assert len(costs) == len(found)
    assert costs == sorted(costs)
    assert costs[0] < costs[1] < costs[-1]
    for advice in found[1:]:
        assert advice.refused
        assert all(not one.fits and one.setting.cost <= advice.chosen.setting.cost for one in advice.refused)
    assert [setting(advice)[0] for advice in found] == [None, 1, 1, 2, 2]


def test_a_single_worker_shards_with_nobody() -> None:
    config = run_config(training={"batch_size": 8}, distributed={"zero_stage": 2})
    for gib in (80, 5, 4, 3):
        stage, offload, _, _ = setting(advised(config, gib))
        assert stage is None or offload


def test_processors_offload_nothing_and_too_little_is_said() -> None:
    config = run_config("gpt2-xl", distributed={"num_workers": 2})
    assert advised(config, 4, on_gpu=False).chosen is None
    assert advised(config, 4, on_gpu=False).changes(config) == {}
    assert setting(advised(config, 12, on_gpu=True))[1]


@pytest.mark.parametrize(
    ("distributed", "gib", "changes"),
    [
        ({"backend": "deepspeed"}, 80, {"backend": "plain"}),
        ({"backend": "deepspeed", "zero_stage": 1}, 80, {"backend": "plain", "zero_stage": None}),
        (
            {"zero_stage": 3, "offload": "nvme", "nvme_path": "/x"},
            80,
            {"zero_stage": None, "offload": "none", "nvme_path": None},
        ),
        ({"backend": "plain", "num_workers": 8}, 3, {"backend": "auto", "zero_stage": 1}),
    ],
)
def test_changes_are_keys_that_the_config_takes(
    distributed: dict[str, Any], gib: float, changes: dict[str, Any]
) -> None:
    config = run_config(training={"bf16": True}, distributed=distributed)
    found = advised(config, gib).changes(config)
    assert found["distributed"] == changes
    values = config.model_dump()
    for section, keys in found.items():
        values[section] |= keys
    again = RunConfig.model_validate(values)
    assert advised(again, gib).changes(again) == {}


@settings(max_examples=20)
@given(
    workers=st.integers(1, 8),
    batch_size=st.integers(1, 48),
    accumulation=st.integers(1, 4),
    gib=st.floats(1.5, 24.0),
    on_gpu=st.booleans(),
    packing=st.sampled_from([None, 512]),
)
def test_what_is_advised_fits_and_trains_the_same_rows(
    workers: int, batch_size: int, accumulation: int, gib: float, on_gpu: bool, packing: int | None
) -> None:
    training = {"bf16": True, "batch_size": batch_size, "gradient_accumulation_steps": accumulation}
    packed = {"packing": True, "packing_length": packing} if packing else {}
    config = run_config(training=training | packed, distributed={"num_workers": workers})
    advice = advised(config, gib, on_gpu=on_gpu)
    if advice.chosen is None:
        return
    applied = advice.chosen.setting.applied(config)
    RunConfig.model_validate(applied.model_dump())
    assert applied.global_batch_size == config.global_batch_size
    stage = advice.chosen.setting.stage or 0
    memory = worker_memory(applied, shape(applied), stage, ROWS)
    assert memory == advice.chosen.memory
    assert memory.device <= gib * GIB
    assert advice.most_rows >= applied.training.batch_size


def test_what_workers_of_one_machine_share_needs_no_zero() -> None:
    config = run_config(training={"batch_size": 1}, distributed={"num_workers": 8})
    limits = {"memory_limit": int(2.6 * GIB), "on_gpu": False, "rows": ROWS}
    apart, shared = (advise(config, shape(config), one_machine=one, **limits) for one in (False, True))
    assert apart.chosen is not None
    assert apart.chosen.setting.stage is not None
    assert setting(shared) == (None, False, False, 0)


def test_packed_sequences_are_wider_and_fewer() -> None:
    def layout(**training: Any):
        config = run_config(
            training={"batch_size": 10} | training,
            dataset={"train_file": "x", "max_input_length": 100, "max_target_length": 28},
        )
        return layout_of(config, shape(config))

    plain, level = layout(), layout(packing=True)
    assert (plain.tokens, plain.width, plain.targets) == (1280, 128, 280)
    assert level == plain  # as wide as the longest row
    wide = layout(packing=True, packing_length=400)
    assert (wide.tokens, wide.width, wide.targets) == (4 * 400, 400, 280)
    few = layout(packing=True, packing_length=1 << 20)
    assert (few.tokens, few.width) == (1280, 1280)  # all rows in one sequence


def test_packed_pairs_have_two_sides() -> None:
    dataset = {"train_file": "x", "max_input_length": 100, "max_target_length": 25}
    training = {"batch_size": 8, "packing": True, "packing_length": 200}
    config = run_config("t5-small", dataset=dataset, training=training)
    layout = layout_of(config, shape(config))
    assert (layout.tokens, layout.width, layout.targets) == (4 * (200 + 200), 200, 200)
