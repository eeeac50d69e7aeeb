"""What ``rayloom models`` shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from rayloom.registry import ModelSummary, Verdict, Version
    from rayloom.registry.diff import Difference

_COLORS = {"production": "green", "candidate": "cyan", "archived": "dim"}
_TELLING = ("rougeL", "bleu", "exact_match", "perplexity", "loss")


def models_table(models: Sequence[ModelSummary]) -> Table:
    """All models at a glance."""
    table = Table("model", "versions", "newest", "candidates", "production")
    for model in models:
        candidates = ", ".join(map(str, model.candidates))
        production = f"[green]{model.production}[/]" if model.production else ""
        table.add_row(escape(model.model), str(model.num_versions), str(model.newest or ""), candidates, production)
    return table


def versions_table(name: str, versions: Sequence[Version]) -> Table:
    """The versions of a model, with the metrics that tell most."""
    table = Table("version", "stage", "registered", "run", "metrics", title=escape(name), title_justify="left")
    for version in versions:
        table.add_row(
            str(version.version),
            stage_text(version.stage),
            version.registered[:16].replace("T", " "),
            escape(version.lineage.run),
            telling_metrics(version),
        )
    return table


def telling_metrics(version: Version) -> str:
    """Two or three figures in a line: of the test split if measured."""
    if version.report is None:
        return ", ".join(f"{name} {version.metrics[name]:.4g}" for name in _TELLING if name in version.metrics)
    found = version.report.metrics
    splits = dict.fromkeys(name.partition(".")[0] for name in found)
    split = "test" if "test" in splits else next(iter(splits), "")
    shown = [f"{name} {found[f'{split}.{name}']:.4g}" for name in _TELLING if f"{split}.{name}" in found]
    return f"{split}: {', '.join(shown[:3])}"


def stage_text(stage: str) -> str:
    """A stage in its colour."""
    color = _COLORS.get(stage)
    return f"[{color}]{stage}[/]" if color else stage


def overview(version: Version) -> Table:
    """All that is known of a version but its config."""
    lineage = version.lineage
    table = Table(title=escape(version.name), show_header=False, title_justify="left")
    code = f"rayloom {lineage.code_version}{f', commit {lineage.commit[:12]}' if lineage.commit else ''}"
    rows = {
        "stage": stage_text(version.stage),
        "registered": version.registered,
        "artifact": escape(version.location),
        "digest": version.digest[:16],
        "run": escape(lineage.run),
        "made from": escape(lineage.source),
        "trained": lineage.created,
        "base": escape(lineage.base or ""),
        "parent": escape(lineage.parent or ""),
        "data": lineage.data_hash[:16],
        "config": lineage.config_hash[:16],
        "code": code,
        "note": escape(version.note),
    }
    for what, text in rows.items():
        if text:
            table.add_row(what, text)
    found = version.report.metrics if version.report else version.metrics
    for name, value in found.items():
        table.add_row(name, f"{value:.4g}")
    return table


def verdict_table(verdict: Verdict) -> Table:
    """What the gate looked at."""
    said = "[green]passed[/]" if verdict.passed else "[red]not passed[/]"
    title = f"gate of {escape(verdict.model)}: version {verdict.version} {said}"
    table = Table("check", "", "found", title=title, title_justify="left", caption_justify="left")
    for check in verdict.checks:
        table.add_row(escape(check.name), "[green]✔[/]" if check.passed else "[red]✘[/]", escape(check.detail))
    if not verdict.checks:
        table.add_row("none", "[green]✔[/]", "the gate asks for nothing")
    return table


def diff_table(one: str, two: str, found: Sequence[Difference]) -> Table:
    """What two versions differ in."""
    table = Table("", escape(one), escape(two), "change")
    part = ""
    for each in found:
        if each.part != part:
            part = each.part
            table.add_section()
        change = "" if each.change is None or each.part != "metrics" else f"{each.change:+.4g}"
        table.add_row(escape(f"{each.part}: {each.key}"), _cell(each.one), _cell(each.two), change)
    return table


def _cell(value: Any) -> str:
    if value is None:
        return "[dim]–[/]"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return escape(text if len(text) <= 40 else f"{text[:37]}…")
