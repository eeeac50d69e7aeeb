"""The report of an evaluation: Markdown, JSON, and one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayloom.evaluation.pages import html_page
from rayloom.evaluation.results import EvaluationResult, ReportDocument, Significance
from rayloom.evaluation.tables import Comparison, markdown_page


@dataclass(frozen=True)
class ReportPaths:
    """Where a report lies."""

    markdown: Path
    html: Path
    json: Path


def write_report(
    result: EvaluationResult,
    folder: Path | str,
    *,
    baseline: EvaluationResult | None = None,
    history: Sequence[Mapping[str, Any]] | None = None,
    significance: Mapping[str, Mapping[str, Significance]] | None = None,
) -> ReportPaths:
    """Write ``report.md``, ``report.html`` and ``report.json``.

    Args:
        result: What was measured.
        folder: Made if absent; files of an earlier report are replaced.
        baseline: The untuned model on the same rows; shown beside it.
        history: Records of training for the loss curve: ``step`` with ``loss``, or with ``eval_loss`` (or
            ``metrics``) for validation.
        significance: By split and metric, whether the model differs from the untuned one.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = ReportPaths(folder / "report.md", folder / "report.html", folder / "report.json")
    tests = {split: dict(found) for split, found in (significance or {}).items()}
    comparison = Comparison(result, baseline, tests)
    paths.markdown.write_text(markdown_page(comparison), encoding="utf-8")
    paths.html.write_text(html_page(comparison, history or []), encoding="utf-8")
    document = ReportDocument(
        result=result,
        baseline=baseline,
        history=[dict(record) for record in history or []],
        significance=tests,
    )
    paths.json.write_text(document.model_dump_json(indent=2), encoding="utf-8")
    return paths


def read_report(path: Path | str) -> tuple[EvaluationResult, EvaluationResult | None]:
    """The result and the baseline in a ``report.json``."""
    document = ReportDocument.model_validate_json(Path(path).read_text(encoding="utf-8"))
    return document.result, document.baseline
