"""Text in, text out: `TextGenerator` and the one-liners, over a `Generator` that drives the model."""

from rayloom.generation.golden import make_golden, replay_golden
from rayloom.generation.one_liners import batch_generate, generate_text, open_generator, stream_generate
from rayloom.generation.opening import Opened, open_path, open_plain
from rayloom.generation.parameters import parse_parameters
from rayloom.generation.text_generator import TextGenerator
from rayloom.generation.transformers_generator import TransformersGenerator
from rayloom.generation.types import (
    Chunk,
    GeneratedSequence,
    GenerationOutput,
    GenerationRequest,
    Generator,
    PromptLogprobs,
    TokenLogprob,
)

__all__ = [
    "Chunk",
    "GeneratedSequence",
    "GenerationOutput",
    "GenerationRequest",
    "Generator",
    "Opened",
    "PromptLogprobs",
    "TextGenerator",
    "TokenLogprob",
    "TransformersGenerator",
    "batch_generate",
    "generate_text",
    "make_golden",
    "open_generator",
    "open_path",
    "open_plain",
    "parse_parameters",
    "replay_golden",
    "stream_generate",
]
