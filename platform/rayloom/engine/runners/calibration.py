"""How large a model's activations get: what int8 needs to balance them against the weights.

A model tells it best on text of its own kind, and it can write that itself.

Shape letters: B rows, L tokens of a prompt, I input features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rayloom.engine.runners.weights import adapters_off

_ROWS, _TOKENS = 16, 32
_SEED = 20240607


@torch.no_grad()
def activation_peaks(model: PreTrainedModel) -> dict[str, Tensor]:
    """Largest size ``(I,)`` of each input feature of every linear layer, by the layer's path.

    Args:
        model: In evaluation mode. It samples some short texts, from nothing but its first token (or random ones); to
            an encoder-decoder model, random prompts are given. The same model gives the same peaks.
    """
    peaks: dict[str, Tensor] = {}
    with adapters_off(model), _watching(model, peaks):
        _write(model, torch.Generator().manual_seed(_SEED))
    return peaks


def _write(model: Any, random: torch.Generator) -> None:
    """Sample, with a cache, one token per row and step."""
    config = model.config
    vocab_size = config.get_text_config(decoder=True).vocab_size
    inputs: dict[str, Any] = {}
    if config.is_encoder_decoder:
        prompts_BL = torch.randint(vocab_size, (_ROWS, _TOKENS), generator=random).to(model.device)
        inputs["encoder_outputs"] = model.get_encoder()(input_ids=prompts_BL)
    ids = "decoder_input_ids" if config.is_encoder_decoder else "input_ids"
    tokens_B1 = _first_tokens(config, vocab_size, random).to(model.device)
    most = getattr(config, "max_position_embeddings", None) or _TOKENS
    for _ in range(min(_TOKENS, most)):
        output = model(**{ids: tokens_B1}, **inputs, use_cache=True)
        inputs["past_key_values"] = output.past_key_values
        likely_BV = output.logits[:, -1].float().softmax(-1).cpu()
        tokens_B1 = torch.multinomial(likely_BV, 1, generator=random).to(model.device)


def _first_tokens(config: Any, vocab_size: int, random: torch.Generator) -> Tensor:
    first = config.decoder_start_token_id if config.is_encoder_decoder else config.bos_token_id
    if isinstance(first, int) and 0 <= first < vocab_size:
        return torch.full((_ROWS, 1), first)
    return torch.randint(vocab_size, (_ROWS, 1), generator=random)


@contextlib.contextmanager
def _watching(model: nn.Module, peaks: dict[str, Tensor]) -> Iterator[None]:
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear | Conv1D)]
    hooks = [
        layer.register_forward_pre_hook(_watcher(name.removesuffix(".base_layer"), peaks)) for name, layer in layers
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _watcher(name: str, peaks: dict[str, Tensor]) -> Any:
    def watch(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        largest_I = inputs[0].detach().abs().flatten(0, -2).amax(0).float()
        peaks[name] = torch.maximum(peaks[name], largest_I) if name in peaks else largest_I

    return watch
