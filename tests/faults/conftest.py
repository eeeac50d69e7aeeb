"""Prints the table at the end."""

from __future__ import annotations

from tests.faults.table import OUTCOMES, lines


def pytest_terminal_summary(terminalreporter):
    if OUTCOMES:
        terminalreporter.section("kills")
        for line in lines():
            terminalreporter.write_line(line)
