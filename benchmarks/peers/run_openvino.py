"""OpenVINO GenAI's continuous batching: decoder models, fp32, bf16 or int8 weights (NNCF)."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from protocol import Answer, Peer, Request, Settings, export_folder, run_tool, serve

WEIGHTS = {"fp32": "fp32", "bf16": "fp16", "int8": "int8"}
PROPERTIES: dict[str, dict[str, Any]] = {
    "fp32": {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"},
    "bf16": {"INFERENCE_PRECISION_HINT": "bf16"},
    "int8": {},  # what it chooses itself is what it is fastest with
}
_CACHE_GB = 1


class Pipeline:
    """Steps one by one, to know when each answer is there.

    Args:
        folder: Of the exported model.
        settings: As given; option ``in_flight`` keeps later requests back (its own ``max_num_seqs`` does not).
    """

    def __init__(self, folder: str, settings: Settings) -> None:
        import openvino_genai as genai

        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = _CACHE_GB
        scheduler.enable_prefix_caching = False  # the same prompts come in every round
        properties = PROPERTIES[settings.precision] | {"INFERENCE_NUM_THREADS": settings.threads}
        self.pipeline = genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", properties)
        self.in_flight: int = settings.options.get("in_flight") or sys.maxsize
        self.genai, self.count = genai, 0

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """All at once, or as many as may be in flight."""
        start = time.perf_counter()
        waiting, running = deque(enumerate(requests)), dict[int, Any]()
        answers: dict[int, Answer] = {}
        while waiting or running:
            while waiting and len(running) < self.in_flight:
                place, request = waiting.popleft()
                running[place] = self._add(request)
            self.pipeline.step()
            for place in [place for place, handle in running.items() if self._done(handle)]:
                (output,) = running.pop(place).read_all()
                answers[place] = Answer(list(output.generated_ids), time.perf_counter() - start)
        return [answers[place] for place in range(len(requests))]

    def _add(self, request: Request) -> Any:
        import numpy as np
        import openvino as ov

        config = self.genai.GenerationConfig()
        config.max_new_tokens = request.new_tokens
        config.ignore_eos, config.do_sample = True, False
        config.num_beams = request.num_beams
        self.count += 1
        return self.pipeline.add_request(self.count, ov.Tensor(np.array([request.prompt], dtype=np.int64)), config)

    def _done(self, handle: Any) -> bool:
        return bool(handle.get_status() != self.genai.GenerationStatus.RUNNING)


def open_peer(settings: Settings) -> Peer:
    """Export the model the first time, then load it."""

    def export(folder: str) -> None:
        tool = Path(sys.executable).with_name("optimum-cli")
        command = [str(tool), "export", "openvino", "--model", settings.model, "--task", "text-generation-with-past"]
        weights = ["--weight-format", WEIGHTS[settings.precision]]
        run_tool([*command, *weights, folder])

    return Pipeline(export_folder(settings, f"openvino-{settings.precision}", export), settings)


if __name__ == "__main__":
    serve(open_peer, libraries=("openvino-genai", "openvino"))
