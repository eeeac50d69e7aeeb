"""A causal language model that says how likely texts are, alone or after a context.

Shape letters: B texts, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor

from rayloom.errors import ModelError
from rayloom.generation import open_path
from rayloom.registry import locate

_BATCH_TOKENS = 1024
_MOST_POSITIONS = 1024
_BETWEEN_DOCUMENTS = "<|endoftext|>"


@dataclass(frozen=True)
class Likelihood:
    """How likely a text is.

    Attributes:
        nll: Its negative log-likelihood in nats.
        num_tokens: Tokens that this is summed over.
    """

    nll: float
    num_tokens: int


class Scorer:
    """Likelihoods under a causal model.

    Args:
        model: A transformers model on its device.
        tokenizer: Its tokenizer.
        max_positions: Longest context and text together, in tokens. What is more goes from the context's start, then
            from the text's end.
    """

    def __init__(self, model: Any, tokenizer: Any, *, max_positions: int = _MOST_POSITIONS) -> None:
        self._model, self._tokenizer = model.eval(), tokenizer
        own = getattr(model.config, "max_position_embeddings", None) or max_positions
        self._max_positions = min(max_positions, own)
        self._first_id = _document_start(tokenizer)

    def likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """How likely each text is after its context.

        Args:
            pairs: Contexts (empty for none) and texts. A text's tokens are the same whatever its context.
        """
        items = [self._ids(context, text) for context, text in pairs]
        order = sorted(range(len(items)), key=lambda place: len(items[place][0]))
        found: dict[int, Likelihood] = {}
        for places in self._batches(items, order):
            nll = self._nll([items[place] for place in places])
            counts = (items[place][1] for place in places)
            found |= {
                place: Likelihood(*each) for place, each in zip(places, zip(nll, counts, strict=True), strict=True)
            }
        return [found[place] for place in range(len(items))]

    def _ids(self, context: str, text: str) -> tuple[list[int], int]:
        """Token ids of context and text, and how many of them are the text's."""
        room = self._max_positions - 1
        text_ids = self._tokenizer.encode(text, add_special_tokens=False)[:room]
        context_ids = self._tokenizer.encode(context, add_special_tokens=False) if context else []
        kept = context_ids[len(context_ids) - min(len(context_ids), room - len(text_ids)) :]
        return [self._first_id, *kept, *text_ids], len(text_ids)

    def _batches(self, items: Sequence[tuple[list[int], int]], order: Sequence[int]) -> list[list[int]]:
        batches: list[list[int]] = [[]]
        for place in order:  # shortest first: the last one of a batch says how wide it is
            if batches[-1] and (len(batches[-1]) + 1) * len(items[place][0]) > _BATCH_TOKENS:
                batches.append([])
            batches[-1].append(place)
        return [batch for batch in batches if batch]

    @torch.inference_mode()
    def _nll(self, items: Sequence[tuple[list[int], int]]) -> list[float]:
        device, width = self._model.device, max(len(ids) for ids, _ in items)
        ids_BT = torch.tensor([ids + [self._first_id] * (width - len(ids)) for ids, _ in items], device=device)
        mask_BT = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in items], device=device)
        logits_BTV: Tensor = self._model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
        sums = []
        for row, (ids, count) in enumerate(items):
            end = len(ids)
            predicted = logits_BTV[row, end - count - 1 : end - 1].float()
            sums.append(
                float(F.cross_entropy(predicted, ids_BT[row, end - count : end], reduction="sum")) if count else 0.0
            )
        return sums


def _document_start(tokenizer: Any) -> int:
    """What stands before a text in pretraining. Chat models begin turns with their bos token, which is not that."""
    known = tokenizer.get_vocab()
    if _BETWEEN_DOCUMENTS in known:
        return int(known[_BETWEEN_DOCUMENTS])
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return next((int(token_id) for token_id in ids if token_id is not None), 0)


@lru_cache(maxsize=1)
def open_scorer(name: str, device: str) -> Scorer:
    """Open a model to judge with; the last one stays open.

    Args:
        name: Artifact, version in the registry, model folder, hub name or ``package:`` file.
        device: Where it runs.

    Raises:
        ModelError: It cannot be loaded, or is no causal model.
    """
    opened = open_path(locate(name))
    if opened.loaded.family.seq2seq:
        raise ModelError(f"evaluation.scorer: {name} is an encoder-decoder; a causal model such as SmolLM2 is wanted")
    return Scorer(opened.loaded.model.to(torch.device(device)), opened.loaded.tokenizer)
