"""What the code imports is declared, and what is declared is pinned to a version inside its range."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def named(lines: list[str]) -> dict[str, Requirement]:
    """By name, without our own extras."""
    wanted = {canonicalize_name(each.name): each for each in map(Requirement, lines)}
    return {name: each for name, each in wanted.items() if name != "rayloom"}


RUN = named(PROJECT["dependencies"])
OPTIONAL = named([line for extra, lines in EXTRAS.items() if extra != "dev" for line in lines])
DEV = named(EXTRAS["dev"])
# Modules that come with a package of another name.
PACKAGE_OF = {
    "yaml": "pyyaml",
    "starlette": "fastapi",
    "pydantic_core": "pydantic",
    "mlflow": "mlflow-skinny",
    "pythonjsonlogger": "python-json-logger",
    "opentelemetry": "opentelemetry-sdk",
}


# Runs under the Python of vLLM's own environment.
ELSEWHERE = ROOT / "platform" / "rayloom" / "engine" / "vllm" / "worker.py"


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in wanted}


def imported(*, at_once: bool = False) -> dict[str, Path]:
    """Top-level names of modules that the code imports.

    Args:
        at_once: Only those that importing our module imports, not those that a function imports when it is called.
    """
    found: dict[str, Path] = {}
    for path in set((ROOT / "platform" / "rayloom").rglob("*.py")) - {ELSEWHERE}:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body if at_once else ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            found |= {name.split(".")[0]: path for name in names}
    return found


def package(module: str) -> str:
    return canonicalize_name(PACKAGE_OF.get(module, module))


def test_every_third_party_import_is_declared() -> None:
    ours = sys.stdlib_module_names | {"rayloom"}
    names = {name: path for name, path in imported().items() if name not in ours}
    assert len(names) > 10
    undeclared = {n: str(p) for n, p in names.items() if package(n) not in RUN | OPTIONAL}
    assert undeclared == {}


def test_packages_of_extras_are_imported_only_when_they_are_asked_for() -> None:
    assert {name: str(path) for name, path in imported(at_once=True).items() if package(name) in OPTIONAL} == {}
    assert "mlflow" in imported()


def test_every_direct_dependency_is_pinned_inside_its_range() -> None:
    pinned = pins()
    assert set(pinned) == set(RUN) | set(OPTIONAL) | set(DEV)
    for name, declared in (RUN | OPTIONAL | DEV).items():
        (specifier,) = pinned[name].specifier
        assert specifier.operator == "=="
        assert declared.specifier.contains(specifier.version), f"{name} {specifier} is not in {declared.specifier}"
        assert (pinned[name].extras, pinned[name].marker) == (declared.extras, declared.marker)
