"""Jobs on a cluster that `ray start --head` made: `rayloom submit` and plain `ray job submit`."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rayloom.artifacts import open_artifact

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
FAST = (
    "training.max_steps=4",
    "training.eval_rows=0",
    "dataset.max_train_rows=64",
    "training.logging_steps=1",
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def head() -> Iterator[dict[str, str]]:
    """A head node of its own ports, temp folder and token; stopped by its own process group."""
    temp_dir = tempfile.mkdtemp(prefix="rl-head-")
    port, dashboard = free_port(), free_port()
    token = Path(temp_dir) / "token"
    token.write_text("0" * 64)
    env = os.environ | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
    }
    env.pop("RAY_ADDRESS", None)
    command = [
        str(BIN / "ray"),
        "start",
        "--head",
        "--block",
        "--node-ip-address=127.0.0.1",
        f"--port={port}",
        "--num-cpus=2",
        "--object-store-memory=200000000",
        "--include-dashboard=true",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={free_port()}",  # the session's local Ray holds the usual one
        f"--temp-dir={temp_dir}",
        "--disable-usage-stats",
    ]
    with (Path(temp_dir) / "head.log").open("w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    env["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    try:
        wait_for_jobs(env, process)
        yield env
    finally:
        stop(process)
        shutil.rmtree(temp_dir, ignore_errors=True)


def stop(head: subprocess.Popen[bytes]) -> None:
    """End a head node with all that it has started. Left to itself it waits half a minute for its agents."""
    family = psutil.Process(head.pid).children(recursive=True)
    head.terminate()
    _, alive = psutil.wait_procs(family, timeout=3.0)
    for each in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    head.wait(timeout=60)


def wait_for_jobs(env: dict[str, str], process: subprocess.Popen[bytes]) -> None:
    for _ in range(30):
        assert process.poll() is None, "the head node died"
        listed = subprocess.run([BIN / "ray", "job", "list"], env=env, capture_output=True, timeout=60)
        if listed.returncode == 0:
            return
    raise AssertionError(listed.stderr.decode())


@pytest.mark.slow
def test_rayloom_submit_follows_the_job_to_its_artifact(head, tmp_path):
    sets = [
        part
        for override in (*FAST, f"output.storage_path={tmp_path}", "output.run_name=submitted")
        for part in ("--set", override)
    ]
    done = subprocess.run(
        [BIN / "rayloom", "submit", "jobs/finetune/tiny_t5_qa.yaml", *sets],
        cwd=ROOT,
        env=head,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 4/4" in done.stdout
    assert open_artifact(str(tmp_path / "submitted" / "artifact")).manifest.family == "t5"


@pytest.mark.slow
def test_plain_ray_job_submit_runs_the_same_command(head, tmp_path):
    sets = [
        part
        for override in (*FAST, f"output.storage_path={tmp_path}", "output.run_name=plain")
        for part in ("--set", override)
    ]
    done = subprocess.run(
        [
            BIN / "ray",
            "job",
            "submit",
            "--",
            "rayloom",
            "train",
            str(ROOT / "jobs/finetune/tiny_llama_lora_qa.yaml"),
            *sets,
        ],
        cwd=tmp_path,
        env=head,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 4/4" in done.stdout + done.stderr
    assert open_artifact(str(tmp_path / "plain" / "artifact")).manifest.kind == "adapter"


def test_a_failed_job_fails_the_command(head, tmp_path):
    sets = ["--set", f"output.storage_path={tmp_path}", "--set", "dataset.input_column=nonesuch"]
    done = subprocess.run(
        [BIN / "rayloom", "submit", "jobs/finetune/tiny_t5_qa.yaml", *sets],
        cwd=ROOT,
        env=head,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 1
    assert "nonesuch" in done.stdout
    assert "Traceback" not in done.stderr
