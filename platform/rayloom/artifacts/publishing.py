"""From a build folder to an artifact that readers see whole or not at all."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rayloom.artifacts import storage
from rayloom.artifacts.card import model_card
from rayloom.artifacts.hub import SCHEME, HubPlace, hub_place, put_on_hub
from rayloom.artifacts.manifest import BASE_FOLDER, CARD_FILE, CONFIG_FILE, MANIFEST_FILE, Manifest
from rayloom.artifacts.opening import Artifact
from rayloom.errors import ArtifactError

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".msgpack", ".h5")


@dataclass(frozen=True)
class Publication:
    """How an artifact is published.

    Attributes:
        license: Identifier (``apache-2.0``), for a new model card that names it.
        public: On the hub, whether everybody may read it. Where not given, a new repository is private, and another
            stays as it is.
        message: On the hub, the commit's message.
    """

    license: str | None = None
    public: bool | None = None
    message: str | None = None


def publish(build_dir: Path, destination: str, manifest: Manifest) -> str:
    """Publish a build folder as an artifact.

    The build folder stays as it is. A model card is written where it has none, and for the hub, where files lie in
    other places. An artifact that stands at the destination is replaced.

    Args:
        build_dir: Folder with ``config.yaml`` and ``model/``, or ``adapter/`` (and ``base/``).
        destination: Folder, fsspec URI or ``hf://OWNER/NAME[@BRANCH]`` of the artifact.
        manifest: Its description; ``files`` is filled here.

    Returns:
        The destination, absolute if local.

    Raises:
        ArtifactError: Something is missing in the build folder, weights are no safetensors, or the
            destination holds something that is no artifact.
        HubError: The hub cannot be reached or refuses.
    """
    build_dir = Path(build_dir)
    _check_layout(build_dir, manifest)
    names = [name for name in storage.files_below(build_dir) if name != MANIFEST_FILE]
    return _publish({name: build_dir / name for name in names}, destination, manifest, Publication())


def publish_again(artifact: Artifact, destination: str, how: Publication | None = None) -> str:
    """Publish an artifact in another place, as `publish` does: what its manifest names, and nothing else."""
    files = {name: artifact.path / name for name in artifact.manifest.files}
    return _publish(files, destination, artifact.manifest, how or Publication())


def _publish(files: dict[str, Path], destination: str, manifest: Manifest, how: Publication) -> str:
    place = hub_place(destination)
    if place is None and (how.public is not None or how.message is not None):
        raise ArtifactError(f"{destination} is not on the hub: visibility and message are for {SCHEME}OWNER/NAME")
    has_card = CARD_FILE in files and place is None and how.license is None
    card = None if has_card else _card(files[CONFIG_FILE], manifest, place, how.license)
    if place is not None and card is not None:
        return _publish_on_hub(files, card, place, manifest, how)
    local = storage.local_path(destination)
    if local is None:
        return _publish_remote(files, card, destination, manifest)
    return _publish_local(files, card, local, manifest)


def _card(config: Path, manifest: Manifest, place: HubPlace | None, license_id: str | None) -> bytes:
    config_yaml = config.read_text(encoding="utf-8")
    return model_card(manifest, config_yaml=config_yaml, place=place, license_id=license_id).encode()


def _publish_on_hub(files: dict[str, Path], card: bytes, place: HubPlace, manifest: Manifest, how: Publication) -> str:
    content: dict[str, Path | bytes] = {**files, CARD_FILE: card}
    entries = {
        name: storage.entry_of(what) if isinstance(what, bytes) else storage.file_entry(what)
        for name, what in content.items()
    }
    described = manifest.model_copy(update={"files": entries})
    content[MANIFEST_FILE] = _manifest_bytes(manifest, entries)
    message = how.message or f"{manifest.name}, by rayloom {manifest.code_version}"
    put_on_hub(content, described, place, public=how.public, message=message)
    return str(place)


def _check_layout(build_dir: Path, manifest: Manifest) -> None:
    wanted = ["model/config.json"] if manifest.kind == "full" else ["adapter/adapter_config.json"]
    if manifest.kind == "adapter" and manifest.base is None:
        raise ArtifactError("the manifest of an adapter must name its base model")
    if manifest.base is not None and manifest.base.is_inside:
        wanted.append(f"{BASE_FOLDER}/config.json")
    for name in [CONFIG_FILE, *wanted]:
        if not (build_dir / name).is_file():
            raise ArtifactError(f"{build_dir}: '{name}' is missing, so no artifact can be made of it")
    _check_weights(build_dir, [str(PurePosixPath(name).parent) for name in wanted])


def _check_weights(build_dir: Path, folders: list[str]) -> None:
    for name in storage.files_below(build_dir):
        if PurePosixPath(name).suffix.lower() in _PICKLES:
            raise ArtifactError(
                f"{build_dir / name}: artifacts hold weights as safetensors only, since other formats can "
                "run code when they are loaded: save it with save_pretrained and take this file away"
            )
    for folder in folders:
        if not any((build_dir / folder).glob("*.safetensors")):
            raise ArtifactError(f"{build_dir / folder}: holds no .safetensors weights")


def _publish_local(files: dict[str, Path], card: bytes | None, local: Path, manifest: Manifest) -> str:
    local = local.expanduser().absolute()
    _refuse_foreign(local)
    with storage.sibling_folder(local) as folder:
        for name, source in files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            storage.sync(target)
        if card is not None:
            storage.write_durably(folder / CARD_FILE, card)
        entries = {name: storage.file_entry(folder / name) for name in storage.files_below(folder)}
        storage.write_durably(folder / MANIFEST_FILE, _manifest_bytes(manifest, entries))
        storage.sync(folder)
        storage.replace_folder(folder, local)
    return str(local)


def _refuse_foreign(local: Path) -> None:
    if not local.exists() or (local / MANIFEST_FILE).is_file():
        return
    if not local.is_dir() or any(local.iterdir()):
        raise ArtifactError(
            f"{local} exists and is no artifact; it will not be overwritten: choose another path, or move it away"
        )


def _publish_remote(files: dict[str, Path], card: bytes | None, destination: str, manifest: Manifest) -> str:
    filesystem, root = storage.remote(destination)
    try:
        if filesystem.exists(f"{root}/{MANIFEST_FILE}"):
            # Without its manifest the old artifact is none, so nobody opens a mixture of both.
            filesystem.rm_file(f"{root}/{MANIFEST_FILE}")
            filesystem.rm(root, recursive=True)
        entries = {}
        for name, source in files.items():
            filesystem.makedirs(str(PurePosixPath(f"{root}/{name}").parent), exist_ok=True)
            filesystem.put_file(str(source), f"{root}/{name}")
            entries[name] = storage.file_entry(source)
        if card is not None:
            filesystem.pipe_file(f"{root}/{CARD_FILE}", card)
            entries[CARD_FILE] = storage.entry_of(card)
        filesystem.pipe_file(f"{root}/{MANIFEST_FILE}", _manifest_bytes(manifest, entries))
    except OSError as error:
        raise ArtifactError(f"{destination}: upload failed ({error}); nothing was published: try again") from error
    return destination.rstrip("/")


def _manifest_bytes(manifest: Manifest, entries: object) -> bytes:
    return (manifest.model_copy(update={"files": entries}).model_dump_json(indent=2) + "\n").encode()
