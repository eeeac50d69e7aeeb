"""Examples from the shards of a streamed corpus are those that `encode_rows` makes in memory."""

from __future__ import annotations

import json
import pickle
import random
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rayloom.config import DatasetConfig, TaskType
from rayloom.data import (
    Encoder,
    PromptTemplate,
    ShardedDataset,
    Splits,
    columns_for,
    corpus_splits,
    encode_corpus,
    encode_rows,
    load_splits,
    row_keys,
    sharded,
    shards,
    this_process,
)
from rayloom.errors import DataError

WORDS = ["the", "miller", "counts", "his", "sacks", "while", "a", "river", "flows", "past", "old", "mills", "cats"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_splits, "BLOCK_BYTES", 400)
    monkeypatch.setattr(row_keys, "SHARD_BLOCKS", 2)


class Case:
    """A corpus, and what encodes it."""

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerFast, kind: str, **values: object) -> None:
        task: TaskType = {"lm": "language-modeling", "chat": "chat"}.get(kind, "question-answering")  # type: ignore[assignment]
        self.folder, self.path = folder, folder / "corpus.jsonl"
        if not self.path.exists():
            self.path.write_text("\n".join(json.dumps(row) for row in rows_of(kind)))
        self.dataset = DatasetConfig.model_validate(
            {"train_file": str(self.path), "cache_dir": str(folder / "cache"), **values}
        )
        self.columns = columns_for(self.dataset, task)
        template = PromptTemplate.for_run(
            self.dataset, task, seq2seq=kind == "pair", has_chat_template=tokenizer.chat_template is not None
        )
        self.encoder = Encoder(tokenizer, template, max_input_length=40, max_target_length=8)

    def splits(self, *, streamed: bool = True) -> Splits:
        return load_splits(self.dataset.model_copy(update={"streaming": streamed}), self.columns)

    def encoded(self, workers: Any = this_process) -> dict[str, ShardedDataset]:
        corpus = self.splits().corpus
        assert corpus is not None
        return encode_corpus(corpus, self.encoder, self.columns, cache_dir=self.dataset.cache_dir, workers=workers)

    def in_memory(self, split: str) -> Any:
        rows = self.splits(streamed=False).rows(split)
        return encode_rows(rows, self.encoder, self.columns, cache_dir=self.folder / "other", file_label="x")

    def shard(self, number: int) -> Path:
        (found,) = self.folder.glob(f"cache/corpora/tokens/*/shard-{number:05d}")
        return found


def rows_of(kind: str) -> list[dict[str, Any]]:
    rng = random.Random(1)

    def text(most: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(0, most)))

    if kind == "lm":
        return [{"text": text(90)} for _ in range(60)]
    if kind == "chat":
        return [
            {"messages": [{"role": role, "content": text(9) or "x"} for role in ("user", "assistant") * 2]}
            for _ in range(60)
        ]
    return [{"question": text(12), "answer": text(6), "context": text(30)} for _ in range(60)]


def tokenizer_of(kind: str, new_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    return new_tokenizer(chat=kind == "chat", eos=kind == "pair")


@pytest.mark.parametrize("small", [True, False], ids=["two bytes", "four bytes"])
@pytest.mark.parametrize("kind", ["lm", "qa", "pair", "chat"])
@pytest.mark.parametrize("limits", [{}, {"max_train_rows": 11, "max_validation_rows": 2}], ids=["all", "limited"])
def test_examples_are_those_of_rows_in_memory(
    tmp_path: Path, new_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, kind: str, limits: dict[str, int], small: bool
) -> None:
    monkeypatch.setattr(shards, "fits_small", lambda _: small)
    case = Case(tmp_path, tokenizer_of(kind, new_tokenizer), kind, **limits)
    found = case.encoded()
    assert len(list(tmp_path.glob("cache/corpora/tokens/*/shard-*"))) > 3
    for split in ("train", "validation"):
        ours, known = found[split], case.in_memory(split)
        assert list(ours) == list(known)  # by index, until an IndexError
        assert len(ours) == len(known) > 0
        assert ours.lengths.tolist() == known.lengths.tolist()
        assert ours.target_counts.tolist() == known.target_counts.tolist()
        assert [ours.place(i) for i in range(len(ours))] == [known.place(i) for i in range(len(known))]
        assert (ours.report, ours.seq2seq, ours.num_tokens) == (known.report, known.seq2seq, known.num_tokens)
        assert ours.first_ids(50).tolist() == known.first_ids(50).tolist()
        assert ours[-1] == known[-1]


def test_only_its_place_travels(tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast) -> None:
    data = Case(tmp_path, plain_tokenizer, "lm").encoded()["train"]
    examples = list(data)
    content = pickle.dumps(data)
    assert len(content) < 500
    copy = pickle.loads(content)
    assert (list(copy), copy.digest) == (examples, data.digest)


def test_who_tokenises_changes_nothing(tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast) -> None:
    def backwards(what: str, work: Callable[[Any], Any], pieces: Sequence[Any], sizes: Sequence[int]) -> Iterator[Any]:
        assert what
        assert len(pieces) == len(sizes)
        assert all(size > 0 for size in sizes)
        with ThreadPoolExecutor(4) as threads:
            done = list(threads.map(pickle.loads(pickle.dumps(work)), reversed(pieces)))
        return iter(done[::-1])

    files = []
    for name, workers in (("one", this_process), ("many", backwards)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "corpus.jsonl").write_text("\n".join(json.dumps(row) for row in rows_of("qa")))
        Case(tmp_path / name, plain_tokenizer, "qa", max_train_rows=20).encoded(workers)
        (made,) = (tmp_path / name).glob("cache/corpora/tokens/*/")
        kept = sorted(path for path in made.rglob("*") if path.is_file() and path.suffix not in (".json", ""))
        files.append([(path.relative_to(made), path.read_bytes()) for path in kept])
    assert files[0] == files[1]
    assert len(files[0]) > 20


class Counting:
    """Workers that count, and stop after so many pieces."""

    def __init__(self, most: int = 1000) -> None:
        self.done, self._most = 0, most

    def __call__(self, _: str, work: Callable[[Any], Any], pieces: Sequence[Any], __: Sequence[int]) -> Iterator[Any]:
        for piece in pieces:
            if self.done == self._most:
                raise KeyboardInterrupt
            yield work(piece)
            self.done += 1


def test_an_interrupted_tokenisation_goes_on(tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast) -> None:
    case = Case(tmp_path, plain_tokenizer, "lm")
    with pytest.raises(KeyboardInterrupt):
        case.encoded(Counting(3))
    (folder,) = tmp_path.glob("cache/corpora/tokens/*")
    assert not (folder / "manifest.json").exists()
    with pytest.raises(DataError, match="cache_dir"):
        len(ShardedDataset(folder, "train"))
    rest, none = Counting(), Counting()
    found = case.encoded(rest)
    assert rest.done == len(list(folder.glob("shard-*"))) - 3 > 0
    assert list(found["train"]) == list(case.in_memory("train"))
    case.encoded(none)
    assert none.done == 0


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "no list", "index"])
def test_a_damaged_shard_is_made_again(tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast, damage: str) -> None:
    case = Case(tmp_path, plain_tokenizer, "qa")
    examples = list(case.encoded()["train"])
    path = case.shard(1) / ("shard.json" if damage == "no list" else "train.ids")
    if damage == "index":
        (path,) = tmp_path.glob("cache/corpora/tokens/*/train.lengths.npy")
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    if damage in ("flipped", "index"):
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-2])
    else:
        path.unlink()
    if damage in ("cut", "missing"):
        with pytest.raises(DataError, match="missing or damaged") as caught:
            ShardedDataset(path.parents[1], "train")[0]
        assert str(caught.value.file) == str(path)
    again = Counting()
    data = case.encoded(again)["train"]
    assert again.done == (damage != "index")
    assert list(data) == examples
    assert data.lengths.tolist() == [len(example.input_ids) for example in examples]


def test_the_digest_follows_the_train_examples(tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast) -> None:
    case = Case(tmp_path, plain_tokenizer, "qa", validation_file=str(tmp_path / "v.jsonl"), test_file="none")
    other = json.dumps({"question": "new?", "answer": "yes"})
    rows = [json.dumps(row) for row in rows_of("qa")]
    case.dataset = case.dataset.model_copy(update={"test_file": None})
    digests = []
    for train, validation in ((rows, rows[:9]), (rows, rows[:8]), ([*rows, other], rows[:9]), (rows, rows[:9])):
        case.path.write_text("\n".join(train))
        (tmp_path / "v.jsonl").write_text("\n".join(validation))
        found = case.encoded()
        digests.append((found["train"].digest, found["validation"].digest))
    (first, validation), (same, other_validation), (changed, _), last = digests
    assert first != changed
    assert validation != other_validation
    assert last == (first, validation)
    assert same != changed


def test_rows_that_all_fall_away(tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "corpus.jsonl").write_text(
        "\n".join(json.dumps({"question": f"q{n}", "answer": " "}) for n in range(30))
    )
    with pytest.raises(DataError, match="no row can be used: 24 of 24 rows dropped"):
        Case(tmp_path, plain_tokenizer, "qa").encoded()


def test_errors_name_the_row(tmp_path: Path, new_tokenizer: Any) -> None:
    tokenizer = new_tokenizer(chat=True)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match="roles must alternate") as caught:
        Case(tmp_path, tokenizer, "qa").encoded()
    assert caught.value.file == str(tmp_path / "corpus.jsonl")
    assert caught.value.row


def test_maps_are_few_and_pages_given_back(
    tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(tmp_path, plain_tokenizer, "pair")
    examples = list(case.encoded()["train"])
    monkeypatch.setattr(sharded, "_MOST_MAPS", 2)
    monkeypatch.setattr(sharded, "_RESIDENT_BYTES", 1)
    data = case.encoded()["train"]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(data.__getitem__, range(len(data)))) == examples
    assert len(data._maps) <= 2


def test_reading_examples_holds_none_of_them(tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast) -> None:
    data = Case(tmp_path, plain_tokenizer, "lm").encoded()["train"]
    len(data)
    data[0]
    tracemalloc.start()
    try:
        for _ in range(20):
            for index in range(len(data)):
                data[index]
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 100_000
    assert peak < 300_000
