"""A training run in a process of its own that can be killed, and what it has said and stored."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from rayloom.training.commits import COMMIT, Commit

PATIENCE_S = 900.0
"""Longest silence of a run: starting workers takes half a minute on an idle machine."""
_PROGRAM = "from rayloom.cli.app import main; main()"
_SAVED, _RESUMED = re.compile(r"^saved step (\d+)"), re.compile(r"^resumed at step (\d+) of (\d+)")
_STEP = re.compile(r"^step (\d+)/(\d+)")


class Driver:
    """``rayloom train`` with its own local Ray; use as a context.

    Args:
        job: Config file.
        overrides: ``a.b=c``.
        name: Of the run.
        resume: Go on with it.
    """

    def __init__(self, job: Path, overrides: list[str], *, name: str, resume: bool) -> None:
        run = ["--resume", name] if resume else ["--set", f"output.run_name={name}"]
        sets = [part for override in overrides for part in ("--set", override)]
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, "train", str(job), *sets, *run],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.said: list[str] = []
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def next_line(self) -> str | None:
        """The next line, None at the end.

        Raises:
            TimeoutError: Nothing came for `PATIENCE_S`.
        """
        try:
            line = self._lines.get(timeout=PATIENCE_S)
        except queue.Empty:
            raise TimeoutError(f"the run says nothing more; last:\n{self.tail()}") from None
        if line is not None:
            self.said.append(line)
        return line

    def finish(self) -> None:
        """Read to the end; the run must succeed."""
        while self.next_line() is not None:
            pass
        assert self._process.wait(PATIENCE_S) == 0, self.tail()

    def workers(self) -> list[int]:
        """Processes of Ray Train's workers."""
        return sorted(each.pid for each in self._family() if _title(each).startswith("ray::RayTrainWorker"))

    def kill(self) -> None:
        """SIGKILL to the driver; its local Ray has to notice by itself."""
        family = self._family()
        if self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()
        _, orphans = psutil.wait_procs(family, timeout=60)
        for orphan in orphans:  # these we have started; they must not disturb the next run
            orphan.kill()
        self._listener.join()  # ends when nobody holds the other end of the pipe any more

    def tail(self) -> str:
        """The last lines."""
        return "\n".join(self.said[-30:])

    def _family(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line.rstrip("\n"))
        self._lines.put(None)


def saved_step(line: str) -> int | None:
    """Step that a line announces as saved."""
    match = _SAVED.match(line)
    return int(match[1]) if match else None


def resumed_step(line: str) -> int | None:
    """Step that a line says the run goes on from."""
    match = _RESUMED.match(line)
    return int(match[1]) if match else None


def logged_step(line: str) -> int | None:
    """Step whose loss a line gives."""
    match = _STEP.match(line)
    return int(match[1]) if match else None


def history(run: Path, kind: str) -> dict[int, dict[str, Any]]:
    """The figures of each step that do not depend on speed; a repeated step counts as it came last."""
    records = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    wanted = ("loss", "learning_rate", "grad_norm", "epoch", "metrics", "samples")
    return {
        each["step"]: {name: each[name] for name in wanted if name in each} for each in records if each["kind"] == kind
    }


def commits(run: Path) -> list[Commit]:
    """All checkpoints of a run, as they were committed one after the other."""
    marks = [Commit.parse(path.read_bytes()) for path in (run / "checkpoints").glob(f"step-*/{COMMIT}")]
    return sorted(marks, key=lambda commit: commit.committed)


def weights_hash(run: Path) -> str:
    """SHA-256 of the weights of the last checkpoint."""
    return commits(run)[-1].files["weights.safetensors"].sha256


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""


def kill(pid: int) -> None:
    """SIGKILL."""
    os.kill(pid, signal.SIGKILL)


def pause(seconds: float) -> None:
    """Let a run go on for a moment, so that the kill comes at any point of it."""
    time.sleep(seconds)
