"""What is checked before a run starts any worker, and what it makes of what workers return."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from rayloom.errors import ConfigError, DivergedError, TrainingError
from rayloom.launch.session import Cluster
from rayloom.launch.training import _returned, check_resources
from rayloom.launch.worker import told
from rayloom.training import Progress
from tests.fakes import run_config

ONE_GPU = Cluster(None, 16, 1)


@pytest.mark.parametrize("use_gpu", [True, "auto"])
def test_more_gpu_workers_than_gpus_are_refused_since_ray_would_wait_for_ever(use_gpu):
    config = run_config(distributed={"num_workers": 2, "use_gpu": use_gpu})
    with pytest.raises(ConfigError, match=r"2 workers take a GPU each, but this machine has 1.*use_gpu: false"):
        check_resources(config, ONE_GPU)


@pytest.mark.parametrize(
    "workers",
    [{"num_workers": 1}, {"num_workers": 2, "use_gpu": False}, {"num_workers": 2, "min_workers": 1}],
)
def test_workers_that_have_room_are_accepted(workers):
    check_resources(run_config(distributed=workers), ONE_GPU)


def test_a_cluster_that_was_joined_may_grow():
    check_resources(run_config(distributed={"num_workers": 2}), Cluster("10.0.0.1:6379", 16, 1))


def ended(error: Exception | None) -> dict[str, object]:
    def train() -> Progress:
        if error is not None:
            raise error
        return Progress(step=7)

    returned = told(train, torch.device("cpu"))
    return _returned(SimpleNamespace(return_value=returned))


def test_the_driver_learns_how_training_ended():
    end = ended(None)
    assert (end["step"], end["peak_host_bytes"] > 0) == (7, True)


def test_divergence_reaches_the_driver_without_a_worker_that_ray_would_replace():
    with pytest.raises(DivergedError, match="step 3"):
        ended(DivergedError("step 3: …"))


def test_what_another_attempt_may_mend_is_raised_in_the_worker():
    with pytest.raises(TrainingError, match="did not come"):
        ended(TrainingError("the parts of workers [1] did not come"))
