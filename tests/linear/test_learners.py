"""Linear learners: what they equal in scikit-learn, odd tasks, units, state, relations."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import Lasso, LogisticRegression, Ridge
from threadpoolctl import threadpool_limits

from polytask import registry
from polytask.core.data import Labels, TaskData
from polytask.core.errors import InputError
from polytask.core.learner import task_losses
from polytask.core.task import Binary, Multiclass, Ordinal, Regression
from polytask.linear import (
    BlockSparseLearner,
    LassoLearner,
    LinearModel,
    MeanRegularisedLearner,
    PooledLearner,
    RidgeLearner,
)
from polytask.linear.model import Design

LEARNERS = [RidgeLearner(), LassoLearner(), PooledLearner(), BlockSparseLearner(), MeanRegularisedLearner()]
KINDS = (
    Regression("bp"),
    Binary("ill", (), ("no", "yes")),
    Multiclass("type", (), ("a", "b", "c")),
    Ordinal("health", (), ("poor", "fair", "good", "best")),
    Regression("weight"),
)


def wide(seed: int = 0, n: int = 300, missing: float = 0.2) -> TaskData:
    """Five tasks of all kinds that depend on the same inputs."""
    rng = np.random.default_rng(seed)
    numeric = rng.normal(size=(n, 4))
    codes = np.column_stack([rng.integers(0, 3, n), rng.integers(0, 5, n)])
    signal = numeric[:, 0] + (codes[:, 0] == 1) - 0.5 * numeric[:, 1]

    def noisy() -> np.ndarray:
        return signal + 0.7 * rng.normal(size=n)

    targets = np.column_stack(
        [
            120 + 15 * noisy(),
            noisy() > 0.3,
            np.digitize(noisy(), [-0.3, 0.8]),
            np.digitize(noisy(), [-1, 0.3, 1.2]),
            -5 * noisy(),
        ]
    ).astype(float)
    targets[rng.random(targets.shape) < missing] = np.nan
    return TaskData.from_columns(
        KINDS,
        {"numeric": numeric, "categorical": codes},
        targets,
        features={"numeric": ("age", "sex", "height", "sleep"), "categorical": ("region", "diet")},
        cardinalities=(3, 5),
    )


def long(seed: int = 0, tasks: int = 12, each: int = 15) -> TaskData:
    rng = np.random.default_rng(seed)
    task = np.repeat(np.arange(tasks), each)
    X = rng.normal(size=(len(task), 3))
    y = 50 + 10 * (X @ [1.0, -1.0, 0.0] + 0.3 * rng.normal(size=tasks)[task] + 0.5 * rng.normal(size=len(task)))
    return TaskData.from_stacked([Regression(f"school {t}") for t in range(tasks)], {"numeric": X}, task, y)


def usable(learner, data: TaskData) -> TaskData:
    return data.only([task.name for task in data.tasks if learner.refuses(task) is None])


def design(data: TaskData) -> np.ndarray:
    return Design.of(data).matrix(data)


@pytest.fixture(params=LEARNERS, ids=lambda learner: type(learner).__name__)
def learner(request):
    return request.param


# -- contract ---------------------------------------------------------------------------------


def test_every_learner_is_in_the_registry_under_its_name(learner):
    names = {"RidgeLearner": "ridge", "LassoLearner": "lasso", "PooledLearner": "pooled"}
    names |= {"BlockSparseLearner": "block-sparse", "MeanRegularisedLearner": "mean-regularised"}
    assert registry.learner_class(names[type(learner).__name__]) is type(learner)
    assert registry.model_class("LinearModel") is LinearModel


def test_tuning_draws_fields_that_the_learner_has(learner):
    rng = np.random.default_rng(0)
    for _ in range(20):
        drawn = {name: where.sample(rng) for name, where in learner.search_space().items()}
        assert type(learner)(**drawn)


def test_scores_have_the_tasks_shapes_and_beat_the_constant(learner):
    data = usable(learner, wide())
    model = learner.fit(data)
    scores = model.predict(data)
    losses = task_losses(data, scores)
    constant = {
        task.name: np.tile(task.constant_scores(data.labels[task.name].values), (data.n_rows, 1)) for task in data.tasks
    }
    for task in data.tasks:
        assert scores[task.name].shape == (data.n_rows, task.n_outputs)
        # averaging coefficients of tasks with opposite signs may cost a task something, but not here
        if learner.sharing == "single" or isinstance(learner, BlockSparseLearner):
            assert losses[task.name] < 0.9 * task_losses(data, constant)[task.name]


def test_prediction_does_not_read_labels_and_works_on_no_rows(learner):
    data = usable(learner, wide())
    model = learner.fit(data)
    with_labels, without = model.predict(data), model.predict(data.without_labels())
    for name, scores in with_labels.items():
        np.testing.assert_array_equal(scores, without[name])
    assert all(len(scores) == 0 for scores in model.predict(data.rows(np.zeros(0, dtype=np.int64))).values())


def test_state_is_plain_and_gives_the_same_model_back(learner):
    data = usable(learner, wide())
    model = learner.fit(data)
    description, arrays = model.state()
    again = LinearModel.from_state(data.tasks, json.loads(json.dumps(description)), arrays)
    for name, scores in model.predict(data).items():
        np.testing.assert_array_equal(again.predict(data)[name], scores)


def test_fits_are_the_same_to_the_last_bit_again_and_with_more_threads(learner):
    data = usable(learner, wide())
    first = learner.fit(data, seed=0)
    with threadpool_limits(limits=2):
        second = learner.fit(data, seed=1)
    assert first.coef.tobytes() == second.coef.tobytes()
    assert first.intercept.tobytes() == second.intercept.tobytes()


def test_units_of_regression_targets_do_not_matter(learner):
    data = usable(learner, wide())
    labels = dict(data.labels)
    labels["bp"] = Labels(labels["bp"].rows, 1000 * labels["bp"].values - 7)
    scaled = TaskData(data.tasks, data.inputs, labels, data.features, data.cardinalities)
    before, after = learner.fit(data).predict(data), learner.fit(scaled).predict(data)
    np.testing.assert_allclose(after["bp"], 1000 * before["bp"] - 7, rtol=1e-6)
    np.testing.assert_allclose(after["weight"], before["weight"], rtol=1e-6, atol=1e-6)


def test_order_of_tasks_does_not_matter(learner):
    data = usable(learner, wide())
    before, after = learner.fit(data).predict(data), learner.fit(data.only(data.names[::-1])).predict(data)
    for name, scores in before.items():
        np.testing.assert_allclose(after[name], scores, rtol=1e-3, atol=1e-3)


def test_unlabelled_rows_do_not_matter(learner):
    data = usable(learner, wide())
    seen = np.unique(np.concatenate([labels.rows for labels in data.labels.values()]))
    more = data.rows(np.concatenate([seen, seen[:50]]))
    labels = {
        name: Labels(part.rows[part.rows < len(seen)], part.values[part.rows < len(seen)])
        for name, part in more.labels.items()
    }
    padded = TaskData(more.tasks, more.inputs, labels, more.features, more.cardinalities)
    before, after = learner.fit(data.rows(seen)).predict(data), learner.fit(padded).predict(data)
    for name, scores in before.items():
        np.testing.assert_allclose(after[name], scores, atol=1e-9)


def test_odd_tasks_predict_their_constant(learner):
    data = wide(n=60, missing=0.0)
    odd = {
        "bp": Labels(np.arange(60), np.full(60, 0.1)),  # constant
        "ill": Labels(np.arange(5), np.ones(5)),  # one class
        "type": Labels(np.zeros(0, dtype=np.int64), np.zeros(0)),  # no label
        "health": Labels(np.arange(3), np.full(3, 2.0)),  # one level
        "weight": Labels(np.array([7]), np.array([42.0])),  # one label
    }
    data = usable(learner, TaskData(data.tasks, data.inputs, odd, data.features, data.cardinalities))
    model = learner.fit(data)
    for task in data.tasks:
        expected = task.constant_scores(odd[task.name].values)
        scores = model.predict(data)[task.name]
        if isinstance(task, Multiclass):
            scores, expected = task.probabilities(scores), task.probabilities(expected[None])[0]
        np.testing.assert_allclose(scores, np.tile(expected, (60, 1)), atol=1e-9)
    assert all(np.isfinite(relation.values).all() for relation in model.relations().values())


def test_odd_tasks_do_not_disturb_the_others(learner):
    data = usable(learner, wide())
    others = [name for name in data.names if name != "weight"]
    labels = dict(data.labels) | {"weight": Labels(np.array([3]), np.array([1.0]))}
    with_odd = TaskData(data.tasks, data.inputs, labels, data.features, data.cardinalities)
    alone, together = learner.fit(data.only(others)).predict(data), learner.fit(with_odd).predict(data)
    for name in others:
        np.testing.assert_allclose(together[name], alone[name], atol=1e-6)


def test_classes_and_levels_absent_in_training_get_a_small_probability(learner):
    data = wide(missing=0.0)
    labels = dict(data.labels)
    for name in ("type", "health"):
        kept = labels[name].values < 2
        labels[name] = Labels(labels[name].rows[kept], labels[name].values[kept])
    data = usable(learner, TaskData(data.tasks, data.inputs, labels, data.features, data.cardinalities))
    scores = learner.fit(data).predict(data)
    for task in data.tasks:
        if task.name in ("type", "health"):
            probabilities = task.probabilities(scores[task.name])
            assert (probabilities[:, 2:].sum(axis=1) < 0.1).all()
            assert (probabilities >= 0).all()
            assert np.isfinite(task.losses(scores[task.name], np.full(len(scores[task.name]), 2.0))).all()


def test_long_form_with_tasks_of_few_labels_is_fitted(learner):
    data = long(tasks=20, each=6).rows(np.arange(20 * 6 - 5))  # the last task keeps one label
    scores = learner.fit(data).predict(data)
    assert len(scores) == 20
    assert all(np.isfinite(part).all() for part in scores.values())


def test_wrong_strengths_are_refused(learner):
    with pytest.raises(InputError, match="alpha must be a positive number"):
        type(learner)(alpha=0.0)


def test_data_that_are_not_encoded_or_of_another_encoder_are_refused(learner):
    data = usable(learner, wide())
    raw = TaskData(data.tasks, {"age": np.zeros(data.n_rows)}, data.labels)
    with pytest.raises(InputError, match="encode it first"):
        learner.fit(raw)
    model = learner.fit(data)
    narrow = TaskData(data.tasks, {"numeric": data.inputs["numeric"]}, data.labels)
    with pytest.raises(InputError, match="encoder of the training data"):
        model.predict(narrow)
    unseen = {"numeric": data.inputs["numeric"], "categorical": data.inputs["categorical"] + 1}
    with pytest.raises(InputError, match="out of range"):
        model.predict(TaskData(data.tasks, unseen, data.labels, cardinalities=data.cardinalities))


# -- what they equal ---------------------------------------------------------------------------


def test_ridge_equals_scikit_learns_ridge_and_logistic_regressions():
    data, alpha = wide(1), 0.03
    X, scores = design(data), RidgeLearner(alpha).fit(data).predict(data)
    for task in data.tasks:
        rows, y = data.labels[task.name].rows, data.labels[task.name].values
        if task.kind == "regression":
            expected = Ridge(alpha=alpha * len(y)).fit(X[rows], y).predict(X)[:, None]
            np.testing.assert_allclose(scores[task.name], expected, atol=1e-8 * y.std())
        elif task.kind in ("binary", "ordinal"):
            columns = [y] if task.kind == "binary" else list(task.thresholds(y).T)
            for k, column in enumerate(columns):
                theirs = LogisticRegression(C=1 / (alpha * len(y)), tol=1e-8, max_iter=10_000).fit(X[rows], column)
                np.testing.assert_allclose(scores[task.name][:, k], theirs.decision_function(X), atol=2e-3)
        else:
            theirs = LogisticRegression(C=1 / (alpha * len(y)), tol=1e-8, max_iter=10_000).fit(X[rows], y)
            np.testing.assert_allclose(task.probabilities(scores[task.name]), theirs.predict_proba(X), atol=2e-3)


def test_lasso_equals_scikit_learns_lasso():
    data, share = wide(2), 0.1
    X, scores = design(data), LassoLearner(share).fit(data).predict(data)
    rows, y = data.labels["bp"].rows, data.labels["bp"].values
    top = np.abs((X[rows] - X[rows].mean(axis=0)).T @ (y - y.mean())).max() / len(y)
    expected = Lasso(alpha=share * top, tol=1e-10).fit(X[rows], y).predict(X)
    assert np.sqrt(((scores["bp"][:, 0] - expected) ** 2).mean()) < 0.02 * y.std()


def test_strongest_relative_penalty_leaves_only_the_constants():
    for learner in (LassoLearner(1.0), BlockSparseLearner(1.0)):
        data = usable(learner, wide(3))
        model = learner.fit(data)
        assert not model.coef.any()
        for task in data.tasks[:2]:
            y = data.labels[task.name].values
            mean = y.mean()
            expected = mean if task.kind == "regression" else np.log(mean / (1 - mean))
            np.testing.assert_allclose(model.predict(data)[task.name], expected, rtol=1e-6)


def test_block_sparse_uses_the_same_inputs_for_all_tasks():
    model = BlockSparseLearner(0.2).fit(wide(4))
    used = model.coef != 0
    assert 0 < used.any(axis=1).sum() < len(used)
    assert (used.all(axis=1) == used.any(axis=1)).all()


def test_one_vs_rest_probabilities_are_the_separate_ones_made_to_add_up():
    data = wide(5).only(["type"])
    task, model = data.tasks[0], BlockSparseLearner(0.01).fit(data)
    separate = expit(model.design.times(data, model.coef) + model.intercept)
    probabilities = task.probabilities(model.predict(data)["type"])
    np.testing.assert_allclose(probabilities, separate / separate.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("task_intercepts", [True, False])
def test_pooled_has_one_coefficient_vector_and_in_the_long_form_is_plain_ridge(task_intercepts):
    data = long(1)
    model = PooledLearner(0.01, task_intercepts).fit(data)
    np.testing.assert_allclose(model.coef, np.tile(model.coef[:, :1], 12), rtol=1e-10, atol=1e-12)
    row, _, y = data.stacked()
    X = np.asarray(data.inputs["numeric"])[row]
    if task_intercepts:
        groups = np.repeat(np.arange(12), 15)
        Xc, yc = (v - np.array([v[groups == g].mean(axis=0) for g in range(12)])[groups] for v in (X, y))
        expected = Ridge(alpha=0.01 * len(y), fit_intercept=False).fit(Xc, yc)
    else:
        expected = Ridge(alpha=0.01 * len(y)).fit(X, y)
        np.testing.assert_allclose(model.intercept, np.full(12, expected.intercept_))
    np.testing.assert_allclose(model.coef[:, 0], expected.coef_, rtol=1e-8)


def test_pooled_fits_one_vector_per_kind_of_standardised_targets():
    data = wide(6).only(["bp", "ill", "weight"])
    model = PooledLearner(0.01).fit(data)
    standard = model.coef / np.array([model.scale[0], 1.0, model.scale[2]])
    np.testing.assert_allclose(standard[:, 0], standard[:, 2], rtol=1e-9, atol=1e-12)
    assert np.abs(standard[:, 0] - standard[:, 1]).max() > 0.1
    assert "classes" in PooledLearner().refuses(KINDS[2])
    assert PooledLearner().refuses(KINDS[3]) is not None


def test_mean_regularised_lies_between_ridge_and_pooled():
    data = long(2)
    single = RidgeLearner(0.1).fit(data)
    apart = MeanRegularisedLearner(0.1, 1e9).fit(data)
    np.testing.assert_allclose(apart.coef, single.coef, atol=1e-6)
    models = [MeanRegularisedLearner(0.1, mu).fit(data) for mu in (1e-6, 0.1, 1.0)]
    spread = [(model.coef / model.scale).std(axis=1).sum() for model in models]
    assert spread[0] < 1e-4 * spread[-1]
    assert (np.diff(spread) > 0).all()
    assert "multiclass" in MeanRegularisedLearner().refuses(KINDS[2])


@pytest.mark.parametrize(
    "lender", [PooledLearner(), PooledLearner(0.01, False), MeanRegularisedLearner(0.1, 0.1, "coupled")]
)
def test_in_the_long_form_a_task_without_variation_learns_from_the_others(lender):
    data = long(4)
    labels = dict(data.labels)
    labels["school 3"] = Labels(labels["school 3"].rows[:1], labels["school 3"].values[:1])
    labels["school 7"] = Labels(np.zeros(0, dtype=np.int64), np.zeros(0))
    fitted = lender.fit(TaskData(data.tasks, data.inputs, labels)).predict(data)
    for name in ("school 3", "school 7"):
        true = data.labels[name]
        assert np.corrcoef(fitted[name][true.rows, 0], true.values)[0, 1] > 0.8
        assert abs(fitted[name].mean() - 50) < 10
    yes = {name: Labels(part.rows, (part.values > 50).astype(float)) for name, part in labels.items()}
    binary = TaskData(tuple(Binary(name, (), ("low", "high")) for name in data.names), data.inputs, yes)
    assert all(np.isfinite(scores).all() for scores in lender.fit(binary).predict(binary).values())


def test_coupled_intercepts_draw_small_tasks_to_the_common_level():
    data = long(3, each=2)
    own, coupled = (MeanRegularisedLearner(1.0, 0.1, kind).fit(data) for kind in ("own", "coupled"))
    assert coupled.intercept.std() < 0.5 * own.intercept.std()
    with pytest.raises(InputError, match="intercepts"):
        MeanRegularisedLearner(intercepts="common")


# -- design and relations -----------------------------------------------------------------------


def test_design_has_numeric_columns_and_one_indicator_per_code():
    data = wide(7)
    X, codes = design(data), np.asarray(data.inputs["categorical"])
    np.testing.assert_array_equal(X[:, :4], data.inputs["numeric"])
    np.testing.assert_array_equal(X[:, 4:7], np.eye(3)[codes[:, 0]])
    np.testing.assert_array_equal(X[:, 7:], np.eye(5)[codes[:, 1]])
    layout = Design.of(data)
    assert layout.names[:5] == ("age", "sex", "height", "sleep", "region[0]")
    coef = np.random.default_rng(0).normal(size=(12, 3))
    np.testing.assert_allclose(layout.times(data, coef), X @ coef)
    assert Design.read(json.loads(json.dumps(layout.describe()))) == layout


def test_relations_name_inputs_and_outputs_and_compare_tasks_in_standard_units():
    data = wide(8)
    model = RidgeLearner(0.01).fit(data)
    found = model.relations()
    coefficients, correlation = found["coefficients"], found["task correlation"]
    assert coefficients.rows == Design.of(data).names
    assert coefficients.columns[:5] == ("bp", "ill", "type=a", "type=b", "type=c")
    assert coefficients.columns[5:] == ("health>poor", "health>fair", "health>good", "weight")
    np.testing.assert_allclose(coefficients.values[:, 0], model.coef[:, 0] / data.labels["bp"].values.std())
    assert correlation.rows == ("bp", "ill", "health", "weight")  # a multiclass task has no one direction
    assert correlation.values[0, 1] > 0.8
    assert correlation.values[0, 3] < -0.8
    assert "task correlation" not in RidgeLearner().fit(data.only(["bp"])).relations()


def test_damaged_state_is_refused():
    data = wide(9)
    model = RidgeLearner().fit(data)
    description, arrays = model.state()
    with pytest.raises(InputError, match="coefficients"):
        LinearModel.from_state(data.tasks, description, arrays | {"coef": arrays["coef"][:-1]})
    with pytest.raises(InputError, match="links"):
        LinearModel.from_state(data.tasks, description | {"links": ["probit"] * 5}, arrays)
