"""From what ``model.generate`` returns to answers: padding cut, stop strings found, text decoded.

Shape letters: R answers, T tokens, S generation steps, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers import PreTrainedTokenizerBase
from transformers.generation.stopping_criteria import StopStringCriteria

from rayloom.engine import FinishReason
from rayloom.errors import RequestError
from rayloom.generation.parameters import eos_ids
from rayloom.generation.types import (
    GeneratedSequence,
    GenerationOutput,
    GenerationRequest,
    TokenLogprob,
)
from rayloom.generation.words import decode


def stop_criterion(tokenizer: PreTrainedTokenizerBase, stop_strings: tuple[str, ...]) -> StopStringCriteria:
    """The criterion that transformers stops by (it keeps its own cache).

    Raises:
        RequestError: An empty stop string, or one that the tokenizer can never write.
    """
    if not all(stop_strings):
        raise RequestError("stop_strings must not be empty strings")
    try:
        return StopStringCriteria(tokenizer=tokenizer, stop_strings=list(stop_strings))
    except ValueError as error:
        raise RequestError(f"stop_strings {list(stop_strings)}: {error}") from None


def finish_sequences(
    result: Any,
    requests: Sequence[GenerationRequest],
    settings: transformers.GenerationConfig,
    tokenizer: PreTrainedTokenizerBase,
    start: int,
) -> list[GenerationOutput]:
    """Answers to the requests of one batch.

    Args:
        result: What ``model.generate`` returned, as a dict-like output.
        requests: The batch, in row order.
        settings: What it was generated with.
        tokenizer: The model's tokenizer.
        start: Where generated tokens start in ``result.sequences``.
    """
    each = settings.num_return_sequences or 1
    rows = result.sequences.tolist()
    scores = getattr(result, "sequences_scores", None)
    logprobs = _Logprobs(result, requests[0].config.logprobs, tokenizer)
    outputs = []
    for index, request in enumerate(requests):
        sequences = []
        for row in range(index * each, (index + 1) * each):
            ids, text, reason = _finish(rows[row], request, settings, tokenizer, start)
            token_ids = [*request.prefix_ids, *ids]
            score = float(scores[row]) if scores is not None else None
            sequences.append(GeneratedSequence(token_ids, text, reason, score, logprobs.of(row, ids)))
        outputs.append(GenerationOutput(list(request.prompt_ids), sequences))
    return outputs


def cut_at_stop(text: str, stop_strings: Sequence[str]) -> str:
    """The text before the first stop string; nothing, if that began in the prompt already."""
    places = [place for stop in stop_strings if (place := text.find(stop)) >= 0]
    return text[: min(places, default=0)]


def _finish(
    row: list[int],
    request: GenerationRequest,
    settings: transformers.GenerationConfig,
    tokenizer: Any,
    start: int,
) -> tuple[list[int], str, FinishReason]:
    """Generated tokens without end of sequence and padding, the answer's text, and why it ended."""
    ends = set(eos_ids(settings.eos_token_id))
    generated = row[start:]
    end = next((place for place, token in enumerate(generated) if token in ends), None)
    limit = len(generated) if end is None else end
    if settings.stop_strings:
        criterion = stop_criterion(tokenizer, tuple(settings.stop_strings))
        stop = _stop_place(row, start, limit, criterion)
        if stop is not None:
            text = decode(tokenizer, [*request.prefix_ids, *generated[:stop]])
            return generated[:stop], cut_at_stop(text, settings.stop_strings), "stop"
    ids = generated[:limit]
    timed_out = settings.max_time is not None and len(generated) < settings.max_new_tokens
    reason: FinishReason = "stop" if end is not None else "time" if timed_out else "length"
    return ids, decode(tokenizer, [*request.prefix_ids, *ids]), reason


def _stop_place(row: list[int], start: int, limit: int, criterion: StopStringCriteria) -> int | None:
    """Number of generated tokens at which the criterion first held; later tokens are padding."""
    ids_T = torch.tensor(row)
    for size in range(1, limit + 1):
        if bool(criterion(ids_T[None, : start + size], None)):
            return size
    return None


class _Logprobs:
    """Log-probabilities of chosen tokens; beams are followed back to the rows they came from."""

    def __init__(self, result: Any, num_top: int | None, tokenizer: PreTrainedTokenizerBase) -> None:
        self._num_top, self._tokenizer = num_top, tokenizer
        self._logits_S = result.logits if num_top is not None else ()
        self._beams_RS = getattr(result, "beam_indices", None)

    def of(self, row: int, ids: Sequence[int]) -> list[TokenLogprob] | None:
        if self._num_top is None:
            return None
        return [self._at(step, self._row(row, step), token) for step, token in enumerate(ids)]

    def _row(self, row: int, step: int) -> int:
        return row if self._beams_RS is None else int(self._beams_RS[row, step])

    def _at(self, step: int, row: int, token: int) -> TokenLogprob:
        logprobs_V = torch.log_softmax(self._logits_S[step][row].float(), dim=-1)
        values, indices = logprobs_V.topk(min(self._num_top or 0, logprobs_V.shape[0]))
        top = tuple(zip(indices.tolist(), values.tolist(), strict=True))
        return TokenLogprob(token, decode(self._tokenizer, [token]), float(logprobs_V[token]), top)
