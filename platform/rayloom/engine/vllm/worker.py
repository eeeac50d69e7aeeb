"""vLLM's own process: reads requests as lines of JSON, steps vLLM, writes what it has made.

Runs as a script under the Python of vLLM's environment, so it needs nothing but that and the standard library. It
ends when its standard input does. Standard output is for lines of JSON alone; what libraries print goes to stderr.

In: first the engine's arguments and the threads of `rayloom.engine.vllm.process.Settings`, then ``{"add": id,
"prompt": [token, ...], "params": {...}, "adapter": [name, number, folder] or null, "priority": int}`` and
``{"cancel": id}``. Out: first ``{"max_length": int}`` or ``{"error": text}``, then for each step that made anything a
list of ``{"id": id}`` with ``{"refused": text}`` or ``{"index": int, "tokens": [...], "scores": [...] or null,
"reason": text or null}``, once with ``{"prompt": [score, ...]}`` where that was asked. A score is
``[log-probability, [[token, log-probability], ...]]``.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from typing import Any, TextIO


class Worker:
    """One vLLM engine, and the lines that go to and from it.

    Args:
        engine: vLLM's ``LLMEngine``.
        inbox: Lines from the other side; None when it is gone.
        out: Where lines go.
    """

    def __init__(self, engine: Any, inbox: queue.SimpleQueue[str | None], out: TextIO) -> None:
        self._engine, self._inbox, self._out = engine, inbox, out
        self._asked: dict[str, tuple[int | None, int | None]] = {}

    def run(self) -> None:
        """Until the other side is gone."""
        while self._read():
            if self._engine.has_unfinished_requests():
                told = [each for output in self._engine.step() for each in self._told(output)]
                self._say(told)

    def _read(self) -> bool:
        """Take all lines that are there; wait for one if there is nothing else to do. False at the end."""
        while True:
            try:
                line = self._inbox.get(block=not self._engine.has_unfinished_requests())
            except queue.Empty:
                return True
            if line is None:
                return False
            self._take(json.loads(line))

    def _take(self, message: dict[str, Any]) -> None:
        if "cancel" in message:
            self._asked.pop(message["cancel"], None)
            self._engine.abort_request([message["cancel"]])
            return
        try:
            self._add(message)
        except Exception as error:
            self._say([{"id": message["add"], "refused": f"{type(error).__name__}: {error}"}])

    def _add(self, message: dict[str, Any]) -> None:
        from vllm import SamplingParams  # type: ignore[import-not-found]
        from vllm.lora.request import LoRARequest  # type: ignore[import-not-found]
        from vllm.sampling_params import RequestOutputKind  # type: ignore[import-not-found]

        params = message["params"]
        bias = {int(token): value for token, value in params.pop("logit_bias", {}).items()}
        sampling = SamplingParams(
            **params, logit_bias=bias or None, detokenize=False, output_kind=RequestOutputKind.DELTA
        )
        adapter = message["adapter"]
        self._engine.add_request(
            message["add"],
            {"prompt_token_ids": message["prompt"]},
            sampling,
            lora_request=LoRARequest(*adapter) if adapter else None,
            priority=message["priority"],
        )
        self._asked[message["add"]] = params["logprobs"], params["prompt_logprobs"]

    def _told(self, output: Any) -> list[dict[str, Any]]:
        if output.request_id not in self._asked:
            return []
        wanted, of_prompt = self._asked[output.request_id]
        prompt = None
        if of_prompt is not None and output.prompt_logprobs:
            pairs = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
            prompt = [_score(token, found, of_prompt) for token, found in pairs]
        if output.finished:
            del self._asked[output.request_id]
        return [_part(output.request_id, each, wanted, prompt) for each in output.outputs]

    def _say(self, told: list[dict[str, Any]]) -> None:
        if told:
            self._out.write(json.dumps(told) + "\n")
            self._out.flush()


def _part(request_id: str, output: Any, wanted: int | None, prompt: Any) -> dict[str, Any]:
    tokens = list(output.token_ids)
    scores = None
    if wanted is not None:
        scores = [_score(token, found, wanted) for token, found in zip(tokens, output.logprobs, strict=True)]
    reason = output.finish_reason
    return {"id": request_id, "index": output.index, "tokens": tokens, "scores": scores, "reason": reason} | (
        {} if prompt is None else {"prompt": prompt}
    )


def _score(token: int, found: dict[int, Any], wanted: int) -> list[Any]:
    """Of the chosen token, and of the ``wanted`` likeliest."""
    ranked = sorted((each.rank, token, each.logprob) for token, each in found.items() if each.rank <= wanted)
    return [found[token].logprob, [[token, logprob] for _, token, logprob in ranked]]


def _open(settings: dict[str, Any]) -> Any:
    from vllm import EngineArgs, LLMEngine

    if settings["threads"]:
        import torch

        torch.set_num_threads(settings["threads"])
    return LLMEngine.from_engine_args(EngineArgs(**settings["engine"]))


def _read_lines(inbox: queue.SimpleQueue[str | None]) -> None:
    for line in sys.stdin:
        inbox.put(line)
    inbox.put(None)


def main() -> None:
    """Speak with whoever started this process."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.readline())
    try:
        engine = _open(settings)
    except Exception as error:
        out.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
        out.flush()
        raise
    out.write(json.dumps({"max_length": engine.model_config.max_model_len}) + "\n")
    out.flush()
    inbox: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read_lines, args=(inbox,), daemon=True).start()
    Worker(engine, inbox, out).run()


if __name__ == "__main__":
    main()
