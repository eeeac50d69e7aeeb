"""An experiment as a page of the documentation: prose, table, plot, and how it was measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rayloom.config import RunConfig
from rayloom.evaluation.tables import text_table
from rayloom.evaluation.units import duration
from rayloom.launch.experiments.plan import Plan
from rayloom.launch.experiments.records import CellRecord, Provenance
from rayloom.launch.experiments.tables import csv_text, table, table_rows
from rayloom.launch.experiments.winner import headline

_ROUGH_LOAD = 0.5
"""Load average from which times are disturbed."""
_SHORT = 12


@dataclass(frozen=True)
class DocumentPaths:
    """Where an experiment's files lie; those without content are not written.

    Attributes:
        page: Markdown.
        numbers: CSV, one line per cell.
        plot: SVG.
    """

    page: Path
    numbers: Path
    plot: Path


def write_document(plan: Plan, records: Mapping[str, CellRecord], *, command: str) -> DocumentPaths:
    """Write the page, its numbers and its plot, whole or in part.

    Args:
        plan: The experiment.
        records: What is known, by the cells' keys.
        command: What makes this page.
    """
    from rayloom.launch.experiments.plot import svg_plot  # matplotlib takes a second

    folder = Path(plan.experiment.output)
    folder.mkdir(parents=True, exist_ok=True)
    paths = DocumentPaths(*(folder / f"{plan.name}.{kind}" for kind in ("md", "csv", "svg")))
    rows = table_rows(plan, records)
    drawn = svg_plot(plan.experiment.plot, rows) if plan.experiment.plot is not None else None
    for path, text in ((paths.numbers, csv_text(plan, records) if records else None), (paths.plot, drawn)):
        if text is None:
            path.unlink(missing_ok=True)
        else:
            path.write_text(text, encoding="utf-8")
    page = markdown_page(plan, records, command=command, has_plot=drawn is not None)
    paths.page.write_text(page, encoding="utf-8")
    return paths


def markdown_page(plan: Plan, records: Mapping[str, CellRecord], *, command: str, has_plot: bool) -> str:
    """The page in Markdown; see `write_document`."""
    experiment, rows = plan.experiment, table_rows(plan, records)
    parts = [f"# {experiment.title}", f"Made by `{command}`: change `{plan.path.name}`, not this page."]
    if plan.is_quick:
        parts.append("> **Quick**: so few steps and rows that the figures mean nothing.")
    parts += [experiment.about.strip()] if experiment.about.strip() else []
    missing = sum(cell.key not in records for cell in plan.cells)
    if missing:
        parts.append(f"> {missing} of {len(plan.cells)} cells are not measured yet: run `{command}`.")
    told = headline(plan, rows)
    parts += [f"**{told}.**"] if told else []
    parts.append(text_table(*table(plan, rows)))
    if records:
        parts += [_note(plan, records)]
        parts += [f"![{experiment.title}]({plan.name}.svg)"] if has_plot else []
        parts += [f"All figures as numbers: [{plan.name}.csv]({plan.name}.csv)."]
        parts += ["## How this was measured", text_table(["what", "value"], provenance_rows(plan, records))]
    return "\n\n".join(parts) + "\n"


def provenance_rows(plan: Plan, records: Mapping[str, CellRecord]) -> list[tuple[str, str]]:
    """Where the figures come from; what differs between cells stands there with all its values."""
    known = list(records.values())
    takes = [record.provenance for record in known]
    takes += [record.trained.provenance for record in known if record.trained is not None]
    configs = [cell.config for cell in plan.cells]
    rows = [
        ("machine", _each(take.machine for take in takes)),
        ("load average before", _load(takes)),
        ("versions", _each(", ".join(f"{name} {value}" for name, value in take.versions.items()) for take in takes)),
        ("rayloom", _each(take.code for take in takes)),
        ("measured", _span(take.at for take in takes)),
        ("models", _each(_model(config) for config in configs)),
        ("data", _each(text for record in known for text in _data(record))),
        ("files", _each(file for config in configs for file in _files(config))),
        ("seeds of training", _each(str(config.training.seed) for config in configs)),
        ("time it took", duration(_seconds(known))),
    ]
    return [(what, text) for what, text in (*rows, *_measuring(known)) if text]


def _measuring(known: Sequence[CellRecord]) -> list[tuple[str, str]]:
    results = [record.result for record in known if record.result is not None]
    if not results:
        return []
    splits = [result.splits[0] for result in results]
    return [
        ("answers", _each(f"{split.num_rows} rows of {split.name}, {split.num_target_tokens:,} target tokens"
                          for split in splits)),
        ("device", _each(result.resources.device for result in results)),
        ("batch", _each(f"at most {result.evaluation['batch_size']} answers at once" for result in results)),
        ("sacrebleu", _each(result.signatures.get("bleu", "") for result in results)),
    ]  # fmt: skip


def _note(plan: Plan, records: Mapping[str, CellRecord]) -> str:
    """How to read the brackets."""
    if plan.num_seeds > 1:
        return f"Means over {plan.num_seeds} seeds of training; in brackets the least and the greatest."
    options = next((record.result.evaluation for record in records.values() if record.result is not None), None)
    if options is None or not options.get("num_resamples"):
        return "Each row is one run."
    return (
        f"Each row is one run. In brackets: {100 * options['confidence']:g} % bootstrap intervals over the rows that "
        "were answered; they say nothing of other seeds of training. Tests are paired approximate randomization, "
        "two-sided."
    )


def _load(takes: Sequence[Provenance]) -> str:
    loads = sorted(take.load for take in takes)
    if not loads:
        return ""
    text = f"{loads[0]:g}" if loads[0] == loads[-1] else f"{loads[0]:g} to {loads[-1]:g}"
    return f"{text} (other work disturbed the times)" if loads[-1] > _ROUGH_LOAD else text


def _model(config: RunConfig) -> str:
    how = "random initialisation" if config.model.random_init else "pretrained"
    return f"{config.model.name} ({how}{f', LoRA r {config.lora.r}' if config.lora else ''})"


def _data(record: CellRecord) -> list[str]:
    if record.trained is None:
        info = (record.result.artifact if record.result is not None else None) or {}
        return [f"SHA-256 {str(info['data_hash'])[:_SHORT]}"] if "data_hash" in info else []
    rows = " / ".join(str(number) for number in record.trained.rows.values())
    return [f"{rows} rows (train / validation / test), SHA-256 {record.trained.data_hash[:_SHORT]}"]


def _files(config: RunConfig) -> list[str]:
    names = (config.dataset.train_file, config.dataset.validation_file, config.dataset.test_file, config.dataset.name)
    return [_nearby(name) for name in names if name is not None]


def _nearby(name: str) -> str:
    """A path as seen from the working folder, where it lies below that."""
    place = Path(name)
    return str(place.resolve().relative_to(Path.cwd())) if place.resolve().is_relative_to(Path.cwd()) else name


def _seconds(known: Sequence[CellRecord]) -> float:
    runs = {record.trained.digest: record.trained.seconds for record in known if record.trained is not None}
    return math.fsum([*runs.values(), *(record.seconds for record in known)])


def _span(times: Iterable[str]) -> str:
    ordered = sorted(set(times))
    return " to ".join(dict.fromkeys([ordered[0], ordered[-1]])) if ordered else ""


def _each(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(text for text in texts if text))
