"""vLLM behind the engine's face, in a process and an environment of its own. See docs/engine.md."""

from rayloom.engine.vllm.engine import VllmEngine
from rayloom.engine.vllm.opening import open_vllm

__all__ = ["VllmEngine", "open_vllm"]
