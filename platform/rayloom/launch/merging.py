"""From an adapter's artifact to one of a full model."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rayloom.artifacts import model_card, open_artifact, publish
from rayloom.data import Encoder, PromptTemplate
from rayloom.errors import ArtifactError
from rayloom.generation import TransformersGenerator, replay_golden
from rayloom.models import open_model, save_model
from rayloom.models.drift import Drift, merge_with_drift


@dataclass(frozen=True)
class MergeOutcome:
    """A merged artifact.

    Attributes:
        artifact: Its place.
        drift: What merging changed, on the golden prompts and their answers.
    """

    artifact: str
    drift: Drift


def merge_artifact(place: str, destination: str) -> MergeOutcome:
    """Add an adapter into its base model's weights, and publish the result, once it replays the golden prompts.

    Args:
        place: The adapter's artifact, folder or URI.
        destination: Folder or URI of the new artifact.

    Raises:
        ArtifactError: No artifact of an adapter, no golden prompts to measure by, or the merged model answers
            one of them otherwise; nothing is published then.
        ModelError: The base model is not here, or the adapter holds numbers that are not finite.
    """
    artifact = open_artifact(place)
    manifest = artifact.manifest
    if manifest.kind != "adapter":
        raise ArtifactError(f"{place} is a full model already: there is nothing to merge")
    if not manifest.golden:
        raise ArtifactError(f"{place} has no golden prompts, so nobody could tell what merging changes: train it again")
    loaded = open_model(artifact)
    merged, drift = merge_with_drift(loaded.model, [(case.prompt_ids, case.output_ids) for case in manifest.golden])
    encoder = Encoder(
        loaded.tokenizer,
        PromptTemplate.model_validate(manifest.template),
        max_input_length=manifest.limits.max_input_length,
        max_target_length=manifest.limits.max_target_length,
    )
    generator = TransformersGenerator(merged, loaded.tokenizer, seq2seq=manifest.seq2seq)
    replay_golden(generator, encoder, manifest.golden)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    full = manifest.model_copy(update={"kind": "full", "base": None, "created": created, "files": {}})
    with tempfile.TemporaryDirectory(prefix="rayloom-merge-") as name:
        folder = Path(name)
        save_model(merged, loaded.tokenizer, folder / "model")
        shutil.copyfile(artifact.config_path, folder / "config.yaml")
        card = model_card(full, config_yaml=artifact.config_path.read_text(encoding="utf-8"))
        (folder / "README.md").write_text(card, encoding="utf-8")
        return MergeOutcome(publish(folder, destination, full), drift)
