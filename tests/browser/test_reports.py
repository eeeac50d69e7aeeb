"""The HTML that training and evaluation leave behind, opened from disk without a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect

from rayloom.evaluation.contest_pages import write_contest
from rayloom.evaluation.report import write_report
from rayloom.launch.tracking.trackers import Outcome
from tests.browser.served import PHONE, Visit, is_drawn
from tests.fakes_tracking import eval_record, step_record
from tests.unit.evaluation.test_comparing import HIGH, LOW, contest, contestant
from tests.unit.launch.tracking.test_page import keep, start

pytestmark = pytest.mark.slow
Opened = Callable[..., Visit]


@pytest.fixture(params=["desk", "phone"])
def opened(visit: Opened, request: pytest.FixtureRequest) -> Callable[[Path], Visit]:
    """Opens a file, and sees to it that it needs nothing and complains of nothing."""
    seen: list[Visit] = []

    def opened(path: Path) -> Visit:
        size = {"size": PHONE} if request.param == "phone" else {}
        found = visit(path.as_uri(), offline=True, **size)
        assert found.asked == [path.as_uri()]
        assert found.errors == []
        seen.append(found)
        return found

    return opened


def drawings(seen: Visit) -> list[dict[str, float]]:
    """Sizes of the curves and plots that can be seen."""
    found: list[dict[str, float]] = seen.page.evaluate(
        "[...document.querySelectorAll('svg')].map(e => e.getBoundingClientRect())"
        ".map(r => ({width: r.width, height: r.height})).filter(r => r.width > 100 && r.height > 50)"
    )
    return found


def test_the_run_page(opened: Callable[[Path], Visit], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    run = start(tmp_path)
    events = [step_record(step) for step in range(1, 40)]
    keep(run, [*events, eval_record(20), eval_record(40, loss=1.25)], Outcome("finished", artifact="/a", metrics={}))
    seen = opened(Path(run.path) / "report.html")
    expect(seen.page.get_by_text("rougeL").first).to_be_visible()
    expect(seen.page.get_by_text("/a", exact=True).first).to_be_visible()
    assert len(drawings(seen)) >= 4
    assert is_drawn(seen.shot(f"run-{request.node.callspec.id}"))


def test_the_report_of_an_evaluation(
    opened: Callable[[Path], Visit], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    paths = write_report(contestant("new", HIGH).result, tmp_path)
    seen = opened(paths.html)
    expect(seen.page.get_by_text("ROUGE-L").first).to_be_visible()
    assert "question 3" in seen.page.content()
    assert is_drawn(seen.shot(f"evaluation-{request.node.callspec.id}"))


def test_the_comparison_says_at_once_who_won_and_why(
    opened: Callable[[Path], Visit], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    paths = write_contest(contest(contestant("old", LOW), contestant("new", HIGH, LOW)), tmp_path / "out")
    seen = opened(paths.html)
    headline = seen.page.get_by_text("new has the best ROUGE-L").first
    expect(headline).to_be_visible()
    box = headline.bounding_box()
    assert box is not None
    assert box["y"] < 400  # without scrolling
    assert len(drawings(seen)) == 4
    assert is_drawn(seen.shot(f"comparison-{request.node.callspec.id}"))
