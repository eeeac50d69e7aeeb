"""The HTML page of a report: everything inline, nothing fetched."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources as package_files
from typing import Any

from rayloom.evaluation.breakdowns import breakdowns
from rayloom.evaluation.results import Prediction, SplitResult
from rayloom.evaluation.tables import (
    Comparison,
    Figure,
    figure_cells,
    provenance_rows,
    resource_rows,
    rows_text,
)

_NUM_TILES = 6


def html_page(comparison: Comparison, history: Sequence[Mapping[str, Any]]) -> str:
    """The report as one self-contained page.

    Args:
        comparison: What to show.
        history: Records of training for the loss curve.
    """
    from rayloom.evaluation import plots  # matplotlib takes a second, and every training worker imports us

    result = comparison.result
    badge = ' <span class="badge">random initialisation</span>' if result.random_init else ""
    headline = result.headline
    before = comparison.before(headline)
    parts = [
        f"<h1>{escape(comparison.title)}{badge}</h1>",
        f'<p class="sub">{escape(comparison.subtitle)}</p>',
        tiles(comparison.figures(headline)[:_NUM_TILES]),
        f'<p class="sub">on the {escape(headline.name)} split ({rows_text(headline)})'
        f"{', beside the untuned model' if before else ''}</p>",
        plot_cards(
            [
                (f"Scores on {headline.name}", plots.metric_bars(headline, before)),
                ("ROUGE-L of each row", plots.rouge_histogram(headline)),
                ("Training", plots.loss_curve(history)),
                ("Throughput", plots.throughput_bars(result.resources)),
            ]
        ),
    ]
    for split in [headline, *(each for each in result.splits if each is not headline)]:
        parts += _split(comparison, split)
    parts += ["<h2>Resources</h2>", _pairs(resource_rows(result.resources))]
    parts += ["<h2>How this was measured</h2>", _pairs(provenance_rows(result))]
    return whole_page(comparison.title, parts)


def whole_page(title: str, parts: Sequence[str]) -> str:
    """A page that needs nothing else.

    Args:
        title: Plain text.
        parts: HTML of its body.
    """
    page = package_files.files("rayloom.evaluation").joinpath("report.html").read_text(encoding="utf-8")
    return string.Template(page).substitute(title=escape(title), body="\n".join(parts))


def tiles(shown: Sequence[Figure]) -> str:
    """The most telling figures, large."""
    return f'<div class="tiles">{"".join(_tile(each) for each in shown)}</div>'


def _tile(each: Figure) -> str:
    delta = ""
    if each.before:
        delta = f'<div class="delta quiet">before {escape(each.before)} {_change(each)}</div>'
    return (
        f'<div class="tile"><div class="name">{escape(each.name)}</div>'
        f'<div class="value">{escape(each.value)}</div>{delta}</div>'
    )


def _change(each: Figure) -> str:
    if each.is_better is None:
        return ""
    return f'<span class="{"good" if each.is_better else "bad"}">{escape(each.change)}</span>'


def plot_cards(plots: Sequence[tuple[str, str | None]]) -> str:
    """Plots (title and SVG, None for one with nothing to show) side by side."""
    cards = [
        f'<div class="card"><h3>{escape(name)}</h3>{_renamed(svg, at)}</div>'
        for at, (name, svg) in enumerate(plots)
        if svg
    ]
    return f'<div class="plots">{"".join(cards)}</div>' if cards else ""


def _renamed(svg: str, number: int) -> str:
    """Ids of one drawing, kept apart from those of the others on the page."""
    for before in ('id="', 'href="#', "url(#"):
        svg = svg.replace(before, f"{before}p{number}-")
    return svg


def _split(comparison: Comparison, split: SplitResult) -> list[str]:
    parts = [
        f"<h2>{escape(split.name.capitalize())}</h2>",
        f'<p class="quiet">{escape(rows_text(split))}</p>',
    ]
    parts += [f'<p class="bad">{escape(warning)}</p>' for warning in split.warnings]
    parts.append(
        _metric_table(*figure_cells(comparison, split), [each.is_better for each in comparison.figures(split)])
    )
    for title, head, body in breakdowns(split):
        parts += [f"<h3>{escape(title)}</h3>", number_table(head, body)]
    if any(prediction.rougeL is not None for prediction in split.predictions):
        shown = comparison.num_examples()
        parts += _examples("Best predictions", split.best(shown)) + _examples("Worst predictions", split.worst(shown))
    elif split.predictions:
        rows = [[p.input, p.prediction] for p in split.predictions]
        parts += ["<h3>Continuations</h3>", text_table(["prompt", "continuation"], rows)]
    return parts


def _metric_table(head: Sequence[str], rows: Sequence[Sequence[str]], is_better: Sequence[bool | None]) -> str:
    change = head.index("change") if "change" in head else -1
    colors = {(at, change): "good" if better else "bad" for at, better in enumerate(is_better) if better is not None}
    return number_table(head, rows, colors)


def number_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], classes: Mapping[tuple[int, int], str] | None = None
) -> str:
    """A table of plain text: names in its first column, figures in the others.

    Args:
        head: Names of the columns.
        rows: Cells.
        classes: CSS classes by row and column, such as ``good``.
    """
    heads = "".join(f"<th{' class=number' if at else ''}>{escape(name)}</th>" for at, name in enumerate(head))
    body = []
    for number, row in enumerate(rows):
        cells = [f"<td>{escape(row[0])}</td>"]
        for at, cell in enumerate(row[1:], start=1):
            extra = (classes or {}).get((number, at), "")
            cells.append(f'<td class="number{f" {extra}" if extra else ""}">{escape(cell)}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="scroll"><table><tr>{heads}</tr>{"".join(body)}</table></div>'


def _examples(title: str, predictions: Sequence[Prediction]) -> list[str]:
    if not predictions:
        return []
    rows = [[_score(p.rougeL or 0.0), _input(p), escape(p.reference), escape(p.prediction)] for p in predictions]
    return [f"<h3>{title}</h3>", _raw_table(["ROUGE-L", "input", "reference", "prediction"], rows)]


def _input(prediction: Prediction) -> str:
    if not prediction.context:
        return escape(prediction.input)
    return f"{escape(prediction.input)}<details><summary>context</summary>{escape(prediction.context)}</details>"


def _score(value: float) -> str:
    hue = round(12 + 128 * value)
    return f'<span class="score" style="background:hsl({hue} 55% 85%);color:#1d2733">{value:.2f}</span>'


def _pairs(rows: Sequence[tuple[str, str]]) -> str:
    return text_table(["what", "value"], [list(row) for row in rows])


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain text."""
    return _raw_table(head, [[escape(cell) for cell in row] for row in rows])


def _raw_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells are HTML already."""
    heads = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td class=text>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{heads}</tr>{body}</table></div>'
