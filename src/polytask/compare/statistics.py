"""From paired splits to a verdict for each task.

Gains are relative to the best single-task baseline of a task: the one with the best test score on the same
splits. Which of several is best is itself uncertain, and neither their test scores nor their validation
losses (few rows, best of several trials) may choose one for free. So a gain is sure only when it is sure
against *every* baseline (the largest of the p-values; an intersection-union test needs no correction), and
a loss only after Bonferroni's correction for having looked for the best of S baselines (S × p).

With metric values m_j (method) and b_j (baseline) on the same split j and
sign = +1 where higher is better, -1 where lower is,

    gain = sign (mean m - mean b) / mean b                  positive is always better, free of units
    d_j  = sign (m_j - (mean m / mean b) b_j) / mean b      what split j adds to it (delta method)

The d_j are not independent: training sets of different splits overlap, and every repeat tests the same
rows again. Their variance is therefore taken apart, rows by models, as in a two-way layout with random
effects. Test row i of split j has the influence u_ij on the gain (from the metrics' influences), so

    V_rows   = sum_i (sum_j u_ij / (J n_j))²                a row that is tested twice counts once
    V_models = (1/J + n_test/n_train) max(0, s² - mean_j sum_i u_ij² / (n_j (n_j - 1)))
    se²      = V_rows + V_models

with s² the variance of the d_j: what the splits differ by beyond the sampling of their test rows comes
from their models (training rows, tuning, seeds), and only for that part do overlapping training sets
matter, so only it gets the correction of the corrected resampled t-test, which applies it to all of s².
Degrees of freedom are Satterthwaite's. Where rows come in groups, u is summed over the rows of a group
first. ``benchmarks/verdict_simulation.py`` measures the coverage of this interval next to that of s²/J
(too narrow) and of the corrected resampled t-test (nearly always far too wide on repeated folds).

No split of one table can show how all models would move together with another table, so no interval from
cross-validation is exact: this one holds the truth somewhat less than 95 % of the time where methods differ
much on few labels, and up to 99 % of the time where they hardly differ.

Every (sharing method, task) pair gives one two-sided test; Holm's adjustment over all pairs bounds the
chance of any false "gains" or "hurt" by 5 %. Intervals are 95 % each, not adjusted.

Nadeau & Bengio, Inference for the generalization error, Machine Learning 2003; Bayle et al.,
Cross-validation confidence intervals for test error, NeurIPS 2020; Satterthwaite, An approximate
distribution of estimates of variance components, Biometrics Bulletin 1946; Holm, A simple sequentially
rejective multiple test procedure, Scandinavian Journal of Statistics 1979.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from polytask.compare.plan import Plan
from polytask.compare.store import Stored
from polytask.core.data import Ints
from polytask.core.metrics import METRICS
from polytask.core.results import Comparison, MethodInfo, Verdict
from polytask.core.task import Floats, Task

LEVEL = 0.05
_CROSSING_ZERO = ("r2", "explained_variance", "quadratic_kappa", "f1")


@dataclass(frozen=True)
class Judgement:
    """What :func:`judge` found, as :class:`~polytask.core.results.Results` holds it."""

    comparisons: tuple[Comparison, ...]
    verdicts: tuple[Verdict, ...]
    overall: Mapping[str, Mapping[str, Mapping[str, float]]]


@dataclass(frozen=True)
class Interval:
    """An estimate, its 95 % interval and the two-sided p-value of "it is 0"."""

    value: float
    low: float
    high: float
    p: float


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values: max over smaller ones of (number of hypotheses left) × p, at most 1."""
    order = np.argsort(p_values, kind="stable")
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(order.tolist()):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


@dataclass(frozen=True)
class Parts:
    """What splits and rows add to an estimate that is a mean over J splits.

    Attributes
    ----------
    splits
        The value of each split, ``(J,)``; only differences between splits matter.
    rows
        For each split the clusters (row numbers, or groups of rows) and the influence of each row on
        the value of that split, both ``(n_j,)``.
    """

    splits: Floats
    rows: tuple[tuple[Ints, Floats], ...]

    @classmethod
    def mean(cls, several: Sequence[Parts]) -> Parts:
        """Return the parts of the mean of several estimates over the same splits."""
        splits = np.asarray(np.mean([parts.splits for parts in several], axis=0))
        joined = []
        for number in range(len(splits)):
            clusters = np.concatenate([parts.rows[number][0] for parts in several])
            # every estimate has its own n_j: bring all to the joined number of rows
            values = [parts.rows[number][1] / (len(parts.rows[number][1]) * len(several)) for parts in several]
            joined.append((clusters, np.concatenate(values) * len(clusters)))
        return cls(splits, tuple(joined))


def standard_error(parts: Parts, test_to_train: float) -> tuple[float, float]:
    """Return (standard error, degrees of freedom) of the mean over splits; see the module's formulas.

    Parameters
    ----------
    parts
        What splits and rows add to the estimate.
    test_to_train
        Test rows per training row, n_test/n_train.
    """
    n_splits = len(parts.splits)
    clusters = np.concatenate([clusters for clusters, _ in parts.rows])
    shares = np.concatenate([values / (n_splits * len(values)) for _, values in parts.rows])
    _, code = np.unique(clusters, return_inverse=True)
    sums = np.bincount(code, weights=shares)
    within = np.array([_sampling_variance(*of_split) for of_split in parts.rows])
    sizes = np.array([len(np.unique(clusters)) for clusters, _ in parts.rows])
    squares = np.square(sums)
    rows = float(squares.sum()) * float(sizes.sum()) / max(1.0, float((sizes - 1).sum()))
    spread = float(parts.splits.var(ddof=1))
    models = (1.0 / n_splits + test_to_train) * max(0.0, spread - float(within.mean()))
    excess = float(np.square(squares).sum()) - float(squares.sum()) ** 2 / len(sums)
    most = max(1.0, len(sums) - 1.0)
    degrees_rows = min(most, 2.0 * float(squares.sum()) ** 2 / excess) if excess > 0.0 else most
    noise = rows**2 / degrees_rows + models**2 / (n_splits - 1)
    variance = rows + models
    degrees = variance**2 / noise if noise > 0.0 else most
    return float(np.sqrt(variance)), max(1.0, degrees)


def _sampling_variance(clusters: Ints, values: Floats) -> float:
    """Return the variance of the mean of ``values`` (with mean 0) over independent clusters."""
    _, code = np.unique(clusters, return_inverse=True)
    sums = np.bincount(code, weights=values / len(values))
    return float(np.square(sums).sum()) * len(sums) / max(1, len(sums) - 1)


def corrected_error(values: Floats, test_to_train: float) -> float:
    """Return the standard error of the corrected resampled t-test (Nadeau & Bengio 2003), J - 1 degrees.

        se² = (1/J + n_test/n_train) s²

    Parameters
    ----------
    values
        One value for each of J splits.
    test_to_train
        Test rows per training row.
    """
    return float(np.sqrt((1.0 / len(values) + test_to_train) * values.var(ddof=1)))


def interval(value: float, error: float, degrees: float) -> Interval:
    """Return the 95 % t-interval of ``value`` with its standard error, and the p-value."""
    from scipy import stats

    if error <= 0.0:
        return Interval(value, value, value, 1.0 if value == 0.0 else 0.0)
    half = float(stats.t.ppf(1.0 - LEVEL / 2.0, degrees)) * error
    p = float(2.0 * stats.t.sf(abs(value) / error, degrees))
    return Interval(value, value - half, value + half, p)


@dataclass(frozen=True)
class _Gain:
    """The relative gain of one method on one task, the splits it rests on, and their parts."""

    gain: float
    splits: tuple[int, ...]
    parts: Parts


class _Table:
    """Test scores and row influences by method, task and split, averaged over seeds."""

    def __init__(
        self, plan: Plan, tasks: Sequence[Task], stored: Sequence[Stored], clusters: Ints | None, ratio: float
    ) -> None:
        self.n_splits = plan.splits.n_splits
        self.clusters = clusters
        self.ratio = ratio
        self.done = [found for found in stored if found.run.status == "done"]
        self.failures = {found.run.method: found.run.error for found in stored if found.run.status != "done"}
        self.tasks = {task.name: task for task in tasks}

    def scores(self, method: str, task: str) -> Floats:
        """Return the primary metric on every split ``(J,)``; NaN where it was not measured."""
        sums, counts = np.zeros(self.n_splits), np.zeros(self.n_splits)
        metric = self.tasks[task].metric
        for run in (found.run for found in self.done):
            if run.method == method and metric in run.scores.get(task, {}):
                sums[run.split] += run.scores[task][metric]
                counts[run.split] += 1
        return np.asarray(np.divide(sums, counts, out=np.full(self.n_splits, np.nan), where=counts > 0))

    def influences(self, method: str, task: str, split: int) -> tuple[Ints, Floats]:
        """Return the clusters of the test rows of a split, and the influence of each row on the metric."""
        found = [
            item.influences[task]
            for item in self.done
            if item.run.method == method and item.run.split == split and task in item.influences
        ]
        rows = found[0][0]
        values = np.asarray(np.mean([values for _, values in found], axis=0))
        return (rows if self.clusters is None else self.clusters[rows]), values


def judge(
    plan: Plan,
    tasks: Sequence[Task],
    excluded: Mapping[str, str],
    methods: Sequence[MethodInfo],
    stored: Sequence[Stored],
    *,
    pairs: Sequence[tuple[Ints, Ints]],
    clusters: Ints | None = None,
) -> Judgement:
    """Compare every sharing method with the best baseline of each task, and answer for each task.

    Parameters
    ----------
    excluded
        Task → why it was left out of every run.
    pairs
        Training and test rows of every split.
    clusters
        Row → number of its group, where the rows of a group are not independent.
    """
    ratio = float(np.mean([len(test) / len(train) for train, test in pairs]))
    table = _Table(plan, tasks, stored, clusters, ratio)
    measured_tasks = [task for task in tasks if task.name not in excluded]
    baselines = {task.name: _baselines(table, methods, task) for task in measured_tasks}
    sharing = [method for method in methods if method.sharing != "single"]
    comparisons: list[Comparison] = []
    means: list[Comparison] = []
    for method in sharing:
        gains = []
        for task in tasks:
            found, gain = _compare(table, method, task, baselines.get(task.name, ()), excluded.get(task.name))
            comparisons.append(found)
            gains += [gain] if gain is not None else []
        means.append(_mean_gain(table, method, gains))
    comparisons = _adjust(comparisons)
    verdicts = tuple(_verdict(task, [item for item in comparisons if item.task == task.name]) for task in tasks)
    return Judgement((*comparisons, *means), verdicts, _overall(table, methods))


def _baselines(table: _Table, methods: Sequence[MethodInfo], task: Task) -> tuple[str, ...]:
    return tuple(
        method.name
        for method in methods
        if method.sharing == "single"
        and task.name not in method.refused
        and not np.isnan(table.scores(method.name, task.name)).all()
    )


def _compare(
    table: _Table, method: MethodInfo, task: Task, baselines: Sequence[str], excluded: str | None
) -> tuple[Comparison, _Gain | None]:
    """Compare with the best of the baselines, and be as sure as the module's text allows."""
    empty = Comparison(task.name, method.name, "", task.metric, verdict="not measurable")
    if excluded is not None:
        return replace(empty, reason=f"the task {excluded}"), None
    if task.name in method.refused:
        return replace(empty, reason=method.refused[task.name]), None
    if not baselines:
        return replace(empty, reason="no single-task baseline could be measured on this task"), None
    tried = [_against(table, method, task, baseline) for baseline in baselines]
    measured = [pair for pair in tried if pair[0].gain is not None]
    return best_of(measured) if measured else tried[0]


def best_of(measured: Sequence[tuple[Comparison, _Gain | None]]) -> tuple[Comparison, _Gain | None]:
    """Of comparisons with several baselines keep the one with the best, with a p-value that counts them all."""
    best, gain = min(measured, key=lambda pair: pair[0].gain or 0.0)
    p_values = [item.p for item, _ in measured if item.p is not None]
    if best.p is not None:
        better = (best.gain or 0.0) > 0.0
        best = replace(best, p=max(p_values) if better else min(1.0, len(p_values) * best.p))
    return best, gain


def _against(table: _Table, method: MethodInfo, task: Task, baseline: str) -> tuple[Comparison, _Gain | None]:
    """Compare a method with one baseline on one task."""
    empty = Comparison(task.name, method.name, baseline, task.metric, verdict="not measurable")
    ours, theirs = table.scores(method.name, task.name), table.scores(baseline, task.name)
    both = ~np.isnan(ours) & ~np.isnan(theirs)
    n_splits = int(both.sum())
    if n_splits == 0:
        failure = table.failures.get(method.name)
        reason = f"no split has {METRICS[task.metric].label} of both the method and the baseline"
        reason = reason if failure is None else f"its runs failed: {failure}"
        return replace(empty, reason=reason), None
    score, base = float(ours[both].mean()), float(theirs[both].mean())
    empty = replace(empty, score=score, baseline_score=base, n_splits=n_splits)
    if _near_zero(task, base):
        reason = (
            f"the baseline's {METRICS[task.metric].label} is {base:.3g}, too near 0 for a relative gain; "
            f"choose another metric for this task"
        )
        return replace(empty, reason=reason), None
    sign = 1.0 if METRICS[task.metric].higher_is_better else -1.0
    gain = sign * (score - base) / base
    splits = tuple(np.flatnonzero(both).tolist())
    rows = []
    for split in splits:
        clusters, own = table.influences(method.name, task.name, split)
        rows.append((clusters, sign * (own - score / base * table.influences(baseline, task.name, split)[1]) / base))
    parts = Parts(sign * (ours[both] - score / base * theirs[both]) / base, tuple(rows))
    if n_splits < 2:
        only = replace(empty, gain=gain, verdict="cannot tell", reason="one split only, so no interval")
        return only, _Gain(gain, splits, parts)
    found = interval(gain, *standard_error(parts, table.ratio))
    done = replace(empty, gain=gain, low=found.low, high=found.high, p=found.p, verdict="cannot tell")
    return done, _Gain(gain, splits, parts)


def _near_zero(task: Task, base: float) -> bool:
    return base < (0.01 if task.metric in _CROSSING_ZERO else 1e-9)


def _mean_gain(table: _Table, method: MethodInfo, gains: Sequence[_Gain]) -> Comparison:
    """Return the mean relative gain over tasks, over the splits on which every task is measured."""
    empty = Comparison(None, method.name, "best single", "mean relative gain", verdict="not measurable")
    if not gains:
        return replace(empty, reason="no task could be measured")
    common = sorted(set.intersection(*(set(gain.splits) for gain in gains)))
    value = float(np.mean([gain.gain for gain in gains]))
    if len(common) < 2:
        reason = "fewer than two splits have all tasks measured, so no interval"
        return replace(empty, gain=value, n_splits=len(common), verdict="cannot tell", reason=reason)
    parts = Parts.mean([_only(gain, common) for gain in gains])
    found = interval(value, *standard_error(parts, table.ratio))
    verdict = "cannot tell" if found.p >= LEVEL else "gains" if value > 0 else "hurt"
    return replace(
        empty,
        gain=value,
        low=found.low,
        high=found.high,
        p=found.p,
        n_splits=len(common),
        verdict=verdict,
    )


def _only(gain: _Gain, splits: Sequence[int]) -> Parts:
    places = [gain.splits.index(split) for split in splits]
    return Parts(gain.parts.splits[places], tuple(gain.parts.rows[place] for place in places))


def _adjust(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Add Holm's p-values and the verdict of each pair."""
    tested = [place for place, item in enumerate(comparisons) if item.p is not None]
    adjusted = dict(zip(tested, holm([comparisons[place].p or 0.0 for place in tested]), strict=True))
    found = []
    for place, item in enumerate(comparisons):
        if place not in adjusted:
            found.append(item)
            continue
        sure = adjusted[place] < LEVEL
        better = (item.gain or 0.0) > 0.0
        verdict = ("gains" if better else "hurt") if sure else "cannot tell"
        found.append(replace(item, p_holm=adjusted[place], verdict=verdict))
    return found


def _verdict(task: Task, items: Sequence[Comparison]) -> Verdict:
    """Answer for one task from its comparisons."""
    hurt_by = tuple(item.method for item in items if item.verdict == "hurt")
    winners = [item for item in items if item.verdict == "gains"]
    losers = [item for item in items if item.verdict == "hurt"]
    open_ = [item for item in items if item.verdict == "cannot tell"]
    if winners:
        best = max(winners, key=lambda item: item.gain or 0.0)
        advice = f"Share it by {best.method}: {_percent(best)} better than {best.baseline} alone."
        if hurt_by:
            advice += f" Not by {_listed(hurt_by)}, which {_make(hurt_by)} it worse."
        return _answer(task, "gains", best, hurt_by, advice)
    if losers:
        worst = min(losers, key=lambda item: item.gain or 0.0)
        rest = "" if not open_ else f"; with {_listed(tuple(item.method for item in open_))} nothing is sure"
        advice = f"Learn it alone with {worst.baseline}: {_listed(hurt_by)} {_make(hurt_by)} it worse{rest}."
        return _answer(task, "hurt", worst, hurt_by, advice)
    if open_:
        best = max(open_, key=lambda item: -np.inf if item.gain is None else item.gain)
        advice = f"Keep {best.baseline} alone: these splits do not show that sharing helps or harms."
        return _answer(task, "cannot tell", best, (), advice)
    if not items:
        return Verdict(
            task.name, "not measurable", None, None, None, None, None, (), "No method that shares was compared."
        )
    reason = items[0].reason
    return Verdict(
        task.name, "not measurable", None, items[0].baseline or None, None, None, None, (), f"Not measurable: {reason}."
    )


def _answer(task: Task, verdict: str, item: Comparison, hurt_by: tuple[str, ...], advice: str) -> Verdict:
    return Verdict(task.name, verdict, item.method, item.baseline, item.gain, item.low, item.high, hurt_by, advice)


def _percent(item: Comparison) -> str:
    return f"{100 * (item.gain or 0):.1f} % ({100 * (item.low or 0):.1f} to {100 * (item.high or 0):.1f} %)"


def _make(names: Sequence[str]) -> str:
    return "makes" if len(names) == 1 else "make"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _overall(table: _Table, methods: Sequence[MethodInfo]) -> dict[str, dict[str, dict[str, float]]]:
    """Return method → score over all tasks → mean and interval over splits."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for method in methods:
        by_metric: dict[str, dict[int, list[float]]] = {}
        for run in (item.run for item in table.done):
            if run.method == method.name:
                for metric, value in run.overall.items():
                    by_metric.setdefault(metric, {}).setdefault(run.split, []).append(value)
        found[method.name] = {}
        for metric, splits in by_metric.items():
            values = np.array([np.mean(splits[split]) for split in sorted(splits)])
            mean = float(values.mean())
            if len(values) < 2:
                found[method.name][metric] = {"mean": mean}
                continue
            bounds = interval(mean, corrected_error(values, table.ratio), len(values) - 1)
            found[method.name][metric] = {"mean": mean, "low": bounds.low, "high": bounds.high}
    return found
