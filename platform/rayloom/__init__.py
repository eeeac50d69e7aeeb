"""Rayloom: fine-tune, measure and serve text-generation models on Ray.

``import rayloom`` is light: what needs torch is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rayloom.errors import RayloomError, UserError

if TYPE_CHECKING:
    from rayloom.config import GenerationConfig
    from rayloom.generation import TextGenerator, batch_generate, generate_text, stream_generate

__all__ = [
    "GenerationConfig",
    "RayloomError",
    "TextGenerator",
    "UserError",
    "batch_generate",
    "generate_text",
    "stream_generate",
]

_ROOMS = {
    "GenerationConfig": "rayloom.config",
    "TextGenerator": "rayloom.generation",
    "batch_generate": "rayloom.generation",
    "generate_text": "rayloom.generation",
    "stream_generate": "rayloom.generation",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'rayloom' has no attribute '{name}'")
    value = getattr(importlib.import_module(_ROOMS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
