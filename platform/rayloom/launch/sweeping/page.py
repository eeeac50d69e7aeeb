"""A sweep as one HTML page that needs nothing else: who won, and why, at the top."""

from __future__ import annotations

from html import escape

from rayloom.config import dump_yaml
from rayloom.evaluation.pages import number_table, plot_cards, text_table, tiles, whole_page
from rayloom.evaluation.tables import Figure
from rayloom.evaluation.units import duration, metric_text, p_text
from rayloom.launch.sweeping.ranking import Ranked, Results
from rayloom.launch.sweeping.space import short_names, shown

_CLASSES = {"best": "good", "worse": "bad", "failed": "bad", "stopped": "quiet", "not tested": "quiet"}


def sweep_page(results: Results) -> str:
    """The whole page."""
    from rayloom.launch.sweeping import plots  # matplotlib takes a second to import

    head, rows, classes = ranked_table(results)
    parts = [
        f"<h1>Sweep {escape(results.sweep.name)}</h1>",
        f'<p class="sub">{escape(subtitle(results))}</p>',
        f"<p><strong>{escape(results.headline)}</strong></p>",
        tiles(_tiles(results)),
        "<h2>Trials, best first</h2>",
        number_table(head, rows, classes),
        f'<p class="quiet">{escape(note(results))}</p>',
        plot_cards(
            [
                ("Settings and result", plots.parallel_coordinates(results)),
                (f"Learning curves: validation {results.metric}", plots.learning_curves(results)),
            ]
        ),
        *_influence(results),
        *_handovers(results),
        *_failures(results),
        "<h2>The best config</h2>",
        f"<details><summary>best.yaml</summary><pre>{escape(_best_config(results))}</pre></details>",
    ]
    return whole_page(f"Sweep {results.sweep.name}", parts)


def subtitle(results: Results) -> str:
    """What was searched, and how."""
    config, base = results.sweep.config, results.sweep.base
    way = f"{config.search} search" + ("" if config.scheduler.kind == "none" else f", {config.scheduler.kind.upper()}")
    goal = "least" if config.direction == "min" else "greatest"
    return f"{base.model.name} · {base.model.task_type} · {way} · {goal} {config.metric} wins · {results.counts}"


def ranked_table(results: Results) -> tuple[list[str], list[list[str]], dict[tuple[int, int], str]]:
    """Head, cells and CSS classes of the table of trials."""
    names = short_names(list(results.sweep.config.space))
    # The name stands first: only figures follow it.
    head = ["trial", "rank", results.metric, "verdict", "difference", "p", *names.values(), "steps", "time"]
    rows, classes = [], {}
    for place, each in enumerate(results.trials):
        rows.append(_row(results, place + 1, each))
        if each.verdict in _CLASSES:
            classes[place, head.index("verdict")] = _CLASSES[each.verdict]
    return head, rows, classes


def _row(results: Results, rank: int, each: Ranked) -> list[str]:
    record, test = each.record, each.test
    return [
        record.name,
        str(rank),
        "–" if each.score is None else f"{each.score:.4f}",
        each.verdict,
        "" if test is None else f"{test.difference:+.4f}",
        "" if test is None else p_text(test.p_value),
        *(shown(record.values[key]) for key in results.sweep.config.space),
        str(record.steps),
        duration(record.seconds),
    ]


def note(results: Results) -> str:
    """How to read the table."""
    options = results.sweep.base.evaluation
    tested = any(each.test for each in results.trials)
    text = (
        "Within noise: a paired randomization test against the best, row by row on the validation rows "
        f"({options.num_resamples} resamples, two-sided), gives p of {1 - results.confidence:.2g} or more. The "
        "difference is that of the artifacts, measured anew. It tells how much of the gap is the choice of rows, not "
        "how much another seed would change."
        if tested
        else "Differences were not tested: too few trials finished, on other validation rows, or intervals were off."
    )
    if any(each.verdict == "stopped" for each in results.trials):
        text += " Stopped: the scheduler saw others do better at the same point; the figure is the best until then."
    return text


def _tiles(results: Results) -> list[Figure]:
    best = results.best
    names = short_names(list(results.sweep.config.space))
    score = metric_text(results.metric, best.score or 0.0) if best.score is not None else "–"
    shown_settings = [Figure(names[key], shown(best.record.values[key])) for key in list(names)[:4]]
    return [Figure(f"best {results.metric}: {best.record.name}", score), *shown_settings]


def _influence(results: Results) -> list[str]:
    if not results.influence:
        return []
    names = short_names(list(results.sweep.config.space))
    ordered = sorted(results.influence.items(), key=lambda item: -abs(item[1]))
    rows = [[names[key], f"{rho:+.2f}"] for key, rho in ordered]
    better = "less" if results.sweep.config.direction == "min" else "more"
    how = (
        f"At the first validation of each trial; {better} {results.metric} is better. Near +1 or −1 the setting alone "
        "puts trials in order; near 0 it does not, or its best value lies in the middle."
    )
    return [
        "<h2>What mattered</h2>",
        number_table(["setting", f"rank correlation with {results.metric}"], rows),
        f'<p class="quiet">{escape(how)}</p>',
    ]


def _handovers(results: Results) -> list[str]:
    rows = [
        [each.record.name, str(handover.step), handover.donor.split("/")[0], _values(results, handover.values)]
        for each in results.trials
        for handover in each.record.handovers
    ]
    if not rows:
        return []
    return ["<h2>Hand-overs</h2>", text_table(["trial", "at step", "took over from", "settings since then"], rows)]


def _values(results: Results, values: dict[str, object]) -> str:
    names = short_names(list(results.sweep.config.space))
    return ", ".join(f"{names[key]} {shown(value)}" for key, value in values.items())


def _failures(results: Results) -> list[str]:
    rows = [
        [each.record.name, str(each.record.failures), (each.record.error or "went on after it was tried again")[-1500:]]
        for each in results.trials
        if each.record.failures
    ]
    return ["<h2>Failures</h2>", text_table(["trial", "failures", "the last one"], rows)] if rows else []


def _best_config(results: Results) -> str:
    return dump_yaml(results.sweep.trial_config(results.best.record.values))
