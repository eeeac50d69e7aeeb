"""From a build folder to an artifact that readers see whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath

from rayloom.artifacts import storage
from rayloom.artifacts.card import model_card
from rayloom.artifacts.manifest import BASE_FOLDER, CARD_FILE, CONFIG_FILE, MANIFEST_FILE, Manifest
from rayloom.errors import ArtifactError

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".msgpack", ".h5")


def publish(build_dir: Path, destination: str, manifest: Manifest) -> str:
    """Publish a build folder as an artifact.

    The build folder stays as it is. A model card is written where it has none. An artifact that stands at
    the destination is replaced.

    Args:
        build_dir: Folder with ``config.yaml`` and ``model/``, or ``adapter/`` (and ``base/``).
        destination: Folder or fsspec URI of the artifact.
        manifest: Its description; ``files`` is filled here.

    Returns:
        The destination, absolute if local.

    Raises:
        ArtifactError: Something is missing in the build folder, weights are no safetensors, or the
            destination holds something that is no artifact.
    """
    build_dir = Path(build_dir)
    _check_layout(build_dir, manifest)
    names = [name for name in storage.files_below(build_dir) if name != MANIFEST_FILE]
    files = {name: build_dir / name for name in names}
    card = None if CARD_FILE in files else _card(build_dir, manifest)
    local = storage.local_path(destination)
    if local is None:
        return _publish_remote(files, card, destination, manifest)
    return _publish_local(files, card, local, manifest)


def _card(build_dir: Path, manifest: Manifest) -> bytes:
    config_yaml = (build_dir / CONFIG_FILE).read_text(encoding="utf-8")
    return model_card(manifest, config_yaml=config_yaml).encode()


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
