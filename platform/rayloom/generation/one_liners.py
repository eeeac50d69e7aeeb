"""One-liners: name a model and a prompt. The last few models stay open."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rayloom.generation.text_generator import TextGenerator

Model = str | Path | TextGenerator

_MAX_OPEN = 2
_open: OrderedDict[tuple[str, int], TextGenerator] = OrderedDict()
_lock = threading.Lock()


def generate_text(model: Model, prompt: str, **params: Any) -> str | list[str]:
    """Write an answer; see `TextGenerator.generate`.

    Args:
        model: Artifact, model folder, hub name, or an open `TextGenerator`.
        prompt: The prompt.
        params: Generation parameters, and ``context`` or ``messages``.
    """
    return open_generator(model).generate(prompt, **params)


def batch_generate(model: Model, prompts: Sequence[str], **params: Any) -> list[str] | list[list[str]]:
    """Write an answer to each prompt; see `TextGenerator.generate_batch`."""
    return open_generator(model).generate_batch(prompts, **params)


def stream_generate(model: Model, prompt: str, **params: Any) -> Iterator[str]:
    """Write an answer piece by piece; see `TextGenerator.stream`."""
    return open_generator(model).stream(prompt, **params)


def open_generator(model: Model) -> TextGenerator:
    """The model, opened now or before. An artifact that was published anew is opened again."""
    if isinstance(model, TextGenerator):
        return model
    key = (str(model), _changed(Path(model)))
    with _lock:
        if key not in _open:
            _open[key] = TextGenerator(model)
            while len(_open) > _MAX_OPEN:
                _open.popitem(last=False)
        _open.move_to_end(key)
        return _open[key]


def _changed(path: Path) -> int:
    for name in ("manifest.json", "config.json"):
        if (path / name).is_file():
            return (path / name).stat().st_mtime_ns
    return 0
