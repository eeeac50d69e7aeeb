"""Required words by naive search through the whole text, and constrained and diverse beams as plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Phrases = Sequence[Sequence[Sequence[int]]]
Text = tuple[int, ...]
LogProbs = Callable[[Text], list[float]]
"""Of every next token, after the generated tokens so far."""


def occurs(way: Sequence[int], text: Text) -> bool:
    return any(tuple(way) == text[place : place + len(way)] for place in range(len(text)))


def begun(way: Sequence[int], text: Text) -> int:
    """Length of the longest beginning of the phrase that the text ends with."""
    return max(size for size in range(len(way)) if text[len(text) - size :] == tuple(way[:size]))


def naive_need(text: Text, phrases: Phrases) -> int:
    """Tokens that finish the phrase that is furthest on, and then write the other missing ones from the start."""
    missing = [ways for ways in phrases if not any(occurs(way, text) for way in ways)]
    total = sum(min(map(len, ways)) for ways in missing)
    saved = [min(map(len, ways)) - (len(way) - begun(way, text)) for ways in missing for way in ways]
    return total - max(saved, default=0)


def naive_room(text: Text, phrases: Phrases, tokens_left: int, vocab_size: int, eos: int) -> set[int]:
    """Tokens that leave room for all that is missing after them."""
    if naive_need(text, phrases) == 0:
        return set(range(vocab_size))
    return {
        token for token in range(vocab_size) if token != eos and naive_need((*text, token), phrases) <= tokens_left - 1
    }


@dataclass
class Settings:
    width: int
    max_new_tokens: int
    eos: tuple[int, ...]
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    phrases: Phrases = ()
    vocab_size: int = 0


@dataclass
class PlainBeams:
    """One group of beams as lists of (score, tokens)."""

    settings: Settings
    log_probs: LogProbs
    live: list[tuple[float, Text]] = field(default_factory=lambda: [(0.0, ())])
    finished: list[tuple[float, Text]] = field(default_factory=list)
    length: int = 0

    def step(self, penalties: dict[int, float]) -> list[int]:
        """Returns the tokens that live beams have taken."""
        settings = self.settings
        self.length += 1
        everything = sorted(self.continuations(penalties), reverse=True)
        num_candidates = max(2, 1 + len(settings.eos)) * settings.width
        chosen = everything[:num_candidates] if not settings.phrases else self.proposed(everything, num_candidates)
        rank = 0
        going_on = []
        for score, text in chosen:
            ends = text[-1] in settings.eos or self.length == settings.max_new_tokens
            if not ends:
                going_on.append((score, text))
            elif rank < settings.width:
                tokens = text[:-1] if text[-1] in settings.eos else text
                self.finished.append((score / self.length**settings.length_penalty, tokens))
            rank += self.num_met(text) == self.total
        self.live = self.allocated(going_on)
        self.finished = sorted(self.finished, reverse=True)[: settings.width]
        if self.over():
            self.live = []
        return [text[-1] for _, text in self.live]

    def continuations(self, penalties: dict[int, float]) -> list[tuple[float, Text]]:
        settings = self.settings
        found = []
        for score, text in self.live:
            left = settings.max_new_tokens - len(text)
            for token, log_prob in enumerate(self.log_probs(text)):
                possible = not settings.phrases or token in naive_room(
                    text, settings.phrases, left, settings.vocab_size, settings.eos[0]
                )
                if possible:
                    found.append((score + log_prob - penalties.get(token, 0.0), (*text, token)))
        return found

    def proposed(self, everything: list[tuple[float, Text]], size: int) -> list[tuple[float, Text]]:
        """The best of all, each beam's best, and those that bring a missing phrase nearer."""
        keep = set(everything[:size])
        for _, parent in self.live:
            own = [item for item in everything if item[1][:-1] == parent]
            keep |= set(own[:1])
            wanted = {
                way[begun(way, parent)]
                for ways in self.settings.phrases
                if not any(occurs(way, parent) for way in ways)
                for way in ways
            }
            keep |= {item for item in own if item[1][-1] in wanted}
        return sorted(keep, reverse=True)

    @property
    def total(self) -> int:
        return sum(min(map(len, ways)) for ways in self.settings.phrases)

    def num_met(self, text: Text) -> int:
        return self.total - naive_need(text, self.settings.phrases)

    def allocated(self, going_on: list[tuple[float, Text]]) -> list[tuple[float, Text]]:
        """Banks by number of met tokens take turns, the fullest first."""
        banks = [[item for item in going_on if self.num_met(item[1]) == met] for met in range(self.total + 1)]
        taken: list[tuple[float, Text]] = []
        while len(taken) < self.settings.width and any(banks):
            for bank in reversed(banks):
                if bank and len(taken) < self.settings.width:
                    taken.append(bank.pop(0))
        return sorted(taken, reverse=True)

    def over(self) -> bool:
        settings = self.settings
        if not self.live:
            return True
        if len(self.finished) < settings.width:
            return False
        if settings.early_stopping is True:
            return True
        never = settings.early_stopping == "never" and settings.length_penalty > 0
        length = settings.max_new_tokens if never else self.length
        return self.live[0][0] / length**settings.length_penalty <= self.finished[-1][0]


def diverse(settings: Settings, log_probs: LogProbs, num_groups: int, penalty: float) -> list[tuple[float, Text]]:
    """Groups one after another within a step; each pays for what the earlier ones' live beams took."""
    groups = [PlainBeams(settings, log_probs) for _ in range(num_groups)]
    while any(group.live for group in groups):
        penalties: dict[int, float] = {}
        for group in groups:
            if group.live:
                for token in group.step(penalties):
                    penalties[token] = penalties.get(token, 0.0) + penalty
    return sorted((item for group in groups for item in group.finished), reverse=True)


def everything_possible(log_probs: LogProbs, vocab_size: int, length: int, eos: int) -> list[tuple[float, Text]]:
    """Every answer and its log-probability."""
    open_, closed = [(0.0, ())], []
    for _ in range(length):
        longer = [
            (score + log_prob, (*text, token))
            for score, text in open_
            for token, log_prob in enumerate(log_probs(text))
            if not math.isinf(log_prob)
        ]
        closed += [(score, text[:-1]) for score, text in longer if text[-1] == eos]
        open_ = [item for item in longer if item[1][-1] != eos]
    return sorted(closed + open_, reverse=True)
