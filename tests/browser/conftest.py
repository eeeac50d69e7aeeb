"""Debian's Chromium without a screen. See `make test-browser`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, expect, sync_playwright

from tests.browser.served import DESK, PHONE, Visit

# Chromium itself talks to its maker; and what a page wants of other hosts is to fail, and to be seen.
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)

expect.set_options(timeout=30_000)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    assert path, "there is no Chromium: make test-browser installs it (Debian's package `chromium`)"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visit]]:
    contexts: list[BrowserContext] = []

    def opened(url: str, *, size: dict[str, int] = DESK, offline: bool = False) -> Visit:
        context = browser.new_context(viewport=size, offline=offline, has_touch=size is PHONE)  # type: ignore[arg-type]
        contexts.append(context)
        context.set_default_timeout(60_000)
        seen = Visit(context.new_page())
        seen.page.on("console", seen.heard)
        seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
        seen.page.on("request", lambda request: seen.asked.append(request.url))
        seen.page.goto(url)
        return seen

    yield opened
    for context in contexts:
        context.close()
