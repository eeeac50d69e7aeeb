"""Micro-batches that are made while the device computes."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import torch

from rayloom.data import GlobalBatch, MicroBatch, Packing
from rayloom.training import distributed
from rayloom.training.batches import Batch, moved, to_tensors
from rayloom.training.job import Job

AHEAD = 2
"""Micro-batches that wait at most."""


class Feeder:
    """Turns rows into tensors in a thread, a few micro-batches ahead; use as a context.

    Which rows, and in which order, is the plan's to say, and making tensors draws no random number: what the loop gets
    does not depend on the thread.

    Args:
        job: The train rows.
        device: Where batches go.
        packing: How rows share sequences.
    """

    def __init__(self, job: Job, device: torch.device, packing: Packing | None) -> None:
        self._job, self._device, self._packing = job, device, packing
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="micro-batches")
        self._waiting: deque[Future[Batch]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def steps(self, plan: Sequence[GlobalBatch]) -> Iterator[tuple[GlobalBatch, Iterator[Batch]]]:
        """Each global batch with this rank's micro-batches of it on the device, which must all be taken.

        Raises:
            RayloomError: A row cannot be read; as the rows raise it.
        """
        rank = distributed.rank()
        # A lazy plan makes a batch each time that it is asked for it.
        due, ahead = itertools.tee(plan)
        batches = self._batches(micro for batch in ahead for micro in batch.micro[rank])
        for batch in due:
            yield batch, itertools.islice(batches, len(batch.micro[rank]))

    def _batches(self, micros: Iterable[MicroBatch]) -> Iterator[Batch]:
        for micro in micros:
            self._waiting.append(self._pool.submit(self._made, micro))
            if len(self._waiting) > AHEAD:
                yield moved(self._waiting.popleft().result(), self._device)
        while self._waiting:
            yield moved(self._waiting.popleft().result(), self._device)

    def _made(self, micro: MicroBatch) -> Batch:
        batch = to_tensors(self._job.train, micro, pad_token_id=self._job.pad_token_id, packing=self._packing)
        if self._device.type != "cuda":
            return batch
        # From pinned memory a batch moves while the device computes.
        return {name: tensor.pin_memory() for name, tensor in batch.items()}
