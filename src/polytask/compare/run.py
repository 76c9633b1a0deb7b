"""Run a plan: cells in parallel worker processes, each finished one stored at once.

A killed or repeated command goes on where it stopped; failed cells are tried again. Results depend on
plan, data and seed only, not on the number of workers or on what was stored before: every worker uses
one thread, every cell draws its random numbers from its own seed.
"""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from polytask import __version__
from polytask.compare.cell import Cell, Work, run_cell
from polytask.compare.plan import Encoder, Plan, validate
from polytask.compare.statistics import judge
from polytask.compare.store import RunStore, Stored
from polytask.compare.workers import in_processes
from polytask.core.data import Ints, TaskData
from polytask.core.learner import Progress
from polytask.core.results import MethodInfo, Results
from polytask.core.task import Regression, Task


def run(
    plan: Plan,
    data: TaskData,
    *,
    encoder: Encoder | None = None,
    folder: Path,
    n_jobs: int | None = None,
    progress: Progress | None = None,
    summary: Mapping[str, Any] | None = None,
    setup: Mapping[str, Any] | None = None,
    title: str = "comparison",
    only_finished: bool = False,
) -> Results:
    """Run what is not done yet of a plan, and judge.

    Parameters
    ----------
    plan, data
        What is compared, on what. Raw data with an ``encoder``, or encoded data without one.
    encoder
        Fitted anew on the training rows of every split, and on the inner training rows in tuning.
    folder
        Run folder; holds ``runs.sqlite``.
    n_jobs
        Worker processes, by default the plan's; 0 runs in this process. Results do not depend on it.
    progress
        Called with a text and the share of runs done after every run.
    summary, setup, title
        For the results: summary of the table, further settings, name.
    only_finished
        Run nothing and judge what was finished before, as after an interruption.

    Returns
    -------
    Results
        ``timing`` holds ``done_before`` and ``done_now``, the numbers of runs found and made.

    Raises
    ------
    InputError
        The plan cannot run on this data, or another process works in the folder.
    DiskError
        The folder cannot be written.
    """
    if n_jobs is not None:
        plan = replace(plan, n_jobs=n_jobs)
    validate(plan, data)
    started = time.perf_counter()
    data = plan.apply_metrics(data)
    tasks = data.tasks
    excluded = _excluded(plan, data)
    keys = plan.method_fingerprints(data, encoder)
    whole = plan.fingerprint(data, encoder)
    kept = data.only([task.name for task in tasks if task.name not in excluded])
    work = Work(plan, kept, plan.splits.pairs(kept, seed=plan.seeds[0]), encoder)
    methods = tuple(_method_info(plan, number, tasks) for number in range(len(plan.methods)))
    with RunStore(folder) as store:
        cells = _cells(plan, kept, methods)
        missing = [cell for cell in cells if not _is_done(store, keys, plan, cell)]
        if only_finished:
            cells = [cell for cell in cells if cell not in missing]
            missing = []
        counter = _Counter(plan, len(cells), len(cells) - len(missing), progress)

        def finished(cell: Cell, stored: Stored) -> None:
            store.put(keys[plan.methods[cell.method].label], stored)
            counter.step(cell)

        if missing and plan.n_jobs == 0:
            for cell in missing:
                finished(cell, run_cell(work, cell))
        elif missing:
            in_processes(work, missing, plan.n_jobs, finished)
        stored = [_read(store, keys, plan, cell) for cell in cells]
    answer = judge(plan, tasks, excluded, methods, stored, pairs=work.pairs, clusters=_clusters(plan, kept))
    return Results(
        title=title,
        setup={"fingerprint": whole, "plan": plan.describe(), "versions": _versions(), **(setup or {})},
        data=_noted(dict(summary) if summary is not None else summarise(data), excluded),
        tasks=tuple(task.describe() for task in tasks),
        methods=methods,
        runs=tuple(found.run for found in stored),
        comparisons=answer.comparisons,
        verdicts=answer.verdicts,
        overall=answer.overall,
        timing={
            "seconds": time.perf_counter() - started,
            "done_before": len(cells) - len(missing),
            "done_now": len(missing),
            "n_jobs": plan.n_jobs,
            "runs": {
                spec.label: sum(found.seconds for found in stored if found.run.method == spec.label)
                for spec in plan.methods
            },
        },
    )


# -- what is run ------------------------------------------------------------------------------


def _excluded(plan: Plan, data: TaskData) -> dict[str, str]:
    """Return task → why it is left out of every run."""
    found = {}
    for name, labels in data.labels.items():
        if len(labels) < plan.least_labels:
            found[name] = f"has {len(labels)} labels; at least {plan.least_labels} are needed"
        elif np.ptp(labels.values) <= 1e-12 * max(1.0, float(np.abs(labels.values).max())):
            what = "a constant target" if isinstance(data.task(name), Regression) else "labels of one class only"
            found[name] = f"has {what}; nothing can be measured"
    return found


def _clusters(plan: Plan, data: TaskData) -> Ints | None:
    """Return row → number of its group, when the plan keeps groups together."""
    if plan.splits.group is None:
        return None
    return np.unique(data.keys[plan.splits.group].astype(str), return_inverse=True)[1].astype(np.int64)


def _method_info(plan: Plan, number: int, tasks: Sequence[Task]) -> MethodInfo:
    spec = plan.methods[number]
    learner = spec.build()
    reasons = {task.name: learner.refuses(task) for task in tasks}
    refused = {name: reason for name, reason in reasons.items() if reason is not None}
    return MethodInfo(spec.label, learner.sharing, learner.summary, refused)


def _cells(plan: Plan, data: TaskData, methods: Sequence[MethodInfo]) -> list[Cell]:
    return [
        Cell(number, split, seed)
        for number, method in enumerate(methods)
        if any(name not in method.refused for name in data.names)
        for split in range(plan.splits.n_splits)
        for seed in plan.seeds
    ]


def _key(keys: Mapping[str, str], plan: Plan, cell: Cell) -> tuple[str, str, int, int]:
    label = plan.methods[cell.method].label
    return keys[label], label, cell.split, cell.seed


def _is_done(store: RunStore, keys: Mapping[str, str], plan: Plan, cell: Cell) -> bool:
    return store.status(*_key(keys, plan, cell)) == "done"


def _read(store: RunStore, keys: Mapping[str, str], plan: Plan, cell: Cell) -> Stored:
    found = store.get(*_key(keys, plan, cell))
    if found is None:
        raise RuntimeError(f"run {_key(keys, plan, cell)} was stored but cannot be found")
    return found


class _Counter:
    """Counts finished runs and tells the caller."""

    def __init__(self, plan: Plan, total: int, done: int, progress: Progress | None) -> None:
        self.plan = plan
        self.total = total
        self.done = done
        self.progress = progress
        if progress is not None and done:
            progress(f"{done} of {total} runs were done before", done / total)

    def step(self, cell: Cell) -> None:
        self.done += 1
        if self.progress is not None:
            place = f"split {cell.split + 1} of {self.plan.splits.n_splits}"
            self.progress(f"{self.plan.methods[cell.method].label}, {place}", self.done / self.total)


# -- what is told -----------------------------------------------------------------------------


def _versions() -> dict[str, str]:
    found = {"polytask": __version__, "python": platform.python_version()}
    for name in ("numpy", "scipy", "scikit-learn", "torch"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _noted(summary: dict[str, Any], excluded: Mapping[str, str]) -> dict[str, Any]:
    notes = [f'Task "{name}" {reason}; it was left out.' for name, reason in excluded.items()]
    return {**summary, "notes": [*summary.get("notes", []), *notes]}


def summarise(data: TaskData) -> dict[str, Any]:
    """Return a short summary of the table for results, when the caller has none."""
    return {
        "rows": data.n_rows,
        "form": "long" if data.one_task_per_row else "wide",
        "features": [
            {"name": feature, "kind": kind, "missing": 0} for kind, names in data.features.items() for feature in names
        ],
        "tasks": [_task_summary(data, task) for task in data.tasks],
        "notes": [],
    }


def _task_summary(data: TaskData, task: Task) -> dict[str, Any]:
    values = data.labels[task.name].values
    found: dict[str, Any] = {
        "name": task.name,
        "kind": task.kind,
        "n_labels": len(values),
        "missing": data.n_rows - len(values),
        "labels": list(task.labels),
    }
    if not len(values):
        return found
    if isinstance(task, Regression):
        return {**found, "mean": float(values.mean()), "sd": float(values.std())}
    counts = np.bincount(values.astype(np.int64), minlength=len(task.labels))
    return {**found, "shares": (counts / counts.sum()).tolist()}
