"""The generation engine: token ids in, token ids out, many requests of any kind in one batch. See docs/engine.md."""

from rayloom.engine.engine import Engine
from rayloom.engine.events import Done, Event, Failed, NewToken, PromptScored
from rayloom.engine.opening import EngineOptions, open_engine
from rayloom.engine.request import Constraint, EngineRequest, FinishReason, Hypothesis, Params, StopCheck, TokenScore
from rayloom.engine.service import EngineService, Ticket

__all__ = [
    "Constraint",
    "Done",
    "Engine",
    "EngineOptions",
    "EngineRequest",
    "EngineService",
    "Event",
    "Failed",
    "FinishReason",
    "Hypothesis",
    "NewToken",
    "Params",
    "PromptScored",
    "StopCheck",
    "Ticket",
    "TokenScore",
    "open_engine",
]
