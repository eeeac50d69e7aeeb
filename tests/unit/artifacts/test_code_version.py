from __future__ import annotations

import importlib.metadata
import re
import subprocess
from pathlib import Path

import pytest

from rayloom.artifacts import code_version


def test_a_checkout_names_its_commit() -> None:
    found = code_version()
    assert found.startswith(importlib.metadata.version("rayloom"))
    done = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("no git checkout")
    assert re.fullmatch(rf"[0-9.]+\+g{done.stdout.strip()}(\.dirty)?", found)
