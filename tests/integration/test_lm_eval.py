"""EleutherAI's evaluation harness against a served model, unchanged: log-likelihoods and generation.

It has an environment of its own: `make test-clients` makes it.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rayloom.config import DatasetConfig
from rayloom.data import Encoder, PromptTemplate, columns_for, encode_rows
from rayloom.evaluation import LossSum, token_loss
from rayloom.generation import TextGenerator
from rayloom.serving.model import TextGeneratorModel
from tests.integration.local_server import listening

HOME = Path(os.environ.get("LM_EVAL", Path.home() / ".cache" / "rayloom-bench" / "lm-eval"))
PYTHON = HOME / "bin" / "python"
ROWS = [
    {"question": "The river flows slowly past the", "choices": [" old mill", " cat"], "answer": 0},
    {"question": "Who built the", "choices": [" Paris", " mill", " grain"], "answer": 1},
    {"question": "a cat sat on the", "choices": [" mat", " sacks of grain"], "answer": 0},
]

WRITTEN = ("tiny_choose", "tiny_write")
WINDOW = 33
"""Most tokens that the model sees at once, the one before the first that is predicted included."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason=f"lm-eval is not installed in {HOME}: run `make test-clients`"),
]


def write_tasks(folder: Path) -> None:
    """Two tasks over a file: one scores choices, one writes."""
    rows = folder / "rows.json"
    rows.write_text(json.dumps(ROWS))
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(rows)}}, "test_split": "test",
              "doc_to_text": "{{question}}"}  # fmt: skip
    choose = {"task": "tiny_choose", "output_type": "multiple_choice", "doc_to_choice": "{{choices}}",
              "doc_to_target": "{{answer}}", "target_delimiter": "", "metric_list": [{"metric": "acc"}]}  # fmt: skip
    write = {"task": "tiny_write", "output_type": "generate_until", "doc_to_target": "{{choices[answer]}}",
             "generation_kwargs": {"until": ["\n", "e"], "max_gen_toks": 8, "do_sample": False},
             "metric_list": [{"metric": "exact_match"}]}  # fmt: skip
    for task in (choose, write):
        (folder / f"{task['task']}.yaml").write_text(json.dumps(common | task))  # JSON is YAML


def run_harness(
    folder: Path, url: str, model: str, *, tokenized: bool, tasks: Sequence[str] = WRITTEN, **options: object
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, dict[str, Any]]]:
    """Samples and results, both by task."""
    arguments = {
        "model": model,
        "base_url": f"{url}/v1/completions",
        "tokenizer": str(folder / "tokenizer"),
        "tokenized_requests": tokenized,
        "add_bos_token": True,  # as the server adds it to texts
        "num_concurrent": 2,
        "max_length": 90,
    } | options
    output = folder / f"out-{tokenized}"
    command = [
        str(PYTHON), "-m", "lm_eval", "--model", "local-completions", "--tasks", ",".join(tasks),
        "--include_path", str(folder), "--output_path", str(output), "--log_samples", "--batch_size", "2",
        "--model_args", ",".join(f"{name}={value}" for name, value in arguments.items()),
    ]  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    done = subprocess.run(command, env=os.environ | offline, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = {}
    for task in tasks:
        (path,) = output.rglob(f"samples_{task}_*.jsonl")
        found[task] = [json.loads(line) for line in path.read_text().splitlines()]
    (results,) = output.rglob("results_*.json")
    return found, json.loads(results.read_text())["results"]


def log_likelihood(generator: TextGenerator, text: str, continuation: str) -> tuple[float, bool]:
    """As the harness splits them: the continuation's tokens are those of the whole that come after the text's."""
    tokenizer = generator.encoder.tokenizer
    whole, start = tokenizer.encode(text + continuation), len(tokenizer.encode(text))
    with torch.no_grad():
        logprobs = generator.model(torch.tensor([whole])).logits[0].log_softmax(-1)
    total = sum(float(logprobs[place - 1, whole[place]]) for place in range(start, len(whole)))
    is_greedy = all(int(logprobs[place - 1].argmax()) == whole[place] for place in range(start, len(whole)))
    return total, is_greedy


@pytest.mark.parametrize("tokenized", [True, False])
def test_the_harness_measures_what_the_model_says(tiny_artifact_llama: Path, tmp_path: Path, tokenized: bool) -> None:
    generator = TextGenerator(tiny_artifact_llama)
    generator.encoder.tokenizer.save_pretrained(tmp_path / "tokenizer")
    write_tasks(tmp_path)
    with listening(TextGeneratorModel(generator, max_time_s=60.0)) as url:
        samples, _ = run_harness(tmp_path, url, generator.name, tokenized=tokenized)
    assert len(samples["tiny_choose"]) == len(samples["tiny_write"]) == len(ROWS)
    for sample in samples["tiny_choose"]:
        row = sample["doc"]
        for choice, told in zip(row["choices"], sample["filtered_resps"], strict=True):
            expected, is_greedy = log_likelihood(generator, row["question"], choice)
            assert float(told[0]) == pytest.approx(expected, abs=1e-3)
            assert str(told[1]) == str(is_greedy)
    for sample in samples["tiny_write"]:
        ids = generator.encoder.tokenizer.encode(sample["doc"]["question"])
        written = generator.model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :]
        text = generator.encoder.tokenizer.decode(written.tolist(), skip_special_tokens=True)
        assert sample["resps"][0][0] == min((text.split(stop)[0] for stop in ("\n", "e")), key=len)


def documents(generator: TextGenerator) -> list[str]:
    """Texts of less than a window, and of whole windows.

    Where a document ends within a later window, the harness moves that window back over tokens that it has scored, and
    the model sees more before the rest; Rayloom's blocks do not overlap by more than a token.
    """
    words = " ".join(str(row["question"]) + str(row["choices"][0]) for row in ROWS * 12).split()
    texts = [" ".join(words[start : start + count]) for start, count in ((0, 3), (5, 6), (11, 1))]

    def predicted(text: str) -> int:
        return len(generator.encoder.tokenizer.encode(text, add_special_tokens=False)) + 1  # the end comes last

    assert all(predicted(text) < WINDOW for text in texts)
    parts = (" ".join(words[start:end]) for start in range(8) for end in range(start + 1, len(words)))
    whole = {number: part for part in parts if (number := predicted(part)) in (2 * (WINDOW - 1), 3 * (WINDOW - 1))}
    assert len(whole) == 2
    return [*texts, *whole.values()]


def our_loss(generator: TextGenerator, texts: Sequence[str], folder: Path) -> LossSum:
    """As `rayloom evaluate` measures a model of language."""
    tokenizer, dataset = generator.encoder.tokenizer, DatasetConfig(train_file="x")
    task = "language-modeling"
    template = PromptTemplate.for_run(dataset, task, seq2seq=False, has_chat_template=False)
    encoder = Encoder(tokenizer, template, max_input_length=WINDOW, max_target_length=16)
    rows = [{"text": text} for text in texts]
    encoded = encode_rows(rows, encoder, columns_for(dataset, task), cache_dir=str(folder), file_label="documents")
    return token_loss(generator.model, encoded, batch_size=3, pad_token_id=tokenizer.pad_token_id)


def test_perplexity_is_the_harnesss(tiny_artifact_llama: Path, tmp_path: Path) -> None:
    generator = TextGenerator(tiny_artifact_llama)
    tokenizer = generator.encoder.tokenizer
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    texts = documents(generator)
    # The harness scores a text's own tokens after the start token; the end of sequence is one of ours.
    rows = [{"text": f"{text}{tokenizer.eos_token}"} for text in texts]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    task = {
        "task": "tiny_roll",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.json")}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    }
    (tmp_path / "tiny_roll.yaml").write_text(json.dumps(task))
    with listening(TextGeneratorModel(generator, max_time_s=60.0)) as url:
        options = {"add_bos_token": False, "max_length": WINDOW + 1}  # it keeps one for an answer
        samples, results = run_harness(tmp_path, url, generator.name, tokenized=True, tasks=("tiny_roll",), **options)
    ours = our_loss(generator, texts, tmp_path / "cache")
    told = {sample["doc_id"]: float(sample["filtered_resps"][0]) for sample in samples["tiny_roll"]}
    for place, (nll, _) in enumerate(ours.by_row):
        assert nll == pytest.approx(-told[place], rel=1e-4)
    tokens = sum(len(tokenizer.encode(row["text"], add_special_tokens=False)) for row in rows)
    assert ours.num_tokens == tokens
    assert ours.perplexity == pytest.approx(math.exp(-sum(told.values()) / tokens), rel=1e-4)
    words = sum(len(re.split(r"\s+", row["text"])) for row in rows)
    num_bytes = sum(len(row["text"].encode()) for row in rows)
    found = results["tiny_roll"]
    assert math.exp(ours.total_nll / words) == pytest.approx(found["word_perplexity,none"], rel=1e-4)
    assert ours.total_nll / num_bytes / math.log(2) == pytest.approx(found["bits_per_byte,none"], rel=1e-4)
