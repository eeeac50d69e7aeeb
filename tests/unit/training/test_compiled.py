"""Compiled layers compute what the layers do, by kernels that do not depend on the batches before."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import re

import pytest
import torch

from rayloom.data import MicroBatch, Packing
from rayloom.errors import TrainingError
from rayloom.training import Job, PlainBackend, TokenLoss
from rayloom.training.batches import to_device
from rayloom.training.compiled import compiled_layers
from tests.fakes import random_examples, run_config, tiny_model

CPU = torch.device("cpu")
ROWS, BATCHES = 60, 40
LONGEST = 64
"""Tokens that a tiny model takes."""
CASES = [
    ("gpt_neo", True, "fp32", 0.0),
    *[
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            ("gpt_neo", False, "bf16", 0.0),
            ("gpt_neo", True, "bf16", 0.1),
            ("llama", True, "bf16", 0.0),
            ("llama", False, "fp32", 0.0),
            ("t5", True, "fp32", 0.0),
            ("t5", False, "bf16", 0.1),
        )
    ],
]


class Notes(list):
    note = list.append


def made(family, *, packed, precision, dropout=0.0):
    """A run on short rows; packed ones fill up all that the model takes."""
    training = {"compile": True} | ({precision: True} if precision != "fp32" else {})
    training |= {"packing": True, "packing_length": LONGEST} if packed else {}
    module = TokenLoss(tiny_model(family, dropout=dropout), seq2seq=family == "t5")
    module.packing = Packing(LONGEST) if packed else None
    rows = random_examples(ROWS, seq2seq=module.seq2seq, seed=0)
    job = Job(run_config(training=training), rows, rows, 0)
    return job, PlainBackend(module.train(), job.config, CPU)


def gradients(job, backend, order):
    """Of batches of one to nine rows, by their numbers: the loss and a vector, with each batch's own dropout."""
    module = backend.module
    drawn = random.Random(0)
    batches = [tuple(drawn.sample(range(ROWS), drawn.randint(1, 9))) for _ in range(BATCHES)]
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    found = {}
    for number in order:
        micro = MicroBatch(batches[number])
        batch = to_device(job.train, micro, pad_token_id=0, device=CPU, packing=module.packing)
        torch.manual_seed(number)
        with backend.autocast():
            loss = module(**batch)
        parts = torch.autograd.grad(loss, trained, allow_unused=True)
        found[number] = torch.cat([loss.detach()[None], *(part.flatten() for part in parts if part is not None)])
    return found


def compiled_gradients(seed, case, cache):
    """In a process of its own: hashes by batch, the largest relative difference from plain layers, kernels."""
    from torch._dynamo.utils import counters

    os.environ["RAYLOOM_CACHE"] = cache
    torch.set_num_threads(1)
    family, packed, precision, dropout = case
    order = random.Random(seed).sample(range(BATCHES), BATCHES)
    plain = gradients(*made(family, packed=packed, precision=precision), order)
    (job, backend), notes = made(family, packed=packed, precision=precision, dropout=dropout), Notes()
    state = torch.get_rng_state()
    with compiled_layers(job, backend, notes):
        assert torch.equal(torch.get_rng_state(), state)
        assert all(parameter.grad is None for parameter in backend.module.parameters())
        before = counters["stats"]["unique_graphs"]
        found = gradients(job, backend, order)
        after = counters["stats"]["unique_graphs"]
    assert notes[-1].startswith("compiled the layers in")
    apart = max(float((found[each] - plain[each]).norm() / plain[each].norm()) for each in order)
    hashes = {each: hashlib.sha256(found[each].numpy().tobytes()).hexdigest() for each in sorted(order)}
    return hashes, apart, before, after


@pytest.mark.parametrize(("family", "packed", "precision", "dropout"), CASES)
def test_kernels_are_right_and_do_not_depend_on_the_batches_before(family, packed, precision, dropout, tmp_path):
    case, context = (family, packed, precision, dropout), multiprocessing.get_context("spawn")
    results = []
    for seed in (1, 2):
        with context.Pool(1) as pool:
            results.append(pool.apply(compiled_gradients, (seed, case, str(tmp_path))))
    (hashes, apart, before, after), (again, *_) = results
    assert hashes == again
    assert after == before > 0  # the made-up batches are enough
    if not dropout:  # compiled layers draw it in another way
        assert apart < (1e-5 if precision == "fp32" else 3e-2)
    assert any((tmp_path / "compiled").iterdir())


def complaints(cache):
    """In a process of its own: without a compiler, and of a model that has no layers."""
    os.environ["RAYLOOM_CACHE"] = cache
    torch._inductor.config.cpp.cxx = (f"{cache}/no-compiler",)
    told, (job, backend) = [], made("gpt_neo", packed=False, precision="fp32")
    for model in (backend.module.model, torch.nn.Linear(2, 2)):
        backend.module.model = model
        try:
            with compiled_layers(job, backend, Notes()):
                told.append("compiled")
        except TrainingError as error:
            told.append(str(error))
    return told


def test_what_cannot_be_compiled_is_told(tmp_path):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        no_compiler, no_layers = pool.apply(complaints, (str(tmp_path),))
    assert re.match(
        r"the layers cannot be compiled \(.*a C\+\+ compiler is needed.*set training.compile: false", no_compiler
    )
    assert no_layers == "models of type 'gpt_neo' have no layers that can be compiled: set training.compile: false"
