"""A Ray of its own, and the report at the end."""

from tests.chaos.report import REPORTS
from tests.integration.conftest import local_ray

__all__ = ["local_ray"]


def pytest_terminal_summary(terminalreporter):
    for report in REPORTS:
        terminalreporter.section("chaos")
        for line in report.lines():
            terminalreporter.write_line(line)
