"""GGUF files: dequantised once into a folder with safetensors, tokenizer and chat template."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rayloom.artifacts import cache_root, publish_folder
from rayloom.artifacts.storage import file_entry
from rayloom.errors import ModelError
from rayloom.models.quiet import no_progress_bars

_VERSION = 1
"""Grows when the same file should give another folder."""


def materialise_gguf(file: Path) -> Path:
    """The folder that a GGUF file becomes; made once per file content, in float32.

    Raises:
        ModelError: The file is damaged, or of an architecture that transformers cannot read from GGUF.
    """
    digest = file_entry(file).sha256[:24]

    def build(folder: Path) -> None:
        try:
            # transformers' bar for this step knows no switch.
            with no_progress_bars(), contextlib.redirect_stderr(io.StringIO()):
                _convert(file, folder)
        except Exception as error:  # the reader trusts the file and trips over it in many ways
            raise ModelError(f"{file} cannot be read as GGUF: {error}") from error

    return publish_folder(cache_root() / "models" / f"gguf-{digest}-v{_VERSION}", build)


def _convert(file: Path, folder: Path) -> None:
    where = {"gguf_file": file.name, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), **where)
    model: Any = AutoModelForCausalLM.from_pretrained(str(file.parent), dtype=torch.float32, **where)
    # The weights are plain float32 by now, but the object still calls itself quantised,
    # and refuses to be saved.
    model.hf_quantizer = None
    model.is_quantized = False
    for holder, name in ((model, "quantization_method"), (model.config, "quantization_config")):
        if hasattr(holder, name):
            delattr(holder, name)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
