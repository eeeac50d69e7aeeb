"""The documents tell the truth: generated pages are fresh, links lead somewhere, commands exist."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from rayloom.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "jobs").rglob("*.md")]
PAGES += (ROOT / "platform/rayloom/cli/project").rglob("*.md")
COMMANDS = {
    *(command.name or command.callback.__name__ for command in app.registered_commands if command.callback),
    *(group.name for group in app.registered_groups),
}


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_config_page_is_what_make_docs_writes() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "make_config_page.py"))
    assert script["PAGE"].read_text(encoding="utf-8") == script["page"](), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_exist(page: Path) -> None:
    """Lines of shell blocks that call `rayloom` or `make`."""
    text = page.read_text(encoding="utf-8")
    shell = "\n".join(re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, flags=re.DOTALL))
    used = set(re.findall(r"^(?:\$ )?rayloom ([a-z][a-z-]*)", shell, flags=re.MULTILINE))
    assert used <= COMMANDS
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert set(re.findall(r"^(?:\$ )?make ([a-z-]+)", shell, flags=re.MULTILINE)) <= targets
