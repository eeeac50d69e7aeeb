from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import pytest

from rayloom.config import EvaluationConfig
from rayloom.errors import EngineError, RequestError
from rayloom.evaluation import EvaluationResult, Resources, SplitResult, comparing
from rayloom.evaluation.comparing import Questions, System, _child, _received, compare, measure
from rayloom.evaluation.contest import Contest, Contestant, quality_table
from rayloom.evaluation.contest_pages import write_contest
from rayloom.evaluation.results import Prediction, Significance, Spread, Throughput
from rayloom.evaluation.summary import significance
from rayloom.generation import TextGenerator
from tests.unit.evaluation.html_pages import Page


def contestant(name: str, values: list[float], first: list[float] | None = None) -> Contestant:
    """A system whose rows have these ROUGE-L."""

    def split(scores: list[float]) -> SplitResult:
        predictions = [
            Prediction(
                row=row,
                input=f"question {row}",
                reference="a <b>",
                prediction=name,
                rougeL=score,
                scores={"rougeL": score},
            )
            for row, score in enumerate(scores)
        ]
        return SplitResult(
            name="test",
            num_rows=len(scores),
            num_rows_total=len(scores),
            metrics={"rougeL": sum(scores) / len(scores)},
            num_target_tokens=9,
            predictions=predictions,
            intervals={"rougeL": Spread(low=0.1, high=0.9)},
        )

    options = EvaluationConfig(num_resamples=200)
    resources = Resources(
        device="cpu",
        dtype="fp32",
        num_parameters=7,
        peak_host_bytes=3 * 2**30,
        latency_p50_s=0.5,
        latency_p95_s=0.75,
        throughput=[Throughput(batch_size=1, prompts_per_s=1, tokens_per_s=10)],
    )
    result = EvaluationResult(
        model=name,
        task="question-answering",
        family="t5",
        created="now",
        splits=[split(values)],
        resources=resources,
        generation={},
        evaluation=options.model_dump(mode="json"),
    )
    tests: dict[str, Significance] = {} if first is None else significance(split(values), split(first), options)
    return Contestant(name=name, target=name, parameters={}, result=result, tests=tests)


LOW = [0.1 + 0.01 * (row % 3) for row in range(20)]
HIGH = [0.6 + 0.01 * (row % 4) for row in range(20)]


def contest(*systems: Contestant) -> Contest:
    return Contest(rows="rows.jsonl", task="question-answering", systems=list(systems))


def test_the_headline_says_who_won_and_whether_by_chance() -> None:
    worse = contest(contestant("old", LOW), contestant("new", HIGH, LOW))
    assert worse.headline == (
        "new has the best ROUGE-L: 61.5 %, 50.5 points ahead of old; significantly better than old (p 0.005)"
    )
    assert contest(contestant("old", HIGH), contestant("new", LOW, HIGH)).headline.endswith(
        "significantly better than all others"
    )
    close = [*HIGH[:-1], 0.5]
    assert (
        "not significantly better than new" in contest(contestant("old", HIGH), contestant("new", close, HIGH)).headline
    )
    header, body = quality_table(worse)
    assert header == ["system", "ROUGE-L", "ROUGE-L difference", "p"]
    assert body[0][-2:] == ["", ""]
    assert body[1][-1] == "0.005"


def test_the_margin_is_that_to_the_second() -> None:
    middle = [value - 0.1 for value in HIGH]
    three = contest(contestant("old", LOW), contestant("mid", middle, LOW), contestant("new", HIGH, LOW))
    assert "61.5 %, 10.0 points ahead of mid; significantly better than old (p " in three.headline


def test_a_comparison_is_written_as_page_tables_and_numbers(tmp_path: Path) -> None:
    paths = write_contest(contest(contestant("<old>", LOW), contestant("new", HIGH, LOW)), tmp_path / "out")
    html = paths.html.read_text()
    page = Page()
    page.feed(html)
    assert page.open == []
    assert page.addresses == []
    assert page.num_svg == 4
    assert len(page.ids) == len(set(page.ids))
    assert re.findall(r"https?://(?!www\.w3\.org)", html) == []
    assert "<old>" not in html
    assert "Where they differ most" in html
    (one, two) = csv.DictReader(paths.csv.read_text().splitlines())
    assert float(one["rougeL"]) == pytest.approx(sum(LOW) / 20)
    assert (one["rougeL_p"], one["tokens_per_s_batch_1"], one["latency_p95_s"]) == ("", "10.0", "0.75")
    assert 0 < float(two["rougeL_p"]) < 0.01
    markdown = paths.markdown.read_text()
    assert "**new has the best ROUGE-L" in markdown
    assert "| 500 ms / 750 ms |" in markdown
    assert Contest.model_validate_json(paths.json.read_text()).systems[1].name == "new"


def test_systems_are_measured_on_the_same_rows(
    t5_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first in a process of its own, as all are; the second here, for a process takes long to start.
    places = iter([comparing.measure_apart, comparing.measure])
    monkeypatch.setattr(comparing, "measure_apart", lambda *asked: next(places)(*asked))
    rows = [{"question": f"Where does river {n} flow?", "answer": f"Into sea {n % 3}."} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = Questions.of(str(t5_artifact), split="test", file=str(tmp_path / "rows.jsonl"))
    options = EvaluationConfig(latency_prompts=1, throughput_batch_sizes=[2], num_resamples=20)
    told: list[tuple[str, int, int]] = []
    systems = [System(str(t5_artifact)), System(str(t5_artifact), {"num_beams": 2, "precision": "bf16"})]
    found = compare(systems, questions, options, device="cpu", progress=lambda *news: told.append(news))
    generator = TextGenerator(t5_artifact, device="cpu")
    first, second = found.systems
    expected = generator.generate_batch([row["question"] for row in rows])
    assert [each.prediction for each in first.split.predictions] == expected
    assert first.split.metrics["perplexity"] > 1
    assert "perplexity" not in second.split.metrics
    assert second.split.warnings == ["no perplexity: in bf16 only the engine's weights are kept"]
    assert second.result.generation["num_beams"] == 2
    assert (first.result.resources.num_parameters or 0) > 0
    assert second.result.resources.num_parameters is None
    assert "rougeL" in second.tests
    assert first.tests == {}
    assert any(what.startswith(f"{second.name}: ") and done == total for what, done, total in told)


def test_what_cannot_be_compared_is_refused(t5_artifact: Path, lm_artifact: Path) -> None:
    questions = Questions.of(str(t5_artifact), split="test", file=None)
    options = EvaluationConfig(max_rows=1, latency_prompts=0)
    same = System(str(t5_artifact))
    for systems in ([same], [same, same]):
        with pytest.raises(RequestError, match="needs two systems that differ"):
            compare(systems, questions, options)
    with pytest.raises(RequestError, match="it is made for language-modeling, the first system for question"):
        measure(System(str(lm_artifact)), questions, options, "cpu", None)


class Pipe:
    """The child's end of a pipe, kept."""

    def __init__(self) -> None:
        self.sent: list[tuple[object, ...]] = []

    def send(self, message: tuple[object, ...]) -> None:
        self.sent.append(message)

    def recv(self) -> tuple[object, ...]:
        if not self.sent:
            raise EOFError
        return self.sent.pop(0)


def test_errors_of_a_system_come_back_with_its_name(t5_artifact: Path, tmp_path: Path) -> None:
    questions, pipe = Questions.of(str(t5_artifact), split="test", file=None), Pipe()
    _child(pipe, System(str(tmp_path / "absent")), questions, EvaluationConfig(), "cpu")
    with pytest.raises(RequestError, match=r"mine: .*no such folder"):
        _received(pipe, "mine", None)
    with pytest.raises(EngineError, match="mine: its process ended without a word"):
        _received(pipe, "mine", None)
    _child(pipe, System(str(t5_artifact), {"precision": "fp7"}), questions, EvaluationConfig(), "cpu")
    with pytest.raises(RequestError, match="mine: precision 'fp7'"):
        _received(pipe, "mine", None)


def changed(system: Contestant, **metrics: float) -> Contestant:
    """The same system with other figures."""
    split = system.split.model_copy(update={"metrics": metrics})
    return system.model_copy(update={"result": system.result.model_copy(update={"splits": [split]})})


def test_a_headline_says_nothing_of_tests_that_were_not_made() -> None:
    untested = contest(contestant("old", HIGH), contestant("new", LOW))
    assert untested.headline == "old has the best ROUGE-L: 61.5 %, 50.5 points ahead of new"
    partly = contest(contestant("old", HIGH), contestant("new", LOW, HIGH), contestant("bf16", LOW))
    assert partly.headline.endswith("50.5 points ahead of new; significantly better than new")


def test_what_is_no_number_has_not_won() -> None:
    broken = changed(contestant("broken", LOW), perplexity=math.nan)
    fine = changed(contestant("fine", LOW), perplexity=7.0)
    assert contest(broken, fine).headline == "fine has the best Perplexity: 7.0"
    assert contest(broken).headline == "no system has a figure that all could be compared by"


def test_names_and_figures_that_cannot_be_drawn_do_not_cost_the_page(tmp_path: Path) -> None:
    endless = changed(contestant("runs/$a_{$", LOW), perplexity=math.inf)
    paths = write_contest(contest(endless, changed(contestant("fine", LOW), perplexity=7.0)), tmp_path)
    assert "∞" in paths.html.read_text()
    assert Contest.model_validate_json(paths.json.read_text()).systems[0].split.metrics["perplexity"] == math.inf
