"""Sides of the engine benchmark: processes that take turns, and what they answered.

Each side is a process of its own that keeps its model between rounds; the one whose turn it is not is stopped, so
that nothing spins beside the one that is measured.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from peers.protocol import Request, Settings
from peers.setup import ROOT, absence, python_of
from workloads import Model, sample

SCRIPTS = Path(__file__).resolve().parent / "peers"
ENGINE, TRANSFORMERS = "rayloom", "transformers"
_OWN_ENVIRONMENT = (ENGINE, TRANSFORMERS)
"""Run by the project's interpreter: its transformers is the peer."""
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "DS_ACCELERATOR": "cpu"}
_WARM_UP = (4, 4)
"""Requests, and tokens of each, before the first turn."""


@dataclass(frozen=True)
class Contender:
    """One line of a table.

    Attributes:
        name: For people.
        peer: Whose script.
        precision: "fp32", "bf16" or "int8".
        batch: Static batches of so many; None where the side batches by itself.
        requests: How many of the workload's it gets, if not all: those too slow for the rest.
        by_length: Let static batches hold prompts of like length.
        options: The peer's own.
    """

    name: str
    peer: str
    precision: str = "fp32"
    batch: int | None = None
    requests: int | None = None
    by_length: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def process_key(self) -> str:
        """Equal for those whom one process can answer for."""
        return json.dumps([self.peer, self.precision, dict(self.options)], sort_keys=True)

    @property
    def is_engine(self) -> bool:
        """Whether this is Rayloom's."""
        return self.peer == ENGINE


@dataclass(frozen=True)
class Turn:
    """One run of one side.

    Attributes:
        seconds: From the requests' arrival to the last answer.
        tokens: Generated tokens of each answer, by the request's place in the workload.
        latencies: Seconds until each answer was there, likewise.
        prompt_tokens: Of the requests that it answered.
        stats: What the side says of itself.
    """

    seconds: float
    tokens: dict[int, list[int]]
    latencies: dict[int, float]
    prompt_tokens: int
    stats: dict[str, float]

    @property
    def new_tokens(self) -> int:
        """Generated tokens of all answers."""
        return sum(len(tokens) for tokens in self.tokens.values())

    @property
    def speed(self) -> float:
        """Generated tokens per second."""
        return self.new_tokens / self.seconds


@dataclass
class Side:
    """A contender's turns, or why there are none."""

    contender: Contender
    turns: list[Turn] = field(default_factory=list)
    absent: str | None = None
    libraries: dict[str, str] = field(default_factory=dict)

    @property
    def speed(self) -> float:
        """Median of generated tokens per second."""
        return statistics.median(turn.speed for turn in self.turns)

    def ratio(self, other: Side) -> float | None:
        """Median over rounds of how many times the other's speed this one has."""
        pairs = [mine.speed / theirs.speed for mine, theirs in zip(self.turns, other.turns, strict=False)]
        return statistics.median(pairs) if pairs else None


def take_turns(
    model: Model, contenders: Sequence[Contender], requests: Sequence[Request], *, threads: int, rounds: int
) -> list[Side]:
    """Open all sides, then let them answer one after another, in every other round backwards."""
    sides = [Side(contender) for contender in contenders]
    processes: dict[str, Process] = {}
    with ExitStack() as stack:
        for side in sides:
            key = side.contender.process_key
            if key not in processes:
                processes[key] = stack.enter_context(opening(side.contender, model, threads))
            side.absent, side.libraries = processes[key].absent, processes[key].libraries
        for number in range(rounds):
            for side in sides[:: -1 if number % 2 else 1]:
                if side.absent is None:
                    answer(side, processes[side.contender.process_key], requests)
    return sides


def answer(side: Side, process: Process, requests: Sequence[Request]) -> None:
    """One turn; a side that fails is out from then on."""
    places = sample(requests, side.contender.requests or len(requests))
    mine = [requests[place] for place in places]
    tell(f"{side.contender.name}: answering")
    reply = process.ask(mine, batch=side.contender.batch, by_length=side.contender.by_length)
    tell("")
    if "error" in reply:
        side.absent, side.turns = f"failed: {reply['error']}", []
        return
    side.turns.append(
        Turn(
            seconds=reply["seconds"],
            tokens={place: row["tokens"] for place, row in zip(places, reply["answers"], strict=True)},
            latencies={place: row["seconds"] for place, row in zip(places, reply["answers"], strict=True)},
            prompt_tokens=sum(len(request.prompt) for request in mine),
            stats=reply["stats"],
        )
    )


def tell(what: str) -> None:
    """What is going on, for whoever waits at a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{what}")
        sys.stderr.flush()


@contextmanager
def opening(contender: Contender, model: Model, threads: int) -> Iterator[Process]:
    """A side's process, with its model loaded and warm unless it is absent."""
    settings = Settings(
        model=str(model.folder),
        precision=contender.precision,
        threads=threads,
        exports=str(exports_of(model)),
        options={"seq2seq": model.seq2seq, **contender.options},
    )
    tell(f"{contender.name}: opening")
    process = Process(contender.peer, settings)
    try:
        process.open()
        tell("")
        yield process
    finally:
        process.close()


def exports_of(model: Model) -> Path:
    """Where peers keep what they make of a model; another folder where its weights are others."""
    weights = model.folder / "model.safetensors"
    state = f"{weights.resolve()} {weights.stat().st_size} {weights.stat().st_mtime_ns}"
    return ROOT / "exports" / hashlib.sha256(state.encode()).hexdigest()[:16]


class Process:
    """A peer's script, stopped whenever it is not asked.

    Args:
        peer: Whose script.
        settings: Its first line.

    Attributes:
        absent: Why it cannot be asked, if so.
        libraries: Versions that it reports.
        log: What it writes to standard error.
    """

    def __init__(self, peer: str, settings: Settings) -> None:
        self.peer, self.settings = peer, settings
        self.absent = None if peer in _OWN_ENVIRONMENT else absence(peer)
        self.libraries: dict[str, str] = {}
        self.log = ROOT / "logs" / f"{peer}-{settings.precision}.log"
        self._process: subprocess.Popen[str] | None = None

    def open(self) -> None:
        """Start it, load its model, and let it answer a little; `absent` says if that went wrong."""
        if self.absent is not None:
            return
        self._process = self._started()
        hello = self._exchange(asdict(self.settings))
        self.absent, self.libraries = hello.get("error"), hello.get("ready", {})
        if self.absent is None:
            count, length = _WARM_UP
            requests = [Request(list(range(5, 5 + 3 * place)), length) for place in range(1, 1 + count)]
            self.absent = self.ask(requests).get("error")

    def ask(self, requests: Sequence[Request], *, batch: int | None = None, by_length: bool = False) -> dict[str, Any]:
        """Its reply to a workload."""
        rows = [asdict(request) for request in requests]
        return self._exchange({"requests": rows, "batch": batch, "by_length": by_length})

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def _started(self) -> subprocess.Popen[str]:
        python = sys.executable if self.peer in _OWN_ENVIRONMENT else str(python_of(self.peer))
        environment = {"OMP_NUM_THREADS": str(self.settings.threads), **_ENVIRONMENT}
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("w", encoding="utf-8") as errors:
            return subprocess.Popen(
                [python, str(SCRIPTS / f"run_{self.peer}.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | environment,
                start_new_session=True,  # an engine that fails may signal all of its group
            )

    def _exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.send_signal(signal.SIGCONT)
        try:
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            return {"error": f"its process ended ({_ending(process.wait())}), see {self.log}"}
        process.send_signal(signal.SIGSTOP)
        reply: dict[str, Any] = json.loads(line)
        return reply


def references(model: Model, requests: Sequence[Request]) -> list[list[int]]:
    """The fp32 answers that `generate` gives to each request alone.

    Kept on disk as they come: for 64 requests they take minutes.

    Raises:
        SystemExit: transformers does not answer.
    """
    folder = exports_of(model) / "generate-fp32"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{_digest(request)}.json" for request in requests]
    missing = [place for place, file in enumerate(files) if not file.exists()]
    if missing:
        side = Side(Contender("references (once)", TRANSFORMERS, batch=1))
        with opening(side.contender, model, threads=1) as process:
            for place in missing:
                side.absent = side.absent or process.absent
                if side.absent is None:
                    answer(side, process, [requests[place]])
                if side.absent is not None:
                    raise SystemExit(f"transformers' own answers cannot be had: {side.absent}")
                files[place].write_text(json.dumps(side.turns[-1].tokens[0]), encoding="utf-8")
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def _digest(request: Request) -> str:
    return hashlib.sha256(json.dumps(asdict(request)).encode()).hexdigest()[:24]


def _ending(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"
