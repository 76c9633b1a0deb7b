"""Which rows of the coefficient matrix are which task: one row per task, and one per class of a multinomial task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytask.core.data import Ints
from polytask.core.task import Floats
from polytask.linear.layout import Layout
from polytask.linear.moments import Block


@dataclass(frozen=True)
class Outputs:
    """Rows of coefficients of T tasks, some of them multinomial.

    Parameters
    ----------
    names
        Name of each row: the task, or ``task=class``.
    task
        Task of each row, ``(n_rows,)``.
    first
        First row of each task, ``(T,)``.
    multinomial
        Whether a task is multinomial, ``(T,)``.
    classes
        Task number to its classes, in the order of its rows.
    """

    names: NDArray[Any]
    task: Ints
    first: Ints
    multinomial: NDArray[np.bool_]
    classes: dict[int, Floats]

    def rows(self, task: int) -> Ints:
        """Return the rows of a task."""
        return np.flatnonzero(self.task == task)

    def groups(self) -> tuple[Ints, ...]:
        """Return the rows of each multinomial task."""
        return tuple(self.rows(task) for task in self.classes)

    def decide(self, scores: Floats, logistic: NDArray[np.bool_]) -> Floats:
        """Return the predictions ``(n, T)`` for scores ``(n, n_rows)``: a number, 0 or 1, or the class."""
        known = np.where(logistic, scores > 0, scores)[:, self.first]
        for task, classes in self.classes.items():
            known[:, task] = classes[np.argmax(scores[:, self.rows(task)], axis=1)]
        return np.asarray(known, dtype=np.float64)


def expand(layout: Layout, multinomial: Sequence[bool]) -> tuple[Layout, Outputs]:
    """Replace every multinomial column by one column 0/1 per class; the layout's names are then those of the rows.

    A multinomial task without rows has one row of coefficients and no class.
    """
    classes: dict[int, Floats] = {}
    for block in layout.blocks:
        for column, task in zip(block.Y.T, block.outputs.tolist(), strict=True):
            if multinomial[task]:
                classes[task] = np.unique(column)
    sizes = np.array([len(classes.get(task, (0,))) for task in range(len(multinomial))])
    first = np.cumsum(sizes) - sizes
    owner = np.repeat(np.arange(len(sizes)), sizes)
    names = layout.names.tolist()
    labels = [
        f"{name}={value:g}" if multinomial[task] else str(name)
        for task, name in enumerate(names)
        for value in classes.get(task, (0.0,))
    ]
    outputs = Outputs(
        np.array(labels), owner, first, np.asarray(multinomial, dtype=np.bool_), dict(sorted(classes.items()))
    )
    blocks = []
    for block in layout.blocks:
        plain = ~outputs.multinomial[block.outputs]
        if plain.any():
            blocks.append(Block(block.X, block.weights, block.Y[:, plain], first[block.outputs[plain]]))
        for column, task in zip(block.Y.T, block.outputs.tolist(), strict=True):
            if multinomial[task]:
                members = (column[:, None] == classes[task]).astype(np.float64)
                blocks.append(Block(block.X, block.weights, members, outputs.rows(task)))
    constant = layout.constant[owner]
    return replace(layout, blocks=blocks, names=outputs.names, constant=constant), outputs
