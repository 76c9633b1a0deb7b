"""Data, splits and scores of the published comparisons of linear multi-task learning.

A :class:`Protocol` says how a data set is split and scored in the literature; a :class:`Case` is one
of its splits: training and test rows, and the folds of the training rows on which hyper-parameters
are chosen. Everything that is learned from data (means, scales, category codes) comes from the
training rows of the case, or of the fold.

Scores come with the influence of every test label, so that
:func:`polytask.compare.statistics.standard_error` can tell the sampling of test rows from that of
training rows. With e = y - prediction and n_t test labels in task t:

    mean task RMSE        1/T sum_t rmse_t                     rmse_t² = 1/n_t sum_i e_ti²
    pooled RMSE           sqrt(1/n sum e²)
    explained variance    100 (1 - sum e² / sum (y - m)²)      m: mean of all test labels, or of the task's
    nMSE                  1/T sum_t sum_i e_ti² / sum_i (y_ti - m_t)²
    aRRMSE                1/T sum_t sqrt(sum_i e_ti² / sum_i (y_ti - train mean_t)²)
"""

from __future__ import annotations

import lzma
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polytask.core.data import Ints, TaskData
from polytask.core.errors import InputError
from polytask.core.task import Floats, Regression
from polytask.sources import TableEncoder, load, school_splits
from polytask.sources.catalog import ROOT_VARIABLE

# -- scores -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """Test labels with their predictions, sorted by task, then row.

    Parameters
    ----------
    task, row
        Number of the task, and of the row in the whole data set, ``(m,)``.
    target, prediction
        ``(m,)``.
    train_mean
        Mean training label of each task, ``(T,)``.
    """

    task: Ints
    row: Ints
    target: Floats
    prediction: Floats
    train_mean: Floats

    def by_task(self, values: Floats) -> Floats:
        """Return the mean of ``values`` over the labels of each task, ``(T,)``."""
        return np.bincount(self.task, weights=values) / np.bincount(self.task)

    @property
    def share(self) -> Floats:
        """What a label's task mean counts in the mean over tasks, relative to a plain mean over labels, ``(m,)``."""
        counts = np.bincount(self.task)
        return (len(self.task) / (len(counts) * counts))[self.task]


Scored = tuple[float, Floats]
"""A score and the influence of every label on it (their mean is 0)."""


def mean_task_rmse(found: Outcome) -> Scored:
    """Return the mean over tasks of the root mean squared error."""
    squares = np.square(found.target - found.prediction)
    rmse = np.sqrt(found.by_task(squares))
    own = rmse[found.task]
    safe = np.where(own > 0, own, 1.0)
    return float(rmse.mean()), found.share * (squares - own**2) / (2 * safe)


def pooled_rmse(found: Outcome) -> Scored:
    """Return the root mean squared error over all labels."""
    squares = np.square(found.target - found.prediction)
    rmse = float(np.sqrt(squares.mean()))
    return rmse, (squares - rmse**2) / (2 * max(rmse, 1e-300))


def mean_task_mse(found: Outcome) -> Scored:
    """Return the mean over tasks of the mean squared error."""
    squares = np.square(found.target - found.prediction)
    mse = found.by_task(squares)
    return float(mse.mean()), found.share * (squares - mse[found.task])


def _explained(found: Outcome, centre: Floats) -> Scored:
    squares, around = np.square(found.target - found.prediction), np.square(found.target - centre)
    rest = squares.mean() / around.mean()
    return float(100 * (1 - rest)), -100 * (squares - rest * around) / around.mean()


def explained_variance_global(found: Outcome) -> Scored:
    """Return the explained variance around the mean of all test labels, in percent."""
    return _explained(found, np.full(len(found.target), found.target.mean()))


def explained_variance_per_task(found: Outcome) -> Scored:
    """Return the explained variance around the mean test label of each task, in percent."""
    return _explained(found, found.by_task(found.target)[found.task])


def nmse(found: Outcome) -> Scored:
    """Return the mean over tasks of the squared error relative to the variance of the test labels."""
    squares = np.square(found.target - found.prediction)
    around = np.square(found.target - found.by_task(found.target)[found.task])
    spread = found.by_task(around)[found.task]
    ratio = found.by_task(squares) / found.by_task(around)
    return float(ratio.mean()), found.share * (squares - ratio[found.task] * around) / spread


def arrmse(found: Outcome) -> Scored:
    """Return the mean over tasks of the root squared error relative to that of the training mean."""
    squares = np.square(found.target - found.prediction)
    around = np.square(found.target - found.train_mean[found.task])
    # a target that is constant in the test rows of a fold and in training has nothing to predict: ratio 1
    spread = found.by_task(around)
    known = spread > 0
    ratio = np.where(known, np.sqrt(found.by_task(squares) / np.where(known, spread, 1.0)), 1.0)
    own = np.where(known, 2 * np.maximum(ratio, 1e-12) * spread, np.inf)[found.task]
    return float(ratio.mean()), found.share * (squares - np.square(ratio)[found.task] * around) / own


METRICS: dict[str, Callable[[Outcome], Scored]] = {
    "mean task RMSE": mean_task_rmse,
    "pooled RMSE": pooled_rmse,
    "MSE": mean_task_mse,
    "explained variance, global mean": explained_variance_global,
    "explained variance, task means": explained_variance_per_task,
    "nMSE": nmse,
    "aRRMSE": arrmse,
}
HIGHER_IS_BETTER = ("explained variance, global mean", "explained variance, task means")

# -- cases ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One split of a protocol.

    Parameters
    ----------
    train, test
        Data of the training and of the test rows.
    test_rows
        Row of every test row in the whole data set; rows of generated problems are all different.
    folds
        Inner (training, validation) rows, counted within ``train``.
    refit
        Whether the chosen configuration is fitted again on all training rows (else the model of the
        first fold is kept, which is the protocol with a validation part of its own).
    """

    train: TaskData
    test: TaskData
    test_rows: Ints
    folds: tuple[tuple[Ints, Ints], ...]
    refit: bool = True

    def outcome(self, predictions: Floats) -> Outcome:
        """Return the test labels with predictions ``(m,)`` in the order of ``test.stacked()``."""
        row, task, target = self.test.stacked()
        means = np.array([self.train.labels[name].values.mean() for name in self.train.names])
        return Outcome(task.astype(np.int64), self.test_rows[row], target, predictions, means)


def encoded(fit_on: TaskData, *others: TaskData) -> list[TaskData]:
    """Return the data sets with numeric inputs standardised by the rows of the first."""
    if "numeric" in fit_on.inputs:
        return [fit_on, *others]
    encoder = TableEncoder().fit(fit_on)
    return [encoder.transform(data) for data in (fit_on, *others)]


def split_within_tasks(data: TaskData, share: float, seed: int) -> tuple[Ints, Ints]:
    """Return training and test rows: of the labelled rows of every task ``share`` (rounded), at random, and the rest.

    For the long form, where every row has the label of one task.
    """
    rng = np.random.default_rng(seed)
    train, test = [], []
    for name in data.names:
        rows = rng.permutation(data.labels[name].rows)
        count = round(share * len(rows))
        train.append(rows[:count])
        test.append(rows[count:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))


def split_rows(n_rows: int, n_train: int, seed: int) -> tuple[Ints, Ints]:
    """Return ``n_train`` random rows, and the rest."""
    order = np.random.default_rng(seed).permutation(n_rows)
    return np.sort(order[:n_train]), np.sort(order[n_train:])


def row_folds(n_rows: int, n_folds: int, seed: int) -> list[tuple[Ints, Ints]]:
    """Return (training, test) rows of k-fold cross-validation."""
    order = np.random.default_rng(seed).permutation(n_rows)
    return [(np.sort(np.setdiff1d(order, part)), np.sort(part)) for part in np.array_split(order, n_folds)]


def inner_folds(data: TaskData, n_folds: int, seed: int) -> tuple[tuple[Ints, Ints], ...]:
    """Return (training, validation) rows: folds within every task in the long form, else folds of rows."""
    if not data.one_task_per_row:
        return tuple(row_folds(data.n_rows, n_folds, seed))
    rng = np.random.default_rng(seed)
    fold = np.full(data.n_rows, -1)
    for name in data.names:
        rows = rng.permutation(data.labels[name].rows)
        fold[rows] = (np.arange(len(rows)) + rng.integers(n_folds)) % n_folds
    return tuple((np.flatnonzero((fold >= 0) & (fold != k)), np.flatnonzero(fold == k)) for k in range(n_folds))


# -- protocols --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """A figure of the literature.

    Parameters
    ----------
    what
        The method.
    value
        The figure as printed, with its spread.
    metric
        The score it is a figure of.
    source
        Where it was read.
    """

    what: str
    value: str
    metric: str
    source: str


class Protocol(ABC):
    """A data set, its splits and its scores (abstract)."""

    name: str
    title: str
    metrics: tuple[str, ...]
    n_splits: int = 10
    overlapping: bool = True  # training rows of different splits are partly the same
    published: tuple[Published, ...] = ()
    not_searched: tuple[str, ...] = ()  # fields of learners that keep their defaults

    def missing(self) -> str | None:
        """Return why the data cannot be read, or None."""
        try:
            self.data()
        except InputError as error:
            return str(error)
        return None

    @abstractmethod
    def data(self) -> TaskData:
        """Return all rows."""

    @abstractmethod
    def pairs(self) -> list[tuple[Ints, Ints]]:
        """Return the training and test rows of every split."""

    def case(self, split: int, n_folds: int) -> Case:
        """Return one split; hyper-parameters are chosen on ``n_folds`` folds of its training rows."""
        data, (train, test) = self.data(), self.pairs()[split]
        part = data.rows(train)
        return Case(part, data.rows(test), test, inner_folds(part, n_folds, seed=1000 + split))


KDD = "Jeong & Jun, Variable selection and task grouping for multi-task learning, KDD 2018 (slides)"
ARGYRIOU = "Argyriou, Evgeniou, Pontil, Convex multi-task feature learning, Machine Learning 2008; cited from memory"
ZHANG = "Zhang & Yeung, Task relationships in multi-task learning, UAI 2010; cited from memory"


class School(Protocol):
    """Exam scores in 139 schools, on the ten published splits."""

    name = "school"
    title = "School: exam scores in 139 schools, the ten splits of Argyriou et al. (75 % of each school)"
    metrics = ("mean task RMSE", "explained variance, global mean", "explained variance, task means")
    published = (
        Published("lasso", "12.048 ± 0.174", "mean task RMSE", KDD),
        Published("l1 + trace norm", "10.504 ± 0.143", "mean task RMSE", KDD),
        Published("GO-MTL", "10.192", "mean task RMSE", KDD),
        Published("CMTL", "10.017 ± 0.198", "mean task RMSE", KDD),
        Published("VSTG, best published", "9.893 ± 0.110", "mean task RMSE", KDD),
        Published("regularised MTL (Evgeniou et al.)", "34.8 ± 0.5", "explained variance", ARGYRIOU),
        Published("feature learning, linear", "37.1 ± 1.5", "explained variance", ARGYRIOU),
        Published("single task", "23.5 ± 1.9", "explained variance", ZHANG),
        Published("feature learning", "26.8 ± 2.0", "explained variance", ZHANG),
        Published("MTRL", "29.9 ± 1.8", "explained variance", ZHANG),
    )

    def data(self) -> TaskData:
        return load("school").data

    def pairs(self) -> list[tuple[Ints, Ints]]:
        return list(school_splits())


class Parkinsons(Protocol):
    """Motor score of 42 patients from their voice."""

    name = "parkinsons"
    title = "Parkinson: motor score of 42 patients from voice recordings, ten random splits (75 % of each patient)"
    metrics = ("mean task RMSE", "pooled RMSE")
    published = (
        Published("lasso", "2.918", "mean task RMSE", KDD),
        Published("l1 + trace norm", "1.048", "mean task RMSE", KDD),
        Published("CMTL", "1.041", "mean task RMSE", KDD),
        Published("GO-MTL", "1.023", "mean task RMSE", KDD),
        Published("VSTG, best published", "1.008 ± 0.019", "mean task RMSE", KDD),
    )

    def data(self) -> TaskData:
        path = _root() / "parkinsons" / "parkinsons_updrs.data.xz"
        if not path.is_file():
            raise InputError(f"{path} is absent")
        header, *lines = lzma.decompress(path.read_bytes()).decode().split()
        table = np.array([[float(cell) for cell in line.split(",")] for line in lines])
        columns = dict(zip(header.split(","), table.T, strict=True))
        patients, number = np.unique(columns["subject#"], return_inverse=True)
        left_out = ("subject#", "motor_UPDRS", "total_UPDRS")  # the total score contains the motor score
        inputs = {name: values for name, values in columns.items() if name not in left_out}
        tasks = [Regression(f"patient {patient:.0f}") for patient in patients]
        return TaskData.from_stacked(tasks, inputs, number, columns["motor_UPDRS"])

    def pairs(self) -> list[tuple[Ints, Ints]]:
        data = self.data()
        return [split_within_tasks(data, 0.75, seed) for seed in range(self.n_splits)]


class ComputerSurvey(Protocol):
    """How likely 190 persons are to buy each of 20 computers."""

    name = "computer"
    title = "Computer survey (Lenk): 190 persons rate 20 computers, ten random splits (15 ratings of each person)"
    metrics = ("mean task RMSE", "pooled RMSE")
    published = (
        Published("lasso", "2.320", "mean task RMSE", KDD),
        Published("l1 + trace norm", "4.949", "mean task RMSE", KDD),
        Published("MMTFL", "1.753", "mean task RMSE", KDD),
        Published("CMTL", "2.756", "mean task RMSE", KDD),
        Published("GO-MTL", "1.907", "mean task RMSE", KDD),
        Published("VSTG, best published", "1.699 ± 0.105", "mean task RMSE", KDD),
    )

    def data(self) -> TaskData:
        path = _root() / "computer_survey" / "conjointAnalysisComputerBuyers.mat"
        if not path.is_file():
            raise InputError(f"{path} is absent")
        from scipy.io import loadmat

        arrays = loadmat(path)
        design = arrays["designMarix"].astype(np.float64)[:, 1:]  # (20, 13), entries -1 and 1; the first is constant
        ratings = arrays["likeBuy"].astype(np.float64)  # (190, 20), 0 … 10
        persons = len(ratings)
        X = np.tile(design, (persons, 1))
        inputs = {f"attribute {j + 1}": X[:, j] for j in range(X.shape[1])}
        tasks = [Regression(f"person {person + 1}") for person in range(persons)]
        return TaskData.from_stacked(tasks, inputs, np.repeat(np.arange(persons), len(design)), ratings.ravel())

    def pairs(self) -> list[tuple[Ints, Ints]]:
        data = self.data()
        return [split_within_tasks(data, 0.75, seed) for seed in range(self.n_splits)]


class Sarcos(Protocol):
    """Seven torques of a robot arm, from the official test file."""

    metrics = ("nMSE",)

    def __init__(self, n_train: int, published: tuple[Published, ...] = ()) -> None:
        self.n_train = n_train
        self.published = published
        self.name = f"sarcos-{n_train}"
        self.title = (
            f"SARCOS: seven torques of a robot arm, ten random splits of the official test file's 4,449 rows "
            f"({n_train:,} for training; its training file is not at hand)"
        )

    def data(self) -> TaskData:
        return load("sarcos_test").data

    def pairs(self) -> list[tuple[Ints, Ints]]:
        n_rows = self.data().n_rows
        return [split_rows(n_rows, self.n_train, seed) for seed in range(self.n_splits)]


class Mulan(Protocol):
    """A multi-target set of the Mulan collection, 10-fold cross-validation."""

    metrics = ("aRRMSE",)

    def __init__(self, name: str, published: tuple[Published, ...] = ()) -> None:
        self.name = f"mulan-{name}"
        self.title = f"Mulan {name}, 10-fold cross-validation"
        self.published = published
        self._key = f"mulan_{name}"

    def data(self) -> TaskData:
        return load(self._key).data

    def pairs(self) -> list[tuple[Ints, Ints]]:
        return row_folds(self.data().n_rows, self.n_splits, seed=0)


class Synthetic(Protocol):
    """Thirty tasks with 12 training and 12 validation rows each and 20 inputs, noise 1.

    ``kind``: ``"clusters"``: w_t = c_g(t) + 0.3 v_t with three centres; ``"unrelated"``: w_t = v_t;
    ``"overlapping"``: each task mixes two of four latent tasks. c, v, latent tasks and mixtures are
    standard normal. Every method estimates an intercept for each task: all true ones are 0, so tasks that
    are unrelated otherwise would gain from sharing theirs.
    """

    metrics = ("MSE",)
    overlapping = False
    not_searched = ("intercepts", "task_intercepts")
    n_tasks, n_features, n_train, n_test = 30, 20, 12, 200

    def __init__(self, kind: str, published: tuple[Published, ...]) -> None:
        self.kind = kind
        self.name = f"synthetic-{kind}"
        self.title = f"Synthetic, {kind}: 30 tasks, 20 inputs, 12 training and 12 validation rows per task"
        self.published = published

    def weights(self, seed: int) -> Floats:
        """Return the true coefficients ``(T, d)``."""
        rng = np.random.default_rng([seed, 1])
        T, d = self.n_tasks, self.n_features
        if self.kind == "clusters":
            return rng.normal(size=(3, d))[np.arange(T) % 3] + 0.3 * rng.normal(size=(T, d))
        if self.kind == "unrelated":
            return rng.normal(size=(T, d))
        latent, mixture = rng.normal(size=(4, d)), np.zeros((T, 4))
        for t in range(T):
            mixture[t, rng.choice(4, size=2, replace=False)] = rng.normal(size=2)
        return mixture @ latent

    def sample(self, seed: int, part: int, each: int) -> TaskData:
        """Return ``each`` rows per task."""
        rng = np.random.default_rng([seed, 2, part])
        W = self.weights(seed)
        task = np.repeat(np.arange(self.n_tasks), each)
        X = rng.normal(size=(len(task), self.n_features))
        y = np.einsum("nd,nd->n", X, W[task]) + rng.normal(size=len(task))
        return TaskData.from_stacked(
            [Regression(f"task {t + 1}") for t in range(self.n_tasks)], {"numeric": X}, task, y
        )

    def data(self) -> TaskData:
        return self.sample(0, 0, 2 * self.n_train)

    def pairs(self) -> list[tuple[Ints, Ints]]:
        raise NotImplementedError("every split is a problem of its own")

    def case(self, split: int, n_folds: int) -> Case:  # noqa: ARG002 - the protocol has one validation part
        train, test = self.sample(split, 0, 2 * self.n_train), self.sample(split, 1, self.n_test)
        first = np.arange(train.n_rows) % (2 * self.n_train) < self.n_train
        rows = np.arange(test.n_rows) + split * test.n_rows
        return Case(train, test, rows, ((np.flatnonzero(first), np.flatnonzero(~first)),), refit=False)


def _root() -> Path:
    chosen = os.environ.get(ROOT_VARIABLE)
    if not chosen:
        raise InputError(f"name the folder of the data sets in the environment variable {ROOT_VARIABLE}")
    return Path(chosen)


GPML = "Rasmussen & Williams, Gaussian processes for machine learning, 2006, table 2.1 (44,484 other training rows)"
EARLIER = "an independent NumPy implementation, 5 problems, before this library was written"
_N2_METHODS = ("ridge", "mean-regularised", "block-sparse", "trace norm", "MTRL", "cluster norm", "GO-MTL")
_N2 = {
    "clusters": (
        "10.88 ± 1.78",
        "8.69 ± 1.94",
        "9.40 ± 1.76",
        "4.47 ± 0.64",
        "6.32 ± 1.03",
        "4.06 ± 0.40",
        "3.58 ± 0.29",
    ),
    "unrelated": (
        "10.06 ± 0.87",
        "10.59 ± 0.87",
        "10.41 ± 0.84",
        "12.55 ± 0.81",
        "11.34 ± 0.62",
        "11.90 ± 0.75",
        "20.68 ± 0.83",
    ),
    "overlapping": (
        "17.17 ± 3.58",
        "18.53 ± 3.72",
        "15.59 ± 3.34",
        "5.17 ± 1.10",
        "8.17 ± 1.25",
        "6.01 ± 1.29",
        "2.29 ± 0.40",
    ),
}
TREES = (
    "Spyromitros-Xioufis et al., Machine Learning 2016, single-target bagging of regression trees; cited from memory"
)
_MULAN = {
    "andro": "0.602",
    "atp1d": "0.374",
    "atp7d": "0.525",
    "edm": "0.742",
    "enb": "0.117",
    "jura": "0.589",
    "oes10": "0.420",
    "oes97": "0.525",
    "scpf": "0.837",
    "sf1": "1.135",
    "sf2": "1.149",
    "slump": "0.688",
}
NARROW_MULAN = tuple(name for name in _MULAN if not name.startswith(("atp", "oes")))  # fewer than 250 inputs


def protocols() -> tuple[Protocol, ...]:
    """Return every protocol, in the order of the report."""
    linear_regression = Published("linear regression, torque 1 only", "0.075", "nMSE", GPML)
    return (
        School(),
        Parkinsons(),
        ComputerSurvey(),
        Sarcos(200),
        Sarcos(3337, (linear_regression,)),
        *(Mulan(name, (Published("trees", value, "aRRMSE", TREES),)) for name, value in _MULAN.items()),
        *(
            Synthetic(
                kind,
                tuple(Published(what, value, "MSE", EARLIER) for what, value in zip(_N2_METHODS, values, strict=True)),
            )
            for kind, values in _N2.items()
        ),
    )


# -- union support ----------------------------------------------------------------------------

OVERLAPS = (0.0, 0.5, 1.0)
THETAS = (1.0, 1.5, 2.0, 2.5)


@dataclass(frozen=True)
class Support:
    """Two sparse regressions whose supports overlap in part, each with its own standard normal rows.

    Parameters
    ----------
    X, y, task
        Rows ``(2 n, p)``, targets and number of the task.
    used
        Which features either task uses, ``(p,)``.
    """

    X: Floats
    y: Floats
    task: Ints
    used: NDArray[np.bool_]


def union_support(theta: float, overlap: float, seed: int, *, p: int = 128, s: int = 12, noise: float = 0.1) -> Support:
    """Return a problem with n = theta s log(p - (2 - overlap) s) rows per task and coefficients -1 and 1.

    The tasks use s features each, ``overlap`` s of them in common with equal magnitudes.
    """
    rng = np.random.default_rng([seed, round(100 * theta), round(100 * overlap)])
    n, common = round(theta * s * np.log(p - (2 - overlap) * s)), round(overlap * s)
    features = rng.permutation(p)
    W = np.zeros((2, p))
    for number in range(2):
        own = features[s + number * (s - common) : s + (number + 1) * (s - common)]
        W[number, np.concatenate([features[:common], own])] = rng.choice([-1.0, 1.0], size=s)
    task = np.repeat([0, 1], n)
    X = rng.normal(size=(2 * n, p))
    y = np.einsum("nd,nd->n", X, W[task]) + noise * rng.normal(size=2 * n)
    return Support(X, y, task, (W != 0).any(axis=0))
