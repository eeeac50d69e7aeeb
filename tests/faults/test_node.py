"""A whole node dies: its raylet and all its workers at once."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from rayloom.config import load_run_config
from rayloom.launch import run_training
from rayloom.launch.progress import Note
from rayloom.training import StepRecord
from tests.faults.disturbed import FAMILIES, JOBS, STEPS, Cell, Outcome, last_saved
from tests.faults.drivers import history, resumed_step, saved_step, weights_hash
from tests.faults.table import OUTCOMES

pytestmark = pytest.mark.slow

CELLS = [Cell("gpt_neo", 2, packed=False), Cell("llama_lora", 3, packed=True)]
_NODE = {"num_cpus": 1, "object_store_memory": 128 * 1024**2, "include_dashboard": False}


@pytest.fixture
def nodes():
    """A head and two more nodes on this machine, one CPU each: two workers fit even when one node is gone."""
    Path("/tmp/ray").mkdir(exist_ok=True)  # cluster_utils expects it
    cluster = Cluster(initialize_head=True, head_node_args=_NODE)
    added = [
        cluster.add_node(**{key: value for key, value in _NODE.items() if key != "include_dashboard"}) for _ in "12"
    ]
    ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    yield added
    ray.shutdown()
    cluster.shutdown()


def train(cell: Cell, folder: Path, name: str, sink) -> None:
    config = load_run_config(
        JOBS / f"{FAMILIES[cell.family]}.yaml", [*cell.overrides(folder), f"output.run_name={name}"]
    )
    run_training(config, sink=sink, announce=lambda *_: None)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_killed_node_changes_nothing(cell, nodes, tmp_path):
    train(cell, tmp_path, "whole", lambda event: None)
    outcome = Outcome(cell)
    OUTCOMES.append(outcome)
    saved = []

    def strike(event) -> None:
        if isinstance(event, Note):
            saved.extend(step for step in [saved_step(event.text)] if step)
            outcome.resumed.extend(step for step in [resumed_step(event.text)] if step)
        elif isinstance(event, StepRecord) and saved and saved[-1] >= 9 and not outcome.kills:
            outcome.kills.append("node")
            outcome.announced.append(saved[-1])
            kill_node(nodes)

    train(cell, tmp_path, "killed", strike)
    assert outcome.resumed == last_saved(tmp_path / "killed")
    assert 0 < outcome.announced[0] <= outcome.resumed[0] < STEPS
    assert history(tmp_path / "killed", "step") == history(tmp_path / "whole", "step")
    assert weights_hash(tmp_path / "killed") == weights_hash(tmp_path / "whole")
    outcome.verdict = "bit-equal"


def kill_node(nodes) -> None:
    """SIGKILL to the raylet of a node that runs a worker, and to all its children."""
    for node in nodes:
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        family = [raylet, *raylet.children(recursive=True)]
        if any("RayTrainWorker" in " ".join(each.cmdline()) for each in family):
            for each in family:
                os.kill(each.pid, signal.SIGKILL)
            return
    raise AssertionError("no worker runs on the added nodes")
