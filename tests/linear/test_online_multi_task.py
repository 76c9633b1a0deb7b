"""OnlineMultiTask: limits, the kernel perceptron, learned interactions, parts, counted mistakes."""

from __future__ import annotations

import doctest

import numpy as np
import pandas as pd
import pytest
from scipy.linalg import expm, logm

import polytask.linear.online_multi_task
from polytask.core.errors import InputError
from polytask.linear import OnlineMultiTask

LEARNED = ["logdet", "von-neumann", "batch"]


def rows(seed=0, n=300, T=4, d=5, noise=0.3, spread=0.3):
    """Rows of tasks in turn with classes 0 and 1; returns X, y, tasks."""
    rng = np.random.default_rng(seed)
    tasks = rng.integers(0, T, n)
    W = rng.normal(size=d) + spread * rng.normal(size=(T, d))
    X = rng.normal(size=(n, d))
    return X, (np.einsum("nd,nd->n", X, W[tasks]) + noise * rng.normal(size=n) > 0).astype(float), tasks


def perceptron(X, y, intercept=False):
    """A textbook perceptron; returns weights and which rows were mistakes."""
    X = np.column_stack([X, np.ones(len(X))]) if intercept else X
    w, mistakes = np.zeros(X.shape[1]), []
    for x, sign in zip(X, 2 * y - 1, strict=True):
        wrong = sign * (w @ x) <= 0
        mistakes.append(wrong)
        if wrong:
            w = w + sign * x
    return w, np.array(mistakes)


def mistakes_one_by_one(model, X, y, tasks, all_tasks):
    """Whether every row was a mistake, from the growth of the count."""
    found, before = [], 0.0
    for i in range(len(X)):
        model.partial_fit(X[i : i + 1], y[i : i + 1], tasks[i : i + 1], all_tasks=all_tasks)
        found.append(model.cumulative_loss_.sum() > before)
        before = model.cumulative_loss_.sum()
    return np.array(found)


@pytest.mark.parametrize("intercept", [True, False])
def test_without_coupling_tasks_are_independent_perceptrons_mistake_by_mistake(intercept):
    X, y, tasks = rows()
    model = OnlineMultiTask(0.0, loss="perceptron", fit_intercept=intercept)
    ours = mistakes_one_by_one(model, X, y, tasks, range(4))
    for t in range(4):
        w, mistakes = perceptron(X[tasks == t], y[tasks == t], intercept)
        np.testing.assert_array_equal(ours[tasks == t], mistakes)
        np.testing.assert_allclose(model.coef_[t], w[:5])
        assert model.cumulative_loss_[t] == mistakes.sum()
        assert model.n_seen_[t] == (tasks == t).sum()


def test_endless_coupling_is_one_pooled_perceptron_up_to_the_factor_one_over_t():
    X, y, tasks = rows(1)
    model = OnlineMultiTask(1e12, loss="perceptron", fit_intercept=False)
    ours = mistakes_one_by_one(model, X, y, tasks, range(4))
    w, mistakes = perceptron(X, y)
    np.testing.assert_array_equal(ours, mistakes)
    np.testing.assert_allclose(model.coef_, np.tile(w / 4, (4, 1)), rtol=1e-9)


def test_inverse_of_the_fixed_interactions_has_the_closed_form():
    X, y, tasks = rows(2)
    for b in (0.0, 0.5, 3.0, 100.0):
        model = OnlineMultiTask(b).fit(X, y, tasks=tasks)
        A = np.eye(4) + b * (np.eye(4) - np.ones((4, 4)) / 4)
        np.testing.assert_allclose(model.interaction_, A, atol=1e-9 * (1 + b))
        np.testing.assert_allclose(np.diag(model.covariance_), (4 + b) / ((1 + b) * 4))
        np.testing.assert_allclose(model.covariance_[0, 1:], b / ((1 + b) * 4))
        np.testing.assert_allclose(OnlineMultiTask(A).fit(X, y, tasks=tasks).coef_, model.coef_, atol=1e-9)


def kernel_perceptron(X, y, tasks, inverse, *, step=None):
    """Dual perceptron (or, with a step, kernel least mean squares) under (A^-1)_st <x, z>; scores on all rows."""
    K = inverse[tasks[:, None], tasks] * (X @ X.T)
    c, losses = np.zeros(len(X)), 0.0
    for i in range(len(X)):
        score = K[i] @ c
        if step is None:
            sign = 2 * y[i] - 1
            losses += sign * score <= 0
            c[i] = sign * (sign * score <= 0)
        else:
            losses += 0.5 * (y[i] - score) ** 2
            c[i] = step * (y[i] - score) / K[i, i]
    return K @ c, losses


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("loss", ["perceptron", "squared"])
def test_updates_are_those_of_the_kernel_machine_with_the_product_kernel(loss, intercept):
    X, y, tasks = rows(3, n=150)
    rng = np.random.default_rng(3)
    root = rng.normal(size=(4, 4))
    A = root @ root.T + np.eye(4)
    model = OnlineMultiTask(A, loss=loss, step=0.7, fit_intercept=intercept).fit(X, y, tasks=tasks)
    Z = np.column_stack([X, np.ones(len(X))]) if intercept else X
    scores, losses = kernel_perceptron(Z, y, tasks, np.linalg.inv(A), step=0.7 if loss == "squared" else None)
    np.testing.assert_allclose(model.task_scores(X, tasks), scores, atol=1e-8 * np.abs(scores).max())
    assert model.cumulative_loss_.sum() == pytest.approx(losses)


@pytest.mark.parametrize("interaction", LEARNED)
@pytest.mark.parametrize("coupling", [0.0, 5.0])
def test_learned_interactions_stay_symmetric_positive_definite_of_trace_t(interaction, coupling):
    X, y, tasks = rows(4, n=400)
    model = OnlineMultiTask(coupling, loss="perceptron", interaction=interaction, rate=0.05, warm_up=0)
    for part in np.array_split(np.arange(400), 20):
        model.partial_fit(X[part], y[part], tasks[part], all_tasks=range(4))
        K = model.covariance_
        np.testing.assert_array_equal(K, K.T)
        assert np.linalg.eigvalsh(K).min() > 0
        assert np.trace(K) == pytest.approx(4.0)
        assert np.linalg.eigvalsh(model.interaction_).min() > 0


@pytest.mark.parametrize("interaction", LEARNED)
def test_one_step_of_the_interactions_is_the_formula(interaction):
    X, y, tasks = rows(5, n=60)
    model = OnlineMultiTask(2.0, loss="perceptron", interaction=interaction, rate=0.3, warm_up=59, fit_intercept=False)
    model.fit(X, y, tasks=tasks)
    before = OnlineMultiTask(2.0, loss="perceptron", fit_intercept=False).fit(X, y, tasks=tasks)  # A fixed so far
    np.testing.assert_allclose(model.coef_, before.coef_)
    gram = model.coef_ @ model.coef_.T
    C = 4 * gram / np.trace(gram)
    if interaction == "logdet":
        expected = before.covariance_ + 0.3 * C
    elif interaction == "von-neumann":
        expected = np.linalg.inv(expm(logm(before.interaction_) - 0.3 * C))
    else:
        values, vectors = np.linalg.eigh(C)
        expected = (vectors * np.sqrt(np.maximum(values, 0.0) + 1e-6)) @ vectors.T
    np.testing.assert_allclose(model.covariance_, 4 * expected / np.trace(expected), atol=1e-8)


def test_before_the_warm_up_is_over_learned_interactions_are_the_fixed_ones():
    X, y, tasks = rows(6)
    fixed = OnlineMultiTask(1.0).fit(X, y, tasks=tasks)
    for warm_up in (300, 1.0):
        np.testing.assert_array_equal(
            OnlineMultiTask(1.0, interaction="batch", warm_up=warm_up).fit(X, y, tasks=tasks).coef_, fixed.coef_
        )
    half = OnlineMultiTask(1.0, interaction="batch", warm_up=0.5).fit(X, y, tasks=tasks)
    count = OnlineMultiTask(1.0, interaction="batch", warm_up=150).fit(X, y, tasks=tasks)
    np.testing.assert_array_equal(half.coef_, count.coef_)
    assert np.abs(half.coef_ - fixed.coef_).max() > 1e-3


def opposed(seed, n=4000, T=12, d=15):
    """Tasks of two kinds, half of them turned round."""
    rng = np.random.default_rng(seed)
    kind, sign = np.arange(T) % 2, np.where(np.arange(T) % 4 < 2, 1.0, -1.0)
    W = sign[:, None] * rng.normal(size=(2, d))[kind] + 0.2 * rng.normal(size=(T, d))
    tasks = rng.integers(0, T, n)
    X = rng.normal(size=(n, d))
    y = np.einsum("nd,nd->n", X, W[tasks]) + rng.normal(size=n) > 0
    return X, y.astype(float), tasks, kind, sign


@pytest.mark.parametrize("interaction", ["logdet", "batch"])
def test_learned_interactions_make_fewer_mistakes_than_none_or_fixed_ones_where_tasks_oppose_each_other(interaction):
    counts = []
    for seed in range(3):
        X, y, tasks, kind, sign = opposed(seed)
        models = [
            OnlineMultiTask(0.0, loss="perceptron"),
            OnlineMultiTask(3.0, loss="perceptron"),
            OnlineMultiTask(0.0, loss="perceptron", interaction=interaction, warm_up=0.1),
        ]
        counts.append([model.fit(X, y, tasks=tasks).cumulative_loss_.sum() for model in models])
        found = models[2].relations_["task correlation"].values
        same = (kind[:, None] == kind) & ~np.eye(12, dtype=bool)
        assert (found * np.outer(sign, sign))[same].mean() > 0.3
    none, fixed, learned = np.mean(counts, axis=0)
    assert learned < 0.95 * none
    assert learned < 0.95 * fixed


def test_coupling_makes_fewer_mistakes_where_tasks_are_alike():
    counts = []
    for seed in range(5):
        X, y, tasks = rows(seed, n=600, T=8, d=10)
        counts.append(
            [OnlineMultiTask(b, loss="perceptron").fit(X, y, tasks=tasks).cumulative_loss_.sum() for b in (0.0, 8.0)]
        )
    alone, together = np.mean(counts, axis=0)
    assert together < 0.8 * alone


@pytest.mark.parametrize("interaction", ["fixed", *LEARNED])
@pytest.mark.parametrize("loss", ["perceptron", "squared"])
def test_rows_in_parts_give_what_they_give_at_once(loss, interaction):
    X, y, tasks = rows(7)
    whole = OnlineMultiTask(1.0, loss=loss, interaction=interaction, warm_up=100).fit(X, y, tasks=tasks)
    parts = OnlineMultiTask(1.0, loss=loss, interaction=interaction, warm_up=100)
    for part in np.array_split(np.arange(300), 7):
        parts.partial_fit(X[part], y[part], tasks[part], all_tasks=[0, 1, 2, 3])
    np.testing.assert_allclose(parts.coef_, whole.coef_, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(parts.covariance_, whole.covariance_, rtol=1e-9)
    np.testing.assert_allclose(parts.cumulative_loss_, whole.cumulative_loss_)


def test_a_full_step_predicts_the_row_just_seen_exactly():
    X, y, tasks = rows(8, n=50)
    model = OnlineMultiTask(2.0, step=1.0)
    for i in range(50):
        model.partial_fit(X[i : i + 1], y[i : i + 1], tasks[i : i + 1], all_tasks=range(4))
        assert model.predict(X[i : i + 1], tasks[i : i + 1])[0] == pytest.approx(y[i], abs=1e-12)


def test_columns_with_missing_labels_are_rows_in_order():
    rng = np.random.default_rng(9)
    X = rng.normal(size=(40, 3))
    Y = X @ rng.normal(size=(3, 4))
    Y[rng.random(Y.shape) < 0.4] = np.nan
    columns = OnlineMultiTask(1.0).fit(X, Y)
    row, task = np.nonzero(~np.isnan(Y))
    stacked = OnlineMultiTask(1.0).fit(X[row], Y[row, task], tasks=task)
    np.testing.assert_array_equal(columns.coef_, stacked.coef_)
    np.testing.assert_array_equal(columns.n_seen_, (~np.isnan(Y)).sum(axis=0))
    assert columns.predict(X).shape == (40, 4)
    np.testing.assert_allclose(columns.predict(X)[row, task], stacked.predict(X[row], task))
    assert columns.score(X, Y) == pytest.approx(stacked.score(X[row], Y[row, task], tasks=task))


def test_fit_forgets_and_more_passes_go_on():
    X, y, tasks = rows(10)
    model = OnlineMultiTask(1.0).fit(X, y, tasks=tasks)
    first = model.coef_.copy()
    np.testing.assert_array_equal(model.fit(X, y, tasks=tasks).coef_, first)
    twice = OnlineMultiTask(1.0, n_passes=2).fit(X, y, tasks=tasks)
    np.testing.assert_allclose(model.partial_fit(X, y, tasks).coef_, twice.coef_)


def test_noise_free_linear_targets_are_learned():
    rng = np.random.default_rng(11)
    X = rng.normal(size=(600, 4))
    tasks = rng.integers(0, 3, 600)
    W = rng.normal(size=(3, 4))
    y = np.einsum("nd,nd->n", X, W[tasks]) + tasks
    model = OnlineMultiTask(0.5, n_passes=20).fit(X, y, tasks=tasks)
    np.testing.assert_allclose(model.coef_, W, atol=1e-6)
    np.testing.assert_allclose(model.intercept_, [0, 1, 2], atol=1e-6)
    assert model.score(X, y, tasks=tasks) == pytest.approx(1.0)


def test_tasks_may_be_a_column_of_the_frame_and_labels_text():
    X, y, tasks = rows(12)
    names = np.array(["a", "b", "c", "d"])[tasks]
    frame = pd.DataFrame(X, columns=list("uvwxy")).assign(school=names)
    by_name = OnlineMultiTask(1.0, loss="perceptron").fit(frame, y, tasks="school")
    by_array = OnlineMultiTask(1.0, loss="perceptron").fit(X, y, tasks=names)
    np.testing.assert_array_equal(by_name.coef_, by_array.coef_)
    np.testing.assert_array_equal(by_name.predict(frame), by_array.predict(X, names))
    assert by_name.score(frame, y) == by_array.score(X, y, tasks=names)
    assert by_name.relations_["task covariance"].rows == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coupling": -1.0}, "coupling must be at least 0"),
        ({"coupling": np.eye(3)}, r"coupling has shape \(3, 3\)"),
        ({"coupling": np.ones((4, 4))}, "coupling is not positive definite"),
        ({"coupling": np.triu(np.ones((4, 4)))}, "coupling is not a symmetric matrix"),
        ({"loss": "hinge"}, 'loss must be "squared" or "perceptron"'),
        ({"interaction": "magic"}, 'interaction must be one of "fixed"'),
        ({"rate": 0.0}, "rate must be a positive number"),
        ({"warm_up": 1.5}, "warm_up must be a number of rows or a share"),
        ({"warm_up": -1}, "warm_up must be"),
        ({"step": 2.0}, "step must be below 2"),
        ({"n_passes": 0}, "n_passes must be a whole number"),
        ({"fit_intercept": "yes"}, "fit_intercept must be True or False"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings, message):
    X, y, tasks = rows(13, n=40)
    with pytest.raises(InputError, match=message):
        OnlineMultiTask(**settings).fit(X, y, tasks=tasks)


def test_wrong_data_are_refused_by_name():
    X, y, tasks = rows(14, n=40)
    with pytest.raises(InputError, match="a perceptron needs targets 0 and 1"):
        OnlineMultiTask(loss="perceptron").fit(X, 2 * y - 1, tasks=tasks)
    model = OnlineMultiTask().partial_fit(X, y, tasks)
    with pytest.raises(InputError, match=r"task '?9'? was not among the 4 tasks"):
        model.partial_fit(X[:1], y[:1], [9])
    with pytest.raises(InputError, match="in the form of the first"):
        model.partial_fit(X, np.column_stack([y, y]))
    with pytest.raises(InputError, match="give the task of each row"):
        model.predict(X)
    with pytest.raises(InputError, match="has no labelled row"):
        OnlineMultiTask().fit(X, np.where(tasks == 2, np.nan, y), tasks=tasks)
    with pytest.raises(InputError, match="y has shape"):
        OnlineMultiTask().fit(X, y[:-1], tasks=tasks)


def test_examples_in_the_docstring_hold():
    assert doctest.testmod(polytask.linear.online_multi_task).failed == 0
