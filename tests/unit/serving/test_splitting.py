"""A/B splits and shadow traffic over fakes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from rayloom.config import RouteConfig
from rayloom.serving.access import Access, LiveKeys
from rayloom.serving.arms import ArmCall, arm_of
from rayloom.serving.calls import Call, Completion, Health, ModelInfo, Problem, Prompt, Started
from rayloom.serving.catalog import CatalogBackend
from rayloom.serving.keys import KeyStore, Terms
from rayloom.serving.limits import Limits
from rayloom.serving.routes import create_app
from rayloom.serving.splitting import SplitBackend
from tests.fakes_serving import FakeBackend, FakeModel

LIMITS = Limits(request_timeout_s=5.0, max_prompt_chars=50, max_sequences=4)
SPLIT = {"v1": 0.75, "v2": 0.25}


class Tally:
    """Counts calls to arms.

    Attributes:
        calls: By route, arm, whether it was a copy, and status.
        tokens: Tokens written, by route, arm and whether it was a copy.
    """

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str, bool, int]] = Counter()
        self.tokens: Counter[tuple[str, str, bool]] = Counter()

    def ended(self, call: ArmCall) -> None:
        """See `ArmObserver`."""
        self.calls[call.route, call.arm, call.is_shadow, call.status] += 1
        self.tokens[call.route, call.arm, call.is_shadow] += call.num_tokens


class Split:
    """Three models behind the name 'qa', one of them its shadow."""

    def __init__(self, shadow: str | None = None, timeout_s: float = 5.0) -> None:
        infos = {name: ModelInfo(name, "t5", "question-answering") for name in ("v1", "v2", "v3")}
        self.models = {name: FakeBackend(FakeModel(info), state=Health("ok", 1, info)) for name, info in infos.items()}
        self.tally = Tally()
        routes = {"qa": RouteConfig(split=SPLIT, shadow=shadow)}
        inner = CatalogBackend(self.models, {}, also=["qa"])
        self.backend = SplitBackend(inner, routes, self.tally, shadow_timeout_s=timeout_s)

    def calls(self, name: str) -> list[Call]:
        return self.models[name].model_.calls


@st.composite
def splits(draw: st.DrawFn) -> dict[str, float]:
    weights = draw(st.lists(st.floats(0, 1), min_size=1, max_size=5).filter(lambda each: sum(each) > 0.01))
    return {f"arm{place}": weight / sum(weights) for place, weight in enumerate(weights)}


@given(splits(), st.text(), st.text())
def test_everybody_has_an_arm_with_a_share_and_stays_there(split: dict[str, float], route: str, who: str) -> None:
    arm = arm_of(route, split, who)
    assert split[arm] > 0.0
    assert arm == arm_of(route, split, who)


def test_shares_are_kept_and_few_move_when_they_change() -> None:
    users = [f"user{number}" for number in range(20_000)]
    before = {user: arm_of("qa", SPLIT, user) for user in users}
    share = Counter(before.values())["v2"] / len(users)
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / len(users)) ** 0.5
    after = {user: arm_of("qa", {"v1": 0.7, "v2": 0.3}, user) for user in users}
    moved = [user for user in users if before[user] != after[user]]
    assert abs(len(moved) / len(users) - 0.05) < 0.01
    assert {before[user] for user in moved} == {"v1"}
    other = Counter((before[user], arm_of("other", SPLIT, user)) for user in users)
    assert all(
        abs(other["v2", arm] / sum(n for (a, _), n in other.items() if a == "v2") - SPLIT[arm]) < 0.03 for arm in SPLIT
    )


def post(client: TestClient, user: str | None, **more: Any) -> str:
    response = client.post("/v1/completions", json={"prompt": "a b", "model": "qa", "user": user, **more})
    assert response.status_code == 200
    return response.headers["x-rayloom-arm"]


def test_answers_say_their_arm_and_a_user_stays_on_it() -> None:
    split = Split()
    client = TestClient(create_app(split.backend, LIMITS))
    for user in ("ada", "bob", "eve", "kim"):
        arms = {post(client, user), post(client, user, stream=True), post(client, user, prompt=["a", "b"])}
        assert arms == {arm_of("qa", SPLIT, user)}
    assert sum(split.tally.calls.values()) == 16
    assert {post(client, None) for _ in range(60)} == set(SPLIT)
    body = client.post("/generate", json={"prompt": "a b", "model": "qa", "user": "ada"})
    assert body.headers["x-rayloom-arm"] == body.json()["model"] == arm_of("qa", SPLIT, "ada")


def test_without_a_user_the_api_key_decides(tmp_path: Any) -> None:
    store = KeyStore(tmp_path / "keys.yaml")
    secrets = {name: store.create(name, Terms()) for name in ("one", "two", "three", "four", "five")}
    split = Split()
    client = TestClient(create_app(split.backend, LIMITS, access=Access(LiveKeys(tmp_path / "keys.yaml"))))
    for name, secret in secrets.items():
        client.headers["Authorization"] = f"Bearer {secret}"
        assert {post(client, None) for _ in range(3)} == {arm_of("qa", SPLIT, name)}


def test_prompts_of_one_request_stay_together() -> None:
    split = Split()
    client = TestClient(create_app(split.backend, LIMITS))
    for _ in range(10):
        post(client, None, prompt=["a", "b", "c", "d"])
    assert len(split.calls("v1")) % 4 == len(split.calls("v2")) % 4 == 0


async def settled(split: Split, call: Call) -> Any:
    outcome = await split.backend.complete(call)
    await split.backend.settled()
    return outcome


CALL = Call(Prompt("a b"), {"do_sample": True}, model="qa", sticky="ada", priority=2)


def test_the_shadow_gets_a_copy_that_nobody_sees() -> None:
    split = Split(shadow="v3")
    outcome = asyncio.run(settled(split, CALL))
    arm = arm_of("qa", SPLIT, "ada")
    assert isinstance(outcome, Completion)
    assert (outcome.started.arm, outcome.started.model) == (arm, arm)
    (copy,), (original,) = split.calls("v3"), split.calls(arm)
    assert copy.prompt == original.prompt
    assert copy.parameters == original.parameters
    assert copy.drawn_seed == original.drawn_seed is not None
    assert copy.priority > original.priority == 2
    assert split.tally.calls == {("qa", arm, False, 200): 1, ("qa", "v3", True, 200): 1}
    assert split.tally.tokens["qa", "v3", True] == 2


def fail(backend: FakeBackend) -> None:
    backend.error = RuntimeError("secret")


def refuse(backend: FakeBackend) -> None:
    backend.outcome = Problem(429, "overloaded", "full")


def hang(backend: FakeBackend) -> None:
    backend.delay_s = 60.0


@pytest.mark.parametrize(("break_it", "status"), [(fail, 500), (refuse, 429), (hang, 504)])
def test_a_shadow_that_fails_harms_nobody(break_it: Callable[[FakeBackend], None], status: int) -> None:
    split = Split(shadow="v3", timeout_s=0.05)
    break_it(split.models["v3"])
    assert isinstance(asyncio.run(settled(split, CALL)), Completion)
    assert split.tally.calls["qa", "v3", True, status] == 1


def test_copies_do_not_pile_up() -> None:
    split = Split(shadow="v3", timeout_s=0.5)
    hang(split.models["v3"])

    async def flood() -> None:
        for _ in range(100):
            await split.backend.complete(CALL)
        await split.backend.settled()

    asyncio.run(flood())
    assert split.tally.calls["qa", "v3", True, 504] == 64
    assert split.tally.calls["qa", "v3", True, 499] == 36
    assert split.models["v3"].num_running == 0


def test_streams_are_counted_by_how_they_end() -> None:
    split = Split()
    arm = arm_of("qa", SPLIT, "ada")

    async def read(text: str, num_events: int) -> list[Any]:
        call = Call(Prompt(text), {}, model="qa", sticky="ada")
        events: Any = split.backend.stream(call)
        told = [event async for _, event in azip(range(num_events), events)]
        await events.aclose()
        return told

    started = asyncio.run(read("a b", 100))[0]
    assert isinstance(started, Started)
    assert started.arm == arm
    asyncio.run(read("bad", 100))
    asyncio.run(read("a b c", 2))
    assert split.tally.calls == {("qa", arm, False, status): 1 for status in (200, 400, 499)}


async def azip(numbers: range, events: Any) -> Any:
    for number in numbers:
        try:
            yield number, await anext(events)
        except StopAsyncIteration:
            return


def test_other_names_pass_through_and_routes_are_listed() -> None:
    split = Split(shadow="v3")
    client = TestClient(create_app(split.backend, LIMITS))
    plain = client.post("/generate", json={"prompt": "a", "model": "v2"})
    assert "x-rayloom-arm" not in plain.headers
    assert not split.tally.calls
    assert not split.calls("v3")
    assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["v1", "v2", "v3", "qa"]
    assert client.post("/tokenize", json={"prompt": "a", "model": "qa"}).status_code == 200
    missing = client.post("/v1/completions", json={"prompt": "a", "model": "qb"})
    assert "'v3' and 'qa'" in missing.json()["error"]["message"]
