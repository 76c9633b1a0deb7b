"""Affinity of tasks: how alike their coefficient vectors are.

    correlation:  A[s, t] = cor_j(W[j, s], W[j, t])          cosine:  A[s, t] = w_s^T w_t / (||w_s|| ||w_t||)

W: (d features, T tasks). Coefficients should be of standardised inputs and targets, so that large
units do not decide.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polytask.core.errors import InputError
from polytask.core.relation import Relation
from polytask.core.task import Floats

_MEASURES = ("correlation", "cosine")


def coefficient_affinity(
    coef: Relation | Floats, *, names: Sequence[str] | None = None, measure: str = "correlation"
) -> Relation:
    """Return the tasks × tasks affinity of coefficient vectors.

    Parameters
    ----------
    coef
        Coefficients ``(d, T)``, or a relation of kind ``coefficients``, which brings its names.
    names
        Names of the tasks; default ``task 0`` ….
    measure
        ``"correlation"`` or ``"cosine"``.

    Returns
    -------
    Relation
        Kind ``correlation``, symmetric, entries -1 … 1, 1 on the diagonal. A vector that is all zero
        (or, for correlation, does not vary) has affinity 0 to the others.

    Raises
    ------
    InputError
        For another measure, a matrix that is not 2-d and finite, or names that do not fit.
    """
    if measure not in _MEASURES:
        raise InputError(f'measure must be "correlation" or "cosine", got "{measure}"')
    if isinstance(coef, Relation):
        if coef.kind != "coefficients":
            raise InputError(f'coef is a relation of kind "{coef.kind}"; give one of kind "coefficients"')
        if names is None:
            names = coef.columns
        values = coef.values
    else:
        values = np.asarray(coef, dtype=np.float64)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise InputError(f"coef must be a 2-d array of finite numbers (features, tasks), got shape {values.shape}")
    tasks = tuple(names) if names is not None else tuple(f"task {number}" for number in range(values.shape[1]))
    if len(tasks) != values.shape[1]:
        raise InputError(f"names has {len(tasks)} entries for {values.shape[1]} tasks")
    about = (
        "Correlation over inputs of the tasks' coefficients: 1 means the inputs act alike on both tasks."
        if measure == "correlation"
        else "Cosine between the tasks' coefficient vectors: 1 means the inputs act alike on both tasks."
    )
    return Relation("correlation", _similarity(values.T, centre=measure == "correlation"), tasks, tasks, about)


def _similarity(vectors: Floats, *, centre: bool) -> Floats:
    """Return the cosines of the rows, centred or not."""
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0.0)
    scaled = vectors / np.where(largest > 0, largest, 1.0)  # no overflow, and no vector too small to square
    if centre:
        scaled = scaled - scaled.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(scaled, axis=1)
    varying = norms > 1e-12 * np.sqrt(max(vectors.shape[1], 1))
    unit = np.where(varying[:, None], scaled / np.where(varying, norms, 1.0)[:, None], 0.0)
    matrix = np.clip(unit @ unit.T, -1.0, 1.0)
    matrix = 0.5 * (matrix + matrix.T)
    np.fill_diagonal(matrix, 1.0)
    return np.asarray(matrix)
