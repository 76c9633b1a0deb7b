"""Tasks: what is predicted, what a score means, and how a score becomes a decision.

A model returns one array of *scores* for each task, shape ``(n, n_outputs)``:

============  ===========  ===================================================================
kind          n_outputs    meaning of the scores
============  ===========  ===================================================================
regression    1            the prediction, in units of the target
binary        1            logit of P(second class)
multiclass    K            logits; P = softmax
ordinal       K - 1        logits of P(y > k) for k = 0 … K-2 (cumulative logits)
============  ===========  ===================================================================

Targets are float64 for regression and class codes 0 … K-1 (stored as float64) otherwise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from polytask.core.errors import InputError, unknown
from polytask.core.metrics import METRICS

Floats = NDArray[np.float64]


def _log1p_exp(x: Floats) -> Floats:
    return np.logaddexp(0.0, x)


def sigmoid(logits: Floats) -> Floats:
    """Return 1 / (1 + exp(-logits)) without overflow."""
    return np.exp(-_log1p_exp(-logits))


@dataclass(frozen=True)
class Task(ABC):
    """One prediction problem; see the module's table for the meaning of scores.

    Parameters
    ----------
    name
        Unique name, usually the column's.
    metrics
        Names of the metrics to report; the first is the one gains are measured in.
        Empty means the kind's default.
    """

    name: str
    metrics: tuple[str, ...] = ()

    kind: ClassVar[str]
    default_metrics: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        if not self.name:
            raise InputError("a task has an empty name; give every task a name")
        if not self.metrics:
            object.__setattr__(self, "metrics", self.default_metrics)
        for metric in self.metrics:
            fitting = [m.name for m in METRICS.values() if self.kind in m.kinds]
            if metric not in fitting:
                raise InputError(f'task "{self.name}" ({self.kind}): ' + unknown("metric", metric, fitting))

    @property
    def metric(self) -> str:
        """Name of the metric that gains are measured in."""
        return self.metrics[0]

    @property
    @abstractmethod
    def n_outputs(self) -> int:
        """Number of scores per row."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes or levels; empty for regression."""
        return ()

    @abstractmethod
    def losses(self, scores: Floats, targets: Floats) -> Floats:
        """Return the loss of each row, shape ``(n,)``, from scores ``(n, n_outputs)`` and targets ``(n,)``."""

    @abstractmethod
    def decide(self, scores: Floats) -> Floats:
        """Return the predicted target of each row, shape ``(n,)``: a value, or a class code."""

    @abstractmethod
    def constant_scores(self, targets: Floats) -> Floats:
        """Return the scores ``(n_outputs,)`` of the best constant predictor for these targets."""

    def probabilities(self, scores: Floats) -> Floats:  # noqa: ARG002 - the kinds with classes use it
        """Return class probabilities ``(n, K)``; regression has none."""
        raise InputError(f'task "{self.name}" is {self.kind} and has no class probabilities')

    def describe(self) -> dict[str, Any]:
        """Return the task as plain data; :func:`task_from` is the inverse."""
        return {"name": self.name, "kind": self.kind, "metrics": list(self.metrics), "labels": list(self.labels)}


@dataclass(frozen=True)
class Regression(Task):
    """A number; loss = squared error."""

    kind: ClassVar[str] = "regression"
    default_metrics: ClassVar[tuple[str, ...]] = ("rmse", "r2", "explained_variance")

    @property
    def n_outputs(self) -> int:
        return 1

    def losses(self, scores: Floats, targets: Floats) -> Floats:
        return np.square(scores[:, 0] - targets)

    def decide(self, scores: Floats) -> Floats:
        return scores[:, 0]

    def constant_scores(self, targets: Floats) -> Floats:
        return np.array([targets.mean() if len(targets) else 0.0])


@dataclass(frozen=True)
class _Classes(Task):
    """Shared by the kinds with named classes (abstract)."""

    classes: tuple[str, ...] = ()
    least_classes: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.classes) < self.least_classes or len(set(self.classes)) != len(self.classes):
            raise InputError(
                f'task "{self.name}" ({self.kind}) needs at least {self.least_classes} different classes, '
                f"got {list(self.classes)}"
            )

    @property
    def labels(self) -> tuple[str, ...]:
        return self.classes

    def frequencies(self, targets: Floats) -> Floats:
        """Return class shares with half a count added to each class, so that no logit is infinite."""
        counts = np.bincount(targets.astype(np.int64), minlength=len(self.classes)) + 0.5
        return np.asarray(counts / counts.sum(), dtype=np.float64)


@dataclass(frozen=True)
class Binary(_Classes):
    """Two classes; loss = -log P(y), P(second class) = sigmoid(score)."""

    kind: ClassVar[str] = "binary"
    default_metrics: ClassVar[tuple[str, ...]] = ("log_loss", "auc", "accuracy", "f1")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.classes) != 2:
            raise InputError(f'task "{self.name}" is binary but has {len(self.classes)} classes; use Multiclass')

    @property
    def n_outputs(self) -> int:
        return 1

    def losses(self, scores: Floats, targets: Floats) -> Floats:
        return _log1p_exp(scores[:, 0]) - targets * scores[:, 0]

    def decide(self, scores: Floats) -> Floats:
        return (scores[:, 0] > 0).astype(np.float64)

    def probabilities(self, scores: Floats) -> Floats:
        second = sigmoid(scores[:, 0])
        return np.stack([sigmoid(-scores[:, 0]), second], axis=1)

    def constant_scores(self, targets: Floats) -> Floats:
        shares = self.frequencies(targets)
        return np.array([np.log(shares[1] / shares[0])])


@dataclass(frozen=True)
class Multiclass(_Classes):
    """K unordered classes; loss = -log softmax(scores)[y]."""

    kind: ClassVar[str] = "multiclass"
    default_metrics: ClassVar[tuple[str, ...]] = ("log_loss", "accuracy", "f1")

    @property
    def n_outputs(self) -> int:
        return len(self.classes)

    def losses(self, scores: Floats, targets: Floats) -> Floats:
        top = scores.max(axis=1, keepdims=True)
        normaliser = np.log(np.exp(scores - top).sum(axis=1)) + top[:, 0]
        return np.asarray(normaliser - scores[np.arange(len(scores)), targets.astype(np.int64)])

    def decide(self, scores: Floats) -> Floats:
        return np.asarray(scores.argmax(axis=1).astype(np.float64))

    def probabilities(self, scores: Floats) -> Floats:
        shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))

    def constant_scores(self, targets: Floats) -> Floats:
        return np.log(self.frequencies(targets))


@dataclass(frozen=True)
class Ordinal(_Classes):
    """K ordered levels as K-1 cumulative logits; loss = sum_k -log P([y > k]).

    The decision is the median level: the number of thresholds k with P(y > k) > 1/2. Where the
    cumulative probabilities are not decreasing in k, the running minimum is used.
    """

    kind: ClassVar[str] = "ordinal"
    default_metrics: ClassVar[tuple[str, ...]] = ("ordinal_mae", "quadratic_kappa", "accuracy")

    @property
    def n_outputs(self) -> int:
        return len(self.classes) - 1

    def thresholds(self, targets: Floats) -> Floats:
        """Return the K-1 yes/no targets [y > k], shape ``(n, K-1)``."""
        return (targets[:, None] > np.arange(self.n_outputs)).astype(np.float64)

    def losses(self, scores: Floats, targets: Floats) -> Floats:
        return np.asarray((_log1p_exp(scores) - self.thresholds(targets) * scores).sum(axis=1))

    def _above(self, scores: Floats) -> Floats:
        return np.minimum.accumulate(sigmoid(scores), axis=1)

    def decide(self, scores: Floats) -> Floats:
        return np.asarray((self._above(scores) > 0.5).sum(axis=1), dtype=np.float64)

    def probabilities(self, scores: Floats) -> Floats:
        n = len(scores)
        above = np.concatenate([np.ones((n, 1)), self._above(scores), np.zeros((n, 1))], axis=1)
        return np.asarray(above[:, :-1] - above[:, 1:])

    def constant_scores(self, targets: Floats) -> Floats:
        above = 1.0 - np.cumsum(self.frequencies(targets))[:-1]
        return np.asarray(np.log(above / (1.0 - above)))


KINDS: dict[str, type[Task]] = {kind.kind: kind for kind in (Regression, Binary, Multiclass, Ordinal)}
"""Every kind of task by name."""


def task_from(description: Mapping[str, Any]) -> Task:
    """Build a task from plain data; the inverse of :meth:`Task.describe`."""
    kind = KINDS.get(description["kind"])
    if kind is None:
        raise InputError(unknown("task kind", str(description["kind"]), KINDS))
    metrics = tuple(description.get("metrics", ()))
    if issubclass(kind, _Classes):
        return kind(description["name"], metrics, tuple(description["labels"]))
    return kind(description["name"], metrics)
