"""The store on a real S3 server (moto), through s3fs as in production."""

from __future__ import annotations

import uuid

import pytest

pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")

from rayloom.errors import TrainingError  # noqa: E402
from rayloom.training.storage import Storage  # noqa: E402
from tests.fakes_store import content, save, store_at  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def server():
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(server, monkeypatch):
    """A fresh bucket; its server is found through the environment, as anybody would set it."""
    import s3fs

    settings = {"ENDPOINT_URL": server, "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x", "DEFAULT_REGION": "us-east-1"}
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"bucket-{uuid.uuid4().hex[:8]}"
    s3fs.S3FileSystem().mkdir(name)
    yield f"s3://{name}/runs/one/checkpoints"
    s3fs.S3FileSystem.clear_instance_cache()


def test_checkpoints_are_saved_resumed_and_pruned(bucket, tmp_path):
    store, notes = store_at(bucket)
    assert store.take_over("a1") is None
    for step, score in ((10, 0.9), (20, 0.1), (30, 0.2)):
        save(store, tmp_path, step, score=score, keep=2)
    fresh, _ = store_at(bucket)
    assert [commit.step for commit in fresh.records()] == [10, 30]
    commit = fresh.latest()
    assert (commit.step, fresh.best().step, notes) == (30, 10, [])
    with fresh.opened(commit) as folder:
        for name, data in (content(30, 0) | content(30, 1)).items():
            assert (folder / name).read_bytes() == data
    assert not folder.exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "COMMIT.json"])
def test_damage_is_found(bucket, tmp_path, name):
    store, _ = store_at(bucket)
    store.take_over("a1")
    save(store, tmp_path, 10)
    save(store, tmp_path, 20)
    data = store.storage.read(f"step-00000020-a1/{name}")
    store.storage.write(f"step-00000020-a1/{name}", data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    other, notes = store_at(bucket)
    assert other.latest().step == 10
    assert name in notes[0]
    store.storage.remove_folder("step-00000010-a1")
    with pytest.raises(TrainingError, match=r"can be resumed"):
        store_at(bucket)[0].latest()


def test_leftovers_go_and_others_writes_are_seen(bucket, tmp_path):
    store, _ = store_at(bucket)
    store.take_over("a1")
    save(store, tmp_path, 10)
    watcher, _ = store_at(bucket)
    assert watcher.latest().step == 10
    save(store, tmp_path, 20)
    assert watcher.latest().step == 20  # no listing is remembered
    store.storage.write("step-00000030-a1/state.json", b"{}")
    assert watcher.take_over("b2").step == 20
    assert store.storage.folders() == ["step-00000010-a1", "step-00000020-a1"]


def test_a_file_of_many_parts_keeps_its_bytes(bucket, tmp_path):
    source = tmp_path / "big"
    source.write_bytes(bytes(range(256)) * 4 * 1024 * 60)  # 60 MiB: s3fs uploads parts of 50
    storage = Storage(bucket)
    entry = storage.upload(source, "step/big")
    assert entry == storage.entry("step/big") == storage.download("step/big", tmp_path / "back")
    assert entry.size == source.stat().st_size


def test_a_server_that_is_not_there_is_an_error_and_not_an_empty_store(bucket, monkeypatch):
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(TrainingError, match=r"checkpoint storage: cannot"):
        store_at(bucket)[0].latest()
