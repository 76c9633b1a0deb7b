"""Results to facts: one plain, JSON-able dictionary that every kind of report is written from.

Nothing is computed here that a reader could not check by hand from the results: means and standard
deviations over splits, counts, and sentences. Intervals, p-values and verdicts come from ``compare``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from polytask.core.metrics import METRICS
from polytask.core.results import Comparison, MethodInfo, Results, Run, Verdict
from polytask.report import background
from polytask.report.sharing import curves, finite, relations
from polytask.report.words import VERDICTS, clip, count, interval, listed, percent, printable

FACTS = 1
_MANY = 24  # with more tasks than this the mean over tasks is said first


def collect(results: Results) -> dict[str, Any]:
    """Return everything a report says, as plain data.

    Parameters
    ----------
    results
        What a comparison found; an empty or half-failed one is fine.

    Returns
    -------
    dict
        ``title``, ``headline`` (sentence, counts, sentences), ``methods`` (with their mean gain),
        ``verdicts`` (one row per task, surest first), ``gains`` (task × sharing method), ``metrics``
        (task and metric × method), ``overall``, ``curves``, ``relations``, ``data``, ``failed``,
        ``settings`` and ``reading`` (how to read it). Shares are fractions (0.05 = 5 %), numbers are
        finite or None, and texts have no control characters; nothing is escaped.
    """
    look = _Lookup(results)
    verdicts = [_verdict(look, task) for task in results.tasks]
    verdicts.sort(key=_surest_first)
    methods = [_method(look, method) for method in results.methods]
    facts = {
        "format": FACTS,
        "title": printable(results.title) or "Comparison",
        "n_tasks": len(results.tasks),
        "n_methods": len(results.methods),
        "n_splits": len({run.split for run in results.runs}),
        "n_runs": len(results.runs),
        "n_failed": sum(run.status == "failed" for run in results.runs),
        "methods": methods,
        "verdicts": verdicts,
        "gains": _gains(look),
        "metrics": _metrics(look),
        "overall": background.overall(results),
        "curves": curves(results),
        "relations": relations(results),
        "data": background.data(results),
        "failed": background.failed(results),
        "settings": background.settings(results),
        "timing": background.timing(results.timing),
    }
    facts["headline"] = _headline(facts)
    facts["reading"] = _reading(look, facts)
    return facts


class _Lookup:
    """Results by (task, method), so that every table is filled in one pass."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.comparisons: dict[tuple[str | None, str], Comparison] = {
            (item.task, item.method): item for item in results.comparisons
        }
        self.verdicts: dict[str, Verdict] = {item.task: item for item in results.verdicts}
        self.methods: dict[str, MethodInfo] = {method.name: method for method in results.methods}
        self.done: dict[str, list[Run]] = {method.name: [] for method in results.methods}
        self.n_failed: dict[str, int] = {}
        for run in results.runs:
            if run.status == "done":
                self.done.setdefault(run.method, []).append(run)
            else:
                self.n_failed[run.method] = self.n_failed.get(run.method, 0) + 1
        self.about: dict[str, Mapping[str, Any]] = {str(task["name"]): task for task in results.data.get("tasks", ())}
        self.sharing = [method for method in results.methods if method.sharing != "single"]

    def summary(self, task: str, method: str, metric: str) -> dict[str, Any]:
        """Return mean and standard deviation of one metric over splits; seeds of a split are averaged first."""
        by_split: dict[int, list[float]] = {}
        for run in self.done.get(method, ()):
            value = finite(run.scores.get(task, {}).get(metric), 12)
            if value is not None:
                by_split.setdefault(run.split, []).append(value)
        known = [fmean(values) for values in by_split.values()]
        if known:
            sd = float(np.std(known, ddof=1)) if len(known) > 1 else None
            return {"status": "measured", "mean": finite(fmean(known), 6), "sd": finite(sd), "n": len(known)}
        return {"status": self.gap(task, method), "reason": self.why(task, method), "mean": None, "sd": None, "n": 0}

    def gap(self, task: str, method: str) -> str:
        """Say which kind of gap it is when there is no number: refused, failed, not measurable."""
        info = self.methods.get(method)
        if info is not None and task in info.refused:
            return "n/a"
        return "not measurable" if self.done.get(method) else "failed" if self.n_failed.get(method) else "not run"

    def why(self, task: str, method: str) -> str:
        """Say why there is no number."""
        info, item = self.methods.get(method), self.comparisons.get((task, method))
        if info is not None and task in info.refused:
            return printable(info.refused[task])
        if item is not None and item.reason:
            return printable(item.reason)
        verdict = self.verdicts.get(task)
        if verdict is not None and verdict.verdict == "not measurable" and verdict.advice:
            return printable(verdict.advice)
        return {
            "not measurable": "the metric cannot be computed on the test rows",
            "failed": "every run of this method failed",
            "not run": "no run of this method has finished",
        }[self.gap(task, method)]


# -- verdicts ----------------------------------------------------------------------------------------


def _verdict(look: _Lookup, task: Mapping[str, Any]) -> dict[str, Any]:
    name = str(task["name"])
    metric = METRICS.get(task["metrics"][0]) if task.get("metrics") else None
    given = look.verdicts.get(name)
    about = look.about.get(name, {})
    facts: dict[str, Any] = {
        "task": printable(name),
        "kind": str(task["kind"]),
        "n_labels": about.get("n_labels"),
        "metric": metric.name if metric else "",
        "metric_label": metric.label if metric else "",
        "higher_is_better": metric.higher_is_better if metric else True,
        "verdict": "not measurable",
        "method": None,
        "baseline": None,
        "baseline_score": None,
        "score": None,
        "gain": None,
        "low": None,
        "high": None,
        "p_holm": None,
        "hurt_by": [],
        "advice": "",
        "reason": "",
        "seen": None,
    }
    rows = [look.comparisons[name, m.name] for m in look.sharing if (name, m.name) in look.comparisons]
    if given is None:
        facts["reason"] = facts["advice"] = (
            "No run has finished, so nothing can be said." if not any(look.done.values()) else "No verdict was reached."
        )
        return facts
    spoken = look.comparisons.get((name, given.method)) if given.method else None
    best_seen = max((r for r in rows if _measured(r)), key=lambda r: r.gain or 0.0, default=None)
    reference = spoken or best_seen
    facts.update(
        verdict=given.verdict if given.verdict in VERDICTS else "cannot tell",
        method=printable(given.method) if given.method else None,
        baseline=printable(given.baseline) if given.baseline else None,
        gain=finite(given.gain),
        low=finite(given.low),
        high=finite(given.high),
        hurt_by=[printable(method) for method in given.hurt_by],
        advice=printable(given.advice),
    )
    if reference is not None:
        facts["baseline"] = facts["baseline"] or printable(reference.baseline)
        facts["baseline_score"] = finite(reference.baseline_score, 6)
    if facts["baseline_score"] is None and given.baseline and metric:
        facts["baseline_score"] = look.summary(name, given.baseline, metric.name)["mean"]
    if spoken is not None:
        facts["score"], facts["p_holm"] = finite(spoken.score, 6), finite(spoken.p_holm)
    if facts["verdict"] == "not measurable":
        own = [r.reason for r in rows if r.reason and name not in look.methods[r.method].refused]
        facts["reason"] = printable(next(iter(own or (r.reason for r in rows)), ""))
    elif facts["gain"] is None and best_seen is not None:
        facts["seen"] = {"method": printable(best_seen.method), **_gain_of(best_seen)}
    return facts


def _measured(item: Comparison) -> bool:
    return finite(item.gain) is not None and item.verdict != "not measurable"


def _gain_of(item: Comparison) -> dict[str, Any]:
    return {"gain": finite(item.gain), "low": finite(item.low), "high": finite(item.high)}


def _surest_first(row: Mapping[str, Any]) -> tuple[int, float]:
    gain = row["gain"] or 0.0
    by_size = {"gains": -gain, "hurt": gain}
    return VERDICTS.index(row["verdict"]), by_size.get(row["verdict"], 0.0)


# -- methods and gains -------------------------------------------------------------------------------


def _method(look: _Lookup, method: MethodInfo) -> dict[str, Any]:
    mean = look.comparisons.get((None, method.name))
    own = [item for (task, name), item in look.comparisons.items() if name == method.name and task is not None]
    refused: dict[str, int] = {}
    for reason in method.refused.values():
        refused[printable(reason)] = refused.get(printable(reason), 0) + 1
    facts: dict[str, Any] = {
        "method": printable(method.name),
        "sharing": method.sharing,
        "summary": printable(method.summary),
        "n_done": len(look.done.get(method.name, ())),
        "n_failed": look.n_failed.get(method.name, 0),
        "n_refused": len(method.refused),
        "refused": [{"reason": reason, "n": n} for reason, n in sorted(refused.items())],
        "n_measured": sum(_measured(item) for item in own),
        "tally": {verdict: sum(item.verdict == verdict for item in own) for verdict in VERDICTS},
        "mean": None,
    }
    if mean is not None:
        facts["mean"] = {
            **_gain_of(mean),
            "verdict": mean.verdict,
            "p": finite(mean.p),
            "n_splits": mean.n_splits,
            "reason": printable(mean.reason),
        }
    if method.sharing != "single":
        facts["sentence"] = _method_sentence(facts)
    return facts


def _method_sentence(facts: Mapping[str, Any]) -> str:
    mean, tally, name = facts["mean"], facts["tally"], clip(facts["method"], 60)
    if mean is None or mean["gain"] is None:
        why = (mean or {}).get("reason") or ("its runs failed" if facts["n_failed"] else "no run has finished")
        return f"{name}: no mean gain ({why})"
    span = f" (95 % interval {interval(mean['low'], mean['high'])})" if mean["low"] is not None else ""
    parts = [f"{count(tally['gains'], 'task gains', 'tasks gain')}, {tally['hurt']} hurt"]
    if facts["n_refused"]:
        parts.append(f"{facts['n_refused']} n/a")
    return f"{name}: mean gain {percent(mean['gain'], signed=True)}{span}; {', '.join(parts)}"


def _gains(look: _Lookup) -> dict[str, Any]:
    rows = []
    for task in look.results.tasks:
        cells = []
        for method in look.sharing:
            item = look.comparisons.get((str(task["name"]), method.name))
            if item is not None and _measured(item):
                cells.append(
                    {
                        "status": "measured",
                        **_gain_of(item),
                        "p_holm": finite(item.p_holm),
                        "verdict": item.verdict,
                        "score": finite(item.score, 6),
                        "baseline": printable(item.baseline),
                        "baseline_score": finite(item.baseline_score, 6),
                    }
                )
            else:
                name = str(task["name"])
                cells.append({"status": look.gap(name, method.name), "reason": look.why(name, method.name)})
        rows.append({"task": printable(task["name"]), "cells": cells})
    return {"methods": [printable(method.name) for method in look.sharing], "tasks": rows}


def _metrics(look: _Lookup) -> dict[str, Any]:
    rows = []
    for task in look.results.tasks:
        for place, name in enumerate(task.get("metrics", ())):
            metric = METRICS.get(name)
            cells = [look.summary(str(task["name"]), method.name, name) for method in look.results.methods]
            known = [cell["mean"] for cell in cells if cell["mean"] is not None]
            higher = metric.higher_is_better if metric else True
            best = (max(known) if higher else min(known)) if known else None
            rows.append(
                {
                    "task": printable(task["name"]),
                    "kind": str(task["kind"]),
                    "metric": printable(name),
                    "label": metric.label if metric else printable(name),
                    "higher_is_better": higher,
                    "main": place == 0,
                    "cells": [{**cell, "best": cell["mean"] is not None and cell["mean"] == best} for cell in cells],
                }
            )
    return {"methods": [printable(method.name) for method in look.results.methods], "rows": rows}


# -- sentences ---------------------------------------------------------------------------------------------


def _headline(facts: Mapping[str, Any]) -> dict[str, Any]:
    tally = {verdict: sum(row["verdict"] == verdict for row in facts["verdicts"]) for verdict in VERDICTS}
    n = facts["n_tasks"]
    if facts["n_runs"] == facts["n_failed"]:
        sentence = "No run has finished, so there is no verdict yet."
    elif n == tally["not measurable"]:
        sentence = "No task could be measured, so there is no verdict."
    else:
        sentence = _tally_sentence(tally, n)
    ranked = [m for m in facts["methods"] if m["mean"] and m["mean"]["gain"] is not None]
    ranked.sort(key=lambda m: -m["mean"]["gain"])
    best = ranked[0] if ranked else None
    if best is not None and best["mean"]["verdict"] == "gains" and n > _MANY:
        sentence = _mean_sentence(tally, n, best)
    sentences = [sentence]
    if best is not None:
        mean = best["mean"]
        span = interval(mean["low"], mean["high"])
        sentences.append(
            f"Largest mean gain: {clip(best['method'], 60)}, {percent(mean['gain'], signed=True)}"
            + (f" (95 % interval {span})" if span else "")
            + f" over {_its_tasks(best['n_measured'], n)}."
        )
    notes = []
    both = [clip(row["task"], 40) for row in facts["verdicts"] if row["verdict"] == "gains" and row["hurt_by"]]
    if both:
        notes.append(
            f"{count(len(both), 'task that gains is', 'tasks that gain are')} hurt by another sharing method "
            f"({listed(both, 4)}): the choice of method matters."
        )
    if facts["n_failed"]:
        notes.append(f"{facts['n_failed']} of {count(facts['n_runs'], 'run')} failed; see the list of failed runs.")
    return {
        "sentence": sentence,
        "counts": tally,
        "sentences": sentences + notes,
        "notes": notes,
        "best_method": best and best["method"],
    }


def _mean_sentence(tally: Mapping[str, int], n: int, best: Mapping[str, Any]) -> str:
    """Say that many small tasks gain together although few are sure alone."""
    alone = f"{tally['gains']} of them surely" if tally["gains"] else "no single one surely"
    rest = f", {tally['hurt']} {'is' if tally['hurt'] == 1 else 'are'} hurt" if tally["hurt"] else ""
    gain = percent(best["mean"]["gain"], signed=True)
    return f"On average the {n} tasks gain from learning together ({clip(best['method'], 60)}, {gain}); {alone}{rest}."


def _its_tasks(measured: int, n: int) -> str:
    if measured < n:
        return f"the {count(measured, 'task')} of {n} it was measured on"
    return f"all {count(n, 'task')}" if n > 1 else "the one task"


def _tally_sentence(tally: Mapping[str, int], n: int) -> str:
    gains, hurt, unsure, unmeasured = (tally[verdict] for verdict in VERDICTS)
    if n == 1:
        first = f"The one task {'gains' if gains else 'does not surely gain'} from learning together"
    elif not gains:
        first = f"None of {n} tasks surely gains from learning together"
    elif gains == n:
        first = f"All {n} tasks gain from learning together"
    else:
        first = f"{gains} of {n} tasks {'gains' if gains == 1 else 'gain'} from learning together"
    rest = []
    if hurt:
        rest.append(f"{hurt} {'is' if hurt == 1 else 'are'} hurt")
    if unsure:
        rest.append(f"for {unsure} the data cannot tell")
    if unmeasured:
        rest.append(f"{unmeasured} cannot be measured")
    return f"{first}; {listed(rest)}." if rest else f"{first}."


def _reading(look: _Lookup, facts: Mapping[str, Any]) -> list[str]:
    """Explain the statistics in three sentences."""
    given = look.results.setup.get("statistics")
    if isinstance(given, str):
        return [printable(given, 2000)]
    if isinstance(given, Sequence) and given:
        return [printable(sentence, 2000) for sentence in given]
    pairs = sum(1 for (task, _), item in look.comparisons.items() if task is not None and item.p_holm is not None)
    splits = facts["n_splits"]
    return [
        "A gain is the relative improvement of a task's main metric, on test rows no method has seen, over the best "
        "single-task method: +5 % means a 5 % smaller error (or a 5 % higher score where higher is better), and "
        "positive is always better.",
        f"Every number is a mean over {count(splits, 'train/test split')} that all methods share, and its 95 % "
        "interval, widened because the splits share training rows, says how far off it may be by luck.",
        "A task gains only if it is better than every single-task method, and is hurt only if it is worse than the "
        "best one, beyond what could well be chance: its p-value stays below 0.05 after Holm's "
        f"correction for all {count(pairs, 'pair')} of task and method tested "
        "(among many, an interval may leave out zero by luck); “cannot tell” asks for more data, it does not mean "
        "that there is no effect.",
    ]


def facts_of(results: Results | Mapping[str, Any]) -> Mapping[str, Any]:
    """Return ``results`` as facts, whichever of the two it is."""
    return collect(results) if isinstance(results, Results) else results
