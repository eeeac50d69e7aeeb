from __future__ import annotations

import copy

import pytest
import torch

from rayloom.config import TrainingConfig
from rayloom.errors import TrainingError
from rayloom.training import TokenLoss
from rayloom.training.checkpoint import save_weights
from rayloom.training.optimizer import build_optimizer, parameter_groups, parameter_names
from rayloom.training.universal import fill_torch, from_torch, read_state, universal_folder
from tests.fakes import FAMILIES, tiny_model

CPU = torch.device("cpu")
CONFIG = TrainingConfig(learning_rate=1e-2, weight_decay=0.1)


def stepped(family, *, steps):
    """A module and its optimizer after a few steps on made-up gradients."""
    module = TokenLoss(tiny_model(family), seq2seq=family == "t5")
    optimizer = build_optimizer(module, CONFIG, CPU, offload=False)
    for step in range(steps):
        advance(module, optimizer, step)
    return module, optimizer


def advance(module, optimizer, step):
    generator = torch.Generator().manual_seed(step)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def trained(module):
    return {name: parameter.detach().clone() for name, parameter in module.model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_names_stand_in_the_order_in_which_optimizers_number_parameters(family):
    module = TokenLoss(tiny_model(family), seq2seq=family == "t5")
    numbered = [parameter for group in parameter_groups(module, 0.1) for parameter in group["params"]]
    named = dict(module.named_parameters())
    assert [id(named[name]) for name in parameter_names(module)] == [id(parameter) for parameter in numbered]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_state_that_was_taken_apart_and_put_together_goes_on_bit_for_bit(family, tmp_path):
    module, optimizer = stepped(family, steps=3)
    save_weights(trained(module), tmp_path)
    state = copy.deepcopy(optimizer.state_dict())
    with universal_folder(lambda place: from_torch(state, place, module=module, weights=tmp_path)) as place:
        name = parameter_names(module)[-1]
        assert read_state(place, name)["step"] == 3
        other, other_optimizer = stepped(family, steps=0)
        fill_torch(other_optimizer, dict(other.named_parameters()), place)
    assert not place.exists()
    for each, its in ((module, optimizer), (other, other_optimizer)):
        advance(each, its, 3)
    expected = trained(module)
    assert all(torch.equal(weight, expected[name]) for name, weight in trained(other).items())


def test_a_checkpoint_that_cannot_be_converted_is_refused_with_the_reason(tmp_path):
    module, optimizer = stepped("llama", steps=0)

    def convert(place):
        from_torch(optimizer.state_dict(), place, module=module, weights=tmp_path)

    with (
        pytest.raises(TrainingError, match=r"cannot be converted for other workers: .*No such file"),
        universal_folder(convert),
    ):
        pass
