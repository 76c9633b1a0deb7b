"""The fitted network as a :class:`~polytask.core.learner.Model`: plain settings plus named arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch

from polytask.core.data import TaskData
from polytask.core.errors import InputError, ModelRefusedError
from polytask.core.learner import Arrays, Model
from polytask.core.relation import Relation
from polytask.core.scaling import TargetScaler
from polytask.core.task import Floats, Multiclass, Task
from polytask.deep.base import SharingNetwork
from polytask.train.batches import inputs_of, place_inputs, read_rows, rows_at_once
from polytask.train.networks import build

_RELATED_ROWS = 500


class NetworkModel(Model):
    """A trained network.

    Parameters
    ----------
    tasks
        The tasks.
    network
        The trained network; its weights are not changed.
    description
        How to build it again (:func:`~polytask.train.networks.build`).
    scaler
        How regression targets were standardised.
    constants
        Scores that replace the network's for tasks without any training label, ``(T, K)``; NaN where the
        network speaks.
    history
        Learning curves, see :meth:`polytask.core.learner.Model.history`.
    alike
        Correlation of the tasks' predictions, or None.
    """

    def __init__(
        self,
        tasks: tuple[Task, ...],
        network: SharingNetwork,
        description: Mapping[str, Any],
        *,
        scaler: TargetScaler,
        constants: Floats,
        history: Mapping[str, Any],
        alike: Relation | None = None,
    ) -> None:
        super().__init__(tasks)
        self.network, self.description = network.eval(), dict(description)
        self.scaler, self.constants = scaler, constants
        self._history, self._alike = dict(history), alike

    def predict(self, data: TaskData) -> dict[str, Floats]:
        scores = self._scores(data)
        found = {}
        for number, task in enumerate(self.tasks):
            constant = self.constants[number, : task.n_outputs]
            if np.isnan(constant).any():
                found[task.name] = self.scaler.undo(number, scores[number, :, : task.n_outputs].astype(np.float64))
            else:
                found[task.name] = np.tile(constant, (data.n_rows, 1))
        return found

    def _scores(self, data: TaskData) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the network's scores ``(T, n, K)``, standardised."""
        self._check(data)
        device = next(self.network.parameters()).device
        inputs = place_inputs(data, device)
        width = rows_at_once(inputs, len(self.tasks))
        parts = []
        with torch.no_grad():
            for start in range(0, max(1, data.n_rows), width):
                piece = read_rows(inputs, slice(start, start + width))
                parts.append(self.network.all_scores(piece).cpu().numpy())
        return np.concatenate(parts, axis=1)

    def _check(self, data: TaskData) -> None:
        got = inputs_of(data)
        expected = {name: self.description.get(name) for name in got}
        if got != expected:
            raise InputError(
                f"the model was trained on {_said(self.description)}, but the data have {_said(got)}; give the "
                "same, a table encoded with the encoder of training"
            )

    def state(self) -> tuple[dict[str, Any], Arrays]:
        arrays = {f"network.{name}": value.cpu().numpy().copy() for name, value in self.network.state_dict().items()}
        arrays |= {"scaler.mean": self.scaler.mean, "scaler.scale": self.scaler.scale, "constants": self.constants}
        plain = {
            "network": self.description,
            "history": self._history,
            "alike": None if self._alike is None else self._alike.to_json(),
        }
        return plain, arrays

    @classmethod
    def from_state(cls, tasks: tuple[Task, ...], description: Mapping[str, Any], arrays: Mapping[str, Any]) -> Self:
        try:
            network = build(tasks, description["network"])
            wanted = {name: np.asarray(arrays[f"network.{name}"]) for name in network.state_dict()}
            network.load_state_dict({name: torch.tensor(array) for name, array in wanted.items()})
            alike = description.get("alike")
            return cls(
                tasks,
                network,
                description["network"],
                scaler=TargetScaler(np.asarray(arrays["scaler.mean"]), np.asarray(arrays["scaler.scale"])),
                constants=np.asarray(arrays["constants"], dtype=np.float64),
                history=description["history"],
                alike=None if alike is None else Relation.from_json(alike),
            )
        except (KeyError, TypeError, RuntimeError) as error:  # load_state_dict reports wrong shapes as RuntimeError
            raise ModelRefusedError(f"the model folder does not describe a network of this version: {error}") from error

    def relations(self) -> dict[str, Relation]:
        found = dict(self.network.relations())
        if self._alike is not None:
            found["predictions"] = self._alike
        return found

    def history(self) -> dict[str, Any]:
        return self._history

    def with_alike(self, data: TaskData) -> NetworkModel:
        """Return the model with the correlation of its predictions on (at most 500 evenly spaced) rows of ``data``.

        Tasks whose prediction is not one number (multiclass) or does not vary are left out. An ordinal task counts
        with the mean of its cumulative logits.
        """
        rows = np.unique(np.linspace(0, data.n_rows - 1, min(data.n_rows, _RELATED_ROWS)).astype(np.int64))
        scores = self._scores(data.rows(rows)).astype(np.float64)
        names, columns = [], []
        for number, task in enumerate(self.tasks):
            if isinstance(task, Multiclass) or not np.isnan(self.constants[number]).any():
                continue
            column = scores[number, :, : task.n_outputs].mean(axis=1)
            column = column - column.mean()
            length = float(np.linalg.norm(column))
            if length > 1e-6 * np.sqrt(len(rows)):
                names.append(task.name)
                columns.append(column / length)
        alike = None
        if len(names) > 1:
            values = np.clip(np.stack(columns) @ np.stack(columns).T, -1.0, 1.0)
            np.fill_diagonal(values, 1.0)
            about = "correlation of two tasks' predictions over the same rows: 1 = the tasks are predicted alike"
            alike = Relation("correlation", values, tuple(names), tuple(names), about)
        return NetworkModel(
            self.tasks,
            self.network,
            self.description,
            scaler=self.scaler,
            constants=self.constants,
            history=self._history,
            alike=alike,
        )


def _said(inputs: Mapping[str, Any]) -> str:
    if "image" in inputs:
        return "images of {} channels, {} x {}".format(*inputs["image"])
    return f"{inputs['n_numeric']} numeric columns and categorical columns with {list(inputs['cardinalities'])} codes"
