"""The generation engine: token ids in, token ids out, many requests of any kind in one batch. See docs/engine.md."""

from rayloom.engine.engine import Engine
from rayloom.engine.events import Done, Event, Failed, NewToken, PromptScored, Timing
from rayloom.engine.opening import EngineOptions, open_engine
from rayloom.engine.request import Constraint, EngineRequest, FinishReason, Hypothesis, Params, StopCheck, TokenScore
from rayloom.engine.service import EngineService, Ticket
from rayloom.engine.stats import EngineStats

__all__ = [
    "Constraint",
    "Done",
    "Engine",
    "EngineOptions",
    "EngineRequest",
    "EngineService",
    "EngineStats",
    "Event",
    "Failed",
    "FinishReason",
    "Hypothesis",
    "NewToken",
    "Params",
    "PromptScored",
    "StopCheck",
    "Ticket",
    "Timing",
    "TokenScore",
    "open_engine",
]
