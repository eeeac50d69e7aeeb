"""A new user's way: `rayloom serve ARTIFACT`, and what it prints pasted into a shell and into Python."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rayloom.generation import TextGenerator
from rayloom.serving.keys import KeyStore, Terms

pytestmark = [pytest.mark.ray, pytest.mark.slow]

QUESTION = "What is a kestrel?"
_PATIENCE_S = 120.0


@contextmanager
def rayloom_serve(*arguments: str, folder: Path) -> Iterator[str]:
    """What the command prints until it can be used; ended by Ctrl-C."""
    command = [sys.executable, "-m", "rayloom", "serve", *arguments, "--port", "0"]
    environment = os.environ | {"COLUMNS": "80"}
    with (folder / "errors").open("w") as errors:
        process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
    watchdog = threading.Timer(_PATIENCE_S, process.kill)
    watchdog.start()
    try:
        yield "".join(lines_to_the_end_of_the_snippets(process))
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60.0)
        assert process.returncode == 0, (folder / "errors").read_text()
        assert "Stopping" in rest
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()


def lines_to_the_end_of_the_snippets(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    for line in process.stdout:
        yield line
        if line.strip().startswith("print("):
            return
    raise AssertionError("the command ended, or said nothing of use")


def snippets(text: str) -> tuple[str, str]:
    """What is printed for a shell, and for Python."""
    _, _, rest = text.partition("  shell\n")
    shell, _, python = rest.partition("  Python\n")
    return textwrap.dedent(shell), textwrap.dedent(python)


def pasted(command: list[str], **environment: str) -> str:
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=60.0, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_serve_prints_works(tiny_artifact_t5: Path, tmp_path: Path) -> None:
    expected = TextGenerator(tiny_artifact_t5).generate(QUESTION, max_new_tokens=32)
    with rayloom_serve(str(tiny_artifact_t5), folder=tmp_path) as text:
        shell, python = snippets(text)
        assert json.loads(pasted(["bash", "-ec", shell]))["answer"] == expected
        assert pasted([sys.executable, "-c", python]).removesuffix("\n") == expected


def test_what_serve_prints_works_with_a_key(tiny_artifact_t5: Path, tmp_path: Path) -> None:
    expected = TextGenerator(tiny_artifact_t5).generate(QUESTION, max_new_tokens=32)
    secret = KeyStore(tmp_path / "keys.yaml").create("app", Terms())
    with rayloom_serve(str(tiny_artifact_t5), "--keys", "keys.yaml", folder=tmp_path) as text:
        shell, python = snippets(text)
        without_key = shell.partition("\n")[2]
        assert json.loads(pasted(["bash", "-ec", without_key], RAYLOOM_API_KEY=""))["error"]["type"] == "unauthorized"
        assert json.loads(pasted(["bash", "-ec", shell.replace("…", secret)]))["answer"] == expected
        assert pasted([sys.executable, "-c", python], RAYLOOM_API_KEY=secret).removesuffix("\n") == expected
