"""AlternatingStructure (ASO): falling objective, limits, orthonormal directions."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Ridge

import polytask.linear.alternating_structure as module
from polytask.core.errors import InputError
from polytask.linear import AlternatingStructure


def objective(problems, model, X, y, tasks):
    outside = 0.5 * model.alpha * np.square(model.own_coef_).sum()
    return problems.loss(model, X, y, tasks) + outside + 0.5 * model.ridge * np.square(model.coef_).sum()


@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize("h", [1, 3])
def test_objective_falls_every_round_and_is_that_of_the_definition(problems, loss, h):
    X, y, tasks = problems.stacked(0, rank=3, noise=2.0)
    if loss == "logistic":
        y = (y > np.array([np.median(y[tasks == t]) for t in range(5)])[tasks]).astype(float)
    model = AlternatingStructure(0.3, h, loss=loss, tol=1e-9).fit(X, y, tasks=tasks)
    assert (np.diff(model.objectives_) <= 1e-9 * model.objectives_[0]).all()
    assert model.objectives_[-1] == pytest.approx(objective(problems, model, X, y, tasks), rel=1e-9)
    np.testing.assert_allclose(model.components_ @ model.components_.T, np.eye(h), atol=1e-10)
    loadings = model.relations_["loadings"].values.T
    np.testing.assert_allclose(model.coef_, model.own_coef_ + loadings @ model.components_, atol=1e-10)


@pytest.mark.parametrize(("shared", "ridge"), [(True, 0.01), (False, 0.01), (True, 0.0)])
def test_rounds_are_those_of_dense_systems_with_fewer_rows_than_features(shared, ridge):
    rng = np.random.default_rng(8)
    n, d, T, alpha, h = 15, 40, 4, 0.2, 2
    designs = [rng.normal(size=(n, d))] * T if shared else list(rng.normal(size=(T, n, d)))
    Y = np.stack([X @ rng.normal(size=(d, 3)) @ rng.normal(size=3) for X in designs], axis=1)
    model = AlternatingStructure(alpha, h, ridge=ridge, fit_intercept=False, tol=1e-7)
    if shared:
        model.fit(designs[0], Y)
    else:
        model.fit(np.concatenate(designs), Y.T.reshape(-1), tasks=np.repeat(np.arange(T), n))
    theta, values = np.zeros((0, d)), []
    for _ in model.objectives_:
        R = (alpha + ridge) * np.eye(d) - alpha * theta.T @ theta
        W = np.stack([np.linalg.solve(X.T @ X / n + R, X.T @ y / n) for X, y in zip(designs, Y.T, strict=True)])
        rest = np.stack([y - X @ w for X, y, w in zip(designs, Y.T, W, strict=True)])
        values.append(0.5 * np.square(rest).sum() / n + 0.5 * np.einsum("td,de,te->", W, R, W))
        theta = np.linalg.svd(W, full_matrices=False)[2][:h]
    np.testing.assert_allclose(model.objectives_, values, rtol=1e-9)
    np.testing.assert_allclose(model.coef_, W, atol=1e-8 * np.abs(W).max())


def test_the_directions_are_the_best_for_the_coefficients(problems):
    X, y, tasks = problems.stacked(1, rank=3)
    model = AlternatingStructure(0.3, 2, tol=1e-12, max_iter=5000).fit(X, y, tasks=tasks)
    left = np.square(model.own_coef_).sum()
    rng = np.random.default_rng(0)
    for _ in range(100):
        Q, _ = np.linalg.qr(model.components_.T + 0.2 * rng.normal(size=(6, 2)))
        assert np.square(model.coef_ - model.coef_ @ Q @ Q.T).sum() >= left * (1 - 1e-6)


def test_only_the_span_of_the_directions_matters(problems):
    X, y, tasks = problems.stacked(7, rank=3)
    order = np.array([3, 1, 4, 0, 2])
    model = AlternatingStructure(0.3, 2, tol=1e-12, max_iter=5000).fit(X, y, tasks=tasks)
    other = AlternatingStructure(0.3, 2, tol=1e-12, max_iter=5000).fit(X, y, tasks=order[tasks])
    np.testing.assert_allclose(other.coef_[order], model.coef_, atol=1e-5)
    spans = [found.components_.T @ found.components_ for found in (model, other)]
    np.testing.assert_allclose(spans[1], spans[0], atol=1e-4)
    # mixing the directions among themselves changes the loadings, not what is outside of them
    Q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(2, 2)))
    mixed = Q @ model.components_
    np.testing.assert_allclose(model.coef_ - model.coef_ @ mixed.T @ mixed, model.own_coef_, atol=1e-10)


def test_without_directions_it_is_ridge(problems):
    X, y, tasks = problems.stacked(2)
    model = AlternatingStructure(0.3, 0, ridge=0.1).fit(X, y, tasks=tasks)
    for t in range(5):
        mine = tasks == t
        alone = Ridge(alpha=0.4 * mine.sum()).fit(X[mine], y[mine])
        np.testing.assert_allclose(model.coef_[t], alone.coef_, atol=1e-7)


def test_with_as_many_directions_as_fit_only_the_losses_are_left(problems):
    X, y, tasks = problems.stacked(3)
    model = AlternatingStructure(5.0, 5, ridge=0.0, tol=1e-13, max_iter=50_000).fit(X, y, tasks=tasks)
    assert np.square(model.own_coef_).sum() < 1e-10
    for t in range(5):
        mine = tasks == t
        design = np.column_stack([X[mine], np.ones(mine.sum())])
        np.testing.assert_allclose(model.coef_[t], np.linalg.lstsq(design, y[mine])[0][:-1], atol=1e-4)


def test_shared_directions_help_when_tasks_share_them(problems):
    X, y, tasks = problems.stacked(4, sizes=(12,) * 20, d=10, noise=0.3, rank=2)
    rng = np.random.default_rng(4)
    new_X, new_y, new_tasks = X, y, tasks
    held = rng.random(len(y)) < 0.3
    errors = {}
    for h in (0, 2):
        model = AlternatingStructure(1.0, h, ridge=0.001).fit(X[~held], y[~held], tasks=tasks[~held])
        errors[h] = np.square(model.predict(new_X[held], tasks=new_tasks[held]) - new_y[held]).mean()
    assert errors[2] < 0.5 * errors[0]


def test_stopping_too_early_warns(problems):
    X, y, tasks = problems.stacked(5, rank=4)
    with pytest.warns(ConvergenceWarning, match="increase max_iter or tol"):
        AlternatingStructure(0.3, 1, tol=0.0, max_iter=1).fit(X, y, tasks=tasks)


def test_wrong_settings_are_named(problems):
    X, y, tasks = problems.stacked(6)
    with pytest.raises(InputError, match="n_directions must be a whole number of at least 0"):
        AlternatingStructure(0.3, -1).fit(X, y, tasks=tasks)


def test_examples_in_the_docstring_hold():
    assert doctest.testmod(module).failed == 0
