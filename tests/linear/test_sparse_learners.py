"""Learners of sparse models: same as their estimators, saved with what they have learned, wrong fields."""

from __future__ import annotations

import json

import numpy as np
import pytest

from polytask.core.data import TaskData
from polytask.core.errors import InputError
from polytask.core.task import Binary, Regression
from polytask.linear import (
    DirtyModel,
    DirtyModelLearner,
    LinearModel,
    SimultaneousLasso,
    SimultaneousLassoLearner,
    SparseGroup,
    SparseGroupLearner,
)

LEARNERS = [DirtyModelLearner, SimultaneousLassoLearner, SparseGroupLearner]


def data(seed=0, n=150):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 6))
    W = np.zeros((4, 6))
    W[:, 0] = [2.0, 1.5, 1.0, 2.0]
    W[1, 3] = -2.0
    scores = X @ W.T + 0.3 * rng.normal(size=(n, 4))
    tasks = [Regression(name) for name in "abc"]
    Y = scores * [1.0, 10.0, 1.0, 1.0]
    Y[:, 3] = Y[:, 3] > 0
    return TaskData.from_columns([*tasks, Binary("yes", (), ("0", "1"))], {"numeric": X}, Y)


@pytest.mark.parametrize(
    ("learner", "model"),
    [
        (SimultaneousLassoLearner(0.1), SimultaneousLasso()),
        (SparseGroupLearner(0.1, 0.3), SparseGroup(l1_ratio=0.3)),
        (DirtyModelLearner(0.1, 0.5), DirtyModel(1.0, 0.5)),  # 4^-0.5: half
    ],
    ids=lambda value: type(value).__name__,
)
def test_scores_are_those_of_the_estimator_at_a_share_of_its_largest_strength(learner, model):
    train = data()
    X = np.asarray(train.inputs["numeric"])
    Y = np.column_stack([train.labels[task.name].values for task in train.tasks])
    scale = np.append(Y[:, :3].std(axis=0), 1.0)
    Y = np.column_stack([(Y[:, :3] - Y[:, :3].mean(axis=0)) / scale[:3], Y[:, 3]])
    model.set_params(loss=("squared", "squared", "squared", "logistic"), tol=1e-4)
    alpha = 0.1 * model.alpha_max(X, Y)
    model.set_params(alpha=alpha, **({"own": 0.5 * alpha} if isinstance(model, DirtyModel) else {})).fit(X, Y)
    np.testing.assert_allclose(learner.fit(train).coef / scale, model.coef_.T, atol=1e-9)


@pytest.mark.parametrize("learner", LEARNERS)
def test_what_was_learned_is_saved_with_the_model(learner):
    train = data()
    model = learner(0.2).fit(train)
    description, arrays = model.state()
    again = LinearModel.from_state(train.tasks, json.loads(json.dumps(description)), arrays)
    learned = {"parts", "shared part", "own part"} if learner is DirtyModelLearner else {"features in use"}
    assert learned <= set(again.relations())
    for name in learned:
        np.testing.assert_array_equal(again.relations()[name].values, model.relations()[name].values)


def test_the_dirty_model_reports_which_inputs_are_shared():
    relations = DirtyModelLearner(0.3, 0.6).fit(data()).relations()
    shared, own = relations["shared part"], relations["own part"]
    assert np.abs(shared.values[0]).min() > 0.1  # the first input, by all tasks
    assert own.values[-1, 1] < -0.1  # the fourth input, by the second alone
    assert not shared.values[-1].any()


def test_wrong_fields_are_named():
    for wrong, words in (
        (lambda: SimultaneousLassoLearner(0.0), "alpha must be a positive number"),
        (lambda: SparseGroupLearner(0.1, 1.5), "l1_ratio must be a number from 0 to 1"),
        (lambda: DirtyModelLearner(0.1, 0.0), "own must be a positive number"),
        (lambda: DirtyModelLearner(0.1, 1.0), "own must be between 0 and 1"),
    ):
        with pytest.raises(InputError, match=words):
            wrong()
