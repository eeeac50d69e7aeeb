"""Carries a model that only exists on the driver's disk to the other nodes.

Hub names and GGUF files in packages are found by each node itself. A model with random weights was made on the driver
(its tokenizer is trained on the data), and so was one from a checkpoint: their files travel through Ray's object store.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from rayloom.models import ModelSource

Files = dict[str, bytes]


def pack(source: ModelSource) -> Files | None:
    """The files of a locally made model, None if other nodes find it themselves."""
    if source.portable or not source.materialised:
        return None
    folder = source.model_folder()
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def unpack(source: ModelSource, files: Files | None) -> None:
    """Write the files where the driver had them, unless this node has them already."""
    folder = Path(source.location)
    if files is None or folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=folder.parent))
    for name, content in files.items():
        (staged / name).write_bytes(content)
    try:
        os.replace(staged, folder)
    except OSError:  # another worker on this node was faster
        shutil.rmtree(staged, ignore_errors=True)
