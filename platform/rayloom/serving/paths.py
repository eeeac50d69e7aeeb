"""Which part of the service a path belongs to."""

from __future__ import annotations

PAGE = "/ui"
"""Of the page. Below it are its own files and its talk with the browser; what it asks the model are usual requests."""


def is_page(path: str) -> bool:
    """Whether a path is the page's."""
    return path == PAGE or path.startswith(f"{PAGE}/")
