"""``rayloom demo``: the whole line in one go."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.rule import Rule
from rich.table import Table

from rayloom.cli.options import Overrides

if TYPE_CHECKING:
    from rayloom.evaluation import JobOutcome, Prediction

console = Console(soft_wrap=True)

_CONFIG = Path("jobs/finetune/smollm2_lora_qa.yaml")
_NUM_SAMPLES = 4


def demo(
    config: Annotated[Path, typer.Argument(help="Config of a training run.")] = _CONFIG,
    set_: Overrides = [],  # noqa: B006 - typer copies it
) -> None:
    """Train a model, measure it against the untuned one, serve it and ask it over HTTP.

    Without arguments, in a clone of the project: SmolLM2-135M + LoRA on questions about people, places and events, with
    two workers. Any other config works as well, such as that of a `rayloom init` project.
    """
    artifact = _train(config, set_)
    outcome = _evaluate(artifact)
    _serve_and_ask(artifact, outcome)
    console.print(f"\nreport: [bold]{escape(str(outcome.paths.html))}[/]", highlight=False)


def _train(config: Path, overrides: list[str]) -> str:
    from rayloom.cli.train import announce
    from rayloom.config import load_run_config

    console.print(Rule("1. train"))
    name = f"demo-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    loaded = load_run_config(config, [f"output.run_name={name}", *overrides])
    from rayloom.launch import TerminalSink, run_training

    with TerminalSink(console) as sink:
        return run_training(loaded, sink=sink, announce=announce).artifact


def _evaluate(artifact: str) -> JobOutcome:
    from rayloom.cli.evaluate import measure
    from rayloom.config import EvaluateJob, RunConfig, load_section

    console.print(Rule("2. measure, before and after"))
    options = load_section(RunConfig, Path(artifact) / "config.yaml").evaluation
    job = EvaluateJob(
        artifact=artifact,
        splits=["test"],
        evaluation=options,
        output=str(Path("reports") / Path(artifact).parent.name),
    )
    outcome = measure(job, baseline=True)
    console.print(_side_by_side(outcome))
    return outcome


def _side_by_side(outcome: JobOutcome) -> Table:
    """The same held-out prompts, answered by the untuned and by the tuned model."""
    table = Table("prompt", "before", "after", "reference", title="held-out answers", show_lines=True)
    before: list[Prediction] = outcome.baseline.splits[0].predictions if outcome.baseline else []
    for old, new in list(zip(before, outcome.result.splits[0].predictions, strict=True))[:_NUM_SAMPLES]:
        table.add_row(*(escape(text) for text in (new.input, old.prediction, new.prediction, new.reference)))
    return table


def _serve_and_ask(artifact: str, outcome: JobOutcome) -> None:
    import httpx

    from rayloom.config import ServingConfig
    from rayloom.serving import serving

    console.print(Rule("3. serve, and ask over HTTP"))
    asked = outcome.result.splits[0].predictions[0]
    with serving(ServingConfig(artifact=artifact)) as url:
        path, body = _question(outcome.result.task, asked.input, asked.context)
        console.print(f"POST {url}{path}  {body}", highlight=False, markup=False)
        response = httpx.post(f"{url}{path}", json=body, timeout=120.0)
        console.print(f"{response.status_code}  {response.text}", highlight=False, markup=False)
        response.raise_for_status()


def _question(task: str, text: str, context: str | None) -> tuple[str, dict[str, Any]]:
    if task != "question-answering":
        return "/generate", {"prompt": text}
    return "/answer", {"question": text} | ({"context": context} if context else {})
