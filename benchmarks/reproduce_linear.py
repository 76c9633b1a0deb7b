"""The published tables of linear multi-task learning, made again with the linear learners of the library.

    python benchmarks/reproduce_linear.py                         everything, on two cores about an hour and a half
    python benchmarks/reproduce_linear.py --only school computer  some protocols (the beginning of their names)
    python benchmarks/reproduce_linear.py --only support          recovery of a union of supports
    python benchmarks/reproduce_linear.py --report docs/linear.md from the stored cells write the tables there

A cell is one method on one split; it is stored when it is finished (``cells.sqlite`` in ``--folder``),
so a run that was stopped goes on where it was, and ``--report`` needs no run.

Every method has the same budget: TRIALS configurations from its own search space, each fitted on the
same FOLDS folds within the training rows and scored by the protocol's first metric. The first ROUNDS[0]
configurations are spread evenly over the space, those of the next rounds lie closer and closer to the
best so far. The best one is fitted on all training rows. Test rows are read once, by the final model.

Next to each score stands its difference from single-task ridge on the same splits. Its 95 % interval
takes sampling of test rows and of training rows apart and allows for training rows that several
splits share (:mod:`polytask.compare.statistics`); intervals are not adjusted for their number.
"""

from __future__ import annotations

import argparse
import platform
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import beta, qmc
from sklearn.exceptions import ConvergenceWarning

import linear_protocols as lp
from polytask import registry
from polytask.compare.tuning import NUMERICAL
from polytask.core.data import Ints, TaskData
from polytask.core.learner import Learner, Model
from polytask.core.search import Choice, Distribution, LogUniform, Uniform
from polytask.core.task import Floats
from reproduction import Key, Row, Store, difference, head, line, published_lines, run_all, write_between

ROUNDS = (12, 8, 4)  # configurations of each round of the search
WIDTHS = (1.0, 0.3, 0.12)  # share of a number's range that a round covers, around the best so far
CHOICE_WIDTHS = (1.0, 1.0, 0.0)  # the same of a choice among a few values
TRIALS = sum(ROUNDS)
FOLDS = 3
BUDGET = f"{TRIALS} x {FOLDS}"

BASELINE = "ridge"
OWN_STRENGTH = "ridge, strength per task"
BY_FOLDS = "the method with the best inner folds"
FIRST = ("ridge", OWN_STRENGTH, "lasso", "pooled", "mean-regularised")  # order of the tables
_SMALL = ("synthetic", "sarcos-200")
_NARROW = ("synthetic", "school", "parkinsons", "computer", "sarcos", *(f"mulan-{name}" for name in lp.NARROW_MULAN))
RUNS_ON: dict[str, tuple[str, ...]] = {
    "dirty-model": _NARROW,
    "gaussian-mixture-tasks": _SMALL,
    "gaussian-process": (),
    "graph-guided-fused-lasso": ("synthetic",),
    "grouping-overlap": _NARROW,
    "learned-task-groups": _SMALL,
    "simultaneous-lasso": _NARROW,
    "sparse-group": _NARROW,
    "task-hierarchy": _SMALL,
    "task-kernel-ridge": ("synthetic", "mulan-andro", "mulan-slump"),
}
"""Method → beginnings of the protocols on which it runs; on others it takes minutes per split. The rest run on all."""
SUPPORT = "support"
SUPPORT_TRIALS = 20

# -- search -----------------------------------------------------------------------------------


def value_at(where: Distribution, place: float) -> Any:
    """Return the value of a search space at a place 0 … 1."""
    if isinstance(where, LogUniform):
        return float(where.low * (where.high / where.low) ** place)
    if isinstance(where, Uniform):
        return float(where.low + (where.high - where.low) * place)
    if isinstance(where, Choice):
        return where.values[min(int(place * len(where.values)), len(where.values) - 1)]
    raise TypeError(f"no places on {type(where).__name__}")


@dataclass(frozen=True)
class Found:
    """The configuration a search has chosen.

    Parameters
    ----------
    values
        Field → value.
    score
        Its score on the inner folds, smaller is better.
    tried
        Configurations tried, and how many of them failed.
    """

    values: dict[str, Any]
    score: float
    tried: int
    failed: int


def search(space: dict[str, Distribution], criterion: Callable[[dict[str, Any]], float]) -> Found:
    """Return the configuration with the smallest criterion, of TRIALS in rounds that draw closer."""
    names = sorted(space)
    if not names:
        return Found({}, criterion({}), 1, 0)
    points = qmc.Halton(len(names), scramble=False).fast_forward(1).random(TRIALS)
    best, place, failed, start = Found({}, np.inf, 0, 0), np.full(len(names), 0.5), 0, 0
    choices = np.array([isinstance(space[name], Choice) for name in names])
    for count, *widths in zip(ROUNDS, WIDTHS, CHOICE_WIDTHS, strict=True):
        width = np.where(choices, widths[1], widths[0])
        centre = np.clip(place, width / 2, 1 - width / 2)
        for point in points[start : start + count]:
            near = centre + width * (point - 0.5)
            values = {name: value_at(space[name], float(at)) for name, at in zip(names, near, strict=True)}
            score = criterion(values)
            failed += not np.isfinite(score)
            if score < best.score:
                best, place = Found(values, score, 0, 0), near
        start += count
    return Found(best.values, best.score, TRIALS, failed)


# -- one cell ---------------------------------------------------------------------------------


@cache
def protocol_named(name: str) -> lp.Protocol:
    """Return the protocol; its data is read once per process."""
    (found,) = [protocol for protocol in lp.protocols() if protocol.name == name]
    object.__setattr__(found, "data", cache(found.data))
    return found


def methods() -> tuple[str, ...]:
    """Return the CLI name of every exported linear learner, baselines first, and the second way to tune ridge."""
    names = [name for name, (module, _) in registry.learner_names().items() if module.startswith("polytask.linear.")]
    return (*FIRST, *sorted(set(names) - set(FIRST)))


def predictions(model: Model, data: TaskData) -> Floats:
    """Return the predictions of every label in the order of ``data.stacked()``."""
    scores = model.predict(data)
    return np.concatenate([scores[name][data.labels[name].rows, 0] for name in data.names])


def score_of(metric: str, outcome: lp.Outcome) -> float:
    """Return the score as a loss: smaller is better."""
    value = lp.METRICS[metric](outcome)[0]
    return -value if metric in lp.HIGHER_IS_BETTER else value


class Tuning:
    """The inner folds of a case, encoded once, and fits on them."""

    def __init__(self, case: lp.Case, metric: str, seed: int) -> None:
        self.case, self.metric, self.seed = case, metric, seed
        self.error = ""  # of the last fit that failed
        self.folds: list[tuple[TaskData, TaskData, Ints]] = []
        for train, valid in case.folds:
            seen, unseen = lp.encoded(case.train.rows(train), case.train.rows(valid))
            self.folds.append((seen, unseen, valid))

    def criterion(self, learner: type[Learner], task: str | None = None) -> Callable[[dict[str, Any]], float]:
        """Return configuration → mean score over the folds; infinite where a fit fails."""

        def measured(values: dict[str, Any]) -> float:
            try:
                return float(np.mean([self._score(learner(**values), fold, task) for fold in self.folds]))
            except NUMERICAL as error:
                self.error = str(error)
                return np.inf

        return measured

    def _score(self, learner: Learner, fold: tuple[TaskData, TaskData, Ints], task: str | None) -> float:
        train, valid, rows = fold
        if task is not None:
            train, valid = train.only([task]), valid.only([task])
        model = learner.fit(train, seed=self.seed)
        part = lp.Case(train, valid, rows, ())
        score = score_of(self.metric, part.outcome(predictions(model, valid)))
        return score if np.isfinite(score) else np.inf


def run_cell(name: str, method: str, split: int) -> tuple[dict[str, Any], bytes]:
    """Tune and fit a method on a split, and return what is to be stored: facts, and predictions of the test labels."""
    started = time.process_time()
    protocol = protocol_named(name)
    case = protocol.case(split, FOLDS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        try:
            found, predicted = _tuned(protocol, case, method, split)
        except RefusedError as error:
            return {"refused": str(error), "seconds": time.process_time() - started}, b""
    outcome = case.outcome(predicted)
    facts = {
        "scores": {metric: lp.METRICS[metric](outcome)[0] for metric in protocol.metrics},
        "inner": found.score,
        "chosen": found.values,
        "tried": found.tried,
        "failed": found.failed,
        "unconverged": sum(issubclass(warning.category, ConvergenceWarning) for warning in caught),
        "seconds": time.process_time() - started,
    }
    return facts, predicted.tobytes()


class RefusedError(Exception):
    """No configuration of a method could be fitted; says why."""


def _tuned(protocol: lp.Protocol, case: lp.Case, method: str, seed: int) -> tuple[Found, Floats]:
    tuning = Tuning(case, protocol.metrics[0], seed)
    train, test = lp.encoded(case.train, case.test)
    if method == OWN_STRENGTH:
        learner = registry.learner_class("ridge")
        parts, scores, failed = [], [], 0
        for task in train.names:
            found = search(learner.search_space(), tuning.criterion(learner, task))
            scores.append(found.score)
            failed += found.failed
            fit_on = train if case.refit else tuning.folds[0][0]
            model = learner(**found.values).fit(fit_on.only([task]), seed=seed)
            parts.append(predictions(model, test.only([task])))
        return Found({}, float(np.mean(scores)), TRIALS, failed), np.concatenate(parts)
    learner = registry.learner_class(method)
    space = {name: where for name, where in learner.search_space().items() if name not in protocol.not_searched}
    found = search(space, tuning.criterion(learner))
    if not np.isfinite(found.score):
        raise RefusedError(tuning.error)
    fit_on = train if case.refit else tuning.folds[0][0]
    return found, predictions(learner(**found.values).fit(fit_on, seed=seed), test)


# -- union support ----------------------------------------------------------------------------

SUPPORT_METHODS = ("lasso", "l1/l2", "l1/linf", "dirty")
STRENGTHS = tuple(0.5 * 0.75**k for k in range(12))  # shares of the smallest strength that gives no model
DIRTY_RATIOS = (0.6, 0.7, 0.85)  # strength of the l1 part relative to that of the l1/linf part


def _support_models(method: str) -> list[Callable[[Any, Any, Any], Any]]:
    """Return twelve settings: (X, y, tasks) → fitted estimator."""
    import polytask.linear as room

    def relative(make: Callable[[float], Any], share: float) -> Callable[[Any, Any, Any], Any]:
        def fit(X: Any, y: Any, tasks: Any) -> Any:
            return make(share * make(1.0).alpha_max(X, y, tasks=tasks)).fit(X, y, tasks=tasks)

        return fit

    options: dict[str, Any] = {"fit_intercept": False, "tol": 1e-6}
    kinds: dict[str, Any] = {"lasso": room.TaskLasso, "l1/l2": room.BlockSparse, "l1/linf": room.SimultaneousLasso}
    if method != "dirty":
        return [relative(lambda alpha: kinds[method](alpha, **options), share) for share in STRENGTHS]

    def dirty(ratio: float) -> Callable[[float], Any]:
        return lambda alpha: room.DirtyModel(alpha, ratio * alpha, **options)

    return [relative(dirty(ratio), share) for ratio in DIRTY_RATIOS for share in STRENGTHS[1::3]]


def run_support(overlap: float, theta: float, method: str, trial: int) -> tuple[dict[str, Any], bytes]:
    """Return whether any of twelve settings recovers the union of the supports exactly."""
    started = time.process_time()
    problem = lp.union_support(theta, overlap, trial)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        recovered = False
        for fit in _support_models(method):
            used = (np.abs(fit(problem.X, problem.y, problem.task).coef_) > 1e-8).any(axis=0)
            recovered = bool((used == problem.used).all())
            if recovered:
                break
    unconverged = sum(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    return {"recovered": recovered, "unconverged": unconverged, "seconds": time.process_time() - started}, b""


# -- running and storing ----------------------------------------------------------------------


def support_name(overlap: float, theta: float) -> str:
    """Return the protocol name of one setting of the support problem."""
    return f"{SUPPORT}-{overlap:g}-{theta:g}"


def run_key(key: Key) -> tuple[Key, dict[str, Any], bytes]:
    """Run one cell (in a worker)."""
    protocol, method, split = key
    if protocol.startswith(SUPPORT):
        _, overlap, theta = protocol.split("-")
        return key, *run_support(float(overlap), float(theta), method, split)
    return key, *run_cell(protocol, method, split)


def planned(only: Sequence[str], chosen: Sequence[str], splits: int | None) -> list[Key]:
    """Return the cells of the protocols whose names begin with one of ``only``; say which data are missing."""

    def wanted(name: str) -> bool:
        return not only or any(name.startswith(prefix) for prefix in only)

    keys: list[Key] = []
    for protocol in lp.protocols():
        if not wanted(protocol.name):
            continue
        reason = protocol.missing()
        if reason is not None:
            print(f"{protocol.name}: left out, {reason}")
            continue
        count = min(protocol.n_splits, splits or protocol.n_splits)
        names = [name for name in methods() if protocol.name.startswith(RUNS_ON.get(name, ""))]
        names = [name for name in names if not chosen or name in chosen]
        names = [name for name in names if name != OWN_STRENGTH or not protocol.data().one_task_per_row]
        keys += [(protocol.name, method, split) for method in names for split in range(count)]
    for overlap in lp.OVERLAPS:
        for theta in lp.THETAS:
            if wanted(support_name(overlap, theta)):
                trials = range(min(SUPPORT_TRIALS, splits or SUPPORT_TRIALS))
                keys += [(support_name(overlap, theta), m, trial) for m in SUPPORT_METHODS for trial in trials]
    return keys


# -- tables -----------------------------------------------------------------------------------


def table(protocol: lp.Protocol, store: Store, metric: str) -> dict[str, Row]:
    """Return method → row, of the methods whose splits are all stored."""
    cells = store.read(protocol.name)
    by_method: dict[str, dict[int, lp.Outcome]] = defaultdict(dict)
    inner: dict[str, dict[int, float]] = defaultdict(dict)
    cases = {split: protocol.case(split, FOLDS) for split in range(protocol.n_splits)}
    for (method, split), (facts, predicted) in cells.items():
        if split in cases and "refused" not in facts:
            by_method[method][split] = cases[split].outcome(predicted)
            inner[method][split] = facts["inner"]
    complete = [method for method in methods() if len(by_method.get(method, ())) == len(cases)]
    if BASELINE not in complete:
        return {}
    by_method[BY_FOLDS] = {
        split: by_method[min(complete, key=lambda method: inner[method][split])][split] for split in cases
    }
    ratio = float(np.mean([len(case.test_rows) / case.train.n_rows for case in cases.values()]))
    rows = {}
    for method in (*complete, BY_FOLDS):
        found = [by_method[method][split] for split in cases]
        base = [by_method[BASELINE][split] for split in cases]
        scored = [lp.METRICS[metric](outcome) for outcome in found]
        values = np.array([value for value, _ in scored])
        against = None
        if method != BASELINE:
            others = [lp.METRICS[metric](outcome) for outcome in base]
            places = [outcome.row for outcome in found]
            against = difference(scored, others, places, ratio, overlapping=protocol.overlapping)
        rows[method] = Row(values, against, metric in lp.HIGHER_IS_BETTER, _per_task(metric, found))
    return rows


def _per_task(metric: str, outcomes: Sequence[lp.Outcome]) -> Floats:
    if metric != "nMSE":
        return np.zeros(0)
    found = []
    for outcome in outcomes:
        squares = np.square(outcome.target - outcome.prediction)
        around = np.square(outcome.target - outcome.by_task(outcome.target)[outcome.task])
        found.append(outcome.by_task(squares) / outcome.by_task(around))
    return np.asarray(np.mean(found, axis=0))


def protocol_lines(protocol: lp.Protocol, store: Store) -> list[str]:
    """Return the table of a protocol of its own: scores, difference from ridge, figures of the literature."""
    tables = {metric: table(protocol, store, metric) for metric in protocol.metrics}
    first = protocol.metrics[0]
    if not tables[first]:
        return [f"### {protocol.title}", "", protocol.missing() or "Not run yet.", ""]
    cells = store.read(protocol.name)
    torques = [name.replace("_", " ") for name in protocol.data().names] if first == "nMSE" else []
    lines = [f"### {protocol.title}", ""]
    lines += head(["method", first, "difference from ridge", *protocol.metrics[1:], *torques, "CPU s per split"])
    for method, row in tables[first].items():
        used = [facts["seconds"] for (name, _), (facts, _) in cells.items() if name == method]
        others = [tables[metric][method].mark(tables[metric][method].text) for metric in protocol.metrics[1:]]
        seconds = f"{np.mean(used):.0f}" if used else ""
        per_task = [f"{value:.3f}" for value in row.tasks]
        lines.append(line([method, row.mark(row.text), row.gap, *others, *per_task, seconds]))
    refused = {method: facts["refused"] for (method, _), (facts, _) in sorted(cells.items()) if "refused" in facts}
    left_out = [f"Left out: {method} ({reason.splitlines()[0]})." for method, reason in refused.items()]
    return [*lines, "", *left_out, *published_lines(protocol.published), ""]


def matrix_lines(title: str, group: Sequence[lp.Protocol], store: Store, note: str) -> list[str]:
    """Return one table for several protocols with one metric each: methods in rows, protocols in columns."""
    tables = {protocol.name: table(protocol, store, protocol.metrics[0]) for protocol in group}
    short = [protocol.name.split("-", 1)[1] for protocol in group]
    lines = [f"### {title}", "", note, "", *head(["method", *short])]
    for method in (*methods(), BY_FOLDS):
        texts = []
        for protocol in group:
            row = tables[protocol.name].get(method)
            texts.append("" if row is None else row.mark(row.text))
        if any(texts):
            lines.append(line([method, *texts]))
    sources = {item.source for protocol in group for item in protocol.published}
    whats = list(dict.fromkeys(item.what for protocol in group for item in protocol.published))
    for what in whats:
        figures = [next((item.value for item in protocol.published if item.what == what), "") for protocol in group]
        lines.append(line([f"reference: {what}", *figures]))
    return [*lines, "", *(f"Reference: {source}." for source in sorted(sources)), ""]


def support_lines(store: Store) -> list[str]:
    """Return how often each penalty recovers the union of supports."""
    lines = [
        "### Union support: two tasks, 128 inputs, 12 used by each, exact recovery of the union",
        "",
        f"Share of {SUPPORT_TRIALS} problems [95 % interval] in which one of twelve settings recovers the union "
        "exactly (the best setting is taken, so this compares what the penalties can do, not their tuning); "
        "n = theta s log(p - (2 - overlap) s) rows per task, coefficients -1 and 1, noise 0.1.",
        "",
        *head(["overlap", "theta", *SUPPORT_METHODS]),
    ]
    for overlap in lp.OVERLAPS:
        for theta in lp.THETAS:
            cells = store.read(support_name(overlap, theta))
            texts = []
            for method in SUPPORT_METHODS:
                hits = [facts["recovered"] for (name, _), (facts, _) in cells.items() if name == method]
                texts.append(_share(sum(hits), len(hits)) if len(hits) == SUPPORT_TRIALS else "")
            lines.append(line([f"{overlap:g}", f"{theta:g}", *texts]))
    return [
        *lines,
        "",
        "Reference at theta 1 / 1.5 / 2 / 2.5, 12 problems, four settings each "
        f"({lp.EARLIER.replace(', 5 problems', '')}): overlap 0: lasso 0/.25/.33/.83, l1/l2 0/0/0/.67, "
        "l1/linf 0/0/0/0, dirty 0/.17/.42/.92; overlap .5: 0/.08/.50/.92, 0/.17/.67/.92, 0/.17/.42/.83, 0/.50/.92/1; "
        "overlap 1: 0/.25/.17/.83, .08/.75/1/1, .58/.92/1/1, .50/.83/1/1.",
        "",
    ]


def _share(hits: int, trials: int) -> str:
    low = beta.ppf(0.025, hits, trials - hits + 1) if hits else 0.0
    high = beta.ppf(0.975, hits + 1, trials - hits) if hits < trials else 1.0
    return f"{hits / trials:.2f} [{low:.2f}, {high:.2f}]"


def report(store: Store) -> str:
    """Return all tables as Markdown."""
    alone = [p for p in lp.protocols() if not p.name.startswith(("mulan", "synthetic"))]
    mulan = [p for p in lp.protocols() if p.name.startswith("mulan")]
    synthetic = [p for p in lp.protocols() if p.name.startswith("synthetic")]
    libraries = ", ".join(f"{name} {version(name)}" for name in ("polytask", "numpy", "scikit-learn"))
    lines = [
        f"Made by `make reproduce-linear` ({libraries}, Python {platform.python_version()}). Ten splits each: mean ± "
        "standard deviation over splits; difference from ridge with its 95 % interval (not adjusted for the number of "
        "rows). **Bold**: better than ridge by an interval that does not hold 0; *italics*: worse. Every method had "
        f"{TRIALS} configurations on {FOLDS} inner folds of the training rows; s per split is for all of them. "
        "Methods that need minutes per split run on some of the sets only (`RUNS_ON` in the program).",
        "",
    ]
    for protocol in alone:
        lines += protocol_lines(protocol, store)
    note = "Targets side by side, aRRMSE (1: no better than the training mean); marks as above."
    lines += matrix_lines("Mulan multi-target sets, 10-fold cross-validation", mulan, store, note)
    note = (
        f"{synthetic[0].title.split(': ', 1)[1]}, noise 1, ten problems: test MSE (1 is the least possible). Models "
        "see the 12 training rows; hyper-parameters are chosen on the 12 validation rows, without a final fit on both. "
        "Every task has an intercept of its own, though all true ones are 0; the reference had none."
    )
    lines += matrix_lines("Synthetic tasks: clusters, unrelated, overlapping", synthetic, store, note)
    return "\n".join([*lines, *support_lines(store)]).rstrip() + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run cells and write tables."""
    parser = argparse.ArgumentParser(description="Published tables of linear multi-task learning, made again.")
    parser.add_argument("--folder", type=Path, default=Path("runs/reproduce-linear"), help="where cells are stored")
    parser.add_argument("--only", nargs="*", default=[], help="protocols whose names begin so")
    parser.add_argument("--methods", nargs="*", default=[], help="methods to run (all)")
    parser.add_argument("--splits", type=int, help="only the first splits of each")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--report", type=Path, help="write the tables into this file, between its markers; runs nothing"
    )
    options = parser.parse_args(arguments)
    store = Store(options.folder, BUDGET)
    if options.report is None:
        run_all(planned(options.only, options.methods, options.splits), store, options.jobs, run_key)
        print(report(store))
    else:
        write_between(options.report, report(store))


if __name__ == "__main__":
    main()
