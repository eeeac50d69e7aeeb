"""A registered version is opened by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayloom.errors import RegistryError
from rayloom.generation import opening


def test_a_version_is_opened_where_the_registry_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = tmp_path / "artifact"
    place.mkdir()
    (place / "manifest.json").write_text("{}")
    asked = []
    monkeypatch.setattr(opening, "locate", lambda name: asked.append(name) or str(place))
    monkeypatch.setattr(opening, "_open_artifact", lambda path: path)
    assert opening.open_path("qa@production") == str(place)
    assert asked == ["qa@production"]


def test_an_unknown_version_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAYLOOM_REGISTRY", str(tmp_path))
    with pytest.raises(RegistryError, match="qa"):
        opening.open_path("qa@production")
