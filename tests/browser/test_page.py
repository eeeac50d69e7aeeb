"""The page as a person uses it, in a real browser."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from rayloom.serving.access import Access, LiveKeys
from rayloom.serving.keys import KeyStore, Terms
from tests.browser.served import PHONE, SlowBackend, Visit, is_drawn, page_served

pytestmark = pytest.mark.slow

WORDS = " ".join(f"word{place}" for place in range(40))
Opened = Callable[..., Visit]


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, SlowBackend]]:
    backend = SlowBackend()
    with page_served(backend) as url:
        yield url, backend


@pytest.fixture
def url(served: tuple[str, SlowBackend]) -> str:
    return served[0]


@pytest.fixture
def backend(served: tuple[str, SlowBackend]) -> SlowBackend:
    """As new: calls of the test before, whose browser is closed, have ended."""
    found, deadline = served[1], time.monotonic() + 60.0
    while found.num_running and time.monotonic() < deadline:
        time.sleep(0.02)
    assert found.num_running == 0
    vars(found).update(vars(SlowBackend()))
    return found


def ask(page: Page, text: str, tab: str = "write") -> None:
    page.locator(f"#{tab}-prompt textarea").fill(text)
    page.locator(f"#{tab}-start").click()


def value(page: Page, name: str) -> str:
    return page.locator(f"#{name} textarea").input_value()


def wait_for(page: Page, condition: Callable[[], bool], seconds: float = 30.0) -> None:
    for _ in range(round(seconds / 0.05)):
        if condition():
            return
        page.wait_for_timeout(50)
    raise AssertionError("it did not come to pass")


def set_number(page: Page, name: str, number: float) -> None:
    field = page.locator(f"#{name} input[type=number]")
    field.fill(str(number))
    field.press("Tab")


def test_an_answer_comes_word_by_word(visit: Opened, url: str, backend: SlowBackend) -> None:
    seen = visit(f"{url}/ui/")
    ask(seen.page, WORDS)
    lengths: list[int] = []

    def grown() -> bool:
        lengths.append(len(value(seen.page, "write-answer")))
        return len(set(lengths)) >= 4 and lengths[-1] < len(WORDS)

    wait_for(seen.page, grown)
    assert is_drawn(seen.shot("write-streaming"))
    expect(seen.page.locator("#write-answer textarea")).to_have_value(WORDS.upper())
    expect(seen.page.locator("#write-status")).to_contain_text("fake-qa · 40 + 40 tokens")
    assert is_drawn(seen.shot("write-done"))
    assert backend.calls[0].parameters == {}  # the model's own settings, as nobody touched any
    assert seen.errors == []


def test_stop_frees_the_place(visit: Opened, url: str, backend: SlowBackend) -> None:
    seen = visit(f"{url}/ui/")
    ask(seen.page, "one two hang")
    expect(seen.page.locator("#write-answer textarea")).to_have_value("ONE TWO")
    assert backend.num_running == 1
    seen.page.locator("#write-stop").click()
    wait_for(seen.page, lambda: backend.num_running == 0, 15.0)
    assert backend.num_cancelled == 1
    assert value(seen.page, "write-answer") == "ONE TWO"
    seen.shot("write-stopped")
    ask(seen.page, "and on")
    expect(seen.page.locator("#write-answer textarea")).to_have_value("AND ON")


def test_closing_the_tab_frees_the_place(visit: Opened, url: str, backend: SlowBackend) -> None:
    seen, other = visit(f"{url}/ui/"), visit(f"{url}/ui/")
    ask(seen.page, " ".join(f"w{place}" for place in range(900)))  # three quarters of a minute
    expect(seen.page.locator("#write-answer textarea")).not_to_have_value("")
    assert backend.num_running == 1
    seen.page.close()
    wait_for(other.page, lambda: backend.num_running == 0, 20.0)
    assert backend.num_cancelled == 1


def test_settings_reach_the_model_once_one_is_touched(visit: Opened, url: str, backend: SlowBackend) -> None:
    seen = visit(f"{url}/ui/")
    seen.page.locator("#write-settings button").first.click()
    own = seen.page.locator("#write-own input[type=checkbox]")
    expect(own).to_be_checked()
    set_number(seen.page, "write-temperature", 0.7)
    expect(own).not_to_be_checked()
    set_number(seen.page, "write-top_k", 12)
    set_number(seen.page, "write-max_new_tokens", 3)
    seen.page.locator("#write-seed textarea, #write-seed input").fill("7")
    seen.page.locator("#write-stops textarea").fill("end")
    seen.shot("write-settings")
    ask(seen.page, "one two three four")
    expect(seen.page.locator("#write-answer textarea")).to_have_value("ONE TWO THREE")
    sent: dict[str, Any] = dict(backend.calls[0].parameters)
    assert sent == {
        "do_sample": True, "temperature": 0.7, "top_k": 12, "max_new_tokens": 3, "seed": 7, "stop_strings": ["end"]
    }  # fmt: skip


def test_two_settings_side_by_side(visit: Opened, url: str, backend: SlowBackend) -> None:
    seen = visit(f"{url}/ui/")
    seen.page.get_by_role("tab", name="Compare").click()
    seen.page.locator("#right-settings button").first.click()
    set_number(seen.page, "right-max_new_tokens", 2)
    ask(seen.page, "one two three", "compare")
    expect(seen.page.locator("#left-answer textarea")).to_have_value("ONE TWO THREE")
    expect(seen.page.locator("#right-answer textarea")).to_have_value("ONE TWO")
    assert is_drawn(seen.shot("compare"))
    ask(seen.page, "four five hang", "compare")
    expect(seen.page.locator("#right-status")).to_contain_text("3 + 2 tokens")  # it does not wait for the other side
    expect(seen.page.locator("#right-answer textarea")).to_have_value("FOUR FIVE")
    expect(seen.page.locator("#left-answer textarea")).to_have_value("FOUR FIVE")
    wait_for(seen.page, lambda: backend.num_running == 1)
    seen.page.locator("#compare-stop").click()
    wait_for(seen.page, lambda: backend.num_running == 0, 15.0)
    assert seen.errors == []


def test_a_conversation(visit: Opened, url: str, backend: SlowBackend) -> None:
    seen = visit(f"{url}/ui/")
    seen.page.get_by_role("tab", name="Chat").click()
    talk = seen.page.locator("#chat-talk")
    for said in ("hello there", "and you"):
        seen.page.locator("#chat-said textarea").fill(said)
        seen.page.locator("#chat-send").click()
        expect(talk).to_contain_text(said.upper())
        expect(seen.page.locator("#chat-status")).to_contain_text("tokens")
    roles = [message["role"] for message in backend.calls[1].prompt.messages or ()]
    assert roles == ["user", "assistant", "user"]
    assert is_drawn(seen.shot("chat"))
    seen.page.locator("#chat-clear").click()
    expect(talk).not_to_contain_text("HELLO")
    assert seen.errors == []


def test_a_message_that_is_sent_during_an_answer_follows_it(visit: Opened, url: str, backend: SlowBackend) -> None:
    seen = visit(f"{url}/ui/")
    seen.page.get_by_role("tab", name="Chat").click()
    message, talk = seen.page.locator("#chat-said textarea"), seen.page.locator("#chat-talk")
    message.fill("one two three " * 10)
    seen.page.locator("#chat-send").click()
    expect(talk).to_contain_text("ONE TWO")
    expect(message).to_have_value("")
    message.fill("and you")
    seen.page.locator("#chat-send").click()
    assert len(backend.calls) == 1
    expect(talk).to_contain_text("AND YOU")
    said = [message["content"] for message in backend.calls[1].prompt.messages or ()]
    assert said[1].split() == ["ONE", "TWO", "THREE"] * 10, "the first answer was whole by then"
    assert seen.errors == []


def test_what_a_model_writes_is_text_and_nothing_else(visit: Opened, url: str, backend: SlowBackend) -> None:
    evil = '![x](http://example.org/steal) <img src="http://example.org/y"> <script>alert(1)</script>'
    seen = visit(f"{url}/ui/")
    ask(seen.page, evil)
    expect(seen.page.locator("#write-status")).to_contain_text("tokens")
    seen.page.get_by_role("tab", name="Chat").click()
    seen.page.locator("#chat-said textarea").fill(evil)
    seen.page.locator("#chat-send").click()
    expect(seen.page.locator("#chat-status")).to_contain_text("tokens")
    expect(seen.page.locator("#chat-talk")).to_contain_text("STEAL")
    assert seen.foreign(url) == []


def test_what_is_refused_is_said(visit: Opened, url: str, backend: SlowBackend) -> None:
    seen = visit(f"{url}/ui/")
    ask(seen.page, "x" * 5001)
    expect(seen.page.locator("#write-status")).to_contain_text("5001 characters are too many")


def test_nothing_comes_from_another_place(visit: Opened, url: str, backend: SlowBackend) -> None:
    seen = visit(f"{url}/ui/")
    for tab in ("Compare", "Chat", "Write"):
        seen.page.get_by_role("tab", name=tab).click()
        seen.page.wait_for_timeout(200)
    ask(seen.page, "one two")
    expect(seen.page.locator("#write-answer textarea")).to_have_value("ONE TWO")
    assert len(seen.asked) > 5
    assert seen.foreign(url) == []
    assert seen.errors == []


@pytest.mark.parametrize("tab", ["Write", "Compare", "Chat"])
def test_on_a_phone_everything_fits(visit: Opened, url: str, backend: SlowBackend, tab: str) -> None:
    seen = visit(f"{url}/ui/", size=PHONE)
    seen.page.get_by_role("tab", name=tab).click()
    if tab == "Chat":
        seen.page.locator("#chat-said textarea").fill("one two")
        seen.page.locator("#chat-send").click()
        expect(seen.page.locator("#chat-talk")).to_contain_text("ONE TWO")
    else:
        ask(seen.page, WORDS, tab.lower())
        answer = "#write-answer" if tab == "Write" else "#left-answer"
        expect(seen.page.locator(f"{answer} textarea")).to_have_value(WORDS.upper())
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    wide = seen.page.evaluate(
        "[...document.querySelectorAll('button, textarea, input')].filter(e => e.offsetParent)"
        ".map(e => e.getBoundingClientRect()).filter(r => r.width && (r.left < -1 || r.right > innerWidth + 1)).length"
    )
    assert wide == 0
    sizes = seen.page.evaluate(
        "[...document.querySelectorAll('textarea')].filter(e => e.offsetParent)"
        ".map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 16  # below that phones zoom in when one begins to write
    assert is_drawn(seen.shot(f"phone-{tab.lower()}"))


def test_with_keys_the_page_asks_for_one(visit: Opened, tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.yaml")
    secret, backend = store.create("app", Terms()), SlowBackend()
    with page_served(backend, Access(LiveKeys(tmp_path / "keys.yaml"))) as url:
        seen = visit(f"{url}/ui/")
        seen.page.locator("input[name=key]").fill("rl-wrong")
        seen.page.get_by_role("button", name="Open").click()
        expect(seen.page.locator("p.error")).to_contain_text("not known here")
        seen.shot("login")
        seen.page.locator("input[name=key]").fill(secret)
        seen.page.get_by_role("button", name="Open").click()
        ask(seen.page, "one two")
        expect(seen.page.locator("#write-answer textarea")).to_have_value("ONE TWO")
        assert backend.calls[0].owner == "app"
        assert seen.foreign(url) == []
        seen.page.get_by_role("link", name="Sign out").click()
        expect(seen.page.locator("input[name=key]")).to_be_visible()
