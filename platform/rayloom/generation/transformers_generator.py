"""`Generator` over ``transformers.generate``, in batches: the engine's oracle, and the writer in training.

Shape letters: B rows of a batch, T tokens, R answers (rows x num_return_sequences), V vocabulary.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed
import transformers
from transformers import LogitsProcessorList, PreTrainedTokenizerBase

from rayloom.errors import RequestError
from rayloom.generation.finishing import finish_sequences, stop_criterion
from rayloom.generation.forbidden import ForbiddenWords
from rayloom.generation.parameters import refuse_unsupported, to_transformers
from rayloom.generation.planning import DEFAULT_NEW_TOKENS, Batch, Window, plan_batches, request_lengths
from rayloom.generation.types import GenerationOutput, GenerationRequest


class TransformersGenerator:
    """Drives ``model.generate``.

    Requests of equal parameters are batched by length; a request with a seed runs alone, so that its seed
    gives the same text whatever else is asked for. Calls from several threads run one after the other.

    Args:
        model: A causal or seq2seq model, plain or with a PEFT adapter.
        tokenizer: Its tokenizer.
        seq2seq: Whether the model is an encoder-decoder.
        synced_gpus: ZeRO-3: each forward pass is a collective, so all ranks generate until the last is done.
            Every rank must then call `generate` together.
        default_new_tokens: New tokens where a request names no length.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seq2seq: bool,
        synced_gpus: bool = False,
        default_new_tokens: int = DEFAULT_NEW_TOKENS,
    ) -> None:
        self.model, self.tokenizer, self.seq2seq = model, tokenizer, seq2seq
        self._synced_gpus = synced_gpus
        self.window = Window(seq2seq, max_positions(model.config, seq2seq=seq2seq), default_new_tokens)
        self._lock = threading.Lock()

    def generate(self, requests: Sequence[GenerationRequest], *, batch_size: int) -> list[GenerationOutput]:
        """Answer all requests, in their order.

        Args:
            requests: Prompts with their parameters.
            batch_size: Most prompts per forward pass (each takes num_beams or num_return_sequences rows).

        Raises:
            RequestError: A parameter that cannot be honoured, or a prompt that is empty or too long.
        """
        for request in requests:
            self._check(request)
        batches = plan_batches(requests, self.window, batch_size=batch_size)
        outputs: dict[int, GenerationOutput] = {}
        for batch in batches:
            rows = [requests[row] for row in batch.rows]
            outputs |= dict(zip(batch.rows, self._run(rows, batch), strict=True))
        if self._synced_gpus:
            self._keep_company(len(batches))
        return [outputs[row] for row in range(len(requests))]

    def _check(self, request: GenerationRequest) -> None:
        refuse_unsupported(request.config)
        if request.prompt_logprobs is not None:
            raise RequestError("prompt_logprobs are not available while a model is being trained")
        if not request.prompt_ids and not (request.prefix_ids and not self.seq2seq):
            raise RequestError("the prompt is empty: there is nothing to go on from")
        if request.config.stop_strings:
            stop_criterion(self.tokenizer, tuple(request.config.stop_strings))

    def _run(self, requests: Sequence[GenerationRequest], batch: Batch) -> list[GenerationOutput]:
        config = requests[0].config
        with (
            self._lock,
            _neutral_defaults(self.model) as defaults,
            _quietly(),
            _seeded(config.seed, self._device),
        ):
            settings = to_transformers(config, batch.lengths, defaults, self.tokenizer)
            inputs, start = self._inputs(requests, settings)
            with torch.inference_mode() if not self._synced_gpus else torch.no_grad():
                result = self.model.generate(  # type: ignore[operator]
                    **inputs,
                    **self._extras(requests, start),
                    generation_config=settings,
                    synced_gpus=self._synced_gpus,
                )
        return finish_sequences(result, requests, settings, self.tokenizer, start)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _extras(self, requests: Sequence[GenerationRequest], start: int) -> dict[str, Any]:
        config = requests[0].config
        extras: dict[str, Any] = {}
        if config.stop_strings:
            extras["tokenizer"] = self.tokenizer
        if config.forbidden_words and any(word.strip() for word in config.forbidden_words):
            answer = start - min(len(request.prefix_ids) for request in requests)
            words = ForbiddenWords(config.forbidden_words, self.tokenizer, answer)
            extras["logits_processor"] = LogitsProcessorList([words])
        return extras

    def _inputs(
        self, requests: Sequence[GenerationRequest], settings: transformers.GenerationConfig
    ) -> tuple[dict[str, torch.Tensor], int]:
        """Padded inputs, and where in the resulting sequences the generated tokens start."""
        pad, device = settings.pad_token_id, self._device
        if not self.seq2seq:
            ids_BT, mask_BT = _padded([[*r.prompt_ids, *r.prefix_ids] for r in requests], pad, left=True)
            return {"input_ids": ids_BT.to(device), "attention_mask": mask_BT.to(device)}, ids_BT.shape[1]
        ids_BT, mask_BT = _padded([r.prompt_ids for r in requests], pad, left=False)
        first = settings.decoder_start_token_id
        decoder_BT = torch.tensor(
            [[settings.bos_token_id if first is None else first, *r.prefix_ids] for r in requests]
        )
        inputs = {"input_ids": ids_BT, "attention_mask": mask_BT, "decoder_input_ids": decoder_BT}
        return {name: tensor.to(device) for name, tensor in inputs.items()}, decoder_BT.shape[1]

    def _keep_company(self, done: int) -> None:
        """Run empty rounds until every rank has called the model's collectives equally often."""
        if not torch.distributed.is_initialized():
            return
        rounds = torch.tensor([done], device=self._device)
        torch.distributed.all_reduce(rounds, op=torch.distributed.ReduceOp.MAX)
        token = self.tokenizer.eos_token_id or 0
        filler = GenerationRequest([token])
        for _ in range(int(rounds) - done):
            self._run([filler], Batch((0,), request_lengths(filler, Window(self.seq2seq, None, 1))))


def max_positions(config: Any, *, seq2seq: bool) -> int | None:
    """Longest sequence that a model's configuration allows; None for no bound (T5: relative positions)."""
    if seq2seq and getattr(config, "relative_attention_num_buckets", None):
        return None
    for name in ("max_position_embeddings", "n_positions"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def _padded(rows: Sequence[Sequence[int]], pad: int, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(row) for row in rows)
    ids_BT = torch.full((len(rows), width), pad)
    mask_BT = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        at = slice(width - len(row), width) if left else slice(0, len(row))
        ids_BT[index, at] = torch.tensor(row)
        mask_BT[index, at] = 1
    return ids_BT, mask_BT


@contextlib.contextmanager
def _neutral_defaults(model: torch.nn.Module) -> Iterator[transformers.GenerationConfig]:
    """Take the model's own defaults away for one call: transformers would fill gaps from them."""
    own: Any = model.generation_config
    training = model.training
    try:
        model.generation_config = transformers.GenerationConfig()
        model.eval()
        yield own
    finally:
        _restore(model, own)
        model.train(training)


def _restore(model: Any, own: transformers.GenerationConfig) -> None:
    model.generation_config = own
    inner = getattr(model, "base_model", None)  # PEFT copies the wrapper's config downwards in generate()
    for holder in (inner, getattr(inner, "model", None)):
        if holder is not None and "generation_config" in vars(holder):
            holder.generation_config = own


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep transformers' own advice away from users: what matters is checked here and raised."""
    verbosity = transformers.logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.logging.set_verbosity_error()
        try:
            yield
        finally:
            transformers.logging.set_verbosity(verbosity)


@contextlib.contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    if seed is None:
        yield
        return
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
