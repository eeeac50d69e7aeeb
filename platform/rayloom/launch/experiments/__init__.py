"""Experiments as documents: one command trains, measures and writes a table."""

from rayloom.launch.experiments.document import DocumentPaths, write_document
from rayloom.launch.experiments.plan import Cell, Plan, plan_experiment
from rayloom.launch.experiments.records import CellRecord, Provenance, Trained
from rayloom.launch.experiments.running import Watch, Workbench, run_experiment
from rayloom.launch.experiments.store import ExperimentStore
from rayloom.launch.experiments.tables import Row, csv_text, table, table_rows
from rayloom.launch.experiments.winner import headline

__all__ = [
    "Cell",
    "CellRecord",
    "DocumentPaths",
    "ExperimentStore",
    "Plan",
    "Provenance",
    "Row",
    "Trained",
    "Watch",
    "Workbench",
    "csv_text",
    "headline",
    "plan_experiment",
    "run_experiment",
    "table",
    "table_rows",
    "write_document",
]
