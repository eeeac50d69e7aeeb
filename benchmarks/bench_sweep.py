"""What a sweep costs beyond its trials, and what ASHA saves: learning rate x rank of SmolLM2 + LoRA.

Sweeps are run as users do it, by `rayloom sweep`, two trials at a time where there are two cores.

* overhead: a grid of eight trials of about a minute. Printed is the sweep's time, from the command to the report, times
  the places that trials run at, over the sum of the trials' own time: that of their processes. Such a process does what
  `rayloom train` does (imports, start of its workers, training, validations, export) and measures the artifact on the
  validation rows. How much of it was optimizer steps is told beside it: start and end take the same however long a
  trial is;
* asha: a grid of twelve trials to its end, then ASHA over the same settings. Printed are its training steps over the
  grid's, and how the settings that it chose stand in the grid: its best, within noise of that (paired test on the
  validation rows, see docs/sweeps.md), or worse. Whoever ends in both must have the same score to the last digit.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from measure import print_machine, print_verdict
from rich.console import Console
from rich.table import Table

CONFIG = Path(__file__).resolve().parents[1] / "jobs" / "finetune" / "smollm2_lora_qa.yaml"
OVERHEAD_TARGET, STEPS_TARGET = 0.25, 0.5
RATE, RANK = "training.learning_rate", "lora.r"
SHORT: dict[str, Any] = {
    "overrides": {"dataset.max_train_rows": 32, "training.num_epochs": 3},
    "space": {RATE: {"grid": [1e-4, 4e-4, 1.6e-3, 6.4e-3]}, RANK: {"grid": [4, 16]}},
}
GRID: dict[str, Any] = {
    "overrides": {"dataset.max_train_rows": 48, "training.num_epochs": 6},
    "space": {RATE: {"grid": [1e-4, 4e-4, 1.6e-3, 6.4e-3]}, RANK: {"grid": [4, 16, 32]}},
}
"""Each epoch ends with a validation, which is where ASHA may stop a trial."""
ASHA = GRID | {"scheduler": {"asha": {"grace": 1, "unit": "epochs"}}}
_HEALTHY = {"best", "within noise"}


@dataclass(frozen=True)
class Sweep:
    """A sweep that has run.

    Attributes:
        wall_s: From the command to the report.
        trials: Entries of ``sweep.json``, best first.
    """

    wall_s: float
    trials: list[dict[str, Any]]

    @property
    def process_s(self) -> float:
        """Of all trials' processes."""
        return float(sum(trial["seconds"] for trial in self.trials))

    @property
    def finished(self) -> list[dict[str, Any]]:
        """Trials that ran to their end."""
        return [trial for trial in self.trials if trial["end"] == "finished"]

    @property
    def steps(self) -> int:
        """Of all trials."""
        return int(sum(trial["trained_steps"] for trial in self.trials))


def main() -> None:
    options = parse()
    console = Console(soft_wrap=True)
    print_machine(console, threads=1)
    os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    os.environ.pop("RAY_ADDRESS", None)
    with tempfile.TemporaryDirectory(prefix="rayloom-sweep-", dir=options.folder) as name:
        for table in options.table or TABLES:
            TABLES[table](console, Path(name), options.places)


def overhead(console: Console, folder: Path, places: int) -> None:
    """The table of that name."""
    sweep = run(folder, "short", SHORT, places)
    show_times(console, "overhead", sweep, places)
    more = sweep.wall_s * places / sweep.process_s - 1
    label = f"the sweep's overhead over the {sweep.process_s:.0f} s of its trials' own time"
    print_verdict(console, label, f"{more:.1%}", f"< {OVERHEAD_TARGET:.0%}", met=more < OVERHEAD_TARGET)


def asha(console: Console, folder: Path, places: int) -> None:
    """The table of that name."""
    full = run(folder, "grid", GRID, places)
    show_times(console, "grid", full, places)
    short = run(folder, "asha", ASHA, places)
    show_times(console, "ASHA", short, places)
    show_trials(console, full, short)
    show_saved(console, full, short)


def run(folder: Path, name: str, asked: dict[str, Any], places: int) -> Sweep:
    """A sweep by the command that users type."""
    common = {
        "training.batch_size": 8,
        "training.save_total_limit": 1,
        "distributed.num_workers": 1,
        "distributed.zero_stage": None,
    }
    asked = asked | {
        "config": str(CONFIG),
        "overrides": common | asked["overrides"],
        "search": "grid",
        "metric": "loss",
        "max_concurrent": places,
        "output": {"storage_path": str(folder), "name": name},
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(asked), encoding="utf-8")
    command = [str(Path(sys.executable).with_name("rayloom")), "sweep", str(file)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall_s = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"the sweep failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    trials = json.loads((folder / name / "sweep.json").read_text(encoding="utf-8"))["trials"]
    failed = [trial["trial"] for trial in trials if trial["end"] == "failed"]
    if failed:
        raise SystemExit(f"{', '.join(failed)} failed:\n{done.stdout[-3000:]}")
    return Sweep(wall_s, trials)


def show_times(console: Console, name: str, sweep: Sweep, places: int) -> None:
    """How long the sweep and its trials took."""
    times = [trial["seconds"] for trial in sweep.finished]
    steps = sum(trial["metrics"]["train_s"] for trial in sweep.finished) / sum(times)
    console.print(
        f"\n{name}: {sweep.wall_s:.0f} s, {places} trials at a time; {len(times)} of {len(sweep.trials)} trials ran to "
        f"their end, in {statistics.median(times):.0f} s each ({min(times):.0f} to {max(times):.0f}), "
        f"{steps:.0%} of it optimizer steps",
        highlight=False,
    )


def show_trials(console: Console, grid: Sweep, halved: Sweep) -> None:
    """All settings, best of the grid first."""
    table = Table("learning rate", "rank", "grid: loss", "against its best", "ASHA: loss", "steps")
    short = by_settings(halved)
    for trial in grid.trials:
        other, p_value = short[settings(trial)], (trial["test"] or {}).get("p_value")
        verdict = trial["verdict"] if p_value is None else f"{trial['verdict']} (p {p_value:.3f})"
        cells = [*(f"{value:g}" for value in settings(trial)), f"{trial['score']:.4f}", verdict]
        table.add_row(*cells, f"{other['score']:.4f}", f"{other['trained_steps']}")
    console.print()
    console.print(table)


def show_saved(console: Console, grid: Sweep, halved: Sweep) -> None:
    """ASHA's steps, and what its choice is worth."""
    full = by_settings(grid)
    chosen = full[settings(halved.trials[0])]
    share = halved.steps / grid.steps
    label = f"ASHA: training steps over the grid's ({halved.steps} of {grid.steps})"
    print_verdict(console, label, f"{share:.2f} x", f"≤ {STEPS_TARGET:g} x", met=share <= STEPS_TARGET)
    label = (
        f"ASHA's best in the grid: rank {chosen['rank']}, loss {chosen['score']:.4f} ({grid.trials[0]['score']:.4f})"
    )
    print_verdict(console, label, chosen["verdict"], "best or within noise", met=chosen["verdict"] in _HEALTHY)
    other = [trial for trial in halved.finished if trial["score"] != full[settings(trial)]["score"]]
    same = f"{len(halved.finished) - len(other)} of {len(halved.finished)}"
    print_verdict(console, "same score in both sweeps, to the last digit", same, "all", met=not other)


def by_settings(sweep: Sweep) -> dict[tuple[float, ...], dict[str, Any]]:
    """Trials by what they tried."""
    return {settings(trial): trial for trial in sweep.trials}


def settings(trial: dict[str, Any]) -> tuple[float, ...]:
    """In the order of the space."""
    return tuple(trial["settings"][key] for key in (RATE, RANK))


TABLES = {"overhead": overhead, "asha": asha}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="append", choices=TABLES, help="only this one; may be repeated")
    parser.add_argument("--places", type=int, default=min(2, os.cpu_count() or 1), help="trials at a time (default 2)")
    parser.add_argument("--folder", help="where the sweeps are put (default: the temporary folder)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
