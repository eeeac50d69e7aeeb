"""API keys against a real server over a real model: our client, OpenAI's, and turns in the engine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

from rayloom.errors import RequestError
from rayloom.generation import TextGenerator
from rayloom.generation.remote import RemoteTextGenerator
from rayloom.serving.access import Access, LiveKeys
from rayloom.serving.calls import Call, Outcome
from rayloom.serving.keys import KeyStore, Terms
from rayloom.serving.model import TextGeneratorModel
from rayloom.serving.routes import create_app
from tests.integration.local_server import LIMITS, LocalBackend, listening

PROMPT = "The river flows slowly past"
NUM_FLOOD = 40


@pytest.fixture(scope="module")
def generator(tiny_artifact_llama: Path) -> TextGenerator:
    return TextGenerator(tiny_artifact_llama, max_batch_size=2)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> KeyStore:
    return KeyStore(tmp_path_factory.mktemp("keys") / "keys.yaml")


@pytest.fixture(scope="module")
def secret(store: KeyStore) -> str:
    return store.create("app", Terms())


@pytest.fixture(scope="module")
def url(generator: TextGenerator, store: KeyStore, secret: str) -> Iterator[str]:
    with listening(TextGeneratorModel(generator, max_time_s=60.0), access=Access(LiveKeys(store.path))) as found:
        yield found


def test_our_own_client_sends_its_key(url: str, secret: str, generator: TextGenerator) -> None:
    expected = generator.generate(PROMPT, max_new_tokens=8)
    with remote(url, secret) as client:
        assert client.generate(PROMPT, max_new_tokens=8) == expected
        assert "".join(client.stream(PROMPT, max_new_tokens=8)) == expected
    for wrong in (None, "rl-wrong"):
        with remote(url, wrong) as client, pytest.raises(RequestError, match="refuses the API key"):
            client.generate(PROMPT)


@contextlib.contextmanager
def remote(url: str, api_key: str | None) -> Iterator[RemoteTextGenerator]:
    client = TextGenerator(endpoint=url, api_key=api_key)
    assert isinstance(client, RemoteTextGenerator)
    with contextlib.closing(client):
        yield client


def test_openais_client(url: str, secret: str, generator: TextGenerator) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=secret, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == [generator.name]
        stream = client.completions.create(model=generator.name, prompt=PROMPT, max_tokens=4, stream=True)
        assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "length"
    with openai.OpenAI(base_url=f"{url}/v1", api_key="rl-wrong", max_retries=0) as client:
        for stream in (False, True):
            with pytest.raises(openai.AuthenticationError, match="not known here") as caught:
                client.completions.create(model=generator.name, prompt=PROMPT, stream=stream)
            assert caught.value.code == "invalid_api_key"


def test_openais_client_of_a_key_that_lacks_something(generator: TextGenerator, store: KeyStore) -> None:
    watcher = store.create("watcher", Terms(scopes=("metrics",)))
    brief = store.create("brief", Terms(requests_per_minute=1))
    asked = {"model": generator.name, "prompt": PROMPT, "max_tokens": 1}
    with contextlib.ExitStack() as stack:
        access = Access(LiveKeys(store.path))
        url = stack.enter_context(listening(TextGeneratorModel(generator, max_time_s=60.0), access=access))
        client = stack.enter_context(openai.OpenAI(base_url=f"{url}/v1", api_key=watcher, max_retries=0))
        with pytest.raises(openai.PermissionDeniedError, match="lacks the scope 'generate'"):
            client.completions.create(**asked)
        client = stack.enter_context(openai.OpenAI(base_url=f"{url}/v1", api_key=brief, max_retries=0))
        client.completions.create(**asked)
        with pytest.raises(openai.RateLimitError, match="1 requests per minute") as caught:
            client.completions.create(**asked)
        assert int(caught.value.response.headers["retry-after"]) > 50


@dataclass
class CountingBackend(LocalBackend):
    """Knows how many calls have begun."""

    num_begun: int = 0

    async def complete(self, call: Call) -> Outcome:
        self.num_begun += 1
        return await super().complete(call)


@pytest.mark.parametrize("own_key", [True, False], ids=["another key", "the same key"])
def test_a_flooding_key_barely_moves_anothers_turn(generator: TextGenerator, store: KeyStore, own_key: bool) -> None:
    flood = store.create(f"flood-{own_key}", Terms())
    other = store.create("other", Terms()) if own_key else flood
    backend = CountingBackend(TextGeneratorModel(generator, max_time_s=60.0))
    app = create_app(backend, LIMITS, access=Access(LiveKeys(store.path)))

    async def num_before() -> int:
        """How many of the flood's answers end between the other's question and its answer."""

        async def ask(secret: str) -> httpx.Response:
            body = {"prompt": PROMPT, "max_new_tokens": 16, "min_new_tokens": 16}
            return await http.post("/generate", json=body, headers={"Authorization": f"Bearer {secret}"})

        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
            pending = [asyncio.create_task(ask(flood)) for _ in range(NUM_FLOOD)]
            while backend.num_begun < NUM_FLOOD:
                await asyncio.sleep(0)
            num_done = sum(task.done() for task in pending)
            assert (await ask(other)).status_code == 200
            num_since = sum(task.done() for task in pending) - num_done
            assert {response.status_code for response in await asyncio.gather(*pending)} == {200}
            return num_since

    # Two run at a time: another key's turn comes with the next free place, the same key's comes last.
    found = asyncio.run(num_before())
    assert found <= 6 if own_key else found >= NUM_FLOOD // 2
