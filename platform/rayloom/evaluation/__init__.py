"""How good a model is and what it costs: metrics with their intervals, resources, reports, comparisons, the gate."""

from rayloom.evaluation.comparing import Questions, System, compare
from rayloom.evaluation.contest import Contest, Contestant
from rayloom.evaluation.contest_pages import ContestPaths, write_contest
from rayloom.evaluation.evaluate import Evaluator, Progress, evaluate, evaluate_split
from rayloom.evaluation.gating import attach_report, judge
from rayloom.evaluation.jobs import JobOutcome, read_history, run_job
from rayloom.evaluation.metrics import exact_match, rouge_rows, text_metrics
from rayloom.evaluation.perplexity import LossSum, token_loss
from rayloom.evaluation.report import ReportPaths, read_report, write_report
from rayloom.evaluation.resources import measure_resources
from rayloom.evaluation.results import EvaluationResult, Prediction, Resources, SplitResult, Throughput
from rayloom.evaluation.scores import row_scores
from rayloom.evaluation.statistics import Interval, Measure, Paired, Resampling, compare_paired, intervals, mean_of

__all__ = [
    "Contest",
    "ContestPaths",
    "Contestant",
    "EvaluationResult",
    "Evaluator",
    "Interval",
    "JobOutcome",
    "LossSum",
    "Measure",
    "Paired",
    "Prediction",
    "Progress",
    "Questions",
    "ReportPaths",
    "Resampling",
    "Resources",
    "SplitResult",
    "System",
    "Throughput",
    "attach_report",
    "compare",
    "compare_paired",
    "evaluate",
    "evaluate_split",
    "exact_match",
    "intervals",
    "judge",
    "mean_of",
    "measure_resources",
    "read_history",
    "read_report",
    "rouge_rows",
    "row_scores",
    "run_job",
    "text_metrics",
    "token_loss",
    "write_contest",
    "write_report",
]
