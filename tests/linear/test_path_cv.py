"""Cross-validated strengths: the same as a loop of fits on the folds, from rows and from moments."""

from __future__ import annotations

import doctest
import warnings

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.special import expit
from sklearn.linear_model import MultiTaskLassoCV
from sklearn.model_selection import KFold, ShuffleSplit

import polytask.linear.cross_validated as thin
import polytask.linear.path_cv as module
import polytask.linear.paths as paths
from polytask.core.errors import InputError
from polytask.linear import (
    BlockSparse,
    BlockSparseCV,
    ClusteredTasks,
    ElasticBlockSparse,
    MeanRegularised,
    MeanRegularisedCV,
    Moments,
    PathCV,
    SimultaneousLasso,
    SimultaneousLassoCV,
    SparseGroup,
    TaskLasso,
    TaskLassoCV,
    TraceNorm,
    TraceNormCV,
    TreeGuidedGroupLasso,
)
from polytask.linear.folds import deal

ALPHAS = np.array([0.5, 0.2, 0.08])
PAIRS = [
    (BlockSparseCV, BlockSparse),
    (TaskLassoCV, TaskLasso),
    (SimultaneousLassoCV, SimultaneousLasso),
    (TraceNormCV, TraceNorm),
    (MeanRegularisedCV, MeanRegularised),
]


def stacked(seed=0, sizes=(20, 14, 27), d=5):
    rng = np.random.default_rng(seed)
    tasks = np.repeat(np.array(["a", "b", "c"])[: len(sizes)], sizes)
    X = rng.normal(size=(len(tasks), d)) + 1.0
    W = rng.normal(size=d) + 0.4 * rng.normal(size=(len(sizes), d))
    y = np.einsum("nd,nd->n", X, np.repeat(W, sizes, axis=0)) + 0.7 * rng.normal(size=len(tasks)) + 2.0
    order = rng.permutation(len(tasks))
    return X[order], y[order], tasks[order]


def columns(seed=0, n=47, d=6, T=3, missing=0.0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) + 1.0
    Y = X[:, :3] @ rng.normal(size=(3, T)) + 0.8 * rng.normal(size=(n, T)) - 3.0
    Y[rng.random(Y.shape) < missing] = np.nan
    return X, Y


def loop(plain, folds, X, y, tasks=None, weight=None, alphas=ALPHAS):
    """The mean over tasks of squared errors, or of log-losses times 2, by fits on the folds; ``(m, folds)``."""
    found = np.full((len(alphas), len(folds)), np.nan)
    for number, (train, test) in enumerate(folds):
        own = {} if tasks is None else {"tasks": tasks[train]}
        if weight is not None:
            own["sample_weight"] = weight[train]
        a = np.ones(len(y)) if weight is None else weight
        for place, alpha in enumerate(alphas):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                model = type(plain)(**{**plain.get_params(), "alpha": alpha}).fit(X[train], y[train], **own)
            errors = []
            for t in range(y.shape[1]) if tasks is None else np.unique(tasks[train]):
                rows = [i for i in test if (not np.isnan(y[i, t]) if tasks is None else tasks[i] == t)]
                if rows and sum(a[rows]) > 0:
                    z = model.task_scores(X[rows])[:, t] if tasks is None else model.task_scores(X[rows], tasks[rows])
                    target = y[rows, t] if tasks is None else y[rows]
                    cells = (target - z) ** 2
                    if plain.loss == "logistic":
                        cells = -2.0 * np.log(np.where(target > 0.5, expit(z), expit(-z)))
                    errors.append(np.average(cells, weights=a[rows]))
            found[place, number] = np.mean(errors)
    return found


def within(tasks, k):
    """Folds of the rows of each task in order."""
    fold = deal(np.unique(tasks, return_inverse=True)[1], k)
    return [(np.flatnonzero(fold != j), np.flatnonzero(fold == j)) for j in range(k)]


# -- the choice ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alphas", "cv"), [(None, 5), (ALPHAS, KFold(3, shuffle=True, random_state=0))])
def test_on_shared_rows_it_is_scikit_learns_multi_task_lasso_cv(alphas, cv):
    X, Y = columns(1, n=103)
    found = BlockSparseCV(alphas, cv=cv, tol=1e-13).fit(X, Y)
    theirs = MultiTaskLassoCV(alphas=100 if alphas is None else alphas, eps=0.01, cv=cv, tol=1e-10, max_iter=10**5)
    theirs.fit(X, Y)
    assert found.alpha_ == pytest.approx(theirs.alpha_, rel=1e-12)
    np.testing.assert_allclose(found.alphas_, theirs.alphas_, rtol=1e-12)
    np.testing.assert_allclose(found.mse_path_, theirs.mse_path_, rtol=1e-8)
    np.testing.assert_allclose(found.coef_, theirs.coef_, atol=1e-7)
    np.testing.assert_allclose(found.intercept_, theirs.intercept_, atol=1e-7)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("cross", "plain"), PAIRS, ids=lambda kind: kind.__name__)
def test_with_rows_of_their_own_it_is_a_loop_of_fits(cross, plain, weighted):
    X, y, tasks = stacked(2)
    weight = np.random.default_rng(0).integers(1, 4, size=len(y)).astype(float) if weighted else None
    found = cross(ALPHAS, cv=3, tol=1e-13, max_iter=10**5).fit(X, y, tasks, sample_weight=weight)
    expected = loop(plain(tol=1e-13, max_iter=10**5), within(tasks, 3), X, y, tasks, weight)
    np.testing.assert_allclose(found.mse_path_, expected, rtol=1e-8)
    assert found.alpha_ == ALPHAS[expected.mean(axis=1).argmin()]
    alone = plain(found.alpha_, tol=1e-13, max_iter=10**5).fit(X, y, tasks, sample_weight=weight)
    np.testing.assert_allclose(found.coef_, alone.coef_, atol=1e-8)
    np.testing.assert_allclose(found.predict(X, tasks), alone.predict(X, tasks), atol=1e-7)
    assert type(found.estimator_) is plain


@pytest.mark.parametrize("cv", [3, ShuffleSplit(3, test_size=0.3, train_size=0.4, random_state=0)])
def test_missing_labels_are_left_out_of_training_and_of_errors(cv):
    X, Y = columns(3, missing=0.3)
    kept = np.flatnonzero(~np.isnan(Y).all(axis=1))
    assert len(kept) < len(X)
    folds = [(kept[train], kept[test]) for train, test in KFold(3).split(kept)] if cv == 3 else list(cv.split(X))
    found = BlockSparseCV(ALPHAS, cv=cv, tol=1e-13).fit(X, Y)
    np.testing.assert_allclose(found.mse_path_, loop(BlockSparse(tol=1e-13), folds, X, Y), rtol=1e-8)


@pytest.mark.parametrize("cross", [BlockSparseCV, TraceNormCV, MeanRegularisedCV])
def test_logistic_loss_is_judged_by_its_deviance(cross):
    X, y, tasks = stacked(4)
    y = (y > np.array([np.median(y[tasks == task]) for task in tasks])).astype(float)
    fold = deal(2 * np.unique(tasks, return_inverse=True)[1] + y.astype(int), 3)
    folds = [(np.flatnonzero(fold != j), np.flatnonzero(fold == j)) for j in range(3)]
    settings = {"loss": "logistic", "tol": 1e-12}
    alphas = [0.1, 0.05]
    found = cross(alphas, cv=folds, **settings).fit(X, y, tasks)
    plain = dict(PAIRS)[cross](**settings)
    np.testing.assert_allclose(found.mse_path_, loop(plain, folds, X, y, tasks, alphas=alphas), rtol=1e-6)


@pytest.mark.parametrize("kind", ["shared rows", "own rows", "missing labels", "sparse"])
def test_moments_of_the_folds_and_their_rows_say_the_same(monkeypatch, kind):
    X, Y = columns(5, missing=0.2 if kind == "missing labels" else 0.0)
    args = (X, Y)
    if kind == "own rows":
        args = stacked(5)
    if kind == "sparse":
        args = (csr_array(np.where(np.abs(X) > 0.5, X, 0.0)), Y)
    for model in (BlockSparseCV(ALPHAS, tol=1e-13), TraceNormCV(ALPHAS, tol=1e-13)):
        by_moments = model.fit(*args).mse_path_
        with monkeypatch.context() as patch:
            patch.setattr(module, "worth_moments", lambda *_: False)
            patch.setattr(paths, "worth_moments", lambda *_: False)
            by_rows = model.fit(*args).mse_path_
        np.testing.assert_allclose(by_moments, by_rows, rtol=1e-8)


@pytest.mark.parametrize("cross", [BlockSparseCV, TraceNormCV, MeanRegularisedCV])
def test_fitting_the_moments_of_each_fold_is_fitting_the_rows(cross):
    X, y, tasks = stacked(6)
    folds = within(tasks, 4)
    by_rows = cross(n_alphas=6, cv=4).fit(X, y, tasks)
    found = cross(n_alphas=6).fit_moments([Moments.stacked(X[test], y[test], tasks[test]) for _, test in folds])
    np.testing.assert_allclose(found.mse_path_, by_rows.mse_path_, rtol=1e-8)
    np.testing.assert_allclose(found.coef_, by_rows.coef_, atol=1e-8)
    np.testing.assert_array_equal(found.tasks_, by_rows.tasks_)
    np.testing.assert_allclose(found.predict(X, tasks), by_rows.predict(X, tasks), rtol=1e-8)
    with pytest.raises(InputError, match="give a list with the moments of each fold"):
        cross().fit_moments(Moments.stacked(X, y, tasks))
    with pytest.raises(InputError, match="moments are enough for squared loss only"):
        cross(loss="logistic").fit_moments([Moments.stacked(X, y, tasks)] * 2)


def test_huber_and_multinomial_losses_are_judged_by_their_own_errors():
    X, y, tasks = stacked(7)
    y[::9] += 60.0
    found = BlockSparseCV([1.0, 0.01], loss="huber", cv=3).fit(X, y, tasks)
    train, test = within(tasks, 3)[0]
    alone = BlockSparse(0.01, loss="huber", tol=1e-6).fit(X[train], y[train], tasks[train])
    residual = np.abs(y[test] - alone.predict(X[test], tasks[test]))
    delta = alone._thresholds[np.searchsorted(alone.tasks_, tasks[test])]
    cells = np.where(residual <= delta, residual**2, delta * (2 * residual - delta))
    mean = np.mean([cells[tasks[test] == task].mean() for task in alone.tasks_])
    assert found.mse_path_[1, 0] == pytest.approx(mean, rel=1e-3)
    classes = np.digitize(X @ [2.0, -1.0, 0.0, 0.0, 1.0], [0.5, 2.5]).astype(float)
    found = BlockSparseCV([0.3, 0.01], loss="multinomial", cv=KFold(3)).fit(X, classes)
    train, test = next(KFold(3).split(X))
    alone = BlockSparse(0.01, loss="multinomial").fit(X[train], classes[train])
    own = alone.class_probabilities(X[test])[np.arange(len(test)), classes[test].astype(int)]
    assert found.mse_path_[1, 0] == pytest.approx(-2 * np.log(own).mean(), rel=1e-3)
    assert found.alpha_ == 0.01
    assert found.score(X, classes) > 0.8


def test_a_class_that_training_rows_lack_is_a_finite_error():
    X, y, _ = stacked(8)
    classes = np.digitize(y, np.quantile(y, [0.4, 0.9])).astype(float)
    folds = [(np.flatnonzero(classes < 2), np.flatnonzero(classes == 2)), *KFold(3).split(X)]
    found = BlockSparseCV([0.3, 0.03], loss="multinomial", cv=folds).fit(X, classes)
    assert found.mse_path_[:, 0] == pytest.approx(-2 * np.log(np.finfo(float).eps))
    assert np.isfinite(found.mse_path_).all()


# -- folds --------------------------------------------------------------------------------------------


def test_one_group_is_dealt_out_as_by_k_fold_and_every_group_evenly():
    for n, k in [(10, 5), (13, 5), (4, 3)]:
        assert (
            deal(np.zeros(n, dtype=int), k).tolist()
            == np.repeat(range(k), [len(t) for _, t in KFold(k).split(range(n))]).tolist()
        )
    groups = np.random.default_rng(0).integers(40, size=200)
    fold = deal(groups, 7)
    counts = np.array([np.bincount(fold[groups == group], minlength=7) for group in range(40)])
    assert np.ptp(counts, axis=1).max() <= 1
    assert np.ptp(counts.sum(axis=0)) <= 1


def test_folds_lie_within_tasks_and_within_their_classes(monkeypatch):
    X, y, tasks = stacked(9)
    y = (y > np.quantile(y, 0.7)).astype(float)
    seen = []
    original = module._errors_by_rows
    monkeypatch.setattr(module, "_errors_by_rows", lambda *args: seen.append(args[-1]) or original(*args))
    BlockSparseCV([0.1], cv=3, loss="logistic").fit(X, y, tasks)
    assert np.array_equal(np.sort(np.concatenate([test for _, test in seen])), np.arange(len(y)))
    for task in "abc":
        for value in (0.0, 1.0):
            counts = [((tasks[test] == task) & (y[test] == value)).sum() for _, test in seen]
            assert max(counts) - min(counts) <= 1


def test_a_fold_that_trains_on_rows_it_validates_on_is_refused():
    X, Y = columns()
    rows = np.arange(len(X))
    with pytest.raises(InputError, match="fold 1 of cv trains on rows that it validates on"):
        BlockSparseCV(cv=[(rows[10:], rows[:10]), (rows[:30], rows[29:])]).fit(X, Y)


@pytest.mark.parametrize("by_moments", [True, False])
def test_what_is_left_out_does_not_reach_the_training_of_its_fold(monkeypatch, by_moments):
    X, Y = columns(10)
    if not by_moments:
        monkeypatch.setattr(module, "worth_moments", lambda *_: False)
    rows = np.arange(len(X))
    folds = [(rows[12:], rows[:12])]
    found = []
    original = BlockSparse._path
    monkeypatch.setattr(BlockSparse, "_path", lambda *args: found.append(original(*args)) or found[-1])
    for shift in (0.0, 5.0):
        moved, inputs = Y.copy(), X.copy()
        moved[:12] += shift
        inputs[:12] *= 1.0 + shift
        BlockSparseCV(ALPHAS, cv=folds, tol=1e-12).fit(inputs, moved)
    np.testing.assert_allclose(found[0].coefs, found[1].coefs, atol=1e-9)
    assert found[0].coefs.any()


def test_a_task_with_one_row_to_train_on_gets_its_intercept_and_one_with_none_has_no_say():
    X, y, tasks = stacked(11)
    kept = np.ones(len(y), dtype=bool)
    kept[np.flatnonzero(tasks == "b")[2:]] = False
    kept[np.flatnonzero(tasks == "c")[1:]] = False
    X, y, tasks = X[kept], y[kept], tasks[kept]
    for model, plain in ((BlockSparseCV, BlockSparse), (TraceNormCV, TraceNorm)):
        with pytest.warns(UserWarning, match="task 'c' have the same target"):
            found = model(ALPHAS, cv=2, tol=1e-13).fit(X, y, tasks)
        np.testing.assert_allclose(found.mse_path_, loop(plain(tol=1e-13), within(tasks, 2), X, y, tasks), rtol=1e-8)
    train, test = within(tasks, 2)[0]
    b = {part: y[rows[tasks[rows] == "b"]] for part, rows in (("train", train), ("test", test))}
    assert b["train"].shape == b["test"].shape == (1,)


def test_rows_without_a_label_or_a_weight_are_in_no_fold():
    X, y, tasks = stacked(12)
    weight = (np.arange(len(y)) % 4 > 0).astype(float)
    kept = weight > 0
    missing = np.where(kept, y, np.nan)
    alone = BlockSparseCV(n_alphas=5).fit(X[kept], y[kept], tasks[kept])
    for found in (
        BlockSparseCV(n_alphas=5).fit(X, missing, tasks),
        BlockSparseCV(n_alphas=5).fit(X, y, tasks, sample_weight=weight),
    ):
        np.testing.assert_allclose(found.mse_path_, alone.mse_path_, rtol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cv": 1}, "cv=1 folds of n_samples=47"),
        ({"cv": 48}, "cv=48 folds of n_samples=47"),
        ({"cv": "many"}, "cv must be a number of folds"),
        ({"cv": []}, "cv has no folds"),
        ({"cv": [([0, 1], [2, 99])]}, "row numbers that are not from 0 to 46"),
        ({"cv": [([0.5], [2])]}, "row numbers that are not from 0 to 46"),
        ({"cv": [([], [2])]}, "fold 0 of cv has no labelled row to train on"),
        ({"alphas": [1.0, -1.0]}, "alphas must be positive numbers"),
        ({"n_alphas": 0}, "n_alphas must be"),
        ({"eps": 1.0}, "eps must be below 1"),
    ],
)
def test_wrong_settings_are_named_with_a_remedy(change, message):
    with pytest.raises(InputError, match=message):
        BlockSparseCV(**change).fit(*columns())


# -- paths and any estimator --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        SparseGroup(l1_ratio=0.3, tol=1e-13),
        ElasticBlockSparse(ridge=0.05, tol=1e-13),
        ClusteredTasks(n_clusters=2, tol=1e-12),
        TreeGuidedGroupLasso(tol=1e-12),
        MeanRegularised(mu=0.5, intercepts="coupled"),
    ],
    ids=lambda model: type(model).__name__,
)
def test_any_estimator_with_a_path_is_chosen_as_by_a_loop_of_fits(model):
    X, y, tasks = stacked(13)
    found = PathCV(model, alphas=ALPHAS, cv=3).fit(X, y, tasks)
    np.testing.assert_allclose(found.mse_path_, loop(model, within(tasks, 3), X, y, tasks), rtol=1e-6)
    alphas, coefs, intercepts, gaps = model.path(X, y, tasks, alphas=ALPHAS[::-1])
    assert alphas.tolist() == ALPHAS.tolist()
    assert gaps.shape == (3,)
    for alpha, coef, intercept in zip(alphas, coefs, intercepts, strict=True):
        alone = type(model)(**{**model.get_params(), "alpha": alpha}).fit(X, y, tasks)
        np.testing.assert_allclose(coef, alone.coef_, atol=2e-5)
        np.testing.assert_allclose(intercept, alone.intercept_, atol=2e-5)
    assert not hasattr(model, "coef_")
    assert (
        found.relations_.keys() == found.estimator_.relations_.keys()
        if hasattr(found.estimator_, "relations_")
        else True
    )


def test_what_has_no_path_or_no_beginning_of_one_is_named():
    X, Y = columns()
    with pytest.raises(InputError, match="estimator must have one strength and a path"):
        PathCV(MultiTaskLassoCV()).fit(X, Y)
    with pytest.raises(InputError, match="ClusteredTasks has no strength at which all coefficients become 0"):
        PathCV(ClusteredTasks()).fit(X, Y)


@pytest.mark.parametrize("about", [module, thin, paths], ids=lambda about: about.__name__)
def test_the_examples_in_the_documentation_hold(about):
    failed, tried = doctest.testmod(about)
    assert tried > 0
    assert failed == 0
