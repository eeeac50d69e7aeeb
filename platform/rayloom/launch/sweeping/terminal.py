"""A sweep on the terminal: the plan, a live table of trials, plain lines where there is no terminal."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from rayloom.config import Sweep
from rayloom.evaluation.units import duration, size
from rayloom.launch.preparation import Prepared
from rayloom.launch.session import Cluster
from rayloom.launch.sweeping.plan import Plan
from rayloom.launch.sweeping.ranking import Results, score_of
from rayloom.launch.sweeping.space import short_names, shown
from rayloom.launch.sweeping.state import SweepState, TrialRecord
from rayloom.launch.tracking.folder import RunFolder
from rayloom.launch.tracking.status import read_status

_COLORS = {"running": "cyan", "finished": "green", "stopped": "dim", "failed": "red"}
_VERDICTS = {"best": "bold green", "within noise": "green", "worse": "yellow", "failed": "red"}


class SweepTerminal:
    """A `Show` on a console.

    Args:
        console: Where to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._sweep: Sweep | None = None

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, highlight=False, markup=False)

    def planned(self, sweep: Sweep, prepared: Prepared, plan: Plan, cluster: Cluster, place: str) -> None:
        """Print the plan."""
        self._sweep = sweep
        for name, text in plan_lines(sweep, plan, cluster, place).items():
            self._console.print(f"{name:>8}  {text}", highlight=False, markup=False)
        for warning in prepared.warnings():
            self._console.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False)

    @contextlib.contextmanager
    def watching(self, state: SweepState, running: set[int]) -> Iterator[None]:
        """A table that follows the trials; nothing where the console is no terminal."""
        if not self._console.is_terminal or self._sweep is None:
            yield
            return
        sweep = self._sweep
        with Live(
            get_renderable=lambda: live_table(sweep, state, set(running)), console=self._console, refresh_per_second=1
        ):
            yield


def plan_lines(sweep: Sweep, plan: Plan, cluster: Cluster, place: str) -> dict[str, str]:
    """What is about to happen, by name."""
    need, config = plan.need, sweep.config
    ended = f", {plan.num_ended} more have ended already" if plan.num_ended else ""
    gpus = f" and {need.gpus:g} GPUs" if need.gpus else ""
    way = config.search if config.scheduler.kind == "none" else f"{config.search}, {config.scheduler.kind}"
    steps = f"{need.steps:,} a trial, {plan.most_steps:,} at most"
    if plan.share < 1:
        steps += (
            f", about {plan.likely_steps:,} if one in {config.scheduler.asha and config.scheduler.asha.reduction:g} "
        )
        steps += "passes each rung"
    time = "not known: no GPU here to time" if plan.seconds is None else f"roughly {duration(plan.seconds)}"
    return {
        "sweep": place,
        "ray": cluster.describe(),
        "trials": f"{plan.num_trials} by {way}{ended}",
        "at once": f"{plan.concurrent}, each with {need.cpus:g} CPUs{gpus}",
        "judged": f"{config.metric}, {'the least' if config.direction == 'min' else 'the greatest'} wins",
        "steps": steps,
        "time": time,
        "disk": f"{size(plan.disk_bytes)} at most for checkpoints and artifacts",
    }


def live_table(sweep: Sweep, state: SweepState, running: set[int]) -> Table:
    """All trials as they are now."""
    names = short_names(list(sweep.config.space))
    table = Table("trial", "state", "step", sweep.config.metric, *names.values())
    for record in list(state):
        how = "running" if record.number in running and not record.end else record.end or "waiting"
        step = _step(state, record) if how == "running" else str(record.steps)
        score = score_of(sweep, record)
        text = "" if score is None or math.isnan(score) else f"{score:.4f}"
        settings = (escape(shown(record.values[key])) for key in names)
        table.add_row(record.name, f"[{_COLORS.get(how, 'yellow')}]{how}[/]", step, text, *settings)
    return table


def results_table(results: Results) -> Table:
    """The ranked table."""
    names = short_names(list(results.sweep.config.space))
    table = Table("rank", "trial", results.metric, "verdict", *names.values(), "steps")
    for rank, each in enumerate(results.trials, start=1):
        verdict = f"[{_VERDICTS.get(each.verdict, 'dim')}]{each.verdict}[/]"
        score = "–" if each.score is None else f"{each.score:.4f}"
        settings = (escape(shown(each.record.values[key])) for key in names)
        table.add_row(str(rank), each.record.name, score, verdict, *settings, str(each.record.steps))
    return table


def _step(state: SweepState, record: TrialRecord) -> str:
    """Where its run is: between reports only the run itself knows."""
    status = read_status(RunFolder(f"{state.folder.path}/{record.run}"), record.run)
    return f"{status.step}/{status.total_steps}" if status.total_steps else "starting"
