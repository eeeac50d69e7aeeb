"""The same on S3: a worker and then the driver die, and the run goes on from the bucket."""

from __future__ import annotations

import random

import pytest

from rayloom.launch import Run
from rayloom.launch.tracking.folder import RunFolder
from rayloom.launch.tracking.status import read_history
from tests.faults.disturbed import STEPS, Cell, Outcome, disturbed
from tests.faults.table import OUTCOMES

pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")

pytestmark = pytest.mark.slow


@pytest.fixture
def bucket(monkeypatch):
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "ENDPOINT_URL": f"http://{host}:{port}",
        "ACCESS_KEY_ID": "x",
        "SECRET_ACCESS_KEY": "x",
        "DEFAULT_REGION": "us-east-1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    name = f"bucket-{random.randrange(10**9)}"
    s3fs.S3FileSystem().mkdir(name)
    yield f"s3://{name}/runs"
    server.stop()


def test_a_run_on_s3_survives_kills(bucket):
    outcome = Outcome(Cell("t5", None, packed=False))
    OUTCOMES.append(outcome)
    disturbed(outcome.cell, bucket, outcome, kills=("worker", "driver"))
    assert len(outcome.resumed) == 2
    for announced, resumed in zip(outcome.announced, outcome.resumed, strict=True):
        assert 0 < announced <= resumed < STEPS
    run = Run(bucket, "killed")
    assert read_history(RunFolder(run.path))[-1]["step"] == STEPS
    outcome.verdict = "finished (S3)"
