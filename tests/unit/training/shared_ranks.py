"""Cases of `test_shared_mean`, run by several processes: each function is called on every rank."""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from rayloom.training import Job, PlainBackend, TokenLoss, backends, distributed, shared_mean, train
from tests.fakes import KeptReports, random_examples, run_config, tiny_model

SHARED_BYTES = (1 << 16) + 4096
"""Chunks of so few elements that every gradient is cut."""


def enter(rank: int, world: int, folder: str, case: str) -> None:
    """A rank's process."""
    torch.set_num_threads(1)
    shared_mean._FOLDER, shared_mean._BYTES = Path(folder, "memory"), SHARED_BYTES
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    try:
        globals()[case](Path(folder))
    finally:
        dist.destroy_process_group()


def parameters(seed: int) -> nn.ParameterList:
    """Of random shapes: none, one and many elements, and a transposed one."""
    source = random.Random(seed)
    shapes = [(), (1,), (0, 3), (source.randint(1, 40), source.randint(1, 40)), (source.randint(200, 3000),), (7, 11)]
    made = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for shape in shapes]
    made.append(torch.randn((5, 9), generator=torch.Generator().manual_seed(seed)).t())
    return nn.ParameterList([nn.Parameter(each) for each in made])


def gradients(seed: int, rank: int, made: nn.ParameterList) -> list[torch.Tensor | None]:
    """A rank's; the second parameter has one on rank 0 only, the fourth nowhere."""
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    drawn: list[torch.Tensor | None] = [torch.randn(each.shape, generator=generator) for each in made]
    drawn[3] = None
    if rank:
        drawn[1] = None
    return drawn


def mean_of(parts: list[torch.Tensor | None], like: torch.Tensor) -> torch.Tensor | None:
    """Sums in the order of ranks, plainly written."""
    if all(part is None for part in parts):
        return None
    total = torch.zeros_like(like)
    for part in parts:
        total = total + (torch.zeros_like(like) if part is None else part)
    return total / len(parts)


def means(folder: Path) -> None:
    """Several steps, each as plainly written sums have it, to the bit."""
    for seed in range(6):
        made = parameters(seed)
        with torch.no_grad():
            for each in made:
                each.add_(dist.get_rank())
        mean = shared_mean.shared_mean(made)
        assert mean is not None
        assert list(Path(folder, "memory").iterdir()) == []
        assert all(torch.equal(each, value) for each, value in zip(made, parameters(seed), strict=True))
        for step in range(4):
            ranks = [gradients(seed + 10 * step, rank, made) for rank in range(dist.get_world_size())]
            take(made, ranks[dist.get_rank()])
            mean.average()
            for place, (each, parts) in enumerate(zip(made, zip(*ranks, strict=True), strict=True)):
                wanted = mean_of(list(parts), each)
                same = each.grad is None if wanted is None else torch.equal(each.grad, wanted)
                assert same, (seed, step, place, each.grad, wanted)


def take(made: nn.ParameterList, values: list[torch.Tensor | None]) -> None:
    """Put gradients in their places."""
    for each, value in zip(made, values, strict=True):
        each.grad = None if value is None else value.clone()


def trains_as_with_ddp(folder: Path) -> None:
    """Losses and weights of a run, to the bit."""
    ends = []
    kept = backends.shared_mean
    for replaced in (kept, lambda module: None):
        backends.shared_mean = replaced
        settings = {"batch_size": 2, "gradient_accumulation_steps": 2, "num_epochs": 2, "logging_steps": 1}
        config = run_config(training=settings | {"learning_rate": 1e-2}, distributed={"num_workers": 2})
        rows = [random_examples(count, seq2seq=True, seed=count) for count in (24, 4)]
        backend = PlainBackend(TokenLoss(tiny_model("t5"), seq2seq=True), config, torch.device("cpu"))
        assert (backend._shared is None) == (replaced is not kept)
        reports = KeptReports(folder / f"reports-{len(ends)}-{dist.get_rank()}")
        train(Job(config=config, train=rows[0], validation=rows[1], pad_token_id=0), backend, reports)
        ends.append(([each.loss for each in reports.steps], list(backend.module.parameters())))
    backends.shared_mean = kept
    (losses, weights), (ddp_losses, ddp_weights) = ends
    if dist.get_rank() == 0:
        assert len(losses) > 4
        assert losses == ddp_losses
    assert all(torch.equal(mine, other) for mine, other in zip(weights, ddp_weights, strict=True))


def apart(folder: Path) -> None:
    """One rank does not see the others' memory: then none uses it."""
    if dist.get_rank() == 1:
        shared_mean._FOLDER = folder / "elsewhere"
    assert shared_mean.shared_mean(nn.Linear(2, 2)) is None
    dist.barrier()
    assert list(Path(folder, "memory").iterdir()) == []


def without_memory(folder: Path) -> None:
    """There is none at all, or weights of another kind."""
    assert shared_mean.shared_mean(nn.Linear(2, 2, dtype=torch.bfloat16)) is None
    shared_mean._FOLDER = folder / "elsewhere"
    assert shared_mean.shared_mean(nn.Linear(2, 2)) is None
    assert distributed.gather_objects(1) == [1] * dist.get_world_size()
