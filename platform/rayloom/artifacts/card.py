"""The model card: ``README.md`` of an artifact, with the front matter that model hubs read."""

from __future__ import annotations

from typing import Any

import yaml

from rayloom.artifacts.hub import HubPlace
from rayloom.artifacts.manifest import BASE_FOLDER, Manifest


def model_card(
    manifest: Manifest, *, config_yaml: str, place: HubPlace | None = None, license_id: str | None = None
) -> str:
    """A model card in Markdown with YAML front matter.

    Args:
        manifest: The artifact's description.
        config_yaml: The run's resolved config.
        place: Repository on the hub where the artifact will be; else it is in a folder.
        license_id: Identifier of the licence of the weights, such as ``apache-2.0``.
    """
    front = _front_matter(manifest) | ({"license": license_id} if license_id else {})
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {manifest.name}",
        _summary(manifest),
        "## Use with Rayloom",
        _rayloom_snippet(manifest, str(place) if place else "PATH/TO/THIS/FOLDER"),
        "## Use without Rayloom",
        _stock_snippet(manifest, place),
        "## Measured",
        _metrics(manifest),
        "## Limits",
        _limits(manifest),
        "## Where it comes from",
        _lineage(manifest),
        "## Licence",
        license_id or "Not stated. The licences of the base model and of the training data apply.",
        "## Training config",
        f"```yaml\n{config_yaml.strip()}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(manifest: Manifest) -> dict[str, Any]:
    tags = ["rayloom", manifest.family, *(["lora", "peft"] if manifest.kind == "adapter" else [])]
    values: dict[str, Any] = {
        "library_name": "peft" if manifest.kind == "adapter" else "transformers",
        "pipeline_tag": "text-generation",
        "tags": tags,
    }
    if _base_on_hub(manifest) and manifest.base is not None:
        values["base_model"] = manifest.base.name
    return values


def _base_on_hub(manifest: Manifest) -> bool:
    base = manifest.base
    return base is not None and not base.is_inside and not base.name.startswith("package:")


def _summary(manifest: Manifest) -> str:
    shape = "encoder-decoder" if manifest.seq2seq else "decoder-only"
    task = str(manifest.template.get("task", "text generation"))
    what = "a LoRA adapter" if manifest.kind == "adapter" else "a fine-tuned model"
    text = f"This is {what} for {task}: {manifest.family}, {shape}, made by Rayloom {manifest.code_version}."
    if manifest.base is not None:
        revision = f" (revision `{manifest.base.revision}`)" if manifest.base.revision else ""
        place = "in the folder `base/`" if manifest.base.is_inside else f"`{manifest.base.name}`{revision}"
        text += f" Its base model is {place}."
    return text


def _rayloom_snippet(manifest: Manifest, place: str) -> str:
    prompt = _example(manifest)
    return (
        f"```python\nfrom rayloom import TextGenerator\n\n"
        f'generator = TextGenerator("{place}")\nprint(generator.generate({prompt!r}))\n```\n\n'
        f"```bash\nrayloom serve {place}\n```\n\n"
        "Rayloom applies the prompt template of `manifest.json` and, before it serves, replays "
        f"{len(manifest.golden)} golden prompts token by token."
    )


def _stock_snippet(manifest: Manifest, place: HubPlace | None) -> str:
    kind = "AutoModelForSeq2SeqLM" if manifest.seq2seq else "AutoModelForCausalLM"
    own = _quoted(place.repo, place.revision) if place else '"model"' if manifest.kind == "full" else '"adapter"'
    lines = [f"from transformers import {kind}, AutoTokenizer"]
    if manifest.kind == "full":
        lines += ["", f"model = {kind}.from_pretrained({own})"]
    else:
        lines += ["from peft import PeftModel", "", *_base_lines(manifest, kind, place)]
        lines += [f"model = PeftModel.from_pretrained(model, {own})"]
    lines += [f"tokenizer = AutoTokenizer.from_pretrained({own})"]
    note = "The model expects its prompts as the template in `manifest.json` renders them."
    return "```python\n" + "\n".join(lines) + "\n```\n\n" + note


def _quoted(name: str, revision: str | None) -> str:
    return f'"{name}"' + (f', revision="{revision}"' if revision else "")


def _base_lines(manifest: Manifest, kind: str, place: HubPlace | None) -> list[str]:
    base = manifest.base
    if base is None or base.is_inside:
        if place is None:
            return [f'model = {kind}.from_pretrained("{BASE_FOLDER}")']
        return [  # by the repository's name transformers would take the adapter at its top for the model
            "from huggingface_hub import snapshot_download",
            "",
            f"folder = snapshot_download({_quoted(place.repo, place.revision)})",
            f'model = {kind}.from_pretrained(f"{{folder}}/{BASE_FOLDER}")',
        ]
    if base.name.startswith("package:"):
        package, _, file = base.name.removeprefix("package:").partition("/")
        module = package.replace("-", "_")
        return [
            "import importlib.util, pathlib",
            "",
            f'folder = pathlib.Path(importlib.util.find_spec("{module}").origin).parent',
            f'model = {kind}.from_pretrained(folder, gguf_file="{file}")',
        ]
    return [f"model = {kind}.from_pretrained({_quoted(base.name, base.revision)})"]


def _example(manifest: Manifest) -> str:
    return manifest.golden[0].prompt if manifest.golden and manifest.golden[0].prompt else "Your text"


def _metrics(manifest: Manifest) -> str:
    if not manifest.metrics:
        return "Not measured."
    rows = [f"| {name} | {value:.4g} |" for name, value in sorted(manifest.metrics.items())]
    return "\n".join(["| measure | value |", "| --- | --- |", *rows])


def _limits(manifest: Manifest) -> str:
    limits = manifest.limits
    return (
        f"Trained on prompts of up to {limits.max_input_length} tokens and answers of up to "
        f"{limits.max_target_length} tokens. It writes what is likely, which need not be true: check its "
        "answers before anything depends on them."
    )


def _lineage(manifest: Manifest) -> str:
    rows = {
        "created": manifest.created,
        "code": f"rayloom {manifest.code_version}",
        "data (SHA-256)": manifest.data_hash,
        "config (SHA-256)": manifest.config_hash,
        "format": str(manifest.format_version),
    }
    return "\n".join(["| what | value |", "| --- | --- |", *(f"| {k} | `{v}` |" for k, v in rows.items())])
