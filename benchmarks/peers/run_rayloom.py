"""Rayloom's engine, spoken to like any peer. Run by the project's own interpreter.

Options: ``max_sequences``, ``max_adapters``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from protocol import Answer, Peer, Request, Settings, serve

_CACHE_BYTES = 1 << 30
"""As much as vLLM and OpenVINO are given."""


class Engine:
    """An open engine.

    Args:
        settings: As given.

    Attributes:
        stats: Of the last workload: ``steps``, ``tokens`` that went through the model, ``model_s``, the seconds that
            the steps spent in it, and ``cpu_s``, the processor's seconds that all of it took, of all threads.
    """

    def __init__(self, settings: Settings) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

        from rayloom.engine import EngineOptions, open_engine

        torch.set_num_threads(settings.threads)
        self.settings = settings
        self.config: Any = AutoConfig.from_pretrained(settings.model)
        auto = AutoModelForSeq2SeqLM if self.config.is_encoder_decoder else AutoModelForCausalLM
        names = ("max_sequences", "max_adapters")
        options: Any = {name: settings.options[name] for name in names if name in settings.options}
        options |= {"precision": settings.precision, "cache_bytes": _CACHE_BYTES}
        opened = open_engine(
            auto.from_pretrained(settings.model, dtype=torch.float32).eval(),
            EngineOptions(**options),
        )
        self.runner, self.limits = opened.runner, opened.limits
        self.stats: dict[str, float] = {}
        self.adapters: set[str] = set()
        self._run = self.runner.run
        self.runner.run = self._timed  # type: ignore[method-assign]

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """All at once, by an engine whose prefix cache is empty: the same prompts come in every round."""
        from rayloom import engine

        start, cpu_start = time.perf_counter(), time.process_time()
        self.stats = {"steps": 0, "tokens": 0, "model_s": 0.0}
        running = engine.Engine(self.runner, self.limits)
        for adapter in {request.adapter for request in requests if request.adapter} - self.adapters:
            running.load_adapter(adapter, Path(adapter))
            self.adapters.add(adapter)
        places = {running.submit(self._translated(request)): place for place, request in enumerate(requests)}
        answers: dict[int, Answer] = {}
        while running.has_work:
            for event in running.step():
                if isinstance(event, engine.Done):
                    tokens = list(event.hypotheses[0].tokens)
                    answers[places[event.group_id]] = Answer(tokens, time.perf_counter() - start)
        self.stats["cpu_s"] = time.process_time() - cpu_start
        return [answers[place] for place in range(len(requests))]

    def _translated(self, request: Request) -> Any:
        from rayloom.engine import EngineRequest, Params

        ends = (self._eos(),) if request.constraint else ()
        params = Params(max_new_tokens=request.new_tokens, num_beams=request.num_beams, eos_token_ids=ends)
        prompt = tuple(request.prompt)
        begin = (self.config.decoder_start_token_id,) if self.config.is_encoder_decoder else prompt
        return EngineRequest(
            start_ids=begin,
            encoder_ids=prompt if self.config.is_encoder_decoder else (),
            params=params,
            constraints=self._constraints(request),
            adapter=request.adapter,
        )

    def _constraints(self, request: Request) -> tuple[Any, ...]:
        if not request.constraint:
            return ()
        from transformers import AutoTokenizer

        from rayloom.engine.grammar import Frame, compile_grammar
        from rayloom.generation.words import read_vocabulary

        if not hasattr(self, "_vocabulary"):
            tokenizer = AutoTokenizer.from_pretrained(self.settings.model)
            self._vocabulary = read_vocabulary(tokenizer, self.runner.vocab_size, (self._eos(),))
        kind: Any
        ((kind, spec),) = request.constraint.items()
        frame = Frame(max_new_tokens=request.new_tokens)
        return (compile_grammar(kind, spec, self._vocabulary, frame),)

    def _eos(self) -> int:
        return int(self.config.eos_token_id)

    def _timed(self, batch: Any) -> Any:
        start = time.perf_counter()
        logits_RV = self._run(batch)
        self.stats["model_s"] += time.perf_counter() - start
        self.stats["steps"] += 1
        self.stats["tokens"] += len(batch.tokens_T)
        return logits_RV


def open_peer(settings: Settings) -> Peer:
    """Load the model."""
    return Engine(settings)


if __name__ == "__main__":
    serve(open_peer, libraries=("rayloom", "torch"))
