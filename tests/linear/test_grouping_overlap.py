"""GroupingOverlap (GO-MTL): falling objective, partial optimality, limits, the table of synthetic groups."""

from __future__ import annotations

import doctest
import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso

import polytask.linear.grouping_overlap as module
from polytask.core.errors import InputError
from polytask.linear import ClusteredTasks, GroupingOverlap, MeanRegularised, TraceNorm


def labels(problems, seed, loss, **sizes):
    X, y, tasks = problems.stacked(seed, **sizes)
    if loss == "logistic":
        y = (y > np.array([np.median(y[tasks == t]) for t in range(tasks.max() + 1)])[tasks]).astype(float)
    return X, y, tasks


@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_objective_falls_every_round_and_is_that_of_the_definition(problems, loss, k):
    X, y, tasks = labels(problems, 0, loss, noise=2.0)
    model = GroupingOverlap(k, alpha=0.03, ridge=0.02, loss=loss).fit(X, y, tasks=tasks)
    assert (np.diff(model.objectives_) <= 0).all()
    penalty = 0.03 * np.abs(model.mixing_).sum() + 0.01 * np.square(model.components_).sum()
    assert model.objectives_[-1] == pytest.approx(problems.loss(model, X, y, tasks) + penalty, rel=1e-9)
    np.testing.assert_allclose(model.coef_, model.mixing_ @ model.components_, atol=1e-12)


def test_mixtures_are_lassos_on_the_latent_tasks(problems):
    X, y, tasks = problems.stacked(1)
    model = GroupingOverlap(3, alpha=0.1, ridge=0.05, tol=1e-13, max_iter=20_000).fit(X, y, tasks=tasks)
    for t in range(5):
        mine = tasks == t
        design = X[mine] @ model.components_.T
        alone = Lasso(alpha=0.1, tol=1e-12, max_iter=100_000).fit(design, y[mine])
        np.testing.assert_allclose(model.mixing_[t], alone.coef_, atol=1e-4)


def test_latent_tasks_have_no_gradient(problems):
    X, y, tasks = problems.stacked(2)
    model = GroupingOverlap(2, alpha=0.1, ridge=0.05, tol=1e-14, max_iter=50_000).fit(X, y, tasks=tasks)
    gradient = 0.05 * model.components_
    for t in range(5):
        mine = tasks == t
        rest = X[mine] @ model.coef_[t] + model.intercept_[t] - y[mine]
        gradient = gradient + np.outer(model.mixing_[t], rest @ X[mine] / mine.sum())
    assert np.abs(gradient).max() < 1e-4


def test_order_and_signs_of_latent_tasks_do_not_matter(problems):
    X, y, tasks = problems.stacked(7, rank=3)
    order = np.array([3, 1, 4, 0, 2])
    model, other = (
        GroupingOverlap(3, alpha=0.03, ridge=0.02, tol=1e-12, max_iter=20_000).fit(X, y, tasks=t)
        for t in (tasks, order[tasks])
    )
    np.testing.assert_allclose(other.coef_[order], model.coef_, atol=1e-4)
    assert other.objectives_[-1] == pytest.approx(model.objectives_[-1], rel=1e-8)
    # every latent task has its counterpart, perhaps with the other sign
    likeness = np.abs(np.corrcoef(model.components_, other.components_)[:3, 3:])
    np.testing.assert_allclose(likeness.max(axis=1), 1.0, atol=1e-4)
    assert sorted(likeness.argmax(axis=1)) == [0, 1, 2]


def test_without_penalties_and_with_a_latent_task_each_it_is_least_squares_alone(problems):
    X, y, tasks = problems.stacked(3)
    model = GroupingOverlap(5, alpha=0.0, ridge=0.0, start_ridge=1e-3).fit(X, y, tasks=tasks)
    for t in range(5):
        mine = tasks == t
        design = np.column_stack([X[mine], np.ones(mine.sum())])
        np.testing.assert_allclose(model.coef_[t], np.linalg.lstsq(design, y[mine])[0][:-1], atol=1e-4)


def test_one_latent_task_makes_all_tasks_collinear(problems):
    X, y, tasks = problems.stacked(4)
    s = np.linalg.svd(GroupingOverlap(1).fit(X, y, tasks=tasks).coef_, compute_uv=False)
    assert s[1] < 1e-12 * s[0]


def test_a_stronger_penalty_uses_fewer_latent_tasks_and_in_the_end_none(problems):
    X, y, tasks = problems.stacked(5, rank=4)
    used = [
        int((GroupingOverlap(4, alpha=alpha, ridge=0.1).fit(X, y, tasks=tasks).mixing_ != 0).sum())
        for alpha in (1e-3, 0.3, 100.0)
    ]
    assert used[0] > used[1] > used[2] == 0


def latent_tasks(seed, T=30, d=20, n=12):
    """Tasks that mix 2 of 4 latent tasks; n training and 40 test rows each."""
    rng = np.random.default_rng(seed)
    C, W = rng.normal(size=(4, d)), np.zeros((T, d))
    for t in range(T):
        W[t] = rng.normal(size=2) @ C[rng.choice(4, 2, replace=False)]
    X = rng.normal(size=(T, n + 40, d))
    Y = np.einsum("tnd,td->tn", X, W) + rng.normal(size=X.shape[:2])
    return X, Y, n


def test_on_overlapping_groups_mixtures_beat_low_rank_and_both_beat_one_common_mean():
    """On overlapping groups mixtures and low rank win by far; drawing to one mean does not help."""
    errors = {}
    for seed in (0, 1):
        X, Y, n = latent_tasks(seed)
        T, d = X.shape[0], X.shape[2]
        tasks = np.repeat(np.arange(T), n)
        for name, grid in {
            "mean": [MeanRegularised(a, 1.0) for a in (0.03, 0.1, 0.3, 1.0)],
            "trace": [TraceNorm(a, fit_intercept=False) for a in (0.3, 1.0, 3.0)],
            "clusters": [ClusteredTasks(a, 4, fit_intercept=False) for a in (0.03, 0.1, 0.3)],
            "mixtures": [GroupingOverlap(4, alpha=a, ridge=a, fit_intercept=False) for a in (0.01, 0.03, 0.1)],
        }.items():
            scores = []
            for model in grid:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ConvergenceWarning)
                    model.fit(X[:, :n].reshape(-1, d), Y[:, :n].ravel(), tasks=tasks)
                rest = Y[:, n:] - np.einsum("tnd,td->tn", X[:, n:], model.coef_) - model.intercept_[:, None]
                scores.append(np.square(rest).mean())
            errors.setdefault(name, []).append(min(scores))
    mean = {name: np.mean(values) for name, values in errors.items()}
    assert mean["mixtures"] < mean["trace"] < mean["mean"], mean
    assert mean["mixtures"] < 0.5 * mean["mean"], mean
    assert mean["clusters"] < mean["mean"], mean


def test_wrong_settings_are_named(problems):
    X, y, tasks = problems.stacked(6)
    with pytest.raises(InputError, match="n_latent must be a whole number of at least 1"):
        GroupingOverlap(0).fit(X, y, tasks=tasks)
    with pytest.raises(InputError, match="alpha must be a number of at least 0"):
        GroupingOverlap(2, alpha=-1.0).fit(X, y, tasks=tasks)


def test_examples_in_the_docstring_hold():
    assert doctest.testmod(module).failed == 0
