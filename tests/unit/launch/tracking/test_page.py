from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from rayloom.launch.progress import Event, Note
from rayloom.launch.runs import Run
from rayloom.launch.tracking.folder import RunFolder
from rayloom.launch.tracking.history_keeper import HistoryKeeper
from rayloom.launch.tracking.page import curve
from rayloom.launch.tracking.page_keeper import PageKeeper
from rayloom.launch.tracking.trackers import Outcome
from tests.fakes_tracking import eval_record, run_config, step_record


class Page(HTMLParser):
    """Checks that tags are balanced, and keeps what a page shows and refers to."""

    _VOID = {"meta", "link", "img", "br", "hr", "input"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data")]
        if tag not in self._VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self._VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def keep(run: Run, events: list[Event], outcome: Outcome | None) -> None:
    """One driver's part of a run; None: it is killed."""
    keeper = PageKeeper(RunFolder(run.path), run_config(), run_name=run.name)
    keeper.start()
    HistoryKeeper(RunFolder(run.path)).log(events)
    keeper.log(events)
    if outcome is not None:
        keeper.finish(outcome)


def start(folder: Path) -> Run:
    run = Run(str(folder), "a")
    run.start(run_config())
    return run


def page_of(run: Run) -> str:
    text = RunFolder(run.path).read("report.html")
    assert text is not None
    return text


def test_the_page_shows_all_parts_of_a_resumed_run_and_needs_nothing_from_outside(tmp_path: Path) -> None:
    run = start(tmp_path)
    keep(run, [step_record(10), step_record(20), eval_record(20), step_record(30, loss=7.7777)], None)
    assert "running" in page_of(run)
    again: list[Event] = [
        Note("resumed at step 20 of 40"),
        step_record(30),
        step_record(40),
        eval_record(40, loss=1.25),
    ]
    keep(run, again, Outcome("finished", artifact="/runs/a/artifact", metrics={}))
    text = page_of(run)
    page = Page(text)
    assert re.findall(r"https?://(?!www\.w3\.org)", text) == []
    assert [each for each in page.references if not each.startswith("#")] == []
    assert not {"script", "img", "link", "iframe"} & set(page.tags)
    assert page.tags.count("svg") == 5
    assert page.tags.count("summary") == 3  # the generations of two epochs, and the config
    for expected in (
        "40 / 40",
        "resumed at step 20 of 40",
        "<b>Who|what?</b>",  # as text, not as a tag
        "rougeL",
        "1.2500",
        "/runs/a/artifact",
        "num_epochs: 3",
        "finished",
    ):
        assert expected in page.text
    assert "b" not in page.tags


def test_a_run_that_failed_before_its_first_step_has_a_page_that_says_so(tmp_path: Path) -> None:
    run = start(tmp_path)
    keep(run, [], Outcome("failed", error="no room for <2> workers"))
    assert "no room for <2> workers" in Page(page_of(run)).text


@given(count=st.integers(0, 5000), scale=st.floats(0.5, 2.0))
def test_a_thinned_curve_keeps_its_end_and_its_mean_range(count: int, scale: float) -> None:
    records = [{"step": step, "loss": float(step % 7)} for step in range(1, count + 1)]
    points = curve(records, "loss", scale=scale)
    assert len(points) == min(count, len(points)) <= 1000
    assert [step for step, _ in points] == sorted({step for step, _ in points})
    assert all(0 <= value <= 6 * scale for _, value in points)
    assert not count or points[-1][0] == count
    assert len(points) == count or count > 1000
