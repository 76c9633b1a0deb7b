"""A plan of runs: methods × splits × seeds, checked before anything runs.

Every method sees the same splits, the same inner validation rows and the same number of tuning
trials, the single-task baselines included.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, Protocol, Self

import numpy as np

from polytask import __version__
from polytask.core.data import Ints, TaskData
from polytask.core.errors import InputError, unknown
from polytask.core.learner import Learner
from polytask.core.metrics import METRICS
from polytask.core.splits import fold_rows, split_rows
from polytask.registry import learner_class


class Encoder(Protocol):
    """Turns a raw table into an encoded one, with figures of the rows it was fitted on only."""

    def fit(self, data: TaskData) -> Encoder:
        """Learn columns, categories and scales from training rows."""
        ...

    def transform(self, data: TaskData) -> TaskData:
        """Encode any rows of the same table."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what identifies the encoder, JSON-able."""
        ...


@dataclass(frozen=True)
class MethodSpec:
    """One method of a comparison.

    Parameters
    ----------
    name
        CLI name of the learner, such as ``"block-sparse"``.
    fixed
        Parameters that tuning must leave at these values.
    label
        Name in results; by default the CLI name and the fixed parameters.
    learner
        A learner class of your own that is not in the registry (importable in worker processes).
    """

    name: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    learner: type[Learner] | None = None

    def __post_init__(self) -> None:
        if not self.label:
            listed = ", ".join(f"{key}={value}" for key, value in sorted(self.fixed.items()))
            object.__setattr__(self, "label", f"{self.name} ({listed})" if listed else self.name)

    def learner_class(self) -> type[Learner]:
        """Return the learner's class, imported if need be."""
        return self.learner or learner_class(self.name)

    def build(self, values: Mapping[str, Any] | None = None) -> Learner:
        """Return the learner with its fixed parameters and these values."""
        return self.learner_class()(**{**(values or {}), **self.fixed})

    def describe(self) -> dict[str, Any]:
        """Return the method as plain data."""
        own = f"{self.learner.__module__}.{self.learner.__qualname__}" if self.learner else ""
        return {"name": self.name, "fixed": dict(self.fixed), "label": self.label, "learner": own}


@dataclass(frozen=True)
class SplitPlan:
    """How rows are cut into training and test rows, again and again.

    Parameters
    ----------
    folds, repeats
        ``folds``-fold cross-validation, ``repeats`` times with new random folds. With ``time``:
        ``folds`` expanding windows, each tested on the window that follows; repeats do not apply.
    test_share
        When given, ``repeats`` random splits with this share of test rows instead of folds; with
        ``time`` a single split, the latest rows being the test rows.
    group, time
        Key column whose groups stay together, or whose order separates training from test rows.
    """

    folds: int = 5
    repeats: int = 2
    test_share: float | None = None
    group: str | None = None
    time: str | None = None

    def __post_init__(self) -> None:
        if self.test_share is None and self.folds < 2:
            raise InputError(f"splits: folds={self.folds}; cross-validation needs at least 2 folds")
        if self.repeats < 1:
            raise InputError(f"splits: repeats={self.repeats}; at least 1 is needed")
        if self.test_share is not None and not 0.0 < self.test_share < 1.0:
            raise InputError(f"splits: test_share={self.test_share} must lie between 0 and 1")
        if self.group is not None and self.time is not None:
            raise InputError(f'splits: give group="{self.group}" or time="{self.time}", not both')

    @classmethod
    def parse(cls, text: str, *, group: str | None = None, time: str | None = None) -> Self:
        """Read ``"5x2"`` (5 folds, 2 repeats) or ``"5"`` (5 folds, once)."""
        found = re.fullmatch(r"\s*(\d{1,4})\s*(?:[x×*]\s*(\d{1,4})\s*)?", text)
        if found is None:
            raise InputError(f'splits: "{text}" is not folds x repeats; write for example 5x2')
        return cls(int(found[1]), int(found[2] or 1), group=group, time=time)

    @property
    def n_splits(self) -> int:
        """Number of (training, test) pairs."""
        if self.time is not None:
            return 1 if self.test_share is not None else self.folds
        return self.repeats if self.test_share is not None else self.folds * self.repeats

    def pairs(self, data: TaskData, *, seed: int) -> tuple[tuple[Ints, Ints], ...]:
        """Return (training rows, test rows) of every split."""
        if self.test_share is not None:
            shares = (1.0 - self.test_share, self.test_share)
            found = [
                split_rows(data, shares, seed=mixed_seed(seed, number), group=self.group, time=self.time)
                for number in range(self.n_splits)
            ]
            return tuple((train, test) for train, test in found)
        if self.time is not None:
            return expanding_windows(data, self.folds, self.time)
        pairs: list[tuple[Ints, Ints]] = []
        for repeat in range(self.repeats):
            pairs += fold_pairs(data, self.folds, seed=mixed_seed(seed, repeat), group=self.group)
        return tuple(pairs)


def fold_pairs(data: TaskData, n_folds: int, *, seed: int, group: str | None) -> list[tuple[Ints, Ints]]:
    """Return the (training, test) rows of one round of cross-validation."""
    parts = fold_rows(data, n_folds, seed=seed, group=group)
    return [
        (np.sort(np.concatenate([other for k, other in enumerate(parts) if k != number])), part)
        for number, part in enumerate(parts)
    ]


def expanding_windows(data: TaskData, n_windows: int, time: str) -> tuple[tuple[Ints, Ints], ...]:
    """Cut by time into ``n_windows + 1`` parts; train on the first k, test on the next."""
    parts = split_rows(data, [1.0 / (n_windows + 1)] * (n_windows + 1), seed=0, time=time)
    return tuple((np.sort(np.concatenate(parts[: k + 1])), parts[k + 1]) for k in range(n_windows))


def mixed_seed(*numbers: int) -> int:
    """Mix several seeds into one of 32 bits."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@dataclass(frozen=True)
class Estimate:
    """What a plan will cost: runs (method × split × seed) and single fits, in all and by method."""

    runs: int
    fits: int
    fits_by_method: Mapping[str, int]


@dataclass(frozen=True)
class Plan:
    """Everything that determines a comparison, apart from the data.

    Parameters
    ----------
    methods
        What is compared; the single-task ones among them are the baselines.
    splits
        Training and test rows.
    seeds
        Every method runs once for every split and seed. The first also draws the splits. Results of
        several seeds are averaged within a split.
    trials
        Configurations tried in tuning, the same number for every method; the first is the defaults.
    valid_share
        Share of the training rows used for validation where a method uses a single validation part.
    thin
        Task → how many training labels to keep. Test labels are all kept.
    least_labels
        A task with fewer labels than this is left out, with a note.
    metrics
        Task → metrics that replace the task's own; gains are measured in the first.
    n_jobs
        Worker processes; 0 runs in this process. Does not change results.
    """

    methods: tuple[MethodSpec, ...]
    splits: SplitPlan = field(default_factory=SplitPlan)
    seeds: tuple[int, ...] = (0,)
    trials: int = 10
    valid_share: float = 0.2
    thin: Mapping[str, int] = field(default_factory=dict)
    least_labels: int = 20
    metrics: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    n_jobs: int = 1

    def describe(self) -> dict[str, Any]:
        """Return the plan as plain data, without what does not change results (``n_jobs``)."""
        return {
            "methods": [method.describe() for method in self.methods],
            "splits": asdict(self.splits),
            "seeds": list(self.seeds),
            "trials": self.trials,
            "valid_share": self.valid_share,
            "thin": dict(self.thin),
            "least_labels": self.least_labels,
            "metrics": {task: list(names) for task, names in self.metrics.items()},
        }

    def fingerprint(self, data: TaskData, encoder: Encoder | None = None) -> str:
        """Return the SHA-256 of all that determines results: plan, data, encoder, version."""
        return self._fingerprint(data_digest(data), encoder)

    def method_fingerprints(self, data: TaskData, encoder: Encoder | None = None) -> dict[str, str]:
        """Return label → fingerprint of the plan with that method alone: the key of stored runs.

        A method's runs do not depend on the other methods, so adding one repeats nothing.
        """
        digest = data_digest(data)
        return {spec.label: replace(self, methods=(spec,))._fingerprint(digest, encoder) for spec in self.methods}

    def _fingerprint(self, digest: str, encoder: Encoder | None) -> str:
        known: dict[str, Any] = {"plan": self.describe(), "data": digest, "version": __version__}
        if encoder is not None:
            known["encoder"] = [type(encoder).__name__, _settings_of(encoder)]
        text = json.dumps(known, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def apply_metrics(self, data: TaskData) -> TaskData:
        """Return the data with the plan's metrics on its tasks."""
        tasks = tuple(replace(task, metrics=tuple(self.metrics.get(task.name, task.metrics))) for task in data.tasks)
        return replace(data, tasks=tasks)


def _settings_of(encoder: Encoder) -> Any:
    if is_dataclass(encoder):
        return {part.name: repr(getattr(encoder, part.name)) for part in fields(encoder) if part.init}
    return {}


def data_digest(data: TaskData) -> str:
    """Return the SHA-256 of tasks, inputs, labels and keys."""
    digest = hashlib.sha256()
    digest.update(json.dumps([task.describe() for task in data.tasks], sort_keys=True).encode())
    digest.update(json.dumps([dict(data.features), list(data.cardinalities)], sort_keys=True).encode())
    for group in (data.inputs, data.keys):
        for name, array in group.items():
            _digest_array(digest, name, np.asarray(array))
    for name, labels in data.labels.items():
        _digest_array(digest, name, labels.rows)
        _digest_array(digest, name, labels.values)
    return digest.hexdigest()


def _digest_array(digest: Any, name: str, array: np.ndarray[Any, Any]) -> None:
    digest.update(f"\0{name}\0{array.dtype.str}{array.shape}\0".encode())
    if array.dtype.kind in "OUST":
        digest.update(json.dumps(array.tolist(), default=str).encode())
    else:
        digest.update(np.ascontiguousarray(array).tobytes())


def validate(plan: Plan, data: TaskData) -> None:
    """Refuse a plan that cannot run on this data, before anything runs.

    Raises
    ------
    InputError
        Names the argument, the value and the remedy.
    """
    _check_numbers(plan)
    _check_methods(plan)
    for name in (*plan.thin, *plan.metrics):
        if name not in data.names:
            raise InputError(unknown("task", name, data.names))
    for name, count in plan.thin.items():
        if count < 1:
            raise InputError(f"labels: {name}={count} must keep at least 1 label")
    for name, metrics in plan.metrics.items():
        if not metrics:
            raise InputError(f'metrics: no metric is given for "{name}"; the metrics are {", ".join(sorted(METRICS))}')
    plan.apply_metrics(data)
    enough = [name for name, labels in data.labels.items() if len(labels) >= plan.least_labels]
    if not enough:
        most = max((len(labels) for labels in data.labels.values()), default=0)
        raise InputError(
            f"no task has at least {plan.least_labels} labels (the most is {most}); "
            f"add labelled rows, or lower least_labels"
        )
    for train, test in plan.splits.pairs(data, seed=plan.seeds[0]):
        if len(train) < 2 or len(test) < 1:
            raise InputError(f"splits: {plan.splits} leaves {len(train)} training and {len(test)} test rows")


def _check_numbers(plan: Plan) -> None:
    if not plan.seeds or len(set(plan.seeds)) != len(plan.seeds) or min(plan.seeds) < 0:
        raise InputError(f"seeds must be different numbers from 0 on, got {list(plan.seeds)}")
    if plan.trials < 1:
        raise InputError(f"trials={plan.trials}; at least 1 is needed (the defaults)")
    if not 0.0 < plan.valid_share <= 0.5:
        raise InputError(f"valid_share={plan.valid_share} must be above 0 and at most 0.5")
    if plan.least_labels < 1:
        raise InputError(f"least_labels={plan.least_labels} must be at least 1")
    if plan.n_jobs < 0:
        raise InputError(f"n_jobs={plan.n_jobs}; give the number of worker processes, or 0 for none")


def _check_methods(plan: Plan) -> None:
    labels = [spec.label for spec in plan.methods]
    if not labels:
        raise InputError("no method is given; run: polytask methods")
    if len(set(labels)) != len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise InputError(f'method "{twice}" is given twice; give each its own label')
    sharing = set()
    for spec in plan.methods:
        learner = spec.learner_class()
        sharing.add(learner.sharing)
        known: list[str] = [part.name for part in fields(learner)] if is_dataclass(learner) else []
        for name in spec.fixed:
            if name not in known:
                raise InputError(f'method "{spec.name}": ' + unknown("parameter", name, known))
        spec.build()
    if "single" not in sharing:
        raise InputError(
            "no single-task baseline among the methods, so no gain can be measured; add one, such as ridge"
        )


def estimate(plan: Plan, data: TaskData) -> Estimate:
    """Return how many fits a plan costs; each method fits every task it does not refuse."""
    runs_each = plan.splits.n_splits * len(plan.seeds)
    by_method, runs = {}, 0
    for spec in plan.methods:
        learner = spec.build()
        if all(learner.refuses(task) for task in data.tasks):
            by_method[spec.label] = 0
            continue
        tuned = set(learner.search_space()) - set(spec.fixed)
        trials = plan.trials if tuned else 1
        inner = learner.inner_folds if learner.refits else 1
        by_method[spec.label] = runs_each * (trials * inner + (1 if learner.refits else 0))
        runs += runs_each
    return Estimate(runs, sum(by_method.values()), by_method)
