"""Weights & Biases, online or offline."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Sequence
from typing import Any

from rayloom.config import RunConfig, WandbConfig
from rayloom.launch.progress import Event, Note
from rayloom.launch.tracking.figures import cheap_artifact, final_figures, record_figures
from rayloom.launch.tracking.folder import Mirror, RunFolder
from rayloom.launch.tracking.trackers import Outcome
from rayloom.training import EvalRecord

MEMORY = "wandb.json"
"""File of the run that remembers the W&B run it has."""

_INIT_S, _FINISH_S, _LOGIN_S = 60.0, 45.0, 5.0


class Wandb:
    """A W&B run that lasts as long as ours: resumed parts carry the same id.

    Args:
        folder: Of our run; W&B's files go to its ``wandb`` folder.
        config: Its parameters.
        settings: Where to.
        run_name: What to call it.
    """

    name = "Weights & Biases"

    def __init__(self, folder: RunFolder, config: RunConfig, settings: WandbConfig, *, run_name: str) -> None:
        self._folder, self._config, self._settings, self._run_name = folder, config, settings, run_name
        self._mirror: Mirror | None = None
        self._run: Any = None
        self._notes: list[str] = []

    def start(self) -> None:
        """See `Tracker.start`."""
        # Two settings that it takes from the environment only: no lines on our terminal, no reports of its errors.
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._mirror = self._mirror or self._folder.mirror("wandb")
        # Nothing of W&B's own watching: no console, no git, no machine figures, no prompt that waits for ever.
        quiet = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,
            init_timeout=_INIT_S,
            login_timeout=_LOGIN_S,
            finish_timeout=_FINISH_S,
        )
        self._run = wandb.init(
            project=self._settings.project,
            mode=self._settings.mode,
            id=self._run_id(),
            resume="allow",
            name=self._run_name,
            dir=str(self._mirror.folder.parent),
            config=self._config.model_dump(mode="json"),
            allow_val_change=True,
            settings=quiet,
        )
        # Our own step is the axis: W&B's would not go back after an interruption.
        for group in ("train/*", "validation/*", "samples"):
            self._run.define_metric(group, step_metric="step")

    def log(self, events: Sequence[Event]) -> None:
        """See `Tracker.log`."""
        import wandb

        for event in events:
            if isinstance(event, Note):
                self._notes.append(event.text)
                self._run.summary["notes"] = "\n".join(self._notes)
                continue
            content: dict[str, Any] = {"step": event.step, **record_figures(event)}
            if isinstance(event, EvalRecord) and event.samples:
                names = list(event.samples[0])
                rows = [[sample[name] for name in names] for sample in event.samples]
                content["samples"] = wandb.Table(columns=names, data=rows)
            self._run.log(content)

    def finish(self, outcome: Outcome) -> None:
        """See `Tracker.finish`."""
        import wandb

        self._run.summary.update(final_figures(outcome.metrics))
        if outcome.artifact is not None:
            self._keep_artifact(outcome.artifact)
        if outcome.error is not None:
            self._run.summary["error"] = outcome.error
        exit_code = 0 if outcome.state == "finished" else 1
        self._run.finish(exit_code=exit_code)
        # W&B's own process may still be writing; it ends only when the files are whole.
        wandb.teardown(exit_code=exit_code)
        if self._mirror is not None:
            self._mirror.close()

    def _run_id(self) -> str:
        known = self._folder.read_json(MEMORY).get("id")
        if known is None:
            known = uuid.uuid4().hex[:8]
            self._folder.write(MEMORY, json.dumps({"id": known}))
        return str(known)

    def _keep_artifact(self, place: str) -> None:
        import wandb

        self._run.summary["artifact"] = place
        files = cheap_artifact(place)
        if files is not None:
            artifact = wandb.Artifact(f"model-{self._run.id}", type="model", metadata={"place": place})
            artifact.add_dir(str(files))
            self._run.log_artifact(artifact)
