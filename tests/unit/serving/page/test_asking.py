"""The page's client: the same door as over HTTP, and a stop that stops."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from rayloom.errors import ServiceError
from rayloom.serving.access import Access, LiveKeys
from rayloom.serving.calls import Problem
from rayloom.serving.keys import KeyStore, Terms
from rayloom.serving.limits import Limits
from rayloom.serving.page.asking import Asker
from rayloom.serving.page.looks import shown_talk
from rayloom.serving.page.settings import Settings
from rayloom.serving.page.talking import model_names, side_by_side, write
from rayloom.serving.routes import create_app
from tests.fakes_serving import FakeBackend

LIMITS = Limits(request_timeout_s=5.0, max_prompt_chars=50, max_sequences=4, max_in_flight=4)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 20.0))


def asker_of(backend: FakeBackend, access: Access | None = None) -> Asker:
    return Asker(create_app(backend, LIMITS, access=access))


async def answer(asker: Asker, prompt: str, *, secret: str | None = None, settings: Settings | None = None) -> Any:
    steps = write(asker, {"prompt": prompt}, settings or Settings(), model=None, secret=secret)
    return [(progress.text, progress.status) async for progress in steps]


def test_an_answer_grows_and_ends_with_its_figures() -> None:
    steps = run(answer(asker_of(FakeBackend()), "a b c"))
    text, status = steps[-1]
    assert text == "A B C"
    assert status.startswith("fake-qa · 3 + 3 tokens · first after ")
    assert status.endswith("· ended by itself")
    assert all(later.startswith(earlier) for (earlier, _), (later, _) in zip(steps, steps[1:], strict=False))


def test_settings_arrive() -> None:
    backend = FakeBackend()
    steps = run(answer(asker_of(backend), "a b c", settings=Settings(False)))
    assert backend.model_.calls[-1].parameters == {"do_sample": False, "max_new_tokens": 128}
    assert steps[-1][0] == "A B C"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [("x" * 51, "51 characters are too many"), ("bad", "the prompt is bad"), ("", "required|empty")],
)
def test_a_refusal_is_the_services_own_words(prompt: str, message: str) -> None:
    with pytest.raises(ServiceError, match=message):
        run(answer(asker_of(FakeBackend()), prompt))


def test_a_stream_that_breaks_ends_in_an_error() -> None:
    with pytest.raises(ServiceError, match="RuntimeError"):
        run(answer(asker_of(FakeBackend()), "a b break"))


def test_an_error_of_the_application_is_none_of_the_pages() -> None:
    with pytest.raises(ServiceError, match="the server failed"):
        run(answer(asker_of(FakeBackend(error=RuntimeError("secret"))), "a"))


@pytest.mark.parametrize("how", ["close", "cancel"])
def test_stopping_frees_the_place_at_once(how: str) -> None:
    backend = FakeBackend()
    asker = asker_of(backend)

    async def read(begun: asyncio.Event) -> None:
        async with aclosing(write(asker, {"prompt": "a hang"}, Settings(), model=None, secret=None)) as steps:
            async for progress in steps:
                if progress.text.startswith("A"):
                    begun.set()
                    if how == "close":
                        return

    async def stop() -> None:
        begun = asyncio.Event()
        task = asyncio.create_task(read(begun))
        await begun.wait()
        assert how == "close" or backend.num_running == 1
        if how == "cancel":
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (backend.num_running, backend.num_cancelled) == (0, 1)

    run(stop())


def test_a_page_that_reads_slowly_holds_nobody_up_and_gets_larger_pieces() -> None:
    backend = FakeBackend()
    words = " ".join("abcdefghijklmnopqrstuvwx")

    async def read() -> list[str]:
        found = []
        async with aclosing(write(asker_of(backend), {"prompt": words}, Settings(), model=None, secret=None)) as steps:
            async for progress in steps:
                for _ in range(50):
                    await asyncio.sleep(0)  # others run
                found.append(progress.text)
        return found

    texts = run(read())
    assert texts[-1] == words.upper()
    assert len(texts) < 20


def test_keys_and_limits_hold_for_the_page(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.yaml")
    secret = store.create("app", Terms(requests_per_minute=1))
    asker = asker_of(FakeBackend(), Access(LiveKeys(tmp_path / "keys.yaml")))
    with pytest.raises(ServiceError, match="an API key is needed"):
        run(answer(asker, "a"))
    assert run(answer(asker, "a", secret=secret))[-1][0] == "A"
    with pytest.raises(ServiceError, match="1 requests per minute"):
        run(answer(asker, "a", secret=secret))


def test_names_of_models_or_why_there_are_none() -> None:
    assert run(model_names(asker_of(FakeBackend()), None)) == ["fake-qa"]
    with pytest.raises(ServiceError, match="soon"):
        run(model_names(asker_of(FakeBackend(outcome=Problem(503, "not_ready", "soon"))), None))


def test_two_answers_grow_side_by_side_and_one_that_fails_leaves_the_other_alone() -> None:
    backend = FakeBackend()
    asker = asker_of(backend)

    async def compare(*prompts: str) -> list[list[tuple[str, str]]]:
        answers = [write(asker, {"prompt": each}, Settings(), model=None, secret=None) for each in prompts]
        async with aclosing(side_by_side(answers)) as shown:
            return [[(each.text, each.status) for each in progresses] async for progresses in shown]

    (good, bad) = run(compare("a b c", "bad"))[-1]
    assert good[0] == "A B C"
    assert "3 + 3 tokens" in good[1]
    assert bad == ("", "⚠ the prompt is bad")

    async def stop() -> None:
        answers = [write(asker, {"prompt": "a hang"}, Settings(), model=None, secret=None) for _ in range(2)]
        async with aclosing(side_by_side(answers)) as shown:
            async for progresses in shown:
                if all(each.text for each in progresses):
                    break
            assert backend.num_running == 2
        assert backend.num_running == 0

    run(stop())


def test_what_anybody_says_is_shown_as_text() -> None:
    shown = shown_talk([{"role": "user", "content": "<b>hi</b>"}, {"role": "assistant", "content": '<img src="x">&'}])
    assert "<b>" not in shown
    assert "<img" not in shown
    assert "&lt;b&gt;hi&lt;/b&gt;" in shown
