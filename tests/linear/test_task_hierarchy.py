"""TaskHierarchy: the dense problem, the star, trees that are found and trees that are not there."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, is_monotonic, is_valid_linkage
from scipy.special import expit
from sklearn.linear_model import Ridge
from sklearn.metrics import adjusted_rand_score

import polytask.linear.task_hierarchy as module
from polytask.core.errors import InputError
from polytask.linear import MeanRegularised, TaskHierarchy
from polytask.linear.moments import Column, gather
from polytask.linear.solvers.coalescent import star
from polytask.linear.solvers.losses import TaskLosses
from polytask.linear.solvers.quadratic import solve_quadratic


def planted(seed=0, tasks=18, clusters=3, d=8, n=10, *, spread=0.3, logistic=False):
    rng = np.random.default_rng(seed)
    label = np.arange(tasks) % clusters
    W = 1.5 * (rng.normal(size=(clusters, d))[label] + spread * rng.normal(size=(tasks, d)))
    task = np.repeat(np.arange(tasks), n)
    X = rng.normal(size=(len(task), d))
    z = np.einsum("nd,nd->n", X, W[task])
    y = (rng.random(len(z)) < expit(z)).astype(float) if logistic else z + task + rng.normal(size=len(z))
    return X, y, task, label, W


@pytest.mark.parametrize("logistic", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_planted_clusters_are_the_top_of_the_tree_and_the_objective_never_falls(seed, logistic):
    n_tasks, n = 18, 40 if logistic else 15
    X, y, tasks, label, _ = planted(seed, tasks=n_tasks, d=5, n=n, logistic=logistic)
    model = TaskHierarchy(loss="logistic" if logistic else "squared").fit(X, y, tasks)
    assert adjusted_rand_score(label, fcluster(model.tree_, 3, "maxclust")) > 0.9
    assert (np.diff(model.evidence_) >= -1e-7).all()
    assert model.tree_evidence_[-1] > model.star_evidence_
    assert is_valid_linkage(model.tree_)
    assert is_monotonic(model.tree_)


def test_tree_saves_rows_where_tasks_are_clustered():
    X, y, tasks, _, W = planted(0)
    model = TaskHierarchy().fit(X, y, tasks)
    ridges = [
        np.mean([np.square(Ridge(a).fit(X[tasks == t], y[tasks == t]).coef_ - W[t]).sum() for t in range(18)])
        for a in (0.1, 0.3, 1.0, 3.0)
    ]
    assert np.square(model.coef_ - W).sum(axis=1).mean() < 0.6 * min(ridges)


def test_unrelated_tasks_stay_apart():
    X, y, tasks, _, _ = planted(0, clusters=18, spread=0.0, n=20)
    model = TaskHierarchy().fit(X, y, tasks)
    assert model.evidence_[-1] >= model.star_evidence_ - 1e-6
    assert (model.tree_[:, 2] == model.tree_[0, 2]).all()
    correlation = model.relations_["task correlation"].values
    assert correlation[0, 1] < 0.5


def test_two_tasks_with_the_same_coefficients_join_first():
    rng = np.random.default_rng(0)
    W = rng.normal(size=(5, 4)) * 2.0
    W[3] = W[1]
    X = rng.normal(size=(200, 4))
    model = TaskHierarchy().fit(X, X @ W.T + 0.5 * rng.normal(size=(200, 5)))
    scales, _ = module._joined(*_evidence_and_scales(X, X @ W.T + 0.5 * rng.normal(size=(200, 5))))
    np.testing.assert_array_equal(scales.linkage[0, :2], [1, 3])
    given = TaskHierarchy(tree=scales.linkage).fit(X, X @ W.T)
    np.testing.assert_allclose(given.coef_[1], given.coef_[3], atol=0.05)
    assert model.coef_.shape == (5, 4)


def _evidence_and_scales(X, Y):
    from polytask.linear.moments import Moments
    from polytask.linear.solvers.coalescent import Scales
    from polytask.linear.solvers.task_evidence import SquaredStatistics, TaskEvidence

    T, d = Y.shape[1], X.shape[1]
    squared = SquaredStatistics(Moments.of(X, Y), own_intercepts=True)
    evidence = TaskEvidence(squared, [], logistic=np.zeros(T, dtype=bool), own_intercepts=True)
    evidence.set_noise(0.25)
    return evidence, Scales(star(T, 1.0), np.full(d, 4.0), 1.0, 0.25)


def test_star_is_mean_regularisation():
    X, y, tasks, _, _ = planted(1, tasks=6)
    model = TaskHierarchy(tree=star(6, 0.8)).fit(X, y, tasks)
    # C = 0.8 I + root 11^T in units of Lam: correlation root / (root + 0.8), mean losses of equal n
    root, n = model.root_, 10
    scaled = X * np.sqrt(model.feature_variance_)
    alpha = model.noise_variance_ / n / (root + 0.8)
    other = MeanRegularised(alpha, 0.8 / root, task_weighting="examples").fit(scaled, y, tasks)
    np.testing.assert_allclose(model.coef_, other.coef_ * np.sqrt(model.feature_variance_), atol=1e-6)
    np.testing.assert_allclose(model.intercept_, other.intercept_, atol=1e-6)


def test_means_solve_the_coupled_ridge_of_the_tree():
    X, y, tasks, _, _ = planted(2, tasks=6)
    model = TaskHierarchy().fit(X, y, tasks)
    half = np.sqrt(model.feature_variance_)
    blocks = gather(X * half, [Column(np.flatnonzero(tasks == t), y[tasks == t]) for t in range(6)])
    losses = TaskLosses(blocks, logistic=np.zeros(6, dtype=bool), weights=np.ones(6), n_features=8)
    coupling = model.noise_variance_ / 10 * np.linalg.inv(model.covariance_)
    found = solve_quadratic(losses, tasks=coupling, tol=1e-10, max_steps=10_000)
    np.testing.assert_allclose(model.coef_, found.W * half, atol=1e-6)


@pytest.mark.parametrize("intercepts", ["own", "coupled"])
def test_order_of_the_tasks_does_not_matter(intercepts):
    X, y, tasks, _, _ = planted(3, tasks=9)
    order = np.random.default_rng(0).permutation(9)
    one, other = (TaskHierarchy(intercepts=intercepts).fit(X, y, t) for t in (tasks, order[tasks]))
    np.testing.assert_allclose(other.coef_[order], one.coef_, atol=1e-4)
    assert other.evidence_[-1] == pytest.approx(one.evidence_[-1], abs=1e-4)


def test_wide_targets_with_gaps_are_the_long_form_and_losses_may_differ():
    rng = np.random.default_rng(5)
    X = rng.normal(size=(60, 4))
    Y = X @ rng.normal(size=(4, 2))[:, [0, 0, 1, 1]] + 0.5 * rng.normal(size=(60, 4))
    Y[:, 1] = Y[:, 1] > 0
    Y[rng.random(Y.shape) < 0.2] = np.nan
    rows, task = np.nonzero(~np.isnan(Y))
    loss = ["squared", "logistic", "squared", "squared"]
    wide, long = (
        TaskHierarchy(loss=loss, tol=1e-6).fit(X, Y),
        TaskHierarchy(loss=loss, tol=1e-6).fit(X[rows], Y[rows, task], task),
    )
    np.testing.assert_allclose(wide.coef_, long.coef_, atol=1e-3)
    assert np.corrcoef(wide.coef_[0], wide.coef_[1])[0, 1] > 0.9
    assert wide.logistic_.tolist() == [False, True, False, False]


def test_relations_are_the_tree_and_its_covariance():
    X, y, tasks, _, _ = planted(0, tasks=6)
    names = np.array(list("abcdef"))[tasks]
    found = TaskHierarchy().fit(X, y, names).relations_
    assert found["task tree"].kind == "tree"
    assert found["task tree"].rows == ("a", "b", "c", "d", "e", "f")
    assert found["task covariance"].values[0, 3] > found["task covariance"].values[0, 1]


def test_wrong_trees_and_losses_are_named():
    X, y, tasks, _, _ = planted(0, tasks=4)
    falling = star(4, 1.0)
    falling[2, 2] = 0.5
    for tree in (star(5, 1.0), falling, np.full((3, 4), np.nan)):
        with pytest.raises(InputError, match="linkage matrix"):
            TaskHierarchy(tree=tree).fit(X, y, tasks)
    with pytest.raises(InputError, match='has no loss="huber"'):
        TaskHierarchy(loss="huber").fit(X, y, tasks)


def test_examples_in_the_docstring_hold():
    assert doctest.testmod(module).failed == 0
