"""EleutherAI's evaluation harness against a served model, unchanged: log-likelihoods and generation.

It has an environment of its own: `make test-clients` makes it.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

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


def run_harness(folder: Path, url: str, model: str, *, tokenized: bool) -> dict[str, list[dict[str, Any]]]:
    """Samples of both tasks, by task."""
    arguments = {
        "model": model,
        "base_url": f"{url}/v1/completions",
        "tokenizer": str(folder / "tokenizer"),
        "tokenized_requests": tokenized,
        "add_bos_token": True,  # as the server adds it to texts
        "num_concurrent": 2,
        "max_length": 90,
    }
    output = folder / f"out-{tokenized}"
    command = [
        str(PYTHON), "-m", "lm_eval", "--model", "local-completions", "--tasks", "tiny_choose,tiny_write",
        "--include_path", str(folder), "--output_path", str(output), "--log_samples", "--batch_size", "2",
        "--model_args", ",".join(f"{name}={value}" for name, value in arguments.items()),
    ]  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    done = subprocess.run(command, env=os.environ | offline, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = {}
    for task in ("tiny_choose", "tiny_write"):
        (path,) = output.rglob(f"samples_{task}_*.jsonl")
        found[task] = [json.loads(line) for line in path.read_text().splitlines()]
    return found


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
        samples = run_harness(tmp_path, url, generator.name, tokenized=tokenized)
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
