"""Facts that hold for every estimator with a norm of each feature's coefficients."""

from __future__ import annotations

import doctest
import importlib
import warnings

import cvxpy as cp
import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import ElasticNet, Lasso

import polytask.linear.solvers.feature_norms as solver
from polytask.core.errors import InputError
from polytask.linear import DirtyModel, ElasticBlockSparse, SimultaneousLasso, SparseGroup, TaskLasso
from polytask.linear.solvers.proximal import solve_proximal

MODELS = [
    TaskLasso(0.1, tol=1e-9),
    SimultaneousLasso(0.2, tol=1e-9),
    SparseGroup(0.15, 0.4, tol=1e-9),
    ElasticBlockSparse(0.15, ridge=0.0, tol=1e-9),
    DirtyModel(0.2, 0.08, tol=1e-9),
]
each_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)


def copy(model, **changes):
    return type(model)(**{**model.get_params(), **changes})


def term(model, variables):
    """The penalty of the definition as a cvxpy expression."""
    W, alpha = sum(variables[1:], start=variables[0]), model.alpha
    largest = cp.sum(cp.max(cp.abs(variables[0]), axis=0))
    rows, entries = cp.mixed_norm(variables[0].T, 2, 1), cp.sum(cp.abs(variables[-1]))
    chosen = {
        TaskLasso: alpha * entries,
        SimultaneousLasso: alpha * largest,
        ElasticBlockSparse: alpha * rows,
        SparseGroup: alpha * (getattr(model, "l1_ratio", 0) * entries + (1 - getattr(model, "l1_ratio", 0)) * rows),
        DirtyModel: alpha * largest + getattr(model, "own", 0) * entries,
    }[type(model)]
    return chosen + 0.5 * model.ridge * cp.sum_squares(W)


def penalty(model):
    """The penalty of the definition at the solution."""
    W, alpha = model.coef_, model.alpha
    if isinstance(model, DirtyModel):
        shared, own = model.shared_coef_, model.own_coef_
        np.testing.assert_allclose(shared + own, W, atol=1e-15)
        value = alpha * np.abs(shared).max(axis=0).sum() + model.own * np.abs(own).sum()
    elif isinstance(model, SparseGroup):
        norms = np.linalg.norm(W, axis=0).sum()
        value = alpha * (model.l1_ratio * np.abs(W).sum() + (1 - model.l1_ratio) * norms)
    else:
        parts = {
            TaskLasso: np.abs(W).sum(),
            SimultaneousLasso: np.abs(W).max(axis=0).sum(),
            ElasticBlockSparse: np.linalg.norm(W, axis=0).sum(),
        }
        value = alpha * parts[type(model)]
    return value + 0.5 * model.ridge * np.square(W).sum()


@each_model
@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("scale", [0.2, 1.0])
def test_optimum_is_that_of_a_general_convex_solver_and_certified(problems, model, ridge, scale):
    X, y, tasks = problems.stacked()
    changes = {"alpha": scale * model.alpha, "ridge": ridge}
    if isinstance(model, DirtyModel):
        changes["own"] = scale * model.own
    model = copy(model, **changes).fit(X, y, tasks=tasks)
    parts = 2 if isinstance(model, DirtyModel) else 1
    best = problems.optimum(X, y, tasks, lambda parts: (term(model, parts), []), parts=parts)
    reached = problems.loss(model, X, y, tasks) + penalty(model)
    assert reached == pytest.approx(best, rel=1e-5)
    assert reached - best <= model.dual_gap_ + 1e-6 * best
    assert model.dual_gap_ <= 1e-9 * problems.null_loss(y, tasks)


@each_model
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_logistic_optimum_is_that_of_a_general_convex_solver(problems, model, ridge):
    X, y, tasks = problems.stacked(1, sizes=(30, 40, 25), d=4, noise=4.0)
    y = (y > np.array([np.median(y[tasks == t]) for t in range(3)])[tasks]).astype(float)
    changes = {"alpha": 0.2 * model.alpha, "ridge": ridge, "loss": "logistic"}
    if isinstance(model, DirtyModel):
        changes["own"] = 0.2 * model.own
    model = copy(model, **changes).fit(X, y, tasks=tasks)
    parts = 2 if isinstance(model, DirtyModel) else 1
    best = problems.optimum(X, y, tasks, lambda parts: (term(model, parts), []), logistic=True, parts=parts)
    assert problems.loss(model, X, y, tasks) + penalty(model) == pytest.approx(best, rel=1e-5)


@each_model
@pytest.mark.parametrize("loss", [("squared", "logistic", "squared"), ("huber", "squared", "logistic")])
def test_mixed_losses_with_missing_labels_agree_with_accelerated_proximal_gradient(model, loss):
    rng = np.random.default_rng(2)
    X = rng.normal(size=(80, 6)) + 1.0
    Y = X @ rng.normal(size=(6, 3)) + rng.normal(size=(80, 3))
    for column, kind in enumerate(loss):
        if kind == "logistic":
            Y[:, column] = Y[:, column] > np.median(Y[:, column])
    Y[rng.random(Y.shape) < 0.2] = np.nan
    model = copy(model, loss=loss, ridge=0.02).fit(X, Y)
    _, layout = model._begin(X, Y, None, None)
    losses = model._losses(layout.blocks, 3, 6, fit_intercept=True)
    other = solve_proximal(losses, model._penalties(3, 6), tol=1e-9, max_steps=20_000)
    np.testing.assert_allclose(model.coef_, other.W, atol=2e-4)
    np.testing.assert_allclose(model.intercept_, other.intercept, atol=1e-3)


@each_model
@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_from_alpha_max_on_all_coefficients_are_exactly_zero_and_below_it_not(problems, model, ridge):
    X, y, tasks = problems.stacked(3)
    top = model.alpha_max(X, y, tasks=tasks)

    def coef(share):
        changes = {"alpha": share * top, "ridge": ridge}
        if isinstance(model, DirtyModel):
            changes["own"] = share * top * model.own / model.alpha
        return copy(model, **changes).fit(X, y, tasks=tasks).coef_

    assert not coef(1 + 1e-9).any()
    assert coef(0.98).any(axis=0).sum() == 1


@each_model
def test_a_single_task_is_the_lasso_or_with_a_ridge_the_elastic_net(problems, model):
    X, y, _ = problems.stacked(4)
    alpha = model.alpha
    lasso = Lasso(min(alpha, getattr(model, "own", alpha)), tol=1e-12).fit(X, y)
    np.testing.assert_allclose(copy(model, tol=1e-13).fit(X, y).coef_[0], lasso.coef_, atol=1e-6)
    strength = min(alpha, getattr(model, "own", alpha))
    net = ElasticNet(strength + 0.5, l1_ratio=strength / (strength + 0.5), tol=1e-12).fit(X, y)
    np.testing.assert_allclose(copy(model, ridge=0.5, tol=1e-13).fit(X, y).coef_[0], net.coef_, atol=1e-6)


@each_model
def test_a_warm_start_from_the_solution_makes_one_look(problems, model):
    X, y, tasks = problems.stacked(5)
    cold = copy(model, warm_start=True).fit(X, y, tasks=tasks)
    first, W = cold.n_iter_, cold.coef_.copy()
    cold.fit(X, y, tasks=tasks)
    assert first > 1
    assert cold.n_iter_ == 1
    np.testing.assert_array_equal(cold.coef_, W)
    assert cold.fit(X[:, :3], y, tasks=tasks).coef_.shape == (5, 3)  # of another shape: from zero


@each_model
def test_a_working_set_finds_what_all_features_find(monkeypatch, model):
    rng = np.random.default_rng(6)
    X = rng.normal(size=(60, 150))
    Y = X[:, :6] @ rng.normal(size=(6, 3)) + 0.3 * rng.normal(size=(60, 3))
    whole = copy(model, tol=1e-10).fit(X, Y)
    monkeypatch.setattr(solver, "_ALWAYS_ALL", 10)
    monkeypatch.setattr(solver, "_LEAST_SET", 5)
    some = copy(model, tol=1e-10).fit(X, Y)
    np.testing.assert_allclose(some.coef_, whole.coef_, atol=1e-4)
    assert some.dual_gap_ <= 1e-10 * 0.5 * Y.var(axis=0).sum()


@each_model
def test_order_of_tasks_and_features_does_not_matter(problems, model):
    X, y, tasks = problems.stacked(7)
    model = copy(model, tol=1e-12, ridge=0.01)
    W = model.fit(X, y, tasks=tasks).coef_
    other = copy(model).fit(X[:, ::-1], y, tasks=4 - tasks).coef_
    np.testing.assert_allclose(other, W[::-1, ::-1], atol=1e-5)


@each_model
def test_sparse_inputs_give_the_same_model(problems, model):
    X, y, tasks = problems.stacked(8)
    X = np.where(np.abs(X) < 0.8, 0.0, X)
    dense = copy(model).fit(X, y, tasks=tasks)
    np.testing.assert_allclose(copy(model).fit(csr_array(X), y, tasks=tasks).coef_, dense.coef_, atol=1e-6)


@each_model
def test_collinear_columns_reach_the_certificate_with_finite_coefficients(problems, model):
    X, y, tasks = problems.stacked(9)
    X = np.column_stack([X, X[:, :3], X[:, :3].sum(axis=1), np.ones(len(X))])
    strengths = {"alpha": 1e-3 * model.alpha}
    if isinstance(model, DirtyModel):
        strengths["own"] = 1e-3 * model.own
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = copy(model, **strengths).fit(X, y, tasks=tasks)
    assert np.isfinite(found.coef_).all()
    assert not found.coef_[:, -1].any()  # a constant column explains nothing


@each_model
def test_a_fit_that_stops_early_says_so(problems, model):
    X, y, tasks = problems.stacked(10)
    with pytest.warns(ConvergenceWarning, match=f"{type(model).__name__} stopped after max_iter=1 with a duality gap"):
        copy(model, alpha=1e-3, max_iter=1, tol=1e-14).fit(X, y, tasks=tasks)


@each_model
def test_features_in_use_are_named_with_their_coefficients(model):
    rng = np.random.default_rng(11)
    X = rng.normal(size=(100, 5))
    model = copy(model).fit(X, X[:, [3]] * [[2.0, 1.0, -2.0]] + 0.05 * rng.normal(size=(100, 3)))
    if isinstance(model, DirtyModel):
        shared, own = model.relations_["shared part"], model.relations_["own part"]
        assert shared.rows == own.rows == ("x3",)
        np.testing.assert_array_equal(shared.values + own.values, model.coef_[:, [3]].T)
        assert model.relations_["parts"].values.shape == (3, 2)
    else:
        used = model.relations_["features in use"]
        assert used.rows == ("x3",)
        np.testing.assert_array_equal(used.values, model.coef_[:, [3]].T)


@each_model
def test_wrong_settings_are_named(problems, model):
    X, y, tasks = problems.stacked(12)
    for changes, words in (
        ({"alpha": 0.0}, "alpha must be a positive number"),
        ({"alpha": np.inf}, "alpha must be a positive number"),
        ({"ridge": -1.0}, "ridge must be a number of at least 0"),
        *([({"own": 0.0}, "own must be a positive number")] if isinstance(model, DirtyModel) else []),
        *([({"l1_ratio": 1.1}, "l1_ratio must be a number from 0 to 1")] if isinstance(model, SparseGroup) else []),
    ):
        with pytest.raises(InputError, match=words):
            copy(model, **changes).fit(X, y, tasks=tasks)


@each_model
def test_examples_in_the_docstring_hold(model):
    assert doctest.testmod(importlib.import_module(type(model).__module__)).failed == 0
