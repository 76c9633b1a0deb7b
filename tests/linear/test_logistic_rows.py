"""Compiled losses of tasks with rows of their own are those of the rows, and badly posed fits still end."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from polytask.linear import BlockSparse, MeanRegularised, TraceNorm
from polytask.linear.moments import Block, Stack
from polytask.linear.solvers.logistic_rows import decay
from polytask.linear.solvers.losses import TaskLosses, _Stacked

T, D = 5, 4


def rows(seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    bounds = np.cumsum([0, 9, 30, 12, 75, 20])
    X = rng.normal(size=(bounds[-1], D)) + offset
    y = (rng.random(bounds[-1]) < 0.4).astype(float)
    y[bounds[:-1]], y[bounds[:-1] + 1] = 0.0, 1.0
    return X, y, bounds, rng.uniform(0.5, 2.0, size=len(y)), rng.normal(size=(T, D))


def both(X, y, bounds, weights, fit_intercept):
    options = {
        "logistic": np.ones(T, dtype=bool), "weights": np.linspace(1, 2, T), "n_features": D,
        "fit_intercept": fit_intercept,
    }  # fmt: skip
    stack = Stack(X, y, bounds, weights)
    return TaskLosses(stack, **options), TaskLosses(list(stack), **options)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_values_gradients_hessians_and_duals_are_those_of_the_rows(fit_intercept, weighted):
    X, y, bounds, weights, W = rows(offset=2.0)
    compiled, plain = both(X, y, bounds, weights if weighted else None, fit_intercept)
    assert compiled.stacked is not None
    assert plain.stacked is None
    a = b = None
    for scale in (0.0, 1.0, 8.0):
        a, b = compiled.at(scale * W, a), plain.at(scale * W, b)
        np.testing.assert_allclose(a.losses, b.losses, rtol=1e-11)
        np.testing.assert_allclose(a.gradient, b.gradient, atol=1e-10)
        np.testing.assert_allclose(a.intercept, b.intercept, atol=1e-8)
        for features in (None, np.array([2, 0])):
            found, wanted = compiled.curvature(a, features), plain.curvature(b, features)
            V = W if features is None else W[:, features]
            np.testing.assert_allclose(found.times(V), wanted.times(V), rtol=1e-8, atol=1e-10)
        for shrink in (0.0, 0.5, 1.0):
            assert compiled.dual(a, shrink) == pytest.approx(plain.dual(b, shrink), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("features", [None, np.array([2, 0])])
@pytest.mark.parametrize("kinds", ["logistic", "squared", "both"])
def test_hessians_laid_out_by_feature_are_the_same_and_are_not_copied_again(features, kinds):
    X, y, bounds, weights, W = rows(3)
    logistic = {"logistic": np.ones(T, bool), "squared": np.zeros(T, bool), "both": np.arange(T) < 2}[kinds]
    blocks = Stack(X, y, bounds, weights)
    losses = TaskLosses(blocks if logistic.all() else list(blocks), logistic=logistic, weights=np.ones(T), n_features=D)
    point = losses.at(W)
    plain, laid = losses.curvature(point, features), losses.curvature(point, features, by_feature=True)
    np.testing.assert_array_equal(laid.pattern, plain.pattern)
    np.testing.assert_allclose(laid.grams, plain.grams, rtol=1e-13)
    assert laid.grams.transpose(1, 0, 2).flags.c_contiguous
    assert plain.grams.flags.c_contiguous


def test_residuals_of_a_task_with_an_intercept_add_up_to_zero():
    X, y, bounds, weights, W = rows(1)
    losses, _ = both(X, y, bounds, weights, True)
    residual = losses.at(5.0 * W).stacked
    assert np.abs(np.add.reduceat(weights * residual, bounds[:-1])).max() < 1e-9


def test_inputs_far_from_zero_give_the_gradient_of_centred_inputs():
    X, y, bounds, _, W = rows(2)
    near, _ = both(X, y, bounds, None, True)
    far, _ = both(X + 1e6, y, bounds, None, True)
    np.testing.assert_allclose(far.at(W).gradient, near.at(W).gradient, atol=1e-8)


def test_float32_rows_are_computed_in_float64():
    X, y, bounds, _, W = rows(3)
    narrow = X.astype(np.float32)
    found, wanted = (both(part, y, bounds, None, True)[0] for part in (narrow, narrow.astype(np.float64)))
    np.testing.assert_array_equal(found.at(W).gradient, wanted.at(W).gradient)


def test_stacked_fits_are_those_of_one_target_column_per_task():
    X, y, bounds, _, _ = rows(4)
    tasks = np.repeat(np.arange(T), np.diff(bounds))
    Y = np.full((len(y), T), np.nan)
    Y[np.arange(len(y)), tasks] = y
    for model in (BlockSparse(alpha=0.02, tol=1e-10), TraceNorm(alpha=0.05, tol=1e-10), MeanRegularised(alpha=0.1)):
        found, wanted = (type(model)(**model.get_params()).set_params(loss="logistic") for _ in range(2))
        found.fit(X, y, tasks)
        wanted.fit(X, Y)
        np.testing.assert_allclose(found.coef_, wanted.coef_, atol=1e-4)
        np.testing.assert_allclose(found.intercept_, wanted.intercept_, atol=1e-4)


def test_a_single_stacked_task_is_a_logistic_regression():
    X, y, bounds, _, _ = rows(5)
    mine = slice(bounds[3], bounds[4])
    found = MeanRegularised(alpha=0.1, mu=np.inf, loss="logistic", tol=1e-10).fit(
        X[mine], y[mine], np.array(["a"] * 75)
    )
    wanted = LogisticRegression(C=1.0 / (0.1 * 75), tol=1e-12, max_iter=10_000).fit(X[mine], y[mine])
    np.testing.assert_allclose(found.coef_, wanted.coef_, atol=1e-6)
    np.testing.assert_allclose(found.intercept_, wanted.intercept_, atol=1e-6)


@pytest.mark.parametrize("share", [0.3, 0.03, 0.003])
def test_tasks_that_can_be_separated_still_end_at_a_certified_gap(share):
    rng = np.random.default_rng(6)
    tasks = np.repeat(np.arange(40), 12)
    X = rng.normal(size=(len(tasks), 15))  # more columns than rows of a task
    y = (X[:, 0] + rng.normal(size=len(tasks)) > 0).astype(float)
    y[::12], y[1::12] = 0.0, 1.0
    model = BlockSparse(alpha=1.0, loss="logistic", tol=1e-8)
    model.set_params(alpha=share * model.alpha_max(X, y, tasks)).fit(X, y, tasks)
    assert model.dual_gap_ <= 1e-8 * 40 * np.log(2.0)
    assert np.isfinite(model.coef_).all()


def test_a_slice_of_a_stack_is_its_blocks():
    X, y, bounds, weights, _ = rows(7)
    stack = Stack(X, y, bounds, weights)
    assert len(stack) == T
    assert [block.outputs.tolist() for block in stack[1:3]] == [[1], [2]]
    last = stack[-1]
    assert isinstance(last, Block)
    np.testing.assert_array_equal(last.X, X[bounds[4] :])
    with pytest.raises(IndexError):
        stack[T]


def test_decay_is_the_exponential_to_the_last_digits():
    z = np.concatenate([np.random.default_rng(8).normal(size=500) * 20, [0.0, 1e-300, -1e-9, 690.0, -5000.0]])
    bits, found = np.empty(len(z), dtype=np.int64), np.empty(len(z))
    decay(z, 0.25, bits, found)
    np.testing.assert_allclose(found, np.exp(-np.minimum(np.abs(z + 0.25), 700.0)), rtol=1e-15)


def test_reach_is_the_largest_change_of_a_margin_where_that_may_be_much():
    rng = np.random.default_rng(9)
    X, bounds = rng.normal(size=(50, 3)), np.array([0, 20, 50])
    step = np.array([[1.0, -2.0, 0.5], [0.0, 1e-3, 0.0]])
    stacked = _Stacked(Stack(X, np.arange(50) % 2.0, bounds), True)
    centred = [X[:20] - X[:20].mean(axis=0), X[20:] - X[20:].mean(axis=0)]
    exact = [np.abs(part @ w).max() for part, w in zip(centred, step, strict=True)]
    np.testing.assert_allclose(stacked.reach(step, 0.0), exact)
    assert exact[1] <= stacked.reach(step, 0.1)[1] <= 0.1
