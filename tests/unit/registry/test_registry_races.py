"""Promotions from several real processes at once: one production version, a history without a gap, no failed gate."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rayloom.errors import RegistryError
from rayloom.registry import Registry, rows
from tests.unit.registry import racing
from tests.unit.registry.publishing import publish_artifact

SCRIPT = str(Path(racing.__file__))
ROUNDS = 12


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = Registry(tmp_path / "registry")
    for number in range(1, 5):
        registry.register("qa", publish_artifact(tmp_path, f"run{number}"))
    registry.promote(racing.verdict(registry, 1, passed=True).id)
    return registry


def started(registry: Registry, number: int, mode: str) -> subprocess.Popen[str]:
    command = [sys.executable, SCRIPT, str(registry.root), str(number), str(ROUNDS), mode]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_one_version_is_in_production_whatever_processes_do_at_once(registry: Registry) -> None:
    modes = {1: "promote", 2: "promote", 3: "rollback", 4: "fail"}
    processes = {number: started(registry, number, mode) for number, mode in modes.items()}
    while any(process.poll() is None for process in processes.values()):
        inside = [version.version for version in registry.versions("qa") if version.stage == "production"]
        assert len(inside) == 1
        assert inside != [4]
    outputs = {number: process.communicate() for number, process in processes.items()}
    assert {number: process.returncode for number, process in processes.items()} == dict.fromkeys(modes, 0), outputs
    won = {number: int(output) for number, (output, _) in outputs.items()}
    assert won[4] == 0
    assert sum(count > 0 for count in won.values()) >= 2
    changes = [each for each in registry.history("qa") if each.action in ("promoted", "rolled back to")]
    assert len(changes) == 1 + sum(won.values())
    current = changes[0].version
    for change in changes[1:]:
        assert change.detail == f"in place of {current}"  # each change was made to the state that the one before left
        assert change.version != current
        current = change.version
    assert registry.get("qa").version == current


def test_a_process_killed_before_its_commit_changes_nothing(registry: Registry) -> None:
    process = started(registry, 2, "die")
    _, error = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, error
    assert [version.stage for version in registry.versions("qa")] == ["production", "none", "none", "none"]
    assert registry.promote(racing.verdict(registry, 2, passed=True).id).version == 2


def test_a_promotion_that_fails_at_its_end_changes_nothing(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = racing.verdict(registry, 2, passed=True)

    def fail(*_: object) -> None:
        raise RegistryError("the last statement failed")

    with monkeypatch.context() as patch:
        patch.setattr(rows, "note", fail)
        with pytest.raises(RegistryError, match="last statement"):
            registry.promote(judged.id)
    assert [version.stage for version in registry.versions("qa")] == ["production", "none", "none", "none"]
    assert registry.promote(judged.id).stage == "production"


def test_processes_that_register_one_artifact_at_once_get_one_version(registry: Registry, tmp_path: Path) -> None:
    place = publish_artifact(tmp_path, "same")
    code = (
        f"from rayloom.registry import Registry; print(Registry({str(registry.root)!r}).register('qa', {place!r}).name)"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [output.strip() for output, _ in outputs] == ["qa@5"] * 2, outputs
    assert not [path for path in (registry.root / "artifacts").iterdir() if re.search(r"\.new-", path.name)]
