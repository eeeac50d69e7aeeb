"""Applications on a local Ray that come to harm: a damaged artifact, overload, a lost replica."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from rayloom.config import AutoscalingConfig, ServingConfig
from rayloom.errors import ArtifactError
from rayloom.serving import serving
from rayloom.serving.replicas import ModelFactory
from tests.fakes_serving import post_all

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def test_a_damaged_artifact_is_refused_before_anything_starts(tiny_artifact_t5: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_artifact_t5, tmp_path / "copy"))
    weights = next((copy / "model").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match=weights.name), serving(ServingConfig(artifact=str(copy))):
        pytest.fail("served a damaged artifact")


@pytest.fixture
def slow_model() -> ModelFactory:
    """Takes 0.4 s, or as many seconds as the prompt says; tells how many calls it held then. 'die' kills it."""

    def open_slow(config: ServingConfig) -> Any:
        import asyncio
        import os

        from rayloom.serving.calls import Call, Choice, Completion, Figures, ModelInfo, Started, TextCall, Tokens

        class Slow:
            info = ModelInfo("slow", "t5", "question-answering")
            held = 0

            async def complete(self, call: Call) -> Completion:
                text = call.prompt.text
                if text == "die":
                    os._exit(1)
                self.held += 1
                try:
                    await asyncio.sleep(float(text) if text.isdigit() else 0.4)
                    return Completion(Started("slow", "fp", 1), (Choice(str(self.held), "stop"),), 1)
                finally:
                    self.held -= 1

            def tokens(self, call: TextCall) -> Tokens:
                return Tokens("", ())

            def figures(self) -> Figures:
                return Figures("slow", {})

        return Slow()

    return open_slow


@pytest.mark.slow
def test_overload_timeout_and_a_lost_replica(slow_model: ModelFactory) -> None:
    config = ServingConfig(
        artifact="none",
        num_cpus=0.5,
        max_batch_size=4,
        max_queued_requests=4,
        request_timeout_s=4.0,
        autoscaling=AutoscalingConfig(target_ongoing_requests=4),
    )
    with serving(config, open_model=slow_model) as url:
        # Four calls run beside each other.
        responses = post_all(url, "/generate", [{"prompt": "a"}] * 4)
        assert max(int(each.json()["text"]) for each in responses) > 1

        # Eight are taken by the replica and four wait; of the others at least some are turned away.
        responses = post_all(url, "/generate", [{"prompt": "a"}] * 40)
        counts = Counter(each.status_code for each in responses)
        assert set(counts) == {200, 429}
        refused = next(each for each in responses if each.status_code == 429)
        assert refused.json()["error"]["type"] == "overloaded"
        assert int(refused.headers["retry-after"]) >= 1

        late = httpx.post(f"{url}/generate", json={"prompt": "6"}, timeout=30.0)
        assert (late.status_code, late.json()["error"]["type"]) == (504, "timeout")
        # The late call was cancelled: it holds no place any more.
        assert httpx.post(f"{url}/generate", json={"prompt": "a"}, timeout=30.0).json()["text"] == "1"

        lost = httpx.post(f"{url}/generate", json={"prompt": "die"}, timeout=30.0)
        # It was asked again of the next replica, and took that one along.
        assert lost.status_code in (503, 504)
        deadline = time.monotonic() + 60.0
        while httpx.post(f"{url}/generate", json={"prompt": "a"}, timeout=30.0).status_code != 200:
            assert time.monotonic() < deadline, "the replica did not come back"
            time.sleep(0.5)
