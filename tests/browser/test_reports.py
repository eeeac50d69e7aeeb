"""The HTML that training and evaluation leave behind, opened from disk without a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect

from rayloom.evaluation.contest_pages import write_contest
from rayloom.evaluation.report import write_report
from rayloom.launch.sweeping.ranking import results_of
from rayloom.launch.sweeping.results import write_results
from rayloom.launch.tracking.folder import RunFolder
from rayloom.launch.tracking.trackers import Outcome
from tests.browser.served import PHONE, Visit, is_drawn
from tests.fakes_tracking import eval_record, step_record
from tests.unit.evaluation.test_comparing import HIGH, LOW, contest, contestant
from tests.unit.launch.test_sweep_results import five_trials, make_sweep
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


def ink(seen: Visit) -> list[int]:
    """Numbers of lines, points and letters in each of these drawings."""
    found: list[int] = seen.page.evaluate(
        "[...document.querySelectorAll('svg')].filter(e => e.getBoundingClientRect().width > 100)"
        ".map(e => [...e.querySelectorAll('path, use, text')].filter(p => p.getBoundingClientRect().width > 0).length)"
    )
    return found


def on_first_screen(seen: Visit, text: str) -> bool:
    """Whether all of what is written there can be read without scrolling."""
    found = seen.page.get_by_text(text).first
    expect(found).to_be_visible()
    box, size = found.bounding_box(), seen.page.viewport_size
    assert box is not None
    assert size is not None
    return box["y"] + box["height"] < size["height"] and box["x"] + box["width"] <= size["width"]


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
    assert on_first_screen(seen, "new has the best ROUGE-L: 61.5 %")
    assert on_first_screen(seen, "significantly better than old")
    assert len(drawings(seen)) == 4
    assert min(ink(seen)) > 10
    assert is_drawn(seen.shot(f"comparison-{request.node.callspec.id}"))


def test_the_sweep_says_at_once_who_won_and_why(
    opened: Callable[[Path], Visit], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = RunFolder(str(tmp_path))
    paths = write_results(results_of(make_sweep(), five_trials(folder)), folder)
    seen = opened(Path(paths.html))
    assert on_first_screen(seen, "trial-001 won: loss 2.0000 with learning_rate 0.002, batch_size 4.")
    assert on_first_screen(seen, "by 0.1000, which is within noise (p 0.")
    for shown in ("best loss: trial-001", "learning_rate", "batch_size"):
        assert on_first_screen(seen, shown)
    expect(seen.page.locator("table tr").nth(1)).to_contain_text("trial-001")
    assert len(drawings(seen)) == 2
    assert min(ink(seen)) > 10
    assert "learning_rate: 0.002" not in seen.page.inner_text("body")
    seen.page.get_by_text("best.yaml").first.click()
    expect(seen.page.locator("pre")).to_contain_text("learning_rate: 0.002")
    assert seen.asked == [Path(paths.html).as_uri()]
    assert is_drawn(seen.shot(f"sweep-{request.node.callspec.id}"))
