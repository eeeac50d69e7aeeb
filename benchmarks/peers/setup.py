"""Makes an environment for each peer: ``~/.cache/rayloom-bench/PEER``, out of ``requirements/PEER.txt``.

    python benchmarks/peers/setup.py [PEER ...]

One after another, and again only when the requirements change. About 6 GB for all of them. A peer that cannot be
installed leaves its reason in ``PEER.failed``; the benchmark then shows it as absent, with that reason.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(os.environ.get("RAYLOOM_BENCH_CACHE") or Path.home() / ".cache" / "rayloom-bench").expanduser()
REQUIREMENTS = Path(__file__).resolve().parent / "requirements"
PEERS = tuple(sorted(file.stem for file in REQUIREMENTS.glob("*.txt")))
UNWANTED = {"openvino": ("torchvision",), "vllm": ("torchvision", "torchaudio", "torchcodec")}
"""What has to go after the installation: built for another torch, they keep transformers and vLLM from importing."""
_REASON_LINES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"of {', '.join(PEERS)} (default: all)")
    chosen = parser.parse_args().peers or PEERS
    unknown = sorted(set(chosen) - set(PEERS))
    if unknown:
        parser.error(f"no such peer: {', '.join(unknown)}")
    for peer in chosen:
        print(f"{peer}: {install(peer) or f'ready in {ROOT / peer}'}", flush=True)


def python_of(peer: str) -> Path:
    """The interpreter of a peer's environment, whether it is there or not."""
    return ROOT / peer / "bin" / "python"


def absence(peer: str) -> str | None:
    """Why a peer cannot be run, or None where it can."""
    if (ROOT / f"{peer}.failed").exists():
        return (ROOT / f"{peer}.failed").read_text(encoding="utf-8").strip()
    if not (ROOT / f"{peer}.ready").exists():
        return f"not installed: python benchmarks/peers/setup.py {peer}"
    return None


def install(peer: str) -> str | None:
    """Make a peer's environment unless it is there already.

    Returns:
        Why it could not be made, or None.
    """
    requirements = REQUIREMENTS / f"{peer}.txt"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    ready, failed = ROOT / f"{peer}.ready", ROOT / f"{peer}.failed"
    if ready.exists() and ready.read_text(encoding="utf-8") == digest:
        return None
    ROOT.mkdir(parents=True, exist_ok=True)
    for mark in (ready, failed):
        mark.unlink(missing_ok=True)
    shutil.rmtree(ROOT / peer, ignore_errors=True)
    venv.create(ROOT / peer, with_pip=True)
    try:
        pip(peer, ["install", "--upgrade", "pip"])  # the one that comes with Python 3.11 resolves vLLM's set for hours
        pip(peer, ["install", "-r", str(requirements)])
        if peer in UNWANTED:
            pip(peer, ["uninstall", "-y", *UNWANTED[peer]])
    except subprocess.CalledProcessError as error:
        reason = "\n".join(error.stdout.strip().splitlines()[-_REASON_LINES:])
        failed.write_text(f"cannot be installed: {reason}", encoding="utf-8")
        return failed.read_text(encoding="utf-8")
    ready.write_text(digest, encoding="utf-8")
    return None


def pip(peer: str, arguments: Sequence[str]) -> None:
    """Run a peer's pip, out of other work's way.

    Raises:
        subprocess.CalledProcessError: It failed; ``stdout`` has all it said.
    """
    command = ["nice", "-n", "19", str(python_of(peer)), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run(
        [*command, *arguments], check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT
    )


if __name__ == "__main__":
    main()
