"""Systems B (x) K + noise: the Kronecker form is the dense one, and both are the matrix written out."""

from __future__ import annotations

import numpy as np
import pytest

from polytask.core.errors import InputError
from polytask.linear.solvers.task_kernel import (
    Cells,
    DenseSystem,
    KroneckerSystem,
    cell_covariance,
    solve_with_intercepts,
    task_kernel_system,
)


def covariance(rng, size, rank=None):
    A = rng.normal(size=(size, rank or size))
    return A @ A.T


def full(seed=0, T=4, n=9):
    rng = np.random.default_rng(seed)
    cells = Cells(np.tile(np.arange(n), T), np.repeat(np.arange(T), n), rng.normal(size=T * n), np.ones(T * n), n, T)
    return cells, covariance(rng, T), covariance(rng, n), rng.uniform(0.1, 2.0, T), rng


def some(seed=0, T=4, n=9):
    """Half of the cells, each row and task with at least one."""
    cells, B, K, noise, rng = full(seed, T, n)
    kept = np.flatnonzero((rng.random(T * n) < 0.5) | (cells.rows % T == cells.tasks))
    part = Cells(cells.rows[kept], cells.tasks[kept], cells.values[kept], rng.uniform(0.5, 2.0, len(kept)), n, T)
    return part, B, K, noise[part.tasks] / part.weights, rng


def written_out(cells, B, K, noise):
    return B[cells.tasks][:, cells.tasks] * K[cells.rows][:, cells.rows] + np.diag(noise)


@pytest.mark.parametrize("rank", [4, 1])
def test_kronecker_form_equals_the_dense_system(rank):
    cells, _, K, noise, rng = full()
    B = covariance(rng, 4, rank)
    quick, dense = KroneckerSystem(B, K, noise), DenseSystem(cells, [B], [K], noise[cells.tasks])
    assert quick.logdet == pytest.approx(dense.logdet, abs=1e-8)
    solved = dense.solve(cells.values)
    np.testing.assert_allclose(quick.solve(cells.values), solved, atol=1e-8)
    np.testing.assert_allclose(quick.between_tasks(), dense.between_tasks(), atol=1e-8)
    cross = rng.normal(size=(5, 9))
    for tasks in (None, np.array([3, 0, 0, 2, 1])):
        np.testing.assert_allclose(quick.explained([cross], tasks), dense.explained([cross], tasks), atol=1e-8)
    for mine, theirs in zip(quick.gradient(solved), dense.gradient(solved), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-8)


@pytest.mark.parametrize("make", [full, some])
def test_solutions_and_determinants_are_those_of_the_matrix_written_out(make):
    cells, B, K, noise, _ = make(1)
    per_cell = noise if len(noise) == len(cells.rows) else noise[cells.tasks]
    A = written_out(cells, B, K, per_cell)
    system = task_kernel_system(cells, [B], [K], per_cell)
    assert isinstance(system, KroneckerSystem) == (make is full)
    np.testing.assert_allclose(system.solve(cells.values), np.linalg.solve(A, cells.values), atol=1e-9)
    assert system.logdet == pytest.approx(np.linalg.slogdet(A)[1])


def test_several_kernels_add_up():
    cells, B, K, noise, rng = some(2)
    C, J = covariance(rng, 4), covariance(rng, 9)
    A = written_out(cells, B, K, noise) + written_out(cells, C, J, 0 * noise)
    system = DenseSystem(cells, [B, C], [K, J], noise)
    np.testing.assert_allclose(system.solve(cells.values), np.linalg.solve(A, cells.values), atol=1e-9)
    np.testing.assert_allclose(cell_covariance(cells, [B, C], [K, J]) + np.diag(noise), A)


@pytest.mark.parametrize("intercepts", ["own", "common", "none"])
@pytest.mark.parametrize("make", [full, some])
def test_intercepts_solve_the_bordered_system(make, intercepts):
    cells, B, K, noise, _ = make(3)
    per_cell = noise if len(noise) == len(cells.rows) else noise[cells.tasks]
    A = written_out(cells, B, K, per_cell)
    E = {"own": np.eye(4)[cells.tasks], "common": np.ones((len(A), 1)), "none": np.zeros((len(A), 0))}[intercepts]
    k = E.shape[1]
    bordered = np.block([[A, E], [E.T, np.zeros((k, k))]])
    found = np.linalg.solve(bordered, np.concatenate([cells.values, np.zeros(k)]))
    a, b = solve_with_intercepts(task_kernel_system(cells, [B], [K], per_cell), cells, intercepts)
    np.testing.assert_allclose(a, found[: len(A)], atol=1e-9)
    np.testing.assert_allclose(b, {"own": found[len(A) :], "common": found[-1] * np.ones(4)}.get(intercepts, 0 * b))


def test_large_cross_covariances_are_explained_in_pieces(monkeypatch):
    cells, B, K, noise, rng = some(4)
    system, cross = DenseSystem(cells, [B], [K], noise), rng.normal(size=(50, 9))
    tasks = rng.integers(0, 4, 50)
    whole = system.explained([cross], None), system.explained([cross], tasks)
    monkeypatch.setattr("polytask.linear.solvers.task_kernel._CHUNK", 100)
    np.testing.assert_allclose(system.explained([cross], None), whole[0])
    np.testing.assert_allclose(system.explained([cross], tasks), whole[1])
    np.testing.assert_allclose(whole[0][np.arange(50), tasks], whole[1])


def test_rounding_is_mended_and_indefinite_matrices_are_refused():
    n = 30
    cells = Cells(np.arange(n), np.zeros(n, dtype=np.int64), np.ones(n), np.ones(n), n, 1)
    low = covariance(np.random.default_rng(0), n, 2)
    system = DenseSystem(cells, [np.ones((1, 1))], [low], np.full(n, 1e-300))
    assert np.isfinite(system.solve(low[0])).all()
    with pytest.raises(InputError, match="not positive definite"):
        DenseSystem(cells, [np.ones((1, 1))], [-np.eye(n)], np.full(n, 0.1))
