"""Compiled layers (torch.compile): which kernels a step runs follows from the config and its batch's shape alone.

A resumed run must end in the very weights of an undisturbed one, so no kernel may depend on the batch that happened to
come first. Hence all are made from the same made-up batches, whose lengths are constants, before the first step. They
fit other shapes too; a batch that none of them fits goes through the layers as they are.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from rayloom.artifacts import cache_root
from rayloom.data import EncodedDataset, Example, MicroBatch, Packing
from rayloom.errors import TrainingError
from rayloom.training import distributed
from rayloom.training.backends import Backend
from rayloom.training.batches import Batch, to_device
from rayloom.training.job import Job
from rayloom.training.records import Reporter

_CACHE = "TORCHINDUCTOR_CACHE_DIR"
_LENGTH = 61
"""Tokens of a made-up sequence: a prime, so that kernels do not take lengths for multiples of something."""
_SHAPES = ((0.6, 0.3, 1, 1), (1, 1, 1), (0.6, 0.3), (1,))
"""Rows of made-up batches, in parts of that: one and more sequences, packed of several rows or not, padded or not."""
_FULL = ((0.5, 0.5, 1), (1, 1), (0.5, 0.5), (1,))
"""The same for sequences of as many tokens as the model takes, which its code may treat in another way."""
_PER_TARGET = 3
"""Input tokens per target token of made-up rows of encoder-decoders."""
_VARIANTS = 64
"""Kernels per kind of layer, as layers differ too: local and global attention, whether their input needs a gradient."""


@contextlib.contextmanager
def compiled_layers(job: Job, backend: Backend, reporter: Reporter) -> Iterator[None]:
    """Let the model's layers be compiled inside, if ``training.compile`` says so. Validation runs them as they are.

    Args:
        job: What is trained on.
        backend: Has the model; `enable_packing` has seen it.
        reporter: Is told what is going on, for it takes up to some minutes on a machine's first time.

    Raises:
        TrainingError: The layers cannot be compiled here.
    """
    if not job.config.training.compile:
        yield
        return
    layers = _layers(backend)
    start = time.perf_counter()
    _tell(reporter, "compiling the layers: up to some minutes, unless they are in the cache")
    reorder_kernels: Callable[[bool], None] = vars(torch._C._dynamo.eval_frame)["_set_lru_cache"]
    reorder_kernels(False)  # where two kernels fit a shape, the first one is taken, not the one used last
    try:
        with torch._dynamo.config.patch(recompile_limit=_VARIANTS):
            _compile(job, backend, layers)
            _tell(reporter, f"compiled the layers in {time.perf_counter() - start:.0f} s")
            with torch.compiler.set_stance("eager_on_recompile"):
                yield
    finally:
        reorder_kernels(True)
        for layer in layers:
            layer._compiled_call_impl = None


def _layers(backend: Backend) -> list[nn.Module]:
    layers: list[nn.Module] = [
        part for part in backend.module.modules() if isinstance(part, GradientCheckpointingLayer)
    ]
    if not layers:
        kind = backend.module.hf_config.model_type
        raise TrainingError(f"models of type '{kind}' have no layers that can be compiled: set training.compile: false")
    return layers


def _compile(job: Job, backend: Backend, layers: list[nn.Module]) -> None:
    for layer in layers:
        layer.compile(dynamic=True)
    module, trained = backend.module, [p for p in backend.module.parameters() if p.requires_grad]
    was_training = module.training
    module.train()
    devices = [backend.device] if backend.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), _own_cache():
            for batch in _made_up(job, backend):
                with backend.autocast():
                    loss = module(**batch)
                torch.autograd.grad(loss, trained, allow_unused=True)  # of no use; leaves parameters' own as they are
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TrainingError(
            f"the layers cannot be compiled ({reason}); a C++ compiler is needed (g++). Or set training.compile: false"
        ) from error
    finally:
        module.train(was_training)


def _made_up(job: Job, backend: Backend) -> Iterator[Batch]:
    """Batches of all kinds that training has, of constant shapes."""
    module, limit = backend.module, getattr(backend.module.hf_config, "max_position_embeddings", None)
    longest = max(int(job.lengths.max()), job.config.training.packing_length or 0)
    kinds = [(min(_LENGTH, limit or _LENGTH), _SHAPES)] + ([(limit, _FULL)] if longest == limit else [])
    for width, shapes in kinds:
        for shares in shapes:
            sizes = [max(1, int(share * width)) for share in shares]
            rows = EncodedDataset.from_examples(
                [_row(size, seq2seq=module.seq2seq) for size in sizes], seq2seq=module.seq2seq
            )
            packing = module.packing and Packing(width, flat=module.packing.flat)
            micro = MicroBatch(tuple(range(len(rows))))
            yield to_device(rows, micro, pad_token_id=job.pad_token_id, device=backend.device, packing=packing)


def _row(length: int, *, seq2seq: bool) -> Example:
    return Example([1] * length, [1] * (max(2, length // _PER_TARGET) if seq2seq else length))


@contextlib.contextmanager
def _own_cache() -> Iterator[None]:
    """Keep code where only Rayloom's is: torch would take kernels that another program made from other shapes."""
    before = os.environ.get(_CACHE)
    os.environ[_CACHE] = str(cache_root() / "compiled")
    try:
        yield
    finally:
        os.environ.pop(_CACHE)
        if before is not None:
            os.environ[_CACHE] = before


def _tell(reporter: Reporter, text: str) -> None:
    if distributed.rank() == 0:
        reporter.note(text)
