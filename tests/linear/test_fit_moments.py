"""Fitting statistics is fitting the data they are of: for every estimator, and after adding and taking away rows."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.linear_model import MultiTaskLasso

import polytask.linear
from polytask.core.errors import InputError
from polytask.linear import BlockSparse, MeanRegularised, TraceNorm
from polytask.linear.estimator import TaskEstimator
from polytask.linear.moments import Moments
from polytask.linear.path_cv import CrossValidatedEstimator

ROWS_ONLY = {"MultiTaskGaussianProcess", "TaskKernelRidge", "TaskKernelSVM"}
ESTIMATORS = [
    value
    for name, value in sorted(vars(polytask.linear).items())
    if isinstance(value, type) and issubclass(value, TaskEstimator) and not issubclass(value, CrossValidatedEstimator)
]  # those that choose their strength take the moments of each fold


def stacked(seed=0, sizes=(14, 9, 20, 11, 16), d=6):
    rng = np.random.default_rng(seed)
    tasks = np.repeat(np.array(["alpha", "beta", "gamma", "delta", "rho"])[: len(sizes)], sizes)
    X = rng.normal(size=(len(tasks), d)) + 1.0
    W = rng.normal(size=(len(sizes), 2)) @ rng.normal(size=(2, d))
    y = np.einsum("nd,nd->n", X, np.repeat(W, sizes, axis=0)) + 0.5 * rng.normal(size=len(tasks))
    order = rng.permutation(len(tasks))
    return X[order], y[order], tasks[order]


def assert_same_model(a, b, tol=1e-8):
    np.testing.assert_array_equal(a.tasks_, b.tasks_)
    np.testing.assert_allclose(a.coef_, b.coef_, rtol=tol, atol=tol)
    np.testing.assert_allclose(a.intercept_, b.intercept_, rtol=tol, atol=tol)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("kind", ESTIMATORS, ids=lambda kind: kind.__name__)
def test_fitting_moments_is_fitting_the_rows(kind):
    X, y, tasks = stacked()
    if kind.__name__ in ROWS_ONLY:
        with pytest.raises(InputError, match="needs the rows"):
            kind().fit_moments(Moments.stacked(X, y, tasks))
        return
    model = kind().fit_moments(Moments.stacked(X, y, tasks))
    assert_same_model(model, kind().fit(X, y, tasks))
    np.testing.assert_allclose(model.predict(X, tasks), kind().fit(X, y, tasks).predict(X, tasks), rtol=1e-8)
    assert model.n_features_in_ == 6


@pytest.mark.parametrize("weighting", ["equal", "examples"])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_weights_missing_targets_and_intercepts_make_no_difference(weighting, fit_intercept):
    rng = np.random.default_rng(1)
    X, y, tasks = stacked(1)
    weight = rng.integers(0, 3, size=len(y)).astype(float)
    settings = {"alpha": 0.1, "task_weighting": weighting, "fit_intercept": fit_intercept}
    found = TraceNorm(**settings).fit_moments(Moments.stacked(X, y, tasks, weight))
    assert_same_model(found, TraceNorm(**settings).fit(X, y, tasks, sample_weight=weight))
    Y = np.column_stack([y, y + X[:, 0], -y])
    Y[rng.random(Y.shape) < 0.3] = np.nan
    found = TraceNorm(**settings).fit_moments(Moments.of(X, Y))
    assert_same_model(found, TraceNorm(**settings).fit(X, Y))
    assert found.predict(X).shape == Y.shape


@pytest.mark.parametrize("intercepts", ["own", "coupled", "common"])
def test_intercepts_that_tasks_share_need_no_rows_either(intercepts):
    X, y, tasks = stacked(2)
    settings = {"alpha": 0.1, "mu": 0.5, "intercepts": intercepts}
    assert_same_model(
        MeanRegularised(**settings).fit_moments(Moments.stacked(X, y, tasks)),
        MeanRegularised(**settings).fit(X, y, tasks),
    )


def test_a_task_with_a_constant_target_gets_its_intercept_only():
    X, y, tasks = stacked(3)
    y[tasks == "beta"] = 0.1
    with pytest.warns(UserWarning, match="'beta'"):
        found = TraceNorm(alpha=0.1).fit_moments(Moments.stacked(X, y, tasks))
    with pytest.warns(UserWarning, match="'beta'"):
        wanted = TraceNorm(alpha=0.1).fit(X, y, tasks)
    assert_same_model(found, wanted)
    assert not found.coef_[found.tasks_ == "beta"].any()
    assert found.intercept_[found.tasks_ == "beta"] == pytest.approx(0.1)


def test_what_moments_cannot_tell_is_refused():
    X, y, tasks = stacked(4)
    moments = Moments.stacked(X, y, tasks)
    with pytest.raises(InputError, match="'alpha' has logistic loss, which needs the rows"):
        TraceNorm(loss="logistic").fit_moments(moments)
    gone = moments - Moments.stacked(X[tasks == "rho"], y[tasks == "rho"], tasks[tasks == "rho"])
    with pytest.raises(InputError, match="'rho' has no rows"):
        TraceNorm().fit_moments(gone)
    model = TraceNorm().fit_moments(moments.tasks(np.arange(4)))
    with pytest.raises(InputError, match="'rho' was not among"):
        model.predict(X, tasks)


def test_new_rows_update_a_model_exactly_without_the_old_ones():
    X, y, tasks = stacked(5)
    old, new = slice(0, 40), slice(40, 70)
    known = Moments.stacked(X[old], y[old], tasks[old])
    updated = TraceNorm(alpha=0.2).fit_moments(known + Moments.stacked(X[new], y[new], tasks[new]))
    assert_same_model(updated, TraceNorm(alpha=0.2).fit(X, y, tasks))


def test_new_rows_may_bring_new_tasks():
    X, y, tasks = stacked(6)
    old = np.isin(tasks, ["alpha", "rho"])
    both = Moments.stacked(X[old], y[old], tasks[old]) + Moments.stacked(X[~old], y[~old], tasks[~old])
    assert both.names.tolist() == ["alpha", "beta", "delta", "gamma", "rho"]
    assert_same_model(TraceNorm(alpha=0.2).fit_moments(both), TraceNorm(alpha=0.2).fit(X, y, tasks))


def test_taking_a_fold_away_is_fitting_the_other_rows():
    X, y, tasks = stacked(7, sizes=(40, 30, 50, 35, 45))
    fold = np.random.default_rng(0).integers(5, size=len(y))
    whole = Moments.stacked(X, y, tasks)
    for number in range(5):
        mine = fold == number
        rest = whole - Moments.stacked(X[mine], y[mine], tasks[mine])
        for kind in (TraceNorm, BlockSparse):
            wanted = kind(alpha=0.1).fit(X[~mine], y[~mine], tasks[~mine])
            assert_same_model(kind(alpha=0.1, tol=1e-10).fit_moments(rest), wanted.set_params(tol=1e-10).fit(
                X[~mine], y[~mine], tasks[~mine]
            ))  # fmt: skip


def test_moments_of_shared_rows_give_the_multi_task_lasso():
    rng = np.random.default_rng(8)
    X = rng.normal(size=(50, 8))
    Y = X[:, :2] @ rng.normal(size=(2, 3)) + 0.1 * rng.normal(size=(50, 3)) + 4.0
    found = BlockSparse(alpha=0.1, tol=1e-12).fit_moments(Moments.of(X[:20], Y[:20]) + Moments.of(X[20:], Y[20:]))
    wanted = MultiTaskLasso(alpha=0.1, tol=1e-12, max_iter=10_000).fit(X, Y)
    np.testing.assert_allclose(found.coef_, wanted.coef_, atol=1e-6)
    np.testing.assert_allclose(found.intercept_, wanted.intercept_, atol=1e-6)


@pytest.mark.parametrize("labels", [None, "text", "numbers"])
def test_saved_moments_come_back_bit_for_bit(tmp_path, labels):
    X, y, tasks = stacked(9)
    if labels is None:
        moments = Moments.of(X, np.column_stack([y, np.where(y > 0, y, np.nan)]))
    else:
        moments = Moments.stacked(X, y, tasks if labels == "text" else np.unique(tasks, return_inverse=True)[1] - 3)
    moments.save(tmp_path / "school.safetensors")
    again = Moments.load(tmp_path / "school.safetensors")
    for name in ("weight", "mean_x", "gram", "pattern", "mean_y", "cross", "yy", "names"):
        np.testing.assert_array_equal(getattr(again, name), getattr(moments, name))
        assert getattr(again, name).dtype == getattr(moments, name).dtype
    assert again.form == moments.form
    assert_same_model(TraceNorm().fit_moments(again), TraceNorm().fit_moments(moments), tol=0.0)


def test_a_file_that_does_not_hold_moments_is_refused(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "x.safetensors"
    with pytest.raises(InputError, match="cannot be read"):
        Moments.load(path)
    path.write_bytes(b"not a file of arrays")
    with pytest.raises(InputError, match="cannot be read"):
        Moments.load(path)
    save_file({"W": np.zeros(3)}, str(path))
    with pytest.raises(InputError, match="does not hold moments"):
        Moments.load(path)
    X, y, tasks = stacked()
    moments = Moments.stacked(X, y, tasks)
    arrays = {name: getattr(moments, name) for name in ("weight", "mean_x", "gram", "mean_y", "cross", "yy")}
    about = {"polytask": "moments", "form": "stacked", "tasks": json.dumps({"kind": "U", "names": ["a"] * 5})}
    save_file({**arrays, "pattern": moments.pattern + 9}, str(path), metadata=about)
    with pytest.raises(InputError, match="do not belong together"):
        Moments.load(path)


def test_moments_that_do_not_go_together_are_refused():
    X, y, tasks = stacked()
    moments = Moments.stacked(X, y, tasks)
    numbered = Moments.stacked(X, y, np.unique(tasks, return_inverse=True)[1])
    with pytest.raises(InputError, match="use text or numbers in both"):
        moments + numbered
    with pytest.raises(InputError, match="'rho', which the moments do not have"):
        moments.tasks(np.arange(4)) - moments
    with pytest.raises(InputError, match="cannot be combined"):
        moments + Moments.stacked(X[:, :3], y, tasks)
    with pytest.raises(InputError, match="give \\(n, d\\), \\(n,\\) and \\(n,\\)"):
        Moments.stacked(X, y, tasks[:-1])
