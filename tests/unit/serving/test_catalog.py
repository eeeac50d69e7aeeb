"""Many models by their names, over fakes of their replicas and through HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from fastapi.testclient import TestClient

from rayloom.serving.calls import Call, Completion, Following, Health, ModelInfo, Prompt
from rayloom.serving.catalog import CatalogBackend
from rayloom.serving.limits import Limits
from rayloom.serving.routes import create_app
from tests.fakes_serving import FakeBackend, FakeModel

LIMITS = Limits(request_timeout_s=5.0, max_prompt_chars=50, max_sequences=4)


def model_of(name: str, *adapters: str) -> FakeBackend:
    infos = tuple(ModelInfo(each, "llama", "chat", parent=name, created=9) for each in adapters)
    info = ModelInfo(name, "llama", "question-answering", created=5, max_positions=64, adapters=infos)
    return FakeBackend(FakeModel(info), state=Health("ok", 2, info))


@pytest.fixture
def models() -> dict[str, FakeBackend]:
    return {"qa": model_of("qa"), "llama": model_of("llama", "legal")}


@pytest.fixture
def client(models: dict[str, FakeBackend]) -> TestClient:
    catalog = CatalogBackend(models, {"legal": "llama"}, also=["route"])
    return TestClient(create_app(catalog, LIMITS), raise_server_exceptions=False)


@pytest.mark.parametrize(("name", "model"), [("qa", "qa"), ("llama", "llama"), ("legal", "llama")])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a b"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a b"}], "stream": True}),
        ("/generate", {"prompt": "a b"}),
        ("/generate", {"prompt": "a b", "stream": True}),
        ("/answer", {"question": "a b"}),
    ],
)
def test_a_call_reaches_the_model_that_it_names(
    client: TestClient, models: dict[str, FakeBackend], path: str, body: dict[str, Any], name: str, model: str
) -> None:
    response = client.post(path, json={**body, "model": name})
    assert response.status_code == 200
    assert "x-rayloom-arm" not in response.headers
    assert {key: [call.model for call in each.model_.calls] for key, each in models.items()} == {
        key: [name] if key == model else [] for key in models
    }


@pytest.mark.parametrize("name", ["gpt-4", "../qa", "/etc/passwd", "qa/", "QA", "", "file:///etc", "qa\x00"])
@pytest.mark.parametrize("path", ["/v1/completions", "/generate", "/tokenize"])
def test_nothing_but_the_catalog_is_reached(
    client: TestClient, models: dict[str, FakeBackend], name: str, path: str
) -> None:
    response = client.post(path, json={"prompt": "a", "model": name})
    assert response.status_code == 404
    error = response.json()["error"]
    assert "this server has 'qa', 'llama', 'legal' and 'route'" in error["message"]
    if path.startswith("/v1"):
        assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "model_not_found", "model")
    assert not any(each.model_.calls for each in models.values())


def test_a_call_without_a_name_is_refused_where_there_are_several(client: TestClient) -> None:
    response = client.post("/generate", json={"prompt": "a"})
    assert response.status_code == 400
    assert "name one: qa, llama, legal" in response.json()["error"]["message"]
    alone = TestClient(create_app(CatalogBackend({"qa": model_of("qa")}, {}), LIMITS))
    assert alone.post("/generate", json={"prompt": "a"}).json()["model"] == "qa"
    assert alone.post("/generate", json={"prompt": "a", "model": "x"}).status_code == 404


def test_all_are_listed_and_adapters_say_whose_they_are(client: TestClient) -> None:
    listed = client.get("/v1/models").json()["data"]
    assert [(each["id"], each["parent"], each["created"]) for each in listed] == [
        ("qa", None, 5),
        ("llama", None, 5),
        ("legal", "llama", 9),
    ]
    assert client.get("/v1/models/legal").json()["parent"] == "llama"
    missing = client.get("/v1/models/../legal2")
    assert missing.status_code == 404
    assert client.get("/v1/models/nothing").json()["error"]["code"] == "model_not_found"


def test_models_that_sleep_are_listed_and_not_woken(models: dict[str, FakeBackend]) -> None:
    models["llama"].state = Health("idle", 0)
    models["llama"].error = AssertionError("woken")
    found = asyncio.run(CatalogBackend(models, {"legal": "llama"}).models())
    assert isinstance(found, list)
    assert [(each.name, [adapter.name for adapter in each.adapters]) for each in found] == [
        ("qa", []),
        ("llama", ["legal"]),
    ]


def test_tokens_are_those_of_the_named_model(client: TestClient) -> None:
    assert client.post("/tokenize", json={"prompt": "a b", "model": "legal"}).json()["count"] == 3
    assert client.post("/detokenize", json={"tokens": [1], "model": "qa"}).json() == {"prompt": "w1"}


def test_health_is_of_each_and_of_the_best(models: dict[str, FakeBackend]) -> None:
    async def follows() -> Mapping[str, Following]:
        return {"qa": Following("qa@3", "qa@4 could not be opened: ArtifactError")}

    client = TestClient(create_app(CatalogBackend(models, {}, follows=follows), LIMITS))
    models["llama"].state = Health("not_ready", 0)
    body = client.get("/health").json()
    assert (body["status"], body["num_replicas"]) == ("ok", 2)
    assert body["models"]["llama"] == {"status": "not_ready", "num_replicas": 0}
    assert body["models"]["qa"]["following"] == {
        "version": "qa@3",
        "failure": "qa@4 could not be opened: ArtifactError",
    }
    assert client.get("/ready").status_code == 200
    models["qa"].state = Health("not_ready", 0)
    assert client.get("/health").status_code == 503


def test_a_single_model_whose_name_only_its_replicas_know() -> None:
    backend = model_of("tiny", "legal")
    catalog = CatalogBackend({"": backend}, {"legal": ""})
    client = TestClient(create_app(catalog, LIMITS))
    for name in (None, "tiny", "legal"):
        assert client.post("/generate", json={"prompt": "a", "model": name}).status_code == 200
    refused = client.post("/v1/completions", json={"prompt": "a", "model": "x"})
    assert refused.status_code == 404
    assert "this server has 'tiny' and 'legal'" in refused.json()["error"]["message"]
    assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["tiny", "legal"]
    assert "models" not in client.get("/health").json()


def test_an_adapters_own_template_decides_what_may_be_asked() -> None:
    adapter = ModelInfo("legal", "llama", "chat", answers_questions=False, takes_context=False, parent="llama")
    info = ModelInfo("llama", "llama", "question-answering", adapters=(adapter,))
    catalog = CatalogBackend({"llama": FakeBackend(FakeModel(info))}, {"legal": "llama"})

    async def asked(name: str) -> bool:
        call = Call(Prompt("a", context="b"), asks_question=True, model=name)
        return isinstance(await catalog.complete(call), Completion)

    assert asyncio.run(asked("llama"))
    assert not asyncio.run(asked("legal"))
