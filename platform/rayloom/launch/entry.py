"""Ray's ways into a worker.

Ray's controller imports the module of the training function too, so this one is light and leaves the rest to
the workers.
"""

from __future__ import annotations

from typing import Any

import ray

from rayloom.errors import RayloomError


def train_worker(settings: dict[Any, Any]) -> dict[str, Any]:
    """``train_loop_per_worker``: fetch the payload and train. Returns what `rayloom.launch.worker.work` does.

    Args:
        settings: ``payload``: ObjectRef of a `rayloom.launch.worker.Payload`.
    """
    from rayloom.launch.worker import work

    return work(ray.get(settings["payload"]))


@ray.remote(num_cpus=1)
def do_piece(work: Any, piece: Any) -> Any:
    """A task that does a piece of work on data: imports what the work needs, and none of training.

    Args:
        work: Called with the piece; can be pickled.
        piece: Can be pickled.

    Returns:
        What the work does, or the `RayloomError` that it raised: Ray prints a raised one that nobody asks for, as
        happens where several pieces have errors and the first ends the run.
    """
    try:
        return work(piece)
    except RayloomError as error:
        return error
