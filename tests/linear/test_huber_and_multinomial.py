"""Huber and multinomial losses: definitions, optima by a general convex solver, special cases, certificates."""

from __future__ import annotations

import warnings

import cvxpy as cp
import numpy as np
import pytest
from scipy import sparse
from scipy.special import logsumexp
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

import polytask.linear.solvers.losses as losses_module
from polytask.core.errors import InputError
from polytask.linear import (
    AlternatingStructure,
    BlockSparse,
    ClusteredTasks,
    GraphRegularised,
    GroupingOverlap,
    MeanRegularised,
    MultiTaskFeatureLearning,
    RelaxedClusters,
    RobustMultiTask,
    TaskCovariance,
    TraceNorm,
)


def outliers(seed=0, sizes=(25, 18, 30), d=4):
    """Rows of tasks whose targets have gross errors in one row of five."""
    rng = np.random.default_rng(seed)
    tasks = np.repeat(np.arange(len(sizes)), sizes)
    X = rng.normal(size=(len(tasks), d)) + 0.5
    W = rng.normal(size=d) + 0.3 * rng.normal(size=(len(sizes), d))
    y = np.einsum("nd,nd->n", X, W[tasks]) + 0.3 * rng.normal(size=len(tasks)) + tasks
    y[::5] += 30.0 * rng.standard_exponential(size=len(y[::5]))
    return X, y, tasks, W


def three_classes(seed=0, n=80, d=5, K=3):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) + 0.5
    return X, np.argmax(X @ rng.normal(size=(d, K)) + rng.gumbel(size=(n, K)) + [0.5, 0.0, -0.5][:K], axis=1) + 1.0


def scale(y):
    """1.4826 times the median absolute deviation."""
    return 1.4826 * np.median(np.abs(y - np.median(y)))


def huber(r, delta):
    return np.where(np.abs(r) <= delta, 0.5 * r**2, delta * np.abs(r) - 0.5 * delta**2)


def huber_objective(model, X, y, tasks, epsilon, penalty, W=None):
    W = model.coef_ if W is None else W
    z = np.einsum("nd,nd->n", X, W[tasks]) + model.intercept_[tasks]
    total = sum(huber(y - z, epsilon * scale(y[tasks == t]))[tasks == t].mean() for t in range(tasks.max() + 1))
    return float(total + penalty)


def huber_optimum(X, y, tasks, epsilon, penalty):
    """Least value of Huber losses + penalty(W) by a general convex solver."""
    T = tasks.max() + 1
    W, b = cp.Variable((T, X.shape[1])), cp.Variable(T)
    total = penalty(W)
    for t in range(T):
        mine = tasks == t
        total += 0.5 * cp.sum(cp.huber(y[mine] - X[mine] @ W[t] - b[t], epsilon * scale(y[mine]))) / mine.sum()
    problem = cp.Problem(cp.Minimize(total))
    problem.solve(solver="CLARABEL")
    assert problem.status == "optimal"
    return float(problem.value)


def rows(W):
    return float(np.linalg.norm(W, axis=0).sum())


def nuclear(W):
    return float(np.linalg.svd(W, compute_uv=False).sum())


HUBER = {
    "l1/l2": (BlockSparse, lambda W: 0.05 * rows(W), lambda W: 0.05 * cp.sum(cp.norm(W, 2, axis=0))),
    "trace norm": (TraceNorm, lambda W: 0.05 * nuclear(W), lambda W: 0.05 * cp.normNuc(W)),
    "feature learning": (
        MultiTaskFeatureLearning,
        lambda W: 0.05 * nuclear(W) ** 2,
        lambda W: 0.05 * cp.square(cp.normNuc(W)),
    ),
    "mean": (lambda alpha, **kw: MeanRegularised(alpha, 0.0, **kw), None, None),
}


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 1.35])
@pytest.mark.parametrize("kind", ["l1/l2", "trace norm", "feature learning"])
def test_huber_loss_reaches_the_optimum_of_a_general_solver_and_its_gap_bounds_the_distance(kind, epsilon):
    X, y, tasks, _ = outliers(1)
    make, value, penalty = HUBER[kind]
    best = huber_optimum(X, y, tasks, epsilon, penalty)
    model = make(0.05, loss="huber", epsilon=epsilon, tol=1e-9).fit(X, y, tasks=tasks)
    reached = huber_objective(model, X, y, tasks, epsilon, value(model.coef_))
    assert reached <= best * (1 + 1e-5)
    for tol in (1e-1, 1e-3):
        rough = make(0.05, loss="huber", epsilon=epsilon, tol=tol).fit(X, y, tasks=tasks)
        reached = huber_objective(rough, X, y, tasks, epsilon, value(rough.coef_))
        assert best * (1 - 1e-6) <= reached <= best * (1 + 1e-6) + rough.dual_gap_


def test_mean_regularised_huber_loss_reaches_the_optimum_of_a_general_solver():
    X, y, tasks, _ = outliers(2)
    alpha, mu = 0.02, 0.5

    def penalty(W):
        common = cp.Variable(X.shape[1])
        own = sum(cp.sum_squares(W[t] - common) for t in range(3))
        return alpha * (1 + mu) / 2 * (cp.sum_squares(common) + own / mu)

    best = huber_optimum(X, y, tasks, 0.5, penalty)
    model = MeanRegularised(alpha, mu, loss="huber", epsilon=0.5).fit(X, y, tasks=tasks)
    own = model.coef_ - model.common_
    value = alpha * (1 + mu) / 2 * ((model.common_**2).sum() + (own**2).sum() / mu)
    assert huber_objective(model, X, y, tasks, 0.5, value) <= best * (1 + 1e-5)


@pytest.mark.parametrize(
    "model",
    [
        AlternatingStructure(0.05, ridge=0.001),
        BlockSparse(0.01),
        ClusteredTasks(0.01),
        GraphRegularised(0.01),
        GroupingOverlap(alpha=0.001, ridge=0.001),
        MeanRegularised(),
        RelaxedClusters(0.01),
        RobustMultiTask(0.02, 0.02),
        TaskCovariance(0.001, 0.001),
        TraceNorm(0.01),
    ],
    ids=lambda model: type(model).__name__,
)
def test_huber_loss_ignores_gross_errors_that_ruin_squared_loss(model):
    X, y, tasks, W = outliers(3, sizes=(60, 50, 70))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.set_params(epsilon=0.3)
        robust = np.abs(model.set_params(loss="huber").fit(X, y, tasks=tasks).coef_ - W).mean()
        plain = np.abs(model.set_params(loss="squared").fit(X, y, tasks=tasks).coef_ - W).mean()
    assert robust < 0.35 * plain


@pytest.mark.parametrize("make", [BlockSparse, TraceNorm, MeanRegularised])
def test_huber_loss_with_a_far_threshold_is_squared_loss(make):
    X, y, tasks, _ = outliers(4)
    far = make(0.05, loss="huber", epsilon=1e6, tol=1e-11).fit(X, y, tasks=tasks)
    squared = make(0.05, tol=1e-11).fit(X, y, tasks=tasks)
    np.testing.assert_allclose(far.coef_, squared.coef_, atol=1e-5)
    np.testing.assert_allclose(far.intercept_, squared.intercept_, atol=1e-5)


def test_huber_thresholds_follow_the_scale_of_each_task():
    X, y, tasks, _ = outliers(5)
    factor = np.array([1.0, 100.0, 1e-3])
    one = MeanRegularised(mu=np.inf, loss="huber", epsilon=0.5, tol=1e-9).fit(X, y, tasks=tasks)
    other = MeanRegularised(mu=np.inf, loss="huber", epsilon=0.5, tol=1e-9).fit(X, y * factor[tasks], tasks=tasks)
    np.testing.assert_allclose(other.coef_ / factor[:, None], one.coef_, rtol=1e-5, atol=1e-8)


def test_huber_intercepts_are_exact_where_most_rows_are_outside_the_threshold():
    X, y, tasks, _ = outliers(6)
    model = BlockSparse(1e6, loss="huber", epsilon=1e-3).fit(X, y, tasks=tasks)
    assert not model.coef_.any()
    for t in range(3):
        mine = y[tasks == t]
        delta = 1e-3 * scale(mine)
        assert abs(np.clip(mine - model.intercept_[t], -delta, delta).sum()) <= 1e-9 * delta * len(mine)
        assert abs(model.intercept_[t] - np.median(mine)) < 0.5


@pytest.mark.parametrize("value", [0.0, -1.0, np.inf, "much"])
def test_a_wrong_epsilon_is_refused(value):
    X, y, tasks, _ = outliers(7)
    with pytest.raises(InputError, match="epsilon must be a positive number"):
        BlockSparse(loss="huber", epsilon=value).fit(X, y, tasks=tasks)


def test_squared_logistic_huber_and_multinomial_tasks_are_learned_together():
    rng = np.random.default_rng(8)
    X, classes = three_classes(8)
    Y = np.column_stack([X @ rng.normal(size=5), X[:, 0] > 0.5, X @ rng.normal(size=5), classes])
    Y[rng.random(Y.shape) < 0.1] = np.nan
    loss = ["squared", "logistic", "huber", "multinomial"]
    model = BlockSparse(0.02, loss=loss, tol=1e-9).fit(X, Y)
    assert model.coef_.shape == (6, 5)
    assert model.outputs_.tolist() == ["0", "1", "2", "3=1", "3=2", "3=3"]
    assert model.classes_[3].tolist() == [1.0, 2.0, 3.0]
    assert model.predict(X).shape == (80, 4)
    assert set(np.unique(model.predict(X)[:, 3])) <= {1.0, 2.0, 3.0}
    assert 0.7 < model.score(X, Y) < 1.0
    # the same cells, one row each
    seen = ~np.isnan(Y)
    row, task = np.nonzero(seen)
    stacked = BlockSparse(0.02, loss=loss, tol=1e-9).fit(X[row], Y[seen], tasks=task)
    np.testing.assert_allclose(stacked.coef_, model.coef_, atol=1e-5)
    np.testing.assert_array_equal(stacked.predict(X, tasks=np.repeat(3, 80)), model.predict(X)[:, 3])
    np.testing.assert_allclose(stacked.score(X[row], Y[seen], tasks=task), model.score(X, Y))
    with pytest.raises(InputError, match="use class_probabilities"):
        stacked.task_scores(X, tasks=np.repeat(3, 80))
    np.testing.assert_allclose(stacked.task_scores(X, tasks=np.repeat(2, 80)), model.task_scores(X)[:, 2], atol=1e-4)


# -- multinomial ------------------------------------------------------------------------------------


def softmax_objective(model, X, y, penalty):
    z = X @ model.coef_.T + model.intercept_
    own = np.searchsorted(np.unique(y), y)
    return float((logsumexp(z, axis=1) - z[np.arange(len(y)), own]).mean() + penalty)


def softmax_optimum(X, y, penalty):
    members = (y[:, None] == np.unique(y)).astype(float)
    W, b = cp.Variable((members.shape[1], X.shape[1])), cp.Variable((1, members.shape[1]))
    z = X @ W.T + np.ones((len(X), 1)) @ b
    loss = cp.sum(cp.log_sum_exp(z, axis=1)) - cp.sum(cp.multiply(members, z))
    problem = cp.Problem(cp.Minimize(loss / len(y) + penalty(W)))
    problem.solve(solver="CLARABEL")
    assert problem.status == "optimal"
    return float(problem.value)


@pytest.mark.parametrize("alpha", [0.1, 0.01])
@pytest.mark.parametrize("kind", ["l1/l2", "trace norm"])
def test_multinomial_loss_reaches_the_optimum_of_a_general_solver_and_its_gap_bounds_the_distance(kind, alpha):
    X, y = three_classes(9)
    if kind == "l1/l2":
        make, value, penalty = BlockSparse, rows, lambda W: cp.sum(cp.norm(W, 2, axis=0))
    else:
        make, value, penalty = TraceNorm, nuclear, cp.normNuc
    best = softmax_optimum(X, y, lambda W: alpha * penalty(W))
    model = make(alpha, loss="multinomial", tol=1e-9).fit(X, y)
    assert softmax_objective(model, X, y, alpha * value(model.coef_)) <= best * (1 + 1e-5)
    for tol in (1e-1, 1e-3):
        rough = make(alpha, loss="multinomial", tol=tol).fit(X, y)
        reached = softmax_objective(rough, X, y, alpha * value(rough.coef_))
        assert best * (1 - 1e-6) <= reached <= best * (1 + 1e-6) + rough.dual_gap_


def test_two_multinomial_tasks_share_the_norm_of_every_feature():
    X, first = three_classes(10)
    second = np.where(X[:, 1] + 0.5 * np.random.default_rng(0).normal(size=80) > 0.5, 4.0, 7.0)
    model = BlockSparse(0.15, loss="multinomial").fit(X, np.column_stack([first, second]))
    assert model.coef_.shape == (5, 5)
    used = model.coef_ != 0
    assert 0 < used.any(axis=0).sum() < 5
    assert (used.all(axis=0) == used.any(axis=0)).all()
    top = model.alpha_max(X, np.column_stack([first, second]))
    gradient = np.concatenate(
        [
            -((y[:, None] == np.unique(y)) - (y[:, None] == np.unique(y)).mean(axis=0)).T @ X / 80
            for y in (first, second)
        ]
    )
    np.testing.assert_allclose(top, np.linalg.norm(gradient, axis=0).max(), rtol=1e-9)
    assert not model.set_params(alpha=top * 1.0001).fit(X, np.column_stack([first, second])).coef_.any()


def test_a_multinomial_task_without_sharing_is_scikit_learns_logistic_regression():
    X, y = three_classes(11, n=150)
    # the squared trace norm with alpha -> 0 leaves the plain ridge
    ours = TaskCovariance(1e-9, 0.02, loss="multinomial", tol=1e-10).fit(X, y)
    theirs = LogisticRegression(C=1 / (0.02 * len(y)), tol=1e-10, max_iter=10_000).fit(X, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-4)
    np.testing.assert_allclose(ours.class_probabilities(X), theirs.predict_proba(X), atol=1e-4)
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
    assert ours.score(X, y) == theirs.score(X, y)


def test_two_classes_of_multinomial_loss_are_logistic_loss():
    X, y = three_classes(12, K=2)
    two = BlockSparse(0.02, loss="multinomial", tol=1e-10).fit(X, y)
    # half the difference in each row: its norm is that of one row over sqrt(2)
    one = BlockSparse(0.02 / np.sqrt(2), loss="logistic", tol=1e-10).fit(X, y - 1)
    np.testing.assert_allclose(two.coef_[1] - two.coef_[0], one.coef_[0], atol=1e-4)
    np.testing.assert_allclose(two.class_probabilities(X)[:, 1], one.predict_probability(X), atol=1e-4)


@pytest.mark.parametrize("loss", ["huber", "multinomial"])
@pytest.mark.parametrize("make", [BlockSparse, TraceNorm])
def test_sparse_rows_products_and_gram_matrices_agree(make, loss, monkeypatch):
    X, y = three_classes(13)
    X = np.where(X > 0.3, X, 0.0)
    dense = make(0.02, loss=loss, tol=1e-10).fit(X, y)
    monkeypatch.setattr(losses_module, "_LARGEST_GRAMS", 0)
    monkeypatch.setattr(losses_module, "_LARGEST_CURVATURE", 0)
    thin = make(0.02, loss=loss, tol=1e-10).fit(sparse.csc_array(X), y)
    np.testing.assert_allclose(thin.coef_, dense.coef_, atol=2e-5)
    np.testing.assert_allclose(thin.intercept_, dense.intercept_, atol=2e-4)


def test_weight_two_is_a_row_twice_for_huber_and_multinomial_loss():
    X, y = three_classes(14)
    counts = np.random.default_rng(0).integers(1, 3, size=len(y))
    again = np.repeat(np.arange(len(y)), counts)
    for loss in ("huber", "multinomial"):
        weighted = BlockSparse(0.02, loss=loss, tol=1e-11).fit(X, y, sample_weight=counts)
        repeated = BlockSparse(0.02, loss=loss, tol=1e-11).fit(X[again], y[again])
        np.testing.assert_allclose(weighted.coef_, repeated.coef_, atol=1e-5)


def test_the_number_of_classes_does_not_weigh_a_multinomial_task():
    X, y = three_classes(15)
    Y = np.column_stack([y, X @ np.ones(5)])
    Y[:40, 1] = np.nan
    loss = ["multinomial", "squared"]
    named = BlockSparse(0.02, loss=loss, task_weighting="examples", tol=1e-10).fit(X, Y)
    given = BlockSparse(0.02, loss=loss, task_weighting=[80 / 60, 40 / 60], tol=1e-10).fit(X, Y)
    np.testing.assert_allclose(named.coef_, given.coef_, atol=1e-9)


def test_a_multinomial_task_with_one_class_predicts_it():
    X, y = three_classes(16)
    with pytest.warns(UserWarning, match="have the same target"):
        model = BlockSparse(0.02, loss="multinomial").fit(X, np.column_stack([y, np.full(80, 2.0)]))
    assert (model.predict(X)[:, 1] == 2.0).all()
    np.testing.assert_array_equal(model.class_probabilities(X, task=1), np.ones((80, 1)))


def test_separable_classes_of_multinomial_loss_end_finite():
    X = np.linspace(-1, 1, 60)[:, None]
    y = np.digitize(X[:, 0], [-0.3, 0.4]).astype(float)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = BlockSparse(1e-4, loss="multinomial", max_iter=500).fit(X, y)
    assert np.isfinite(model.coef_).all()
    assert np.isfinite(model.intercept_).all()
    assert model.score(X, y) > 0.95
    assert model.dual_gap_ <= 1e-6 * np.log(3) or any(issubclass(w.category, ConvergenceWarning) for w in caught)


@pytest.mark.parametrize("make", [TraceNorm, RobustMultiTask, ClusteredTasks, RelaxedClusters, TaskCovariance])
def test_relations_name_the_classes_of_a_multinomial_task(make):
    X, y = three_classes(17)
    model = make(loss=["multinomial", "squared"]).fit(X, np.column_stack([y, X[:, 0]]))
    names = ["0=1", "0=2", "0=3", "1"]
    assert any(list(relation.columns) == names for relation in model.relations_.values())


def test_methods_of_one_vector_per_task_refuse_multinomial_loss():
    X, y = three_classes(18)
    for model in (MeanRegularised(), GraphRegularised(), AlternatingStructure(), GroupingOverlap()):
        with pytest.raises(InputError, match=f'{type(model).__name__} has no loss="multinomial"; use BlockSparse'):
            model.set_params(loss="multinomial").fit(X, y)


def test_class_probabilities_are_for_multinomial_tasks():
    X, y = three_classes(19)
    with pytest.raises(InputError, match="use predict_probability"):
        BlockSparse(0.02).fit(X, y).class_probabilities(X)
