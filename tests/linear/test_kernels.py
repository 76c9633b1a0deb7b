"""Kernels of the inputs: scikit-learn's values, gradients by differences, positive semidefinite, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.gaussian_process.kernels import RBF, Matern
from sklearn.metrics.pairwise import rbf_kernel

from polytask.core.errors import InputError
from polytask.linear.kernels import (
    KERNELS,
    check_kernel,
    check_length_scale,
    default_length_scale,
    kernel_diagonal,
    kernel_matrix,
    length_scale_gradient,
    squared_distances,
)

REFERENCE = {
    "rbf": lambda scale: RBF(scale),
    "matern32": lambda scale: Matern(scale, nu=1.5),
    "matern52": lambda scale: Matern(scale, nu=2.5),
}


def rows(seed=0, n=12, d=3, offset=0.0):
    return np.random.default_rng(seed).normal(size=(n, d)) + offset


@pytest.mark.parametrize("name", sorted(REFERENCE))
@pytest.mark.parametrize("scale", [np.array([0.7]), np.array([0.5, 1.0, 3.0])])
def test_values_are_scikit_learns(name, scale):
    X, Z = rows(), rows(1, 7)
    np.testing.assert_allclose(kernel_matrix(name, X, Z, scale), REFERENCE[name](scale)(X, Z), atol=1e-13)


def test_the_linear_kernel_is_the_inner_product_of_scaled_inputs():
    X, Z, scale = rows(), rows(1, 7), np.array([0.5, 1.0, 3.0])
    np.testing.assert_allclose(kernel_matrix("linear", X, Z, scale), (X / scale) @ (Z / scale).T)


@pytest.mark.parametrize("name", KERNELS)
def test_the_diagonal_is_that_of_the_matrix(name):
    X, scale = rows(), np.array([0.7])
    np.testing.assert_allclose(kernel_diagonal(name, X, scale), np.diag(kernel_matrix(name, X, X, scale)))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("scale", [np.array([0.9]), np.array([0.5, 1.0, 3.0])])
def test_gradient_for_the_length_scales_is_that_of_differences(name, scale):
    X = rows(2, offset=5.0)
    weights = np.random.default_rng(3).normal(size=(12, 12))
    weights = weights + weights.T

    def total(log_scale):
        return (weights * kernel_matrix(name, X, X, np.exp(log_scale))).sum()

    step = 1e-6 * np.eye(len(scale))
    differences = [(total(np.log(scale) + s) - total(np.log(scale) - s)) / 2e-6 for s in step]
    np.testing.assert_allclose(length_scale_gradient(name, X, scale, weights), differences, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_matrices_are_positive_semidefinite(name):
    X = np.concatenate([rows(4), rows(4)])  # with repeated rows
    assert np.linalg.eigvalsh(kernel_matrix(name, X, X, np.array([2.0]))).min() > -1e-12


def test_inputs_far_from_zero_keep_their_distances():
    X = rows(5)
    far = squared_distances(X + 1e6, X + 1e6, np.ones(1))
    np.testing.assert_allclose(far, squared_distances(X, X, np.ones(1)), atol=1e-8)
    assert (np.diag(far) == 0).all()


def test_default_length_scale_is_scikit_learns_gamma_scale_and_counts_weights_as_rows():
    X = rows(6, n=50)
    X -= X.mean(axis=0)
    scale = default_length_scale(X, np.ones(50))
    np.testing.assert_allclose(kernel_matrix("rbf", X, X, np.array([scale])), rbf_kernel(X, gamma=1 / (3 * X.var())))
    times = np.random.default_rng(0).integers(1, 4, 50)
    weighted = default_length_scale(X, times.astype(float))
    assert weighted == pytest.approx(default_length_scale(np.repeat(X, times, axis=0), np.ones(times.sum())))
    assert default_length_scale(np.ones((4, 2)), np.ones(4)) == 1.0


def test_wrong_kernels_and_length_scales_are_named():
    with pytest.raises(InputError, match='Did you mean "rbf"'):
        check_kernel("rbs")
    with pytest.raises(InputError, match="a function of two arrays"):
        check_kernel(3)
    with pytest.raises(InputError, match="length_scale must be a positive number or 3"):
        check_length_scale([1.0, 2.0], 3)
    with pytest.raises(InputError, match="length_scale"):
        check_length_scale(0.0, 3)
    with pytest.raises(InputError, match="kernel must return finite numbers of shape"):
        kernel_matrix(lambda X, Z: np.zeros((2, 2)), rows(), rows(), np.ones(1))
