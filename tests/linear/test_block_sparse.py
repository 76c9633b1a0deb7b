"""BlockSparse: optimality, special cases in scikit-learn, missing labels, layouts, invariances."""

from __future__ import annotations

import doctest
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso, LogisticRegression, MultiTaskLasso

import polytask.linear.block_sparse as module
import polytask.linear.solvers.losses as losses_module
import polytask.linear.solvers.shared_design as shared_design
from polytask.core.errors import InputError
from polytask.linear import BlockSparse

MIXED = ("squared", "logistic", "squared", "logistic")


def table(seed: int = 0, n: int = 120, d: int = 12, tasks: int = 4, missing: float = 0.0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) @ (np.eye(d) + 0.3 * rng.normal(size=(d, d))) + 2.0
    W = np.zeros((tasks, d))
    W[:, :4] = rng.normal(size=(tasks, 4))
    Y = X @ W.T + rng.normal(size=(n, tasks)) + 3.0
    Y[rng.random(Y.shape) < missing] = np.nan
    return X, Y


def mixed(seed: int = 0, missing: float = 0.0, **sizes):
    """Squared targets in even columns, 0/1 targets in odd ones."""
    X, Y = table(seed, missing=missing, **sizes)
    for column in range(1, Y.shape[1], 2):
        y = Y[:, column]
        Y[:, column] = np.where(np.isnan(y), np.nan, y > np.nanmedian(y))
    return X, Y


def naive(X, Y, W, b, loss, c=None):
    """Return losses (T,) and gradients with respect to W and b, cell by cell as in the definition."""
    T = Y.shape[1]
    value, by_W, by_b = np.zeros(T), np.zeros(W.shape), np.zeros(T)
    for t in range(T):
        seen = ~np.isnan(Y[:, t])
        x, y = X[seen], Y[seen, t]
        z = x @ W[t] + b[t]
        c_t = 1.0 if c is None else c[t]
        if loss[t] == "squared":
            cells, slope = 0.5 * (y - z) ** 2, z - y
        else:
            cells, slope = np.logaddexp(0, z) - y * z, expit(z) - y
        value[t] = c_t * cells.mean()
        by_W[t], by_b[t] = c_t * slope @ x / len(y), c_t * slope.mean()
    return value, by_W, by_b


def violation(W, gradient, alpha):
    """Return the largest norm over features of the smallest subgradient."""
    norms, sizes = np.linalg.norm(W, axis=0), np.linalg.norm(gradient, axis=0)
    inside = np.maximum(sizes - alpha, 0.0)
    active = np.linalg.norm(gradient + alpha * W / np.where(norms > 0, norms, 1.0), axis=0)
    return float(np.where(norms > 0, active, inside).max())


@pytest.mark.parametrize("share", [0.5, 0.1, 0.003])
@pytest.mark.parametrize("missing", [0.0, 0.4])
@pytest.mark.parametrize("weights", ["equal", "examples"])
def test_solution_satisfies_the_optimality_conditions_of_the_definition(share, missing, weights):
    X, Y = mixed(1, missing=missing)
    model = BlockSparse(loss=MIXED, task_weighting=weights, tol=1e-11)
    alpha = share * model.alpha_max(X, Y)
    model.set_params(alpha=alpha).fit(X, Y)
    n = (~np.isnan(Y)).sum(axis=0)
    c = None if weights == "equal" else n / n.mean()
    _, by_W, by_b = naive(X, Y, model.coef_, model.intercept_, MIXED, c)
    assert violation(model.coef_, by_W, alpha) < 2e-5
    assert np.abs(by_b).max() < 1e-9


def test_dual_gap_bounds_the_distance_to_the_optimum():
    X, Y = mixed(2, missing=0.2)

    def objective(model):
        value, _, _ = naive(X, Y, model.coef_, model.intercept_, MIXED)
        return value.sum() + model.alpha * np.linalg.norm(model.coef_, axis=0).sum()

    best = BlockSparse(0.05, loss=MIXED, tol=1e-12).fit(X, Y)
    for tol in (0.3, 1e-1, 1e-2, 1e-3, 1e-5):
        rough = BlockSparse(0.05, loss=MIXED, tol=tol).fit(X, Y)
        assert -1e-12 <= objective(rough) - objective(best) <= rough.dual_gap_ + 1e-12
        zero = sum(naive(X, Y, 0 * best.coef_, _null_intercepts(Y), MIXED)[0])
        assert rough.dual_gap_ <= tol * zero * (1 + 1e-9)


def _null_intercepts(Y):
    mean = np.nanmean(Y, axis=0)
    return np.where(
        np.array(MIXED) == "squared", mean, np.log(np.clip(mean, 1e-9, None) / np.clip(1 - mean, 1e-9, None))
    )


@pytest.mark.parametrize("alpha", [1.0, 0.1, 0.001])
@pytest.mark.parametrize("intercept", [True, False])
def test_squared_loss_on_shared_rows_equals_scikit_learns_multi_task_lasso(alpha, intercept):
    X, Y = table(3)
    ours = BlockSparse(alpha, tol=1e-13, fit_intercept=intercept).fit(X, Y)
    theirs = MultiTaskLasso(alpha=alpha, tol=1e-12, max_iter=100_000, fit_intercept=intercept).fit(X, Y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=2e-6)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=2e-5)


def test_wide_data_goes_through_working_sets_to_the_same_solution_as_scikit_learn():
    rng = np.random.default_rng(4)
    X = rng.normal(size=(80, 900))
    Y = X[:, :6] @ rng.normal(size=(6, 3)) + 0.5 * rng.normal(size=(80, 3))
    for share in (0.5, 0.1):
        alpha = share * BlockSparse().alpha_max(X, Y)
        ours = BlockSparse(alpha, tol=1e-12).fit(X, Y)
        theirs = MultiTaskLasso(alpha=alpha, tol=1e-11, max_iter=100_000).fit(X, Y)
        np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=5e-6)


@pytest.mark.parametrize("share", [0.3, 0.1, 0.02])
def test_many_rows_begin_with_some_of_them_and_end_at_the_same_solution(monkeypatch, share):
    monkeypatch.setattr(shared_design, "_MANY_ROWS", 100)
    monkeypatch.setattr(shared_design, "_SMALL_GRAM", 10)
    glances = []
    original = shared_design._glance
    monkeypatch.setattr(shared_design, "_glance", lambda *args: glances.append(original(*args)) or glances[-1])
    X, Y = table(21, n=900, d=60)
    alpha = share * BlockSparse().alpha_max(X, Y)
    ours = BlockSparse(alpha=alpha, tol=1e-13).fit(X, Y)
    theirs = MultiTaskLasso(alpha=alpha, tol=1e-10, max_iter=100_000).fit(X, Y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-7)
    assert len(glances) == 1
    assert glances[0].any()


@pytest.mark.parametrize("tol", [1e-6, 1e-12])
def test_gaps_along_a_path_to_all_features_are_those_of_the_definition(tol):
    X, Y = table(22, n=200, d=40)
    alphas, coefs, intercepts, gaps = BlockSparse(tol=tol).path(X, Y, n_alphas=400, eps=1e-4)
    assert (coefs[-1] != 0).all()
    null = 0.5 * np.square(Y - Y.mean(axis=0)).sum() / len(Y)
    for alpha, W, b, gap in zip(alphas, coefs, intercepts, gaps, strict=True):
        R = Y - X @ W.T - b
        top = np.linalg.norm(R.T @ (X - X.mean(axis=0)), axis=0).max() / len(Y)
        s = min(1.0, alpha / top)
        primal = 0.5 * np.square(R).sum() / len(Y) + alpha * np.linalg.norm(W, axis=0).sum()
        dual = (s * (R * (Y - Y.mean(axis=0))).sum() - 0.5 * s**2 * np.square(R).sum()) / len(Y)
        assert gap == pytest.approx(primal - dual, abs=1e-12 * null)
        assert gap <= tol * null


def test_wide_logistic_data_satisfy_the_optimality_conditions():
    rng = np.random.default_rng(5)
    X = rng.normal(size=(60, 800))
    Y = (X[:, :5] @ rng.normal(size=(5, 2)) > 0).astype(float)
    model = BlockSparse(loss="logistic", tol=1e-10)
    alpha = 0.2 * model.alpha_max(X, Y)
    model.set_params(alpha=alpha).fit(X, Y)
    _, by_W, _ = naive(X, Y, model.coef_, model.intercept_, ["logistic"] * 2)
    assert violation(model.coef_, by_W, alpha) < 1e-5
    assert 0 < (model.coef_ != 0).any(axis=0).sum() < 60


@pytest.mark.parametrize("alpha", [0.3, 0.01])
def test_one_task_is_the_lasso(alpha):
    X, Y = table(6)
    ours = BlockSparse(alpha, tol=1e-13).fit(X, Y[:, 0])
    theirs = Lasso(alpha=alpha, tol=1e-13, max_iter=100_000).fit(X, Y[:, 0])
    np.testing.assert_allclose(ours.coef_[0], theirs.coef_, atol=1e-6)
    assert ours.predict(X).shape == (len(X),)


def test_one_logistic_task_is_l1_logistic_regression():
    X, Y = mixed(7)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    alpha = 0.02
    ours = BlockSparse(alpha, loss="logistic", tol=1e-12).fit(X, Y[:, 1])
    theirs = LogisticRegression(l1_ratio=1.0, C=1 / (alpha * len(X)), solver="saga", tol=1e-9, max_iter=50_000)
    theirs.fit(X, Y[:, 1])
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-4)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=1e-4)
    np.testing.assert_allclose(ours.predict_probability(X), theirs.predict_proba(X)[:, 1], atol=1e-4)
    assert (ours.predict(X) == theirs.predict(X)).mean() > 0.99


@pytest.mark.parametrize("loss", ["squared", MIXED])
def test_from_alpha_max_on_all_coefficients_are_exactly_zero_and_below_it_not(loss):
    X, Y = mixed(8, missing=0.2)
    model = BlockSparse(loss=loss, tol=1e-9)
    top = model.alpha_max(X, Y)
    assert not model.set_params(alpha=top * (1 + 1e-9)).fit(X, Y).coef_.any()
    assert (model.set_params(alpha=top * 0.98).fit(X, Y).coef_ != 0).any(axis=0).sum() == 1


def test_a_vanishing_penalty_gives_least_squares_for_every_task_alone():
    X, Y = table(9, missing=0.3)
    model = BlockSparse(1e-7, tol=1e-9).fit(X, Y)
    for t in range(Y.shape[1]):
        seen = ~np.isnan(Y[:, t])
        design = np.column_stack([X[seen], np.ones(seen.sum())])
        expected = np.linalg.lstsq(design, Y[seen, t], rcond=None)[0]
        np.testing.assert_allclose(model.coef_[t], expected[:-1], atol=2e-4)


def test_features_are_used_by_all_tasks_or_by_none():
    X, Y = mixed(10, missing=0.5)
    coef = BlockSparse(0.15, loss=MIXED).fit(X, Y).coef_
    used = coef != 0
    assert 0 < used.any(axis=0).sum() < X.shape[1]
    assert (used.all(axis=0) == used.any(axis=0)).all()


@pytest.mark.parametrize("missing", [0.1, 0.5, 0.99])
def test_losses_are_means_over_observed_cells_and_gradients_are_finite(missing):
    rng = np.random.default_rng(11)
    X, Y = mixed(11, n=600, missing=missing)
    for column in (1, 3):  # both classes are seen
        Y[:2, column] = [0.0, 1.0]
    W = rng.normal(size=(4, X.shape[1]))
    model = BlockSparse(loss=MIXED)
    _, layout = model._begin(X, Y, None, None)
    point = model._losses(layout.blocks, 4, X.shape[1], fit_intercept=True).at(W)
    value, by_W, by_b = naive(X, Y, W, point.intercept, MIXED)
    np.testing.assert_allclose(point.losses, value, rtol=1e-7)
    np.testing.assert_allclose(point.gradient, by_W, rtol=1e-7, atol=1e-9)
    assert np.abs(by_b).max() < 1e-9
    assert (layout.n_rows == (~np.isnan(Y)).sum(axis=0)).all()


@pytest.mark.parametrize("missing", [0.0, 0.5])
def test_columns_and_stacked_rows_of_the_same_data_agree(missing):
    X, Y = mixed(12, missing=missing)
    columns = BlockSparse(0.05, loss=MIXED, tol=1e-13).fit(X, Y)
    n, T = Y.shape
    labels = np.repeat(["a", "b", "c", "d"], n)
    stacked = BlockSparse(0.05, loss=MIXED, tol=1e-13).fit(np.tile(X, (T, 1)), Y.T.ravel(), tasks=labels)
    np.testing.assert_allclose(stacked.coef_, columns.coef_, atol=1e-9)
    np.testing.assert_allclose(stacked.intercept_, columns.intercept_, atol=1e-9)
    assert stacked.tasks_.tolist() == ["a", "b", "c", "d"]
    np.testing.assert_allclose(stacked.predict(X, tasks=np.repeat("c", n)), columns.predict(X)[:, 2], atol=1e-8)
    np.testing.assert_allclose(stacked.predict(X), columns.predict(X), atol=1e-8)


def test_moments_and_rows_give_the_same_squared_loss(monkeypatch):
    X, Y = table(13, missing=0.3)
    by_moments = BlockSparse(0.05, tol=1e-12).fit(X, Y)
    monkeypatch.setattr(losses_module, "_LARGEST_GRAMS", 0)
    by_rows = BlockSparse(0.05, tol=1e-12).fit(X, Y)
    np.testing.assert_allclose(by_rows.coef_, by_moments.coef_, atol=1e-6)
    np.testing.assert_allclose(by_rows.intercept_, by_moments.intercept_, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), missing=st.sampled_from([0.0, 0.3]))
def test_permuting_tasks_rows_or_features_permutes_the_result(seed, missing):
    X, Y = mixed(seed, n=60, d=6, missing=missing)
    rng = np.random.default_rng(seed)
    model = BlockSparse(0.05, loss=MIXED, tol=1e-12).fit(X, Y)
    tasks, rows, features = rng.permutation(4), rng.permutation(60), rng.permutation(6)
    loss = [MIXED[t] for t in tasks]
    other = BlockSparse(0.05, loss=loss, tol=1e-12).fit(X[rows][:, features], Y[rows][:, tasks])
    np.testing.assert_allclose(other.coef_, model.coef_[tasks][:, features], atol=1e-5)
    np.testing.assert_allclose(other.intercept_, model.intercept_[tasks], atol=5e-5)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_a_duplicate_row_is_a_row_of_weight_two_and_weight_zero_is_no_row(seed):
    X, Y = mixed(seed, n=50, d=5, missing=0.1)
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 3, size=50)
    counts[:10] = 1
    weighted = BlockSparse(0.05, loss=MIXED, tol=1e-12).fit(X, Y, sample_weight=counts.astype(float))
    repeated = BlockSparse(0.05, loss=MIXED, tol=1e-12).fit(np.repeat(X, counts, axis=0), np.repeat(Y, counts, axis=0))
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, atol=1e-5)


def test_weights_per_cell_with_zero_are_missing_labels():
    X, Y = mixed(14)
    weight = (np.random.default_rng(0).random(Y.shape) < 0.6).astype(float)
    weighted = BlockSparse(0.05, loss=MIXED, tol=1e-12).fit(X, Y, sample_weight=weight)
    missing = BlockSparse(0.05, loss=MIXED, tol=1e-12).fit(X, np.where(weight > 0, Y, np.nan))
    np.testing.assert_allclose(weighted.coef_, missing.coef_, atol=1e-9)


def test_scaling_one_tasks_weight_is_scaling_its_loss():
    X, Y = table(15)
    c = np.array([4.0, 1.0, 1.0, 1.0])
    weighted = BlockSparse(0.1, task_weighting=c, tol=1e-13).fit(X, Y)
    # squared loss: weight 4 on y is the same as doubling that task's inputs and target
    doubled = BlockSparse(0.1, tol=1e-13).fit(
        np.concatenate([2 * X, X, X, X]), (Y * np.sqrt(c)).T.ravel(), tasks=np.repeat(np.arange(4), len(X))
    )
    np.testing.assert_allclose(weighted.coef_, doubled.coef_, atol=1e-6)


def test_warm_start_from_the_solution_needs_one_round():
    X, Y = mixed(16)
    model = BlockSparse(0.02, loss=MIXED, warm_start=True, tol=1e-8).fit(X, Y)
    first, coef = model.n_iter_, model.coef_.copy()
    model.fit(X, Y)
    assert model.n_iter_ == 1 < first
    np.testing.assert_array_equal(model.coef_, coef)
    assert not np.shares_memory(model.fit(X, Y).coef_, coef)


def test_same_data_give_the_same_bytes():
    X, Y = mixed(17, missing=0.2)
    first, second = (BlockSparse(0.02, loss=MIXED).fit(X, Y) for _ in range(2))
    assert first.coef_.tobytes() == second.coef_.tobytes()


def test_stopping_too_early_warns_and_says_what_to_do():
    X, Y = table(18)
    with pytest.warns(ConvergenceWarning, match="increase max_iter"):
        BlockSparse(1e-3, max_iter=1, tol=1e-12).fit(X, Y)


def test_nasty_but_legal_data_are_fitted_without_a_warning():
    rng = np.random.default_rng(19)
    X = rng.normal(size=(40, 5))
    X[:, 0] = 7.0  # constant
    X[:, 1] = X[:, 2]  # copies
    Y = np.column_stack([X[:, 3], 0.1 + 1e-12 * X[:, 3], 1e6 * X[:, 4]])  # noise-free, nearly constant, huge
    Y[5:, 0] = np.nan  # five labels
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = BlockSparse(0.01).fit(X, Y)
    assert np.isfinite(model.coef_).all()
    assert not model.coef_[:, 0].any()


def test_separable_classes_have_finite_coefficients():
    X = np.linspace(-1, 1, 30)[:, None]
    model = BlockSparse(1e-4, loss="logistic").fit(X, (X[:, 0] > 0).astype(float))
    assert np.isfinite(model.coef_).all()
    assert model.score(X, (X[:, 0] > 0).astype(float)) == 1.0


def test_score_is_the_mean_over_tasks_of_r2_or_accuracy():
    X, Y = mixed(20, missing=0.2)
    model = BlockSparse(0.02, loss=MIXED).fit(X, Y)
    P, expected = model.predict(X), []
    for t in range(4):
        seen = ~np.isnan(Y[:, t])
        y, p = Y[seen, t], P[seen, t]
        expected.append(np.mean(y == p) if t % 2 else 1 - ((y - p) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    np.testing.assert_allclose(model.score(X, Y), np.mean(expected))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 0.0}, "alpha must be a positive number"),
        ({"loss": "hinge"}, 'loss must be one of "squared", "logistic"'),
        ({"loss": ["squared"]}, "loss has 1 entries for 4 tasks"),
        ({"loss": {0: "squared"}}, "no entry for task 1"),
        ({"task_weighting": "fair"}, 'task_weighting must be "equal"'),
        ({"task_weighting": [1.0, 2.0]}, "task_weighting must be 4 positive numbers"),
        ({"loss": "logistic"}, "needs targets 0 and 1"),
    ],
)
def test_wrong_settings_are_named_with_a_remedy(change, message):
    X, Y = table(21)
    with pytest.raises(InputError, match=message):
        BlockSparse().set_params(**change).fit(X, Y)


def test_wrong_data_are_named_with_a_remedy():
    X, Y = table(22)
    labels = np.repeat(["north", "south"], 60)
    model = BlockSparse().fit(X, Y[:, 0], tasks=labels)
    with pytest.raises(InputError, match='Did you mean "north"'):
        model.predict(X, tasks=np.repeat("nroth", len(X)))
    with pytest.raises(InputError, match="one task label per row"):
        BlockSparse().fit(X, Y, tasks=labels)
    with pytest.raises(InputError, match="tasks has shape"):
        BlockSparse().fit(X, Y[:, 0], tasks=labels[:-1])
    with pytest.raises(InputError, match="no labelled row"):
        BlockSparse().fit(X, np.where(np.arange(4) == 2, np.nan, Y))
    with pytest.raises(InputError, match="sample_weight"):
        BlockSparse().fit(X, Y, sample_weight=-np.ones(len(X)))
    with pytest.raises(InputError, match="without tasks"):
        BlockSparse().fit(X, Y).predict(X, tasks=labels)
    with pytest.raises(InputError, match="the model has 4 tasks"):
        BlockSparse().fit(X, Y).score(X, Y[:, :2])


def test_the_example_in_the_documentation_holds():
    assert doctest.testmod(module).failed == 0
