"""What a trial's process is told, and what it tells: lines of JSON through pipes. Light: neither torch nor ray."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

SCORE = "score"
"""What results call the figure that decides, whatever metric that is."""
TRIAL = "trial"
"""Key of a Tune config that holds ``number`` and ``values`` of a trial."""
HANDOVER = "handover.json"
"""In the folder of a run that began with another's checkpoint: the ``donor`` asked for, and what was ``taken``."""
STOP_SIGNAL = signal.SIGUSR1
"""Tells a trial's process to stop: ray.init takes SIGTERM for itself."""
_STOP_S = 20.0
"""A run that is told to stop takes a few seconds to give its workers back."""
_LOG_CHARACTERS = 2000


@dataclass(frozen=True)
class Order:
    """One attempt at a trial.

    Attributes:
        config: The run's config as JSON; its output section names the run.
        metric: What the sweep judges by.
        measured: Whether the artifact is measured row by row at the end.
        handover: Checkpoint of another trial to begin with, as in `rayloom.launch.sweeping.state.Handover`.
        only_last: Tell only the last of the validations that an earlier attempt has made.
        waits: After each validation, wait for the keeper to listen again before training goes on.
    """

    config: dict[str, Any]
    metric: str
    measured: bool
    handover: str | None = None
    only_last: bool = False
    waits: bool = False

    def dump(self) -> str:
        """One line."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def parse(cls, line: str) -> Order:
        """What `dump` wrote."""
        return cls(**json.loads(line))


class TrialProcess:
    """A trial's process, as its keeper sees it. It ends when the keeper does, for whatever reason.

    Args:
        order: What it is to do.
        log: File for what it prints.
        folder: Its working folder.
        environment: What it gets beside this process's own environment.
    """

    def __init__(self, order: Order, *, log: Path, folder: Path, environment: Mapping[str, str]) -> None:
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        reading, writing = os.pipe()
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rayloom.launch.sweeping.process", str(writing)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(writing,),
                cwd=folder,
                env={**os.environ, **environment},
                text=True,
                start_new_session=True,  # Ctrl-C is for the driver, which then tells us
            )
        os.close(writing)
        self._told: IO[str] = os.fdopen(reading, encoding="utf-8")
        self._has_told = False
        # What it is told ends only when this process does: that is how it learns of our death.
        self._order(order.dump())

    def _order(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, as listening to it will show
            self._process.stdin.write(line)
            self._process.stdin.flush()

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def listen(self) -> dict[str, Any] | None:
        """The next thing it tells, None once it has ended. What it told before is settled: it may go on."""
        if self._has_told:
            self._order("\n")
        line = self._told.readline()
        self._has_told = True
        return json.loads(line) if line.endswith("\n") else None

    def last_words(self) -> str:
        """How it ended, and the end of its log: for one that ended without telling why."""
        code = self._process.wait()
        text = self._log.read_bytes()[-_LOG_CHARACTERS:].decode(errors="replace").strip()
        return f"its process ended with code {code} and these last words ({self._log}):\n{text}"

    def stop(self) -> None:
        """End it: politely, so that its run gives back what it holds on the cluster, else by force."""
        if self._process.poll() is None:
            self._process.send_signal(STOP_SIGNAL)
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        self._told.close()
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()


def log_path(sweep: str, trial: str) -> Path:
    """Where a trial's process prints to: in the sweep's folder, or with a URI on the machine that it runs on."""
    root = Path(sweep) if "://" not in sweep else Path(tempfile.gettempdir()) / "rayloom-sweeps" / Path(sweep).name
    return root / "logs" / f"{trial}.log"
