"""The one exception tree.

::

    RayloomError                 everything that Rayloom raises on purpose
    ├── UserError (ValueError)   the caller can mend it: exit code 2, HTTP 4xx
    │   ├── ConfigError          a config, job or serve file (names the line and the key)
    │   ├── DataError            a data file (names the file, row and column)
    │   ├── ModelError           a model cannot be loaded, or does not fit the task
    │   │   └── HubError         the model or data hub is needed and cannot be reached
    │   ├── ArtifactError        a folder that is no artifact, or a damaged one
    │   ├── RegistryError        a model, version or stage that the registry does not have, or does not give
    │   └── RequestError         generation parameters or prompts
    ├── TrainingError            a run failed for a reason that the config does not explain
    │   └── DivergedError        its loss or gradients are not finite, and would not be at another attempt
    ├── EngineError              the generation engine broke while it worked on a request
    └── ServiceError             a server, cluster or job that does not answer
"""

from __future__ import annotations

from pathlib import Path


class RayloomError(Exception):
    """Root of all errors that Rayloom raises on purpose."""

    exit_code = 1


class UserError(RayloomError, ValueError):
    """An input that its author can mend."""

    exit_code = 2


class ConfigError(UserError):
    """A config, job or serve file is wrong.

    Args:
        message: What is wrong and how to mend it.
        path: The file.
        line: Line in the file, from 1.
        key: Dotted key, such as ``training.batch_size``.
    """

    def __init__(
        self, message: str, *, path: Path | str | None = None, line: int | None = None, key: str | None = None
    ) -> None:
        self.path, self.line, self.key = path, line, key
        place = _place(path, f"line {line}" if line else None, key)
        super().__init__(f"{place}: {message}" if place else message)


class DataError(UserError):
    """A data file is wrong.

    Args:
        message: What is wrong and how to mend it.
        file: The data file or dataset name.
        row: Row in the file, from 1.
        column: Column name.
    """

    def __init__(
        self,
        message: str,
        *,
        file: Path | str | None = None,
        row: int | None = None,
        column: str | None = None,
    ) -> None:
        self.file, self.row, self.column = file, row, column
        place = _place(file, f"row {row}" if row else None, f"column '{column}'" if column else None)
        super().__init__(f"{place}: {message}" if place else message)


class ModelError(UserError):
    """A model cannot be loaded, or does not fit the task."""


class HubError(ModelError):
    """A hub is needed and cannot be reached, or does not have the name."""


class ArtifactError(UserError):
    """A folder that is no artifact, a damaged one, or one that does not replay."""


class RegistryError(UserError):
    """A model, version or stage that the registry does not have, or a change that it does not allow."""


class RequestError(UserError):
    """A prompt or a generation parameter that cannot be honoured."""


class TrainingError(RayloomError):
    """A training run failed."""


class DivergedError(TrainingError):
    """The loss or gradients of a run are not finite. Every rank raises it, at the same step.

    From the last checkpoint the same steps would end in the same way: no reason to replace a worker.
    """


class EngineError(RayloomError):
    """The generation engine broke while it worked on a request; the cause is chained."""


class ServiceError(RayloomError):
    """A server, cluster or job does not answer or has failed."""


def _place(*parts: object) -> str:
    return ", ".join(str(part) for part in parts if part)
