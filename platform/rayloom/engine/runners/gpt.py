"""GPT-2 (Radford et al., 2019) and GPT-Neo (Black et al., 2021): learned positions, layer norm, plain feed-forward.

Shape letters: T tokens of the step, I features, H heads, D head size, R rows whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from rayloom.engine.adapters import LoraBank
from rayloom.engine.attention import paged_attention, write_kv
from rayloom.engine.batch import StepBatch
from rayloom.engine.cache import CacheShape, PagedCache
from rayloom.engine.runners.activations import plain
from rayloom.engine.runners.base import Projection, RowAdapters, cache_dtype, logit_rows, row_adapters
from rayloom.engine.runners.weights import Packing, embeddings, parameter, project, project_head

_HEADS = {"gpt2": "GPT2LMHeadModel", "gpt_neo": "GPTNeoForCausalLM"}


@dataclass(frozen=True)
class _Norm:
    weight_I: torch.Tensor  # noqa: N815
    bias_I: torch.Tensor  # noqa: N815
    eps: float

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x_TI, self.weight_I.shape, self.weight_I, self.bias_I, self.eps)


@dataclass(frozen=True)
class _Layer:
    attention_norm: _Norm
    qkv: Projection
    scale: float
    window: int | None
    out: Projection
    mlp_norm: _Norm
    up: Projection
    down: Projection


def understands(model: PreTrainedModel) -> bool:
    """Whether `GptRunner` computes what this model does."""
    if _HEADS.get(model.config.model_type) != type(model).__name__:
        return False
    return not getattr(model.config, "add_cross_attention", False)


class GptRunner:
    """See `base.Runner`.

    Args:
        model: A model that `understands` accepts.
        num_blocks: Of the cache.
        packing: Of the weights; the cache is bfloat16 unless they are fp32.
    """

    seq2seq = False
    encoder_layers = 1

    def __init__(self, model: PreTrainedModel, *, num_blocks: int, packing: Packing) -> None:
        config: Any = model.config
        self.precision = packing.precision
        self.lora: LoraBank | None = None
        self.max_positions: int | None = config.max_position_embeddings
        self._num_heads = config.num_attention_heads
        self._dim = config.hidden_size // config.num_attention_heads
        self._activation = plain(config.activation_function)
        body: Any = model.base_model
        self._tokens_VI, self._positions_VI = embeddings(body.wte), embeddings(body.wpe)
        self._layers = [self._layer(model, packing, i) for i in range(config.num_hidden_layers)]
        self._norm = _norm(model, "transformer.ln_f")
        self._head = project_head(model, packing)
        self.vocab_size = self._head.linear.out_features
        shape = CacheShape(len(self._layers), self._num_heads, self._dim, cache_dtype(self.precision))
        self.cache = PagedCache(shape, num_blocks, self.device)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._tokens_VI.device

    @torch.no_grad()
    def run(self, batch: StepBatch) -> torch.Tensor:
        """Compute a step: float32 logits ``(R, V)``."""
        if not batch.tokens_T.numel():
            return torch.empty(0, self.vocab_size, device=self.device)
        adapters = row_adapters(self.lora, batch.adapters_T)
        hidden_TI = functional.embedding(batch.tokens_T, self._tokens_VI).float()
        hidden_TI += functional.embedding(batch.positions_T, self._positions_VI)
        for index, layer in enumerate(self._layers):
            mixed_TI = self._attend(index, layer, layer.attention_norm(hidden_TI), batch, adapters)
            if index == len(self._layers) - 1:
                hidden_TI, mixed_TI, adapters = logit_rows(batch, hidden_TI, mixed_TI, adapters)
            hidden_TI += layer.out(mixed_TI, adapters)
            widened_TI = layer.up(layer.mlp_norm(hidden_TI), adapters)
            hidden_TI += layer.down(self._activation(widened_TI), adapters)
        return self._head(self._norm(hidden_TI), adapters)

    def _attend(
        self, index: int, layer: _Layer, normed_TI: torch.Tensor, batch: StepBatch, adapters: RowAdapters | None
    ) -> torch.Tensor:
        num_tokens, heads = normed_TI.shape[0], self._num_heads
        qkv_THD = layer.qkv(normed_TI, adapters).view(num_tokens, -1, self._dim)
        queries_THD, keys_THD, values_THD = qkv_THD.split_with_sizes((heads, heads, heads), 1)
        write_kv(self.cache, index, keys_THD, values_THD, batch.slots_T)
        mixed_THD = paged_attention(queries_THD, self.cache, index, batch.view, scale=layer.scale, window=layer.window)
        return mixed_THD.view(num_tokens, -1)

    def _layer(self, model: PreTrainedModel, packing: Packing, index: int) -> _Layer:
        path, config = f"transformer.h.{index}", model.config
        if config.model_type == "gpt2":
            qkv, out = [f"{path}.attn.c_attn"], f"{path}.attn.c_proj"
        else:
            attention = f"{path}.attn.attention"
            qkv, out = [f"{attention}.{name}_proj" for name in "qkv"], f"{attention}.out_proj"
        return _Layer(
            attention_norm=_norm(model, f"{path}.ln_1"),
            qkv=project(model, qkv, packing),
            scale=_scale(config, index, self._dim),
            window=_window(config, index),
            out=project(model, [out], packing),
            mlp_norm=_norm(model, f"{path}.ln_2"),
            up=project(model, [f"{path}.mlp.c_fc"], packing),
            down=project(model, [f"{path}.mlp.c_proj"], packing),
        )


def _norm(model: PreTrainedModel, path: str) -> _Norm:
    eps = float(model.config.layer_norm_epsilon)
    return _Norm(parameter(model, f"{path}.weight"), parameter(model, f"{path}.bias"), eps)


def _scale(config: Any, index: int, dim: int) -> float:
    """GPT-Neo does not scale its scores; GPT-2 may, by layer too."""
    if config.model_type == "gpt_neo":
        return 1.0
    scale: float = dim**-0.5 if config.scale_attn_weights else 1.0
    return scale / (index + 1) if config.scale_attn_by_inverse_layer_idx else scale


def _window(config: Any, index: int) -> int | None:
    """How many tokens back a layer sees, itself included; None for all."""
    local = config.model_type == "gpt_neo" and config.attention_layers[index] == "local"
    window: int | None = config.window_size if local else None
    return window
