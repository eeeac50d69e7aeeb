"""A served page that pretends to write, and what a browser saw of a page."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from PIL import Image
from playwright.sync_api import ConsoleMessage, Page

from rayloom.serving.access import Access
from rayloom.serving.calls import Call, Event, Part
from rayloom.serving.limits import Limits
from rayloom.serving.page.mounting import mount_page
from rayloom.serving.routes import create_app
from tests.fakes_serving import FakeBackend
from tests.integration.local_server import running

PHONE = {"width": 375, "height": 720}
DESK = {"width": 1280, "height": 900}


@dataclass
class SlowBackend(FakeBackend):
    """Writes a word every so often, so that one can watch."""

    word_s: float = 0.05
    calls: list[Call] = field(default_factory=list)

    async def stream(self, call: Call) -> AsyncGenerator[Event]:
        self.calls.append(call)
        async with contextlib.aclosing(super().stream(call)) as events:
            async for event in events:
                yield event
                if isinstance(event, Part):
                    await asyncio.sleep(self.word_s)


LIMITS = Limits(request_timeout_s=60.0, max_prompt_chars=5000, max_sequences=4, max_in_flight=8)


@contextlib.contextmanager
def page_served(backend: FakeBackend, access: Access | None = None) -> Iterator[str]:
    """The URL of a service with a page."""
    app = create_app(backend, LIMITS, access=access)
    mount_page(app, access)
    with running(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="on")) as url:
        yield url


@dataclass
class Visit:
    """A page in a browser, and what it did.

    Attributes:
        page: Playwright's.
        errors: What it complained of in its console.
        asked: URLs that it asked for.
    """

    page: Page
    errors: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def heard(self, message: ConsoleMessage) -> None:
        """The browser writes into its console."""
        if message.type == "error":
            self.errors.append(f"{message.text} {message.location}")

    def foreign(self, home: str) -> list[str]:
        """URLs of other places than the one that it came from."""
        return [url for url in self.asked if not url.startswith((home, "data:", "blob:"))]

    def shot(self, name: str) -> Path:
        """A picture of the whole page; kept in the folder that RAYLOOM_SHOTS names."""
        folder = Path(os.environ.get("RAYLOOM_SHOTS", "/tmp/rayloom-shots"))
        folder.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=folder / f"{name}.png", full_page=True)
        return folder / f"{name}.png"


def is_drawn(picture: Path) -> bool:
    """Whether a picture shows more than a plain ground."""
    with Image.open(picture) as image:
        colours = image.convert("RGB").getcolors(image.width * image.height) or []
    return len(colours) > 50
