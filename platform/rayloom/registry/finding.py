"""Which of a model's versions a reference means; the same for every kind of registry."""

from __future__ import annotations

from collections.abc import Sequence

from rayloom.config import nearest
from rayloom.errors import RegistryError
from rayloom.registry.records import ModelSummary, Version
from rayloom.registry.references import Reference


def chosen(versions: Sequence[Version], wanted: Reference) -> Version:
    """The version of this number, or the newest in a stage, production if none is named.

    Args:
        versions: All of the model, oldest first.
        wanted: What is meant.

    Raises:
        RegistryError: There is none.
    """
    if wanted.version is not None:
        found = next((each for each in versions if each.version == wanted.version), None)
        if found is None:
            numbers = ", ".join(str(each.version) for each in versions)
            raise RegistryError(f"'{wanted.model}' has no version {wanted.version}; it has {numbers or 'none'}")
        return found
    stage = wanted.stage or "production"
    inside = [each for each in versions if each.stage == stage]
    if not inside:
        there = ", ".join(f"{each.version} ({each.stage})" for each in versions)
        hint = f"promote one with rayloom models promote {wanted.model}@VERSION" if stage == "production" else ""
        raise RegistryError(
            f"'{wanted.model}' has no version in {stage}; its versions: {there}{'; ' if hint else ''}{hint}"
        )
    return inside[-1]


def no_model(model: str, known: Sequence[str]) -> RegistryError:
    """Of a name that no model has."""
    if not known:
        return RegistryError(
            f"there is no model '{model}': the registry is empty. Fill it with rayloom models register"
        )
    near = nearest(model, known)
    hint = f"did you mean '{near}'?" if near else f"there are {', '.join(known)}"
    return RegistryError(f"there is no model '{model}' in the registry; {hint}")


def summary(model: str, versions: Sequence[Version]) -> ModelSummary:
    """A model at a glance."""
    return ModelSummary(
        model=model,
        num_versions=len(versions),
        newest=versions[-1].version if versions else None,
        production=next((each.version for each in versions if each.stage == "production"), None),
        candidates=tuple(each.version for each in versions if each.stage == "candidate"),
    )
