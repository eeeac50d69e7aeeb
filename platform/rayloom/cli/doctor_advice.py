"""What ``rayloom doctor`` advises: the settings that were tried, and the lines to write into the config."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml
from rich.console import Console
from rich.table import Table

from rayloom.cli.figures import gib

if TYPE_CHECKING:
    from rayloom.config import RunConfig
    from rayloom.models.advice import Advice


_RECOMPUTE: dict[bool | str, str] = {False: "no", "selective": "selective", True: "all"}


def give_advice(console: Console, config: RunConfig, advice: Advice) -> None:
    """Print the fastest setting that fits, why not a faster one, and what to write into the config."""
    console.print(advice_table(config, advice))
    if advice.chosen is None:
        console.print("[red]no setting fits:[/] shorter rows, more workers, LoRA or more memory are needed")
        return
    host = advice.chosen.memory.host
    offload = f" (offload: it takes {gib(host)} GiB of its host's memory)" if host else ""
    room = f"a worker has room for {advice.most_rows} rows at a time{offload}"
    console.print(f"advice: [bold]{advice.chosen.setting.name}[/]; {room}", highlight=False)
    changes = advice.changes(config)
    if not changes:
        console.print("the config says so already")
        return
    console.print("write into config.yaml:")
    for section, keys in changes.items():
        line = yaml.safe_dump({section: keys}, default_flow_style=None, sort_keys=False, width=1000).strip()
        console.print(f"  {line}", highlight=False, markup=False)


def advice_table(config: RunConfig, advice: Advice) -> Table:
    """GiB per worker of the settings that were tried, likely faster ones first, down to the one that fits."""
    table = Table(title="settings by likely speed, GiB per worker", title_justify="left")
    table.add_column("setting", no_wrap=True)
    for name in ("rows", "recompute", "weights", "grads", "Adam", "activ.", "total", "fits"):
        table.add_column(name, justify="right")
    for each in (*advice.refused, *([advice.chosen] if advice.chosen else [])):
        setting, memory = each.setting, each.memory
        training = setting.applied(config).training
        count = f"{training.batch_size} x {training.gradient_accumulation_steps}"
        recompute = _RECOMPUTE[setting.recompute]
        parts = (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.device)
        fits = "[green]yes[/]" if each.fits else "[red]no[/]"
        table.add_row(setting.name, count, recompute, *map(gib, parts), fits, style="bold" if each.fits else None)
    return table
