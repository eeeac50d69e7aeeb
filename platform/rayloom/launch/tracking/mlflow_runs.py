"""MLflow: parameters, metrics, samples and the artifact, on a server, in a database or in a folder."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rayloom.config import MlflowConfig, RunConfig, dump_yaml
from rayloom.launch.progress import Event, Note
from rayloom.launch.tracking.figures import cheap_artifact, final_figures, flat_config, record_figures
from rayloom.launch.tracking.folder import RunFolder
from rayloom.launch.tracking.trackers import Outcome
from rayloom.training import EvalRecord

MEMORY = "mlflow.json"
"""File of the run that remembers the MLflow run it has."""

_METRICS_PER_CALL, _PARAMS_PER_CALL, _PARAM_CHARS = 1000, 100, 500
_STATES = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class Mlflow:
    """An MLflow run that lasts as long as ours, however often that is resumed.

    Args:
        folder: Of our run.
        config: Its parameters.
        settings: Where to.
        run_name: What to call it.
    """

    name = "MLflow"

    def __init__(self, folder: RunFolder, config: RunConfig, settings: MlflowConfig, *, run_name: str) -> None:
        self._folder, self._config, self._settings, self._run_name = folder, config, settings, run_name
        self._client: Any = None
        self._id = ""
        self._step = 0
        self._notes: list[str] = []
        self._notes_file = f"notes/{datetime.now(UTC):%Y%m%d-%H%M%S}.txt"

    def start(self) -> None:
        """See `Tracker.start`."""
        uri = self._settings.uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
        _prepare_environment(uri)
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic"):  # they would log a new database's every table
            logging.getLogger(name).setLevel(logging.WARNING)
        self._client = MlflowClient(tracking_uri=uri)
        known = self._known_run(uri)
        self._id = known or self._new_run(uri)
        self._client.log_text(self._id, dump_yaml(self._config), "config.yaml")

    def log(self, events: Sequence[Event]) -> None:
        """See `Tracker.log`: one call for all figures."""
        metrics: list[tuple[str, float, int]] = []
        notes = [event.text for event in events if isinstance(event, Note)]
        for event in events:
            if isinstance(event, Note):
                continue
            self._step = event.step
            metrics += [(name, value, event.step) for name, value in record_figures(event).items()]
            if isinstance(event, EvalRecord) and event.samples:
                text = json.dumps(event.samples, ensure_ascii=False, indent=2)
                self._client.log_text(self._id, text, f"samples/step-{event.step:08d}.json")
        self._send(metrics)
        if notes:
            self._client.log_text(self._id, "\n".join([*self._notes, *notes]), self._notes_file)
            self._notes += notes

    def finish(self, outcome: Outcome) -> None:
        """See `Tracker.finish`."""
        self._send([(name, value, self._step) for name, value in final_figures(outcome.metrics).items()])
        for tag, value in (("rayloom.artifact", outcome.artifact), ("rayloom.error", outcome.error)):
            if value is not None:
                self._client.set_tag(self._id, tag, value)
        files = cheap_artifact(outcome.artifact)
        if files is not None:
            self._client.log_artifacts(self._id, str(files), "artifact")
        self._client.set_terminated(self._id, _STATES[outcome.state])

    def _known_run(self, uri: str) -> str | None:
        """The MLflow run of an earlier part of ours, opened again; None if there is none any more."""
        from mlflow.exceptions import MlflowException

        memory = self._folder.read_json(MEMORY)
        run_id = memory.get("run_id")
        if not run_id or memory.get("uri") != uri:
            return None
        try:
            if self._client.get_run(run_id).info.lifecycle_stage != "active":
                return None
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        self._client.update_run(run_id, status="RUNNING")
        return str(run_id)

    def _new_run(self, uri: str) -> str:
        from mlflow.entities import Param

        run = self._client.create_run(
            self._experiment(), run_name=self._run_name, tags={"rayloom.run": self._folder.path}
        )
        run_id = str(run.info.run_id)
        self._folder.write(MEMORY, json.dumps({"uri": uri, "run_id": run_id}))
        # Servers refuse longer values; config.yaml, among the run's files, has them whole.
        params = [Param(key, value[:_PARAM_CHARS]) for key, value in flat_config(self._config).items()]
        for at in range(0, len(params), _PARAMS_PER_CALL):
            self._client.log_batch(run_id, params=params[at : at + _PARAMS_PER_CALL])
        return run_id

    def _experiment(self) -> str:
        found = self._client.get_experiment_by_name(self._settings.experiment)
        return str(found.experiment_id if found else self._client.create_experiment(self._settings.experiment))

    def _send(self, metrics: list[tuple[str, float, int]]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        for at in range(0, len(metrics), _METRICS_PER_CALL):
            part = metrics[at : at + _METRICS_PER_CALL]
            self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value, step in part])


def _prepare_environment(uri: str) -> None:
    """Settings that MLflow takes from nowhere else; what the user has set stays."""
    # By default a server that is down would be asked for minutes; `Background` does the retrying.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    if "://" not in uri or uri.startswith("file:"):
        # Else MLflow refuses folders, in favour of databases; whoever names a folder wants one.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
