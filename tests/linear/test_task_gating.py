"""TaskGating: limits, the gradient of the hidden units, gates and means from task features, recovery."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import adjusted_rand_score

import polytask.linear.task_gating as module
from polytask.core.errors import InputError
from polytask.linear import GaussianMixtureTasks, Moments, TaskGating
from polytask.linear.moments import Column, gather
from polytask.linear.solvers.task_evidence import SquaredStatistics
from polytask.linear.solvers.task_mixture import Design, prior_of_one, with_clusters
from polytask.linear.task_gating import _Layer


def planted(seed=0, tasks=12, d=3, hidden=2, n=24):
    """Tasks in two clusters over hidden tanh features; returns X, y, tasks, cluster and features of each task."""
    rng = np.random.default_rng(seed)
    label = np.arange(tasks) % 2
    V = 1.5 * rng.normal(size=(hidden, d + 1))
    A = 2.0 * rng.normal(size=(2, hidden))[label] + 0.2 * rng.normal(size=(tasks, hidden))
    features = np.column_stack([label + 0.2 * rng.normal(size=tasks), rng.normal(size=tasks)])
    task = np.repeat(np.arange(tasks), n)
    X = rng.normal(size=(len(task), d)) * 3.0 + 1.0
    H = np.tanh((X - 1.0) / 3.0 @ V[:, :-1].T + V[:, -1])
    y = np.einsum("nh,nh->n", H, A[task]) + task + 0.3 * rng.normal(size=len(task))
    return X, y, task, label, features


def linear(seed=0, tasks=20, d=4, n=12):
    rng = np.random.default_rng(seed)
    label = np.arange(tasks) % 2
    W = np.where(label[:, None] == 0, [2.0, 0.0, 1.0, -1.0], [-1.0, 1.0, 0.0, 1.0]) + 0.2 * rng.normal(size=(tasks, d))
    task = np.repeat(np.arange(tasks), n)
    X = rng.normal(size=(len(task), d))
    y = np.einsum("nd,nd->n", X, W[task]) + rng.normal(size=len(task))
    return X, y, task, label, label[:, None] + 0.1 * rng.normal(size=(tasks, 1)), W


def layer_of(X, y, tasks, intercepts, seed=0):
    T = int(tasks.max()) + 1
    blocks = gather(X, [Column(np.flatnonzero(tasks == t), y[tasks == t]) for t in range(T)])
    own, coupled = intercepts

    def statistics(moments: Moments) -> SquaredStatistics:
        moments = moments if own else moments.with_constant() if coupled else moments.uncentred()
        return SquaredStatistics(moments, own_intercepts=own)

    return _Layer(blocks, statistics, T, intercepts, (3, X.shape[1]), seed), T


@pytest.mark.parametrize("intercepts", [(True, False), (False, True), (False, False)])
def test_gradient_of_the_hidden_units_is_that_of_the_bound(intercepts):
    X, y, tasks, label, _ = planted(tasks=6, n=10)
    layer, T = layer_of(X, y, tasks, intercepts)
    design = Design(np.ones((T, 1)), np.zeros((T, 0)))
    prior, _ = with_clusters(prior_of_one(layer.data, design), label, 2, narrower=0.5)
    rng = np.random.default_rng(1)
    object.__setattr__(prior, "mean", rng.normal(size=prior.mean.shape))
    _, gradient = layer.value_and_gradient(layer.V, prior, design, 0.3)
    numeric = np.zeros_like(gradient)
    for place in np.ndindex(*gradient.shape):
        step = np.zeros_like(gradient)
        step[place] = 1e-5
        up, down = (layer.value_and_gradient(layer.V + s * step, prior, design, 0.3)[0] for s in (1, -1))
        numeric[place] = (up - down) / 2e-5
    np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("prior", ["clusters", "gated", "means"])
@pytest.mark.parametrize("n_hidden", [None, 2])
def test_marginal_likelihood_never_falls_and_responsibilities_add_up_to_one(prior, n_hidden):
    X, y, tasks, _, features = planted()
    model = TaskGating(2, prior=prior, task_features=features, n_hidden=n_hidden, n_starts=1).fit(X, y, tasks)
    assert (np.diff(model.evidence_) >= -1e-8).all()
    np.testing.assert_allclose(model.shares_.sum(axis=1), 1.0, atol=1e-6)


@pytest.mark.parametrize("n_hidden", [None, 2])
def test_one_cluster_without_spread_makes_all_tasks_alike(n_hidden):
    X, y, tasks, _, _ = planted()
    model = TaskGating(1, n_hidden=n_hidden, n_starts=1, spread=1e-9, tol=1e-10 if n_hidden is None else 1e-4).fit(
        X, y, tasks
    )
    np.testing.assert_allclose(model.coef_, np.tile(model.coef_[0], (12, 1)), atol=1e-6)
    if n_hidden is None:
        means = np.array([np.append(X[tasks == t].mean(axis=0), y[tasks == t].mean()) for t in range(12)])[tasks]
        alpha = model.noise_variance_ / model.mean_variance_
        pooled = Ridge(alpha, fit_intercept=False).fit(X - means[:, :-1], y - means[:, -1])
        np.testing.assert_allclose(model.coef_[0], pooled.coef_, atol=1e-5)


@pytest.mark.parametrize("n_hidden", [None, 2])
def test_unlimited_spread_is_least_squares_on_the_features(n_hidden):
    X, y, tasks, _, _ = planted()
    model = TaskGating(1, n_hidden=n_hidden, spread=1e4, n_starts=1).fit(X, y, tasks)
    features = X if n_hidden is None else model._inputs(X, reset=False)
    for t in range(12):
        alone = LinearRegression().fit(features[tasks == t], y[tasks == t])
        np.testing.assert_allclose(model.coef_[t], alone.coef_, rtol=1e-3, atol=1e-3)


def test_one_cluster_of_linear_features_is_the_gaussian_mixture():
    X, y, tasks, _, _, _ = linear()
    one, other = TaskGating(1, tol=1e-9).fit(X, y, tasks), GaussianMixtureTasks(1, tol=1e-9).fit(X, y, tasks)
    np.testing.assert_allclose(one.coef_, other.coef_, atol=1e-6)
    np.testing.assert_allclose(one.intercept_, other.intercept_, atol=1e-6)


@pytest.mark.parametrize("intercepts", ["own", "coupled"])
def test_hidden_units_find_clusters_and_predict_what_linear_features_cannot(intercepts):
    X, y, tasks, label, _ = planted(3)
    y = y - tasks  # coupled intercepts are part of what makes tasks alike
    held = np.arange(len(y)) % 3 == 0
    hidden = TaskGating(2, n_hidden=2, n_starts=1, intercepts=intercepts).fit(X[~held], y[~held], tasks[~held])
    plain = TaskGating(2, intercepts=intercepts).fit(X[~held], y[~held], tasks[~held])
    assert adjusted_rand_score(label, hidden.labels_) > 0.9
    assert hidden.coef_.shape == (12, 2)
    rest = 1 - hidden.score(X[held], y[held], tasks=tasks[held])
    assert rest < 0.7 * (1 - plain.score(X[held], y[held], tasks=tasks[held]))
    np.testing.assert_allclose(
        hidden.predict(X[:5], tasks[:5]),
        (hidden._inputs(X[:5], reset=False) * hidden.coef_[tasks[:5]]).sum(axis=1) + hidden.intercept_[tasks[:5]],
    )


def test_more_starts_leave_a_poor_maximum():
    X, y, tasks, _, _ = planted(1)
    kept = np.arange(len(y)) % 3 > 0
    X, y, tasks = X[kept], (y - tasks)[kept], tasks[kept]
    one, more = (TaskGating(2, n_hidden=2, random_state=3, n_starts=n).fit(X, y, tasks) for n in (1, 2))
    assert more.evidence_[-1] > one.evidence_[-1] + 5.0
    assert more.score(X, y, tasks=tasks) > one.score(X, y, tasks=tasks)


def test_features_of_a_task_put_it_into_its_cluster_where_its_rows_cannot():
    X, y, tasks, label, features, _ = linear(2)
    kept = (tasks >= 4) | (np.arange(len(tasks)) % 12 < 2)  # the first four tasks have two rows
    gated = TaskGating(2, prior="gated", task_features=features).fit(X[kept], y[kept], tasks[kept])
    assert adjusted_rand_score(label, gated.labels_) == 1.0
    assert (gated.shares_[:4].max(axis=1) > 0.9).all()
    assert np.abs(gated.gate_[0, 1] - gated.gate_[1, 1]) > 1.0
    assert gated.relations_["gate"].values.shape == (2, 2)


def test_means_that_follow_the_features_help_tasks_with_few_rows():
    rng = np.random.default_rng(3)
    f = rng.uniform(-1, 1, size=(25, 1))
    W = f * [2.0, -1.0, 3.0] + [0.0, 1.0, 0.0] + 0.05 * rng.normal(size=(25, 3))
    tasks = np.repeat(np.arange(25), 4)
    X = rng.normal(size=(100, 3))
    y = np.einsum("nd,nd->n", X, W[tasks]) + rng.normal(size=100)
    means = TaskGating(1, prior="means", task_features=f).fit(X, y, tasks)
    plain = TaskGating(1).fit(X, y, tasks)
    assert np.square(means.coef_ - W).sum() < 0.5 * np.square(plain.coef_ - W).sum()
    assert means.means_.shape == (1, 2, 3)


def test_features_by_task_label_are_those_in_order():
    X, y, tasks, _, features, _ = linear(1)
    names = np.array([f"t{number:02d}" for number in range(20)])
    by_name = {name: features[number] for number, name in reversed(list(enumerate(names)))}
    one = TaskGating(2, prior="gated", task_features=features).fit(X, y, tasks)
    other = TaskGating(2, prior="gated", task_features=by_name).fit(X, y, names[tasks])
    np.testing.assert_allclose(other.coef_, one.coef_, atol=1e-9)


def test_order_of_the_tasks_does_not_matter_and_the_seed_decides_the_units():
    X, y, tasks, _, _ = planted(2)
    order = np.random.default_rng(0).permutation(12)
    one, other = (TaskGating(2, tol=1e-8).fit(X, y, t) for t in (tasks, order[tasks]))
    np.testing.assert_allclose(other.coef_[order], one.coef_, atol=1e-4)
    same, again = (TaskGating(2, n_hidden=2, n_starts=1, random_state=3).fit(X, y, tasks) for _ in range(2))
    np.testing.assert_array_equal(same.hidden_, again.hidden_)
    assert (
        np.abs(same.hidden_ - TaskGating(2, n_hidden=2, n_starts=1, random_state=4).fit(X, y, tasks).hidden_).max()
        > 0.01
    )


def test_wide_targets_with_gaps_are_the_long_form():
    rng = np.random.default_rng(5)
    X = rng.normal(size=(60, 3))
    Y = np.tanh(X @ rng.normal(size=(3, 2))) @ rng.normal(size=(2, 4)) + 0.2 * rng.normal(size=(60, 4))
    Y[rng.random(Y.shape) < 0.3] = np.nan
    rows, task = np.nonzero(~np.isnan(Y))
    for n_hidden in (None, 2):
        wide = TaskGating(1, n_hidden=n_hidden, n_starts=1).fit(X, Y)
        long = TaskGating(1, n_hidden=n_hidden, n_starts=1).fit(X[rows], Y[rows, task], task)
        assert wide.evidence_[-1] == pytest.approx(long.evidence_[-1], abs=0.1)
        np.testing.assert_allclose(wide.predict(X)[rows, task], long.predict(X[rows], task), atol=0.05)


def test_wrong_settings_are_named():
    X, y, tasks, _, features, _ = linear()
    for settings, message in (
        ({"prior": "gated"}, "needs task_features"),
        ({"prior": "soft"}, "prior must be one of"),
        ({"prior": "means", "task_features": features[:3]}, "task_features has shape"),
        ({"prior": "means", "task_features": {0: [1.0]}}, "no entry for task 1"),
        ({"n_hidden": 0}, "n_hidden must be a whole number"),
        ({"decay": -1.0}, "decay must be a number of at least 0"),
    ):
        with pytest.raises(InputError, match=message):
            TaskGating(**settings).fit(X, y, tasks)


def test_examples_in_the_docstring_hold():
    assert doctest.testmod(module).failed == 0
