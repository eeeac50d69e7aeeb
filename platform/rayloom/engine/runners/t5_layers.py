"""T5's feed-forward and encoder (Raffel et al., 2020; gated form: Shazeer, 2020).

Shape letters: T tokens of all prompts, I features, H heads, D head size, L tokens of a prompt, P relative positions,
B prompts of equal length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from rayloom.engine import kernels
from rayloom.engine.runners.activations import Activation, gated, plain
from rayloom.engine.runners.base import Projection, RowAdapters
from rayloom.engine.runners.relative import spread, two_way_bias
from rayloom.engine.runners.weights import Packing, embeddings, parameter, project


@dataclass(frozen=True)
class FeedForward:
    """Norm, widening, activation (gated or not) and narrowing."""

    norm_I: torch.Tensor  # noqa: N815
    up: Projection
    activation: Activation
    down: Projection

    @classmethod
    def of(cls, model: PreTrainedModel, path: str, packing: Packing) -> FeedForward:
        """The layer of a model at a path such as ``decoder.block.0.layer.2``."""
        config, dense = model.config, f"{path}.DenseReluDense"
        names = ["wi_0", "wi_1"] if config.is_gated_act else ["wi"]
        return cls(
            norm_I=parameter(model, f"{path}.layer_norm.weight"),
            up=project(model, [f"{dense}.{name}" for name in names], packing),
            activation=(gated if config.is_gated_act else plain)(config.dense_act_fn),
            down=project(model, [f"{dense}.wo"], packing),
        )

    def __call__(self, normed_TI: torch.Tensor, adapters: RowAdapters | None) -> torch.Tensor:
        """Of normed rows."""
        return self.down(self.activation(self.up(normed_TI, adapters)), adapters)


def bucket_biases(model: PreTrainedModel, stack: str, num_layers: int) -> list[torch.Tensor]:
    """Bucket biases of each self-attention layer of a stack: T5's are those of the first, umT5 has its own in each."""
    own = model.config.model_type == "umt5"
    paths = [f"{stack}.block.{i if own else 0}.layer.0.SelfAttention" for i in range(num_layers)]
    return [embeddings(model.get_submodule(f"{path}.relative_attention_bias")) for path in paths]


@dataclass(frozen=True)
class _Layer:
    norm_I: torch.Tensor  # noqa: N815
    qkv: Projection
    bias_HP: torch.Tensor  # noqa: N815
    out: Projection
    feed_forward: FeedForward


@dataclass(frozen=True)
class _Run:
    """Prompts of equal length that lie one after another."""

    start: int
    count: int
    length: int


@dataclass
class EncoderState:
    """Prompts on their way through the encoder.

    Attributes:
        runs: Where they lie.
        hidden_TI: Residual stream.
        delta_TI: What the last layer adds to it.
    """

    runs: list[_Run]
    hidden_TI: torch.Tensor  # noqa: N815
    delta_TI: torch.Tensor | None = None  # noqa: N815


class T5Encoder:
    """The encoder, over prompts of any lengths without padding."""

    def __init__(self, model: PreTrainedModel, packing: Packing) -> None:
        config = model.config
        self._num_heads, self._dim, self._eps = config.num_heads, config.d_kv, config.layer_norm_epsilon
        self._embeddings_VI = embeddings(model.get_input_embeddings())
        self._layers = self._read_layers(model, packing)
        self._norm_I = parameter(model, "encoder.final_layer_norm.weight")

    def __call__(self, prompts: Sequence[Sequence[int]], adapters: RowAdapters | None) -> torch.Tensor:
        """Last hidden states ``(T, I)`` of prompts, one after another.

        Args:
            prompts: Token ids, in ascending order of length.
            adapters: Of each token.
        """
        state = self.begin(prompts)
        self.advance(state, 0, self.num_layers, adapters)
        return self.end(state)

    @property
    def num_layers(self) -> int:
        """Layers that prompts go through."""
        return len(self._layers)

    def begin(self, prompts: Sequence[Sequence[int]]) -> EncoderState:
        """Prompts, in ascending order of length, before the first layer."""
        device = self._embeddings_VI.device
        tokens_T = torch.tensor([token for prompt in prompts for token in prompt], device=device)
        hidden_TI = functional.embedding(tokens_T, self._embeddings_VI).float()
        return EncoderState(_runs([len(prompt) for prompt in prompts]), hidden_TI)

    def advance(self, state: EncoderState, first: int, end: int, adapters: RowAdapters | None) -> None:
        """Take prompts through layers first … end - 1."""
        runs, hidden_TI, delta_TI = state.runs, state.hidden_TI, state.delta_TI
        last: tuple[torch.Tensor, torch.Tensor] | None = None
        for layer in self._layers[first:end]:
            if last is None or last[0] is not layer.bias_HP:
                last = layer.bias_HP, spread(layer.bias_HP, runs[-1].length)
            normed_TI = kernels.rms_norm(hidden_TI, layer.norm_I, self._eps, delta_TI)
            mixed_TI = self._attend(layer.qkv(normed_TI, adapters), runs, last[1])
            delta_TI = layer.out(mixed_TI, adapters)
            normed_TI = kernels.rms_norm(hidden_TI, layer.feed_forward.norm_I, self._eps, delta_TI)
            delta_TI = layer.feed_forward(normed_TI, adapters)
        state.delta_TI = delta_TI

    def end(self, state: EncoderState) -> torch.Tensor:
        """Last hidden states ``(T, I)``, after the last layer."""
        return kernels.rms_norm(state.hidden_TI, self._norm_I, self._eps, state.delta_TI)

    def _attend(self, qkv_TI: torch.Tensor, runs: list[_Run], bias_HLL: torch.Tensor) -> torch.Tensor:
        """Runs of prompts of one length apart, so that nothing is padded, nor depends on other prompts' lengths."""
        mixed = []
        for run in runs:
            rows_TI = qkv_TI[run.start : run.start + run.count * run.length]
            qkv = rows_TI.view(run.count, run.length, 3, self._num_heads, self._dim).permute(2, 0, 3, 1, 4)
            queries_BHLD, keys_BHLD, values_BHLD = qkv
            mask_BHLL = bias_HLL[None, :, : run.length, : run.length]
            out_BHLD = functional.scaled_dot_product_attention(
                queries_BHLD, keys_BHLD, values_BHLD, attn_mask=mask_BHLL, scale=1.0
            )
            mixed.append(out_BHLD.transpose(1, 2).reshape(run.count * run.length, -1))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)

    def _read_layers(self, model: PreTrainedModel, packing: Packing) -> list[_Layer]:
        config = model.config
        tables: dict[int, torch.Tensor] = {}
        layers = []
        for index, weight_NH in enumerate(bucket_biases(model, "encoder", config.num_layers)):
            key = weight_NH.data_ptr()
            if key not in tables:
                tables[key] = two_way_bias(weight_NH, config.relative_attention_max_distance)
            path = f"encoder.block.{index}.layer"
            attention = f"{path}.0.SelfAttention"
            layers.append(
                _Layer(
                    norm_I=parameter(model, f"{path}.0.layer_norm.weight"),
                    qkv=project(model, [f"{attention}.{name}" for name in "qkv"], packing),
                    bias_HP=tables[key],
                    out=project(model, [f"{attention}.o"], packing),
                    feed_forward=FeedForward.of(model, f"{path}.1", packing),
                )
            )
        return layers


def _runs(lengths: list[int]) -> list[_Run]:
    runs: list[_Run] = []
    start = 0
    for length in lengths:
        if runs and runs[-1].length == length:
            runs[-1] = _Run(runs[-1].start, runs[-1].count + 1, length)
        else:
            runs.append(_Run(start, 1, length))
        start += length
    return runs
