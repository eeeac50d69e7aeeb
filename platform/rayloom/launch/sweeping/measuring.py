"""A finished trial's artifact, measured row by row on validation: for intervals, and for metrics of evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from rayloom.config import EvaluationConfig, RunConfig
from rayloom.config.sweep import EVALUATION_PREFIX
from rayloom.data import Row, columns_for, encode_rows, load_splits
from rayloom.evaluation import Evaluator
from rayloom.evaluation.perplexity import token_loss
from rayloom.evaluation.results import SplitResult
from rayloom.evaluation.summary import hash_of_rows, summarised
from rayloom.generation import TextGenerator
from rayloom.launch.tracking.folder import RunFolder

MEASURED = "measured.json"
_LOSSES = ("loss", "perplexity")


def measure(config: RunConfig, artifact: str, metric: str, *, place: str) -> dict[str, float]:
    """Measure an artifact on its run's validation rows, and keep every row's figures in the run's folder.

    Args:
        config: The run.
        artifact: Its artifact.
        metric: What the sweep judges by: only losses are measured where that is one, since answers take longer.
        place: Folder or URI of the run.

    Returns:
        The metrics; empty where there are no validation rows, or so many that they stay in their files.
    """
    splits = load_splits(config.dataset, columns_for(config.dataset, config.model.task_type))
    if splits.corpus is not None or not splits.validation:
        return {}
    name = metric.removeprefix(EVALUATION_PREFIX)
    options = config.evaluation
    if name == metric and name not in _LOSSES:
        # The rows that training generates for, so that both figures mean the same.
        options = options.model_copy(update={"max_rows": config.training.eval_rows})
    split = _measured(config, artifact, list(splits.validation), options, only_loss=name in _LOSSES)
    RunFolder(place).write(MEASURED, split.model_dump_json())
    return split.metrics


def _measured(
    config: RunConfig, artifact: str, rows: Sequence[Row], options: EvaluationConfig, *, only_loss: bool
) -> SplitResult:
    generator = TextGenerator(artifact)
    columns = columns_for(config.dataset, config.model.task_type)
    if not only_loss:
        return Evaluator(generator, columns, options, cache_dir=config.dataset.cache_dir).split("validation", rows)
    encoded = encode_rows(rows, generator.encoder, columns, cache_dir=config.dataset.cache_dir, file_label="validation")
    loss = token_loss(
        generator.model,
        encoded,
        batch_size=options.batch_size,
        pad_token_id=generator.encoder.tokenizer.pad_token_id or 0,
    )
    split = SplitResult(
        name="validation",
        num_rows=len(rows),
        num_rows_total=len(rows),
        metrics={"loss": loss.loss, "perplexity": loss.perplexity},
        num_target_tokens=loss.num_tokens,
        row_losses=list(loss.by_row),
        rows_hash=hash_of_rows(rows, columns),
    )
    return summarised(split, options, rows)
