"""A sweep's results as files: JSON, CSV, one HTML page that needs nothing else, and the best trial's config."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from rayloom.config import dump_yaml
from rayloom.launch.sweeping.page import sweep_page
from rayloom.launch.sweeping.ranking import Ranked, Results
from rayloom.launch.tracking.folder import RunFolder

_PLAIN = TypeAdapter(dict[str, Any], config=ConfigDict(ser_json_inf_nan="strings"))


@dataclass(frozen=True)
class ResultPaths:
    """Where the files lie."""

    json: str
    csv: str
    html: str
    best: str


def write_results(results: Results, folder: RunFolder) -> ResultPaths:
    """Write ``sweep.json``, ``sweep.csv``, ``sweep.html`` and ``best.yaml``.

    Args:
        results: At least one trial has finished.
        folder: Of the sweep.
    """
    folder.write("sweep.json", json.dumps(document(results), indent=1))
    folder.write("sweep.csv", table_csv(results))
    folder.write("sweep.html", sweep_page(results))
    folder.write("best.yaml", best_yaml(results))
    return ResultPaths(*(f"{folder.path}/{name}" for name in ("sweep.json", "sweep.csv", "sweep.html", "best.yaml")))


def document(results: Results) -> dict[str, Any]:
    """All of it, for programs. Infinite perplexities and the like, for which JSON has no word, are texts."""
    config = results.sweep.config
    found = {
        "name": results.sweep.name,
        "metric": config.metric,
        "mode": config.direction,
        "headline": results.headline,
        "best": results.best.record.name,
        "influence": results.influence,
        "trials": [_entry(rank, each) for rank, each in enumerate(results.trials, start=1)],
    }
    plain: dict[str, Any] = json.loads(_PLAIN.dump_json(found))
    return plain


def _entry(rank: int, ranked: Ranked) -> dict[str, Any]:
    record = ranked.record
    return {
        "rank": rank,
        "trial": record.name,
        "score": ranked.score,
        "verdict": ranked.verdict,
        "test": None if ranked.test is None else ranked.test.model_dump(),
        "settings": record.values,
        "end": record.end,
        "steps": record.steps,
        "trained_steps": record.trained_steps,
        "seconds": round(record.seconds, 1),
        "failures": record.failures,
        "error": record.error,
        "artifact": record.artifact,
        "run": record.run,
        "handovers": [asdict(each) for each in record.handovers],
        "metrics": record.metrics,
        "reports": [asdict(each) for each in record.reports],
    }


def table_csv(results: Results) -> str:
    """A line for each trial, best first."""
    keys = list(results.sweep.config.space)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rank", "trial", results.metric, "verdict", "p_value", *keys, "end", "steps", "seconds"])
    for rank, each in enumerate(results.trials, start=1):
        record = each.record
        score, p_value = ("" if value is None else value for value in (each.score, each.test and each.test.p_value))
        settings = [record.values[key] for key in keys]
        writer.writerow(
            [
                rank,
                record.name,
                score,
                each.verdict,
                p_value,
                *settings,
                record.end,
                record.steps,
                round(record.seconds),
            ]
        )
    return text.getvalue()


def best_yaml(results: Results) -> str:
    """The winner's config, which ``rayloom train`` takes as it is."""
    sweep, best = results.sweep, results.best.record
    config = sweep.trial_config(best.values)
    lines = [f"{best.name} of the sweep {sweep.name}: {results.metric} {best.score:.6g}, {results.settings(best)}."]
    if best.handovers:
        lines.append(
            "It was made by population based training, which changes settings on the way: these are its last ones, and "
            "training with them alone gives another model. Its own is in its artifact."
        )
    # A setting may be a text of several lines, such as a prompt template.
    head = "".join(f"# {part}\n" for line in lines for part in line.splitlines())
    return head + dump_yaml(config)
