"""OpenAI's names of generation parameters, and ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rayloom.errors import RequestError

if TYPE_CHECKING:
    from rayloom.serving.openai.requests import SharedRequest

_OTHER_NAMES = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "n": "num_return_sequences",
    "stop": "stop_strings",
}
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "eta_cutoff", "epsilon_cutoff")


def translated(body: SharedRequest) -> dict[str, Any]:
    """The generation parameters that a body names, by our names; chat's `logprobs` left out.

    Raises:
        RequestError: The same parameter given under two names, or sampling asked for and against.
    """
    given: dict[str, Any] = body.parameters
    if isinstance(given.get("logprobs"), bool):
        del given["logprobs"]
    for theirs, ours in _OTHER_NAMES.items():
        value = getattr(body, theirs, None)
        if value is None:
            continue
        value = [value] if isinstance(value, str) else value
        if ours in given and given[ours] != value:
            raise RequestError(f"{theirs} and {_also(body, theirs, ours)} are the same parameter: give one")
        given[ours] = value
    if given.get("max_new_tokens") == 0:
        given["max_new_tokens"] = 1  # the least that is generated; it is thrown away
    if given.get("seed", 0) < 0:
        given["seed"] += 1 << 64  # OpenAI's are signed
    given.setdefault("num_return_sequences", 1)  # whatever the model's own default is
    _decide_sampling(given, num_wanted=max(getattr(body, "best_of", None) or 1, given["num_return_sequences"]))
    return given


def _also(body: SharedRequest, theirs: str, ours: str) -> str:
    same = [name for name, meaning in _OTHER_NAMES.items() if meaning == ours and name != theirs]
    return next((name for name in same if getattr(body, name, None) is not None), ours)


def _decide_sampling(given: dict[str, Any], *, num_wanted: int) -> None:
    """OpenAI has no do_sample: a temperature says it."""
    if given.get("temperature") == 0:
        if given.get("do_sample"):
            raise RequestError("temperature 0 takes the likeliest tokens: leave do_sample out, or give a temperature")
        for name in _SAMPLING:
            given.pop(name, None)
        given["do_sample"] = False
    elif any(name in given for name in _SAMPLING) or (num_wanted > 1 and "num_beams" not in given):
        given.setdefault("do_sample", True)
