"""Cases of `test_shared_update`, run by several processes: each function is called on every rank."""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import AdamW

from rayloom.data import MicroBatch
from rayloom.training import (
    Job,
    PlainBackend,
    TokenLoss,
    backends,
    copies,
    distributed,
    shared_memory,
    shared_update,
    train,
)
from rayloom.training.batches import to_device
from tests.fakes import KeptReports, random_examples, run_config, tiny_model

CPU = torch.device("cpu")
MOMENTS = ("exp_avg", "exp_avg_sq")
NOWHERE, FIRST_ONLY = 3, 1
"""Parameters of `parameters` that have a gradient on no rank, or on the first one only, in odd steps."""


def enter(rank: int, world: int, folder: str, case: str) -> None:
    """A rank's process."""
    torch.set_num_threads(1)
    shared_update._CHUNK = 64  # every gradient is cut
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    try:
        globals()[case](Path(folder))
    finally:
        dist.destroy_process_group()


def parameters(seed: int, *, dense: bool = False) -> nn.ParameterList:
    """Of random shapes: none, one and many elements, and a transposed one.

    An update's vectors and their ends follow the layout, and round differently: the oracle's layout is dense, as the
    shared one is.
    """
    source = random.Random(seed)
    shapes = [(), (1,), (0, 3), (source.randint(1, 40), source.randint(1, 40)), (source.randint(200, 3000),), (7, 11)]
    made = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for shape in shapes]
    made.append(torch.randn((5, 9), generator=torch.Generator().manual_seed(seed)).t())
    return nn.ParameterList([nn.Parameter(each.contiguous() if dense else each) for each in made])


def adamw(made: nn.ParameterList) -> AdamW:
    """Two groups, in another order than the module's."""
    vectors, matrices = ([p for p in made if (p.ndim >= 2) is wanted] for wanted in (False, True))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return AdamW(groups, lr=0.5, fused=True)


def shared(made: nn.ParameterList) -> tuple[AdamW, shared_update.SharedUpdate]:
    """An optimizer and what steps in its stead."""
    optimizer = adamw(made)
    update = shared_update.shared_update(made, optimizer)
    assert update is not None
    return optimizer, update


def gradients(seed: int, rank: int, made: nn.ParameterList, *, odd: bool) -> list[torch.Tensor | None]:
    """A rank's of one micro-batch."""
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    drawn: list[torch.Tensor | None] = [torch.randn(each.shape, generator=generator) for each in made]
    if odd:
        drawn[NOWHERE] = None
        if rank:
            drawn[FIRST_ONLY] = None
    return drawn


def go_back(made: nn.ParameterList, micros: list[list[torch.Tensor | None]]) -> None:
    """Backward passes that make these gradients."""
    for micro in micros:
        loss = sum((p * gradient).sum() for p, gradient in zip(made, micro, strict=True) if gradient is not None)
        loss.backward()


def plain_step(made: nn.ParameterList, optimizer: AdamW, ranks: list[Any], limit: float) -> torch.Tensor:
    """The same with sums in the order of ranks, plainly written; the gradients' norm."""
    for index, parameter in enumerate(made):
        parts = [[micro[index] for micro in micros if micro[index] is not None] for micros in ranks]
        total = torch.zeros_like(parameter)
        for part in parts:
            total = total + (sum(part[1:], part[0]) if part else torch.zeros_like(parameter))
        parameter.grad = total / len(ranks) if any(parts) else None
    norm = nn.utils.clip_grad_norm_(made, limit)
    optimizer.step()
    return norm


def check_equal(mine: tuple[nn.ParameterList, AdamW], other: tuple[nn.ParameterList, AdamW], *, exact: bool) -> None:
    """Weights and moments are those of another model."""
    tolerance = {"rtol": 0.0, "atol": 0.0} if exact else {"rtol": 1e-5, "atol": 1e-7}
    for index, (each, wanted) in enumerate(zip(mine[0], other[0], strict=True)):
        torch.testing.assert_close(each, wanted, **tolerance, msg=lambda text, i=index: f"parameter {i}: {text}")
        state, its = mine[1].state[each], other[1].state[wanted]
        assert float(state["step"]) == float(its.get("step", 0.0)), index
        for name in MOMENTS:
            torch.testing.assert_close(state[name], its.get(name, torch.zeros_like(wanted)), **tolerance)


def steps(
    mine: tuple[nn.ParameterList, AdamW, shared_update.SharedUpdate],
    other: tuple[nn.ParameterList, AdamW],
    numbers: range,
    limit: float,
) -> None:
    """Steps of two micro-batches on both."""
    for number in numbers:
        ranks = [
            [gradients(10 * number + micro, rank, mine[0], odd=number % 2 == 1) for micro in range(2)]
            for rank in range(dist.get_world_size())
        ]
        rate = 0.1 / (1 + number)
        go_back(mine[0], ranks[dist.get_rank()])
        assert all(each.grad is None for each in mine[0])
        norm = mine[2].update(rate, max_norm=limit, skip_non_finite=False)
        for group in other[1].param_groups:
            group["lr"] = rate
        torch.testing.assert_close(norm, plain_step(*other, ranks, limit), rtol=1e-6, atol=0.0)
        check_equal(mine[:2], other, exact=limit == float("inf"))


def updates(folder: Path) -> None:
    """Several steps: without clipping to the bit, with it as near as sums of squares in another order are."""
    for seed in range(4):
        made = parameters(seed)
        with torch.no_grad():
            for each in made:
                each.add_(dist.get_rank())
        plain = parameters(seed, dense=True)
        mine = (made, *shared(made))
        assert all(torch.equal(each, value) for each, value in zip(made, plain, strict=True))
        steps(mine, (plain, adamw(plain)), range(5), limit=float("inf") if seed % 2 else 1.0)


def goes_on_from_a_state(folder: Path) -> None:
    """A plain optimizer's state is taken over, and gives back the same one."""
    limit = float("inf")
    made, plain = parameters(1), parameters(1, dense=True)
    mine, other = (made, *shared(made)), (plain, adamw(plain))
    steps(mine, other, range(3), limit)
    fresh = parameters(1)
    again = (fresh, *shared(fresh))
    steps(again, _pair(1), range(8, 9), limit)  # a state to be overwritten
    dist.barrier()
    with torch.no_grad():
        for each, value in zip(fresh, plain, strict=True):
            each.copy_(value)
    again[1].load_state_dict(copy.deepcopy(other[1].state_dict()))
    again[2].adopt()
    check_equal(again[:2], other, exact=True)
    steps(again, other, range(3, 6), limit)
    third = parameters(1)
    optimizer = adamw(third)
    optimizer.load_state_dict(copy.deepcopy(again[1].state_dict()))
    with torch.no_grad():
        for each, value in zip(third, fresh, strict=True):
            each.copy_(value)
    check_equal((third, optimizer), other, exact=True)
    dist.barrier()


def _pair(seed: int) -> tuple[nn.ParameterList, AdamW]:
    made = parameters(seed, dense=True)
    return made, adamw(made)


def skips_what_is_not_finite(folder: Path) -> None:
    """One rank's gradient is infinite: no rank's weights move; with the policy to go on, all hear of it."""
    made = parameters(4)
    _, update = shared(made)
    before = [each.detach().clone() for each in made]
    micro = gradients(0, dist.get_rank(), made, odd=False)
    if dist.get_rank() == 1 and micro[4] is not None:
        micro[4][-1] = float("inf")
    go_back(made, [micro])
    assert update.update(0.1, max_norm=1.0, skip_non_finite=True) == float("inf")
    assert all(torch.equal(each, value) for each, value in zip(made, before, strict=True))
    go_back(made, [gradients(1, dist.get_rank(), made, odd=False)])
    assert torch.isfinite(update.update(0.1, max_norm=1.0, skip_non_finite=True))
    assert all(bool(torch.isfinite(each).all()) for each in made)
    assert not any(torch.equal(each, value) for each, value in zip(made, before, strict=True) if each.numel())
    go_back(made, [[None if each is None else each * float("nan") for each in micro]])
    assert not torch.isfinite(update.update(0.1, max_norm=1.0, skip_non_finite=False))
    assert all(bool(torch.isnan(each).all()) for each in made)


def trains_as_with_ddp(folder: Path) -> None:
    """Losses and weights of a run: to the bit where nothing is clipped."""
    for limit in (0.0, 0.5):
        shared_run, ddp_run = (one_run(folder / f"{limit}-{name}", name, limit) for name in ("shared", "ddp"))
        if dist.get_rank() == 0:
            assert len(shared_run[0]) > 4
            tolerance = {"rtol": 0.0 if not limit else 1e-5, "atol": 0.0}
            torch.testing.assert_close(torch.tensor(shared_run[0]), torch.tensor(ddp_run[0]), **tolerance)
        for mine, other in zip(shared_run[1], ddp_run[1], strict=True):
            torch.testing.assert_close(mine, other, rtol=0.0 if not limit else 1e-4, atol=0.0 if not limit else 1e-6)


def saves_and_loads(folder: Path) -> None:
    """What one kind of backend saved, the other goes on from, and so does the same kind: to the bit, from small copies
    and from the tensors themselves."""
    for small in (1 << 30, 0):
        copies._SMALL_BYTES = small
        for writer, reader in (("shared", "ddp"), ("ddp", "shared"), ("shared", "shared")):
            place = folder / f"{small}-{writer}-{reader}"
            place.mkdir(exist_ok=True)
            one, two = backend_of(writer), backend_of(reader)
            for number in range(3):
                backend_step(one, number)
            for write in one.save(place):
                write(place)
            dist.barrier()
            backend_step(two, 7)  # what it holds is overwritten
            two.load(place)
            for number in range(3, 6):
                (loss, norm), (its, its_norm) = backend_step(one, number), backend_step(two, number)
                assert loss == its, (small, writer, reader, number)
                assert math.isclose(norm, its_norm, rel_tol=1e-6)
            for mine, other in zip(one.module.parameters(), two.module.parameters(), strict=True):
                assert torch.equal(mine, other), (small, writer, reader)


def backend_step(backend: PlainBackend, number: int) -> tuple[float, float]:
    """A step on rows of its own per rank; its loss and norm."""
    rows = random_examples(2, seq2seq=True, seed=10 * number + dist.get_rank())
    micro = MicroBatch(rows=(0, 1), is_filler=False)
    batch = to_device(rows, micro, pad_token_id=0, device=CPU)
    loss = backend.backward(batch, scale=0.01, is_last=True)
    return float(loss), float(backend.update(1e-2))


def backend_of(name: str) -> PlainBackend:
    """Over a small T5 whose gradients are not clipped."""
    kept = backends.shared_update
    backends.shared_update = kept if name == "shared" else lambda *_: None
    config = run_config(training={"max_grad_norm": 0.0}, distributed={"num_workers": 2})
    backend = PlainBackend(TokenLoss(tiny_model("t5"), seq2seq=True), config, CPU)
    backends.shared_update = kept
    assert (backend._shared is None) == (name == "ddp")
    return backend


def one_run(folder: Path, name: str, limit: float) -> tuple[list[float], list[nn.Parameter]]:
    """Losses and weights of a T5's run."""
    kept = backends.shared_update
    backends.shared_update = kept if name == "shared" else lambda *_: None
    settings = {"batch_size": 2, "gradient_accumulation_steps": 2, "num_epochs": 2, "logging_steps": 1}
    settings |= {"learning_rate": 1e-2, "max_grad_norm": limit}
    config = run_config(training=settings, distributed={"num_workers": 2})
    rows = [random_examples(count, seq2seq=True, seed=count) for count in (24, 4)]
    backend = PlainBackend(TokenLoss(tiny_model("t5"), seq2seq=True), config, CPU)
    backends.shared_update = kept
    assert (backend._shared is None) == (name == "ddp")
    folder.mkdir(exist_ok=True)
    reports = KeptReports(folder / f"reports-{dist.get_rank()}")
    train(Job(config=config, train=rows[0], validation=rows[1], pad_token_id=0), backend, reports)
    return [each.loss for each in reports.steps], list(backend.module.parameters())


def apart(folder: Path) -> None:
    """One rank does not see the others' memory, or another process has that number: then none uses it."""
    kept = shared_memory.os.readlink
    for stranger in ("/memfd:somebody-else (deleted)", None):
        if dist.get_rank() == 1:
            shared_memory.os.readlink = _saying(stranger)
        assert made_for(nn.Linear(2, 2)) is None
        shared_memory.os.readlink = kept
        dist.barrier()


def _saying(name: str | None) -> Any:
    def readlink(path: str) -> str:
        if name is None:
            raise FileNotFoundError(path)
        return name

    return readlink


def without_memory(folder: Path) -> None:
    """There is none at all, or weights of another kind."""
    assert made_for(nn.Linear(2, 2, dtype=torch.bfloat16)) is None
    kept = shared_memory.os.memfd_create
    del shared_memory.os.memfd_create
    assert made_for(nn.Linear(2, 2)) is None
    shared_memory.os.memfd_create = kept
    assert made_for(nn.Linear(2, 2)) is not None
    assert distributed.gather_objects(1) == [1] * dist.get_world_size()


def made_for(module: nn.Module) -> shared_update.SharedUpdate | None:
    """What updates a module."""
    return shared_update.shared_update(module, AdamW(module.parameters(), fused=True))
