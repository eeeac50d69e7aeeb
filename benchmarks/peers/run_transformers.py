"""`transformers`: ``generate``, or its own continuous batching (option ``continuous``). Any model, fp32 or bf16."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from protocol import Answer, Peer, Request, Settings, serve

_MEMORY_SHARE = 0.05
"""Of the memory, for its cache: about a gigabyte, as the others have."""


class Generate:
    """``generate`` on what it is given, padded to the longest; a batch ends with its longest answer."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """One call of ``generate``."""
        import torch

        start = time.perf_counter()
        width = max(len(request.prompt) for request in requests)
        seq2seq = self.model.config.is_encoder_decoder
        rows = [_padded(request.prompt, width, left=not seq2seq) for request in requests]
        tokens_BT, mask_BT = (torch.tensor(side) for side in zip(*rows, strict=True))
        beams = {request.num_beams for request in requests}
        assert len(beams) == 1, "one call has one beam width"
        with torch.inference_mode():
            output_BT = self.model.generate(
                tokens_BT,
                attention_mask=mask_BT,
                max_new_tokens=max(request.new_tokens for request in requests),
                do_sample=False,
                num_beams=beams.pop(),
            )
        seconds = time.perf_counter() - start
        first = 1 if seq2seq else width
        return [
            Answer(row[first : first + request.new_tokens], seconds)
            for row, request in zip(output_BT.tolist(), requests, strict=True)
        ]


class Continuous:
    """transformers' own continuous batching, all requests at once."""

    def __init__(self, model: Any) -> None:
        from transformers import ContinuousBatchingConfig

        # Lengths can be forced only through an end of sequence that no token is.
        model.generation_config.eos_token_id = -1
        config = ContinuousBatchingConfig(max_memory_percent=_MEMORY_SHARE)
        self.manager = model.init_continuous_batching(continuous_batching_config=config)
        self.manager.start()

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Hand everything in, collect until all is there."""
        start = time.perf_counter()
        names = [
            self.manager.add_request(list(request.prompt), max_new_tokens=request.new_tokens, eos_token_id=-1)
            for request in requests
        ]
        answers: dict[str, Answer] = {}
        while len(answers) < len(names):
            result = self.manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                if result.error:
                    raise RuntimeError(result.error)
                answers[result.request_id] = Answer(list(result.generated_tokens), time.perf_counter() - start)
            elif result is None and not self.manager.is_running():
                raise RuntimeError("its generation thread has ended")
        return [answers[name] for name in names]


def open_peer(settings: Settings) -> Peer:
    """Load the model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig

    torch.set_num_threads(settings.threads)
    config = AutoConfig.from_pretrained(settings.model)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[settings.precision]
    model = auto.from_pretrained(settings.model, dtype=dtype).eval()
    start = getattr(config, "decoder_start_token_id", None)
    model.generation_config = GenerationConfig(pad_token_id=config.pad_token_id or 0, decoder_start_token_id=start)
    return Continuous(model) if settings.options.get("continuous") else Generate(model)


def _padded(tokens: Sequence[int], width: int, *, left: bool) -> tuple[list[int], list[int]]:
    padding, ones = [0] * (width - len(tokens)), [1] * len(tokens)
    if left:
        return [*padding, *tokens], [*padding, *ones]
    return [*tokens, *padding], [*ones, *padding]


if __name__ == "__main__":
    serve(open_peer, libraries=("transformers", "torch"))
