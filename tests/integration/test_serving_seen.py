"""A service on Ray with everything that lets one see it: metrics of all replicas, the log of requests, the page."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from rayloom.config import AutoscalingConfig, ServingConfig
from rayloom.serving import serving
from tests.fakes_serving import post_all

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def total(text: str, name: str, **labels: str) -> float:
    """Sum of a sample over all labels that are not given."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_a_service_can_be_seen(tiny_artifact_t5: Path, tmp_path: Path) -> None:
    config = ServingConfig(
        artifact=str(tiny_artifact_t5),
        num_cpus=0.5,
        autoscaling=AutoscalingConfig(min_replicas=2, max_replicas=2),
        page=True,
        log_format="json",
        log_file=str(tmp_path / "requests.log"),
    )
    with serving(config) as url:
        bodies = [{"prompt": f"who is {name}", "max_new_tokens": 5} for name in ("ann", "bob", "eve", "dan")]
        answers = post_all(url, "/generate", bodies)
        with httpx.stream("POST", f"{url}/generate", json=bodies[0] | {"stream": True}) as response:
            assert response.headers.get_list("x-request-id") != []
            stream_id = response.headers["x-request-id"]
            response.read()
        text = httpx.get(f"{url}/metrics", timeout=30.0).text
        page = httpx.get(f"{url}/ui/")
        own = httpx.get(f"{url}/ready", headers={"X-Request-Id": "mine"}).headers
    usages = [answer.json()["usage"] for answer in (*answers, answers[0])]
    assert total(text, "rayloom_engine_replicas") == 2
    assert total(text, "rayloom_engine_max_sequences") == 2 * config.max_batch_size
    assert total(text, "rayloom_engine_running_sequences") == 0
    assert total(text, "rayloom_engine_steps_total") > 5
    assert total(text, "rayloom_prompt_tokens_total", model="tiny-t5") == sum(each["prompt_tokens"] for each in usages)
    written = sum(each["completion_tokens"] for each in usages)
    assert total(text, "rayloom_generated_tokens_total", model="tiny-t5") == written
    assert total(text, "rayloom_queue_seconds_count") == 5
    assert total(text, "rayloom_time_to_first_token_seconds_count") == 5
    assert total(text, "rayloom_requests_in_flight") == 0
    lines = [json.loads(line) for line in (tmp_path / "requests.log").read_text(encoding="utf-8").splitlines()]
    requests = [line for line in lines if line["message"] == "request" and line["route"] == "/generate"]
    assert [line["generated_tokens"] for line in requests[-1:]] == [usages[0]["completion_tokens"]]
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert ids | {stream_id} == {line["request_id"] for line in requests}
    assert "who is" not in (tmp_path / "requests.log").read_text(encoding="utf-8")
    assert own.get_list("x-request-id") == ["mine"]
    assert page.status_code == 200
    assert "gradio" in page.text
