"""The page through Ray Serve's own proxy, over a real model: a browser's stream comes back while it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest
from playwright.sync_api import expect

from rayloom.config import ServingConfig
from rayloom.serving import serving
from tests.browser.served import Visit, is_drawn
from tests.browser.test_page import wait_for
from tests.integration.conftest import build_artifact, local_ray
from tests.integration.test_serving import total

__all__ = ["local_ray"]

NEW_TOKENS = 3500

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Iterator[str]:
    artifact = build_artifact(tmp_path_factory.mktemp("t5"), "t5", lora=None)
    generation = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    with serving(ServingConfig(artifact=str(artifact), num_cpus=0.5, page=True, generation=generation)) as url:
        yield url


def metric(url: str, name: str) -> float:
    return total(httpx.get(f"{url}/metrics", timeout=30.0).text, name)


def running(url: str) -> float:
    return metric(url, "rayloom_engine_running_requests")


@pytest.mark.parametrize("way", ["the stop button", "closing the tab"])
def test_a_reader_who_goes_frees_the_slot(visit: Callable[..., Visit], url: str, way: str) -> None:
    """Through page, ingress and proxy to the engine: it does not write to the end for nobody."""
    seen, other = visit(f"{url}/ui/"), visit(f"{url}/ui/")
    wait_for(other.page, lambda: running(url) == 0, 60.0)  # whoever was here before has left
    steps = metric(url, "rayloom_engine_steps_total")
    seen.page.locator("#write-prompt textarea").fill("Who built the mill?")
    seen.page.locator("#write-start").click()
    expect(seen.page.locator("#write-answer textarea")).not_to_have_value("")
    assert running(url) == 1
    if way == "closing the tab":
        seen.page.close()
    else:
        seen.page.locator("#write-stop").click()
    wait_for(other.page, lambda: running(url) == 0, 30.0)
    assert 0 < metric(url, "rayloom_engine_steps_total") - steps < NEW_TOKENS


def test_writing(visit: Callable[..., Visit], url: str) -> None:
    seen = visit(f"{url}/ui/")
    answer = seen.page.locator("#write-answer textarea")
    expect(seen.page.locator("#write-model input")).to_have_value("tiny-t5")
    seen.page.locator("#write-prompt textarea").fill("Who built the mill?")
    seen.page.locator("#write-start").click()
    status = seen.page.locator("#write-status")
    expect(status).to_contain_text("writing")
    expect(answer).not_to_have_value("")
    first = answer.input_value()
    expect(answer).not_to_have_value(first)
    assert running(url) == 1
    assert is_drawn(seen.shot("on-ray"))
