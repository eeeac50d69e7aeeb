"""Schemathesis over the OpenAPI document: no 5xx, and no answer that the document does not describe."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayloom.generation import TextGenerator
from rayloom.serving.access import Access, LiveKeys
from rayloom.serving.keys import KeyStore, Terms
from rayloom.serving.model import TextGeneratorModel
from rayloom.serving.protocols import ServedModel
from tests.fakes_serving import FakeModel
from tests.integration.client_environment import needs, run
from tests.integration.local_server import listening

pytestmark = [pytest.mark.slow, needs("schemathesis")]

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
"""Not: that whatever fits the schema is answered. Parameters may contradict each other."""


def examine(url: str, folder: Path, *more: str, examples: int) -> None:
    done = run(
        "schemathesis", "run", f"{url}/openapi.json", "--checks", ",".join(CHECKS),
        "--max-examples", str(examples), "--phases", "examples,coverage,fuzzing", "--generation-deterministic",
        "--continue-on-failure", "--suppress-health-check", "all", *more,
        folder=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@pytest.mark.parametrize("family", ["fake", "llama", "t5"])
def test_the_document_is_kept(request: pytest.FixtureRequest, tmp_path: Path, family: str) -> None:
    model: ServedModel = FakeModel()
    if family != "fake":
        generator = TextGenerator(request.getfixturevalue(f"tiny_artifact_{family}"), max_batch_size=8)
        model = TextGeneratorModel(generator, max_time_s=60.0)
    with listening(model) as url:
        examine(url, tmp_path, examples=100 if family == "fake" else 25)


def test_the_document_is_kept_with_keys(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.yaml")
    secret = store.create("app", Terms())
    with listening(FakeModel(), access=Access(LiveKeys(store.path))) as url:
        examine(url, tmp_path, "--header", f"Authorization: Bearer {secret}", examples=30)
