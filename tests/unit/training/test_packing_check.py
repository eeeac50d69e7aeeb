"""Models that see their neighbours are refused; those that do not are packed."""

from __future__ import annotations

import pytest
import torch
import transformers.masking_utils
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BloomConfig,
    BloomForCausalLM,
    LlamaModel,
    MambaConfig,
    MambaForCausalLM,
)

from rayloom.config import TrainingConfig, validate
from rayloom.data import Packing
from rayloom.errors import ConfigError, TrainingError
from rayloom.training import PlainBackend, TokenLoss
from rayloom.training.packing_check import enable_packing, packing_for
from tests.fakes import FAMILIES, VOCABULARY, random_examples, run_config, tiny_model
from tests.unit.training.packing_cases import CASES, is_pair, random_model

IDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}


def enabled(model, *, pair=False, rows=20, **training) -> PlainBackend:
    config = run_config(training={"packing": True} | training)
    backend = PlainBackend(TokenLoss(model, seq2seq=pair), config, torch.device("cpu"))
    enable_packing(backend, config.training, random_examples(rows, seq2seq=pair), pad_token_id=0)
    return backend


@pytest.mark.parametrize(("kind", "attention"), CASES)
def test_every_kind_that_packs_is_accepted(kind, attention):
    backend = enabled(random_model(kind, attention), pair=is_pair(kind), packing_length=32)
    assert backend.module.packing == Packing(32)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [1, 20])
def test_the_trial_leaves_no_trace(family, rows):
    model = tiny_model(family, dropout=0.1).train()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    backend = enabled(model, pair=family == "t5", rows=rows, bf16=rows == 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert backend.module.training
    assert model.training
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_without_the_key_nothing_is_packed():
    assert enabled(tiny_model("llama"), packing=False).module.packing is None


@pytest.mark.parametrize("bf16", [False, True])
def test_attention_that_reaches_into_other_rows_is_refused(monkeypatch, bf16):
    monkeypatch.setattr(transformers.masking_utils, "find_packed_sequence_indices", lambda position_ids: None)
    with pytest.raises(TrainingError, match=r"depends on the rows packed beside it.*training.packing: false"):
        enabled(tiny_model("llama"), bf16=bf16)


@pytest.mark.parametrize(
    "model",
    [lambda: BloomForCausalLM(BloomConfig(**IDS, hidden_size=32, n_layer=2, n_head=2)),
     lambda: MambaForCausalLM(MambaConfig(**IDS, hidden_size=32, num_hidden_layers=2, state_size=8))],
)  # fmt: skip
def test_models_without_positions_are_refused(model):
    torch.manual_seed(0)
    with pytest.raises(TrainingError, match=r"depends on the rows packed beside it"):
        enabled(model())


def test_other_positions_than_given_are_refused(monkeypatch):
    """Rows kept apart, but distances are not what they were."""
    forward = LlamaModel.forward

    def otherwise(self, input_ids, position_ids=None, **kwargs):
        if position_ids is None:
            return forward(self, input_ids, **kwargs)
        rows_BT = (position_ids == 0).cumsum(1)
        apart = (rows_BT[:, :, None] == rows_BT[:, None, :]).tril()[:, None]
        scores = torch.zeros(apart.shape).masked_fill(~apart, -1e9)
        places = 50 + torch.arange(input_ids.shape[1]).expand_as(input_ids) * 3
        return forward(self, input_ids, **kwargs | {"position_ids": places, "attention_mask": scores})

    monkeypatch.setattr(LlamaModel, "forward", otherwise)
    with pytest.raises(TrainingError, match=r"packing changes losses"):
        enabled(random_model("llama", "eager"))


def test_other_encoder_decoders_are_refused():
    sizes = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    config = BartConfig(**IDS, d_model=32, max_position_embeddings=64, decoder_start_token_id=0, **sizes)
    with pytest.raises(TrainingError, match=r"'bart' cannot be packed: of encoder-decoders only t5"):
        enabled(BartForConditionalGeneration(config), pair=True)


def test_a_bin_longer_than_the_table_of_gpt_neo_is_refused():
    with pytest.raises(TrainingError, match=r"reaches 64 positions: lower training.packing_length"):
        enabled(tiny_model("gpt_neo"), packing_length=65)
    assert enabled(tiny_model("gpt_neo"), packing_length=64).module.packing == Packing(64)


def test_a_forward_pass_that_fails_is_a_refusal(monkeypatch):
    def forward(*args, **kwargs):
        if "position_ids" in kwargs:
            raise TypeError("forward() got an unexpected keyword argument 'position_ids'")
        return original(*args, **kwargs)

    model = tiny_model("llama")
    original = model.forward
    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(TrainingError, match=r"its forward pass fails on packed rows: .*position_ids"):
        enabled(model)


def test_flash_attention_gets_one_flat_row():
    model = random_model("llama", "sdpa")
    model.config._attn_implementation = "flash_attention_2"
    config = run_config(training={"packing": True})
    module = TokenLoss(model, seq2seq=False)
    assert packing_for(module, config.training) == Packing(None, flat=True)


def test_a_length_without_packing_is_a_mistake():
    with pytest.raises(ConfigError, match=r"packing_length without packing"):
        validate(TrainingConfig, {"packing_length": 512})
