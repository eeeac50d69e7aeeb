"""From a source to a model and tokenizer that are ready to use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import GenerationConfig as HfGenerationConfig

from rayloom.config import ModelConfig
from rayloom.errors import ConfigError, ModelError
from rayloom.models.families import Family, family_of
from rayloom.models.quiet import no_progress_bars
from rayloom.models.sources import ModelSource, check_folder

GenerationType = Literal["auto", "seq2seq", "causal"]

_PAD_CANDIDATES = ("<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>", "<|padding|>")


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, with its tokenizer."""

    model: PreTrainedModel
    """A transformers model, or a ``PeftModel`` around one."""
    tokenizer: PreTrainedTokenizerBase
    family: Family


def load_config(source: ModelSource) -> Any:
    """The transformers configuration of a source.

    Raises:
        ModelError: It cannot be read, or needs code from the hub.
    """
    folder = source.model_folder()
    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise ModelError(f"{folder}: the configuration cannot be read: {_first_line(error)}") from error


def load_family(source: ModelSource) -> Family:
    """The family of a source; reads no weights. See `load_config` for errors."""
    return family_of(load_config(source))


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer of a source, with a pad token.

    Raises:
        ModelError: There is none, or it has neither pad nor end-of-sequence token.
    """
    return tokenizer_in(source.tokenizer_folder())


def tokenizer_in(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a local folder. See `load_tokenizer`."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"{folder}: the tokenizer cannot be loaded: {_first_line(error)}") from error
    _ensure_pad(tokenizer, folder)
    result: PreTrainedTokenizerBase = tokenizer
    return result


def load_model(
    source: ModelSource, *, dtype: torch.dtype = torch.float32, generation_type: GenerationType = "auto"
) -> LoadedModel:
    """Load weights and tokenizer; safetensors only, no code from the hub.

    Args:
        source: Where it lies.
        dtype: Type of the weights.
        generation_type: What the user says it is; ``auto`` trusts the configuration.

    Returns:
        The model in evaluation mode on the CPU. Its generation defaults hold token ids and nothing else, so
        that only our own parameters decide how it generates.

    Raises:
        ModelError: Weights are missing or do not fit, or the model is not of the given generation type.
    """
    folder = source.model_folder()
    check_folder(folder)
    hf_config = load_config(source)
    family = family_of(hf_config)
    check_generation_type(source.name, family, generation_type)
    model = _load_weights(folder, family, dtype)
    tokenizer = load_tokenizer(source)
    _check_vocabulary(model, tokenizer, source.name)
    _clean_generation_defaults(model, tokenizer)
    model.name_or_path = source.ref.name  # PEFT writes it into adapters, where a cache path would mislead
    return LoadedModel(model.eval(), tokenizer, family)


def check_generation_type(name: str, family: Family, wanted: GenerationType) -> None:
    """Refuse a contradiction between the user's word and the model's configuration.

    Raises:
        ModelError: The two differ.
    """
    kind = "seq2seq" if family.seq2seq else "causal"
    if wanted not in ("auto", kind):
        raise ModelError(f"'{name}' is a {kind} model; model.generation_type says {wanted}: leave it at auto")


def check_task(config: ModelConfig, family: Family) -> None:
    """Refuse a task that the model's architecture cannot do.

    Raises:
        UserError: generation_type or task_type contradicts the model.
    """
    check_generation_type(config.name, family, config.generation_type)
    if family.seq2seq and config.task_type in ("language-modeling", "chat"):
        raise ConfigError(
            f"'{config.name}' is a seq2seq model; {config.task_type} needs a causal one (GPT-2, GPT-Neo, LLaMA)",
            key="model.task_type",
        )


def _load_weights(folder: Path, family: Family, dtype: torch.dtype) -> Any:
    auto = AutoModelForSeq2SeqLM if family.seq2seq else AutoModelForCausalLM
    try:
        with no_progress_bars():
            model, report = auto.from_pretrained(
                str(folder),
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder}: the weights cannot be loaded: {_first_line(error)}") from error
    for kind in ("missing_keys", "mismatched_keys"):
        if report.get(kind):
            names = f"{kind.replace('_', ' ')}: {', '.join(sorted(map(str, report[kind]))[:3])}"
            # transformers would go on with random numbers in their place.
            raise ModelError(f"{folder}: weights do not fit the configuration ({names} …)")
    return model


def _ensure_pad(tokenizer: Any, folder: Path) -> None:
    if tokenizer.pad_token_id is not None:
        return
    vocabulary = tokenizer.get_vocab()
    fitting = [token for token in _PAD_CANDIDATES if token in vocabulary]
    if tokenizer.unk_token is not None and tokenizer.unk_token != tokenizer.eos_token:
        fitting.append(tokenizer.unk_token)
    if fitting:
        tokenizer.pad_token = fitting[0]
    elif tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    else:
        raise ModelError(f"{folder}: the tokenizer has neither a pad nor an end-of-sequence token")


def _check_vocabulary(model: Any, tokenizer: Any, name: str) -> None:
    rows = int(model.get_input_embeddings().weight.shape[0])
    if len(tokenizer) > rows:
        raise ModelError(
            f"'{name}': the tokenizer has {len(tokenizer)} tokens, the model only {rows} embeddings: they do "
            "not belong together (see model.tokenizer)"
        )


def _clean_generation_defaults(model: Any, tokenizer: Any) -> None:
    old = model.generation_config
    kept = {name: value for name, value in old.to_dict().items() if name.endswith("_token_id") and value is not None}
    kept.setdefault("eos_token_id", tokenizer.eos_token_id)
    model.generation_config = HfGenerationConfig(**(kept | {"pad_token_id": tokenizer.pad_token_id}))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
