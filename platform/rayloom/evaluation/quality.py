"""Quality without references: fluency, relevance, coherence, diversity. Defined in docs/quality.md."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from typing import Protocol

from sacrebleu.metrics import BLEU

from rayloom.evaluation.scorer import Likelihood

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+|\n+")
_MOST_TEXTS = 100


class TextScorer(Protocol):
    """Says how likely texts are; see `Scorer`."""

    def likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """Of each text after its context."""
        ...


def quality_rows(scorer: TextScorer, prompts: Sequence[str], texts: Sequence[str]) -> list[dict[str, float]]:
    """What a scorer model says of each text.

    Args:
        scorer: Says how likely texts are.
        prompts: What was asked, one for each text; empty for nothing.
        texts: What was written.

    Returns:
        For each row ``fluency_nll`` and ``fluency_tokens`` (perplexity is made of their sums); ``relevance`` where
        there is a prompt and a text; ``coherence`` where the text has two sentences. Both in 0 to 1.
    """
    rows = [
        {"fluency_nll": each.nll, "fluency_tokens": float(each.num_tokens)}
        for each in scorer.likelihoods([("", text.strip()) for text in texts])
    ]
    for row, value in zip(rows, relevance(scorer, prompts, texts), strict=True):
        row |= {"relevance": value} if value is not None else {}
    for row, value in zip(rows, coherence(scorer, texts), strict=True):
        row |= {"coherence": value} if value is not None else {}
    return rows


def relevance(scorer: TextScorer, prompts: Sequence[str], texts: Sequence[str]) -> list[float | None]:
    """Share of each text's surprise that its prompt takes away: 1 - NLL(text | prompt) / NLL(text), 0 to 1.

    None where there is no prompt or no text.
    """
    asked = [place for place in range(len(texts)) if prompts[place].strip() and texts[place].strip()]
    answers = [f"\n{texts[place].strip()}" for place in asked]
    alone = scorer.likelihoods([("", answer) for answer in answers])
    given = scorer.likelihoods([(prompts[place].strip(), answer) for place, answer in zip(asked, answers, strict=True)])
    found: list[float | None] = [None] * len(texts)
    for place, before, after in zip(asked, alone, given, strict=True):
        found[place] = _explained(before.nll, after.nll)
    return found


def coherence(scorer: TextScorer, texts: Sequence[str]) -> list[float | None]:
    """Share of the surprise of each text's sentences, from the second on, that those before them take away, 0 to 1.

    A sentence that stood in the text before explains nothing and is explained by nothing: saying it twice is not going
    on. None for a text of fewer than two sentences.
    """
    parts = [sentences(text) for text in texts]
    places = [(row, at) for row, part in enumerate(parts) for at in range(1, len(part))]
    later = [f" {parts[row][at]}" for row, at in places]
    alone = scorer.likelihoods([("", text) for text in later])
    given = scorer.likelihoods(
        [(" ".join(parts[row][:at]), text) for (row, at), text in zip(places, later, strict=True)]
    )
    sums = {row: [0.0, 0.0] for row, _ in places}
    for (row, at), before, after in zip(places, alone, given, strict=True):
        is_new = parts[row][at].lower() not in {each.lower() for each in parts[row][:at]}
        sums[row][0] += before.nll
        sums[row][1] += after.nll if is_new else before.nll
    return [_explained(*sums[row]) if row in sums else None for row in range(len(texts))]


def self_bleu(texts: Sequence[str], *, seed: int = 0) -> float | None:
    """Mean BLEU of each text against all others (Zhu et al., 2018), in 0 to 1: less is more diverse.

    Args:
        texts: What was written. Of more than a hundred, so many are drawn.
        seed: Of that draw.

    Returns:
        None for fewer than two texts.
    """
    if len(texts) < 2:
        return None
    drawn = list(texts) if len(texts) <= _MOST_TEXTS else random.Random(seed).sample(list(texts), _MOST_TEXTS)
    metric = BLEU(effective_order=True)
    scores = [metric.sentence_score(text, [*drawn[:at], *drawn[at + 1 :]]).score for at, text in enumerate(drawn)]
    return min(1.0, math.fsum(scores) / len(scores) / 100)  # sacrebleu's 100 is a little more than that


def sentences(text: str) -> list[str]:
    """A text at its full stops, question and exclamation marks, and line breaks."""
    return [part.strip() for part in _SENTENCE_END.split(text) if part and part.strip()]


def _explained(before: float, after: float) -> float:
    return min(1.0, max(0.0, 1 - after / before)) if before > 0 else 0.0
