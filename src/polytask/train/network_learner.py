"""What network learners have in common: build, train with early stopping, hand back a NetworkModel.

Without validation data a learner holds out 20 % of the training rows (of every task's rows, where each
row carries one task's label) for early stopping; with fewer than 10 rows it trains to ``max_epochs``.

All of them see the same batches, start their encoders from the same weights and their heads at
the best constant of each task, so that what differs between them is the sharing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from polytask.balance.base import Balancer
from polytask.core.data import TaskData
from polytask.core.errors import InputError
from polytask.core.learner import Model, Progress
from polytask.core.scaling import TargetScaler
from polytask.core.search import Choice, Distribution, LogUniform
from polytask.core.task import Floats, Task
from polytask.deep.base import SharingNetwork
from polytask.deep.single import SingleTask
from polytask.train.balancers import TUNED, Reduction, check_balancer, make_balancer
from polytask.train.batches import inputs_of
from polytask.train.loop import Fitted, TrainSettings, fit
from polytask.train.model import NetworkModel
from polytask.train.networks import build
from polytask.train.parallel import Processes
from polytask.train.record import Recorder

_HELD_OUT = 0.2
_LEAST_ROWS = 10


@dataclass(frozen=True)
class Run:
    """What the fits of one call have in common, as :func:`~polytask.train.loop.fit` takes it."""

    seed: int = 0
    progress: Progress | None = None
    checkpoint: Path | None = None
    processes: Processes | None = None


@dataclass(frozen=True, kw_only=True)
class NetworkLearner:
    """What the network learners have in common (abstract).

    Parameters
    ----------
    widths
        Width of each hidden layer, as text: ``"64-64"``; ``""`` is a linear model.
    channels
        Channels of each convolutional stage before the hidden layers, as text; images only. Every stage
        halves height and width.
    dropout
        Share of hidden units dropped while training.
    norm
        ``"layer"`` (tables), ``"group"`` (images), ``"batch"`` or ``"none"``.
    activation
        ``"relu"``, ``"gelu"``, ``"silu"``, ``"tanh"``, ``"elu"`` or ``"leaky_relu"``.
    learning_rate, weight_decay, batch_size, max_epochs, patience, clip, schedule, own_rows, least_steps, device
        See :class:`~polytask.train.settings.TrainSettings`, also for the following.
    sampling, groups, temperature, missing
        Which rows and tasks a step sees, and how tasks with few labels count in it.
    accumulate, precision
        Parts in which a step is computed, and the type of its matrix products.
    warm_up, average
        Epochs over which the learning rate rises, and decay of the moving average of the weights.
    on_nonfinite
        ``"drop"`` a task from a step in which its loss is not finite, or ``"stop"``.
    """

    widths: str = "64-64"
    channels: str = "16-32-64"
    dropout: float = 0.0
    norm: str = "none"
    activation: str = "relu"
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    batch_size: int = 128
    max_epochs: int = 200
    patience: int = 20
    clip: float = 1.0
    schedule: str = "constant"
    own_rows: bool | None = None
    least_steps: int = 10
    device: str = "auto"
    sampling: str | None = None
    groups: str | None = None
    temperature: float = 2.0
    missing: str = "mean"
    accumulate: int = 1
    precision: str = "float32"
    warm_up: int = 0
    average: float | None = None
    on_nonfinite: str = "drop"

    inner_folds: ClassVar[int] = 1
    refits: ClassVar[bool] = False
    network: ClassVar[str]

    def __post_init__(self) -> None:
        self._layers()
        _sizes("channels", self.channels)
        self._settings()

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        """Return the fields tuning draws."""
        return {
            "learning_rate": LogUniform(3e-4, 1e-2),
            "weight_decay": LogUniform(1e-6, 1e-1),
            "widths": Choice(("32", "64-64", "128-128")),
            "dropout": Choice((0.0, 0.1, 0.3)),
        }

    def refuses(self, task: Task) -> str | None:  # noqa: ARG002 - the contract's signature
        """Return None: networks learn every kind of task."""
        return None

    def fit(
        self,
        train: TaskData,
        *,
        valid: TaskData | None = None,
        seed: int = 0,
        progress: Progress | None = None,
        checkpoint: Path | None = None,
        processes: Processes | None = None,
        record: Recorder | Sequence[Recorder] | None = None,
    ) -> Model:
        """Train on encoded data; see :meth:`polytask.core.learner.Learner.fit`.

        ``processes`` and ``record`` are those of :func:`~polytask.train.loop.fit`; where other networks are trained
        first, their events are not noted.
        """
        if valid is None and train.n_rows >= _LEAST_ROWS:
            train, valid = train.split((1.0 - _HELD_OUT, _HELD_OUT), seed=seed)
        run = Run(seed, progress, checkpoint, processes)
        network, description = self._start(train, valid, run)
        balancer = self._balancer(train.tasks, seed)
        fitted = fit(network, balancer, train, valid, settings=self._settings(), record=record, **vars(run))
        model = NetworkModel(
            train.tasks,
            fitted.network,
            description,
            scaler=fitted.scaler,
            constants=_constants(train),
            history=_history(fitted, train.names),
        )
        return model.with_alike(train) if len(train.tasks) > 1 else model

    def _start(
        self,
        train: TaskData,
        valid: TaskData | None,  # noqa: ARG002  # for learners that train something first
        run: Run,
    ) -> tuple[SharingNetwork, dict[str, Any]]:
        """Return the network as training begins, and its description."""
        description = self._description(train)
        network = build(train.tasks, description, seed=run.seed)
        start_at_constants(network, train)
        return network, description

    def _trained_single_task(self, train: TaskData, valid: TaskData | None, run: Run) -> SingleTask:
        """Return single-task networks of the same build, trained with the same settings; a start for others."""
        description = {**self._description(train), "network": "single-task"}
        balancer = make_balancer("equal", train.tasks, seed=run.seed)
        network = self._trained_first(description, balancer, train, valid, run)
        assert isinstance(network, SingleTask)
        return network

    def _trained_first(
        self,
        description: Mapping[str, Any],
        balancer: Balancer,
        train: TaskData,
        valid: TaskData | None,
        run: Run,
    ) -> SharingNetwork:
        """Return the network of another description, trained with the same settings."""
        network = build(train.tasks, description, seed=run.seed)
        start_at_constants(network, train)
        told = None if run.progress is None else _first(run.progress, str(description["network"]))
        fit(network, balancer, train, valid, settings=self._settings(), **vars(replace(run, progress=told)))
        return network

    def _layers(self) -> list[int]:
        return _sizes("widths", self.widths)

    def _settings(self) -> TrainSettings:
        names = [field.name for field in fields(TrainSettings) if field.name != "checkpoint_seconds"]
        return TrainSettings(**{name: getattr(self, name) for name in names})

    def _description(self, data: TaskData) -> dict[str, Any]:
        inputs = inputs_of(data)
        return {
            "network": self.network,
            **inputs,
            **({"channels": _sizes("channels", self.channels)} if "image" in inputs else {}),
            "widths": self._layers(),
            "dropout": float(self.dropout),
            "norm": None if self.norm == "none" else self.norm,
            "activation": self.activation,
        }

    def _balancer(self, tasks: tuple[Task, ...], seed: int) -> Balancer:
        return make_balancer("equal", tasks, seed=seed)


@dataclass(frozen=True, kw_only=True)
class SharingLearner(NetworkLearner):
    """What the learners of networks that share have in common (abstract).

    Parameters
    ----------
    balancer
        How the losses become one update: ``"equal"``, ``"uncertainty"`` (learned noise per task) or another of
        :data:`~polytask.train.balancers.BALANCERS`; methods that balance gradients need ``shares_parameters``.
    """

    balancer: str = "equal"

    sharing: ClassVar[str] = "shared"
    shares_parameters: ClassVar[bool] = True
    reduction: ClassVar[Reduction] = "sum"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_balancer(self.balancer, shares=self.shares_parameters)

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        """Return the fields tuning draws; of the balancers the first two."""
        return {**super().search_space(), "balancer": Choice(TUNED)}

    def _balancer(self, tasks: tuple[Task, ...], seed: int) -> Balancer:
        return make_balancer(self.balancer, tasks, reduction=self.reduction, seed=seed)


def _first(progress: Progress, network: str) -> Callable[[str, float], None]:
    def told(text: str, _: float) -> None:
        progress(f"{network} networks first: {text}", 0.0)

    return told


def _sizes(name: str, text: str) -> list[int]:
    """Return the sizes of layers that a text such as ``"64-64"`` names."""
    parts = [part for part in str(text).split("-") if part]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f'{name} is "{text}"; give the size of each layer, such as "64-64"')
    return [int(part) for part in parts]


def start_at_constants(network: SharingNetwork, train: TaskData) -> None:
    """Let the scores start at the best constant of each task's (standardised) training labels."""
    scaler = TargetScaler.fit(train)
    constants = np.zeros((len(train.tasks), max(task.n_outputs for task in train.tasks)))
    for number, task in enumerate(train.tasks):
        values = scaler.apply(number, train.labels[task.name].values)
        constants[number, : task.n_outputs] = task.constant_scores(values)
    network.start_heads(torch.from_numpy(constants))


def _constants(train: TaskData) -> Floats:
    """Return ``(T, K)``: the constant scores of tasks without a training label, NaN for the others."""
    widest = max(task.n_outputs for task in train.tasks)
    found = np.full((len(train.tasks), widest), np.nan)
    for number, task in enumerate(train.tasks):
        values = train.labels[task.name].values
        if not len(values):
            found[number] = 0.0
            found[number, : task.n_outputs] = task.constant_scores(values)
    return found


def _history(fitted: Fitted, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the learning curves of tasks that have one, rounded to 6 digits."""

    def plain(curves: Floats) -> dict[str, list[float]]:
        return {
            name: [float(f"{value:.6g}") for value in curve]
            for name, curve in zip(names, curves.T, strict=True)
            if len(curve) and np.isfinite(curve).all()
        }

    best = fitted.best_epoch
    found: dict[str, Any] = {
        "epoch": list(range(1, len(fitted.train_curve) + 1)),
        "train": plain(fitted.train_curve),
        "valid": plain(fitted.valid_curve),
        "best_epoch": int(best.max()) + 1,
    }
    if len(np.unique(best)) > 1:
        found["best_epochs"] = {name: int(epoch) + 1 for name, epoch in zip(names, best, strict=True) if epoch >= 0}
    return found
