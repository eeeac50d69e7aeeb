from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.generation.artifacts import make_artifact


def _made(tmp_path_factory: pytest.TempPathFactory, family: str, task: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYLOOM_CACHE", str(tmp_path_factory.mktemp("cache")))
        return make_artifact(tmp_path_factory.mktemp(family), family, task, max_new_tokens=6)


@pytest.fixture(scope="session")
def t5_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _made(tmp_path_factory, "t5", "question-answering")


@pytest.fixture(scope="session")
def gpt2_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _made(tmp_path_factory, "gpt2", "question-answering")


@pytest.fixture(scope="session")
def lm_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _made(tmp_path_factory, "gpt_neo", "language-modeling")
