"""Small files in a run's folder, which is local or behind a URI."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any

import fsspec


class RunFolder:
    """Reads and replaces whole files of a run.

    Args:
        path: Folder or URI of the run.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.is_local = "://" not in path
        self._fs, self._root = fsspec.core.url_to_fs(path)

    def read(self, name: str) -> str | None:
        """Text of a file, None where there is none."""
        try:
            return str(self._fs.cat_file(f"{self._root}/{name}").decode("utf-8"))
        except FileNotFoundError:
            return None

    def read_json(self, name: str) -> dict[str, Any]:
        """Content of a JSON file; empty where it is absent or damaged."""
        try:
            value = json.loads(self.read(name) or "{}")
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    def write(self, name: str, text: str) -> None:
        """Replace a file. Readers see the old one or the new one (object stores do that by themselves)."""
        if not self.is_local:
            self._fs.pipe_file(f"{self._root}/{name}", text.encode("utf-8"))
            return
        place = Path(self._root) / name
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}")
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(place)

    def append(self, name: str, lines: str) -> None:
        """Add whole lines to a file. One that a kill has cut in the middle does not take the next with it."""
        if not self.is_local:  # object stores cannot append: there the short file is written anew
            before = self.read(name) or ""
            self.write(name, f"{before}{lines}")
            return
        place = Path(self._root) / name
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                lines = lines if file.read(1) == b"\n" else f"\n{lines}"
            file.write(lines.encode("utf-8"))

    def mirror(self, name: str) -> Mirror:
        """A local folder that stands for one of the run's."""
        return Mirror(self, name)

    def upload(self, folder: Path, name: str) -> None:
        """Copy a local folder's content to one of the run's."""
        self._fs.put(f"{folder}/", f"{self._root}/{name}/", recursive=True)


class Mirror:
    """A folder for libraries that write local files only.

    In a local run it is the run's own folder; otherwise a temporary one, which `push` copies into the run.

    Args:
        run: The run's folder.
        name: Of the folder in it.
    """

    def __init__(self, run: RunFolder, name: str) -> None:
        self._run, self._name = run, name
        base = run.path if run.is_local else tempfile.mkdtemp(prefix="rayloom-tracking-")
        self.folder = Path(base) / name
        self.folder.mkdir(parents=True, exist_ok=True)

    def push(self) -> None:
        """Bring the run up to date."""
        if not self._run.is_local:
            self._run.upload(self.folder, self._name)

    def close(self) -> None:
        """Push for the last time; nothing may be written afterwards."""
        self.push()
        if not self._run.is_local:
            shutil.rmtree(self.folder.parent, ignore_errors=True)
