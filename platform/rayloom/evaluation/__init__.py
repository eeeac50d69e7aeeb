"""How good a model is and what it costs: metrics, perplexity, resources, and the report."""

from rayloom.evaluation.evaluate import Evaluator, Progress, evaluate, evaluate_split
from rayloom.evaluation.jobs import JobOutcome, read_history, run_job
from rayloom.evaluation.metrics import exact_match, rouge_rows, text_metrics
from rayloom.evaluation.perplexity import LossSum, token_loss
from rayloom.evaluation.report import ReportPaths, read_report, write_report
from rayloom.evaluation.resources import measure_resources
from rayloom.evaluation.results import EvaluationResult, Prediction, Resources, SplitResult, Throughput

__all__ = [
    "EvaluationResult",
    "Evaluator",
    "JobOutcome",
    "LossSum",
    "Prediction",
    "Progress",
    "ReportPaths",
    "Resources",
    "SplitResult",
    "Throughput",
    "evaluate",
    "evaluate_split",
    "exact_match",
    "measure_resources",
    "read_history",
    "read_report",
    "rouge_rows",
    "run_job",
    "text_metrics",
    "token_loss",
    "write_report",
]
