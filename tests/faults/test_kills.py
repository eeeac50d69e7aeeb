"""Workers and drivers are killed at random moments; the finished model is that of the undisturbed run, bit for bit."""

from __future__ import annotations

import pytest

from tests.faults.disturbed import FAMILIES, Cell, Outcome, assert_same, disturbed, undisturbed
from tests.faults.table import OUTCOMES

pytestmark = pytest.mark.slow

# Every family at every stage; packed and bucketed data take turns, so that each stage and each family has both.
CELLS = [
    Cell(family, stage, packed=(column + row) % 2 == 1)
    for row, family in enumerate(FAMILIES)
    for column, stage in enumerate((None, 1, 2, 3))
]
CELLS += [
    Cell("llama_lora", None, packed=True, compiled=True),
    Cell("gpt_neo", 1, packed=False, compiled=True),
]


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_the_killed_run_ends_as_the_undisturbed_one(cell, tmp_path):
    outcome = Outcome(cell)
    OUTCOMES.append(outcome)
    whole = undisturbed(cell, tmp_path)
    disturbed(cell, tmp_path, outcome)
    assert_same(outcome, whole, tmp_path / "killed")
    outcome.verdict = "bit-equal"
