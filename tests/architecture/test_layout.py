"""The shape of the source tree: names, lengths, exports, and what a light import may not bring in."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "platform" / "rayloom"
MODULES = sorted(PACKAGE.rglob("*.py"))
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "shared", "base_utils"}
MAX_LINES = 400
HEAVY = ("torch", "transformers", "ray", "fastapi", "deepspeed", "peft", "datasets", "matplotlib")


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_the_package_is_found() -> None:
    assert {"config", "data", "models", "training"} <= set(ROOMS)
    assert len(MODULES) > len(ROOMS)


def test_platform_is_no_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists(), "it would hide Python's own platform module"


def test_no_module_has_a_name_that_says_nothing() -> None:
    everything = [*MODULES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    assert [path for path in everything if path.stem in FORBIDDEN_NAMES or path.parent.name in FORBIDDEN_NAMES] == []


def test_no_module_is_too_long() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {path: length for path, length in lengths.items() if length > MAX_LINES} == {}


def test_every_module_says_what_it_is() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}
    assert [path for path, tree in trees.items() if not ast.get_docstring(tree)] == []


def test_annotations_are_never_evaluated_on_import() -> None:
    def defers(path: Path) -> bool:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        defines = any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body)
        futures = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
        return bool(futures) or not defines

    assert [path for path in MODULES if not defers(path)] == []


def test_every_public_name_of_a_room_exists() -> None:
    # Here and not in a fresh interpreter: by now most rooms have been imported.
    for room in ROOMS:
        module = importlib.import_module(f"rayloom.{room}")
        listed = getattr(module, "__all__", [])
        assert listed, f"rayloom.{room} has no __all__"
        assert len(set(listed)) == len(listed)
        assert not [name for name in listed if name.startswith("_")]
        assert [name for name in listed if not hasattr(module, name)] == []


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("rayloom", HEAVY),
        ("rayloom.errors", HEAVY),
        ("rayloom.config", HEAVY),
        ("rayloom.artifacts", ("torch", "transformers", "ray", "fastapi")),
        ("rayloom.cli", HEAVY),
    ],
)
def test_light_modules_import_nothing_heavy(module: str, unwanted: tuple[str, ...]) -> None:
    code = f"import json, sys, {module}\nprint(json.dumps([n for n in {unwanted!r} if n in sys.modules]))"
    assert json.loads(python(code)) == []
