"""Golden prompts: token ids that an artifact must reproduce wherever it is opened."""

from __future__ import annotations

from collections.abc import Sequence

from rayloom.artifacts import Artifact, GoldenCase
from rayloom.config import GenerationConfig
from rayloom.data import Encoder, PromptInput
from rayloom.errors import ArtifactError, RequestError
from rayloom.generation.types import GeneratedSequence, GenerationRequest, Generator


def make_golden(
    generator: Generator,
    encoder: Encoder,
    inputs: Sequence[PromptInput],
    *,
    max_new_tokens: int = 16,
    min_margin: float = 0.05,
) -> list[GoldenCase]:
    """Record prompts with their token ids and greedy answers.

    Answers end before the first step at which the two likeliest tokens are closer than ``min_margin``: then
    rounding on other hardware does not change them. Use a model in float32.

    Args:
        generator: Drives the model.
        encoder: Makes the prompts.
        inputs: What to ask.
        max_new_tokens: Longest recorded answer.
        min_margin: Least distance of the two best logits (equal to that of their log-probabilities).
    """
    config = GenerationConfig(max_new_tokens=max_new_tokens, logprobs=2)
    requests = [GenerationRequest(encoder.prompt_ids(asked), config) for asked in inputs]
    # One by one, as replayed: a batch's padding adds rounding of its own.
    return [
        GoldenCase(
            prompt=asked.text,
            context=asked.context,
            messages=[dict(message) for message in asked.messages] if asked.messages else None,
            prompt_ids=request.prompt_ids,
            output_ids=_safe_ids(generator.generate([request], batch_size=1)[0].sequences[0], min_margin),
        )
        for asked, request in zip(inputs, requests, strict=True)
    ]


def replay_golden(
    generator: Generator, encoder: Encoder, cases: Sequence[GoldenCase], *, check_outputs: bool = True
) -> None:
    """Ask the golden prompts again.

    Args:
        generator: Drives the model.
        encoder: Makes the prompts.
        cases: What was recorded.
        check_outputs: Compare answers as well; only float32 models promise equal ones.

    Raises:
        ArtifactError: A prompt is not encoded, or not answered, as it was.
    """
    for number, case in enumerate(cases, start=1):
        messages = tuple(dict(message) for message in case.messages) if case.messages else None
        prompt_ids = encoder.prompt_ids(PromptInput(case.prompt, case.context, messages))
        if prompt_ids != case.prompt_ids:
            raise _mismatch(number, case, "prompt", case.prompt_ids, prompt_ids)
        if not check_outputs or not case.output_ids:
            continue
        config = GenerationConfig(max_new_tokens=len(case.output_ids))
        (output,) = generator.generate([GenerationRequest(prompt_ids, config)], batch_size=1)
        if output.sequences[0].token_ids != case.output_ids:
            raise _mismatch(number, case, "answer", case.output_ids, output.sequences[0].token_ids)


def refuse_unproven(*artifacts: Artifact | None, will_replay: bool) -> None:
    """Refuse to open what could not prove that another engine than ours is right about it.

    Args:
        artifacts: What is to be opened; None for a plain model.
        will_replay: Whether golden prompts are replayed at all.

    Raises:
        RequestError: There is nothing to replay, or nothing is to be.
    """
    if not will_replay:
        raise RequestError("replay_golden: engine vllm is let in only if the golden prompts replay; leave it on")
    for artifact in artifacts:
        if artifact is None or not any(case.output_ids for case in artifact.manifest.golden):
            named = "a plain model" if artifact is None else f"the artifact {artifact.path}"
            raise RequestError(
                f"engine vllm is let in only if golden prompts replay, and {named} has none: publish the model as an "
                "artifact, or take engine rayloom"
            )


def _safe_ids(sequence: GeneratedSequence, min_margin: float) -> list[int]:
    assert sequence.logprobs is not None
    for step, entry in enumerate(sequence.logprobs):
        (_, best), (_, second) = entry.top
        if best - second < min_margin:
            return sequence.token_ids[:step]
    return sequence.token_ids


def _mismatch(number: int, case: GoldenCase, what: str, expected: list[int], found: list[int]) -> ArtifactError:
    place = next(
        (at for at, pair in enumerate(zip(expected, found, strict=False)) if pair[0] != pair[1]),
        min(len(expected), len(found)),
    )
    return ArtifactError(
        f"the artifact does not replay golden prompt {number} ({case.prompt[:60]!r}): the {what}'s token ids "
        f"differ from position {place} on (recorded {expected[place : place + 5]}, now "
        f"{found[place : place + 5]}). Its weights, tokenizer or template are "
        "not those it was made with: publish it again, or fetch an undamaged copy"
    )
