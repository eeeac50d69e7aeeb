"""How a peer talks with the benchmark: JSON lines over pipes. Standard library only: every environment runs it.

A peer's script hands `serve` a function that opens its model. The first line that arrives is `Settings`; the reply is
``{"ready": {library: version}}`` or ``{"error": reason}``. Every further line is ``{"requests", "batch", "by_length"}``
(see `timed`), answered by ``{"seconds", "answers", "stats"}`` or ``{"error"}``. Whatever libraries print goes to
standard error.

All peers get token ids and give token ids. Lengths are forced: an end-of-sequence token is a token like others.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Settings:
    """What a peer is to open.

    Attributes:
        model: Folder of a transformers model and its tokenizer.
        precision: "fp32", "bf16" or "int8", of weights; activations as the peer does it best at that.
        threads: Compute threads. The process is pinned to as many cores.
        exports: Folder for what the peer makes of the model; kept between runs.
        options: The peer's own.
    """

    model: str
    precision: str
    threads: int
    exports: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """One prompt.

    Attributes:
        prompt: Token ids: of the encoder for seq2seq models, of the sequence for causal ones.
        new_tokens: How many to generate: exactly, unless a constraint ends the answer earlier.
        num_beams: Width of the search; 1 is greedy.
        adapter: Folder of the LoRA adapter to answer with.
        constraint: ``{"regex": ...}`` or ``{"json_schema": ...}`` that the answer obeys.
    """

    prompt: list[int]
    new_tokens: int
    num_beams: int = 1
    adapter: str | None = None
    constraint: dict[str, Any] | None = None


@dataclass(frozen=True)
class Answer:
    """Generated token ids, and when the last one was there: seconds since the requests came."""

    tokens: list[int]
    seconds: float


class Peer(Protocol):
    """An opened model."""

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """All requests' answers, in order."""
        ...


def serve(open_peer: Callable[[Settings], Peer], *, libraries: Sequence[str]) -> None:
    """Answer workloads until the pipe closes.

    Args:
        open_peer: Imports what it needs when it is called: by then threads are pinned.
        libraries: Distributions whose versions are reported.
    """
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _die_with_parent()
    settings = Settings(**json.loads(sys.stdin.readline()))
    # As many cores as threads, the last ones: an engine's helper threads share them, whatever library they are of.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-settings.threads :])
    for reply in _replies(open_peer, settings, libraries):
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
    os._exit(0)  # some engines leave threads behind that would keep the process


def _replies(
    open_peer: Callable[[Settings], Peer], settings: Settings, libraries: Sequence[str]
) -> Iterator[dict[str, Any]]:
    try:
        peer = open_peer(settings)
    except Exception as error:  # whatever keeps a peer from running is what the table shows
        yield {"error": _reason(error)}
        return
    yield {"ready": {name: importlib.metadata.version(name) for name in libraries}}
    for line in sys.stdin:
        message = json.loads(line)
        requests = [Request(**request) for request in message["requests"]]
        try:
            yield timed(peer, requests, batch=message["batch"], by_length=message["by_length"])
        except Exception as error:  # as above
            yield {"error": _reason(error)}


def timed(peer: Peer, requests: Sequence[Request], *, batch: int | None, by_length: bool) -> dict[str, Any]:
    """Answer requests in the batches that were asked for.

    Args:
        peer: That answers.
        requests: All of them are there at the start.
        batch: Static batches of so many in order of arrival; 1 for one at a time, None for all at once.
        by_length: Let static batches hold prompts of like length instead.

    Returns:
        What a reply line holds; a static batch's answers are there when all of it is done.
    """
    order = list(range(len(requests)))
    if by_length:
        order.sort(key=lambda place: len(requests[place].prompt))
    answers: dict[int, Answer] = {}
    start = time.perf_counter()
    for places in _batches(order, batch):
        waited = time.perf_counter() - start
        given = peer.answer([requests[place] for place in places])
        done = time.perf_counter() - start
        for place, answer in zip(places, given, strict=True):
            answers[place] = Answer(answer.tokens, done if batch else waited + answer.seconds)
    seconds = time.perf_counter() - start
    rows = [asdict(answers[place]) for place in range(len(requests))]
    return {"seconds": seconds, "answers": rows, "stats": dict(getattr(peer, "stats", {}))}


def export_folder(settings: Settings, name: str, build: Callable[[str], None]) -> str:
    """A folder made of the model once: ``build`` fills a temporary one, which takes the name when it is whole."""
    folder = os.path.join(settings.exports, name)
    if not os.path.isdir(folder):
        partial = f"{folder}.partial-{os.getpid()}"
        os.makedirs(settings.exports, exist_ok=True)
        build(partial)
        os.rename(partial, folder)
    return folder


def _die_with_parent() -> None:
    """A process that is stopped does not notice that its pipe has closed."""
    pdeathsig = 1
    ctypes.CDLL(None).prctl(pdeathsig, signal.SIGKILL)


def run_tool(command: Sequence[str]) -> None:
    """Run a peer's converter.

    Raises:
        RuntimeError: It failed; says the last line that it wrote.
    """
    done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False)
    sys.stderr.write(done.stderr)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise RuntimeError(f"{os.path.basename(command[0])}: {last[0]}")


def _batches(order: Sequence[int], size: int | None) -> Iterable[Sequence[int]]:
    size = size or len(order)
    return (order[start : start + size] for start in range(0, len(order), size))


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}".rstrip(": ")
