"""Clients that nobody here wrote run in an environment of their own: `make test-clients` makes it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

HOME = Path(os.environ.get("CLIENTS", Path.home() / ".cache" / "rayloom-bench" / "clients"))


def needs(program: str) -> pytest.MarkDecorator:
    """Skips where a program of the environment is missing."""
    found = (HOME / "bin" / program).exists()
    return pytest.mark.skipif(not found, reason=f"{program} is not installed in {HOME}: run `make test-clients`")


def run(program: str, *arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the environment, without a terminal and without the network but for loopback."""
    command: list[Any] = [HOME / "bin" / program, *arguments]
    own = {"NO_COLOR": "1", "COLUMNS": "160", "LANGSMITH_TRACING": "false", "NO_PROXY": "*"}
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | own | environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
