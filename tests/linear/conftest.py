"""Small problems and independent oracles for the tests of learned task relationships."""

from __future__ import annotations

import numpy as np
import pytest


class Problems:
    """Data, losses by the definition, and optima by a general convex solver."""

    @staticmethod
    def stacked(seed=0, sizes=(14, 9, 20, 11, 16), d=6, noise=0.5, rank=2):
        """Rows of tasks whose coefficients span ``rank`` directions; returns X, y, tasks."""
        rng = np.random.default_rng(seed)
        tasks = np.repeat(np.arange(len(sizes)), sizes)
        X = rng.normal(size=(len(tasks), d)) + 1.0
        W = rng.normal(size=(len(sizes), rank)) @ rng.normal(size=(rank, d))
        y = np.einsum("nd,nd->n", X, W[tasks]) + noise * rng.normal(size=len(tasks)) + tasks
        order = rng.permutation(len(tasks))
        return X[order], y[order], tasks[order]

    @staticmethod
    def clusters(seed=0, per=8, centres=3, d=12, n=24, spread=0.2, noise=1.0):
        """Tasks around a few centres; returns X, y, tasks and the cluster of each task."""
        rng = np.random.default_rng(seed)
        label = np.repeat(np.arange(centres), per)
        W = rng.normal(size=(centres, d))[label] + spread * rng.normal(size=(len(label), d))
        tasks = np.repeat(np.arange(len(label)), n)
        X = rng.normal(size=(len(tasks), d))
        return X, np.einsum("nd,nd->n", X, W[tasks]) + noise * rng.normal(size=len(tasks)), tasks, label

    @staticmethod
    def loss(model, X, y, tasks):
        """Sum over tasks of the mean loss, row by row as in the definition."""
        z = np.einsum("nd,nd->n", X, model.coef_[tasks]) + model.intercept_[tasks]
        share = 1 / np.bincount(tasks)[tasks]
        logistic = np.asarray(model.logistic_)[tasks]
        return float(share @ np.where(logistic, np.logaddexp(0, z) - y * z, 0.5 * (y - z) ** 2))

    @staticmethod
    def null_loss(y, tasks):
        """Sum over tasks of the mean squared loss of the mean."""
        return sum(0.5 * y[tasks == t].var() for t in range(tasks.max() + 1))

    @staticmethod
    def optimum(X, y, tasks, penalty, *, logistic=False, parts=1):
        """Least value of losses + penalty(list of cvxpy matrices (T, d)) by a general convex solver."""
        import cvxpy as cp

        T, d = tasks.max() + 1, X.shape[1]
        variables = [cp.Variable((T, d)) for _ in range(parts)]
        b = cp.Variable(T)
        W = sum(variables[1:], start=variables[0])
        total = 0
        for t in range(T):
            mine = tasks == t
            z = X[mine] @ W[t] + b[t]
            if logistic:
                total += (cp.sum(cp.logistic(z)) - y[mine] @ z) / mine.sum()
            else:
                total += 0.5 * cp.sum_squares(y[mine] - z) / mine.sum()
        term, constraints = penalty(variables)
        problem = cp.Problem(cp.Minimize(total + term), constraints)
        problem.solve(solver="CLARABEL")
        assert problem.status == "optimal"
        return float(problem.value)

    @staticmethod
    def nuclear(W):
        """Sum of singular values."""
        return float(np.linalg.svd(W, compute_uv=False).sum())


@pytest.fixture(scope="session")
def problems():
    return Problems
