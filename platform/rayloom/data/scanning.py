"""What is known of a data file after one pass over it, remembered for as long as the file stays as it is."""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rayloom.data.blocks import Block, Reading, cut_file
from rayloom.errors import DataError

_VERSION = 1
"""Goes up when the same file is to be cut into other blocks."""
_SETTLED_S = 2.0
"""A file that was written to more recently may change again without a change of its time stamp."""


@dataclass(frozen=True)
class Scan:
    """A file's content.

    Args:
        file: Its absolute path.
        sha256: Of its bytes.
        blocks: Stretches that can be read alone, in order.
    """

    file: str
    sha256: str
    blocks: tuple[Block, ...]


def scan_file(path: str, reading: Reading, *, memory: Path, block_bytes: int) -> Scan:
    """Hash a file and cut it into blocks; a file that was scanned before is recognised by size and time of change.

    Args:
        path: The file.
        reading: How plain text becomes rows.
        memory: Folder in which scans are kept.
        block_bytes: Least size of blocks.

    Raises:
        DataError: See `cut_file`; or the file changed meanwhile.
    """
    if not Path(path).is_file():
        cut_file(path, reading)  # says what is wrong
    path = os.path.abspath(path)
    before = _stamp(path)
    key = json.dumps([_VERSION, path, before, asdict(reading), block_bytes])
    kept = memory / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    known = _recall(kept, path)
    if known is not None:
        return known
    sha256, blocks = cut_file(path, reading, block_bytes=block_bytes)
    if _stamp(path) != before:
        raise DataError("the file changes while it is read; start again when it is whole", file=path)
    if not blocks:
        raise DataError("the file has no rows", file=path)
    found = Scan(path, sha256, tuple(blocks))
    if time.time() - Path(path).stat().st_mtime > _SETTLED_S:
        _remember(kept, found)
    return found


def _stamp(path: str) -> list[int]:
    stat = Path(path).stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _recall(kept: Path, path: str) -> Scan | None:
    try:
        content = json.loads(kept.read_text(encoding="utf-8"))
        header = tuple(content["header"])
        blocks = tuple(Block(path, start, stop, first, size, header) for start, stop, first, size in content["blocks"])
        return Scan(path, content["sha256"], blocks)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _remember(kept: Path, found: Scan) -> None:
    content = {
        "sha256": found.sha256,
        "header": found.blocks[0].header,
        "blocks": [[block.start, block.stop, block.first, block.size] for block in found.blocks],
    }
    write_whole(kept, json.dumps(content).encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there: a reader sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}-{time.monotonic_ns()}")
    beside.write_bytes(content)
    beside.replace(path)
