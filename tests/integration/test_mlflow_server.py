"""The registry behind a real MLflow tracking server: nothing but HTTP between the two."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

pytest.importorskip("mlflow.server", reason="MLflow's server needs flask, which the extra 'tracking' does not bring")

from rayloom.artifacts import open_artifact
from rayloom.errors import RegistryError
from rayloom.registry import open_registry
from tests.unit.registry.publishing import publish_artifact
from tests.unit.registry.test_registry import verdict

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", str(tmp_path / "files"),
    ]  # fmt: skip
    log = tmp_path / "server.log"
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5.0).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        else:
            pytest.fail(log.read_text()[-4000:])
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_versions_stages_and_files_go_over_http(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAYLOOM_CACHE", str(tmp_path / "cache"))
    registry, other = (open_registry(f"mlflow+{server}") for _ in range(2))
    for name in ("one", "two"):
        source = publish_artifact(tmp_path, name)
        registry.register("qa", source)
        shutil.rmtree(source)
    assert registry.get("qa@1").location.startswith("mlflow-artifacts:")
    judged = [verdict(registry, number).id for number in (1, 2)]
    registry.promote(judged[0])
    with pytest.raises(RegistryError, match="has version 1 in production by now, not no version"):
        other.promote(judged[1])
    other.promote(verdict(other, 2).id)
    assert [version.stage for version in registry.versions("qa")] == ["archived", "production"]
    where = Path(registry.resolve("qa@production"))
    assert where.is_relative_to(tmp_path / "cache")
    damaged = where / next(iter(open_artifact(where).manifest.files))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert open_artifact(registry.resolve("qa@production")).manifest.name == "two"
    version = registry.attach_report("qa@2", b"{}", {"test.rougeL": 0.5})
    assert other.read_report(version) == b"{}"
    assert registry.rollback("qa", expected=2).version == 1
    for manifest in (tmp_path / "files").rglob("artifact/manifest.json"):
        manifest.write_text(manifest.read_text() + " ")
    with pytest.raises(RegistryError, match="holds another artifact"):
        registry.resolve("qa@1")
    assert capsys.readouterr().out == ""
