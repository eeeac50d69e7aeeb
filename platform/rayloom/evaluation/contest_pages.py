"""A comparison as Markdown, CSV, JSON and one HTML page that needs nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

from rayloom.evaluation import pages
from rayloom.evaluation.contest import Contest, cost_table, csv_text, quality_table
from rayloom.evaluation.pages import number_table, plot_cards, tiles, whole_page
from rayloom.evaluation.tables import Figure, text_table
from rayloom.evaluation.units import duration, label, metric_text


@dataclass(frozen=True)
class ContestPaths:
    """Where a comparison's files lie."""

    markdown: Path
    csv: Path
    html: Path
    json: Path


def write_contest(contest: Contest, folder: Path | str) -> ContestPaths:
    """Write ``compare.md``, ``compare.csv``, ``compare.html`` and ``compare.json``.

    Args:
        contest: What was measured.
        folder: Made if absent; files of an earlier comparison are replaced.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = ContestPaths(*(folder / f"compare.{kind}" for kind in ("md", "csv", "html", "json")))
    paths.markdown.write_text(markdown_text(contest), encoding="utf-8")
    paths.csv.write_text(csv_text(contest), encoding="utf-8")
    paths.html.write_text(html_text(contest), encoding="utf-8")
    paths.json.write_text(contest.model_dump_json(indent=2), encoding="utf-8")
    return paths


def markdown_text(contest: Contest) -> str:
    """The comparison in Markdown."""
    parts = ["# Comparison", f"**{contest.headline}**", subtitle(contest)]
    parts += ["## Quality", text_table(*quality_table(contest)), "## Cost", text_table(*cost_table(contest))]
    parts += [f"> {warning}" for warning in warnings(contest)]
    return "\n\n".join([*parts, note(contest)]) + "\n"


def html_text(contest: Contest) -> str:
    """The comparison as one self-contained page."""
    from rayloom.evaluation import contest_plots  # matplotlib takes a second, and the command line imports us

    parts = [
        "<h1>Comparison</h1>",
        f'<p class="sub">{escape(subtitle(contest))}</p>',
        f"<p><strong>{escape(contest.headline)}</strong></p>",
        tiles(_tiles(contest)),
        plot_cards(
            [
                (f"{label(contest.main_metric)} with its interval", contest_plots.quality_bars(contest)),
                ("Quality and latency", contest_plots.trade_off(contest)),
                ("Speed", contest_plots.speed_bars(contest)),
                ("Peak memory", contest_plots.memory_bars(contest)),
            ]
        ),
        "<h2>Quality</h2>",
        number_table(*quality_table(contest)),
        "<h2>Cost</h2>",
        number_table(*cost_table(contest)),
    ]
    parts += [f'<p class="bad">{escape(warning)}</p>' for warning in warnings(contest)]
    parts += [f'<p class="quiet">{escape(note(contest))}</p>', *_side_by_side(contest)]
    return whole_page("Comparison", parts)


def subtitle(contest: Contest) -> str:
    """What was compared on what."""
    first = contest.systems[0]
    rows = first.split.num_rows
    device = first.result.resources.device
    return f"{len(contest.systems)} systems · {contest.task} · {rows} rows of {contest.rows} · {device}"


def note(contest: Contest) -> str:
    """How to read the tables."""
    options = contest.systems[0].result.evaluation
    if not options.get("num_resamples"):
        return "Each system was measured in a process of its own."
    return (
        f"In brackets: {100 * options['confidence']:g} % bootstrap intervals over rows, {options['num_resamples']} "
        f"resamples. p: paired approximate randomization against {contest.systems[0].name}, two-sided. Each system was "
        "measured in a process of its own; peak memory is that process's, Python and libraries included."
    )


def warnings(contest: Contest) -> list[str]:
    """What happened to rows on the way, by system."""
    found = [f"{each.name}: {text}" for each in contest.systems for text in each.split.warnings]
    if len(contest.systems) > 1 and not any(each.tests for each in contest.systems):
        found.append("no tests: resampling is off, or the systems were not asked the very same")
    return found


def _tiles(contest: Contest) -> list[Figure]:
    metric, shown = contest.main_metric, []
    for each in contest.systems[:6]:
        value = metric_text(metric, each.split.metrics[metric]) if metric in each.split.metrics else "–"
        latency = each.result.resources.latency_p50_s
        shown.append(Figure(f"{each.name}{f', {duration(latency)}' if latency is not None else ''}", value))
    return shown


def _side_by_side(contest: Contest) -> list[str]:
    """The rows on which the systems differ most, answered by each."""
    answers = [{each.row: each for each in system.split.predictions} for system in contest.systems]
    shared = [row for row in answers[0] if all(row in each for each in answers)]

    def spread(row: int) -> float:
        scores = [each[row].rougeL or 0.0 for each in answers]
        return min(scores) - max(scores)

    chosen = sorted(shared, key=lambda row: (spread(row), row))[: _num_examples(contest)]
    if not chosen:
        return []
    head = ["input", "reference", *(system.name for system in contest.systems)]
    body = [
        [answers[0][row].input, answers[0][row].reference, *(each[row].prediction for each in answers)]
        for row in chosen
    ]
    return ["<h2>Where they differ most</h2>", pages.text_table(head, body)]


def _num_examples(contest: Contest) -> int:
    return int(contest.systems[0].result.evaluation.get("num_examples", 10))
