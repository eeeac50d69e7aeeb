"""Many adapters in one batch give what PEFT gives with each alone.

Shape letters: T rows, I input width, O output width, R rank, B batch, L length, V vocabulary.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import safetensors.torch
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from rayloom.engine.adapter_files import Adapter, read_adapter
from rayloom.engine.adapter_rows import StepRows
from rayloom.engine.adapters import LoraBank, adaptable_layers
from rayloom.errors import ModelError, RequestError
from tests.fakes import VOCABULARY, tiny_model

torch.set_num_threads(1)

FAMILIES = ("t5", "gpt2", "gpt_neo", "llama")
LAYERS = {"layers.0.q": (6, 5), "layers.0.k": (6, 3), "layers.1.q": (7, 4)}
"""Of a made-up base, for tests of the bank alone."""

# ---- against PEFT, whole models ----


def _model(family: str) -> Any:
    if family != "gpt2":
        return tiny_model(family).eval()
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, **ids)
    return GPT2LMHeadModel(config).eval()


TARGETS = {
    "t5": (["q", "k", "v", "o"], ["wi", "wo", "SelfAttention.q"], ["v"]),
    "gpt2": (["c_attn", "attn.c_proj"], ["c_fc", "mlp.c_proj"], ["c_attn"]),
    "gpt_neo": (["q_proj", "k_proj", "v_proj", "out_proj"], ["c_fc", "c_proj", "q_proj"], ["v_proj"]),
    "llama": (["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj", "q_proj"], ["v_proj"]),
}
OPTIONS: tuple[dict[str, Any], ...] = (
    {"r": 4, "lora_alpha": 32},
    {"r": 8, "lora_alpha": 6, "use_rslora": True, "lora_dropout": 0.5},
    {"r": 3, "lora_alpha": 5, "rank_pattern": {".*0.*": 5}, "alpha_pattern": {".*1.*": 11}},
)


def _peft_model(family: str, number: int, **more: Any) -> Any:
    """A model with an adapter whose weights, B's too, are random."""
    config = peft.LoraConfig(
        target_modules=list(TARGETS[family][number]),
        fan_in_fan_out=family == "gpt2",
        task_type="SEQ_2_SEQ_LM" if family == "t5" else "CAUSAL_LM",
        **OPTIONS[number] | more,
    )
    model = peft.get_peft_model(_model(family), config).eval()
    torch.manual_seed(number + 1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def _save(model: Any, folder: Path) -> Path:
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def _inputs(family: str, batch: int, seed: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    ids = {"input_ids": torch.randint(2, VOCABULARY, (batch, 7), generator=rng)}
    if family == "t5":
        ids["decoder_input_ids"] = torch.randint(2, VOCABULARY, (batch, 5), generator=rng)
    return ids


@contextmanager
def _served_by(bank: LoraBank, model: Any, adapters_B: torch.Tensor) -> Iterator[None]:
    """Call `add` after each layer that the bank was told of, as a runner does."""
    per_length: dict[int, torch.Tensor] = {}

    def hook_for(name: str) -> Callable[..., None]:
        def hook(_: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            length = output.shape[1]
            adapters_T = per_length.setdefault(length, adapters_B.repeat_interleave(length))
            y_TO = output.view(-1, output.shape[-1])
            bank.add(((name, 0, y_TO.shape[1]),), inputs[0].flatten(0, 1), y_TO, StepRows(adapters_T))

        return hook

    modules = dict(model.named_modules())
    hooks = [modules[name].register_forward_hook(hook_for(name)) for name in adaptable_layers(model)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_batch_equals_peft_with_each_adapter_alone(family: str, tmp_path: Path) -> None:
    base = _model(family)
    bank = LoraBank(4, 16, adaptable_layers(base))
    alone = [base, *(_peft_model(family, number) for number in range(3))]
    indices = [-1] + [bank.load(str(n), _save(alone[n + 1], tmp_path / str(n))) for n in range(3)]
    rng = np.random.default_rng(1)
    for case in range(3):
        which = rng.permutation([0, 1, 2, 3, *rng.integers(0, 4, 5)])
        inputs = _inputs(family, len(which), case)
        adapters_B = torch.tensor([indices[w] for w in which])
        with torch.inference_mode():
            plain_BLV = base(**inputs).logits
            with _served_by(bank, base, adapters_B):
                served_BLV = base(**inputs).logits
            for number, model in enumerate(alone):
                wanted_BLV = model(**inputs).logits
                mine = which == number
                # PEFT's own logits differ from float64's by up to 2e-5 here.
                torch.testing.assert_close(served_BLV[mine], wanted_BLV[mine], rtol=1e-4, atol=1e-4)
        assert torch.equal(served_BLV[which == 0], plain_BLV[which == 0])
        changed = (served_BLV - plain_BLV).abs().amax((1, 2))
        assert (changed[which > 0] > 1e-3).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_of_a_wrapped_model_are_those_of_its_base(family: str) -> None:
    wrapped = _peft_model(family, 1).get_base_model()
    assert adaptable_layers(wrapped) == adaptable_layers(_model(family))


def test_output_head_is_not_adaptable() -> None:
    names = adaptable_layers(_model("llama"))
    assert names["model.layers.0.mlp.down_proj"] == (64, 32)
    assert "lm_head" not in names


# ---- the bank, against plain matrices ----


@dataclass
class Plain:
    """An adapter as plain matrices, and its folder."""

    folder: Path
    changes: dict[str, torch.Tensor]
    """By layer: scale * B A, (O, I)."""


def _write(folder: Path, tensors: Mapping[str, torch.Tensor], **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    safetensors.torch.save_file(dict(tensors), folder / "adapter_model.safetensors")
    return folder


def _plain(folder: Path, seed: int, *, rank: int = 2, layers: tuple[str, ...] = tuple(LAYERS)) -> Plain:
    rng = torch.Generator().manual_seed(seed)
    tensors, changes = {}, {}
    for name in layers:
        width_in, width_out = LAYERS[name]
        down, up = torch.randn(rank, width_in, generator=rng), torch.randn(width_out, rank, generator=rng)
        tensors |= {f"base_model.model.{name}.lora_A.weight": down, f"base_model.model.{name}.lora_B.weight": up}
        changes[name] = 3.0 / rank * (up @ down)
    return Plain(_write(folder, tensors, r=rank, lora_alpha=3), changes)


def _assert_adds(bank: LoraBank, by_index: Mapping[int, Plain], seed: int, rows: int = 11) -> None:
    """`add` gives, for rows that use these adapters or none, what the plain matrices give."""
    rng, numbers = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    adapters_T = torch.from_numpy(numbers.choice([-1, *by_index], rows))
    for name, (width_in, width_out) in LAYERS.items():
        x_TI = torch.randn(rows, width_in, generator=rng)
        y_TO = torch.randn(rows, width_out, generator=rng)
        wanted_TO = y_TO.clone()
        for row, index in enumerate(adapters_T.tolist()):
            if index >= 0 and name in by_index[index].changes:
                wanted_TO[row] += by_index[index].changes[name] @ x_TI[row]
        bank.add(((name, 0, width_out),), x_TI, y_TO, StepRows(adapters_T))
        torch.testing.assert_close(y_TO, wanted_TO, rtol=1e-4, atol=1e-4)


class Play:
    """Random use of a bank of three places, with what must be true of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.numbers = folder, np.random.default_rng(3)
        self.bank = LoraBank(3, 9, LAYERS)
        self.known: dict[str, Plain] = {}
        self.in_use: list[str] = []
        self.held: list[str] = []

    @property
    def full(self) -> bool:
        return len(set(self.held)) == 3

    def load(self, name: str, step: int) -> None:
        layers = tuple(self.numbers.choice(list(LAYERS), int(self.numbers.integers(1, 4)), replace=False))
        rank = int(self.numbers.integers(1, 10))
        new = _plain(self.folder / str(step), step, rank=rank, layers=layers)
        if name in self.in_use:
            with pytest.raises(ModelError, match="in use"):
                self.bank.load(name, new.folder)
        elif self.full and name not in self.bank.residents:
            with pytest.raises(RequestError, match="all 3 places"):
                self.bank.load(name, new.folder)
        else:
            self.bank.load(name, new.folder)
            self.known[name] = new

    def acquire(self, name: str, _: int) -> None:
        if name not in self.known:
            with pytest.raises(RequestError, match="no adapter"):
                self.bank.acquire(name)
        else:
            self.bank.acquire(name)
            self.in_use.append(name)

    def hold(self, _: str, __: int) -> None:
        if self.in_use:
            name = str(self.numbers.choice(self.in_use))
            assert self.bank.hold(name) is (name in self.held or not self.full)
            self.held += [name] * (name in self.held or not self.full)

    def let_go(self, _: str, __: int) -> None:
        if self.held:
            self.bank.let_go(self.held.pop(int(self.numbers.integers(0, len(self.held)))))

    def release(self, _: str, __: int) -> None:
        if idle := sorted(set(self.in_use) - set(self.held)):
            self.in_use.remove(idle[0])
            self.bank.release(idle[0])

    def evict(self, name: str, _: int) -> None:
        if name in self.in_use:
            with pytest.raises(ModelError, match="in use"):
                self.bank.evict(name)
        elif name in self.known:
            self.bank.evict(name)
            del self.known[name]

    def check(self, step: int) -> None:
        assert self.bank.names == tuple(sorted(self.known))
        assert len(self.bank.residents) <= 3
        assert set(self.held) <= set(self.bank.residents) <= set(self.known)
        _assert_adds(self.bank, {self.bank.index(name): self.known[name] for name in self.bank.residents}, step)


def test_bank_under_random_loads_evictions_and_use(tmp_path: Path) -> None:
    play = Play(tmp_path)
    actions = (play.load, play.acquire, play.hold, play.let_go, play.release, play.evict)
    for step in range(300):
        action = actions[play.numbers.choice(6, p=[0.25, 0.2, 0.2, 0.15, 0.1, 0.1])]
        action(f"a{play.numbers.integers(0, 6)}", step)
        play.check(step)
    while play.held:
        play.let_go("", 0)
    while play.in_use:
        play.release("", 0)
    for name in list(play.known):
        play.bank.evict(name)
    assert play.bank.resident_bytes == 0


def test_longest_idle_adapter_makes_room_and_comes_back(tmp_path: Path) -> None:
    bank = LoraBank(2, 4, LAYERS)
    plain = {name: _plain(tmp_path / name, seed) for seed, name in enumerate("abc")}
    for name in "ab":
        bank.load(name, plain[name].folder)
    bank.hold("a")
    bank.let_go("a")
    bank.load("c", plain["c"].folder)
    assert bank.residents == ("a", "c")
    with pytest.raises(RequestError, match="'b' is not in memory"):
        bank.index("b")
    assert bank.hold("b")
    index = bank.index("b")
    assert bank.residents == ("c", "b")
    assert bank.names == ("a", "b", "c")
    _assert_adds(bank, {index: plain["b"]}, 4)
    _plain(plain["a"].folder, 9)  # other weights
    with pytest.raises(ModelError, match="has changed since adapter 'a' was loaded"):
        bank.hold("a")
    _assert_adds(bank, {bank.index("c"): plain["c"], index: plain["b"]}, 6)


def test_same_content_is_loaded_once_and_other_content_replaces(tmp_path: Path) -> None:
    bank = LoraBank(2, 4, LAYERS)
    first, second = _plain(tmp_path / "1", 1), _plain(tmp_path / "2", 2)
    index, fingerprint = bank.load("a", first.folder), bank.fingerprint("a")
    bank.acquire("a")
    assert bank.load("a", first.folder) == index
    bank.release("a")
    assert bank.load("b", first.folder) != index
    assert bank.fingerprint("b") == fingerprint
    replaced = bank.load("a", second.folder)
    assert bank.fingerprint("a") != fingerprint
    _assert_adds(bank, {replaced: second, bank.index("b"): first}, 5)


def test_layers_that_no_adapter_of_the_step_changes_are_left_alone(tmp_path: Path) -> None:
    bank = LoraBank(2, 4, LAYERS)
    q_only = bank.load("q", _plain(tmp_path / "q", 1, layers=("layers.0.q",)).folder)
    bank.load("k", _plain(tmp_path / "k", 2, layers=("layers.0.k",)).folder)
    adapters_T = torch.full((4,), q_only)
    for name in ("layers.0.k", "layers.1.q", "lm_head"):
        nothing = torch.empty(0)  # would fail if it were used
        bank.add(((name, 0, 5),), nothing, nothing, StepRows(adapters_T))


def test_loading_while_a_step_runs_does_not_disturb_it(tmp_path: Path) -> None:
    bank = LoraBank(3, 8, LAYERS)
    plain = {n: _plain(tmp_path / str(n), n, rank=1 + n % 8) for n in range(12)}
    bank.load("0", plain[0].folder)
    bank.hold("0")
    index = bank.index("0")
    done, errors = threading.Event(), []

    def step() -> None:
        seed = 0
        while not done.is_set():
            try:
                _assert_adds(bank, {index: plain[0]}, seed)
            except AssertionError as error:
                errors.append(error)
            seed += 1

    thread = threading.Thread(target=step)
    thread.start()
    for _ in range(3):
        for number in range(1, 12):
            bank.load(str(number), plain[number].folder)
    done.set()
    thread.join()
    assert errors == []


# ---- what is refused ----


def _read(folder: Path, family: str = "llama") -> Adapter:
    return read_adapter(folder, adaptable_layers(_model(family)))


def test_dora_bias_and_whole_modules_are_refused_by_name(tmp_path: Path) -> None:
    for said, more in {
        "use_dora=True": {"use_dora": True},
        "bias='all'": {"bias": "all"},
        "modules_to_save": {"modules_to_save": ["lm_head"]},
    }.items():
        folder = _save(_peft_model("llama", 0, **more), tmp_path / said)
        with pytest.raises(ModelError, match=said):
            _read(folder)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_type": "LOHA"}, "kind 'LOHA'"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"something_new": 1}, "something_new=1"),
        ({"r": 4}, "has rank 2, but"),
        ({"r": None}, "no rank or scale"),
        ({"rank_pattern": {"q": 3}}, "has rank 2, but"),
    ],
)
def test_unfit_settings_are_refused(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    tensors = safetensors.torch.load_file(_plain(tmp_path, 1).folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=said):
        read_adapter(_write(tmp_path, tensors, **config), LAYERS)


def _without(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.__delitem__(f"base_model.model.{name}")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.clear(), "holds no weights"),
        (_without("layers.0.q.lora_B.weight"), "has lora_A only"),
        (lambda t: t.update({"base_model.model.head.lora_A.weight": torch.ones(2, 3)}), "changes 'head'"),
        (lambda t: t.update({"base_model.model.layers.0.q.lora_A.weight": torch.ones(2, 7)}), "another model"),
        (
            lambda t: t.update({"base_model.model.layers.0.q.lora_A.weight": torch.full((2, 6), torch.inf)}),
            "not finite",
        ),
        (lambda t: t.update({"base_model.model.emb.lora_embedding_A": torch.ones(2, 7)}), "lora_embedding_A"),
        (lambda t: t.update({"base_model.model.layers.0.q.lora_B.bias": torch.ones(5)}), "lora_B.bias"),
    ],
)
def test_unfit_tensors_are_refused(
    change: Callable[[dict[str, torch.Tensor]], None], said: str, tmp_path: Path
) -> None:
    tensors = safetensors.torch.load_file(_plain(tmp_path, 1).folder / "adapter_model.safetensors")
    change(tensors)
    with pytest.raises(ModelError, match=said):
        read_adapter(_write(tmp_path, tensors), LAYERS)


def test_missing_and_damaged_files_are_refused(tmp_path: Path) -> None:
    folder = _plain(tmp_path / "a", 1).folder
    with pytest.raises(ModelError, match="holds no adapter"):
        read_adapter(tmp_path, LAYERS)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(ModelError, match="damaged"):
        read_adapter(folder, LAYERS)


def test_rank_over_the_limit_is_refused(tmp_path: Path) -> None:
    bank = LoraBank(2, 4, LAYERS)
    with pytest.raises(ModelError, match="rank 5; this engine takes up to 4"):
        bank.load("a", _plain(tmp_path, 1, rank=5).folder)
    assert bank.names == ()


def test_adapter_of_another_family_is_refused(tmp_path: Path) -> None:
    folder = _save(_peft_model("gpt_neo", 0), tmp_path)
    with pytest.raises(ModelError, match="no layer of this model"):
        _read(folder, "llama")
