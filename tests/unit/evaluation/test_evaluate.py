from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch

from rayloom.artifacts import open_artifact
from rayloom.config import DatasetConfig, EvaluateJob, EvaluationConfig, load_run_config
from rayloom.data import columns_for, encode_rows, load_splits
from rayloom.errors import ConfigError, DataError, RequestError
from rayloom.evaluation import (
    EvaluationResult,
    LossSum,
    Resources,
    SplitResult,
    evaluate,
    evaluate_split,
    exact_match,
    read_report,
    rouge_rows,
    run_job,
    token_loss,
    write_report,
)
from rayloom.evaluation.resources import percentile
from rayloom.evaluation.summary import significance
from rayloom.evaluation.tables import figure, text_table
from rayloom.evaluation.units import duration, size
from rayloom.generation import TextGenerator
from tests.unit.evaluation.html_pages import Page

CONFIG = EvaluationConfig(batch_size=3, latency_prompts=3, throughput_batch_sizes=[1, 2], num_examples=2)


def opened(folder: Path):
    config = load_run_config(open_artifact(str(folder)).config_path)
    columns = columns_for(config.dataset, config.model.task_type)
    return TextGenerator(folder, device="cpu"), load_splits(config.dataset, columns), columns, config


@pytest.mark.parametrize("name", ["t5_artifact", "gpt2_artifact", "lm_artifact"])
def test_perplexity_equals_a_plain_loop_whatever_the_batch(name: str, request: pytest.FixtureRequest) -> None:
    generator, splits, columns, config = opened(request.getfixturevalue(name))
    encoded = encode_rows(
        splits.train, generator.encoder, columns, cache_dir=config.dataset.cache_dir, file_label="train"
    )
    total, count = 0.0, 0
    for example in (encoded[index] for index in range(len(encoded))):
        ids, labels = torch.tensor([example.input_ids]), torch.tensor([example.labels])
        with torch.no_grad():
            loss = generator.model(input_ids=ids, labels=labels).loss
        counted = int((labels if generator.family.seq2seq else labels[:, 1:]).ne(-100).sum())
        total, count = total + float(loss) * counted, count + counted
    pad = generator.encoder.tokenizer.pad_token_id
    for batch_size in (1, 3, 64):
        measured = token_loss(generator.model, encoded, batch_size=batch_size, pad_token_id=pad)
        assert measured.num_tokens == count
        assert measured.perplexity == pytest.approx(math.exp(total / count), rel=1e-5)


def test_loss_sums_at_their_edges() -> None:
    assert LossSum(8000.0, 10).perplexity == math.inf
    assert math.isnan(LossSum(0.0, 0).perplexity)
    assert LossSum(2.0, 2).perplexity == pytest.approx(math.e)


@pytest.mark.parametrize("name", ["t5_artifact", "gpt2_artifact"])
def test_a_split_is_what_generating_its_rows_one_by_one_gives(name: str, request: pytest.FixtureRequest) -> None:
    generator, splits, columns, _ = opened(request.getfixturevalue(name))
    result = evaluate_split(generator, splits.train, columns, split="train", config=CONFIG)
    assert result.num_rows == len(splits.train) == len(result.predictions)
    for row, prediction in zip(splits.train, result.predictions, strict=True):
        assert prediction.prediction == generator.generate(row["question"], context=row["context"])
        assert prediction.reference == row["answer"]
        (score,) = rouge_rows([prediction.prediction], [row["answer"]])
        assert prediction.rougeL == score["rougeL"]
        assert prediction.exact_match == exact_match(prediction.prediction, row["answer"])
    mean = sum(prediction.rougeL for prediction in result.predictions) / result.num_rows
    assert result.metrics["rougeL"] == pytest.approx(mean)
    assert result.best(1)[0].rougeL == max(p.rougeL for p in result.predictions)
    assert result.worst(1)[0].rougeL == min(p.rougeL for p in result.predictions)


def test_generation_changes_and_max_rows_are_heeded(t5_artifact: Path) -> None:
    generator, splits, columns, _ = opened(t5_artifact)
    told: list[tuple[str, int, int]] = []
    result = evaluate(
        generator,
        {"train": splits.train, "validation": splits.validation, "test": []},
        columns,
        config=CONFIG.model_copy(update={"max_rows": 2}),
        generation={"prefix": "Into"},
        progress=lambda *news: told.append(news),
    )
    assert [split.name for split in result.splits] == ["train", "validation"]
    assert [split.num_rows for split in result.splits] == [2, min(2, len(splits.validation))]
    assert result.splits[0].num_rows_total == len(splits.train)
    assert all(p.prediction.startswith("Into") for split in result.splits for p in split.predictions)
    assert result.generation == {"max_new_tokens": 6, "prefix": "Into"}
    assert ("train: answers", 2, 2) in told
    assert all(done <= total for _, done, total in told)
    assert {what for what, done, total in told if done == total} == {what for what, _, _ in told}
    with pytest.raises(RequestError, match="did you mean 'prefix'"):
        evaluate(generator, {"train": splits.train}, columns, generation={"prefx": "a"})
    with pytest.raises(DataError, match="no rows in test"):
        evaluate(generator, {"test": []}, columns)


def test_resources_are_measured(t5_artifact: Path) -> None:
    generator, splits, columns, _ = opened(t5_artifact)
    resources = evaluate(generator, {"test": splits.test}, columns, config=CONFIG).resources
    assert 0 < resources.latency_p50_s <= resources.latency_p95_s
    assert [point.batch_size for point in resources.throughput] == [1, 2]
    assert all(point.prompts_per_s > 0 and point.tokens_per_s > 0 for point in resources.throughput)
    files = sum(path.stat().st_size for path in t5_artifact.rglob("*") if path.is_file())
    assert resources.size_on_disk_bytes == files
    assert resources.peak_host_bytes > 50_000_000
    assert resources.training == {"train_s": 75.0, "train_tokens_per_s": 1234.0}
    assert resources.num_parameters == sum(p.numel() for p in generator.model.parameters())
    none = CONFIG.model_copy(update={"latency_prompts": 0})
    resources = evaluate(generator, {"test": splits.test}, columns, config=none).resources
    assert (resources.latency_p50_s, resources.throughput) == (None, [])


def test_percentiles_interpolate() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([1.0, 2.0], 0.95) == pytest.approx(1.95)
    assert percentile([7.0], 0.95) == 7.0


def test_language_modelling_gets_perplexity_and_continuations(lm_artifact: Path, tmp_path: Path) -> None:
    job = EvaluateJob(artifact=str(lm_artifact), evaluation=CONFIG, output=str(tmp_path))
    outcome = run_job(job, device="cpu")
    for split in outcome.result.splits:
        assert set(split.metrics) == {"loss", "perplexity"}
        assert split.predictions
        assert all(p.rougeL is None and p.prediction for p in split.predictions)
    assert "Continuations" in outcome.paths.markdown.read_text()
    assert "Continuations" in outcome.paths.html.read_text()


def test_a_job_writes_a_self_contained_report_with_before_and_after(t5_artifact: Path, tmp_path: Path) -> None:
    history = t5_artifact.parent / "history.jsonl"
    records = [{"kind": "step", "step": step, "loss": 3.0 / step} for step in (1, 2, 3)]
    records += [{"kind": "evaluation", "step": 3, "metrics": {"loss": 1.5}}]
    history.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"kind": "st')
    job = EvaluateJob(artifact=str(t5_artifact), evaluation=CONFIG, output=str(tmp_path / "report"))
    outcome = run_job(job, baseline=True, device="cpu")
    html = outcome.paths.html.read_text()
    page = Page()
    page.feed(html)
    assert page.open == []
    assert page.addresses == []
    assert page.num_svg == 4
    assert len(page.ids) == len(set(page.ids))
    assert re.findall(r"https?://(?!www\.w3\.org)", html) == []
    assert "random initialisation" in html
    assert "Random initialisation" in outcome.paths.markdown.read_text()
    assert "| metric | before | after | 95 % interval | change | p |" in outcome.paths.markdown.read_text()
    result, baseline = read_report(outcome.paths.json)
    assert result == outcome.result
    assert baseline == outcome.baseline
    assert baseline.model == "tiny (untuned)"
    assert baseline.splits[0].metrics["loss"] != result.splits[0].metrics["loss"]
    assert json.loads(outcome.paths.json.read_text())["history"][-2]["metrics"] == {"loss": 1.5}


def test_other_rows_and_other_splits_can_be_measured(t5_artifact: Path, tmp_path: Path) -> None:
    rows = [{"question": f"Why {n}?", "answer": f"Because {n}."} for n in range(12)]
    (tmp_path / "other.json").write_text(json.dumps(rows))
    dataset = DatasetConfig(train_file=str(tmp_path / "other.json"), cache_dir=str(tmp_path))
    job = EvaluateJob(
        artifact=str(t5_artifact),
        dataset=dataset,
        splits=["train"],
        evaluation=CONFIG,
        output=str(tmp_path / "r"),
    )
    (split,) = run_job(job, device="cpu").result.splits
    assert split.name == "train"
    assert all(prediction.input.startswith("Why") for prediction in split.predictions)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    prediction = {
        "row": 0,
        "input": "<script>alert(1)</script>|x\ny",
        "reference": "$title & <b>",
        "rougeL": 0.5,
        "prediction": "```|a|\\",
        "exact_match": False,
        "context": "<i>",
    }
    split = SplitResult.model_validate(
        {
            "name": "test",
            "num_rows": 1,
            "num_rows_total": 1,
            "num_target_tokens": 3,
            "predictions": [prediction],
            "metrics": {"loss": 800.0, "perplexity": math.inf, "rougeL": 0.5, "bleu": 1.0},
        }
    )
    result = EvaluationResult(
        model="<m>",
        task="chat",
        family="gpt2",
        created="now",
        splits=[split],
        generation={},
        evaluation={},
        resources=Resources(device="cpu", num_parameters=5, dtype="float32"),
    )
    paths = write_report(result, tmp_path)
    html = paths.html.read_text()
    assert "<script>" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert "$title &amp; &lt;b&gt;" in html
    page = Page()
    page.feed(html)
    assert page.open == []
    markdown = paths.markdown.read_text()
    assert "\\|x<br>y" in markdown
    assert "∞" in markdown
    assert read_report(paths.json)[0] == result


@pytest.mark.parametrize(
    ("name", "value", "before", "change", "better"),
    [
        ("rougeL", 0.5, 0.25, "+25.0", True),
        ("perplexity", 20.0, 30.0, "−10.0", True),
        ("bleu", 1.0, 3.5, "−2.5", False),
        ("loss", 1.0, 1.0, "", None),
        ("perplexity", 3.0, math.inf, "", None),
    ],
)
def test_changes_say_whether_they_are_for_the_better(name, value, before, change, better) -> None:
    shown = figure(name, value, before)
    assert (shown.change, shown.is_better) == (change, better)


def test_units() -> None:
    assert [size(number) for number in (512, 2048, 3 * 1024**3, None)] == [
        "512 B",
        "2.0 KiB",
        "3.0 GiB",
        "not known",
    ]
    assert [duration(seconds) for seconds in (0.05, 75.0, 600, 7300)] == [
        "50 ms",
        "75.0 s",
        "10 min 0 s",
        "2 h 1 min",
    ]


def test_intervals_slices_and_settings_are_in_the_report(t5_artifact: Path, tmp_path: Path) -> None:
    rows = [{"question": f"Why {n}?", "answer": f"Because {n}.", "kind": f"k{n % 2}"} for n in range(12)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    options = CONFIG.model_copy(update={"slice_by": ["kind"], "sweep": [{"num_beams": 2}], "num_resamples": 50})
    job = EvaluateJob(
        artifact=str(t5_artifact),
        dataset=DatasetConfig(train_file=str(tmp_path / "rows.json"), cache_dir=str(tmp_path)),
        splits=["train"],
        evaluation=options,
        output=str(tmp_path / "report"),
    )
    outcome = run_job(job, baseline=True, device="cpu")
    (split,) = outcome.result.splits
    for name in ("rougeL", "rougeLsum", "bleu", "chrf", "token_f1", "perplexity", "answer_words"):
        spread = split.intervals[name]
        assert spread.low <= split.metrics[name] * (1 + 1e-9) + 1e-9
        assert split.metrics[name] <= spread.high * (1 + 1e-9) + 1e-9
    inside = {each.value: each for each in split.slices}
    assert sum(each.num_rows for each in inside.values()) == split.num_rows
    for value, each in inside.items():
        mine = [p.rougeL for p in split.predictions if rows_kind(rows, p.input) == value]
        assert each.metrics["rougeL"] == pytest.approx(sum(mine) / len(mine))
    (setting,) = split.settings
    assert setting.parameters == {"num_beams": 2}
    assert setting.num_rows == split.num_rows
    assert setting.seconds > 0
    generator = TextGenerator(t5_artifact, device="cpu")
    beams = generator.generate_batch([p.input for p in split.predictions], num_beams=2)
    scores = rouge_rows(beams, [p.reference for p in split.predictions])
    assert setting.metrics["rougeL"] == pytest.approx(sum(score["rougeL"] for score in scores) / len(scores))
    tests = outcome.significance["train"]
    assert tests["loss"].difference == pytest.approx(split.metrics["loss"] - outcome.baseline.splits[0].metrics["loss"])
    assert all(0 < each.p_value <= 1 for each in tests.values())
    for text in (outcome.paths.markdown.read_text(), outcome.paths.html.read_text()):
        assert "By kind" in text
        assert "num_beams=2" in text
        assert "95 % interval" in text
    assert read_report(outcome.paths.json)[0] == outcome.result


def rows_kind(rows: list[dict[str, str]], question: str) -> str:
    return next(row["kind"] for row in rows if row["question"] == question)


def test_what_an_evaluation_cannot_do_is_refused(t5_artifact: Path, lm_artifact: Path, tmp_path: Path) -> None:
    def run(artifact: Path, **options: object) -> None:
        config = CONFIG.model_copy(update=options)
        run_job(EvaluateJob(artifact=str(artifact), evaluation=config, output=str(tmp_path)), device="cpu")

    with pytest.raises(ConfigError, match="evaluation.sweep: language modelling has no references"):
        run(lm_artifact, sweep=[{"num_beams": 2}])
    with pytest.raises(ConfigError, match="no installed package brings the metric 'mine'"):
        run(t5_artifact, metrics=["mine"])
    with pytest.raises(DataError, match="no row of validation has it; columns are question"):
        run(t5_artifact, slice_by=["topic"])
    with pytest.raises(RequestError, match="num_beams"):
        run(t5_artifact, sweep=[{"num_beams": 0}])


@pytest.mark.parametrize("name", ["t5_artifact", "gpt2_artifact", "lm_artifact"])
def test_losses_of_rows_add_up_and_are_those_of_the_row_alone(name: str, request: pytest.FixtureRequest) -> None:
    generator, splits, columns, config = opened(request.getfixturevalue(name))

    def losses(rows: list[dict[str, str]], batch_size: int) -> LossSum:
        encoded = encode_rows(rows, generator.encoder, columns, cache_dir=config.dataset.cache_dir, file_label="train")
        pad = generator.encoder.tokenizer.pad_token_id
        return token_loss(generator.model, encoded, batch_size=batch_size, pad_token_id=pad)

    rows = list(splits.train)[:6]
    together = losses(rows, 4)
    assert len(together.by_row) == 6
    assert sum(nll for nll, _ in together.by_row) == pytest.approx(together.total_nll)
    assert sum(count for _, count in together.by_row) == together.num_tokens
    alone = losses(rows[2:3], 1).by_row[0]
    assert together.by_row[2][1] == alone[1]
    assert together.by_row[2][0] == pytest.approx(alone[0], rel=1e-4)


def test_slices_need_no_losses(t5_artifact: Path) -> None:
    rows = [{"question": f"Why {n}?", "answer": f"Because {n}.", "kind": f"k{n % 2}"} for n in range(4)]
    config = CONFIG.model_copy(update={"slice_by": ["kind"], "num_resamples": 20})
    generator = TextGenerator(t5_artifact, device="cpu", precision="bf16")
    split = evaluate_split(generator, rows, opened(t5_artifact)[2], split="test", config=config)
    assert [(each.value, each.num_rows) for each in split.slices] == [("k0", 2), ("k1", 2)]
    assert all("rougeL" in each.metrics and "perplexity" not in each.metrics for each in split.slices)


def test_continuations_name_the_rows_that_they_go_on_from(lm_artifact: Path) -> None:
    generator, splits, columns, _ = opened(lm_artifact)
    rows = [{"text": " "}, *splits.train[:2]]
    split = evaluate_split(generator, rows, columns, split="test", config=CONFIG)
    assert [each.row for each in split.predictions] == [1, 2]
    assert all(str(rows[each.row]["text"]).startswith(each.input.split()[0]) for each in split.predictions)


def test_rows_whose_first_ones_alone_are_equal_are_not_the_same(lm_artifact: Path) -> None:
    generator, splits, columns, _ = opened(lm_artifact)
    rows = [{"text": f"row {n} says that {n}"} for n in range(10)]
    config = CONFIG.model_copy(update={"num_resamples": 20})

    def split(rows: list[dict[str, str]]) -> SplitResult:
        return evaluate_split(generator, rows, columns, split="test", config=config)

    one, same, other = split(rows), split(rows), split([*rows[:9], {"text": "row 9 says more"}])
    assert set(significance(one, same, config)) == {"loss", "perplexity"}
    assert significance(one, other, config) == {}
    earlier = other.model_copy(update={"rows_hash": ""})
    assert set(significance(one, earlier, config)) == {"loss", "perplexity"}, "a report that does not tell is believed"


def test_every_line_end_stays_inside_its_cell() -> None:
    assert text_table(["a"], [["x\r\ny\rz\nw"]]).splitlines()[-1] == "| x<br>y<br>z<br>w |"
