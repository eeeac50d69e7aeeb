"""Puts the page beside the API."""

from __future__ import annotations

import asyncio
import os

from fastapi import FastAPI

from rayloom.errors import ConfigError
from rayloom.serving.access import Access
from rayloom.serving.page.asking import Asker
from rayloom.serving.page.gate import Gate, add_login
from rayloom.serving.paths import PAGE


def check_page() -> None:
    """Refuse a page that cannot be made.

    Raises:
        ConfigError: The extra ``page`` is not installed.
    """
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise ConfigError("page: it needs Gradio: pip install 'rayloom[page]', or serve with --no-page (page: false)")


def mount_page(app: FastAPI, access: Access | None) -> None:
    """Add the page at ``/ui``. Whatever it asks goes through the application itself.

    Args:
        app: The application, whole.
        access: Who may come in; None where no keys are asked for.

    Raises:
        ConfigError: The extra ``page`` is not installed.
    """
    check_page()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    if access is not None:
        add_login(app, access)
    app.add_middleware(Gate, access=access)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(_mount_later(app, access))  # where no loop runs, Gradio makes some and leaves them open
    else:
        _mount(app, access)


async def _mount_later(app: FastAPI, access: Access | None) -> None:
    _mount(app, access)


def _mount(app: FastAPI, access: Access | None) -> None:
    import gradio

    from rayloom.serving.page.blocks import Page
    from rayloom.serving.page.looks import CSS

    gradio.mount_gradio_app(
        app,
        Page(Asker(app), asks_key=access is not None).blocks(),
        path=PAGE,
        footer_links=[],
        run_history=False,
        max_file_size="1kb",
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=CSS,
    )
