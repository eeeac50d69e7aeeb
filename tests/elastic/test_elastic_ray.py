"""Elastic workers on Ray: a node goes, and the run goes on with one worker; one comes, and it has two again."""

from __future__ import annotations

import functools
import logging
import os
import signal
from pathlib import Path

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.train import ScalingConfig

from rayloom.config import load_run_config
from rayloom.launch import run_training, training
from rayloom.launch.progress import Note
from rayloom.training import StepRecord
from rayloom.training.commits import COMMIT, Commit

pytestmark = [pytest.mark.slow, pytest.mark.ray]

JOB = Path(__file__).parents[2] / "jobs" / "finetune" / "tiny_gpt_neo_lm.yaml"
STEPS = 900
NODE = {"num_cpus": 1, "object_store_memory": 128 * 1024**2}
NOISE = 1e-4
"""Relative, after hundreds of steps that each add float32's rounding (1e-7) in another order."""


@pytest.fixture
def cluster(monkeypatch):
    """A head and one more node on this machine, one CPU each; looked at often, so that growing shows soon."""
    often = functools.partial(ScalingConfig, elastic_resize_monitor_interval_s=5.0)
    monkeypatch.setattr(training, "ScalingConfig", often)
    Path("/tmp/ray").mkdir(exist_ok=True)  # cluster_utils expects it
    # Its hooks for the end of the process can be set in the main thread only, and a node is added from another.
    head = NODE | {"include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
    cluster.add_node(**NODE)
    ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def train(folder: Path, name: str, sink) -> None:
    overrides = {
        "output.storage_path": folder,
        "output.run_name": name,
        "dataset.max_input_length": 48,
        "training.max_steps": STEPS,
        "training.num_epochs": 500,
        "training.batch_size": 16,
        "training.checkpoint_every_steps": 25,
        "training.save_total_limit": 100,
        "training.logging_steps": 1,
        "training.learning_rate": 1e-3,
        "training.eval_every_epochs": 500,
        "distributed.min_workers": 1,
    }
    config = load_run_config(JOB, [f"{key}={value}" for key, value in overrides.items()])
    run_training(config, sink=sink, announce=lambda *_: None)


def test_a_run_shrinks_and_grows_and_stays_the_same_run(cluster, tmp_path):
    whole: dict[int, float] = {}
    train(tmp_path, "whole", lambda event: keep(whole, event))
    losses: dict[int, float] = {}
    resumed: list[int] = []

    def watch(event) -> None:
        keep(losses, event)
        if isinstance(event, Note) and event.text.startswith("resumed at step"):
            resumed.append(int(event.text.split()[3]))
            if len(resumed) == 1:
                cluster.add_node(**NODE, wait=False)
        elif isinstance(event, StepRecord) and event.step == 40 and not resumed:
            kill_node(cluster)

    train(tmp_path, "elastic", watch)
    marks = [Commit.parse(path.read_bytes()) for path in (tmp_path / "elastic/checkpoints").glob(f"step-*/{COMMIT}")]
    sizes = [mark.world_size for mark in sorted(marks, key=lambda mark: mark.step)]
    print(f"\nworkers of each checkpoint {sizes}; resumed at {resumed}")  # noqa: T201
    assert [size for size, before in zip(sizes, [0, *sizes], strict=False) if size != before] == [2, 1, 2]
    assert len(resumed) == 2
    assert all(step > 0 for step in resumed)
    assert set(losses) == set(whole) == set(range(1, STEPS + 1))
    deviation = max(abs(losses[step] / whole[step] - 1.0) for step in whole)
    print(f"loss, relative: {deviation:.1e}")  # noqa: T201
    assert deviation < NOISE


def keep(losses: dict[int, float], event) -> None:
    if isinstance(event, StepRecord):
        losses[event.step] = event.loss


def kill_node(cluster: Cluster) -> None:
    """SIGKILL to everything of the node that is not the head."""
    (node,) = cluster.worker_nodes
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for each in [raylet, *raylet.children(recursive=True)]:
        os.kill(each.pid, signal.SIGKILL)
