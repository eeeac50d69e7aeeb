"""LLaMA and its kin: rotary positions, grouped key/value heads, gated feed-forward (Touvron et al., 2023).

Covers LLaMA, Mistral (sliding window), Qwen2 (attention biases), Qwen3 (norms of queries and keys) and SmolLM3
(layers without positions).

Shape letters: T tokens of the step, I features, H heads (of queries, then of keys), D head size, R rows whose logits
are wanted, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from rayloom.engine import kernels
from rayloom.engine.adapters import LoraBank
from rayloom.engine.attention import paged_attention, write_kv
from rayloom.engine.batch import StepBatch
from rayloom.engine.cache import CacheShape, PagedCache
from rayloom.engine.runners.activations import gated
from rayloom.engine.runners.base import Projection, RowAdapters, cache_dtype, logit_rows, row_adapters
from rayloom.engine.runners.weights import Packing, embeddings, parameter, project, project_head

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
_STEADY_ROPE = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary positions whose frequencies do not change with the length of a sequence."""


@dataclass(frozen=True)
class _Layer:
    attention_norm_I: torch.Tensor  # noqa: N815
    qkv: Projection
    query_key_norm_HD: torch.Tensor | None  # noqa: N815
    rotates: bool
    window: int | None
    out: Projection
    mlp_norm_I: torch.Tensor  # noqa: N815
    gate_up: Projection
    down: Projection


@dataclass(frozen=True)
class _Step:
    """What all layers of one step share."""

    batch: StepBatch
    cos_TD: torch.Tensor
    sin_TD: torch.Tensor
    adapters: RowAdapters | None


def understands(model: PreTrainedModel) -> bool:
    """Whether `LlamaRunner` computes what this model does."""
    config = model.config
    if config.model_type not in MODEL_TYPES or not type(model).__name__.endswith("ForCausalLM"):
        return False
    rotary = getattr(model.base_model, "rotary_emb", None)
    return getattr(rotary, "rope_type", None) in _STEADY_ROPE


class LlamaRunner:
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
        self._num_heads, self._num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._eps = config.rms_norm_eps
        rotary: Any = model.base_model.rotary_emb
        self._frequencies, self._rotary_scale = rotary.inv_freq.detach().float(), float(rotary.attention_scaling)
        self._activation = gated(config.hidden_act)
        self._embeddings_VI = embeddings(model.get_input_embeddings())
        self._layers = [self._layer(model, packing, i) for i in range(config.num_hidden_layers)]
        self._norm_I = parameter(model, "model.norm.weight")
        self._head = project_head(model, packing)
        self.vocab_size = self._head.linear.out_features
        shape = CacheShape(len(self._layers), self._num_kv_heads, self._dim, cache_dtype(self.precision))
        self.cache = PagedCache(shape, num_blocks, self.device)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._embeddings_VI.device

    @torch.no_grad()
    def run(self, batch: StepBatch) -> torch.Tensor:
        """Compute a step: float32 logits ``(R, V)``."""
        if not batch.tokens_T.numel():
            return torch.empty(0, self.vocab_size, device=self.device)
        adapters = row_adapters(self.lora, batch.adapters_T)
        step = _Step(batch, *self._rotations(batch.positions_T), adapters)
        hidden_TI = functional.embedding(batch.tokens_T, self._embeddings_VI).float()
        delta_TI: torch.Tensor | None = None
        for index, layer in enumerate(self._layers):
            normed_TI = kernels.rms_norm(hidden_TI, layer.attention_norm_I, self._eps, delta_TI)
            mixed_TI = self._attend(index, layer, normed_TI, step)
            if index == len(self._layers) - 1:
                hidden_TI, mixed_TI, adapters = logit_rows(batch, hidden_TI, mixed_TI, adapters)
            normed_TI = kernels.rms_norm(hidden_TI, layer.mlp_norm_I, self._eps, layer.out(mixed_TI, adapters))
            delta_TI = layer.down(self._activation(layer.gate_up(normed_TI, adapters)), adapters)
        return self._head(kernels.rms_norm(hidden_TI, self._norm_I, self._eps, delta_TI), adapters)

    def _attend(self, index: int, layer: _Layer, normed_TI: torch.Tensor, step: _Step) -> torch.Tensor:
        batch, heads, kv_heads = step.batch, self._num_heads, self._num_kv_heads
        qkv_THD = layer.qkv(normed_TI, step.adapters).view(normed_TI.shape[0], -1, self._dim)
        # One split is cheaper than three slices, and a step makes them in every layer.
        queries_THD, keys_THD, values_THD = qkv_THD.split_with_sizes((heads, kv_heads, kv_heads), 1)
        rotated_THD = qkv_THD[:, : heads + kv_heads]
        if layer.query_key_norm_HD is not None:
            rotated_THD = functional.rms_norm(rotated_THD, (self._dim,), None, self._eps) * layer.query_key_norm_HD
            queries_THD, keys_THD = rotated_THD.split_with_sizes((heads, kv_heads), 1)
        if layer.rotates:
            kernels.rope(rotated_THD, step.cos_TD, step.sin_TD)
        write_kv(self.cache, index, keys_THD, values_THD, batch.slots_T)
        mixed_THD = paged_attention(
            queries_THD, self.cache, index, batch.view, scale=self._dim**-0.5, window=layer.window
        )
        return mixed_THD.view(normed_TI.shape[0], -1)

    def _rotations(self, positions_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        half_TD = positions_T[:, None].float() * self._frequencies
        angles_TD = torch.cat((half_TD, half_TD), dim=-1)
        cos_TD, sin_TD = angles_TD.cos(), angles_TD.sin()
        if self._rotary_scale == 1.0:
            return cos_TD, sin_TD
        return cos_TD * self._rotary_scale, sin_TD * self._rotary_scale

    def _layer(self, model: PreTrainedModel, packing: Packing, index: int) -> _Layer:
        path, config = f"model.layers.{index}", model.config
        attention, mlp = f"{path}.self_attn", f"{path}.mlp"
        return _Layer(
            attention_norm_I=parameter(model, f"{path}.input_layernorm.weight"),
            qkv=project(model, [f"{attention}.{name}_proj" for name in "qkv"], packing),
            query_key_norm_HD=self._query_key_norm(model, attention),
            rotates=config.model_type != "smollm3" or bool(config.no_rope_layers[index]),
            window=_window(config, index),
            out=project(model, [f"{attention}.o_proj"], packing),
            mlp_norm_I=parameter(model, f"{path}.post_attention_layernorm.weight"),
            gate_up=project(model, [f"{mlp}.gate_proj", f"{mlp}.up_proj"], packing),
            down=project(model, [f"{mlp}.down_proj"], packing),
        )

    def _query_key_norm(self, model: PreTrainedModel, attention: str) -> torch.Tensor | None:
        if model.config.model_type != "qwen3":
            return None
        query_D, key_D = (parameter(model, f"{attention}.{name}_norm.weight") for name in "qk")
        return torch.cat((query_D.expand(self._num_heads, -1), key_D.expand(self._num_kv_heads, -1)))


def _window(config: Any, index: int) -> int | None:
    """How many tokens back a layer sees, itself included; None for all."""
    if config.model_type == "llama":
        return None
    slides = config.model_type == "mistral" or config.layer_types[index] == "sliding_attention"
    window: int | None = config.sliding_window if slides else None
    return window
