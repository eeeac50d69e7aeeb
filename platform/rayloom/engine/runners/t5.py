"""T5, mT5 and umT5: encoder-decoder models with relative positions (Raffel et al., 2020).

A prompt's cross-attention keys and values live in blocks of the same cache, at the same layers as the decoder's own.

Shape letters: T tokens of the step (or of all prompts), I features, H heads, D head size, P distances, R rows whose
logits are wanted, V vocabulary.
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
from rayloom.engine.batch import EncodeBatch, ReadBatch, StepBatch
from rayloom.engine.cache import CacheShape, PagedCache
from rayloom.engine.runners.base import Projection, RowAdapters, cache_dtype, logit_rows, row_adapters
from rayloom.engine.runners.relative import causal_bias
from rayloom.engine.runners.t5_layers import FeedForward, T5Encoder, bucket_biases
from rayloom.engine.runners.weights import Packing, embeddings, parameter, project, project_head

_HEADS = {
    "t5": "T5ForConditionalGeneration",
    "mt5": "MT5ForConditionalGeneration",
    "umt5": "UMT5ForConditionalGeneration",
}


@dataclass(frozen=True)
class _Layer:
    self_norm_I: torch.Tensor  # noqa: N815
    self_qkv: Projection
    bias_HP: torch.Tensor  # noqa: N815
    self_out: Projection
    cross_norm_I: torch.Tensor  # noqa: N815
    cross_query: Projection
    cross_key_value: Projection
    cross_out: Projection
    feed_forward: FeedForward


def understands(model: PreTrainedModel) -> bool:
    """Whether `T5Runner` computes what this model does."""
    return _HEADS.get(model.config.model_type) == type(model).__name__


class T5Runner:
    """See `base.Runner`.

    Args:
        model: A model that `understands` accepts.
        num_blocks: Of the cache.
        packing: Of the weights; the cache is bfloat16 unless they are fp32.
    """

    seq2seq = True
    max_positions: int | None = None

    def __init__(self, model: PreTrainedModel, *, num_blocks: int, packing: Packing) -> None:
        config: Any = model.config
        self.precision = packing.precision
        self.lora: LoraBank | None = None
        self._num_heads, self._dim, self._eps = config.num_heads, config.d_kv, config.layer_norm_epsilon
        self._embeddings_VI = embeddings(model.get_input_embeddings())
        self._encoder = T5Encoder(model, packing)
        self.encoder_layers = self._encoder.num_layers
        self._layers = self._read_layers(model, packing)
        self._norm_I = parameter(model, "decoder.final_layer_norm.weight")
        self._scale = config.d_model**-0.5 if _scales_output(config) else 1.0
        self._head = project_head(model, packing)
        self.vocab_size = self._head.linear.out_features
        shape = CacheShape(len(self._layers), self._num_heads, self._dim, cache_dtype(self.precision))
        self.cache = PagedCache(shape, num_blocks, self.device)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._embeddings_VI.device

    @torch.no_grad()
    def run(self, batch: StepBatch) -> torch.Tensor:
        """Compute a step, prompts to encode first: float32 logits ``(R, V)``."""
        if batch.encode is not None:
            self._encode(batch.encode)
        if batch.reading is not None:
            self._read(batch.reading)
        if not batch.tokens_T.numel():
            return torch.empty(0, self.vocab_size, device=self.device)
        adapters = row_adapters(self.lora, batch.adapters_T)
        hidden_TI = functional.embedding(batch.tokens_T, self._embeddings_VI).float()
        delta_TI: torch.Tensor | None = None
        for index, layer in enumerate(self._layers):
            normed_TI = kernels.rms_norm(hidden_TI, layer.self_norm_I, self._eps, delta_TI)
            delta_TI = layer.self_out(self._attend(index, layer, normed_TI, batch, adapters), adapters)
            normed_TI = kernels.rms_norm(hidden_TI, layer.cross_norm_I, self._eps, delta_TI)
            mixed_TI = self._attend_prompt(index, layer, normed_TI, batch, adapters)
            if index == len(self._layers) - 1:
                hidden_TI, mixed_TI, adapters = logit_rows(batch, hidden_TI, mixed_TI, adapters)
            delta_TI = layer.cross_out(mixed_TI, adapters)
            normed_TI = kernels.rms_norm(hidden_TI, layer.feed_forward.norm_I, self._eps, delta_TI)
            delta_TI = layer.feed_forward(normed_TI, adapters)
        normed_TI = kernels.rms_norm(hidden_TI, self._norm_I, self._eps, delta_TI)
        return self._head(normed_TI.mul_(self._scale), adapters)

    def _attend(
        self, index: int, layer: _Layer, normed_TI: torch.Tensor, batch: StepBatch, adapters: RowAdapters | None
    ) -> torch.Tensor:
        num_tokens, heads = normed_TI.shape[0], self._num_heads
        qkv_THD = layer.self_qkv(normed_TI, adapters).view(num_tokens, -1, self._dim)
        queries_THD, keys_THD, values_THD = qkv_THD.split_with_sizes((heads, heads, heads), 1)
        write_kv(self.cache, index, keys_THD, values_THD, batch.slots_T)
        mixed_THD = paged_attention(queries_THD, self.cache, index, batch.view, scale=1.0, bias_HD=layer.bias_HP)
        return mixed_THD.view(num_tokens, -1)

    def _attend_prompt(
        self, index: int, layer: _Layer, normed_TI: torch.Tensor, batch: StepBatch, adapters: RowAdapters | None
    ) -> torch.Tensor:
        assert batch.cross_view is not None, "a seq2seq step attends to its prompts"
        num_tokens = normed_TI.shape[0]
        queries_THD = layer.cross_query(normed_TI, adapters).view(num_tokens, -1, self._dim)
        mixed_THD = paged_attention(queries_THD, self.cache, index, batch.cross_view, scale=1.0, causal=False)
        return mixed_THD.view(num_tokens, -1)

    def _encode(self, batch: EncodeBatch) -> None:
        """Run the encoder, and store what the decoder reads of the prompts."""
        order = sorted(range(len(batch.prompts)), key=lambda i: len(batch.prompts[i]))
        pieces = torch.split(batch.slots_T, [len(prompt) for prompt in batch.prompts])
        slots_T = torch.cat([pieces[i] for i in order])
        prompts = [batch.prompts[i] for i in order]
        adapters = self._prompt_adapters(prompts, [batch.adapters[i] for i in order])
        self._store(self._encoder(prompts, adapters), slots_T, adapters)

    def _read(self, batch: ReadBatch) -> None:
        """Take a prompt through some of the encoder's layers."""
        prompts, memory = batch.batch.prompts, batch.memory
        adapters = self._prompt_adapters(list(prompts), list(batch.batch.adapters))
        state = memory.pop("state") if batch.first else self._encoder.begin(prompts)
        self._encoder.advance(state, batch.first, batch.end, adapters)
        if batch.end < self.encoder_layers:
            memory["state"] = state
        else:
            self._store(self._encoder.end(state), batch.batch.slots_T, adapters)

    def _store(self, encoded_TI: torch.Tensor, slots_T: torch.Tensor, adapters: RowAdapters | None) -> None:
        """Each decoder layer's keys and values of encoded prompts."""
        heads = self._num_heads
        for index, layer in enumerate(self._layers):
            key_value_THD = layer.cross_key_value(encoded_TI, adapters).view(len(slots_T), -1, self._dim)
            write_kv(self.cache, index, key_value_THD[:, :heads], key_value_THD[:, heads:], slots_T)

    def _prompt_adapters(self, prompts: list[tuple[int, ...]], indices: list[int]) -> RowAdapters | None:
        if all(index < 0 for index in indices):
            return None
        rows = [index for prompt, index in zip(prompts, indices, strict=True) for _ in prompt]
        return row_adapters(self.lora, torch.tensor(rows, device=self.device))

    def _read_layers(self, model: PreTrainedModel, packing: Packing) -> list[_Layer]:
        config = model.config
        tables: dict[int, torch.Tensor] = {}
        layers = []
        for index, weight_NH in enumerate(bucket_biases(model, "decoder", config.num_decoder_layers)):
            key = weight_NH.data_ptr()
            if key not in tables:
                tables[key] = causal_bias(weight_NH, config.relative_attention_max_distance)
            path = f"decoder.block.{index}.layer"
            own, cross = f"{path}.0.SelfAttention", f"{path}.1.EncDecAttention"
            layers.append(
                _Layer(
                    self_norm_I=parameter(model, f"{path}.0.layer_norm.weight"),
                    self_qkv=project(model, [f"{own}.{name}" for name in "qkv"], packing),
                    bias_HP=tables[key],
                    self_out=project(model, [f"{own}.o"], packing),
                    cross_norm_I=parameter(model, f"{path}.1.layer_norm.weight"),
                    cross_query=project(model, [f"{cross}.q"], packing),
                    cross_key_value=project(model, [f"{cross}.{name}" for name in "kv"], packing),
                    cross_out=project(model, [f"{cross}.o"], packing),
                    feed_forward=FeedForward.of(model, f"{path}.2", packing),
                )
            )
        return layers


def _scales_output(config: Any) -> bool:
    """Whether hidden states are scaled before the head: T5 1.0 and umT5 do, T5 1.1 and mT5 do not."""
    if config.model_type == "t5":
        return bool(config.scale_decoder_outputs)
    return config.model_type == "umt5" and bool(config.tie_word_embeddings)
