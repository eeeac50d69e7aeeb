from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from rayloom.config import RandomInit
from rayloom.errors import ModelError
from rayloom.models import load_tokenizer, resolve_source
from rayloom.models.random_init import attention_types, planned_config, train_tokenizer
from tests.unit.models.tiny_models import FAMILIES, TEXTS, logits, tiny_config, tiny_model, tiny_source


@pytest.mark.parametrize("family", FAMILIES)
def test_same_arguments_same_folder_other_seed_other_weights(family: str) -> None:
    assert tiny_source(family) == tiny_source(family)
    one, two = tiny_model(family), tiny_model(family, seed=2)
    assert not torch.equal(logits(one.model, one), logits(two.model, two))


def test_the_process_random_state_is_left_alone() -> None:
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    tiny_source("gpt2", seed=99)
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens(family: str) -> None:
    tokenizer = load_tokenizer(tiny_source(family))
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.chat_template is None
    ids = tokenizer("Who?").input_ids
    if family == "t5":
        assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
        assert ids[-1] == 1
    elif family == "llama":
        assert ids.count(tokenizer.bos_token_id) == 1
    else:
        assert not set(ids) & set(tokenizer.all_special_ids)


TOKENIZERS = {
    family: train_tokenizer(RandomInit(family=family, vocab_size=300), lambda: TEXTS) for family in ("t5", "gpt2")
}


@pytest.mark.parametrize("family", TOKENIZERS)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_survives_the_tokenizer(family: str, text: str) -> None:
    tokenizer = TOKENIZERS[family]
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_transformers_loads_the_same_tokenizer(family: str, tmp_path: Path) -> None:
    source = tiny_source(family)
    stock = AutoTokenizer.from_pretrained(source.location)
    assert stock("Who was naïve?").input_ids == load_tokenizer(source)("Who was naïve?").input_ids


@pytest.mark.slow
def test_another_process_trains_the_same_tokenizer() -> None:
    """Nodes without a common disk each train their own."""
    code = (
        "from rayloom.config import RandomInit; from rayloom.models.random_init import train_tokenizer;"
        "import sys;"
        "print(train_tokenizer(RandomInit(family='gpt2', vocab_size=300), lambda: eval(sys.argv[1]))"
        ".backend_tokenizer.to_str())"
    )
    run = subprocess.run([sys.executable, "-c", code, repr(TEXTS)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == TOKENIZERS["gpt2"].backend_tokenizer.to_str()


@given(num_layers=st.integers(1, 40))
def test_attention_types_alternate(num_layers: int) -> None:
    spread = [kind for kinds, count in attention_types(num_layers) for _ in range(count) for kind in kinds]
    assert spread == ["global" if layer % 2 == 0 else "local" for layer in range(num_layers)]


def test_options_override_the_architecture() -> None:
    neo = planned_config(RandomInit(family="gpt_neo", num_layers=3, options={"window_size": 16}))
    assert neo.window_size == 16
    assert neo.attention_layers == ["global", "local", "global"]
    llama = planned_config(RandomInit(family="llama", num_heads=4, options={"num_key_value_heads": 2}))
    assert llama.num_key_value_heads == 2
    assert planned_config(RandomInit(family="llama", num_heads=4)).num_key_value_heads == 4
    t5 = planned_config(RandomInit(family="t5", options={"feed_forward_proj": "gated-gelu"}))
    assert t5.is_gated_act
    assert t5.tie_word_embeddings
    assert t5.decoder_start_token_id == t5.pad_token_id


def test_unknown_and_impossible_options_are_named() -> None:
    with pytest.raises(ModelError, match="no field 'windowsize'; did you mean 'window_size'"):
        planned_config(RandomInit(family="gpt_neo", options={"windowsize": 16}))
    with pytest.raises(ModelError, match="t5 cannot be built"):
        planned_config(RandomInit(family="t5", options={"feed_forward_proj": "a-b-c"}))


def test_a_corpus_is_needed() -> None:
    with pytest.raises(ModelError, match="none were given"):
        resolve_source(tiny_config("gpt2"))
    with pytest.raises(ModelError, match="hold no text"):
        resolve_source(tiny_config("gpt2"), lambda: ["", ""])


def test_another_tokenizer_can_be_taken() -> None:
    given_folder = tiny_source("gpt2").location
    config = tiny_config("gpt_neo").model_copy(update={"tokenizer": given_folder})
    tokenizer = load_tokenizer(resolve_source(config))
    assert tokenizer("Who?").input_ids == load_tokenizer(tiny_source("gpt2"))("Who?").input_ids
