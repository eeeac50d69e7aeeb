"""A model that is a table, a loop that drives searches with it, and a model of transformers' kind over the same table.

Shape letters: R rows, V vocabulary, B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from rayloom.engine.beams import BeamSearch, advance
from rayloom.engine.request import EngineRequest, Hypothesis

RowProcess = Callable[[list[int], torch.Tensor], torch.Tensor]
"""(tokens so far, scores_V) -> scores_V."""
BatchProcess = Callable[[torch.Tensor], torch.Tensor]
"""scores_RV -> scores_RV, whatever the tokens."""


class Table:
    """Next-token logits that depend on the last two tokens and on the position, so that ties are rare."""

    def __init__(self, vocab_size: int, seed: int, scale: float = 2.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.vocab_size = vocab_size
        self.last_VV = torch.randn(vocab_size, vocab_size, generator=generator) * scale
        self.before_VV = torch.randn(vocab_size, vocab_size, generator=generator) * scale / 2
        self.place_TV = torch.randn(64, vocab_size, generator=generator) * scale / 4

    def logits(self, ids_BT: torch.Tensor) -> torch.Tensor:
        before_BT = torch.cat((ids_BT[:, :1], ids_BT[:, :-1]), dim=1)
        return self.last_VV[ids_BT] + self.before_VV[before_BT] + self.place_TV[: ids_BT.shape[1]]

    def many_next_logits(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        last_R, before_R, place_R = torch.tensor([(row[-1], row[-2], len(row) - 1) for row in rows]).unbind(1)
        return self.last_VV[last_R] + self.before_VV[before_R] + self.place_TV[place_R]

    def next_logits(self, tokens: Sequence[int]) -> torch.Tensor:
        return self.many_next_logits([tokens])[0]


class TableConfig(PreTrainedConfig):
    model_type = "rayloom_test_table"


class TableModel(PreTrainedModel, GenerationMixin):
    """The table as a model that `generate` can drive."""

    config_class = TableConfig

    def __init__(self, table: Table) -> None:
        super().__init__(TableConfig(vocab_size=table.vocab_size, is_encoder_decoder=False))
        self.table = table
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None, **kwargs: Any) -> CausalLMOutput:
        return CausalLMOutput(logits=self.table.logits(input_ids))

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, **kwargs: Any) -> dict[str, Any]:
        return {"input_ids": input_ids}


class Drive:
    """Runs many searches together as the engine would; each may join at a step of its own."""

    def __init__(
        self, table: Table, processes: dict[int, RowProcess] | None = None, warp: BatchProcess | None = None
    ) -> None:
        self.table, self.processes, self.warp = table, processes or {}, warp

    def run(self, requests: Sequence[EngineRequest], joins: Sequence[int] | None = None) -> list[list[Hypothesis]]:
        searches = [BeamSearch(request) for request in requests]
        rows = [[list(request.start_ids)] for request in requests]
        step = 0
        while not all(search.done for search in searches):
            live = [
                number
                for number, search in enumerate(searches)
                if not search.done and (joins is None or joins[number] <= step)
            ]
            if live:
                self.step(live, searches, rows)
            step += 1
        return [search.hypotheses() for search in searches]

    def step(self, live: list[int], searches: list[BeamSearch], rows: list[list[list[int]]]) -> None:
        flat = [(number, tokens) for number in live for tokens in rows[number]]
        logits_RV = self.table.many_next_logits([tokens for _, tokens in flat])

        def process(scores_RV: torch.Tensor, rows_R: torch.Tensor) -> torch.Tensor:
            for place, row in enumerate(rows_R.tolist()):
                number, tokens = flat[row]
                if number in self.processes:
                    scores_RV[place] = self.processes[number](tokens, scores_RV[place])
            return self.warp(scores_RV) if self.warp else scores_RV

        steps = advance([searches[n] for n in live], logits_RV, [len(rows[n]) for n in live], process)
        for number, result in zip(live, steps, strict=True):
            old = rows[number]
            rows[number] = [[*old[p], t] for p, t in zip(result.parents, result.tokens, strict=True)]
            assert result.done == (not result.parents)
            assert len(result.parents) <= searches[number].params.num_beams


def masked(scores_V: torch.Tensor, mask: np.ndarray | None) -> torch.Tensor:
    """Scores under a constraint's mask."""
    if mask is None:
        return scores_V
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: scores_V.shape[0]]
    return scores_V.masked_fill(~torch.from_numpy(bits.astype(bool)), -torch.inf)
