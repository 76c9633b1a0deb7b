"""What holds for every public estimator of the room: bad input, weights, frames, sparse and float32 inputs."""

from __future__ import annotations

import inspect
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy.sparse import csc_array, csr_matrix
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

import polytask.linear
from polytask.core.errors import InputError
from polytask.linear import FeatureAugmentation, OnlineMultiTask, PathCV, TaskClustering
from polytask.linear.estimator import TaskEstimator

SETTINGS = {
    "BlockSparse": {"alpha": 0.01},
    **{f"{name}CV": {"n_alphas": 8} for name in ("BlockSparse", "TaskLasso", "SimultaneousLasso", "TraceNorm")},
    "MeanRegularisedCV": {"n_alphas": 8, "eps": 1e-3},
    # nothing to search for: the likelihood is no business of these tests
    "MultiTaskGaussianProcess": {"task_covariance": 0.5 * np.eye(3) + 0.5, "length_scale": 2.0, "noise": 0.1},
}
CLASSES = sorted(
    {
        value
        for value in vars(polytask.linear).values()
        if isinstance(value, type) and issubclass(value, TaskEstimator) and not inspect.isabstract(value)
        if value is not PathCV  # its parameters are those of the estimator in it
    },
    key=lambda cls: cls.__name__,
)
EVERY = [pytest.param(cls(**SETTINGS.get(cls.__name__, {})), id=cls.__name__) for cls in CLASSES]


def has(parameter):
    """The estimators with a parameter."""
    return [case for case in EVERY if parameter in case.values[0].get_params()]


KERNELS = {"TaskKernelRidge", "TaskKernelSVM", "MultiTaskGaussianProcess"}
# their steps on equal data are equal, so that they need no more than their own precision
AS_THEY_ARE = {"GaussianMixtureTasks", "MultiTaskGaussianProcess", "TaskClustering", "TaskGating", "TaskHierarchy"}


def precise(estimator):
    """The estimator solved far enough to compare two of its solutions."""
    estimator = clone(estimator)
    if "tol" in estimator.get_params() and type(estimator).__name__ not in AS_THEY_ARE:
        estimator.set_params(tol=1e-10)
    return estimator


def in_folds(estimator, parts):
    """The estimator with one fold for each part of the rows, where it has folds."""
    if "cv" not in estimator.get_params():
        return estimator
    return clone(estimator).set_params(cv=[(parts != part, parts == part) for part in np.unique(parts)])


def problem(seed=0, sizes=(30, 22, 26), d=4):
    """Rows of tasks in turn whose coefficients are alike; returns X, y, tasks."""
    rng = np.random.default_rng(seed)
    tasks = np.repeat(np.array(["a", "b", "c", "d", "e"])[: len(sizes)], sizes)
    X = rng.normal(size=(len(tasks), d))
    w = rng.normal(size=d)
    y = X @ w + 0.3 * X[:, 0] * (tasks == "b") + 0.5 * rng.normal(size=len(tasks))
    order = rng.permutation(len(tasks))
    return X[order], y[order], tasks[order]


def wide(seed=0, n=40, d=4, T=3):
    """Targets of T tasks on the same rows; returns X, Y."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    return X, X @ rng.normal(size=(d, T)) + 0.5 * rng.normal(size=(n, T))


# -- bad input --------------------------------------------------------------------------------------


def with_value(X, value):
    X = X.astype(object if isinstance(value, str) else complex if isinstance(value, complex) else float)
    X[3, 1] = value
    return X


BAD_INPUTS = {
    "NaN in X": (lambda X, y, t: {"X": with_value(X, np.nan)}, "Input X contains NaN"),
    "infinite X": (lambda X, y, t: {"X": with_value(X, np.inf)}, "Input X contains infinity"),
    "text in X": (lambda X, y, t: {"X": with_value(X, "much")}, "X has text in it .*'much'.*; encode it"),
    "complex X": (lambda X, y, t: {"X": with_value(X, 1j)}, "Complex data not supported"),
    "no rows": (lambda X, y, t: {"X": X[:0], "y": y[:0], "tasks": t[:0]}, r"0 sample\(s\)"),
    "no columns": (lambda X, y, t: {"X": X[:, :0]}, r"0 feature\(s\)"),
    "one-dimensional X": (lambda X, y, t: {"X": X[:, 0]}, "Expected 2D array, got 1D array"),
    "sparse X with NaN": (
        lambda X, y, t: {"X": csr_matrix(with_value(X, np.nan))},
        "contains NaN|dense data is required",
    ),
    "short y": (lambda X, y, t: {"y": y[:-1]}, "X has 78 rows but y has 77"),
    "three-dimensional y": (lambda X, y, t: {"y": y[:, None, None]}, "y has shape|dim 3"),
    "no y": (lambda X, y, t: {"y": None}, "requires y to be passed"),
    "infinite y": (lambda X, y, t: {"y": np.where(y == y[0], np.inf, y)}, "Input y contains infinity"),
    "text in y": (lambda X, y, t: {"y": np.where(y == y[0], "yes", "no")}, "y has text in it .*; code it as numbers"),
    "complex y": (lambda X, y, t: {"y": y + 1j}, "Complex data not supported"),
    "no labels": (lambda X, y, t: {"y": np.full(len(y), np.nan)}, "has no labelled row"),
    "short tasks": (lambda X, y, t: {"tasks": t[:-1]}, "tasks has shape .* but X has 78 rows"),
    "tasks with matrix y": (lambda X, y, t: {"y": np.column_stack([y, y])}, "one task label per row"),
    "missing task label": (lambda X, y, t: {"tasks": np.array([None, *t[1:]], dtype=object)}, "no label in row 0"),
    "unknown task column": (lambda X, y, t: {"tasks": "school"}, "tasks='school' names a column, but X is of type"),
    "short sample_weight": (lambda X, y, t: {"sample_weight": np.ones(5)}, "sample_weight has shape"),
    "negative sample_weight": (lambda X, y, t: {"sample_weight": -np.ones(len(y))}, "sample_weight must be finite"),
    "sample_weight NaN": (lambda X, y, t: {"sample_weight": np.full(len(y), np.nan)}, "sample_weight must be finite"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
@pytest.mark.parametrize("estimator", EVERY)
def test_bad_input_is_refused_with_its_name_and_a_remedy(estimator, case):
    X, y, tasks = problem()
    change, message = BAD_INPUTS[case]
    kind = TypeError if case == "sparse X with NaN" and not type(estimator).takes_sparse else ValueError
    with pytest.raises(kind, match=message):
        clone(estimator).fit(**{"X": X, "y": y, "tasks": tasks, **change(X, y, tasks)})


OTHERS = [OnlineMultiTask(), TaskClustering(), FeatureAugmentation()]  # they read their rows themselves
ABOUT_INPUTS = {
    "NaN in X", "infinite X", "text in X", "complex X", "no rows", "no columns", "one-dimensional X",
    "sparse X with NaN", "short tasks", "missing task label", "unknown task column",
}  # fmt: skip
ABOUT_TARGETS = {
    "short y", "three-dimensional y", "no y", "infinite y", "complex y", "no labels", "tasks with matrix y",
}  # fmt: skip


@pytest.mark.parametrize(
    ("estimator", "case"),
    [
        pytest.param(estimator, case, id=f"{type(estimator).__name__}-{case}")
        for estimator in OTHERS
        for case in BAD_INPUTS
        if case in ABOUT_INPUTS or (case in ABOUT_TARGETS and hasattr(estimator, "predict"))
    ],
)
def test_bad_input_is_refused_by_those_that_are_not_fitted_to_all_rows_at_once_too(estimator, case):
    X, y, tasks = problem()
    y = (y > 0).astype(float)
    change, message = BAD_INPUTS[case]
    own = "could not convert string to float: 'much'|y has shape|Input y contains NaN"
    with pytest.raises((ValueError, TypeError), match=f"{message}|{own}"):
        clone(estimator).fit(**{"X": X, "y": y, "tasks": tasks, **change(X, y, tasks)})


BAD_SETTINGS = [
    ("alpha", -1.0, "alpha must be"),
    ("alpha", "much", "alpha must be"),
    ("alpha", np.nan, "alpha must be"),
    ("ridge", -1.0, "ridge must be"),
    ("loss", "hinge", "loss must be|hinge"),
    ("loss", "sqared", "squared"),
    ("task_weighting", "fair", 'task_weighting must be "equal"'),
    ("task_weighting", [1.0, -1.0, 1.0], "task_weighting must be"),
    ("tol", -1e-3, "tol must be"),
    ("max_iter", 0, "max_iter must be"),
    ("fit_intercept", "yes", "fit_intercept must be"),
    ("warm_start", 2, "warm_start must be"),
    ("solver", "magic", "solver must be|magic"),
]


@pytest.mark.parametrize(
    ("estimator", "name", "value", "message"),
    [
        pytest.param(case.values[0], name, value, message, id=f"{case.id}-{name}={value}")
        for name, value, message in BAD_SETTINGS
        for case in has(name)
    ],
)
def test_bad_settings_are_refused_with_their_name(estimator, name, value, message):
    X, y, tasks = problem()
    with pytest.raises(InputError, match=message):
        clone(estimator).set_params(**{name: value}).fit(X, y, tasks=tasks)


@pytest.mark.parametrize("estimator", EVERY)
def test_predicting_refuses_other_inputs_and_unseen_tasks(estimator):
    X, y, tasks = problem()
    model = clone(estimator).fit(X, y, tasks=tasks)
    with pytest.raises(ValueError, match=r"has 3 features, but .* is expecting 4"):
        model.predict(X[:, :3], tasks=tasks)
    with pytest.raises(ValueError, match="Input X contains NaN"):
        model.predict(with_value(X, np.nan), tasks=tasks)
    with pytest.raises(InputError, match=r"task 'bb' was not among the 3 tasks of the fit. Did you mean \"b\"\?"):
        model.predict(X, tasks=np.repeat("bb", len(X)))
    with pytest.raises(InputError, match="pass tasks too"):
        model.score(X, y)


# -- weights ----------------------------------------------------------------------------------------


def fitted(estimator, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return precise(estimator).fit(*args, **kwargs)


@pytest.mark.parametrize("estimator", EVERY)
def test_a_weight_of_two_is_the_row_twice_and_a_weight_of_zero_is_no_row(estimator):
    X, y, tasks = problem(1)
    counts = np.random.default_rng(0).integers(0, 3, size=len(y))
    fold = np.arange(len(y)) % 3
    weighted = fitted(in_folds(estimator, fold), X, y, tasks=tasks, sample_weight=counts)
    again = np.repeat(np.arange(len(y)), counts)
    repeated = fitted(in_folds(estimator, fold[again]), X[again], y[again], tasks=tasks[again])
    np.testing.assert_allclose(weighted.predict(X, tasks=tasks), repeated.predict(X, tasks=tasks), atol=2e-4)


@pytest.mark.parametrize("estimator", EVERY)
def test_weights_of_cells_are_those_of_the_stacked_rows(estimator):
    X, Y = wide(2)
    counts = np.random.default_rng(0).integers(0, 3, size=Y.shape)
    fold = np.arange(len(X)) % 3
    cells = fitted(in_folds(estimator, fold), X, Y, sample_weight=counts)
    stacked = fitted(
        in_folds(estimator, np.tile(fold, 3)),
        np.tile(X, (3, 1)),
        Y.T.ravel(),
        tasks=np.repeat(np.arange(3), len(X)),
        sample_weight=counts.T.ravel(),
    )
    np.testing.assert_allclose(cells.predict(X), stacked.predict(X), atol=2e-4)


@pytest.mark.parametrize("estimator", has("task_weighting"))
def test_weighting_by_examples_is_weighting_by_the_numbers_of_rows(estimator):
    X, y, tasks = problem(3)
    n = np.unique(tasks, return_counts=True)[1]
    named = fitted(clone(estimator).set_params(task_weighting="examples"), X, y, tasks=tasks)
    given = fitted(clone(estimator).set_params(task_weighting=n / n.mean()), X, y, tasks=tasks)
    equal = fitted(clone(estimator).set_params(task_weighting="equal"), X, y, tasks=tasks)
    np.testing.assert_allclose(named.predict(X, tasks=tasks), given.predict(X, tasks=tasks), atol=1e-9)
    assert np.abs(named.predict(X, tasks=tasks) - equal.predict(X, tasks=tasks)).max() > 1e-7


# -- tasks that say nothing -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["one row", "constant"])
# TaskKernelSVM has no intercept of the task's own: such a task gets a model from the others
@pytest.mark.parametrize("estimator", [case for case in EVERY if case.id != "TaskKernelSVM"])
def test_a_task_with_one_row_or_a_constant_target_gets_its_intercept_only_with_a_warning(estimator, kind):
    X, y, tasks = problem(4)
    keep = np.ones(len(y), dtype=bool)
    mine = np.flatnonzero(tasks == "b")
    if kind == "one row":
        keep[mine[1:]] = False
        expected = y[mine[0]]
    else:
        y = np.where(tasks == "b", 7.0, y)
        expected = 7.0
    with pytest.warns(UserWarning, match="task 'b' have the same target"):
        model = clone(estimator).fit(X[keep], y[keep], tasks=tasks[keep])
    np.testing.assert_allclose(model.predict(X, tasks=np.repeat("b", len(X))), expected)
    if hasattr(model, "coef_"):
        assert not model.coef_[1].any()
    assert np.std(model.predict(X, tasks=np.repeat("a", len(X)))) > 0.1


# -- frames -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
@pytest.mark.parametrize("estimator", EVERY)
def test_tasks_may_be_a_column_of_the_frame(estimator, frame):
    X, y, tasks = problem(5)
    columns = {f"x{number}": X[:, number] for number in range(4)}
    table = frame({"x0": columns["x0"], "school": tasks, **{name: columns[name] for name in ("x1", "x2", "x3")}})
    by_name = clone(estimator).fit(table, y, tasks="school")
    by_array = clone(estimator).fit(frame(columns), y, tasks=tasks)
    assert by_name.feature_names_in_.tolist() == ["x0", "x1", "x2", "x3"]
    assert by_name.n_features_in_ == 4
    expected = by_array.predict(frame(columns), tasks=tasks)
    np.testing.assert_array_equal(by_name.predict(table), expected)
    np.testing.assert_array_equal(by_name.predict(table, tasks="school"), expected)
    np.testing.assert_array_equal(by_name.predict(frame(columns), tasks=tasks), expected)
    assert by_name.score(table, y) == by_array.score(frame(columns), y, tasks=tasks)
    with pytest.raises(InputError, match="fitted with the task labels in column 'school', which X lacks"):
        by_name.predict(frame(columns))
    with pytest.raises(InputError, match=r"tasks='scool' is not among the 5 columns of X\. Did you mean \"school\""):
        clone(estimator).fit(table, y, tasks="scool")


# -- sparse and float32 inputs ----------------------------------------------------------------------

SPARSE = [case for case in EVERY if type(case.values[0]).takes_sparse]


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("kind", [csr_matrix, csc_array])
@pytest.mark.parametrize("estimator", SPARSE)
def test_sparse_inputs_give_what_dense_ones_do(estimator, kind, intercept):
    X, y, tasks = problem(6, d=6)
    X = np.where(np.abs(X) > 0.7, X + 1.0, 0.0)
    X[:, 5] = 2.0  # constant
    estimator = clone(estimator).set_params(fit_intercept=intercept)
    dense, sparse = fitted(estimator, X, y, tasks=tasks), fitted(estimator, kind(X), y, tasks=tasks)
    np.testing.assert_allclose(sparse.predict(kind(X), tasks=tasks), dense.predict(X, tasks=tasks), atol=2e-4)
    np.testing.assert_allclose(sparse.score(kind(X), y, tasks=tasks), dense.score(X, y, tasks=tasks), atol=1e-4)


@pytest.mark.parametrize("estimator", EVERY)
def test_float32_inputs_give_the_same_optimum(estimator):
    X, y, tasks = problem(7)
    X = X.astype(np.float32)
    double = fitted(estimator, X.astype(np.float64), y, tasks=tasks)
    single = fitted(estimator, X, y, tasks=tasks)
    np.testing.assert_allclose(single.predict(X, tasks=tasks), double.predict(X, tasks=tasks), atol=1e-4)


# -- losses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", has("loss"))
def test_huber_loss_is_there_or_refused(estimator):
    X, y, tasks = problem(8)
    y[::6] += 50.0
    robust = clone(estimator).set_params(loss="huber")
    if "epsilon" not in estimator.get_params():
        with pytest.raises(InputError, match='has no loss="huber"'):
            robust.fit(X, y, tasks=tasks)
        return
    clean = y < 25.0
    robust.set_params(epsilon=0.3).fit(X, y, tasks=tasks)
    misses = [
        np.abs(m.predict(X, tasks=tasks) - y)[clean].mean() for m in (robust, clone(estimator).fit(X, y, tasks=tasks))
    ]
    assert misses[0] < 0.35 * misses[1]


@pytest.mark.parametrize("estimator", has("loss"))
def test_multinomial_loss_is_there_or_refused(estimator):
    X, y, _ = problem(9)
    y = np.digitize(y, [-0.7, 0.7]).astype(float)
    model = clone(estimator).set_params(loss="multinomial")
    if not type(estimator).takes_multinomial:
        with pytest.raises(InputError, match='has no loss="multinomial"'):
            model.fit(X, y)
        return
    model.fit(X, y)
    assert model.coef_.shape == (3, 4)
    assert model.score(X, y) == (model.predict(X) == y).mean() > 0.5
    np.testing.assert_allclose(model.class_probabilities(X).sum(axis=1), 1.0)


# -- missing labels, order, threads, starts ---------------------------------------------------------


@pytest.mark.parametrize("estimator", EVERY)
def test_missing_labels_are_cells_left_out(estimator):
    X, Y = wide(10)
    Y[np.random.default_rng(0).random(Y.shape) < 0.2] = np.nan
    task, row = np.nonzero(~np.isnan(Y.T))
    cells = fitted(estimator, X, Y)
    stacked = fitted(estimator, X[row], Y[row, task], tasks=task)
    np.testing.assert_allclose(cells.predict(X), stacked.predict(X), atol=2e-4)


@pytest.mark.parametrize("estimator", EVERY)
def test_order_of_tasks_and_rows_does_not_matter(estimator):
    X, Y = wide(11)
    order = [2, 0, 1]
    one, other = fitted(estimator, X, Y), fitted(estimator, X[::-1], Y[::-1, order])
    np.testing.assert_allclose(other.predict(X), one.predict(X)[:, order], atol=2e-4)


@pytest.mark.parametrize("estimator", EVERY)
def test_number_of_threads_does_not_matter(estimator):
    X, y, tasks = problem(12, sizes=(90, 60, 70), d=12)
    with threadpool_limits(limits=1):
        one = clone(estimator).fit(X, y, tasks=tasks).predict(X, tasks=tasks)
    with threadpool_limits(limits=4):
        more = clone(estimator).fit(X, y, tasks=tasks).predict(X, tasks=tasks)
    # a large kernel matrix is factored in pieces, one thread or several, which rounds differently
    np.testing.assert_allclose(more, one, rtol=0.0, atol=1e-9 if type(estimator).__name__ in KERNELS else 0.0)


@pytest.mark.parametrize("estimator", has("warm_start"))
def test_a_warm_start_ends_where_a_cold_one_does_and_sooner(estimator):
    X, y, tasks = problem(13)
    y = y + 2.0 * X[:, 1] * (tasks == "c")
    model = precise(estimator).set_params(warm_start=True, loss="logistic")
    first = model.fit(X, (y > 0).astype(float), tasks=tasks).n_iter_
    coef = model.coef_.copy()
    again = model.fit(X, (y > 0).astype(float), tasks=tasks).n_iter_
    np.testing.assert_allclose(model.coef_, coef, atol=1e-5)
    assert again < first
    model.set_params(warm_start=False).fit(X, (y > 0).astype(float), tasks=tasks)
    np.testing.assert_allclose(model.coef_, coef, atol=1e-5)


@pytest.mark.parametrize("estimator", EVERY)
def test_task_labels_are_routed_through_pipelines_and_cross_validation(estimator):
    X, y, tasks = problem(14)
    with config_context(enable_metadata_routing=True):
        routed = clone(estimator).set_fit_request(tasks=True).set_predict_request(tasks=True)
        pipe = make_pipeline(StandardScaler(), routed.set_score_request(tasks=True))
        folds = list(KFold(2, shuffle=True, random_state=0).split(X))
        found = cross_validate(pipe, X, y, cv=folds, params={"tasks": tasks}, return_estimator=True)
    for (train, test), score, model in zip(folds, found["test_score"], found["estimator"], strict=True):
        scaler = StandardScaler().fit(X[train])
        alone = clone(estimator).fit(scaler.transform(X[train]), y[train], tasks=tasks[train])
        assert score == alone.score(scaler.transform(X[test]), y[test], tasks=tasks[test])
        expected = alone.predict(scaler.transform(X), tasks=tasks)
        np.testing.assert_array_equal(model[-1].predict(scaler.transform(X), tasks=tasks), expected)


@pytest.mark.parametrize("estimator", EVERY)
def test_what_is_shared_can_be_read(estimator):
    X, y, tasks = problem(17)
    relations = clone(estimator).fit(X, y, tasks=tasks).relations_
    assert relations
    assert all(np.isfinite(relation.values).all() for relation in relations.values())


# -- data that leave the solution undetermined ------------------------------------------------------


def fitted_honestly(estimator, X, Y, null):
    """Fit; the gap is at most that of the tolerance, or a ConvergenceWarning says that it is not."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = clone(estimator).fit(X, Y)
    assert np.isfinite(model.predict(X)).all()
    for name in ("coef_", "intercept_", "dual_gap_"):
        assert np.isfinite(getattr(model, name, 0.0)).all()
    if hasattr(model, "dual_gap_"):
        warned = any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
        assert model.dual_gap_ <= model.tol * null * 1.001 or warned
    return model


@pytest.mark.parametrize("estimator", has("loss"))
def test_separable_classes_end_finite_with_an_honest_statement_from_every_method(estimator):
    X = np.random.default_rng(15).normal(size=(60, 3))
    Y = (X[:, :1] + [[0.5, -0.5]] > 0).astype(float)
    weak = clone(estimator).set_params(loss="logistic")
    if "alpha" in weak.get_params():
        weak.set_params(alpha=1e-5)
    model = fitted_honestly(weak, X, Y, 2 * np.log(2))
    assert model.score(X, Y) > 0.9


@pytest.mark.parametrize("estimator", EVERY)
def test_collinear_and_constant_columns_end_finite_with_an_honest_statement(estimator):
    X, Y = wide(16)
    X = np.column_stack([X, X[:, 0], X @ np.ones(4), np.full(len(X), 3.0)])
    if "alpha" in estimator.get_params():
        estimator = clone(estimator).set_params(alpha=1e-3)
    if type(estimator).__name__ == "TaskKernelSVM":
        null = np.abs(Y - np.median(Y, axis=0)).mean(axis=0).sum()
    else:
        null = 0.5 * Y.var(axis=0).sum()
    assert fitted_honestly(estimator, X, Y, null).score(X, Y) > 0.3
