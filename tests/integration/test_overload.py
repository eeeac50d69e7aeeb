"""Ten times as many requests as fit: some are answered as ever, all others are told when to come back."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import httpx
import pytest

from rayloom.generation import TextGenerator
from rayloom.serving.model import TextGeneratorModel
from tests.integration.attacking import PROMPT, Service, leaks, wait_for
from tests.integration.local_server import LIMITS, listening

CAPACITY = 8


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_what_is_too_much_is_told_when_to_come_back(tiny_artifact_llama: Path, stream: bool) -> None:
    generator = TextGenerator(tiny_artifact_llama, max_batch_size=4)
    expected = generator.generate(PROMPT, max_new_tokens=16)
    limits = dataclasses.replace(LIMITS, max_in_flight=CAPACITY)
    with listening(TextGeneratorModel(generator, max_time_s=60.0), limits) as url:
        answers = asyncio.run(ask_all(url, 10 * CAPACITY, stream=stream))
        Service(url, generator).check_unharmed()
    accepted = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(accepted) >= CAPACITY
    assert len(refused) >= CAPACITY
    assert {answer.status_code for answer in refused} == {429}
    for answer in refused:
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert answer.json()["error"]["type"] == "overloaded"
    for answer in accepted:
        assert "[DONE]" in answer.text if stream else answer.json()["text"] == expected
    wait_for(lambda: leaks(generator) == {})


async def ask_all(url: str, count: int, *, stream: bool) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(base_url=url, timeout=60.0, limits=limits) as client:
        body = {"prompt": PROMPT, "max_new_tokens": 16, "stream": stream}
        return await asyncio.gather(*(client.post("/generate", json=body) for _ in range(count)))
