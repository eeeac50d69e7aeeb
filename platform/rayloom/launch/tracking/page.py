"""The page of a run: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from rayloom.evaluation.pages import plot_cards, text_table, tiles, whole_page
from rayloom.evaluation.tables import Figure

_POINTS = 1000
_GIB = 1 << 30

Record = Mapping[str, Any]
Point = tuple[float, float]


@dataclass(frozen=True)
class RunView:
    """What a run page shows.

    Attributes:
        name: Of the run.
        subtitle: State, model, time.
        config_yaml: The resolved config.
        history: Records of steps and evaluations, by step.
        notes: Resumptions and other notes, each with ``time`` and ``text``.
        artifact: Its place, once published.
        error: What ended the run.
    """

    name: str
    subtitle: str
    config_yaml: str
    history: Sequence[Record]
    notes: Sequence[Mapping[str, str]]
    artifact: str | None = None
    error: str | None = None

    @property
    def steps(self) -> list[Record]:
        """Records of training."""
        return [record for record in self.history if record["kind"] == "step"]

    @property
    def evaluations(self) -> list[Record]:
        """Records of validation."""
        return [record for record in self.history if record["kind"] == "evaluation"]


def run_page(view: RunView) -> str:
    """The whole page."""
    parts = [
        f"<h1>{escape(view.name)}</h1>",
        f'<p class="sub">{escape(view.subtitle)}</p>',
        *([f'<p class="bad">{escape(view.error)}</p>'] if view.error else []),
        tiles(_figures(view)),
        plot_cards(_plots(view)),
    ]
    if view.evaluations:
        parts += ["<h2>Validation</h2>", _validation_table(view.evaluations), *_samples(view.evaluations)]
    if view.notes:
        rows = [[note["time"], note["text"]] for note in view.notes]
        parts += ["<h2>Resumptions and notes</h2>", text_table(["time", "note"], rows)]
    if view.artifact:
        parts += ["<h2>Artifact</h2>", f"<pre>{escape(view.artifact)}</pre>"]
    parts += ["<h2>Config</h2>", f"<details><summary>resolved</summary><pre>{escape(view.config_yaml)}</pre></details>"]
    return whole_page(f"Run {view.name}", parts)


def curve(steps: Sequence[Record], name: str, *, scale: float = 1.0) -> list[Point]:
    """A figure by step; long runs are thinned to means of neighbours, so that the page stays small."""
    points = [(float(each["step"]), float(each[name]) * scale) for each in steps if each.get(name) is not None]
    width = -(-len(points) // _POINTS)
    if width <= 1:
        return points
    groups = [points[at : at + width] for at in range(0, len(points), width)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _plots(view: RunView) -> list[tuple[str, str | None]]:
    from rayloom.evaluation.plots import AFTER, BEFORE, Line, line_chart  # matplotlib takes a second to import

    steps = view.steps
    validation = [(float(each["step"]), float(each["metrics"]["loss"])) for each in view.evaluations]
    losses = [Line(curve(steps, "loss"), BEFORE, "train"), Line(validation, AFTER, "validation", marker="o")]
    memory = [(step, value) for step, value in curve(steps, "memory_bytes", scale=1 / _GIB) if value]
    return [
        ("Loss", line_chart(losses, "loss per token")),
        ("Learning rate", line_chart([Line(curve(steps, "learning_rate"))], "learning rate")),
        ("Gradient norm", line_chart([Line(curve(steps, "grad_norm"))], "norm before clipping")),
        ("Speed", line_chart([Line(curve(steps, "tokens_per_s"))], "tokens per second")),
        ("Memory", line_chart([Line(memory)], "GiB of the fullest worker")),
    ]


def _figures(view: RunView) -> list[Figure]:
    figures = []
    if view.steps:
        last = view.steps[-1]
        figures += [
            Figure("step", f"{last['step']} / {last['total_steps']}"),
            Figure("train loss", f"{last['loss']:.4f}"),
            Figure("tokens per second", f"{last['tokens_per_s']:.0f}"),
        ]
    if view.evaluations:
        metrics = view.evaluations[-1]["metrics"]
        figures += [
            Figure(f"validation {name}", f"{metrics[name]:.4f}") for name in ("loss", "rougeL") if name in metrics
        ]
    return figures


def _validation_table(evaluations: Sequence[Record]) -> str:
    names = list(dict.fromkeys(name for each in evaluations for name in each["metrics"]))
    rows = [
        [f"{each['epoch']:g}", str(each["step"]), *(_number(each["metrics"].get(name)) for name in names)]
        for each in evaluations
    ]
    return text_table(["epoch", "step", *names], rows)


def _samples(evaluations: Sequence[Record]) -> list[str]:
    """The generations of each epoch, the last one's unfolded."""
    shown = [each for each in evaluations if each.get("samples")]
    parts = ["<h3>Generations</h3>"] if shown else []
    for each in shown:
        names = list(each["samples"][0])
        table = text_table(names, [[sample[name] for name in names] for sample in each["samples"]])
        is_open = " open" if each is shown[-1] else ""
        title = f"epoch {each['epoch']:g}, step {each['step']}"
        parts.append(f"<details{is_open}><summary>{title}</summary>{table}</details>")
    return parts


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
