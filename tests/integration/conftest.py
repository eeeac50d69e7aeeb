"""One local Ray for all integration tests of a session, and tiny artifacts to serve."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from torch import nn

from rayloom.artifacts import BASE_FOLDER, Limits, Manifest, publish
from rayloom.config import DatasetConfig, GenerationConfig, LoraConfig, ModelConfig, RandomInit
from rayloom.data import Encoder, PromptInput, PromptTemplate
from rayloom.generation import TransformersGenerator, make_golden
from rayloom.models import attach_lora, copy_base, load_model, resolve_source, save_model
from rayloom.serving.connections import CALLBACK

TEXTS = [
    "The river flows slowly past the old mill, and the miller counts his sacks of grain.",
    "question: what is the capital of France? context: Paris. Who built the mill?",
    "a cat sat on the mat while another cat, a concatenation of cats, slept.",
] * 20


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """Two logical CPUs, loopback, a temp folder of its own (with a short path: sockets live in it)."""
    temp_dir = tempfile.mkdtemp(prefix="rl-test-")
    os.environ.setdefault(*CALLBACK)
    ray.init(
        "local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=256 * 1024**2,
        _temp_dir=temp_dir,
    )
    yield
    ray.shutdown()
    shutil.rmtree(temp_dir, ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_artifact_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 with wild random weights, so that its answers are long and varied."""
    return build_artifact(tmp_path_factory.mktemp("t5"), "t5", lora=None)


@pytest.fixture(scope="session")
def tiny_artifact_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA with an adapter that carries its base."""
    return build_artifact(tmp_path_factory.mktemp("llama"), "llama", lora=LoraConfig(r=4))


def build_artifact(root: Path, family: str, *, lora: LoraConfig | None, seed: int = 0) -> Path:
    source = resolve_source(
        ModelConfig(
            name="tiny",
            random_init=RandomInit(family=family, hidden_size=32, num_heads=4, num_layers=2, vocab_size=400),
        ),
        lambda: TEXTS,
        seed=0,
    )
    loaded = load_model(source)
    torch.manual_seed(seed)
    model = loaded.model if lora is None else attach_lora(loaded.model, lora, loaded.family)
    for parameter in (p for p in model.parameters() if p.requires_grad and p.ndim > 1):
        nn.init.normal_(parameter, std=0.3 if lora is None else 0.5)
    model.eval()
    seq2seq = loaded.family.seq2seq
    template = PromptTemplate.for_run(
        DatasetConfig(train_file="x"), "question-answering", seq2seq=seq2seq, has_chat_template=False
    )
    encoder = Encoder(loaded.tokenizer, template, max_input_length=64, max_target_length=16)
    build = root / "build"
    save_model(model, loaded.tokenizer, build / ("model" if lora is None else "adapter"))
    if lora is not None:
        copy_base(source, build / BASE_FOLDER)
    (build / "config.yaml").write_text("model: {name: tiny}\n", encoding="utf-8")
    generator = TransformersGenerator(model, loaded.tokenizer, seq2seq=seq2seq)
    asked = [PromptInput("Who built the mill?", "The miller."), PromptInput("Why?")]
    manifest = Manifest(
        name=f"tiny-{family}",
        kind="full" if lora is None else "adapter",
        family=family,
        seq2seq=seq2seq,
        base=None if lora is None else source.ref,
        template=template.model_dump(mode="json"),
        limits=Limits(max_input_length=64, max_target_length=16),
        generation=GenerationConfig(max_new_tokens=12),
        golden=make_golden(generator, encoder, asked),
        data_hash="d",
        config_hash="c",
        code_version="0",
        created="2026-01-01T00:00:00Z",
    )
    return Path(publish(build, str(root / "artifact"), manifest))
