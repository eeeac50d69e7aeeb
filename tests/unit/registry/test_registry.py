from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from rayloom.artifacts import open_artifact
from rayloom.config import GateConfig, config_hash
from rayloom.errors import ArtifactError, RegistryError
from rayloom.registry import Check, Registry, Verdict, is_reference, locate, parse_reference, resolve
from rayloom.registry.diff import differences
from tests.unit.registry.publishing import publish_artifact


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("RAYLOOM_REGISTRY", str(tmp_path / "registry"))
    return Registry()


def filled(registry: Registry, folder: Path, count: int) -> None:
    for number in range(1, count + 1):
        registry.register("qa", publish_artifact(folder, f"run{number}"))


def verdict(registry: Registry, version: int, *, passed: bool = True, **changes: object) -> Verdict:
    found = registry.get(f"qa@{version}")
    production = registry.production("qa")
    values = {
        "model": "qa",
        "version": version,
        "digest": found.digest,
        "production": production.version if production else None,
        "gate_hash": config_hash(registry.gate("qa")),
        "report_hash": found.report.sha256 if found.report else None,
        "checks": (Check(name="rougeL", passed=passed, detail="0.2, at least 0.3 wanted"),),
        "judged": "2026-01-01T00:00:00+00:00",
    }
    return registry.record(Verdict.model_validate(values | changes))


def stages(registry: Registry) -> list[str]:
    return [version.stage for version in registry.versions("qa")]


def test_a_version_has_its_lineage_and_a_copy_of_its_artifact(registry: Registry, tmp_path: Path) -> None:
    place = publish_artifact(tmp_path, "mill")
    version = registry.register("qa", place, note="first")
    assert (version.name, version.stage, version.note) == ("qa@1", "none", "first")
    lineage = version.lineage
    assert (lineage.run, lineage.source, lineage.data_hash) == ("mill", place, "d" * 64)
    assert (lineage.code_version, lineage.commit) == ("0.1.0", "0123456789abcdef")
    assert lineage.config["training"] == {"seed": 1}
    assert version.metrics == {"loss": 1.25, "perplexity": float("inf")}
    assert registry.get("qa@1") == version
    shutil.rmtree(place)
    assert open_artifact(registry.resolve("qa@1")).manifest.name == "mill"


def test_the_same_artifact_is_the_same_version_and_another_is_the_next(registry: Registry, tmp_path: Path) -> None:
    place = publish_artifact(tmp_path, "one")
    assert registry.register("qa", place).version == registry.register("qa", place).version == 1
    with pytest.raises(RegistryError, match="qa@1 is this very artifact already"):
        registry.register("qa", place, note="another")
    assert registry.register("qa", publish_artifact(tmp_path, "two")).version == 2
    assert registry.register("other", place).name == "other@1"
    assert [(each.model, each.num_versions) for each in registry.models()] == [("other", 1), ("qa", 2)]


def test_the_parent_is_found_in_the_config_or_given(registry: Registry, tmp_path: Path) -> None:
    first = publish_artifact(tmp_path, "one")
    registry.register("qa", first)
    second = publish_artifact(tmp_path, "two", config={"model": {"name": first}})
    assert registry.register("qa", second).lineage.parent == "qa@1"
    assert registry.register("qa", publish_artifact(tmp_path, "three"), parent="qa@2").lineage.parent == "qa@2"
    with pytest.raises(RegistryError, match="no version 9; it has 1, 2, 3"):
        registry.register("qa", publish_artifact(tmp_path, "four"), parent="qa@9")


def test_a_damaged_artifact_is_not_registered(registry: Registry, tmp_path: Path) -> None:
    place = Path(publish_artifact(tmp_path, "mill"))
    (place / "model" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ArtifactError):
        registry.register("qa", str(place))
    assert registry.models() == []
    with pytest.raises(RegistryError, match="cannot name a model"):
        registry.register("q/a", str(place))


def test_references_mean_versions_stages_or_production(registry: Registry, tmp_path: Path) -> None:
    filled(registry, tmp_path, 3)
    with pytest.raises(RegistryError, match=r"no version in production; its versions: 1 \(none\).*models promote"):
        resolve("qa")
    registry.nominate("qa@2")
    registry.nominate("qa@3")
    assert registry.get("qa@candidate").version == 3
    registry.promote(verdict(registry, 1).id)
    assert resolve("qa") == resolve("qa@production") == resolve("qa@1") == registry.get("qa@1").location
    for wrong, message in {
        "qb@1": "no model 'qb' in the registry; there are qa",
        "qa@7": "has no version 7; it has 1, 2, 3",
        "qa@latest": "expected qa@VERSION",
        "qa@0": "expected qa@VERSION",
        "qa@none": "expected qa@VERSION",
        "@1": "cannot name a model",
        "qa@archived": "no version in archived",
    }.items():
        with pytest.raises(RegistryError, match=message):
            resolve(wrong)
    assert parse_reference("qa").version is None


def test_only_names_with_an_at_sign_are_looked_up(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(registry, tmp_path, 1)
    for plain in ("t5-small", "runs/a/artifact", "s3://user@host/x", "./qa@1", "org/model@1"):
        assert not is_reference(plain)
        assert locate(plain) == plain
    assert locate("qa@1") == registry.get("qa@1").location
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qa@1").mkdir()
    assert locate("qa@1") == "qa@1"  # a folder of that name


def test_a_changed_or_lost_artifact_is_not_resolved(registry: Registry, tmp_path: Path) -> None:
    place = Path(publish_artifact(tmp_path, "one"))
    registry.register("qa", place, copy=False)
    assert registry.resolve("qa@1") == str(place)
    values = json.loads((place / "manifest.json").read_text())
    (place / "manifest.json").write_text(json.dumps(values | {"name": "other"}))
    with pytest.raises(RegistryError, match="holds another artifact"):
        registry.resolve("qa@1")
    shutil.rmtree(place)
    with pytest.raises(ArtifactError, match="cannot be read"):
        registry.resolve("qa@1")


def test_promotion_archives_the_old_version_and_rollback_brings_it_back(registry: Registry, tmp_path: Path) -> None:
    filled(registry, tmp_path, 3)
    for version in (1, 2, 3):
        registry.promote(verdict(registry, version).id)
    assert stages(registry) == ["archived", "archived", "production"]
    assert registry.rollback("qa", expected=3).version == 2
    assert stages(registry) == ["archived", "production", "archived"]
    assert registry.rollback("qa", expected=2).version == 1
    with pytest.raises(RegistryError, match="no earlier production version"):
        registry.rollback("qa", expected=1)
    assert stages(registry) == ["production", "archived", "archived"]
    # What was rolled back from never comes back by a rollback, only by another promotion.
    registry.promote(verdict(registry, 3).id)
    assert registry.rollback("qa", expected=3).version == 1
    actions = [change.action for change in registry.history("qa")]
    assert actions.count("promoted") == 4
    assert actions.count("rolled back to") == 3


def test_a_rollback_after_somebody_elses_is_refused(registry: Registry, tmp_path: Path) -> None:
    filled(registry, tmp_path, 3)
    for version in (1, 2, 3):
        registry.promote(verdict(registry, version).id)
    registry.rollback("qa", expected=3)
    with pytest.raises(RegistryError, match="has version 2 in production by now, not version 3"):
        registry.rollback("qa", expected=3)
    assert registry.get("qa").version == 2


def test_a_rollback_to_a_damaged_artifact_is_refused(registry: Registry, tmp_path: Path) -> None:
    filled(registry, tmp_path, 2)
    for version in (1, 2):
        registry.promote(verdict(registry, version).id)
    shutil.rmtree(registry.get("qa@1").location)
    with pytest.raises(RegistryError, match="its artifact is gone"):
        registry.rollback("qa", expected=2)
    assert registry.get("qa").version == 2


def test_what_fails_the_gate_is_not_promoted(registry: Registry, tmp_path: Path) -> None:
    filled(registry, tmp_path, 1)
    with pytest.raises(RegistryError, match="does not pass the gate: rougeL: 0.2, at least 0.3 wanted"):
        registry.promote(verdict(registry, 1, passed=False).id)
    with pytest.raises(RegistryError, match="no verdict 99"):
        registry.promote(99)
    assert stages(registry) == ["none"]


def test_a_verdict_is_void_once_anything_it_depends_on_has_changed(registry: Registry, tmp_path: Path) -> None:
    filled(registry, tmp_path, 3)
    judged = verdict(registry, 2)
    registry.promote(verdict(registry, 1).id)
    with pytest.raises(RegistryError, match="has version 1 in production by now, not no version"):
        registry.promote(judged.id)
    judged = verdict(registry, 2)
    registry.set_gate("qa", GateConfig(max_latency_p95_s=1.0))
    with pytest.raises(RegistryError, match="gate was changed"):
        registry.promote(judged.id)
    judged = verdict(registry, 2)
    registry.attach_report("qa@2", b"{}", {"test.rougeL": 0.5})
    with pytest.raises(RegistryError, match="another report"):
        registry.promote(judged.id)
    with pytest.raises(RegistryError, match="another artifact"):
        registry.promote(verdict(registry, 2, digest="0" * 64).id)
    manifest = Path(registry.get("qa@2").location) / "manifest.json"
    judged = verdict(registry, 2)
    manifest.write_text(manifest.read_text() + " ")
    with pytest.raises(RegistryError, match="holds another artifact"):
        registry.promote(judged.id)
    assert stages(registry) == ["production", "none", "none"]


def test_the_database_itself_refuses_what_goes_past_the_gate(registry: Registry, tmp_path: Path) -> None:
    filled(registry, tmp_path, 2)
    registry.promote(verdict(registry, 1).id)
    failed = verdict(registry, 2, passed=False).id
    for script in (
        "UPDATE versions SET stage = 'production' WHERE version = 2",
        f"""UPDATE versions SET stage = 'archived' WHERE version = 1; UPDATE promotions SET state = 'replaced';
        INSERT INTO promotions (model, version, verdict, state) VALUES ('qa', 2, {failed}, 'current');
        UPDATE versions SET stage = 'production' WHERE version = 2""",
        "INSERT INTO versions (model, version, stage, digest, record) VALUES ('qa', 9, 'production', 'x', '{}')",
        "UPDATE verdicts SET passed = 1",
        "UPDATE versions SET digest = 'x'",
    ):
        connection = sqlite3.connect(registry.root / "registry.db", isolation_level=None)
        try:
            connection.execute("BEGIN")
            *before, last = script.split(";")
            for statement in before:
                connection.execute(statement)
            with pytest.raises(sqlite3.IntegrityError):
                connection.execute(last)
            connection.execute("ROLLBACK")
        finally:
            connection.close()
    assert stages(registry) == ["production", "none"]


def test_production_is_not_archived_nor_made_a_candidate(registry: Registry, tmp_path: Path) -> None:
    filled(registry, tmp_path, 2)
    registry.promote(verdict(registry, 1).id)
    for move in (registry.archive, registry.nominate):
        with pytest.raises(RegistryError, match="models rollback qa"):
            move("qa@production")
    with pytest.raises(RegistryError, match="in production already"):
        registry.promote(verdict(registry, 1).id)
    assert registry.archive("qa@2").stage == "archived"
    assert registry.nominate("qa@2").stage == "candidate"
    assert stages(registry) == ["production", "candidate"]


def test_differences_are_in_lineage_config_and_metrics(registry: Registry, tmp_path: Path) -> None:
    one = registry.register("qa", publish_artifact(tmp_path, "one"))
    changed = {"model": {"name": "t5-small"}, "training": {"seed": 2}, "lora": {"r": 8}, "output": {"run_name": "x"}}
    two = registry.register(
        "qa", publish_artifact(tmp_path, "two", config=changed, metrics={"loss": 1.0}, data_hash="e" * 64)
    )
    found = {(each.part, each.key): each for each in differences(one, two)}
    assert set(found) == {
        ("lineage", "run"),
        ("lineage", "data_hash"),
        ("config", "training.seed"),
        ("config", "lora.r"),
        ("metrics", "loss"),
        ("metrics", "perplexity"),
    }
    assert found["metrics", "loss"].change == -0.25
    assert found["metrics", "perplexity"].change is None
    assert (found["config", "lora.r"].one, found["config", "lora.r"].two) == (None, 8)
    assert differences(one, one) == []


def test_an_empty_registry_is_read_without_being_made(registry: Registry) -> None:
    assert registry.models() == []
    with pytest.raises(RegistryError, match="the registry is empty"):
        registry.get("qa@1")
    assert not registry.root.exists()


def test_a_registry_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryError, match="cannot be used"):
        Registry(tmp_path / "file").set_gate("qa", GateConfig())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "registry.db").write_text("no database, but long enough to be looked at as one" * 20)
    with pytest.raises(RegistryError, match="cannot be used"):
        Registry(tmp_path / "other").models()
    newer = Registry(tmp_path / "newer")
    newer.set_gate("qa", GateConfig())
    connection = sqlite3.connect(newer.root / "registry.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(RegistryError, match="upgrade rayloom"):
        newer.models()


def test_a_damaged_copy_is_mended_by_registering_the_artifact_again(registry: Registry, tmp_path: Path) -> None:
    place = publish_artifact(tmp_path, "mill")
    copy = Path(registry.register("qa", place).location)
    weights = next(copy.rglob("*.safetensors"))
    weights.write_bytes(b"damaged")
    with pytest.raises(ArtifactError):
        open_artifact(registry.resolve("qa@1"))
    assert registry.register("qa", place).version == 1
    assert open_artifact(registry.resolve("qa@1")).manifest.name == "mill"
    (copy / "manifest.json").write_text((copy / "manifest.json").read_text() + " ")
    assert registry.register("qa", place).version == 1
    assert registry.resolve("qa@1") == str(copy)
