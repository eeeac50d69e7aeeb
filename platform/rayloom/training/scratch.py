"""Temporary folders that know whose they are, so that those of killed processes can be removed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

_OWNED = re.compile(r"rayloom-[a-z]+-(\d+)-\w+")


def make_scratch(purpose: str, inside: Path | None = None) -> Path:
    """A new folder; the caller removes it.

    Args:
        purpose: A word of small letters, for people who find it.
        inside: Where; this machine's temporary folder where not given.
    """
    return Path(tempfile.mkdtemp(prefix=f"rayloom-{purpose}-{os.getpid()}-", dir=inside))


@contextlib.contextmanager
def scratch(purpose: str) -> Iterator[Path]:
    """As `make_scratch`, for as long as the context lasts."""
    folder = make_scratch(purpose)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep_scratch() -> None:
    """Remove what killed processes have left in this machine's temporary folder: checkpoints take gigabytes."""
    for folder in Path(tempfile.gettempdir()).glob("rayloom-*-*-*"):
        owned = _OWNED.fullmatch(folder.name)
        if owned and not psutil.pid_exists(int(owned[1])):
            shutil.rmtree(folder, ignore_errors=True)
