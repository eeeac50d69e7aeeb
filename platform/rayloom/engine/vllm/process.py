"""vLLM's process, seen from here: started, spoken with in lines of JSON, and ended."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import subprocess
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayloom.errors import EngineError, ModelError

PYTHON_VARIABLE = "RAYLOOM_VLLM_PYTHON"
"""Environment variable that names the Python of the environment that vLLM is installed in."""

_WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How vLLM is opened.

    Attributes:
        engine: Arguments of vLLM's ``EngineArgs``.
        threads: Compute threads; 0 for vLLM's own choice.
        environment: Environment variables of its process.
    """

    engine: Mapping[str, Any]
    threads: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)


def find_python() -> str:
    """The Python that has vLLM.

    Raises:
        ModelError: None is named, or what is named cannot be run.
    """
    named = os.environ.get(PYTHON_VARIABLE)
    if not named:
        raise ModelError(
            "engine vllm runs in an environment of its own, because vLLM wants other versions of libraries: make one "
            f"(python3.11 -m venv ~/vllm && ~/vllm/bin/pip install vllm), and set {PYTHON_VARIABLE} to its bin/python"
        )
    found = shutil.which(os.path.expanduser(named))
    if found is None:
        raise ModelError(f"{PYTHON_VARIABLE}: {named} cannot be run; it is to be the Python that vLLM is installed for")
    return found


class VllmProcess:
    """A process that runs `rayloom.engine.vllm.worker`.

    Args:
        settings: How vLLM is opened.

    Raises:
        ModelError: vLLM is not there, or cannot open the model.
    """

    def __init__(self, settings: Settings) -> None:
        clean = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
        self._process = subprocess.Popen(
            [find_python(), "-s", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=clean | dict(settings.environment),
        )
        # Reads on after this object is gone, so it may not refer to it.
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=_read_lines, args=(self._process.stdout, self._lines), daemon=True).start()
        self._end = weakref.finalize(self, _end, self._process)
        self.send({"engine": dict(settings.engine), "threads": settings.threads})
        first = self._lines.get()
        opened = (
            json.loads(first) if first else {"error": f"its process ended ({self._process.wait()}); see its log above"}
        )
        if "error" in opened:
            self._end()
            raise ModelError(f"vLLM cannot open this model: {opened['error']}")
        self.max_length = int(opened["max_length"])

    def send(self, message: Mapping[str, Any]) -> None:
        """Write one line.

        Raises:
            EngineError: The process is gone.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError):
            raise self._gone() from None

    def receive(self, timeout_s: float) -> list[dict[str, Any]]:
        """What vLLM has made since the last call; waits for it, but not for longer than this.

        Raises:
            EngineError: The process is gone.
        """
        told: list[dict[str, Any]] = []
        with contextlib.suppress(queue.Empty):
            line = self._lines.get(timeout=timeout_s)
            while line is not None:
                told += json.loads(line)
                line = self._lines.get_nowait()
            raise self._gone()
        return told

    def _gone(self) -> EngineError:
        self._lines.put(None)  # for the next one who asks
        code = self._process.wait()
        return EngineError(f"vLLM's process has ended (code {code}); its own log says why. Open the model again")


def _read_lines(source: Any, lines: queue.SimpleQueue[str | None]) -> None:
    with source:
        for line in source:
            lines.put(line)
    lines.put(None)


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
