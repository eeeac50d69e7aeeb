"""Any causal or seq2seq model of transformers, through its own forward pass: right, and slow.

Nothing is kept between steps but tokens, so every step computes its sequences whole. Tokens lie in the cache where
other models have keys; forks, shared prompts and copies of blocks are thereby right without further ado.

Shape letters: T tokens of the step, R rows whose logits are wanted, B rows of a forward pass, L its longest sequence,
V vocabulary, E the encoder's longest prompt, I features, N blocks, S sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.pytorch_utils import Conv1D

from rayloom.engine.adapters import LoraBank, StepRows
from rayloom.engine.batch import EncodeBatch, StepBatch
from rayloom.engine.blocks import BLOCK
from rayloom.engine.cache import AttentionView, CacheShape, PagedCache
from rayloom.engine.linear import Precision
from rayloom.engine.runners.weights import adapters_off
from rayloom.errors import ModelError

_MAX_LOGITS = 1 << 25
"""128 MiB of float32."""


@dataclass(frozen=True)
class _Row:
    """A sequence whose next token is wanted."""

    tokens: Tensor
    cross_block: int
    adapter: int


class GenericRunner:
    """See `base.Runner`.

    Args:
        model: Any causal or seq2seq model.
        num_blocks: Of the cache.
        precision: The model's own: ``fp32``, or ``bf16`` if it was loaded so.
        max_logits: Most numbers that one forward pass gives.

    Raises:
        ModelError: Another precision.
    """

    encoder_layers = 1

    def __init__(
        self, model: PreTrainedModel, *, num_blocks: int, precision: Precision, max_logits: int = _MAX_LOGITS
    ) -> None:
        own: Precision = "bf16" if model.dtype is torch.bfloat16 else "fp32"
        if precision != own:
            raise ModelError(
                f"models of type '{model.config.model_type}' are served as they were loaded ({own}), not in {precision}"
            )
        self.precision = precision
        self.lora: LoraBank | None = None
        self.seq2seq = bool(model.config.is_encoder_decoder)
        text: Any = model.config.get_text_config(decoder=True)
        self.vocab_size = int(text.vocab_size)
        self.max_positions: int | None = getattr(text, "max_position_embeddings", None)
        self._model: Any = model
        self._max_logits = max_logits
        self.cache = PagedCache(CacheShape(1, 1, 1), num_blocks, model.device)
        self._encoded: dict[int, Tensor] = {}
        self._adapters_B: Tensor | None = None
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Linear | Conv1D):
                layer.register_forward_hook(self._adapter_hook(name.removesuffix(".base_layer")))

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        device: torch.device = self._model.device
        return device

    @torch.no_grad()
    def run(self, batch: StepBatch) -> Tensor:
        """Compute a step: float32 logits ``(R, V)``."""
        try:
            with adapters_off(self._model):
                if batch.encode is not None:
                    self._encode(batch.encode)
                return self._decode(batch)
        finally:
            self._adapters_B = None  # the model may be called by others

    def _decode(self, batch: StepBatch) -> Tensor:
        logits_RV = torch.empty(len(batch.logit_rows_R), self.vocab_size, device=self.device)
        if batch.tokens_T.numel():
            self._store(batch)
            rows = self._rows(batch)
            for chosen in self._passes(rows):
                logits_RV[chosen] = self._forward([rows[i] for i in chosen])
        return logits_RV

    def _store(self, batch: StepBatch) -> None:
        if self.seq2seq:
            self._forget(batch.slots_T)
        # float32 holds integers exactly up to 2 ** 24, more than any vocabulary has.
        self.cache.keys[0].view(-1)[batch.slots_T] = batch.tokens_T.float()

    def _rows(self, batch: StepBatch) -> list[_Row]:
        view, cross = batch.view, batch.cross_view
        tokens_NB = self.cache.keys[0].view(-1, BLOCK)
        rows = []
        for row in batch.logit_rows_R.tolist():
            s = _sequence_of(view, row)
            length = int(view.lengths_S[s]) - (int(view.starts_S[s + 1]) - 1 - row)
            tokens = tokens_NB[view.tables_SN[s].long()].flatten()[:length].long()
            cross_block = -1 if cross is None else int(cross.tables_SN[_sequence_of(cross, row), 0])
            adapter = -1 if batch.adapters_T is None else int(batch.adapters_T[row])
            rows.append(_Row(tokens, cross_block, adapter))
        return rows

    def _passes(self, rows: list[_Row]) -> Iterator[list[int]]:
        """Rows of like length together, few enough that their logits fit."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].tokens), reverse=True)
        while order:
            most = max(1, self._max_logits // (len(rows[order[0]].tokens) * self.vocab_size))
            yield order[:most]
            order = order[most:]

    def _forward(self, rows: list[_Row]) -> Tensor:
        tokens_BL, mask_BL = _pad([row.tokens for row in rows])
        if self.seq2seq:
            encoded_BEI, encoder_mask_BE = _pad([self._encoded[row.cross_block] for row in rows])
            inputs = {
                "encoder_outputs": BaseModelOutput(last_hidden_state=encoded_BEI),
                "attention_mask": encoder_mask_BE,
                "decoder_input_ids": tokens_BL,
                "decoder_attention_mask": mask_BL,
            }
        else:
            inputs = {"input_ids": tokens_BL, "attention_mask": mask_BL}
        self._set_adapters([row.adapter for row in rows])
        logits_BLV = self._model(**inputs, use_cache=False).logits
        last_B = mask_BL.sum(-1) - 1
        result: Tensor = logits_BLV[torch.arange(len(rows), device=self.device), last_B].float()
        return result

    def _encode(self, batch: EncodeBatch) -> None:
        encoder = self._model.get_encoder()
        slots = torch.split(batch.slots_T, [len(prompt) for prompt in batch.prompts])
        for prompt, slots_E, adapter in zip(batch.prompts, slots, batch.adapters, strict=True):
            self._set_adapters([adapter])
            tokens_BE = torch.tensor([prompt], device=self.device)
            output = encoder(input_ids=tokens_BE, attention_mask=torch.ones_like(tokens_BE))
            self._forget(slots_E)
            self._encoded[int(slots_E[0]) // BLOCK] = output.last_hidden_state[0]

    def _forget(self, slots_T: Tensor) -> None:
        """Blocks that are written anew belong to nobody's prompt any more."""
        for block in torch.unique(slots_T // BLOCK).tolist():
            self._encoded.pop(block, None)

    def _set_adapters(self, indices: Sequence[int]) -> None:
        used = self.lora is not None and any(index >= 0 for index in indices)
        self._adapters_B = torch.tensor(indices, device=self.device) if used else None

    def _adapter_hook(self, name: str) -> Any:
        def add(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if self._adapters_B is None or self.lora is None:
                return None
            x_TI = inputs[0].flatten(0, -2).contiguous()
            y_TO = output.flatten(0, -2).contiguous()
            each, rest = divmod(len(x_TI), len(self._adapters_B))
            if rest:
                raise ModelError(f"adapters cannot be mixed in a batch of this model: '{name}' sees other rows")
            parts = ((name, 0, y_TO.shape[1]),)
            self.lora.add(parts, x_TI, y_TO, StepRows(self._adapters_B.repeat_interleave(each)))
            return y_TO.view(output.shape)

        return add


def _sequence_of(view: AttentionView, row: int) -> int:
    return int(torch.searchsorted(view.starts_S, row, right=True)) - 1


def _pad(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows side by side, and the mask of what is not padding."""
    padded = pad_sequence(rows, batch_first=True)
    lengths_B = torch.tensor([len(row) for row in rows], device=padded.device)
    return padded, (torch.arange(padded.shape[1], device=padded.device) < lengths_B[:, None]).long()
