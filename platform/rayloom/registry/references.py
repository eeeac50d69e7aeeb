"""Names of versions: ``qa@3``, ``qa@production``, ``qa``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import get_args

from rayloom.errors import RegistryError
from rayloom.registry.records import Stage

_MODEL = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_REFERENCE = re.compile(rf"({_MODEL})@([A-Za-z0-9]+)")
_STAGES: tuple[str, ...] = get_args(Stage)


@dataclass(frozen=True)
class Reference:
    """A model with a version or a stage; one of the two at most.

    Attributes:
        model: Name of the model.
        version: Its version.
        stage: Or the stage to look in. With neither, production is meant.
    """

    model: str
    version: int | None = None
    stage: str | None = None


def is_reference(text: str) -> bool:
    """Whether a text has the form ``NAME@VERSION`` or ``NAME@STAGE``. Paths and URIs have not."""
    return _REFERENCE.fullmatch(text) is not None


def parse_reference(text: str) -> Reference:
    """Read ``NAME``, ``NAME@VERSION`` or ``NAME@STAGE``.

    Raises:
        RegistryError: It is none of these.
    """
    model, separator, which = text.partition("@")
    check_model_name(model)
    if not separator:
        return Reference(model)
    if which.isascii() and which.isdigit() and int(which) > 0:
        return Reference(model, version=int(which))
    if which in _STAGES and which != "none":
        return Reference(model, stage=which)
    raise RegistryError(
        f"'{text}': expected {model}@VERSION (a number from 1) or {model}@STAGE (candidate, production or archived)"
    )


def check_model_name(name: str) -> None:
    """Refuse what cannot name a model.

    Raises:
        RegistryError: It is empty, or has characters that a path or a reference needs for itself.
    """
    if not re.fullmatch(_MODEL, name):
        raise RegistryError(
            f"'{name}' cannot name a model: take letters, digits, '-', '_' and '.', with a letter or digit first"
        )
