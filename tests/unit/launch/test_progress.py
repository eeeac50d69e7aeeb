from __future__ import annotations

import io

import pytest
from rich.console import Console

from rayloom.launch.progress import Event, Note, TerminalSink, both
from rayloom.training import EvalRecord, StepRecord


def shown(*events: object) -> str:
    out = io.StringIO()
    with TerminalSink(Console(file=out, width=200)) as sink:
        for event in events:
            sink(event)
    return out.getvalue()


def test_a_log_gets_one_line_per_step_with_its_figures() -> None:
    text = shown(StepRecord(10, 63, 0.5, 2.34567, 3e-4, 1.0, 197.4, 65.0))
    assert "step 10/63" in text
    assert all(part in text for part in ("loss 2.3457", "lr 3.00e-04", "197 tokens/s", "ETA 1:05"))


def test_an_evaluation_shows_its_metrics_and_samples_as_they_are() -> None:
    sample = {"prompt": "Who?", "prediction": "[bold]me[/bold]", "reference": "you"}
    text = shown(EvalRecord(5, 1, {"rougeL": 0.25}, (sample,)), Note("resumed at step 5 of 9"))
    assert "rougeL 0.2500" in text
    assert "[bold]me[/bold]" in text
    assert "resumed at step 5 of 9" in text


@pytest.mark.parametrize("error", [OSError("no space left"), SystemExit(1)])
def test_a_sink_that_fails_keeps_nothing_from_the_others(error: BaseException) -> None:
    kept: list[Event] = []
    calls: list[Event] = []

    def broken(event: Event) -> None:
        calls.append(event)
        raise error

    send = both(broken, kept.append)
    events = [Note("one"), StepRecord(10, 63, 0.5, 2.3, 3e-4, 1.0, 197.4, 65.0)]
    for event in events:
        send(event)
    assert [event for event in kept if event in events] == events
    (warning,) = (event for event in kept if event not in events)
    assert isinstance(warning, Note)
    assert "broken is not fed any more" in warning.text
    assert len(calls) == 1
