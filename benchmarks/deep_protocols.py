"""Data, splits, sizes and scores of the comparisons of deep sharing architectures.

Training sets of different splits do not overlap, and all splits of a protocol have the same test rows,
except where a published protocol says otherwise (School: ten random splits, of which five are taken;
Tox21: five folds). Sizes are chosen for small computers; every protocol states them.

Scores are means over tasks (School: over all labels), with the influence of every test label, as in
:mod:`linear_protocols`.
"""

from __future__ import annotations

import json
import zlib
from abc import ABC, abstractmethod
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar

import numpy as np

import linear_protocols as lp
from linear_protocols import Published, Scored
from polytask.compare.metrics import influences, score_task
from polytask.core.data import Ints, TaskData
from polytask.core.errors import InputError
from polytask.core.task import Floats
from polytask.sources import load, load_images, school_splits

Scores = dict[str, Floats]
"""Task → scores of its labelled test rows, in their order, ``(m, n_outputs)``."""

SENER = "Sener & Koltun, Multi-task learning as multi-objective optimization, NeurIPS 2018; whole MNIST, from memory"
MOLECULENET = "Wu et al., MoleculeNet, Chemical Science 2018, random split; from memory"
N_SPLITS = 5


class Protocol(ABC):
    """A data set, its splits, the network and training that every method gets, and the score (abstract).

    Attributes
    ----------
    network
        Sizes of a network that shares nothing, per task, and how it is trained. Where tasks have rows of their
        own every task draws its own batches, at most a tenth of its rows, so that all methods make the same
        updates from the same rows.
    wide
        Sizes of the wide shared network.
    test_to_train
        Test rows per training row where training sets overlap; 0 where they do not.
    """

    name: str
    title: str
    metric: str
    higher_is_better: bool = True
    network: ClassVar[dict[str, Any]]
    wide: ClassVar[dict[str, Any]]
    wide_note: str
    test_to_train: float = 0.0
    published: tuple[Published, ...] = ()

    @abstractmethod
    def data(self) -> TaskData:
        """Return all rows, encoded."""

    @abstractmethod
    def pair(self, split: int) -> tuple[Ints, Ints]:
        """Return training and test rows of a split."""

    @property
    def key(self) -> str:
        """Name and a digest of the settings: cells made with other settings are other cells."""
        settings = {"network": self.network, "wide": self.wide, "title": self.title}
        return f"{self.name}-{zlib.crc32(json.dumps(settings, sort_keys=True).encode()):08x}"

    def missing(self) -> str | None:
        """Return why the data cannot be read, or None."""
        try:
            self.data()
        except (InputError, ImportError) as error:
            return str(error)
        return None

    def case(self, split: int) -> lp.Case:
        """Return one split; it has no inner folds."""
        train, test = self.pair(split)
        return lp.Case(*self.encoded(self.data().rows(train), self.data().rows(test)), test, ())

    def tuning_case(self) -> lp.Case:
        """Return three quarters and a quarter of the training rows of the first split."""
        rows = self.pair(0)[0]
        part = self.data().rows(rows)
        if part.one_task_per_row:
            train, valid = lp.split_within_tasks(part, 0.75, seed=0)
        else:
            train, valid = lp.split_rows(part.n_rows, round(0.75 * part.n_rows), seed=0)
        return lp.Case(*self.encoded(part.rows(train), part.rows(valid)), rows[valid], ())

    def encoded(self, train: TaskData, test: TaskData) -> list[TaskData]:
        """Return both parts as networks read them, with figures of the first only."""
        return [train, test]

    def score(self, case: lp.Case, scores: Scores) -> tuple[Scored, Floats]:
        """Return the score with the influence of every test label (by task, then row), and that of each task."""
        by_task = self.by_task(case, scores)
        parts = [part for _, part in by_task]
        total = sum(map(len, parts))
        shares = [part * total / (len(parts) * len(part)) for part in parts]
        values = np.array([value for value, _ in by_task])
        return (float(values.mean()), np.concatenate(shares)), values

    def by_task(self, case: lp.Case, scores: Scores) -> list[Scored]:
        """Return the metric of every task with the influence of its test labels on it."""
        found = []
        for task in case.test.tasks:
            targets = case.test.labels[task.name].values
            value = score_task(task, scores[task.name], targets)[0][task.metric]
            found.append((value, influences(task, scores[task.name], targets)))
        return found

    def places(self, case: lp.Case) -> Ints:
        """Return the row in the whole data set of every test label, in the order of influences."""
        return np.asarray(case.test_rows[case.test.stacked()[0]])


def blocks(rows: Ints, size: int, split: int, seed: int) -> Ints:
    """Return the rows of one of several random blocks that do not overlap."""
    order = np.random.default_rng(seed).permutation(rows)
    return np.sort(order[split * size : (split + 1) * size])


class MultiMnist(Protocol):
    """Two digits in one picture."""

    n_train, n_test = 2000, 5000
    name = "multi-mnist"
    title = f"MultiMNIST: left and right digit of 36 x 36 pictures, {n_train:,} to learn from, {n_test:,} to test on"
    metric = "mean accuracy"
    network: ClassVar = {
        "channels": "8-16-32",
        "widths": "32-32",
        "max_epochs": 15,
        "batch_size": 64,
        "learning_rate": 3e-3,
    }
    wide: ClassVar = {"channels": "12-24-44", "widths": "44-44"}
    wide_note = "as many parameters as two networks"
    published = (
        Published("single task", "97.23 / 95.90", "accuracy left / right (%)", SENER),
        Published("hard sharing, equal weights", "96.46 / 94.99", "accuracy left / right (%)", SENER),
        Published("hard sharing, MGDA-UB", "97.26 / 95.90", "accuracy left / right (%)", SENER),
    )

    @cache  # noqa: B019 - protocols live as long as the program
    def data(self) -> TaskData:
        return load_images("multi_mnist", seed=0)

    def pair(self, split: int) -> tuple[Ints, Ints]:
        part = self.data().keys["part"]
        train, test = np.flatnonzero(part == "train"), np.flatnonzero(part == "test")
        return blocks(train, self.n_train, split, seed=0), blocks(test, self.n_test, 0, seed=1)


class Omniglot(Protocol):
    """Characters of twenty alphabets, few drawings of each."""

    n_alphabets, n_drawings = 20, 3
    name = "omniglot"
    title = (
        f"Omniglot: {n_alphabets} alphabets as tasks, {n_drawings} drawings of each character to learn from "
        "(15 % of them), five of other persons to test on"
    )
    metric = "mean accuracy"
    network: ClassVar = {
        "channels": "8-16-32",
        "widths": "64-64",
        "max_epochs": 40,
        "batch_size": 128,
        "learning_rate": 3e-3,
    }
    wide: ClassVar = {"channels": "16-32-64", "widths": "128-128"}
    wide_note = "four times the parameters of one network"

    @cache  # noqa: B019
    def data(self) -> TaskData:
        data = load_images("omniglot")
        background = set(data.keys["alphabet"][data.keys["part"] == "background"])
        chosen = [name for name in data.names if name in background][: self.n_alphabets]
        return data.rows(np.isin(data.keys["alphabet"], chosen)).only(chosen)

    def pair(self, split: int) -> tuple[Ints, Ints]:
        drawer = self.data().keys["drawer"]
        first = 1 + self.n_drawings * split
        return np.flatnonzero((drawer >= first) & (drawer < first + self.n_drawings)), np.flatnonzero(drawer > 15)


class School(Protocol):
    """Exam scores in 139 schools."""

    name = "school"
    title = "School: exam scores in 139 schools, five of the ten published splits (75 % of each school to learn from)"
    metric = "explained variance, global mean"
    network: ClassVar = {"widths": "16-16", "max_epochs": 60, "batch_size": 128, "learning_rate": 3e-3}
    wide: ClassVar = {"widths": "192-192"}
    wide_note = "twelve times as wide as one network"
    test_to_train = 1 / 3
    published = tuple(item for item in lp.School.published if item.metric == "explained variance")

    @cache  # noqa: B019
    def data(self) -> TaskData:
        return load("school").data

    def pair(self, split: int) -> tuple[Ints, Ints]:
        return school_splits()[split]

    def encoded(self, train: TaskData, test: TaskData) -> list[TaskData]:
        return lp.encoded(train, test)

    def score(self, case: lp.Case, scores: Scores) -> tuple[Scored, Floats]:
        predicted = np.concatenate([scores[name][:, 0] for name in case.test.names])
        return lp.METRICS[self.metric](case.outcome(predicted)), np.zeros(0)


class Tox21(Protocol):
    """Twelve toxicity assays of molecules, labels missing."""

    name = "tox21"
    title = "Tox21: twelve assays of 7,823 molecules (Morgan fingerprints, 17 % of labels missing), five folds"
    metric = "mean AUC"
    network: ClassVar = {"widths": "32-32", "max_epochs": 10, "batch_size": 128, "learning_rate": 1e-3}
    wide: ClassVar = {"widths": "256-128"}
    wide_note = "about two thirds of the parameters of twelve networks"
    test_to_train = 1 / 4
    published = (
        Published("multi-task network", "0.803", "mean AUC", MOLECULENET),
        Published("graph convolution", "0.829", "mean AUC", MOLECULENET),
    )

    @cache  # noqa: B019
    def data(self) -> TaskData:
        data = load("tox21").data
        bits = np.column_stack(list(data.inputs.values()))
        return replace(data, inputs={"numeric": bits}, features={"numeric": tuple(data.inputs)})

    def pair(self, split: int) -> tuple[Ints, Ints]:
        return lp.row_folds(self.data().n_rows, N_SPLITS, seed=0)[split]


class Sarcos(Protocol):
    """Seven torques of a robot arm, from the official test file."""

    n_train, n_test = 600, 1449
    name = "sarcos"
    title = (
        f"SARCOS: seven torques of a robot arm, {n_train} rows of the official test file to learn from, {n_test:,} "
        "others to test on (its training file is not at hand)"
    )
    metric = "nMSE"
    higher_is_better = False
    network: ClassVar = {"widths": "32-32", "max_epochs": 60, "batch_size": 32, "learning_rate": 3e-3}
    wide: ClassVar = {"widths": "88-88"}
    wide_note = "as many parameters as seven networks"

    @cache  # noqa: B019
    def data(self) -> TaskData:
        return load("sarcos_test").data

    def pair(self, split: int) -> tuple[Ints, Ints]:
        test = blocks(np.arange(self.data().n_rows), self.n_test, 0, seed=0)
        rest = np.setdiff1d(np.arange(self.data().n_rows), test)
        return blocks(rest, self.n_train, split, seed=1), test

    def encoded(self, train: TaskData, test: TaskData) -> list[TaskData]:
        return lp.encoded(train, test)

    def score(self, case: lp.Case, scores: Scores) -> tuple[Scored, Floats]:
        outcome = case.outcome(np.concatenate([scores[name][:, 0] for name in case.test.names]))
        squares, around = np.square(outcome.target - outcome.prediction), outcome.target
        spread = np.square(around - outcome.by_task(around)[outcome.task])
        return lp.nmse(outcome), outcome.by_task(squares) / outcome.by_task(spread)


PROTOCOLS: tuple[Protocol, ...] = (MultiMnist(), Omniglot(), School(), Tox21(), Sarcos())
