"""Which code made an artifact."""

from __future__ import annotations

import importlib.metadata
import subprocess
from functools import lru_cache
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_WAIT_S = 10.0


@lru_cache
def code_version() -> str:
    """Version of this package; in a git checkout of it with the commit, as in ``0.1.0+g1a2b…``.

    ``.dirty`` at the end says that the package had changes that were not committed.
    """
    version = importlib.metadata.version("rayloom")
    # A virtual environment may lie in somebody else's repository: only one that holds these very files counts.
    if not _git("ls-files", "--", "__init__.py"):
        return version
    commit, changed = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", ".")
    return f"{version}+g{commit}{'.dirty' if changed else ''}" if commit else version


def _git(*arguments: str) -> str:
    """What git prints; empty where it fails or is not there."""
    command = ["git", "-C", str(_PACKAGE), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_WAIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
