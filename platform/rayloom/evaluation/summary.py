"""From answered rows to figures: metrics with their intervals, slices, and tests against another system."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence

from rayloom.config import EvaluationConfig
from rayloom.data import Columns, Row
from rayloom.errors import DataError
from rayloom.evaluation.measures import measures_of, prediction_measures, whole_text_metrics
from rayloom.evaluation.results import Prediction, Setting, Significance, SliceResult, SplitResult, Spread
from rayloom.evaluation.statistics import Measure, PairedTest, Resampling, compare_paired, intervals

_MOST_SLICES = 12


def summarised(split: SplitResult, config: EvaluationConfig, rows: Sequence[Row]) -> SplitResult:
    """A split with its metrics, their intervals, and those of its slices.

    Args:
        split: With predictions and losses of rows.
        config: What is computed.
        rows: Of the split; predictions name their places in it.
    """
    measures = measures_of(split)
    texts = [each.prediction for each in split.predictions if each.scores]
    return split.model_copy(
        update={
            "metrics": split.metrics | values(measures) | whole_text_metrics(texts),
            "intervals": spreads(measures, config),
            "slices": [each for column in config.slice_by for each in _slices(split, column, rows, config)],
        }
    )


def check_slices(split: str, rows: Sequence[Row], config: EvaluationConfig) -> None:
    """Refuse a column to slice by that no row has, before anything is measured.

    Raises:
        DataError: There is one.
    """
    for column in config.slice_by:
        if not any(row.get(column) is not None for row in rows):
            known = ", ".join(map(str, rows[0])) if rows else "none"
            raise DataError(f"evaluation.slice_by: no row of {split} has it; columns are {known}", column=column)


def setting_of(
    parameters: Mapping[str, object], predictions: Sequence[Prediction], seconds: float, config: EvaluationConfig
) -> Setting:
    """The figures of rows that were answered with other generation parameters.

    Args:
        parameters: The changes.
        predictions: What came of them.
        seconds: Wall-clock time of generating.
        config: What is computed.
    """
    measures = prediction_measures(predictions)
    return Setting(
        parameters=dict(parameters),
        metrics=values(measures) | whole_text_metrics([each.prediction for each in predictions]),
        intervals=spreads(measures, config),
        seconds=seconds,
        num_rows=len(predictions),
    )


def significance(
    split: SplitResult, other: SplitResult, config: EvaluationConfig, *, test: PairedTest = "randomization"
) -> dict[str, Significance]:
    """By metric, whether a system differs from another on the same rows. Empty where the rows are not the same.

    Args:
        split: The system.
        other: What it is compared with.
        config: Number of resamples, confidence, seed.
        test: Which test.
    """
    if not same_rows(split, other) or config.num_resamples == 0:
        return {}
    mine, theirs = measures_of(split), measures_of(other)
    how = resampling(config)
    found = {}
    for name, measure in mine.items():
        if name in theirs and measure.num_rows == theirs[name].num_rows >= 2:
            paired = compare_paired(theirs[name], measure, how, test=test)
            found[name] = Significance(
                difference=paired.difference,
                low=paired.interval.low,
                high=paired.interval.high,
                p_value=paired.p_value,
                num_rows=paired.num_rows,
            )
    return found


def same_rows(one: SplitResult, two: SplitResult) -> bool:
    """Whether two systems answered the same questions, in the same order."""

    def questions(split: SplitResult) -> list[tuple[int, str, str | None, str]]:
        return [(each.row, each.input, each.context, each.reference) for each in split.predictions]

    if one.num_rows != two.num_rows or questions(one) != questions(two):
        return False
    # Predictions do not tell of all rows in language modelling, and of none where only losses were measured.
    is_told = len(one.predictions) == one.num_rows
    return is_told or not (one.rows_hash and two.rows_hash) or one.rows_hash == two.rows_hash


def hash_of_rows(rows: Sequence[Row], columns: Columns) -> str:
    """SHA-256 of what rows ask and answer, in their order.

    Args:
        rows: Of one split.
        columns: Where inputs and targets are.

    Raises:
        DataError: A row lacks one of these.
    """
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(_asked(row, columns)).encode())
    return digest.hexdigest()


def _asked(row: Row, columns: Columns) -> object:
    if columns.task == "chat":
        return columns.conversation(row)
    if columns.task == "language-modeling":
        return columns.input_text(row)
    return [columns.input_text(row), columns.context_text(row), columns.target_text(row)]


def values(measures: Mapping[str, Measure]) -> dict[str, float]:
    """The figures themselves."""
    return {name: measure.value for name, measure in measures.items()}


def spreads(measures: Mapping[str, Measure], config: EvaluationConfig) -> dict[str, Spread]:
    """The figures' confidence intervals."""
    found = intervals(measures, resampling(config))
    return {name: Spread(low=each.low, high=each.high) for name, each in found.items()}


def resampling(config: EvaluationConfig) -> Resampling:
    """How the config wants resamples drawn."""
    return Resampling(config.num_resamples, config.confidence, config.resampling_seed)


def _slices(split: SplitResult, column: str, rows: Sequence[Row], config: EvaluationConfig) -> list[SliceResult]:
    cells = [str(row[column]) if row.get(column) is not None else "" for row in rows]
    frequent = [value for value, _ in Counter(cells).most_common(_MOST_SLICES)]
    return [_slice(split, column, value, [cell == value for cell in cells], config) for value in frequent]


def _slice(
    split: SplitResult, column: str, value: str, is_inside: Sequence[bool], config: EvaluationConfig
) -> SliceResult:
    # There are none at all where only the engine's weights are kept.
    losses = zip(split.row_losses, is_inside, strict=bool(split.row_losses))
    inside = split.model_copy(
        update={
            "predictions": [each for each in split.predictions if is_inside[each.row]],
            "row_losses": [loss for loss, kept in losses if kept],
        }
    )
    measures = measures_of(inside)
    return SliceResult(
        column=column,
        value=value,
        num_rows=sum(is_inside),
        metrics=values(measures),
        intervals=spreads(measures, config),
    )
