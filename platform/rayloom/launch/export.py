"""From a checkpoint (to resume) to an artifact (to use)."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rayloom.artifacts import BASE_FOLDER, GoldenCase, Limits, Manifest, code_version, model_card, publish
from rayloom.config import RunConfig, config_hash, dump_yaml
from rayloom.data import Columns, Encoder, PromptInput, PromptTemplate, Row
from rayloom.generation import TransformersGenerator, make_golden
from rayloom.launch.shipping import Files, unpack
from rayloom.models import ModelSource, attach_lora, copy_base, load_model, load_trained_weights, save_model
from rayloom.training import CheckpointStore, Commit, load_weights

_GOLDEN_CASES = 4


@dataclass(frozen=True)
class ExportSpec:
    """What an artifact is made of, besides weights.

    Attributes:
        name: Name of the artifact: the run's.
        golden_rows: Rows whose prompts become golden ones.
        data_hash: Of the splits' content.
        metrics: Figures of training and validation that go into manifest and model card.
    """

    config: RunConfig
    source: ModelSource
    template: PromptTemplate
    columns: Columns
    name: str
    golden_rows: list[Row]
    data_hash: str
    metrics: dict[str, float]


def export_best(spec: ExportSpec, checkpoints: str, best: Commit, destination: str, files: Files | None) -> str:
    """Publish a checkpoint of the store as an artifact.

    Args:
        spec: See `ExportSpec`.
        checkpoints: Place of the run's checkpoints.
        best: The one to publish.
        destination: Folder or URI of the artifact.
        files: The base model's files, where it was made on another node.

    Returns:
        The artifact's place.

    Raises:
        TrainingError: The checkpoint cannot be read.
    """
    store = CheckpointStore(checkpoints, best.identity, note=lambda _: None)
    with store.opened(best) as folder:
        return export_artifact(spec, folder, destination, files)


def export_artifact(spec: ExportSpec, checkpoint: Path, destination: str, files: Files | None = None) -> str:
    """Put trained weights into the base model, record golden answers, publish.

    Args:
        spec: See `ExportSpec`.
        checkpoint: Local folder of the checkpoint.
        destination: Folder or URI of the artifact.
        files: The base model's files, where it was made on another node.

    Returns:
        The artifact's place.
    """
    unpack(spec.source, files)
    loaded = load_model(spec.source)
    model: Any = loaded.model
    if spec.config.lora is not None:
        model = attach_lora(model, spec.config.lora, loaded.family)
    load_trained_weights(model, load_weights(checkpoint))
    model.eval()
    encoder = Encoder(
        loaded.tokenizer,
        spec.template,
        max_input_length=spec.config.dataset.max_input_length,
        max_target_length=spec.config.dataset.max_target_length,
    )
    generator = TransformersGenerator(model, loaded.tokenizer, seq2seq=loaded.family.seq2seq)
    golden = make_golden(generator, encoder, golden_inputs(spec))
    manifest = build_manifest(spec, loaded.family.name, loaded.family.seq2seq, golden)
    with tempfile.TemporaryDirectory(prefix="rayloom-export-") as name:
        folder = Path(name)
        save_model(model, loaded.tokenizer, folder / ("model" if spec.config.lora is None else "adapter"))
        if manifest.base is not None and manifest.base.name == BASE_FOLDER:
            copy_base(spec.source, folder / BASE_FOLDER)
        resolved = dump_yaml(spec.config)
        (folder / "config.yaml").write_text(resolved, encoding="utf-8")
        (folder / "README.md").write_text(model_card(manifest, config_yaml=resolved), encoding="utf-8")
        return publish(folder, destination, manifest)


def golden_inputs(spec: ExportSpec) -> list[PromptInput]:
    """Prompts to replay. A language model gets the first words of its validation texts."""
    inputs = [spec.template.input_of(row, spec.columns) for row in spec.golden_rows[:_GOLDEN_CASES]]
    if spec.config.model.task_type != "language-modeling":
        return inputs
    return [PromptInput(text=" ".join(each.text.split()[:12])) for each in inputs]


def build_manifest(spec: ExportSpec, family: str, seq2seq: bool, golden: list[GoldenCase]) -> Manifest:
    """The manifest of a new artifact."""
    config = spec.config
    return Manifest(
        name=spec.name,
        kind="full" if config.lora is None else "adapter",
        family=family,
        seq2seq=seq2seq,
        base=None if config.lora is None else spec.source.ref,
        template=spec.template.model_dump(),
        limits=Limits(
            max_input_length=config.dataset.max_input_length,
            max_target_length=config.dataset.max_target_length,
        ),
        generation=config.generation,
        golden=golden,
        data_hash=spec.data_hash,
        config_hash=config_hash(config),
        code_version=code_version(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        metrics=spec.metrics,
        files={},
    )
