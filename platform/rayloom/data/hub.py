"""Datasets by name: a folder written by ``save_to_disk``, or the Hugging Face hub."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub

from rayloom.data.rows import Row, SourceRow
from rayloom.data.sides import SPLITS
from rayloom.errors import ConfigError, DataError, HubError

Part = TypeVar("Part")
_ALIASES = {"validation": ("validation", "valid", "val", "dev"), "test": ("test",), "train": ("train",)}
_PROBE_TIMEOUT_S = 5.0
_OFFLINE_SWITCHES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


def load_dataset_rows(name: str, subset: str | None = None) -> dict[str, list[Row]]:
    """The rows of all splits of a dataset, in memory.

    Args:
        name: Hub name (``wikitext``), or a folder written by ``Dataset.save_to_disk``.
        subset: Configuration of the hub dataset (``wikitext-2-raw-v1``).

    Returns:
        Split name to rows.

    Raises:
        ConfigError, DataError, HubError: As `open_dataset`.
    """
    opened = open_dataset(name, subset)
    return {split: _rows(content, f"{name}[{split}]") for split, content in opened.items()}


def open_dataset(name: str, subset: str | None = None) -> dict[str, Any]:
    """All splits of a dataset, as mapped from disk by the ``datasets`` library.

    Args:
        name: See `load_dataset_rows`.
        subset: See `load_dataset_rows`.

    Returns:
        Split name to ``datasets.Dataset``; a saved dataset without splits is one split ``train``.

    Raises:
        ConfigError: A subset of a folder, or one that the dataset does not have.
        DataError: A folder that is no saved dataset, or a dataset that cannot be read.
        HubError: The hub is needed and cannot be reached, or does not have the name.
    """
    if subset is not None and Path(name).is_dir():
        raise ConfigError("a folder saved with save_to_disk has no subsets: leave it out", key="dataset.subset")
    loaded = _load_folder(name) if Path(name).is_dir() else _load_hub(name, subset)
    splits = loaded if isinstance(loaded, dict) else {"train": loaded}
    return {str(split): content for split, content in splits.items()}


def own_splits(found: Mapping[str, Part], name: str) -> dict[str, Part]:
    """Train, validation and test among a dataset's splits, those that are not empty.

    Args:
        found: Split name to rows of any kind.
        name: The dataset, for errors.

    Raises:
        DataError: There is nothing to train on.
    """
    given = {split: found[alias] for split in SPLITS for alias in reversed(_ALIASES[split]) if found.get(alias)}
    if "train" not in given:
        raise DataError(f"there is no split 'train'; there are: {', '.join(found) or 'none'}", file=name)
    return given


def _rows(content: Any, label: str) -> list[Row]:
    return [SourceRow(row, label, number) for number, row in enumerate(content, start=1)]


def _load_folder(name: str) -> Any:
    import datasets  # seconds to import, and only runs on named datasets need it

    try:
        return datasets.load_from_disk(name)
    except Exception as error:  # the library raises many kinds for a folder that it did not write
        raise DataError(
            f"this folder is no readable dataset saved with save_to_disk ({_first_line(error)}); "
            "for single files use dataset.train_file",
            file=name,
        ) from error


@functools.lru_cache(maxsize=4)  # asked for several times in a run, each of which asks the hub again
def _load_hub(name: str, subset: str | None) -> Any:
    import datasets

    _probe(name)
    try:
        return datasets.load_dataset(name, subset)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise HubError(f"the hub has no dataset '{name}' that you may read: {_first_line(error)}") from error
    except (ConnectionError, TimeoutError) as error:
        raise _unreachable(name, error) from error
    except Exception as error:  # a script-based dataset, a full disk: the library's own words
        if isinstance(error, ValueError) and (subsets := _other_subsets(name, subset)):
            told = f"dataset '{name}' has no subset '{subset}'" if subset else f"dataset '{name}' has subsets: name one"
            raise ConfigError(f"{told}; there are: {', '.join(subsets)}", key="dataset.subset") from error
        raise DataError(f"the dataset cannot be loaded: {_first_line(error)}", file=name) from error


def _other_subsets(name: str, subset: str | None) -> list[str]:
    """The subsets of a dataset, if the one that was asked for is not among them."""
    import datasets

    try:
        known: list[str] = datasets.get_dataset_config_names(name)
    except Exception:  # the error that led here is told instead
        return []
    return known if subset not in known and (subset or len(known) > 1) else []


def _probe(name: str) -> None:
    """Fail in seconds: the library itself retries for half a minute."""
    if any(os.environ.get(switch, "").upper() in ("1", "ON", "YES", "TRUE") for switch in _OFFLINE_SWITCHES):
        return  # only its cache is asked
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=_PROBE_TIMEOUT_S)
    except Exception as error:  # httpx's transport errors, and what a proxy makes of them
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: Exception) -> HubError:
    return HubError(
        f"dataset '{name}' is neither a local folder nor in reach on the hub ({_first_line(error)}); "
        "connect, set HF_HUB_OFFLINE=1 if it is in the local cache, or use dataset.train_file"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
