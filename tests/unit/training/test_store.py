"""Which checkpoint is taken, after all kinds of damage; and which are kept."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayloom.errors import TrainingError
from tests.fakes_store import IDENTITY, content, save, store_at

FILES = sorted(content(20, 0) | content(20, 1))


@pytest.fixture
def place(tmp_path):
    """Checkpoints of steps 10 and 20."""
    store, _ = store_at(tmp_path / "run")
    store.take_over("a1")
    save(store, tmp_path, 10)
    save(store, tmp_path, 20)
    return tmp_path / "run"


def latest_step(place: Path, identity=IDENTITY):
    store, notes = store_at(place, identity)
    commit = store.latest()
    return (commit.step if commit else None), notes


def flip_bit(path: Path, position: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_the_latest_comes_back_as_it_was_written(place):
    store, notes = store_at(place)
    commit = store.latest()
    assert (commit.step, commit.world_size, commit.progress["step"], notes) == (20, 2, 20, [])
    with store.opened(commit) as folder:
        for name, data in (content(20, 0) | content(20, 1)).items():
            assert (folder / name).read_bytes() == data


def test_a_node_that_does_not_see_the_checkpoint_says_so(place, tmp_path):
    commit = store_at(place)[0].latest()
    elsewhere, _ = store_at(tmp_path / "another-node")
    with pytest.raises(TrainingError, match=r"all nodes share"), elsewhere.opened(commit):
        pass


def test_an_empty_place_has_no_checkpoint_and_that_is_no_error(tmp_path):
    assert latest_step(tmp_path / "nothing") == (None, [])


# Ten kinds of damage. Each must be named in a note, and step 10 must be taken instead.


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_in_any_file_is_found(place, name):
    flip_bit(place / "step-00000020-a1" / name, -1)
    step, notes = latest_step(place)
    assert step == 10
    assert name in notes[0]
    assert "checksum" in notes[0]


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_found(place, name):
    path = place / "step-00000020-a1" / name
    path.write_bytes(path.read_bytes()[:-1])
    step, notes = latest_step(place)
    assert step == 10
    assert name in notes[0]
    assert "bytes instead of" in notes[0]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found(place, name):
    (place / "step-00000020-a1" / name).unlink()
    step, notes = latest_step(place)
    assert step == 10
    assert f"{name} is missing" in notes[0]


@pytest.mark.parametrize("name", FILES)
def test_an_emptied_file_is_found(place, name):
    (place / "step-00000020-a1" / name).write_bytes(b"")
    step, notes = latest_step(place)
    assert step == 10
    assert name in notes[0]


def test_a_bit_flipped_anywhere_in_the_commit_mark_is_found(place):
    mark = place / "step-00000020-a1" / "COMMIT.json"
    whole = mark.read_bytes()
    meaning = json.loads(whole)
    for position in range(len(whole)):
        mark.write_bytes(whole)
        flip_bit(mark, position)
        if _means_the_same(mark.read_bytes(), meaning):
            continue  # such as another kind of white space
        step, notes = latest_step(place)
        assert step == 10, position
        assert "COMMIT.json" in notes[0]


def test_a_lost_commit_mark_is_noticed(place):
    (place / "step-00000020-a1" / "COMMIT.json").unlink()
    step, notes = latest_step(place)
    assert step == 10
    assert "COMMIT.json is gone" in notes[0]


def test_a_lost_folder_is_noticed(place):
    shutil.rmtree(place / "step-00000020-a1")
    step, notes = latest_step(place)
    assert step == 10
    assert "step-00000020-a1" in notes[0]


def test_an_emptied_folder_is_noticed(place):
    shutil.rmtree(place / "step-00000020-a1")
    (place / "step-00000020-a1").mkdir()
    assert latest_step(place)[0] == 10


def test_folders_and_files_of_others_are_not_looked_at(place):
    (place / "step-00000099-zz").mkdir()
    (place / "step-00000099-zz" / "state.json").write_text('{"step": 99}')
    (place / "checkpoint_000099").mkdir()
    (place / "step-abc").write_text("x")
    assert latest_step(place) == (20, [])


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"step": 20}', '{"record": {}, "sha256": "0"}', "\x00\xff"])
def test_a_foreign_json_in_place_of_the_mark_is_refused(place, text):
    (place / "step-00000020-a1" / "COMMIT.json").write_bytes(text.encode("latin-1"))
    step, notes = latest_step(place)
    assert step == 10
    assert "COMMIT.json" in notes[0]


def test_the_mark_of_another_step_is_refused(place):
    shutil.copy(place / "step-00000010-a1" / "COMMIT.json", place / "step-00000020-a1" / "COMMIT.json")
    step, notes = latest_step(place)
    assert step == 10
    assert "that of step-00000010-a1" in notes[0]


def test_a_checkpoint_of_another_run_is_refused_and_says_why(place, tmp_path):
    other, _ = store_at(tmp_path / "other", IDENTITY | {"data": "d2"})
    save(other, tmp_path, 30, attempt="b2")
    shutil.copytree(tmp_path / "other" / "step-00000030-b2", place / "step-00000030-b2")
    step, notes = latest_step(place)
    assert step == 20
    assert "other data" in notes[0]
    store, _ = store_at(place)
    store.take_over("c3")
    save(store, tmp_path, 40, attempt="c3", keep=1)
    assert (place / "step-00000030-b2").exists()  # not ours to remove


def test_a_wrong_number_of_workers_is_refused(place):
    mark = place / "step-00000020-a1" / "COMMIT.json"
    record = json.loads(mark.read_text())["record"]
    from rayloom.training.commits import _digest

    record["ranks"].pop()
    mark.write_text(json.dumps({"record": record, "sha256": _digest(record)}))
    step, notes = latest_step(place)
    assert step == 10
    assert "2 made it" in notes[0]


def test_a_stranger_among_the_shards_is_refused(place):
    shutil.copy(
        place / "step-00000010-a1" / "deepspeed/step/zero_pp_rank_1_optim_states.pt",
        place / "step-00000020-a1" / "deepspeed/step/zero_pp_rank_2_optim_states.pt",
    )
    step, notes = latest_step(place)
    assert step == 10
    assert "does not belong" in notes[0]


def test_if_all_are_damaged_that_is_an_error_and_no_fresh_start(place):
    for folder in place.glob("step-*"):
        flip_bit(folder / "weights.safetensors")
    with pytest.raises(TrainingError, match=r"step-00000020-a1: weights.safetensors does not match"):
        latest_step(place)


def test_if_all_are_gone_that_is_an_error_and_no_fresh_start(place):
    for folder in place.glob("step-*"):
        shutil.rmtree(folder)
    with pytest.raises(TrainingError, match=r"no checkpoint in .* can be resumed"):
        latest_step(place)
    (place / "INDEX.json").write_text("{")
    with pytest.raises(TrainingError, match=r"INDEX.json is damaged"):
        latest_step(place)


def test_other_data_or_config_is_an_error_and_no_fresh_start(place):
    with pytest.raises(TrainingError, match=r"other config and data"):
        latest_step(place, {"config": "c2", "data": "d2"})


def test_the_damaged_go_once_a_newer_one_is_safe(place, tmp_path):
    flip_bit(place / "step-00000020-a1" / "weights.safetensors")
    store, _ = store_at(place)
    assert store.take_over("b2").step == 10
    assert (place / "step-00000020-a1").exists()
    save(store, tmp_path, 20, attempt="b2")
    assert sorted(path.name for path in place.glob("step-*")) == ["step-00000010-a1", "step-00000020-b2"]
    assert latest_step(place) == (20, [])


def test_leftovers_of_killed_attempts_go(place):
    left = place / "step-00000030-a1"
    left.mkdir()
    (left / "state.json").write_text("{}")
    store, notes = store_at(place)
    assert store.take_over("b2").step == 20
    assert not left.exists()
    assert notes == []


def test_one_that_was_thought_dead_cannot_commit(place, tmp_path):
    store, _ = store_at(place)
    store.take_over("b2")
    with pytest.raises(TrainingError, match=r"another process has gone on"):
        save(store, tmp_path, 30, attempt="a1")
    assert latest_step(place) == (20, [])


def test_the_best_has_the_highest_score_and_is_the_earliest_of_equals(tmp_path):
    store, _ = store_at(tmp_path / "run")
    for step, score in ((10, 0.1), (20, 0.3), (30, 0.3), (40, float("nan")), (50, None)):
        save(store, tmp_path, step, score=score)
    assert store.best().step == 20
    flip_bit(tmp_path / "run" / "step-00000020-a1" / "weights.safetensors")
    assert store.best().step == 30


def test_without_scores_the_latest_is_the_best(place):
    assert store_at(place)[0].best().step == 20


@settings(max_examples=40)
@given(
    scores=st.lists(st.none() | st.sampled_from([0.1, 0.2, 0.3, float("nan")]), min_size=1, max_size=7),
    keep=st.integers(1, 4),
)
def test_retention_never_deletes_the_best_or_the_last(scores, keep):
    with tempfile.TemporaryDirectory() as name:
        store, notes = store_at(Path(name) / "run")
        before: list[int] = []
        for index, score in enumerate(scores):
            step = 10 * (index + 1)
            save(store, Path(name), step, world_size=1, score=score, keep=keep)
            there = {old: scores[old // 10 - 1] for old in [*before, step]}
            ranked = [(s, -old) for old, s in there.items() if s is not None and s == s]
            best = -max(ranked)[1] if ranked else step
            expected = [step] + [best] * (best != step)
            expected += [old for old in sorted(there, reverse=True) if old not in expected][
                : max(0, keep - len(expected))
            ]
            before = sorted(expected)
            assert [commit.step for commit in store.records()] == before
            assert (store.latest().step, store.best().step) == (step, best)
        assert notes == []
        on_disk = {folder.name for folder in (Path(name) / "run").glob("step-*")}
        assert on_disk == {commit.folder for commit in store.records()}


def _means_the_same(data: bytes, meaning) -> bool:
    try:
        return json.loads(data) == meaning
    except ValueError:
        return False
