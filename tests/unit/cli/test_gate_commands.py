"""No command, and no method of the registry, gets a version into production that does not pass the gate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from rayloom.artifacts import open_artifact
from rayloom.cli.models import models_app
from rayloom.cli.sweep import sweep_app
from rayloom.config import ServingConfig
from rayloom.errors import RayloomError
from rayloom.launch.sweeping.asked import keep_asked
from rayloom.launch.sweeping.state import SweepState
from rayloom.launch.tracking.folder import RunFolder
from rayloom.registry import Registry, manifest_digest, open_registry
from rayloom.serving.following import source_of
from tests.unit.evaluation.gated import gate, measure
from tests.unit.launch.test_sweep_results import make_sweep, record
from tests.unit.registry.conftest import empty_database, place
from tests.unit.registry.publishing import publish_artifact

__all__ = ["empty_database", "place"]

app = typer.Typer()
app.add_typer(models_app, name="models")
app.add_typer(sweep_app, name="sweep")

# qa@1 is in production, qa@2 fails the gate. ARTIFACT and SWEEP are what qa@2 is made of.
ATTEMPTS = {
    "promote": ["models promote qa@2"],
    "named stage": ["models promote qa@2 --to production"],
    "as a candidate": ["models promote qa@2 --to candidate", "models promote qa@candidate"],
    "from the archive": ["models archive qa@2", "models promote qa@archived"],
    "check": ["models check qa@2", "models promote qa@2"],
    "rollback": ["models rollback qa"],
    "put the other away": ["models archive qa@production", "models promote qa@2"],
    "move the other": ["models promote qa@production --to candidate", "models promote qa@2"],
    "register": ["models register qa ARTIFACT", "models promote qa"],
    "register what is changed": ["models register qa ARTIFACT --no-copy", "models promote qa@2"],
    "sweep": ["sweep promote SWEEP --name qa", "models promote qa@2"],
    "gate of nothing": ["models gate qa EMPTY", "models promote qa@2"],
}
READING = {"models list", "models show", "models diff", "sweep run", "sweep show"}


@pytest.fixture(params=["embedded", pytest.param("mlflow", marks=pytest.mark.slow)])
def registry(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """qa@1 in production; qa@2, whose ROUGE-L is too low; its artifact, and a sweep that it has won."""
    if request.param == "mlflow":
        pytest.importorskip("sqlalchemy")
        request.getfixturevalue("place")
    else:
        monkeypatch.setenv("RAYLOOM_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.setenv("RAYLOOM_CACHE", str(tmp_path / "cache"))
    registry = open_registry()
    registry.register("qa", publish_artifact(tmp_path, "good"))
    registry.register("qa", publish_artifact(tmp_path, "bad"))
    registry.set_gate("qa", gate(0.5))
    for version, rouge in {1: 0.9, 2: 0.1}.items():
        measure(registry, version, rouge)
    assert "qa@1 is production now" in run("models promote qa@1", tmp_path)
    sweep = RunFolder(str(tmp_path / "sweep"))
    keep_asked(make_sweep(), sweep)
    state = SweepState(sweep)
    state.trials = {0: record(0, 2.0)}
    state.trials[0].artifact = str(tmp_path / "bad")
    state.save()
    (tmp_path / "empty.yaml").write_text("metrics: {rougeL: {min: 0.2}}\nsplit: validation\ngolden_replay: false\n")
    return registry


def run(line: str, folder: Path) -> str:
    """What a command says, or what it is refused with."""
    places = {"ARTIFACT": "bad", "SWEEP": "sweep", "EMPTY": "empty.yaml"}
    words = [str(folder / places[word]) if word in places else word for word in line.split()]
    result = CliRunner().invoke(app, words)
    assert result.exception is None or isinstance(result.exception, RayloomError | SystemExit), result.exception
    return result.output + str(result.exception or "")


def holds(registry: Registry) -> bool:
    """Whether production has what passed, and nothing else."""
    stages = {version.version: version.stage for version in registry.versions("qa")}
    inside = [version for version, stage in stages.items() if stage == "production"]
    where = registry.resolve("qa@production")
    return inside == [1] and open_artifact(where).manifest.name == "good"


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_no_command_gets_it_into_production(attempt: str, registry: Registry, tmp_path: Path) -> None:
    said = [run(line, tmp_path) for line in ATTEMPTS[attempt]]
    assert holds(registry)
    assert "qa@2 is production" not in " ".join(said)


def test_every_command_that_could_is_among_them() -> None:
    commands = {
        f"{group} {command.name or command.callback.__name__.strip('_')}"  # type: ignore[union-attr]
        for group, each in {"models": models_app, "sweep": sweep_app}.items()
        for command in each.registered_commands
    }
    tried = {" ".join(line.split()[:2]) for lines in ATTEMPTS.values() for line in lines}
    assert tried | READING == commands


CALLS: dict[str, Callable[[Registry, Path], object]] = {
    "register": lambda registry, folder: registry.register("qa", folder / "bad"),
    "attach_report": lambda registry, _: measure(registry, 2, 0.2),
    "set_gate": lambda registry, _: registry.set_gate("qa", gate(0.3)),
    "record": lambda registry, _: registry.record(registry.verdicts("qa@1")[-1].model_copy(update={"version": 2})),
    "promote": lambda registry, _: registry.promote(registry.verdicts("qa@2")[-1].id),
    "nominate": lambda registry, _: registry.nominate("qa@2"),
    "archive": lambda registry, _: registry.archive("qa@2"),
    "rollback": lambda registry, _: registry.rollback("qa", expected=1),
}
ASKING = {"get", "gate", "history", "models", "production", "read_report", "resolve", "verdicts", "versions"}


@pytest.mark.parametrize("call", CALLS)
def test_no_method_gets_it_into_production(call: str, registry: Registry, tmp_path: Path) -> None:
    run("models check qa@2", tmp_path)  # so that there is a verdict to misuse
    try:
        CALLS[call](registry, tmp_path)
        for verdict in registry.verdicts("qa@2"):
            registry.promote(verdict.id)
    except RayloomError:
        pass
    assert holds(registry)


def test_every_method_that_could_is_among_them() -> None:
    methods = {name for name in vars(Registry) if not name.startswith("_")}
    assert methods == set(CALLS) | ASKING


def test_a_sweeps_winner_is_a_version_like_any_other(registry: Registry, tmp_path: Path) -> None:
    publish_artifact(tmp_path, "won")
    state = SweepState(RunFolder(str(tmp_path / "sweep")))
    state.trials[0].artifact = str(tmp_path / "won")
    state.save()
    said = run("sweep promote SWEEP --name qa", tmp_path)
    assert "registered: qa@3" in said
    version = registry.get("qa@3")
    assert (version.stage, version.digest) == ("none", manifest_digest(str(tmp_path / "won")))
    assert "not measured yet" in run("models promote qa@3", tmp_path)
    assert holds(registry)


def test_what_is_served_goes_forward_by_the_gate_and_back_by_a_rollback(registry: Registry, tmp_path: Path) -> None:
    served = ServingConfig(artifact="qa@production")
    registry.register("qa", publish_artifact(tmp_path, "better"))
    measure(registry, 3, 0.95)
    before = source_of(served)
    assert before.version == "qa@1"
    run("models promote qa@2", tmp_path)
    assert source_of(served) == before
    run("models promote qa@3", tmp_path)
    assert source_of(served).version == "qa@3"
    assert "qa@1 is production again, in place of qa@3" in run("models rollback qa", tmp_path)
    assert source_of(served) == before
    assert open_artifact(before.artifact).manifest.name == "good"
