"""What the linear learners share: columns of a problem, seeds, checks, coupled intercepts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from polytask.core.data import Labels, TaskData
from polytask.core.errors import InputError
from polytask.core.search import LogUniform
from polytask.core.task import Binary, Multiclass, Ordinal, Regression
from polytask.linear import ClusteredTasks, TraceNorm
from polytask.linear.learning import EstimatorLearner, LinearLearner, Solution, gradient_at_zero, share_of


def mixed(n=40):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 3))
    targets = np.column_stack([10 + X[:, 0], X[:, 1] > 0, rng.integers(0, 3, n), rng.integers(0, 3, n)]).astype(float)
    tasks = (
        Regression("y"),
        Binary("b", (), ("no", "yes")),
        Ordinal("o", (), ("low", "mid", "high")),
        Multiclass("m", (), ("p", "q", "r")),
    )
    return TaskData.from_columns(tasks, {"numeric": X}, targets)


def long(each=6):
    rng = np.random.default_rng(1)
    task = np.repeat(np.arange(4), each)
    X = rng.normal(size=(len(task), 2))
    y = 50 + 5 * X[:, 0] + 3 * task + rng.normal(size=len(task))
    return TaskData.from_stacked([Regression(f"t{t}") for t in range(4)], {"numeric": X}, task, y)


@dataclass(frozen=True)
class Recorder(LinearLearner):
    """Keeps the problem it is given and predicts 2 in standardised units."""

    alpha: float = 1.0
    intercepts: str = "own"

    summary: ClassVar[str] = "for tests"
    seen: ClassVar[list] = []

    @classmethod
    def search_space(cls):
        return {"alpha": LogUniform(0.1, 1.0)}

    def _solve(self, problem):
        self.seen.append(problem)
        k = len(problem.outputs)
        return Solution(np.zeros((k, problem.n_features)), np.full(k, 2.0))


def solved(data, **fields):
    Recorder.seen.clear()
    model = Recorder(**fields).fit(data, seed=7)
    return Recorder.seen[0], model


def test_tasks_become_columns_with_the_losses_of_their_kinds():
    problem, _ = solved(mixed())
    assert problem.names == ["y", "b", "o>low", "o>mid", "m=p", "m=q", "m=r"]
    np.testing.assert_array_equal(problem.logistic, [False] + [True] * 6)
    assert problem.seed == 7
    y = problem.outputs[0].values
    assert (round(y.mean(), 12), round(y.std(), 12)) == (0.0, 1.0)
    np.testing.assert_array_equal(problem.outputs[2].values >= problem.outputs[3].values, True)
    np.testing.assert_array_equal(sum(output.values for output in problem.outputs[4:]), 1.0)


def test_the_solution_is_brought_back_to_target_units():
    data = mixed()
    values = data.labels["y"].values
    _, model = solved(data)
    np.testing.assert_allclose(model.predict(data)["y"], values.mean() + 2.0 * values.std())
    np.testing.assert_allclose(model.predict(data)["b"], 2.0)


def test_coupled_intercepts_put_the_long_form_into_one_unit_and_fit_constant_tasks():
    data = long()
    labels = dict(data.labels) | {"t1": Labels(data.labels["t1"].rows[:1], data.labels["t1"].values[:1])}
    data = TaskData(data.tasks, data.inputs, labels)
    own, _ = solved(data)
    coupled, _ = solved(data, intercepts="coupled")
    assert own.names == ["t0", "t2", "t3"]
    assert all(abs(output.values.mean()) < 1e-12 for output in own.outputs)
    assert coupled.names == ["t0", "t1", "t2", "t3"]
    every = np.concatenate([output.values for output in coupled.outputs])
    assert (round(every.mean(), 12), round(every.std(), 12)) == (0.0, 1.0)


def test_a_constant_feature_takes_the_place_of_the_intercepts():
    problem, _ = solved(long())
    free, augmented = problem.losses(), problem.losses(with_constant=True)
    W = np.random.default_rng(3).normal(size=(4, 2))
    at = free.at(W)
    with_intercept = augmented.at(np.column_stack([W, at.intercept]))
    np.testing.assert_allclose(with_intercept.losses, at.losses, rtol=1e-9)
    np.testing.assert_allclose(with_intercept.gradient[:, -1], 0.0, atol=1e-9)
    some = problem.losses([2, 0])
    np.testing.assert_allclose(some.at(W[[2, 0]]).losses, at.losses[[2, 0]])
    weighted = problem.losses([0, 1], weighting="examples").at(W[:2]).losses
    np.testing.assert_allclose(weighted, at.losses[:2])  # tasks of one size


def test_an_estimator_gets_seed_names_and_strength_and_its_relations_are_kept():
    made = []

    @dataclass(frozen=True)
    class Clusters(EstimatorLearner):
        alpha: float = 0.1
        intercepts: str = "own"

        @classmethod
        def search_space(cls):
            return {}

        def _estimator(self, losses):
            made.append(ClusteredTasks(share_of(0.1, float(np.abs(gradient_at_zero(losses)).max())), 2))
            return made[-1]

    data = long()
    model = Clusters().fit(data, seed=11)
    assert made[0].random_state == 11
    assert list(made[0].tasks_) == list(data.names)
    assert list(made[0].feature_names_in_) == ["x0", "x1"]
    assert model.relations()["clusters"].columns == data.names
    Clusters(intercepts="coupled").fit(data)
    assert list(made[1].feature_names_in_) == ["x0", "x1", "intercept"]
    assert made[1].coef_.shape == (4, 3)


def test_strengths_are_shares_of_the_smallest_that_gives_no_model():
    problem, _ = solved(long())
    losses = problem.losses()
    most = float(np.linalg.norm(gradient_at_zero(losses), 2))
    for share, zero in ((1.0001, True), (0.99, False)):
        estimator = TraceNorm(share_of(share, most), tol=1e-8)
        estimator.tasks_ = np.array(problem.names)
        estimator.solve(losses)
        assert (not estimator.coef_.any()) == zero
    assert share_of(0.5, 0.0) == 1.0


def test_wrong_fields_are_named():
    with pytest.raises(InputError, match="alpha must be a positive number, got -1"):
        Recorder(alpha=-1)
    with pytest.raises(InputError, match='intercepts must be "own" or "coupled", got "free"'):
        Recorder(intercepts="free")
    with pytest.raises(TypeError, match="abstract"):
        LinearLearner()
