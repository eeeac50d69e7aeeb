"""CTranslate2: T5 and LLaMA in static batches, fp32 or int8. Rows that are finished leave their batch."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from protocol import Answer, Peer, Request, Settings, export_folder, run_tool, serve

COMPUTE = {"fp32": "float32", "int8": "int8"}


class Batches:
    """A converted model. Tokens go in and out as strings; the vocabulary's order gives their ids.

    Args:
        folder: Of the converted model.
        settings: As given.
    """

    def __init__(self, folder: str, settings: Settings) -> None:
        import ctranslate2

        self.words: list[str] = json.loads(_vocabulary(folder).read_text(encoding="utf-8"))
        self.ids = {word: place for place, word in enumerate(self.words)}
        self.seq2seq: bool = settings.options["seq2seq"]
        kind = ctranslate2.Translator if self.seq2seq else ctranslate2.Generator
        self.model: Any = kind(
            folder,
            device="cpu",
            compute_type=COMPUTE[settings.precision],
            inter_threads=1,
            intra_threads=settings.threads,
        )

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """One batch."""
        start = time.perf_counter()
        prompts = [[self.words[token] for token in request.prompt] for request in requests]
        longest = max(request.new_tokens for request in requests)
        beams = {request.num_beams for request in requests}
        assert len(beams) == 1, "one call has one beam width"
        options: dict[str, Any] = {"beam_size": beams.pop(), "end_token": [len(self.words) - 1]}
        clock = [0.0] * len(requests)
        if options["beam_size"] == 1:
            options["callback"] = self._stopping(requests, clock, start)
        if self.seq2seq:
            results = self.model.translate_batch(
                prompts, max_decoding_length=longest, min_decoding_length=longest, **options
            )
            rows = [result.hypotheses[0] for result in results]
        else:
            results = self.model.generate_batch(
                prompts, max_length=longest, min_length=longest, include_prompt_in_result=False, **options
            )
            rows = [result.sequences[0] for result in results]
        seconds = time.perf_counter() - start
        return [
            Answer([self.ids[word] for word in row[: request.new_tokens]], done or seconds)
            for row, request, done in zip(rows, requests, clock, strict=True)
        ]

    def _stopping(self, requests: Sequence[Request], clock: list[float], start: float) -> Callable[[Any], bool]:
        """Ends each row at its own length; only greedy search asks."""
        # Prompts are forwarded up to the shortest one's length; the rest of longer ones counts as steps.
        shortest = 0 if self.seq2seq else min(len(request.prompt) for request in requests)
        last = [
            request.new_tokens - 1 + (0 if self.seq2seq else len(request.prompt) - shortest) for request in requests
        ]

        def stop(result: Any) -> bool:
            done: bool = result.step >= last[result.batch_id]
            if done:
                clock[result.batch_id] = time.perf_counter() - start
            return done

        return stop


def open_peer(settings: Settings) -> Peer:
    """Convert the model the first time, then load it."""

    def convert(folder: str) -> None:
        tool = Path(sys.executable).with_name("ct2-transformers-converter")
        command = [str(tool), "--model", settings.model, "--output_dir", folder]
        run_tool([*command, "--quantization", COMPUTE[settings.precision]])

    return Batches(export_folder(settings, f"ctranslate2-{settings.precision}", convert), settings)


def _vocabulary(folder: str) -> Path:
    return next(
        file for name in ("shared_vocabulary", "vocabulary") if (file := Path(folder) / f"{name}.json").exists()
    )


if __name__ == "__main__":
    serve(open_peer, libraries=("ctranslate2",))
