"""Which rows a step sees: a data set as tensors on one device, and the batches of one epoch.

Two ways to draw a batch of b rows from n rows and T tasks:

- *row batches*: b rows for all tasks at once. Inputs ``(b, …)``, targets and presence ``(T, b)``;
  a missing label is ``present[t, i] = False``. An epoch sees every row that has a label once.
- *own rows*: every task draws b of its own labelled rows. Inputs ``(T, b, …)``. Each task walks
  through permutations of its rows, drawn anew every epoch; a task that runs out starts again. An
  epoch is ``ceil(m / (T' b))`` steps, m labels over T' tasks that have any: it draws about as many
  labels as there are, the small tasks' more than once and the large tasks' in part.
  For T schools with one label per row this costs m rows of work per epoch, not T·m.

The order depends on (seed, epoch) and, for own rows, on the task's name, and on nothing else: an epoch can be
drawn again after a restart, and a task's draws do not depend on which other tasks there are.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polytask.core.data import Array, Ints, TaskData
from polytask.core.errors import InputError
from polytask.core.scaling import TargetScaler
from polytask.core.task import Floats

_CELLS = 1 << 18
"""Most rows × tasks of a table scored in one evaluation call."""
_PIXELS = 1 << 20
"""Most rows × tasks × values per image scored in one evaluation call."""


@dataclass(frozen=True)
class Batch:
    """Inputs ``(B, …)`` or ``(T, B, …)``, targets and presence ``(T, B)``, row numbers ``(B,)`` or ``(T, B)``."""

    inputs: dict[str, Tensor]
    targets: Tensor
    present: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Share:
    """A part of every batch: rows ``number``, ``number + of``, ``number + 2 of``, … of it."""

    number: int = 0
    of: int = 1

    @property
    def rows(self) -> slice:
        return slice(self.number, None, self.of)


ALL = Share()


def inputs_of(data: TaskData) -> dict[str, Any]:
    """Return what an encoder must know of encoded inputs, as plain data.

    ``{"image": [C, H, W]}`` for images, ``{"n_numeric": p, "cardinalities": [...]}`` for tables.

    Raises
    ------
    InputError
        When there are neither images nor an encoded table, or both.
    """
    if "image" in data.inputs:
        if len(data.inputs) > 1:
            raise InputError(f"inputs has {sorted(data.inputs)}; networks read images or a table, not both at once")
        shape = data.inputs["image"].shape
        if len(shape) != 4:
            raise InputError(f'the input "image" has shape {shape}; networks read (rows, channels, height, width)')
        return {"image": [int(size) for size in shape[1:]]}
    if "numeric" not in data.inputs:
        raise InputError(
            f'inputs has {sorted(data.inputs)} but no "numeric" (encode the table first: TableEncoder) and no "image"'
        )
    shape = data.inputs["numeric"].shape
    if len(shape) != 2:
        raise InputError(f'the input "numeric" has shape {shape}; networks read (rows, columns)')
    return {"n_numeric": int(shape[1]), "cardinalities": [int(size) for size in data.cardinalities]}


def place_inputs(data: TaskData, device: torch.device) -> dict[str, Tensor]:
    """Return the encoded inputs as tensors on ``device``: float32, int64 codes, and images of bytes as they are.

    Raises
    ------
    InputError
        When there is no ``"numeric"`` or ``"image"`` input, a number is not finite in float32, or a code is not
        below its column's cardinality.
    """
    if "image" in inputs_of(data):
        return {"image": _place_images(data.inputs["image"], device)}
    with np.errstate(over="ignore"):
        numeric = np.ascontiguousarray(data.inputs["numeric"], dtype=np.float32)
    if not np.isfinite(numeric).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(numeric))[0])
        value = data.inputs["numeric"][row, column]
        raise InputError(
            f'feature "{_feature(data, "numeric", column)}" is {value} in row {row}; networks need finite numbers '
            "(encode the table first)"
        )
    found = {"numeric": torch.from_numpy(numeric).to(device)}
    if "categorical" in data.inputs:
        codes = np.ascontiguousarray(data.inputs["categorical"], dtype=np.int64)
        if codes.ndim != 2 or codes.shape[1] != len(data.cardinalities):
            raise InputError(
                f'the input "categorical" has shape {codes.shape}, but cardinalities has {len(data.cardinalities)}'
            )
        wrong = (codes < 0) | (codes >= np.array(data.cardinalities, dtype=np.int64))
        if wrong.any():
            row, column = (int(i) for i in np.argwhere(wrong)[0])
            raise InputError(
                f'feature "{_feature(data, "categorical", column)}" has code {codes[row, column]} in row {row}; '
                f"codes are 0 … {data.cardinalities[column] - 1}"
            )
        found["categorical"] = torch.from_numpy(codes).to(device)
    return found


def _place_images(images: Array, device: torch.device) -> Tensor:
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise InputError(f'the input "image" has type {images.dtype}; give uint8 (0 … 255) or finite floats')
    stored = np.require(images, np.uint8 if images.dtype == np.uint8 else np.float32, ["C", "W"])
    if stored.dtype == np.float32 and not np.isfinite(stored).all():
        row = int(np.argwhere(~np.isfinite(stored))[0][0])
        raise InputError(f"image {row} has a pixel that is not finite; networks need finite numbers")
    return torch.from_numpy(stored).to(device)


def read_rows(inputs: Mapping[str, Tensor], index: Tensor | slice) -> dict[str, Tensor]:
    """Return rows of placed inputs as a network reads them: bytes 0 … 255 become floats 0 … 1."""
    if isinstance(index, Tensor) and index.ndim == 1:  # the common case, for which there is a quicker kernel
        rows = {name: array.index_select(0, index) for name, array in inputs.items()}
    else:
        rows = {name: array[index] for name, array in inputs.items()}
    return {name: array.float() / 255 if array.dtype == torch.uint8 else array for name, array in rows.items()}


def rows_at_once(inputs: Mapping[str, Tensor], n_tasks: int) -> int:
    """Return how many rows of placed inputs are scored in one evaluation call, to bound memory."""
    if "image" in inputs:
        return max(8, _PIXELS // (n_tasks * inputs["image"].shape[1:].numel()))
    return max(64, _CELLS // n_tasks)


def _feature(data: TaskData, group: str, column: int) -> str:
    names = data.features.get(group, ())
    return names[column] if column < len(names) else f"{group} {column}"


class Placed:
    """Inputs and standardised labels of one data set on one device.

    Parameters
    ----------
    data
        Encoded data.
    scaler
        Applied to the targets of regression tasks.
    device
        Where the tensors live.
    dtype
        Of targets and numeric inputs: float32, or float64.
    """

    def __init__(
        self, data: TaskData, scaler: TargetScaler, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self.names = data.names
        self.n_tasks, self.n_rows = len(data.tasks), data.n_rows
        self.inputs = place_inputs(data, device)
        if dtype == torch.float64 and "numeric" in self.inputs:
            self.inputs["numeric"] = torch.from_numpy(np.asarray(data.inputs["numeric"], np.float64)).to(device)
        self.device = device
        rows, number, values = data.stacked()
        sizes = np.array([len(data.labels[name]) for name in data.names], dtype=np.int64)
        starts = np.concatenate([[0], np.cumsum(sizes)])
        values = values.copy()
        for task in range(self.n_tasks):
            part = slice(int(starts[task]), int(starts[task + 1]))
            values[part] = scaler.apply(task, values[part])
        self.sizes, self.starts = sizes, starts
        self.labelled_rows = np.unique(rows)
        self.label_rows = torch.from_numpy(rows).to(device)
        self.label_values = torch.from_numpy(values).to(device, dtype)
        self.trained = torch.from_numpy(sizes > 0).to(device)
        self.numbers = torch.arange(self.n_tasks, device=device)
        self.single = data.one_task_per_row
        if self.single:  # (n,): one target per row and whose it is
            self.task_of_row = torch.full((self.n_rows,), -1, dtype=torch.int64, device=device)
            self.task_of_row[self.label_rows] = torch.from_numpy(number.astype(np.int64)).to(device)
            self.target_of_row = torch.zeros(self.n_rows, device=device, dtype=dtype)
            self.target_of_row[self.label_rows] = self.label_values
        else:  # (n, T): rows are gathered, so they come first
            self.targets = torch.zeros((self.n_rows, self.n_tasks), device=device, dtype=dtype)
            self.present = torch.zeros((self.n_rows, self.n_tasks), dtype=torch.bool, device=device)
            where = (self.label_rows, torch.from_numpy(number.astype(np.int64)).to(device))
            self.targets[where] = self.label_values
            self.present[where] = True

    def row_batch(self, index: Tensor) -> Batch:
        """Return these rows for all tasks, ``index`` ``(B,)``."""
        inputs = read_rows(self.inputs, index)
        if self.single:
            present = self.task_of_row.index_select(0, index) == self.numbers[:, None]
            return Batch(inputs, self.target_of_row.index_select(0, index) * present, present, index)
        targets = self.targets.index_select(0, index).T
        return Batch(inputs, targets, self.present.index_select(0, index).T, index)

    def own_batch(self, position: Tensor, present: Tensor) -> Batch:
        """Return each task's own rows; ``position`` ``(T, B)`` counts labels sorted by task, then row."""
        rows = self.label_rows[position]
        inputs = read_rows(self.inputs, rows)
        return Batch(inputs, self.label_values[position] * present, present, rows)

    def everything(self, own_rows: bool) -> Iterator[Batch]:
        """Yield every label once, in few large batches, in a fixed order."""
        width = rows_at_once(self.inputs, self.n_tasks)
        if not own_rows:
            index = torch.from_numpy(self.labelled_rows).to(self.device)
            for start in range(0, len(index), width):
                yield self.row_batch(index[start : start + width])
            return
        first = torch.from_numpy(self.starts[:-1]).to(self.device)[:, None]
        size = torch.from_numpy(self.sizes).to(self.device)[:, None]
        for start in range(0, int(self.sizes.max(initial=0)), width):
            stop = min(start + width, int(self.sizes.max()))
            offset = torch.arange(start, stop, device=self.device)[None, :]
            present = offset < size
            yield self.own_batch(torch.where(present, first + offset, 0), present)

    def describe(self) -> Mapping[str, Floats]:
        """Return what the data consist of, for fingerprints: inputs, label rows and values as arrays."""
        arrays = {f"inputs.{name}": array.cpu().numpy() for name, array in self.inputs.items()}
        return {
            **arrays,
            "rows": self.label_rows.cpu().numpy(),
            "values": self.label_values.cpu().numpy(),
            "sizes": self.sizes,
        }


class Sampler:
    """The batches of every epoch, drawn from a seed (see the module's text).

    Parameters
    ----------
    data
        Placed training data.
    batch_size
        Most rows per step (per task with own rows). Smaller tables get smaller batches, down to 8
        rows, so that an epoch has at least ``least_steps`` steps.
    own_rows
        Whether every task draws its own rows.
    seed
        Same seed, same batches.
    least_steps
        See ``batch_size``.
    """

    def __init__(self, data: Placed, *, batch_size: int, own_rows: bool, seed: int, least_steps: int = 10) -> None:
        self.data, self.own_rows, self.seed = data, own_rows, seed
        tasks = max(1, int((data.sizes > 0).sum()))
        count = int(data.sizes.sum()) / tasks if own_rows else len(data.labelled_rows)
        size = min(batch_size, max(8, int(np.ceil(count / least_steps))))
        self.steps = int(np.ceil(count / size)) if count else 0
        """Steps of one epoch."""
        self.batch_size = size
        self.epoch = -1
        self._order = torch.zeros(0, dtype=torch.int64)
        self._present = data.trained[:, None].expand(data.n_tasks, size)

    def start(self, epoch: int) -> None:
        """Draw the order of one epoch."""
        self.epoch = epoch
        if self.own_rows:
            drawn = self.steps * self.batch_size
            order = np.zeros((self.data.n_tasks, drawn), dtype=np.int64)
            for task, name in enumerate(self.data.names):
                size = int(self.data.sizes[task])
                if size:
                    rng = np.random.default_rng([self.seed, epoch, zlib.crc32(name.encode())])
                    rounds = [rng.permutation(size) for _ in range(-(-drawn // size))]
                    order[task] = np.concatenate(rounds)[:drawn] + self.data.starts[task]
        else:
            rng = np.random.default_rng([self.seed, epoch])
            order = rng.permutation(self.data.labelled_rows)
        self._order = torch.from_numpy(order).to(self.data.device)

    @property
    def fewest(self) -> int:
        """Rows of the smallest batch (per task with own rows)."""
        return self.batch_size if self.own_rows else len(self.data.labelled_rows) // max(1, self.steps)

    @property
    def labels(self) -> Ints:
        """Labels of each task that an epoch sees, ``(T,)``."""
        return (self.data.sizes > 0) * self.steps * self.batch_size if self.own_rows else self.data.sizes

    def batch(self, step: int, share: Share = ALL) -> Batch:
        """Return (a part of) the batch of one step of the epoch that :meth:`start` drew."""
        if self.own_rows:
            order = self._order[:, step * self.batch_size : (step + 1) * self.batch_size]
            return self.data.own_batch(order[:, share.rows], self._present[:, share.rows])
        rows = len(self._order)  # steps differ by one row at most
        order = self._order[rows * step // self.steps : rows * (step + 1) // self.steps]
        return self.data.row_batch(order[share.rows])
