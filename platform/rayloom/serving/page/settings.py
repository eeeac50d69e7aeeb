"""The page's sliders, and the generation parameters that they stand for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rayloom.config import GenerationConfig


@dataclass(frozen=True)
class Control:
    """One thing that a person can set.

    Attributes:
        parameter: Name in `GenerationConfig`.
        label: What the page calls it.
        low: Least value.
        high: Greatest value.
        step: Between values.
        start: Where it begins; at this value it is not sent, if that is neutral.
        is_neutral: Whether the start means no effect.
        needs_sampling: Whether it has a meaning only when sampling.
        needs_beams: Whether it has a meaning only with beams.
    """

    parameter: str
    label: str
    low: float
    high: float
    step: float
    start: float
    is_neutral: bool = True
    needs_sampling: bool = False
    needs_beams: bool = False

    @property
    def help(self) -> str:
        """What it does, in the words of the config."""
        text = (GenerationConfig.model_fields[self.parameter].description or "").split(". ")[0].rstrip(".")
        return text.replace("\n", " ").replace("``", "")


CONTROLS: tuple[Control, ...] = (
    Control("max_new_tokens", "Max new tokens", 1, 1024, 1, 128, is_neutral=False),
    Control("temperature", "Temperature (0: the likeliest tokens)", 0.0, 2.0, 0.05, 0.0),
    Control("top_p", "Top-p", 0.05, 1.0, 0.05, 1.0, needs_sampling=True),
    Control("top_k", "Top-k (0: all)", 0, 200, 1, 0, needs_sampling=True),
    Control("min_p", "Min-p", 0.0, 0.5, 0.01, 0.0, needs_sampling=True),
    Control("num_beams", "Beams", 1, 16, 1, 1),
    Control("length_penalty", "Length penalty of beams", 0.0, 3.0, 0.1, 1.0, needs_beams=True),
    Control("repetition_penalty", "Repetition penalty", 0.5, 2.0, 0.05, 1.0),
    Control("no_repeat_ngram_size", "No repeated n-grams of size (0: off)", 0, 10, 1, 0),
)
_WHOLE = frozenset({"max_new_tokens", "top_k", "num_beams", "no_repeat_ngram_size"})


@dataclass(frozen=True)
class Settings:
    """What a person has set.

    Attributes:
        uses_own: Take the model's own parameters; the sliders have no effect then.
        values: Of `CONTROLS`, in their order.
        seed: Makes sampling repeatable; empty for another answer each time.
        stops: Texts at which an answer ends, one a line.
    """

    uses_own: bool = True
    values: tuple[float, ...] = field(default_factory=lambda: tuple(each.start for each in CONTROLS))
    seed: str = ""
    stops: str = ""

    def parameters(self) -> dict[str, Any]:
        """As a request names them. What has no effect is left out, for the service refuses it."""
        given: dict[str, Any] = {} if self.uses_own else self._from_sliders()
        if seed := self.seed.strip():
            given["seed"] = int(seed) if seed.isdecimal() else seed  # what is no number, the service refuses by name
        if stops := [line for line in self.stops.splitlines() if line]:
            given["stop_strings"] = stops
        return given

    def _from_sliders(self) -> dict[str, Any]:
        values = dict(zip(CONTROLS, self.values, strict=True))
        by_name = {control.parameter: value for control, value in values.items()}
        samples, has_beams = by_name["temperature"] > 0, by_name["num_beams"] > 1
        given: dict[str, Any] = {"do_sample": samples}
        for control, value in values.items():
            is_idle = (control.needs_sampling and not samples) or (control.needs_beams and not has_beams)
            if not (is_idle or (control.is_neutral and value == control.start)):
                given[control.parameter] = int(value) if control.parameter in _WHOLE else float(value)
        return given
