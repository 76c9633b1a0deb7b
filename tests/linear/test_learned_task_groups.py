"""LearnedTaskGroups: optimum over all partitions, limits, monotone rounds, recovery, seeds."""

from __future__ import annotations

import doctest
import itertools

import cvxpy as cp
import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Ridge

import polytask.linear.learned_task_groups
from polytask.core.errors import InputError
from polytask.linear import LearnedTaskGroups, MultiTaskFeatureLearning
from polytask.linear.moments import Block
from polytask.linear.penalties.grouped import GroupedSquaredTraceNorm
from polytask.linear.penalties.spectral import SquaredTraceNorm
from polytask.linear.solvers.losses import TaskLosses
from polytask.linear.solvers.proximal import solve_proximal


def squared_trace_norms(W, labels):
    """The penalty of alpha 1 by the definition."""
    return sum(np.linalg.svd(W[labels == g], compute_uv=False).sum() ** 2 for g in np.unique(labels))


def planted(seed=0, T=12, d=10, n=20, groups=3, rank=2, noise=0.5):
    """Tasks in groups that span ``rank`` directions each; returns X, y, tasks, W and the groups."""
    rng = np.random.default_rng(seed)
    label = np.arange(T) % groups
    bases = [np.linalg.qr(rng.normal(size=(d, rank)))[0] for _ in range(groups)]
    W = np.array([2.0 * bases[g] @ rng.normal(size=rank) for g in label])
    tasks = np.repeat(np.arange(T), n)
    X = rng.normal(size=(len(tasks), d))
    return X, np.einsum("nd,nd->n", X, W[tasks]) + noise * rng.normal(size=len(tasks)), tasks, W, label


@pytest.mark.parametrize("seed", range(4))
def test_on_a_small_problem_the_best_of_all_partitions_is_found(problems, seed):
    X, y, tasks = problems.stacked(seed, sizes=(14, 9, 20, 11, 16), d=4, rank=3)
    model = LearnedTaskGroups(2, 0.02, n_starts=15).fit(X, y, tasks=tasks)
    losses = TaskLosses(
        [Block(X[tasks == t], np.ones((tasks == t).sum()), y[tasks == t][:, None], np.array([t])) for t in range(5)],
        logistic=np.zeros(5, dtype=bool),
        weights=np.ones(5),
        n_features=4,
    )
    values = {}
    for rest in itertools.product((0, 1), repeat=4):
        labels = np.array((0, *rest))
        penalty = GroupedSquaredTraceNorm(0.02, labels)
        W = solve_proximal(losses, [penalty], tol=1e-8, max_steps=20_000).W
        values[(0, *rest)] = losses.at(W).value + penalty.value(W)
    best = min(values, key=values.__getitem__)
    assert tuple(model.labels_) == best
    rows = [np.flatnonzero(model.labels_ == g).tolist() for g in np.unique(model.labels_)]
    oracle = problems.optimum(
        X, y, tasks, lambda parts: (sum(0.02 * cp.square(cp.normNuc(parts[0][members])) for members in rows), [])
    )
    ours = problems.loss(model, X, y, tasks) + 0.02 * squared_trace_norms(model.coef_, model.labels_)
    assert ours == pytest.approx(oracle, rel=1e-5)
    assert ours == pytest.approx(values[best], rel=1e-5)
    assert model.objectives_[-1] == pytest.approx(ours, rel=1e-9)


def test_penalty_is_the_sum_of_those_of_the_groups_and_so_are_its_map_and_conjugate():
    rng = np.random.default_rng(0)
    V, labels = rng.normal(size=(5, 4)), np.array([0, 2, 0, 2, 7])
    penalty, part = GroupedSquaredTraceNorm(0.3, labels), SquaredTraceNorm(0.6)
    assert penalty.value(V) == pytest.approx(0.3 * squared_trace_norms(V, labels))
    W = penalty.prox(V, 0.4)
    for g in (0, 2, 7):
        np.testing.assert_allclose(W[labels == g], part.prox(V[labels == g], 0.4))
    rest = (V - W) / 0.4
    assert penalty.value(W) + penalty.conjugate(rest) == pytest.approx((W * rest).sum())


def test_one_group_is_multi_task_feature_learning(problems):
    X, y, tasks = problems.stacked(1)
    grouped = LearnedTaskGroups(1, 0.03).fit(X, y, tasks=tasks)
    together = MultiTaskFeatureLearning(0.03, tol=1e-9).fit(X, y, tasks=tasks)
    np.testing.assert_allclose(grouped.coef_, together.coef_, atol=1e-3)
    assert set(grouped.labels_) == {0}


def test_a_group_for_every_task_is_ridge_for_every_task(problems):
    X, y, tasks = problems.stacked(2)
    model = LearnedTaskGroups(9, 0.03).fit(X, y, tasks=tasks)
    np.testing.assert_array_equal(model.labels_, np.arange(5))
    for t in range(5):
        mine = tasks == t
        alone = Ridge(2 * 0.03 * mine.sum()).fit(X[mine], y[mine])
        np.testing.assert_allclose(model.coef_[t], alone.coef_, atol=1e-3)


def test_objective_never_rises_and_more_groups_never_cost_more(problems):
    X, y, tasks, _, _ = planted(3)
    reached = []
    for k in (1, 2, 4):
        model = LearnedTaskGroups(k, 0.02, n_starts=3).fit(X, y, tasks=tasks)
        assert (np.diff(model.objectives_) <= 1e-9 * model.objectives_[0]).all()
        assert model.objectives_[-1] <= model.start_objectives_.min() * (1 + 1e-9)
        ours = problems.loss(model, X, y, tasks) + 0.02 * squared_trace_norms(model.coef_, model.labels_)
        assert model.objectives_[-1] == pytest.approx(ours, rel=1e-9)
        reached.append(ours)
    assert (np.diff(reached) <= 1e-6 * reached[0]).all()


def test_planted_groups_are_found_and_help():
    errors = []
    for seed in range(2):
        X, y, tasks, W, label = planted(seed, T=15, n=40)
        model = LearnedTaskGroups(3, 0.01).fit(X, y, tasks=tasks)
        np.testing.assert_array_equal(model.labels_, label)
        one = LearnedTaskGroups(1, 0.01).fit(X, y, tasks=tasks)
        errors.append([np.square(fit.coef_ - W).sum() for fit in (model, one)])
    grouped, together = np.mean(errors, axis=0)
    assert grouped < 0.9 * together


def test_logistic_tasks_are_grouped_too(problems):
    X, y, tasks, _, label = planted(5, T=6, d=6, n=150, groups=2, rank=1)
    model = LearnedTaskGroups(2, 0.003, n_starts=2, loss="logistic").fit(X, (y > 0).astype(float), tasks=tasks)
    np.testing.assert_array_equal(model.labels_, label)
    assert (np.diff(model.objectives_) <= 1e-9 * model.objectives_[0]).all()
    assert model.dual_gap_ <= 1e-7 * 6 * np.log(2) * (1 + 1e-9)


def test_gap_bounds_the_distance_to_the_optimum_given_the_groups(problems):
    X, y, tasks = problems.stacked(4)
    model = LearnedTaskGroups(2, 0.05).fit(X, y, tasks=tasks)
    rows = [np.flatnonzero(model.labels_ == g).tolist() for g in (0, 1)]
    best = problems.optimum(
        X, y, tasks, lambda parts: (sum(0.05 * cp.square(cp.normNuc(parts[0][members])) for members in rows), [])
    )
    ours = problems.loss(model, X, y, tasks) + 0.05 * squared_trace_norms(model.coef_, model.labels_)
    assert ours - model.dual_gap_ <= best + 1e-6 * best
    assert model.dual_gap_ <= 1e-7 * problems.null_loss(y, tasks) * (1 + 1e-9)


def test_the_same_seed_gives_the_same_bytes_and_starts_differ(problems):
    X, y, tasks, _, _ = planted(6, T=9, noise=2.0)
    models = [LearnedTaskGroups(3, 0.05, n_starts=4, random_state=seed).fit(X, y, tasks=tasks) for seed in (0, 0, 1)]
    assert models[0].coef_.tobytes() == models[1].coef_.tobytes()
    assert models[0].start_objectives_.tobytes() == models[1].start_objectives_.tobytes()
    assert len(set(models[0].start_objectives_.round(6))) > 1


def test_permuting_tasks_permutes_the_groups():
    X, y, tasks, _, _ = planted(7, T=9, n=60)
    order = np.random.default_rng(0).permutation(9)
    model = LearnedTaskGroups(3, 0.01).fit(X, y, tasks=tasks)
    other = LearnedTaskGroups(3, 0.01).fit(X, y, tasks=order[tasks])
    same = model.labels_[:, None] == model.labels_
    np.testing.assert_array_equal((other.labels_[:, None] == other.labels_)[np.ix_(order, order)], same)
    np.testing.assert_allclose(other.coef_[order], model.coef_, atol=1e-2)


def test_relations_show_the_groups_and_nothing_between_them():
    X, y, tasks, _, label = planted(8)
    relations = LearnedTaskGroups(3, 0.01, n_starts=3).fit(X, y, tasks=tasks).relations_
    np.testing.assert_array_equal(relations["task groups"].values.argmax(axis=0), label)
    assert not relations["task covariance"].values[label[:, None] != label].any()
    assert np.trace(relations["task covariance"].values) == pytest.approx(1.0)


def test_stopping_too_early_warns():
    X, y, tasks, _, _ = planted(9, noise=2.0)
    with pytest.warns(ConvergenceWarning, match="LearnedTaskGroups stopped after max_iter=1"):
        LearnedTaskGroups(3, 0.05, max_iter=1, tol=0.0).fit(X, y, tasks=tasks)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_groups": 0}, "n_groups must be a whole number"),
        ({"alpha": 0.0}, "alpha must be a positive number"),
        ({"n_starts": 0}, "n_starts must be a whole number"),
        ({"start_ridge": 0.0}, "start_ridge must be"),
    ],
)
def test_wrong_settings_are_refused_by_name(problems, settings, message):
    X, y, tasks = problems.stacked(15)
    with pytest.raises(InputError, match=message):
        LearnedTaskGroups(**settings).fit(X, y, tasks=tasks)


def test_examples_in_the_docstring_hold():
    assert doctest.testmod(polytask.linear.learned_task_groups).failed == 0
