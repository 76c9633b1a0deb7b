"""What the linear estimators share: routing of task labels, silent and unseen tasks, wide sparse inputs."""

from __future__ import annotations

import tracemalloc
import warnings

import numpy as np
import pandas as pd
import pytest
import sklearn
from scipy import sparse
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import polytask.linear.solvers.losses as losses_module
from polytask.core.errors import InputError
from polytask.linear import (
    AlternatingStructure,
    BlockSparse,
    ClusteredTasks,
    GraphRegularised,
    GroupingOverlap,
    MeanRegularised,
    TraceNorm,
)


def stacked(seed=0, T=4, n=30, d=5, classes=False):
    rng = np.random.default_rng(seed)
    tasks = np.repeat(np.array([f"t{number}" for number in range(T)]), n)
    X = rng.normal(size=(T * n, d)) + 1.0
    W = rng.normal(size=d) + 0.3 * rng.normal(size=(T, d))
    y = np.einsum("nd,nd->n", X, W[np.repeat(np.arange(T), n)]) + 0.5 * rng.normal(size=T * n)
    if classes:
        y = (y > np.median(y)).astype(float)
    order = rng.permutation(T * n)
    return X[order], y[order], tasks[order]


# -- task labels in scikit-learn's tools ------------------------------------------------------------


def routed(estimator):
    return (
        estimator.set_fit_request(tasks=True, sample_weight=True)
        .set_predict_request(tasks=True)
        .set_score_request(tasks=True, sample_weight=True)
    )


@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


def test_a_pipeline_hands_task_labels_to_fit_predict_and_score(routing):
    X, y, tasks = stacked()
    weight = np.random.default_rng(0).uniform(1, 2, size=len(y))
    pipe = make_pipeline(StandardScaler(), routed(MeanRegularised()))
    pipe[0].set_fit_request(sample_weight=False)
    pipe.fit(X, y, tasks=tasks, sample_weight=weight)
    alone = MeanRegularised().fit(StandardScaler().fit_transform(X), y, tasks=tasks, sample_weight=weight)
    np.testing.assert_array_equal(pipe[-1].coef_, alone.coef_)
    Z = pipe[0].transform(X)
    np.testing.assert_array_equal(pipe.predict(X, tasks=tasks), alone.predict(Z, tasks=tasks))
    assert pipe.score(X, y, tasks=tasks) == alone.score(Z, y, tasks=tasks)


def test_cross_validate_splits_task_labels_and_weights_with_the_rows(routing):
    X, y, tasks = stacked(1)
    weight = np.random.default_rng(0).uniform(1, 2, size=len(y))
    folds = list(KFold(3, shuffle=True, random_state=0).split(X))
    found = cross_validate(
        routed(TraceNorm()), X, y, cv=folds, params={"tasks": tasks, "sample_weight": weight}, return_estimator=True
    )
    for (train, test), score, model in zip(folds, found["test_score"], found["estimator"], strict=True):
        alone = TraceNorm().fit(X[train], y[train], tasks=tasks[train], sample_weight=weight[train])
        np.testing.assert_array_equal(model.coef_, alone.coef_)
        assert score == alone.score(X[test], y[test], tasks=tasks[test], sample_weight=weight[test])


def test_grid_search_chooses_and_refits_with_task_labels(routing):
    X, y, tasks = stacked(2)
    grid = {"meanregularised__mu": [0.01, 0.1, 100.0], "meanregularised__alpha": [0.001, 10.0]}
    search = GridSearchCV(make_pipeline(StandardScaler(), routed(MeanRegularised())), grid, cv=3)
    search.fit(X, y, tasks=tasks)
    assert search.best_params_["meanregularised__alpha"] == 0.001
    assert search.best_estimator_[-1].tasks_.tolist() == ["t0", "t1", "t2", "t3"]
    assert search.score(X, y, tasks=tasks) > 0.8
    assert search.best_estimator_.predict(X, tasks=tasks).shape == y.shape  # the search's own takes X only


def test_a_column_of_the_frame_needs_no_routing_of_labels_at_all():
    X, y, tasks = stacked(3)
    frame = pd.DataFrame(X, columns=list("abcde")).assign(school=tasks)
    found = cross_validate(
        MeanRegularised(), frame, y, cv=3, params={"tasks": "school"}, scoring="r2", return_estimator=True
    )
    assert (found["test_score"] > 0.7).all()
    assert found["estimator"][0].feature_names_in_.tolist() == list("abcde")
    search = GridSearchCV(MeanRegularised(), {"mu": [0.1, 100.0]}, cv=3).fit(frame, y, tasks="school")
    assert search.best_score_ > 0.5
    assert search.predict(frame).shape == y.shape


def test_the_column_may_come_out_of_a_column_transformer():
    X, y, tasks = stacked(4)
    frame = pd.DataFrame(X, columns=list("abcde")).assign(school=tasks)
    scale = ColumnTransformer(
        [("scale", StandardScaler(), list("abcde"))], remainder="passthrough", verbose_feature_names_out=False
    )
    pipe = make_pipeline(scale.set_output(transform="pandas"), MeanRegularised())
    pipe.fit(frame, y, meanregularised__tasks="school")
    assert pipe[-1].coef_.shape == (4, 5)
    assert np.corrcoef(pipe.predict(frame), y)[0, 1] > 0.9


def test_a_score_without_task_labels_says_how_to_route_them():
    X, y, tasks = stacked(5)
    with pytest.raises(InputError, match=r"enable_metadata_routing=True.*set_score_request\(tasks=True\)"):
        MeanRegularised().fit(X, y, tasks=tasks).score(X, y)


def test_whole_tasks_left_out_are_predicted_by_the_common_model(routing):
    X, y, tasks = stacked(6, T=8)
    model = routed(MeanRegularised(unseen="mean"))
    found = cross_validate(model, X, y, cv=GroupKFold(4), params={"tasks": tasks, "groups": tasks})
    assert (found["test_score"] > 0.5).all()


# -- unseen tasks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("intercepts", ["own", "coupled", "common"])
@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_an_unseen_task_is_predicted_by_the_mean_model_where_that_is_wanted(intercepts, loss):
    X, y, tasks = stacked(7, classes=loss == "logistic")
    model = MeanRegularised(loss=loss, intercepts=intercepts, unseen="mean").fit(X, y, tasks=tasks)
    mixed = np.where(tasks == "t1", "new", tasks)
    scores = model.task_scores(X, tasks=mixed)
    b = {"own": model.intercept_.mean(), "common": model.intercept_[0]}.get(intercepts)
    new = scores[mixed == "new"] - X[mixed == "new"] @ model.common_
    np.testing.assert_allclose(new, new[0], atol=1e-12)
    if b is not None:
        np.testing.assert_allclose(new[0], b)
    else:
        assert model.intercept_.min() <= new[0] <= model.intercept_.max()
    np.testing.assert_array_equal(scores[mixed != "new"], model.task_scores(X, tasks=tasks)[mixed != "new"])
    predicted = model.predict(X, tasks=mixed)
    np.testing.assert_array_equal(predicted, scores > 0 if loss == "logistic" else scores)
    assert np.isfinite(model.predict_probability(X, tasks=mixed)).all() == (loss == "logistic")
    assert 0.5 < model.score(X, y, tasks=mixed) < 1.0
    with pytest.raises(InputError, match="task 'new' was not among"):
        model.set_params(unseen="error").predict(X, tasks=mixed)
    with pytest.raises(InputError, match="unseen must be one of error, mean"):
        MeanRegularised(unseen="zero").fit(X, y, tasks=tasks)


def test_the_mean_model_is_refused_where_tasks_have_different_losses():
    X, y, tasks = stacked(8, T=2)
    y = np.where(tasks == "t0", y > 0, y).astype(float)
    model = MeanRegularised(loss=["logistic", "squared"], unseen="mean").fit(X, y, tasks=tasks)
    with pytest.raises(InputError, match="needs one loss for all tasks"):
        model.predict(X, tasks=np.repeat("new", len(X)))


# -- tasks that say nothing -------------------------------------------------------------------------


@pytest.mark.parametrize("make", [BlockSparse, TraceNorm, MeanRegularised, GraphRegularised, ClusteredTasks])
def test_a_logistic_task_with_one_class_has_its_smoothed_log_odds_as_intercept(make):
    X, y, tasks = stacked(9, classes=True)
    y = np.where(tasks == "t2", 1.0, y)
    with pytest.warns(UserWarning, match="task 't2' have the same target"):
        model = make(loss="logistic").fit(X, y, tasks=tasks)
    assert not model.coef_[2].any()
    np.testing.assert_allclose(model.intercept_[2], np.log(30.5 / 0.5))
    assert (model.predict(X, tasks=np.repeat("t2", len(X))) == 1.0).all()


@pytest.mark.parametrize("make", [BlockSparse, TraceNorm, MeanRegularised, ClusteredTasks])
def test_a_task_that_says_nothing_does_not_change_the_others(make):
    X, y, tasks = stacked(10)
    others = tasks != "t1"
    y = np.where(others, y, 3.0)
    settings = {"mean": 1.0, "between": 1.0, "within": 1.0} if make is ClusteredTasks else {}
    with pytest.warns(UserWarning, match="have the same target"):
        model = make(tol=1e-11, **settings).fit(X, y, tasks=tasks)
    alone = make(tol=1e-11, **settings).fit(X[others], y[others], tasks=tasks[others])
    np.testing.assert_allclose(model.coef_[[0, 2, 3]], alone.coef_, atol=1e-5)


def test_the_largest_useful_penalty_is_found_beside_tasks_that_say_nothing():
    X, y, tasks = stacked(11, classes=True)
    y = np.where(tasks == "t0", 1.0, y)
    others = tasks != "t0"
    model = BlockSparse(loss="logistic")
    np.testing.assert_allclose(
        model.alpha_max(X, y, tasks=tasks), model.alpha_max(X[others], y[others], tasks=tasks[others])
    )


def test_many_silent_tasks_are_named_in_one_short_warning():
    rng = np.random.default_rng(12)
    with pytest.warns(UserWarning, match="task 3, 4, 5, 6, 7 and 2 more have") as caught:
        MeanRegularised().fit(rng.normal(size=(20, 2)), np.column_stack([rng.normal(size=(20, 3)), np.ones((20, 7))]))
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_a_fit_where_no_task_says_anything_predicts_the_constants():
    X = np.random.default_rng(13).normal(size=(10, 3))
    for model in (BlockSparse(), TraceNorm(), MeanRegularised(), GraphRegularised()):
        with pytest.warns(UserWarning, match="have the same target"):
            model.fit(X, np.tile([1.0, -2.0], (10, 1)))
        np.testing.assert_array_equal(model.predict(X), np.tile([1.0, -2.0], (10, 1)))


@pytest.mark.parametrize("intercepts", ["coupled", "common"])
def test_shared_intercepts_give_a_task_with_one_row_what_the_others_know(intercepts):
    X, y, tasks = stacked(14)
    keep = (tasks != "t1") | (np.arange(len(y)) == np.flatnonzero(tasks == "t1")[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = MeanRegularised(intercepts=intercepts).fit(X[keep], y[keep], tasks=tasks[keep])
    np.testing.assert_allclose(model.coef_[1], model.common_, atol=0.3)
    assert np.corrcoef(model.predict(X, tasks=np.repeat("t1", len(X))), y)[0, 1] > 0.8


def test_shared_intercepts_need_both_classes_in_some_task():
    X, y, tasks = stacked(15, classes=True)
    model = MeanRegularised(loss="logistic", intercepts="coupled", unseen="mean")
    with pytest.warns(UserWarning, match="have the same target"):
        model.fit(X, np.ones(len(y)), tasks=tasks)
    np.testing.assert_allclose(model.intercept_, np.log(30.5 / 0.5))
    assert (model.predict(X, tasks=np.repeat("new", len(X))) == 1.0).all()
    half = np.where(tasks == "t0", 1.0, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.fit(X, half, tasks=tasks).coef_[0].any()


def test_without_intercepts_a_constant_target_is_information():
    X, y, tasks = stacked(16)
    y = np.where(tasks == "t1", 3.0, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = BlockSparse(0.01, fit_intercept=False).fit(X, y, tasks=tasks)
    assert model.coef_[1].any()


# -- wide sparse inputs -----------------------------------------------------------------------------


def wide_sparse(seed=0, n=120, d=30_000, T=3):
    rng = np.random.default_rng(seed)
    X = sparse.random_array(
        (n, d), density=0.01, rng=rng, format="csr", data_sampler=lambda size: rng.uniform(1, 2, size)
    )
    X = sparse.hstack([sparse.csr_array(rng.integers(0, 2, size=(n, 5)).astype(float)), X], format="csr")
    Y = X[:, :5] @ rng.normal(size=(5, T)) * 2 + 0.1 * rng.normal(size=(n, T))
    return X, np.asarray(Y)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize("make", [BlockSparse, TraceNorm, MeanRegularised, GraphRegularised])
def test_wide_sparse_inputs_are_never_made_dense(make, loss):
    X, Y = wide_sparse()
    if loss == "logistic":
        Y = (np.median(Y, axis=0) < Y).astype(float)
    model = make(loss=loss, tol=1e-5)
    if hasattr(model, "alpha_max"):
        model.set_params(alpha=0.3 * model.alpha_max(X, Y))
    model.fit(X[:, :50], Y)  # compiled before the memory is watched
    tracemalloc.start()
    model.fit(X, Y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    dense = 8 * X.shape[0] * X.shape[1]
    assert peak < 0.8 * dense
    assert model.score(X, Y) > 0.7
    if hasattr(model, "dual_gap_"):
        null = 3 * np.log(2) if loss == "logistic" else 0.5 * Y.var(axis=0).sum()
        assert model.dual_gap_ <= 1e-5 * null * 1.01


def test_methods_that_need_gram_matrices_say_so_for_wide_inputs():
    X, Y = wide_sparse(d=40_000)
    for model in (AlternatingStructure(), GroupingOverlap()):
        with pytest.raises(InputError, match=r"40005 features are too many for this method, .* GB"):
            model.fit(X, Y)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize("make", [BlockSparse, TraceNorm, MeanRegularised, GraphRegularised])
def test_products_with_rows_and_gram_matrices_give_the_same_solution(make, loss, monkeypatch):
    X, y, tasks = stacked(17, classes=loss == "logistic")
    X = np.where(np.abs(X) > 1, X, 0.0)
    tol = 1e-11 if make in (BlockSparse, TraceNorm) else 1e-9
    expected = make(0.02, loss=loss, tol=tol).fit(X, y, tasks=tasks)
    monkeypatch.setattr(losses_module, "_LARGEST_GRAMS", 0)
    monkeypatch.setattr(losses_module, "_LARGEST_CURVATURE", 0)
    for inputs in (X, sparse.csr_array(X)):
        found = make(0.02, loss=loss, tol=tol).fit(inputs, y, tasks=tasks)
        np.testing.assert_allclose(found.coef_, expected.coef_, atol=2e-5)
        np.testing.assert_allclose(found.intercept_, expected.intercept_, atol=2e-5)


# -- nasty data -------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [BlockSparse, TraceNorm, ClusteredTasks, MeanRegularised, GraphRegularised])
def test_separable_classes_end_finite_with_an_honest_statement(make):
    rng = np.random.default_rng(18)
    X = rng.normal(size=(60, 3))
    Y = (X[:, :1] + [[0.5, -0.5]] > 0).astype(float)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = make(1e-5, loss="logistic", max_iter=200).fit(X, Y)
    assert np.isfinite(model.coef_).all()
    assert np.isfinite(model.intercept_).all()
    assert model.score(X, Y) == 1.0
    if hasattr(model, "dual_gap_"):
        met = model.dual_gap_ <= model.tol * 2 * np.log(2) * 1.001
        assert met or any(issubclass(warning.category, ConvergenceWarning) for warning in caught)


@pytest.mark.parametrize("make", [BlockSparse, TraceNorm, ClusteredTasks, MeanRegularised, GraphRegularised])
@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_duplicated_and_constant_columns_end_finite_and_share_the_weight_of_one(make, loss):
    X, y, tasks = stacked(19, classes=loss == "logistic")
    X = np.column_stack([X, X[:, 0], X @ np.ones(5), np.full(len(X), 3.0)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = make(0.01, loss=loss, tol=1e-6).fit(X, y, tasks=tasks)
    assert np.isfinite(model.coef_).all()
    assert np.abs(model.coef_[:, -1]).max() < 1e-8
    assert model.score(X, y, tasks=tasks) > 0.7
