from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

CASES = [
    [family, stage, bf16]
    for family in ("t5", "llama")
    for stage, bf16 in ((None, False), (1, False), (2, True), (3, False))
]


@pytest.mark.slow
def test_packed_losses_are_the_padded_ones_on_two_ranks_and_all_backends():
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*ranks, "-m", "tests.unit.training.packed_ranks", json.dumps(CASES)],
        capture_output=True,
        text=True,
        env=os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": "."},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"case"')]
    assert [one["case"] for one in found] == CASES
    for one in found:
        assert len(one["padded"]) == 5
        assert one["packed"] == pytest.approx(one["padded"], rel=5e-3 if one["case"][2] else 1e-5), one["case"]
