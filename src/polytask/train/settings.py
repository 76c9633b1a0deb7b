"""How to train: the settings of :func:`polytask.train.fit`, plain values that are checked when they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real

from polytask.core.errors import InputError, unknown

SCHEDULES = ("constant", "cosine", "one-cycle")
PRECISIONS = ("float32", "bfloat16", "float16")
MISSING = ("mean", "unbiased")
NONFINITE = ("drop", "stop")
SAMPLINGS = ("rows", "balanced", "round", "proportional", "temperature", "annealed", "uniform", "sequential")


@dataclass(frozen=True)
class TrainSettings:
    """How to train; plain values only.

    Parameters
    ----------
    learning_rate
        Of AdamW; the peak, where the schedule changes it. A network may scale it for some of its parameters
        (:meth:`~polytask.deep.base.SharingNetwork.parameter_groups`).
    weight_decay
        Decoupled decay of weight matrices; biases, the balancer's parameters and those that the network
        exempts have none.
    batch_size
        Most rows per step; small tables get smaller batches (:class:`~polytask.train.batches.Sampler`).
    max_epochs
        Most passes over the training rows.
    patience
        Epochs without a better validation loss after which training stops.
    clip
        Largest Euclidean norm of the gradient, or of each task's where tasks share no parameters; None: no
        limit.
    schedule
        ``"constant"``, ``"cosine"`` (falls to 0 at ``max_epochs``) or ``"one-cycle"`` (rises over the
        first tenth from a 25th, then falls to 0).
    own_rows
        Whether each task draws its own batches. None: where each task has a tower of its own
        (:meth:`~polytask.deep.base.SharingNetwork.has_towers`) and fewer than half of (rows × tasks) are
        labelled, or each row carries one task's label.
    least_steps
        Steps an epoch has at least, as long as batches keep 8 rows.
    device
        ``"auto"`` (CUDA when there is one), ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    checkpoint_seconds
        Time between two checkpoints, in seconds; does not influence the result.
    sampling
        Which tasks a step trains, and on which rows (:mod:`polytask.train.sampling`): ``"rows"``, ``"balanced"``,
        ``"round"``, ``"proportional"``, ``"temperature"``, ``"annealed"``, ``"uniform"`` or ``"sequential"``. None: as
        ``own_rows`` says, which is ``"round"`` where it is true and ``"rows"`` elsewhere.
    groups
        What ``sampling="balanced"`` gives equal shares of each batch (:mod:`polytask.train.groups`): the values of a
        column of ``data.keys``, or the classes of a task, by name.
    temperature
        τ of ``sampling="temperature"``, > 0.
    missing
        How a task counts in a step in which it has few labels: ``"mean"``, as the mean over its labels, whatever their
        number; ``"unbiased"``, with the weight (its labels in the step) / (its labels per step on average), so
        that every label of a task counts alike in an epoch.
    accumulate
        Parts in which a step's batch is computed, one after the other, to need less memory. The update is that of the
        whole batch for loss weightings, whose losses are computed first; methods that balance gradients balance each
        part by itself.
    precision
        ``"float32"`` (or whatever the network has), ``"bfloat16"``, or ``"float16"`` with gradients scaled: the type in
        which matrix products are computed, while weights stay as they are.
    warm_up
        Epochs over which the learning rate rises from 0 before the schedule takes over.
    average
        Decay per step, in (0, 1), of a moving average of the weights, which is then what is validated and kept.
        None: no average.
    on_nonfinite
        What to do where the loss of a task is not finite in a step: ``"drop"``, leave the task out of the step and
        report it; ``"stop"``, end the fit with an error before the weights change.
    """

    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    batch_size: int = 128
    max_epochs: int = 200
    patience: int = 20
    clip: float | None = 1.0
    schedule: str = "constant"
    own_rows: bool | None = None
    least_steps: int = 10
    device: str = "auto"
    checkpoint_seconds: float = 30.0
    sampling: str | None = None
    groups: str | None = None
    temperature: float = 2.0
    missing: str = "mean"
    accumulate: int = 1
    precision: str = "float32"
    warm_up: int = 0
    average: float | None = None
    on_nonfinite: str = "drop"

    def __post_init__(self) -> None:
        for what, value, options in (
            ("schedule", self.schedule, SCHEDULES),
            ("precision", self.precision, PRECISIONS),
            ("treatment of missing labels", self.missing, MISSING),
            ("on_nonfinite", self.on_nonfinite, NONFINITE),
            ("sampling", "rows" if self.sampling is None else self.sampling, SAMPLINGS),
        ):
            if value not in options:
                raise InputError(unknown(what, str(value), options))
        if self.own_rows not in (None, True, False):
            raise InputError(f"own_rows must be True, False or None, got {self.own_rows!r}")
        if self.own_rows is not None and self.sampling not in (None, "round" if self.own_rows else "rows"):
            raise InputError(f'own_rows is {self.own_rows} and sampling "{self.sampling}"; give one of the two')
        if (self.sampling == "balanced") != (self.groups is not None):
            raise InputError(
                f'sampling is "{self.sampling}" and groups "{self.groups}"; sampling="balanced" needs groups, the name '
                "of a column of data.keys or of a task with classes, and nothing else does"
            )
        for name in ("batch_size", "max_epochs", "patience", "least_steps", "accumulate"):
            if not _whole(getattr(self, name), least=1):
                raise InputError(f"{name} must be at least 1 and whole, got {getattr(self, name)!r}")
        for name in ("learning_rate", "temperature"):
            if not _finite(getattr(self, name), above=0):
                raise InputError(f"{name} must be a positive number, got {getattr(self, name)!r}")
        if not (_finite(self.weight_decay, above=0) or self.weight_decay == 0):
            raise InputError(f"weight_decay must be 0 or more, got {self.weight_decay!r}")
        if self.clip is not None and not (isinstance(self.clip, Real) and self.clip > 0):
            raise InputError(f"clip must be positive or None, got {self.clip!r}")
        if self.average is not None and not (_finite(self.average, above=0) and self.average < 1):
            raise InputError(f"average must lie between 0 and 1 or be None, got {self.average!r}")
        if not (_whole(self.warm_up, least=0) and self.warm_up < self.max_epochs):
            raise InputError(f"warm_up must be 0 or more epochs, fewer than max_epochs, got {self.warm_up!r}")

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of one step of ``steps``."""
        rising = steps * self.warm_up / self.max_epochs
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        step, steps = step - int(rising), steps - int(rising)
        if self.schedule == "constant":
            return self.learning_rate
        done = step / max(1, steps)
        if self.schedule == "one-cycle":
            if done < 0.1:
                return self.learning_rate * (0.04 + 0.96 * done / 0.1)
            done = (done - 0.1) / 0.9
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))


def _whole(value: object, *, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def _finite(value: object, *, above: float) -> bool:
    return isinstance(value, Real) and math.isfinite(value) and float(value) > above
