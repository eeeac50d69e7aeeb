"""Every job file of the repository loads, and the data that it names is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayloom.config import DatasetConfig, RunConfig, SweepConfig, load_job, load_sweep

JOBS = Path(__file__).parents[2] / "jobs"
# Experiments are planned, which needs more than their config, in tests/unit/launch/experiments.
OTHERS = {JOBS / "data", JOBS / "experiments"}
FILES = sorted(path for path in JOBS.rglob("*.y*ml") if not OTHERS & set(path.parents))


def test_there_are_job_files() -> None:
    assert any(path.parent.name == "finetune" for path in FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(JOBS)))
def test_a_job_file_loads(path: Path) -> None:
    job = load_job(path)
    assert isinstance(job, RunConfig) == (path.parent.name == "finetune")
    assert isinstance(job, SweepConfig) == (path.parent.name == "sweep")
    if isinstance(job, SweepConfig):
        job = load_sweep(path).base  # the settings of each trial are checked
    if job.dataset is not None:
        assert [file for file in data_files(job.dataset) if not Path(file).is_file()] == []


def data_files(dataset: DatasetConfig) -> list[str]:
    files = (dataset.train_file, dataset.validation_file, dataset.test_file)
    return [file for file in files if file and "://" not in file]
