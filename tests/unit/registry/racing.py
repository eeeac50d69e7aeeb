"""A process that promotes and rolls back as fast as it can: ``python racing.py ROOT VERSION ROUNDS MODE``."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from rayloom.config import config_hash
from rayloom.errors import RegistryError
from rayloom.registry import Check, Registry, Verdict, rows


def verdict(registry: Registry, number: int, *, passed: bool) -> Verdict:
    version, production = registry.get(f"qa@{number}"), registry.production("qa")
    return registry.record(
        Verdict(
            model="qa",
            version=number,
            digest=version.digest,
            production=production.version if production else None,
            gate_hash=config_hash(registry.gate("qa")),
            report_hash=None,
            checks=(Check(name="always", passed=passed, detail=""),),
            judged="",
        )
    )


def race(registry: Registry, number: int, rounds: int, mode: str) -> int:
    """Number of changes that this process made."""
    won = 0
    for turn in range(rounds):
        try:
            if mode == "rollback" and turn % 3 == 2:
                registry.rollback("qa", expected=registry.get("qa").version)
            else:
                registry.promote(verdict(registry, number, passed=mode != "fail").id)
            won += 1
        except RegistryError:
            continue
    return won


def meet(root: Path, number: str, count: int) -> None:
    """Wait until so many processes are here."""
    (root / f"ready-{number}").touch()
    deadline = time.monotonic() + 120
    while len(list(root.glob("ready-*"))) < count and time.monotonic() < deadline:
        time.sleep(0.005)


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(root: str, number: str, rounds: str, mode: str) -> None:
    registry = Registry(root)
    if mode == "die":
        judged = verdict(registry, int(number), passed=True)
        rows.note = die  # the last statement before the commit
        registry.promote(judged.id)
    meet(Path(root), number, 4)
    sys.stdout.write(str(race(registry, int(number), int(rounds), mode)))


if __name__ == "__main__":
    main(*sys.argv[1:])
