"""Kernels of the inputs: k(x, z) = k(||(x - z) / l||²), or the inner product, with gradients for log l.

With r² = sum_j (x_j - z_j)² / l_j²  and one length scale l for all inputs or one per input (ARD):

    rbf        exp(-r² / 2)
    matern32   (1 + sqrt(3) r) exp(-sqrt(3) r)
    matern52   (1 + sqrt(5) r + 5 r² / 3) exp(-sqrt(5) r)
    linear     sum_j x_j z_j / l_j²

Rasmussen & Williams, Gaussian processes for machine learning, 2006, chapter 4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from polytask.core.errors import InputError, unknown
from polytask.core.task import Floats

KERNELS = ("rbf", "matern32", "matern52", "linear")
Kernel = str | Callable[[Floats, Floats], Floats]


def check_kernel(kernel: Any) -> Kernel:
    """Return the argument ``kernel``; refuse what is neither a known name nor a function."""
    if callable(kernel) or kernel in KERNELS:
        return kernel
    if not isinstance(kernel, str):
        raise InputError(f"kernel must be one of {', '.join(KERNELS)} or a function of two arrays, got {kernel!r}")
    raise InputError(unknown("kernel", kernel, KERNELS))


def default_length_scale(X: Floats, weights: Floats) -> float:
    """Return the square root of half the summed variances of the inputs, half of a typical distance of two rows.

    With it the rbf kernel is scikit-learn's with ``gamma="scale"`` where the inputs have the same mean.
    """
    mean = weights @ X / weights.sum()
    total = float(weights @ np.square(X - mean).sum(axis=1)) / float(weights.sum())
    return float(np.sqrt(0.5 * total)) if total > 0 else 1.0


def check_length_scale(length_scale: Any, n_features: int) -> Floats:
    """Return length scales ``(1,)`` or ``(n_features,)``."""
    scale = np.atleast_1d(np.asarray(length_scale, dtype=np.float64))
    if scale.shape not in ((1,), (n_features,)) or not np.isfinite(scale).all() or (scale <= 0).any():
        raise InputError(
            f"length_scale must be a positive number or {n_features} of them, one per column of X, got {length_scale!r}"
        )
    return scale


def kernel_matrix(kernel: Kernel, X: Floats, Z: Floats, length_scale: Floats) -> Floats:
    """Return the kernel between the rows of ``X`` ``(n, d)`` and ``Z`` ``(m, d)``, ``(n, m)``."""
    if callable(kernel):
        found = np.asarray(kernel(X, Z), dtype=np.float64)
        if found.shape != (len(X), len(Z)) or not np.isfinite(found).all():
            raise InputError(
                f"kernel must return finite numbers of shape ({len(X)}, {len(Z)}) for these rows, got {found.shape}"
            )
        return found
    if kernel == "linear":
        return np.asarray((X / length_scale**2) @ Z.T)
    return _profile(kernel, squared_distances(X, Z, length_scale))


def kernel_diagonal(kernel: Kernel, X: Floats, length_scale: Floats) -> Floats:
    """Return k(x, x) of every row, ``(n,)``."""
    if callable(kernel):
        return np.array([kernel_matrix(kernel, row[None], row[None], length_scale)[0, 0] for row in X])
    if kernel == "linear":
        return np.asarray(np.square(X / length_scale).sum(axis=1))
    return np.ones(len(X))


def squared_distances(X: Floats, Z: Floats, length_scale: Floats) -> Floats:
    """Return sum_j (x_j - z_j)² / l_j² between rows, ``(n, m)``; exactly 0 on the diagonal where Z is X."""
    centre = Z.mean(axis=0) if len(Z) else 0.0  # keeps the differences of large numbers small
    A = (X - centre) / length_scale
    B = A if X is Z else (Z - centre) / length_scale
    found = A @ B.T
    found *= -2.0
    found += np.square(A).sum(axis=1)[:, None]
    found += np.square(B).sum(axis=1)
    np.maximum(found, 0.0, out=found)
    if X is Z:
        np.fill_diagonal(found, 0.0)
    return np.asarray(found)


def _profile(kernel: str, square: Floats) -> Floats:
    """Return k as a function of r²."""
    if kernel == "rbf":
        return np.exp(-0.5 * square)
    if kernel == "matern32":
        root = np.sqrt(3.0 * square)
        return np.asarray((1.0 + root) * np.exp(-root))
    root = np.sqrt(5.0 * square)
    return np.asarray((1.0 + root + root * root / 3.0) * np.exp(-root))


def _slope(kernel: str, square: Floats) -> Floats:
    """Return dk / dr², which is finite at 0."""
    if kernel == "rbf":
        return np.asarray(-0.5 * np.exp(-0.5 * square))
    if kernel == "matern32":
        return np.asarray(-1.5 * np.exp(-np.sqrt(3.0 * square)))
    root = np.sqrt(5.0 * square)
    return np.asarray(-5.0 / 6.0 * (1.0 + root) * np.exp(-root))


def length_scale_gradient(kernel: str, X: Floats, length_scale: Floats, weights: Floats) -> Floats:
    """Return sum_ij weights_ij dk(x_i, x_j) / dlog l, in the shape of ``length_scale``.

    Parameters
    ----------
    weights
        Symmetric, ``(n, n)``.
    """
    if kernel == "linear":
        A = X / length_scale
        each = -2.0 * ((weights @ A) * A).sum(axis=0)
    else:
        # dk / dlog l_j = -2 dk/dr² (x_j - z_j)² / l_j², and the sum over pairs is one matrix product
        A = (X - X.mean(axis=0)) / length_scale
        product = weights * _slope(kernel, squared_distances(X, X, length_scale))
        if len(length_scale) == 1:
            return np.array([-2.0 * float((product * squared_distances(X, X, length_scale)).sum())])
        each = -4.0 * (product.sum(axis=1) @ np.square(A) - ((product @ A) * A).sum(axis=0))
    return np.asarray(each if len(length_scale) == len(each) else [each.sum()], dtype=np.float64)
