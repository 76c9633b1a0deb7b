"""Scores, losses and decisions of the task kinds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from polytask import Binary, InputError, Multiclass, Ordinal, Regression
from polytask.core.task import KINDS, task_from

TASKS = {
    "regression": Regression("y"),
    "binary": Binary("y", classes=("no", "yes")),
    "multiclass": Multiclass("y", classes=("a", "b", "c")),
    "ordinal": Ordinal("y", classes=("low", "mid", "high", "top")),
}


def test_every_kind_is_tried_here():
    assert set(TASKS) == set(KINDS)


@pytest.mark.parametrize("kind", TASKS)
def test_a_task_survives_plain_data(kind):
    assert task_from(TASKS[kind].describe()) == TASKS[kind]


def test_binary_loss_is_the_negative_log_probability():
    task = TASKS["binary"]
    scores, targets = np.array([[0.3], [-2.0], [40.0]]), np.array([1.0, 0.0, 0.0])
    p = task.probabilities(scores)
    np.testing.assert_allclose(task.losses(scores, targets), -np.log(p[np.arange(3), targets.astype(int)]))


def test_multiclass_loss_is_the_negative_log_softmax():
    task = TASKS["multiclass"]
    scores, targets = np.array([[1.0, 2.0, 3.0], [900.0, 0.0, -900.0]]), np.array([0.0, 0.0])
    np.testing.assert_allclose(task.losses(scores, targets), [np.log(1 + np.e + np.e**2), 0.0], atol=1e-12)
    np.testing.assert_allclose(task.probabilities(scores).sum(axis=1), 1.0)


def test_ordinal_loss_is_the_sum_of_the_threshold_losses():
    task, yes_no = TASKS["ordinal"], TASKS["binary"]
    scores, targets = np.array([[2.0, 0.5, -1.0], [0.1, -0.4, -3.0]]), np.array([2.0, 0.0])
    by_hand = sum(yes_no.losses(scores[:, [k]], (targets > k).astype(float)) for k in range(3))
    np.testing.assert_allclose(task.losses(scores, targets), by_hand)


def test_ordinal_decision_is_the_median_level():
    task = TASKS["ordinal"]
    scores = np.array([[-1.0, -2.0, -3.0], [1.0, -2.0, -3.0], [3.0, 2.0, 1.0], [-1.0, 5.0, 5.0]])
    np.testing.assert_array_equal(task.decide(scores), [0, 1, 3, 0])


@given(arrays.arrays(np.float64, (5, 3), elements=st.floats(-50, 50)))
def test_ordinal_probabilities_are_a_distribution_for_any_scores(scores):
    p = TASKS["ordinal"].probabilities(scores)
    assert (p >= 0).all()
    np.testing.assert_allclose(p.sum(axis=1), 1.0)


@pytest.mark.parametrize("kind", TASKS)
def test_no_constant_does_better_than_the_constant_scores(kind):
    task, rng = TASKS[kind], np.random.default_rng(0)
    targets = rng.normal(size=400) if kind == "regression" else rng.integers(0, len(task.labels), 400).astype(float)
    best = task.constant_scores(targets)
    at_best = task.losses(np.tile(best, (400, 1)), targets).mean()
    for _ in range(50):
        other = best + 0.2 * rng.normal(size=best.shape)
        assert task.losses(np.tile(other, (400, 1)), targets).mean() > at_best - 1e-4


@pytest.mark.parametrize("kind", TASKS)
def test_constant_scores_are_finite_without_labels(kind):
    assert np.isfinite(TASKS[kind].constant_scores(np.zeros(0))).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Regression(""), "empty name"),
        (lambda: Binary("b", classes=("one",)), "at least 2"),
        (lambda: Binary("b", classes=("x", "x")), "different classes"),
        (lambda: Binary("b", classes=("x", "y", "z")), "use Multiclass"),
        (lambda: Regression("r", metrics=("rsme",)), 'Did you mean "rmse"'),
        (lambda: Regression("r", metrics=("auc",)), 'unknown metric "auc"'),
        (lambda: task_from({"kind": "regresion", "name": "y"}), 'Did you mean "regression"'),
        (lambda: Regression("r").probabilities(np.zeros((1, 1))), "no class probabilities"),
    ],
)
def test_bad_tasks_are_refused_with_the_remedy(make, message):
    with pytest.raises(InputError, match=message):
        make()
