"""Log-probabilities of prompts: what the model thought of each token before it read it.

A request that asks for them has its start tokens computed whole, nothing of them taken from the cache. As they are read
in pieces, so are the scores: a span's first tokens predict start tokens, its last one predicts the answer's.

Shape letters: R rows whose logits a step wants, P start tokens that a span predicts, V vocabulary.
"""

from __future__ import annotations

import torch

from rayloom.engine.choosing import token_scores
from rayloom.engine.events import Event, PromptScored
from rayloom.engine.plan import Plan, Span


def num_scored(span: Span) -> int:
    """How many of a span's tokens, from its first on, predict a start token whose log-probability is wanted."""
    group = span.group
    if group.request.params.prompt_logprobs is None or group.has_told_prompt:
        return 0
    return max(min(span.start + span.length, len(group.request.start_ids) - 1) - span.start, 0)


def score_prompts(plan: Plan, logits_RV: torch.Tensor) -> tuple[list[Event], torch.Tensor]:
    """Take the rows that score prompts out of a step's logits.

    Args:
        plan: The step that was computed.
        logits_RV: Rows of each span: `num_scored` of them, and one more if it wants logits.

    Returns:
        What is to be told of prompts that are complete now; and the rows that tokens are chosen from.
    """
    if not any(_is_asked(span) for span in plan.spans):
        return [], logits_RV
    events: list[Event] = []
    chosen: list[int] = []
    row = 0
    for span in plan.spans:
        count = num_scored(span)
        if count:
            _keep(span, logits_RV[row : row + count])
            row += count
        if not span.wants_logits:
            continue
        chosen.append(row)
        row += 1
        if _is_asked(span):
            span.group.has_told_prompt = True
            events.append(PromptScored(span.group.group_id, tuple(span.group.prompt_scores)))
    return events, logits_RV[torch.tensor(chosen, dtype=torch.int64, device=logits_RV.device)]


def _is_asked(span: Span) -> bool:
    return span.group.request.params.prompt_logprobs is not None and not span.group.has_told_prompt


def _keep(span: Span, logits_PV: torch.Tensor) -> None:
    """Score the start tokens behind the span's; after a preemption from the first one again."""
    request, scores = span.group.request, span.group.prompt_scores
    del scores[span.start :]
    targets = request.start_ids[span.start + 1 : span.start + 1 + logits_PV.shape[0]]
    tokens_P = torch.tensor(targets, dtype=torch.int64, device=logits_PV.device)
    scores += token_scores(logits_PV, tokens_P, request.params.prompt_logprobs or 0)
