"""Figures of rows do not depend on batch, order or padding, and scores are the libraries' own."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from rayloom.artifacts import open_artifact
from rayloom.config import EvaluationConfig, load_run_config
from rayloom.data import Columns, EncodedDataset, Row, columns_for, encode_rows, load_splits
from rayloom.evaluation import evaluate_split, rouge_rows, token_loss
from rayloom.generation import TextGenerator

FAMILIES = ["t5_artifact", "gpt2_artifact", "lm_artifact"]
SLOWLY = settings(
    max_examples=12,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
WORDS = st.sampled_from(["the", "runners", "running", "ran", "North.", "cat's", "über", "2,000", "quickly", "a"])
TEXTS = st.lists(WORDS, max_size=12).map(" ".join)


class Measured:
    """An artifact with its rows."""

    def __init__(self, folder: Path) -> None:
        self.generator = TextGenerator(folder, device="cpu")
        config = load_run_config(open_artifact(str(folder)).config_path)
        self.columns: Columns = columns_for(config.dataset, config.model.task_type)
        splits = load_splits(config.dataset, self.columns)
        # Of very different lengths, so that there is padding to be seen through.
        self.rows: list[Row] = [*splits.train, *splits.validation]
        self.rows += [{name: f"{value} {value}" for name, value in row.items()} for row in self.rows[:4]]
        self.cache = config.dataset.cache_dir
        self.alone = [self.nll_alone(row) for row in self.rows]

    def encoded(self, rows: list[Row]) -> EncodedDataset:
        return encode_rows(rows, self.generator.encoder, self.columns, cache_dir=self.cache, file_label="rows")

    def nll_alone(self, row: Row) -> tuple[float, int]:
        """A plain loop over the row's examples, nothing padded, in float64."""
        total, count, encoded = 0.0, 0, self.encoded([row])
        for example in (encoded[place] for place in range(len(encoded))):
            ids, labels = torch.tensor([example.input_ids]), torch.tensor(example.labels)
            with torch.no_grad():
                if self.generator.family.seq2seq:
                    logits, targets = self.generator.model(input_ids=ids, labels=labels[None]).logits[0], labels
                else:
                    logits, targets = self.generator.model(input_ids=ids).logits[0, :-1], labels[1:]
            counted = targets != -100
            chosen = logits.double().log_softmax(-1)[counted].gather(-1, targets[counted][:, None])
            total, count = total - float(chosen.sum()), count + int(counted.sum())
        return total, count


@pytest.fixture(scope="module")
def measured(request: pytest.FixtureRequest) -> dict[str, Measured]:
    return {name: Measured(request.getfixturevalue(name)) for name in FAMILIES}


@SLOWLY
@given(data=st.data())
@pytest.mark.parametrize("name", FAMILIES)
def test_perplexity_is_that_of_a_plain_loop_whatever_batch_order_and_padding(
    measured: dict[str, Measured], name: str, data: st.DataObject
) -> None:
    system = measured[name]
    places = data.draw(st.lists(st.integers(0, len(system.rows) - 1), min_size=1, max_size=9, unique=True))
    batch_size = data.draw(st.integers(1, 12))
    pad_token_id = data.draw(st.integers(0, 300))  # what fills shorter rows is masked: any token will do
    loss = token_loss(
        system.generator.model,
        system.encoded([system.rows[place] for place in places]),
        batch_size=batch_size,
        pad_token_id=pad_token_id,
    )
    for (nll, count), place in zip(loss.by_row, places, strict=True):
        expected, tokens = system.alone[place]
        assert count == tokens
        assert nll == pytest.approx(expected, rel=1e-4)
    total, tokens = map(sum, zip(*(system.alone[place] for place in places), strict=True))
    assert loss.perplexity == pytest.approx(math.exp(total / tokens), rel=1e-4)


@pytest.mark.parametrize("name", ["t5_artifact", "gpt2_artifact"])
def test_answers_and_scores_are_the_same_whatever_the_batch(measured: dict[str, Measured], name: str) -> None:
    system, found = measured[name], []
    for batch_size in (1, 5, 32):
        config = EvaluationConfig(batch_size=batch_size, latency_prompts=0, num_resamples=0)
        found.append(evaluate_split(system.generator, system.rows, system.columns, split="rows", config=config))
    for other in found[1:]:
        assert [each.prediction for each in other.predictions] == [each.prediction for each in found[0].predictions]
        assert other.metrics == pytest.approx(found[0].metrics, rel=1e-5)


@settings(max_examples=60)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4), st.booleans())
def test_rouge_of_every_row_is_rouge_scores(pairs: list[tuple[str, str]], use_stemmer: bool) -> None:
    answers, references = map(list, zip(*pairs, strict=True))
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=use_stemmer)
    found = rouge_rows(answers, references, use_stemmer=use_stemmer, summary=True)
    for scores, answer, reference in zip(found, answers, references, strict=True):
        expected = scorer.score(reference, answer)
        assert scores == {name: pytest.approx(expected[name].fmeasure) for name in scores}
