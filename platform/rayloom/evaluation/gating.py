"""The gate: whether a version of the registry may go into production.

Judging takes time (a model is opened, golden prompts are replayed), so it happens outside of any transaction. The
verdict says what it depended on, and `Registry.promote` checks in its transaction that all of that is still so.
"""

from __future__ import annotations

import datetime
import math
from pathlib import Path

from rayloom.config import AgainstProduction, GateConfig, Threshold, config_hash
from rayloom.errors import ArtifactError, ModelError, RegistryError, RequestError
from rayloom.evaluation.measures import measures_of
from rayloom.evaluation.report import read_report
from rayloom.evaluation.results import EvaluationResult, ReportDocument, SplitResult
from rayloom.evaluation.statistics import Measure, Paired, Resampling, compare_paired, mean_of, num_shared_rows
from rayloom.evaluation.summary import same_rows
from rayloom.generation import TextGenerator
from rayloom.registry import Check, Registry, Verdict, Version

_RESAMPLES = 5000
_JUDGED = frozenset({"relevance", "coherence", "scorer_perplexity"})
"""Metrics that a scorer model tells."""


def judge(registry: Registry, reference: str, *, device: str | None = None) -> Verdict:
    """Have a version judged by its model's gate, and write the verdict down.

    Args:
        registry: Where the version is.
        reference: Which version.
        device: Where golden prompts are replayed; the first GPU if there is one where not given.

    Raises:
        RegistryError: There is no such version.
        ArtifactError: Its artifact is gone.
    """
    version = registry.get(reference)
    production = registry.production(version.model)
    gate = registry.gate(version.model)
    location = registry.resolve(version.name)
    checks = _report_checks(gate, registry, version, production)
    if gate.golden_replay:
        checks.append(_replayed(location, device))
    verdict = Verdict(
        model=version.model,
        version=version.version,
        digest=version.digest,
        production=production.version if production else None,
        gate_hash=config_hash(gate),
        report_hash=version.report.sha256 if version.report else None,
        production_report_hash=production.report.sha256 if production and production.report else None,
        checks=tuple(checks),
        judged=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    return registry.record(verdict)


def attach_report(registry: Registry, reference: str, report: Path) -> Version:
    """Add an evaluation report to the version that it measures.

    Args:
        registry: Where the version is.
        reference: Which version.
        report: ``report.json``, or its folder.

    Raises:
        RegistryError: No such version, or the report measures another artifact.
        RequestError: It cannot be read.
    """
    path = report / "report.json" if report.is_dir() else report
    version, result = registry.get(reference), read_result(path)
    measured = (result.artifact or {}).get("digest")
    if measured != version.digest:
        raise RegistryError(
            f"{path} measures {_measured(result)}, not {version.name}: evaluate it with rayloom evaluate {version.name}"
        )
    metrics = {f"{split.name}.{name}": value for split in result.splits for name, value in split.metrics.items()}
    return registry.attach_report(version.name, path.read_bytes(), metrics)


def read_result(path: Path) -> EvaluationResult:
    """The result in a ``report.json``.

    Raises:
        RequestError: It cannot be read, or is no report.
    """
    try:
        return read_report(path)[0]
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise RequestError(f"{path} is no report of rayloom evaluate: {first}") from None


def _report_checks(gate: GateConfig, registry: Registry, version: Version, production: Version | None) -> list[Check]:
    """What the gate reads in the evaluation report."""
    if not (gate.metrics or gate.against_production or gate.max_latency_p50_s or gate.max_latency_p95_s):
        return []
    if version.report is None:
        mend = f"rayloom evaluate {version.name} --attach"
        return [Check(name="report", passed=False, detail=f"not measured yet: {mend}")]
    result = _kept(registry, version)
    split = _split(result, gate.split)
    checks = [_latency(result, name, limit) for name, limit in _latency_limits(gate).items()]
    if split is None:
        return [*checks, Check(name="report", passed=False, detail=f"the report has no {gate.split} split")]
    checks += [_threshold(split, name, bounds) for name, bounds in gate.metrics.items()]
    if gate.against_production is not None:
        rival = _kept(registry, production) if production is not None and production.report is not None else None
        checks.append(_against(gate, result, production, rival))
    return checks


def _threshold(split: SplitResult, name: str, bounds: Threshold) -> Check:
    wanted = " and ".join(
        f"{word} {bound:g}" for word, bound in (("at least", bounds.min), ("at most", bounds.max)) if bound is not None
    )
    value = split.metrics.get(name)
    if value is None:
        known = ", ".join(sorted(split.metrics))
        return Check(name=name, passed=False, detail=f"{wanted} wanted, but {split.name} has only {known}")
    # NaN fails: no comparison with it is true.
    low = bounds.min is None or value >= bounds.min
    high = bounds.max is None or value <= bounds.max
    return Check(name=name, passed=low and high, detail=f"{value:.4g} on {split.name}, {wanted} wanted")


def _latency_limits(gate: GateConfig) -> dict[str, float]:
    limits = {"latency_p50_s": gate.max_latency_p50_s, "latency_p95_s": gate.max_latency_p95_s}
    return {name: limit for name, limit in limits.items() if limit is not None}


def _latency(result: EvaluationResult, name: str, limit: float) -> Check:
    value = getattr(result.resources, name)
    if value is None:
        return Check(
            name=name, passed=False, detail="the report has no latency: set evaluation.latency_prompts above 0"
        )
    detail = f"{value:.3g} s on {result.resources.device}, at most {limit:g} s wanted"
    return Check(name=name, passed=value <= limit, detail=detail)


def _against(
    gate: GateConfig, result: EvaluationResult, production: Version | None, rival: EvaluationResult | None
) -> Check:
    """The paired test against the version in production, whose report is ``rival``."""
    wanted = gate.against_production
    assert wanted is not None
    title = f"{wanted.metric} against production"
    if production is None:
        return Check(name=title, passed=True, detail="nothing is in production yet")
    if rival is None:
        mend = f"rayloom evaluate {production.name} --attach"
        return Check(name=title, passed=False, detail=f"{production.name} has not been measured: {mend}")
    pair = _pair(gate.split, wanted.metric, result, rival)
    if isinstance(pair, str):
        return Check(name=title, passed=False, detail=f"{production.name} {pair}")
    mine, theirs = pair
    num_rows = num_shared_rows(mine, theirs)
    if num_rows < wanted.min_rows:
        detail = f"{num_rows} rows are too few to tell, at least {wanted.min_rows} wanted"
        return Check(name=title, passed=False, detail=detail)
    how = Resampling(num_resamples=_RESAMPLES)
    paired = compare_paired(theirs, mine, how, test=wanted.test)
    return _compared(title, wanted, paired, is_less_better=mine.smaller_is_better, rival=production.name)


def _pair(name: str, metric: str, result: EvaluationResult, rival: EvaluationResult) -> tuple[Measure, Measure] | str:
    """A metric on one split of both reports, or what the rival was that keeps them from being compared."""
    split, other = _split(result, name), _split(rival, name)
    if split is None or other is None or not same_rows(split, other):
        return "was measured on other rows than this one: evaluate both on the same"
    differing = [key for key in _deciding(metric) if result.evaluation.get(key) != rival.evaluation.get(key)]
    if differing:
        return f"was measured with another evaluation.{differing[0]} than this one: evaluate both with the same"
    mine, theirs = row_measure(split, metric), row_measure(other, metric)
    if mine is None or theirs is None or mine.num_rows != theirs.num_rows:
        return f"or this one was measured without it: the rows of one of the reports have no score '{metric}'"
    return mine, theirs


def _deciding(metric: str) -> tuple[str, ...]:
    """Keys of an evaluation that a metric's figures depend on."""
    if metric.startswith("rouge"):
        return ("use_stemmer", "remove_stopwords")
    return ("scorer",) if metric in _JUDGED else ()


def _compared(title: str, wanted: AgainstProduction, paired: Paired, *, is_less_better: bool, rival: str) -> Check:
    loss = paired.difference if is_less_better else -paired.difference
    # What is no number is no loss to any comparison, and no test tells an infinite loss from chance.
    is_unknown = math.isnan(loss) or loss == math.inf
    too_much = wanted.max_loss is not None and loss > wanted.max_loss
    is_significant = loss > 0 and paired.p_worse < wanted.alpha
    bound = "" if wanted.max_loss is None else f", loss at most {wanted.max_loss:g}"
    detail = (
        f"{paired.difference:+.4g} against {rival} on {paired.num_rows} rows "
        f"(95 % interval {paired.interval.low:+.4g} to {paired.interval.high:+.4g}, p of a loss {paired.p_worse:.3g}, "
        f"wanted at least {wanted.alpha:g}{bound})"
    )
    return Check(name=title, passed=not (is_unknown or too_much or is_significant), detail=detail)


def row_measure(split: SplitResult, metric: str) -> Measure | None:
    """A metric of a split as a mean over rows; None where its rows have no such score.

    ``nll`` is a row's summed negative log-likelihood: it compares models whose tokenizers differ.
    """
    if metric == "nll":
        losses = [nll for nll, _ in split.row_losses]
        return mean_of(losses, smaller_is_better=True) if losses else None
    return measures_of(split).get(metric)


def _replayed(location: str, device: str | None) -> Check:
    """Open the artifact as serving does: every file's hash, and every golden prompt's tokens."""
    try:
        generator = TextGenerator(location, device=device)
    except (ArtifactError, ModelError) as error:
        return Check(name="golden replay", passed=False, detail=str(error))
    number = len(generator.artifact.manifest.golden) if generator.artifact else 0
    if number == 0:
        return Check(name="golden replay", passed=False, detail="the artifact has no golden prompts: publish it again")
    return Check(name="golden replay", passed=True, detail=f"{number} prompts gave the recorded tokens")


def _kept(registry: Registry, version: Version) -> EvaluationResult:
    """The registry's copy of a version's report, if it is still what was attached."""
    content = registry.read_report(version)
    try:
        return ReportDocument.model_validate_json(content).result
    except ValueError as error:
        first = str(error).splitlines()[0]
        raise RequestError(f"the report of {version.name} is no report of rayloom evaluate: {first}") from None


def _split(result: EvaluationResult, name: str) -> SplitResult | None:
    return next((split for split in result.splits if split.name == name), None)


def _measured(result: EvaluationResult) -> str:
    info = result.artifact or {}
    return f"the artifact {info.get('path', result.model)} (digest {str(info.get('digest', 'not recorded'))[:12]})"
