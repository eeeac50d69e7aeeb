"""The folder of a run: who may go on with it, and where Ray keeps its own state."""

from __future__ import annotations

import pytest

from rayloom.errors import ConfigError
from rayloom.launch import Run
from tests.fakes import run_config


def test_a_run_goes_on_with_other_workers_and_another_stage(tmp_path):
    run = Run(str(tmp_path), "one")
    run.start(run_config(distributed={"num_workers": 2, "zero_stage": 2}))
    run.require_same(run_config(distributed={"num_workers": 1, "zero_stage": 1}))


@pytest.mark.parametrize("changed", [{"training": {"seed": 7}}, {"lora": {"r": 4}}, {"dataset": {"train_file": "b"}}])
def test_what_decides_the_weights_must_be_the_same(tmp_path, changed):
    run = Run(str(tmp_path), "one")
    run.start(run_config())
    with pytest.raises(ConfigError, match=rf"another '{next(iter(changed))}' section"):
        run.require_same(run_config(**changed))


def test_a_run_that_was_never_started_cannot_be_resumed(tmp_path):
    with pytest.raises(ConfigError, match=r"no run 'one'"):
        Run(str(tmp_path), "one").require_same(run_config())


def test_rays_own_state_goes_where_the_run_goes(tmp_path):
    assert Run(str(tmp_path), "one").ray_storage() == (f"{tmp_path}/one/ray", None)
    path, filesystem = Run("memory://bucket/runs", "one").ray_storage()
    filesystem.create_dir(path)
    with filesystem.open_output_stream(f"{path}/state") as stream:
        stream.write(b"x")
    assert Run("memory://bucket/runs", "one")._fs.cat_file(f"{path}/state") == b"x"
    assert path.endswith("/bucket/runs/one/ray")
