"""A trial's artifact becomes a version in the registry."""

from __future__ import annotations

from rayloom.errors import ConfigError
from rayloom.launch.sweeping.asked import read_asked
from rayloom.launch.sweeping.ranking import Ranked, Results, results_of
from rayloom.launch.sweeping.state import SweepState
from rayloom.launch.tracking.folder import RunFolder
from rayloom.registry import Registry, Version


def read_results(folder: str) -> Results:
    """The results of a sweep's folder, as far as it has come.

    Raises:
        ConfigError: It is no sweep's folder.
    """
    place = RunFolder(folder.rstrip("/"))
    sweep = read_asked(place)
    if sweep is None:
        raise ConfigError(f"{folder} is no folder of a sweep: name what 'rayloom sweep' printed as its folder")
    return results_of(sweep, SweepState(place))


def promote(results: Results, registry: Registry, *, name: str, trial: str | None = None, note: str = "") -> Version:
    """Register the artifact of the best trial, or of a named one.

    Its lineage is that of every version: run, data, code and config of the training. The note says which sweep it won.

    Args:
        results: Of the sweep.
        registry: Where to.
        name: Of the model in the registry.
        trial: Another trial than the best.
        note: What people should know beside that.

    Raises:
        ConfigError: No such trial has finished.
        RegistryError: The registry does not take it.
    """
    chosen = _chosen(results, trial)
    assert chosen.record.artifact is not None
    rank = results.trials.index(chosen) + 1
    origin = (
        f"sweep {results.sweep.name}: {chosen.record.name}, rank {rank} of {len(results.trials)}, "
        f"{results.metric} {chosen.score:.6g} ({results.settings(chosen.record)})"
    )
    return registry.register(name, chosen.record.artifact, note=f"{origin}. {note}".strip() if note else origin)


def _chosen(results: Results, trial: str | None) -> Ranked:
    finished = {each.record.name: each for each in results.finished}
    if not finished:
        raise ConfigError("no trial of this sweep has finished, so there is no artifact")
    if trial is None:
        return results.best
    if trial not in finished:
        raise ConfigError(f"'{trial}' has no artifact; finished trials are {', '.join(finished)}")
    return finished[trial]
