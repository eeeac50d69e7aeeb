"""What a corpus larger than memory costs: tokenising, memory, and the way back into an epoch.

For each size a corpus of JSON Lines is made out of paragraphs of Pride and Prejudice, shuffled and numbered, and a tiny
GPT-Neo is trained on it (the model is small so that data are what is measured), as `rayloom train` does it:

* first run: the corpus is read, split and tokenised by Ray tasks; training starts, and is interrupted (SIGINT) once a
  checkpoint in the middle of the epoch is safe;
* second run, in a fresh process: `--resume`. Nothing is tokenised again. Its train worker's memory is what counts.

The same is done with a tiny corpus, whose figures are subtracted: what is left is what the corpus costs. Memory is
sampled several times a second from /proc: "anonymous" is what a process holds for itself (RssAnon), "resident" has in
addition the pages of files that it has mapped (RssAnon + RssFile + RssShmem); those of a corpus the system can take
back at any time.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from measure import DATA, print_machine, print_verdict
from rich.console import Console
from rich.table import Table

GIB, MIB = 1 << 30, 1 << 20
TINY_BYTES = 2 << 20
WORKER_TARGET_GIB = 1.0
RESUME_TARGET_S = 10.0
LINEAR_TARGET = 1.25
SAMPLE_S = 0.1
MODEL: dict[str, Any] = {
    "name": "tiny-gpt-neo",
    "task_type": "language-modeling",
    "random_init": {
        "family": "gpt_neo",
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 2,
        "max_positions": 512,
        "vocab_size": 8000,
    },
}
KINDS = {"do_piece": "tokenising task", "TrainWorker": "train worker", "bench_corpus": "driver"}
"""What a process is called, by a part of its command line."""


@dataclass
class Peaks:
    """Most memory of the processes of a run, by kind, in bytes: anonymous and resident."""

    anonymous: dict[str, int] = field(default_factory=dict)
    resident: dict[str, int] = field(default_factory=dict)

    def sample(self, root: psutil.Process) -> None:
        """Look at a process and all that it has started."""
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.Error, OSError, KeyError):
                line = " ".join(process.cmdline())
                kind = next((name for part, name in KINDS.items() if part in line), None)
                if kind is None:
                    continue
                memory = memory_of(process.pid)
                for peaks, value in ((self.anonymous, memory[0]), (self.resident, memory[1])):
                    peaks[kind] = max(peaks.get(kind, 0), value)


@dataclass(frozen=True)
class Figures:
    """What was measured on one corpus."""

    num_bytes: int
    first: dict[str, Any]
    second: dict[str, Any]
    first_peaks: Peaks
    second_peaks: Peaks


def main() -> None:
    options = parse()
    if options.child:
        child(json.loads(options.child))
        return
    console = Console(soft_wrap=True)
    os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    os.environ.pop("RAY_ADDRESS", None)
    print_machine(console, threads=1)
    with tempfile.TemporaryDirectory(prefix="rayloom-corpus-", dir=options.folder) as name:
        folder = Path(name)
        os.environ["RAYLOOM_CACHE"] = str(folder / "cache")
        sizes = [TINY_BYTES, *(int(float(size) * 1e9) for size in options.sizes.split(","))]
        measured = [measure(console, folder, size) for size in sizes]
    show(console, measured[0], measured[1:])


def measure(console: Console, folder: Path, size: int) -> Figures:
    """Both runs on a corpus of so many bytes."""
    path = folder / f"corpus-{size}.jsonl"
    start = time.perf_counter()
    rows = write_corpus(path, size)
    console.print(
        f"\n{size / 1e9:.3g} GB, {rows} rows: written in {time.perf_counter() - start:.0f} s", highlight=False
    )
    settings = {"corpus": str(path), "storage": str(folder / "runs"), "run": f"corpus-{size}"}
    first, first_peaks = run_child(settings | {"resume": False, "out": str(folder / "first.json")})
    for note in first["notes"]:
        console.print(f"  {note}", style="dim", highlight=False)
    second, second_peaks = run_child(settings | {"resume": True, "out": str(folder / "second.json")})
    for note in second["notes"]:
        console.print(f"  {note}", style="dim", highlight=False)
    path.unlink()
    return Figures(size, first, second, first_peaks, second_peaks)


def write_corpus(path: Path, size: int) -> int:
    """Rows of a few shuffled paragraphs each, none like another."""
    text = (DATA / "austen" / "train.txt").read_text(encoding="utf-8")
    paragraphs = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
    rng, count, left = random.Random(0), 0, size
    with path.open("w", encoding="utf-8", buffering=1 << 20) as file:
        while left > 0:
            words = "\n\n".join(rng.choices(paragraphs, k=rng.randint(2, 8)))
            left -= file.write(json.dumps({"text": f"{count}: {words}"}) + "\n")
            count += 1
    os.utime(path, (time.time() - 60,) * 2)  # as a corpus that was not written just now
    return count


def run_child(settings: dict[str, Any]) -> tuple[dict[str, Any], Peaks]:
    """A run in a process of its own, watched."""
    peaks = Peaks()
    command = [sys.executable, str(Path(__file__).resolve()), "--child", json.dumps(settings)]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        with sampled(process.pid, peaks):
            process.wait()
        out = Path(settings["out"])
        if not out.exists():
            output.seek(0)
            raise SystemExit(f"the run failed:\n{output.read()[-4000:]}")
    found = json.loads(out.read_text(encoding="utf-8"))
    out.unlink()
    return found, peaks


@contextlib.contextmanager
def sampled(pid: int, peaks: Peaks) -> Iterator[None]:
    """Sample a process and its children until the block ends."""
    stop, root = threading.Event(), psutil.Process(pid)

    def follow() -> None:
        while not stop.wait(SAMPLE_S):
            with contextlib.suppress(psutil.Error):
                peaks.sample(root)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def memory_of(pid: int) -> tuple[int, int]:
    """Anonymous and resident bytes of a process."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    parts = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines if line.startswith(("Rss", "VmRSS"))}
    return parts["RssAnon"], parts["VmRSS"]


def child(settings: dict[str, Any]) -> None:
    """One run, timed from the inside."""
    started = time.time() - psutil.Process().create_time()
    begin = time.perf_counter()
    from rayloom.config import RunConfig, validate
    from rayloom.launch import run_training, training
    from rayloom.launch.progress import Note
    from rayloom.training import StepRecord

    found: dict[str, Any] = {"notes": [], "finished": False}
    prepare = training.prepare

    def timed(*args: Any, **more: Any) -> Any:
        before = time.perf_counter()
        prepared = prepare(*args, **more)
        found["prepare_s"] = time.perf_counter() - before
        found["examples"], found["tokens"] = len(prepared.train), prepared.train.num_tokens
        return prepared

    def sink(event: object) -> None:
        now = started + time.perf_counter() - begin
        if isinstance(event, Note):
            found["notes"].append(f"{now:6.1f} s  {event.text}")
            if event.text.startswith("resumed"):
                found["resumed_s"] = now
            if event.text.startswith("saved step") and not settings["resume"]:
                os.kill(os.getpid(), signal.SIGINT)
        elif isinstance(event, StepRecord):
            found.setdefault("first_step_s", now)
            found["step"] = event.step

    training.prepare = timed
    config = validate(
        RunConfig,
        {
            "model": MODEL,
            "dataset": {
                "train_file": settings["corpus"],
                "streaming": True,
                "max_input_length": 256,
                "max_validation_rows": 50,
            },
            "training": {
                "batch_size": 8,
                "max_steps": 60,
                "logging_steps": 1,
                "checkpoint_every_steps": 20,
                "save_total_limit": 2,
            },
            "distributed": {"num_workers": 1, "backend": "plain", "use_gpu": False, "max_failures": 0},
            "output": {"storage_path": settings["storage"], "run_name": settings["run"]},
        },
    )
    try:
        outcome = run_training(config, sink=sink, announce=lambda *_: None, resume=settings["resume"])
        found |= {"finished": True, "peak_host_bytes": outcome.metrics["peak_host_bytes"]}
    except BaseException as error:
        interrupted = not settings["resume"] and "step" in found
        if not interrupted:
            raise
        found["notes"].append(f"interrupted: {type(error).__name__}")
    Path(settings["out"]).write_text(json.dumps(found), encoding="utf-8")


def show(console: Console, tiny: Figures, measured: list[Figures]) -> None:
    """The table, and the verdicts."""
    table = Table("", *(f"{one.num_bytes / 1e9:.3g} GB" for one in [tiny, *measured]))
    rows: dict[str, list[str]] = {
        "tokenised: examples": [f"{one.first['examples']}" for one in [tiny, *measured]],
        "tokens": [f"{one.first['tokens'] / 1e6:.1f} M" for one in [tiny, *measured]],
        "read, split, tokenise": [f"{one.first['prepare_s']:.1f} s" for one in [tiny, *measured]],
        "speed": [f"{one.num_bytes / 1e6 / one.first['prepare_s']:.1f} MB/s" for one in [tiny, *measured]],
    }
    for kind in ("driver", "tokenising task"):
        rows[f"first run, {kind}: resident"] = [mib(one.first_peaks.resident.get(kind)) for one in [tiny, *measured]]
    for what in ("anonymous", "resident"):
        peaks = [getattr(one.second_peaks, what).get("train worker") for one in [tiny, *measured]]
        rows[f"second run, train worker: {what}"] = [mib(peak) for peak in peaks]
    rows["second run: prepare"] = [f"{one.second['prepare_s']:.1f} s" for one in [tiny, *measured]]
    rows["second run: first step after"] = [f"{one.second['first_step_s']:.1f} s" for one in [tiny, *measured]]
    for name, cells in rows.items():
        table.add_row(name, *cells)
    console.print()
    console.print(table)
    for one in measured:
        verdicts(console, tiny, one)
    for small, big in itertools.pairwise(measured):
        times = big.first["prepare_s"] / small.first["prepare_s"]
        ratio = times / (big.num_bytes / small.num_bytes)
        label = f"time to tokenise {big.num_bytes / 1e9:g} GB / {small.num_bytes / 1e9:g} GB, over the ratio of sizes"
        print_verdict(console, label, f"{ratio:.2f} x", f"≤ {LINEAR_TARGET} x", met=ratio <= LINEAR_TARGET)


def verdicts(console: Console, tiny: Figures, one: Figures) -> None:
    """What a corpus costs beyond the tiny one."""
    size = f"{one.num_bytes / 1e9:g} GB"
    kind = "train worker"
    more = (one.second_peaks.resident[kind] - tiny.second_peaks.resident[kind]) / GIB
    label = f"{size}: resident memory of the train worker, beyond that on {tiny.num_bytes / 1e6:.0f} MB"
    print_verdict(console, label, f"{more:.3f} GiB", f"< {WORKER_TARGET_GIB:g} GiB", met=more < WORKER_TARGET_GIB)
    later = one.second["first_step_s"] - tiny.second["first_step_s"]
    label = f"{size}: from the start of the process to the first step after resuming, beyond that on the tiny corpus"
    print_verdict(console, label, f"{later:.1f} s", f"< {RESUME_TARGET_S:g} s", met=later < RESUME_TARGET_S)


def mib(num_bytes: int | None) -> str:
    return "-" if num_bytes is None else f"{num_bytes / MIB:.0f} MiB"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="0.2,2", help="sizes of the corpora in GB (default 0.2,2)")
    parser.add_argument("--folder", help="where corpora, shards and runs are put (default: the temporary folder)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
