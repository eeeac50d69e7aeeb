from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from rayloom.cli.keys import keys_app
from rayloom.errors import ConfigError
from rayloom.serving.keys import hash_of, read_keys


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_create_list_revoke() -> None:
    runner = CliRunner()
    options = ["--requests-per-minute", "60", "--scope", "generate", "--scope", "metrics", "--expires", "30"]
    made = runner.invoke(keys_app, ["create", "app", *options])
    assert made.exit_code == 0
    secret = made.stdout.strip()
    assert "\n" not in secret  # so that it can be put into a variable
    assert "only time" in made.stderr
    (key,) = read_keys(Path("keys.yaml"))
    assert key.sha256 == hash_of(secret.encode())
    assert (key.requests_per_minute, key.scopes) == (60, ("generate", "metrics"))

    shown = runner.invoke(keys_app, ["list"])
    assert "app" in shown.stdout
    assert "good" in shown.stdout
    assert secret not in shown.stdout
    assert "refused from now on" in runner.invoke(keys_app, ["revoke", "app"]).stdout
    assert "no good key left" in runner.invoke(keys_app, ["revoke", "app"]).stdout
    assert "revoked" in runner.invoke(keys_app, ["list"]).stdout


def test_errors() -> None:
    runner = CliRunner()
    missing = runner.invoke(keys_app, ["list", "--keys", "none.yaml"])
    assert isinstance(missing.exception, ConfigError)
    assert "none.yaml" in str(missing.exception)
    wrong = runner.invoke(keys_app, ["create", "app", "--scope", "all"])
    assert isinstance(wrong.exception, ConfigError)
