"""One cell of a comparison: one method, tuned and fitted on one split's training rows, scored on its test rows."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from polytask.compare.metrics import influences, score_overall, score_task
from polytask.compare.plan import Encoder, MethodSpec, Plan, mixed_seed
from polytask.compare.store import Stored
from polytask.compare.tuning import Tuned, plain, tune
from polytask.core.data import Ints, TaskData
from polytask.core.errors import PolytaskError
from polytask.core.results import Run
from polytask.core.task import Floats, Regression

FAILURES = (PolytaskError, ArithmeticError, ValueError, RuntimeError, MemoryError, OSError)
"""What may go wrong in a run without being a mistake in the program: such a run is marked failed."""

OUT_OF_MEMORY = "ran out of memory"
_MEMORY_WORDS = ("out of memory", "not enough memory", "allocate memory", "failed to map segment")


@dataclass(frozen=True)
class Cell:
    """Which run: number of the method in the plan, number of the split, seed."""

    method: int
    split: int
    seed: int


@dataclass(frozen=True)
class Work:
    """What every cell needs; sent to a worker once."""

    plan: Plan
    data: TaskData
    pairs: tuple[tuple[Ints, Ints], ...]
    encoder: Encoder | None

    def spec(self, cell: Cell) -> MethodSpec:
        """Return the method of a cell."""
        return self.plan.methods[cell.method]

    def failed(self, cell: Cell, reason: str, seconds: float = 0.0) -> Stored:
        """Return the run of a cell that did not work."""
        label = self.spec(cell).label
        return Stored(Run(label, cell.split, cell.seed, status="failed", error=reason), {}, seconds)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let BLAS, OpenMP, numba and torch use one thread, so that sums are added in one order everywhere."""
    from threadpoolctl import threadpool_limits

    restore: list[tuple[Any, int]] = []
    for name, getter, setter in (
        ("numba", "get_num_threads", "set_num_threads"),
        ("torch", "get_num_threads", "set_num_threads"),
    ):
        library = sys.modules.get(name)
        if library is not None and hasattr(library, setter):
            restore.append((getattr(library, setter), getattr(library, getter)()))
            getattr(library, setter)(1)
    try:
        with threadpool_limits(limits=1):
            yield
    finally:
        for setter_, before in restore:
            setter_(before)


def run_cell(work: Work, cell: Cell) -> Stored:
    """Tune, fit and score one cell; a run that fails is returned as failed, with a sentence."""
    started = time.perf_counter()
    spec = work.spec(cell)
    try:
        spec.learner_class()  # imported first, so that one_thread finds its libraries
        with one_thread():
            return _run(work, cell, spec, started)
    except (*FAILURES, ImportError) as error:  # a library that finds no room for itself is an ImportError
        reason = _sentence(error)
        if reason != OUT_OF_MEMORY and not isinstance(error, FAILURES):
            raise
        return work.failed(cell, reason, time.perf_counter() - started)


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or any(words in text.lower() for words in _MEMORY_WORDS):
        return OUT_OF_MEMORY
    if isinstance(error, PolytaskError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _run(work: Work, cell: Cell, spec: MethodSpec, started: float) -> Stored:
    plan = work.plan
    train_rows, test_rows = work.pairs[cell.split]
    thin_seed = mixed_seed(plan.seeds[0], cell.split, 7)
    train, test = work.data.rows(train_rows).thinned(plan.thin, seed=thin_seed), work.data.rows(test_rows)
    tuned = tune(
        spec,
        train,
        encoder=work.encoder,
        trials=plan.trials,
        valid_share=plan.valid_share,
        group=plan.splits.group,
        time=plan.splits.time,
        seed=mixed_seed(cell.seed, cell.split),
    )
    test = test.only([task.name for task in tuned.model.tasks])
    unlabelled = test.without_labels()
    encoded = unlabelled if tuned.encoder is None else tuned.encoder.transform(unlabelled)
    scores = {name: np.asarray(values, dtype=np.float64) for name, values in tuned.model.predict(encoded).items()}
    result, rows = _score(work, cell, train, test, test_rows, tuned, scores)
    return Stored(result, rows, time.perf_counter() - started)


def _score(
    work: Work, cell: Cell, train: TaskData, test: TaskData, test_rows: Ints, tuned: Tuned, scores: dict[str, Floats]
) -> tuple[Run, dict[str, tuple[Ints, Floats]]]:
    measured, rows = {}, {}
    for task in test.tasks:
        labels = test.labels[task.name]
        own = scores[task.name][labels.rows]
        if not np.isfinite(own).all():
            raise FloatingPointError(f'predictions of task "{task.name}" are not finite')
        measured[task.name], _ = score_task(task, own, labels.values)
        if task.metric in measured[task.name]:
            rows[task.name] = (test_rows[labels.rows], influences(task, own, labels.values))
    means = {
        task.name: float(train.labels[task.name].values.mean())
        for task in test.tasks
        if isinstance(task, Regression) and len(train.labels[task.name])
    }
    covered = test.only([task.name for task in test.tasks if not isinstance(task, Regression) or task.name in means])
    every_task = len(covered.tasks) == len(work.data.tasks)
    overall = score_overall(covered, scores, means, long_form=work.data.one_task_per_row) if every_task else {}
    first = cell.split == 0 and cell.seed == work.plan.seeds[0]
    found = Run(
        method=work.spec(cell).label,
        split=cell.split,
        seed=cell.seed,
        scores=plain(measured),
        overall=plain(overall),
        valid=plain(tuned.valid),
        chosen=plain(tuned.chosen),
        counts={name: {**counts, "test": len(test.labels[name])} for name, counts in tuned.counts.items()},
        history=plain(tuned.history),
        relations=tuned.model.relations() if first else {},
    )
    return found, rows
