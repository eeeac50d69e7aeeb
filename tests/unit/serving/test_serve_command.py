from __future__ import annotations

import pytest
from typer import Typer
from typer.testing import CliRunner

from rayloom.cli.serve import serve
from rayloom.errors import ConfigError


@pytest.fixture
def cli() -> Typer:
    app = Typer()
    app.command()(serve)
    return app


def test_help_of_the_command_comes_from_the_config(cli: Typer) -> None:
    shown = CliRunner().invoke(cli, ["--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    assert shown.exit_code == 0
    for option in ("--host", "--port", "--max-batch-size", "--max-replicas", "--num-gpus", "--keys", "--no-page"):
        assert option in shown.output
    assert "Most sequences (beams and answers counted one by one) that are generated together." in shown.output


def test_wrong_options_are_config_errors(cli: Typer) -> None:
    result = CliRunner().invoke(cli, ["x", "--max-batch-size", "0"])
    assert isinstance(result.exception, ConfigError)
    assert "max_batch_size" in str(result.exception)
