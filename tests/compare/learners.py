"""Small closed-form learners for the tests of compare; a module of its own, so that workers can import it."""

from __future__ import annotations

import os
import resource
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from polytask.core.learner import Model
from polytask.core.search import LogUniform
from polytask.core.task import Regression


class TinyModel(Model):
    """Linear scores of every task, plus a constant for kinds with classes."""

    def __init__(self, tasks, weights, intercepts):
        super().__init__(tasks)
        self.weights, self.intercepts = weights, intercepts

    def predict(self, data):
        X = data.inputs["numeric"]
        return {task.name: X @ self.weights[task.name] + self.intercepts[task.name] for task in self.tasks}

    def state(self):
        return {}, {}

    @classmethod
    def from_state(cls, tasks, description, arrays):
        raise NotImplementedError


def _ridge(X, y, alpha):
    mean_x, mean_y = X.mean(0), y.mean()
    centred = X - mean_x
    w = np.linalg.solve(centred.T @ centred + alpha * np.eye(X.shape[1]), centred.T @ (y - mean_y))
    return w, mean_y - mean_x @ w


def _fit(data, alpha, *, common=False, flip=False):
    weights, intercepts = {}, {}
    X = data.inputs["numeric"]
    rows = {task.name: data.labels[task.name].rows for task in data.tasks}
    for task in data.tasks:
        labels = data.labels[task.name]
        if isinstance(task, Regression) and len(labels) > 1:
            w, b = _ridge(X[labels.rows], labels.values, alpha)
        else:
            w, b = np.zeros((X.shape[1], task.n_outputs)), task.constant_scores(labels.values)
        weights[task.name] = np.reshape(w, (X.shape[1], task.n_outputs))
        intercepts[task.name] = np.reshape(b, (task.n_outputs,))
    if common:
        mean = np.mean([weights[name] for name in rows], axis=0)
        weights = dict.fromkeys(rows, -mean if flip else mean)
    return TinyModel(data.tasks, weights, intercepts)


@dataclass(frozen=True)
class AloneLearner:
    """Ridge for each task."""

    alpha: float = 1.0
    sharing = "single"
    summary = "ridge for each task"
    inner_folds = 2
    refits = True

    @classmethod
    def search_space(cls):
        return {"alpha": LogUniform(1e-3, 1e3)}

    def refuses(self, task):
        return None

    def fit(self, train, *, valid=None, seed=0, progress=None, checkpoint=None):
        return _fit(train, self.alpha)


@dataclass(frozen=True)
class SameLearner(AloneLearner):
    """Ridge for each task, but called sharing: a method identical to the baseline when tuning is off."""

    sharing = "shared"


@dataclass(frozen=True)
class DrawnLearner(AloneLearner):
    """Ridge on random features; another stream is the same method with other draws."""

    stream: int = 0

    @classmethod
    def search_space(cls):
        return {}

    def fit(self, train, *, valid=None, seed=0, progress=None, checkpoint=None):
        rng = np.random.default_rng([seed, self.stream])
        directions = rng.normal(size=(train.inputs["numeric"].shape[1], 20))
        return DrawnModel(_fit(_drawn(train, directions), self.alpha), directions)


@dataclass(frozen=True)
class DrawnSharedLearner(DrawnLearner):
    """The same, called sharing."""

    sharing = "shared"


def _drawn(data, directions):
    return replace(data, inputs={"numeric": np.cos(data.inputs["numeric"] @ directions)})


class DrawnModel(TinyModel):
    def __init__(self, inner, directions):
        super().__init__(inner.tasks, inner.weights, inner.intercepts)
        self.directions = directions

    def predict(self, data):
        return super().predict(_drawn(data, self.directions))


@dataclass(frozen=True)
class CommonLearner(AloneLearner):
    """One weight vector for all regression tasks."""

    sharing = "pooled"

    def refuses(self, task):
        return None if isinstance(task, Regression) else "regression only"

    def fit(self, train, *, valid=None, seed=0, progress=None, checkpoint=None):
        return _fit(train, self.alpha, common=True)


@dataclass(frozen=True)
class HeldLearner(CommonLearner):
    """Keeps the model that saw the validation part (early stopping)."""

    inner_folds = 1
    refits = False

    def fit(self, train, *, valid=None, seed=0, progress=None, checkpoint=None):
        assert valid is not None
        return _fit(train, self.alpha, common=True)


def take_all_memory():
    """Ask for more than a limit set just above what this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 2**26
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    np.ones(2**26)


@dataclass(frozen=True)
class BadLearner(CommonLearner):
    """Fails in ways that ``what`` names, on training sets whose first input is above ``above``."""

    what: str = "raise"
    marker: str = ""

    def fit(self, train, *, valid=None, seed=0, progress=None, checkpoint=None):
        mine = not self.marker or Path(self.marker).exists()
        if mine and self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if mine and self.what == "raise":
            raise FloatingPointError("the loss is not finite")
        if mine and self.what == "abort":
            os.abort()
        if mine and self.what == "exit":
            os._exit(3)
        if mine and self.what == "memory":
            raise MemoryError
        if mine and self.what == "limit":
            take_all_memory()
        if mine and self.what == "library":
            raise ImportError("libtorch_cpu.so: failed to map segment from shared object")
        if mine and self.what == "missing":
            raise ImportError("no module named such")
        if mine and self.what == "torch":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")
        return _fit(train, self.alpha, common=True)
