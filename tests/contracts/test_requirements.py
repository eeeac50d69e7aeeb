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
RUN = {canonicalize_name(r.name): r for r in map(Requirement, PROJECT["dependencies"])}
DEV = {canonicalize_name(r.name): r for r in map(Requirement, PROJECT["optional-dependencies"]["dev"])}
# Modules that come with a package of another name.
PACKAGE_OF = {"yaml": "pyyaml", "starlette": "fastapi", "pydantic_core": "pydantic"}


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in wanted}


def imported() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in (ROOT / "platform" / "rayloom").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            found |= {name.split(".")[0]: path for name in names}
    return found


def test_every_third_party_import_is_declared() -> None:
    ours = sys.stdlib_module_names | {"rayloom"}
    names = {name: path for name, path in imported().items() if name not in ours}
    assert len(names) > 10
    undeclared = {n: str(p) for n, p in names.items() if canonicalize_name(PACKAGE_OF.get(n, n)) not in RUN}
    assert undeclared == {}


def test_every_direct_dependency_is_pinned_inside_its_range() -> None:
    pinned = pins()
    assert set(pinned) == set(RUN) | set(DEV)
    for name, declared in (RUN | DEV).items():
        (specifier,) = pinned[name].specifier
        assert specifier.operator == "=="
        assert declared.specifier.contains(specifier.version), f"{name} {specifier} is not in {declared.specifier}"
        assert (pinned[name].extras, pinned[name].marker) == (declared.extras, declared.marker)
