"""Real, tiny artifacts: random weights, a tokenizer trained on the rows, published as they really are."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from rayloom.artifacts import Limits, Manifest, publish
from rayloom.config import GenerationConfig, RunConfig, config_hash, dump_yaml
from rayloom.data import Encoder, PromptInput, PromptTemplate
from rayloom.generation import TransformersGenerator, make_golden
from rayloom.models import load_model, resolve_source, save_model

ROWS = [
    {
        "question": f"Where does river number {n} flow?",
        "answer": f"Into sea {n % 3}.",
        "context": f"River {n} meets sea {n % 3}.",
    }
    for n in range(24)
]


def run_config(folder: Path, family: str, task: str = "question-answering", **size: int) -> RunConfig:
    rows = ROWS if task != "language-modeling" else [{"text": " ".join(row.values())} for row in ROWS]
    (folder / "rows.json").write_text(json.dumps(rows))
    init = {"family": family, "hidden_size": 32, "num_heads": 4, "vocab_size": 400, "max_positions": 128} | size
    return RunConfig.model_validate(
        {
            "model": {"name": "tiny", "task_type": task, "random_init": init},
            "dataset": {
                "train_file": str(folder / "rows.json"),
                "max_input_length": 48,
                "max_target_length": 12,
                "cache_dir": str(folder / "cache"),
            },
        }
    )


def make_artifact(folder: Path, family: str = "t5", task: str = "question-answering", **generation: object) -> Path:
    config = run_config(folder, family, task)
    texts = [" ".join(row.values()) for row in ROWS]
    loaded = load_model(resolve_source(config.model, corpus=lambda: texts, seed=3))
    torch.manual_seed(0)
    for parameter in loaded.model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    template = PromptTemplate.for_run(config.dataset, task, seq2seq=loaded.family.seq2seq, has_chat_template=False)
    encoder = Encoder(loaded.tokenizer, template, max_input_length=48, max_target_length=12)
    generator = TransformersGenerator(loaded.model, loaded.tokenizer, seq2seq=loaded.family.seq2seq)
    context = None if task == "language-modeling" else "Long ago."
    golden = make_golden(
        generator,
        encoder,
        [PromptInput("Where does it flow?", context), PromptInput("River 3")],
        min_margin=1e-3,
    )
    build = folder / "build"
    save_model(loaded.model, loaded.tokenizer, build / "model")
    (build / "config.yaml").write_text(dump_yaml(config))
    manifest = Manifest(
        name="tiny-qa",
        kind="full",
        family=loaded.family.name,
        seq2seq=loaded.family.seq2seq,
        template=template.model_dump(),
        limits=Limits(max_input_length=48, max_target_length=12),
        generation=GenerationConfig.model_validate(generation),
        golden=golden,
        data_hash="d" * 64,
        config_hash=config_hash(config),
        code_version="0",
        created="2026-01-01T00:00:00+00:00",
        metrics={"loss": 2.0, "train_s": 75.0, "train_tokens_per_s": 1234.0},
    )
    return Path(publish(build, str(folder / "artifact"), manifest))
