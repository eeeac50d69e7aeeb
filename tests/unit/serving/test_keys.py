from __future__ import annotations

import json
import multiprocessing
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from rayloom.errors import ConfigError
from rayloom.serving.keys import KeyStore, Terms, hash_of, read_keys

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


@pytest.fixture
def store(path: Path) -> KeyStore:
    return KeyStore(path, clock=lambda: NOW)


def test_only_the_hash_is_kept_and_only_the_owner_sees_it(store: KeyStore, path: Path, tmp_path: Path) -> None:
    secret = store.create("app", Terms(("generate", "metrics"), 60, 1000, -1, 1.5))
    (key,) = read_keys(path)
    assert key.sha256 == hash_of(secret.encode())
    assert (key.name, key.scopes, key.requests_per_minute) == ("app", ("generate", "metrics"), 60)
    assert (key.tokens_per_minute, key.priority) == (1000, -1)
    assert (key.created, key.expires) == (NOW, NOW + timedelta(days=1.5))
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert secret not in file.read_text()
        assert secret.removeprefix("rl-") not in file.read_text()


def test_keys_have_256_random_bits(store: KeyStore) -> None:
    made = [store.create(f"app{number}", Terms()) for number in range(5)]
    assert len(set(made)) == 5
    assert all(secret.startswith("rl-") and len(secret) == 3 + 43 for secret in made)


def test_a_name_is_free_again_once_its_key_is_no_good(store: KeyStore) -> None:
    store.create("app", Terms())
    with pytest.raises(ConfigError, match="there is a key 'app' already: revoke it first"):
        store.create("app", Terms())
    assert store.revoke("app") == 1
    assert store.revoke("app") == 0
    store.create("app", Terms(days=1))
    later = KeyStore(store.path, clock=lambda: NOW + timedelta(days=1))
    later.create("app", Terms())
    assert [key.why_refused(NOW + timedelta(days=1)) for key in later.all()] == ["revoked", "expired", None]
    with pytest.raises(ConfigError, match="there is no key 'other'; there are: app"):
        store.revoke("other")


@pytest.mark.parametrize(
    ("name", "terms", "message"),
    [
        ("two words", Terms(), "name"),
        ("", Terms(), "name"),
        ("a\n", Terms(), "name"),
        ("app", Terms(scopes=("everything",)), "scopes"),
        ("app", Terms(requests_per_minute=0), "requests_per_minute"),
        ("app", Terms(priority=101), "priority"),
        ("app", Terms(days=0), "cannot expire in 0 days"),
        ("app", Terms(days=float("nan")), "cannot expire in nan days"),
    ],
)
def test_wrong_terms_are_refused_and_nothing_is_written(
    store: KeyStore, path: Path, name: str, terms: Terms, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        store.create(name, terms)
    assert not path.exists()


def test_json_will_do(tmp_path: Path) -> None:
    key = {"name": "app", "sha256": hash_of(b"x"), "created": "2026-11-22T12:00:00Z"}
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [key]}))
    assert read_keys(path)[0].created == NOW


def test_errors_never_quote_a_key(tmp_path: Path, path: Path) -> None:
    secret = KeyStore(tmp_path / "other.yaml").create("app", Terms())
    good = {"name": "app", "sha256": hash_of(b"x"), "created": "2026-11-22T12:00:00Z"}
    for wrong in ({"sha256": secret}, {"name": f"{secret} x"}, {"expires": secret}, {secret: 1}, {"scopes": secret}):
        path.write_text(json.dumps({"keys": [good | wrong]}))
        with pytest.raises(ConfigError) as caught:
            read_keys(path)
        assert secret not in str(caught.value)
        assert secret[3:] not in str(caught.value)
    path.write_text(f"keys: {secret}\n")
    with pytest.raises(ConfigError) as caught:
        read_keys(path)
    assert secret not in str(caught.value)


def test_the_same_hash_twice_is_refused(path: Path) -> None:
    key = {"name": "app", "sha256": hash_of(b"x"), "created": "2026-11-22T12:00:00Z"}
    path.write_text(json.dumps({"keys": [key, key | {"name": "other"}]}))
    with pytest.raises(ConfigError, match="two keys have the same sha256"):
        read_keys(path)


def make_keys(path: Path, worker: int) -> None:
    for number in range(5):
        KeyStore(path).create(f"w{worker}-{number}", Terms())


def test_writers_at_once_lose_no_key(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=make_keys, args=(path, worker)) for worker in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert {key.name for key in read_keys(path)} == {
        f"w{worker}-{number}" for worker in range(3) for number in range(5)
    }


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        KeyStore(tmp_path / "file" / "keys.yaml").create("app", Terms())
