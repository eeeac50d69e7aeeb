"""Every job file of the repository loads, and the data that it names is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayloom.config import DatasetConfig, RunConfig, load_job

JOBS = Path(__file__).parents[2] / "jobs"
FILES = sorted(path for path in JOBS.rglob("*.y*ml") if JOBS / "data" not in path.parents)


def test_there_are_job_files() -> None:
    assert any(path.parent.name == "finetune" for path in FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(JOBS)))
def test_a_job_file_loads(path: Path) -> None:
    job = load_job(path)
    assert isinstance(job, RunConfig) == (path.parent.name != "evaluate")
    if job.dataset is not None:
        assert [file for file in data_files(job.dataset) if not Path(file).is_file()] == []


def data_files(dataset: DatasetConfig) -> list[str]:
    files = (dataset.train_file, dataset.validation_file, dataset.test_file)
    return [file for file in files if file and "://" not in file]
