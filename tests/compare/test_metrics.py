import numpy as np
import pytest
from sklearn import metrics as reference

from polytask.compare.metrics import influences, score_overall, score_task
from polytask.core.data import TaskData
from polytask.core.metrics import METRICS
from polytask.core.task import Binary, Multiclass, Ordinal, Regression


def example(kind, metrics=(), n=80, seed=0):
    rng = np.random.default_rng(seed)
    if kind == "regression":
        y = rng.normal(size=n)
        return Regression("t", metrics), (0.6 * y + 0.3 + 0.5 * rng.normal(size=n))[:, None], y
    if kind == "binary":
        y = rng.integers(0, 2, n).astype(float)
        return Binary("t", metrics, ("no", "yes")), (y - 0.4 + rng.normal(size=n))[:, None], y
    y = rng.integers(0, 4, n).astype(float)
    if kind == "multiclass":
        return Multiclass("t", metrics, tuple("abcd")), np.eye(4)[y.astype(int)] + rng.normal(size=(n, 4)), y
    return Ordinal("t", metrics, tuple("abcd")), y[:, None] - [0.5, 1.5, 2.5] + rng.normal(size=(n, 1)), y


PAIRS = [(kind, metric.name) for metric in METRICS.values() for kind in metric.kinds]


@pytest.mark.parametrize(("kind", "metric"), PAIRS)
def test_every_metric_of_every_kind_is_measured(kind, metric):
    task, scores, y = example(kind, (metric,))
    values, reasons = score_task(task, scores, y)
    assert np.isfinite(values[metric])
    assert not reasons


@pytest.mark.parametrize(("kind", "metric"), PAIRS)
def test_influences_agree_with_leaving_rows_out(kind, metric):
    task, scores, y = example(kind, (metric,), n=150)
    found = influences(task, scores, y)
    whole = score_task(task, scores, y)[0][metric]
    keep = ~np.eye(150, dtype=bool)
    left_out = np.array([score_task(task, scores[rows], y[rows])[0][metric] for rows in keep])
    jackknife = 149 * (whole - left_out)
    assert found.shape == (150,)
    assert abs(found.mean()) < 1e-12
    difference = found - (jackknife - jackknife.mean())
    assert difference.std() < 0.05 * found.std()


def test_log_loss_agrees_with_a_hand_computation():
    task, scores, y = example("binary", ("log_loss",))
    expected = np.mean(np.log1p(np.exp(np.where(y == 1, -1, 1) * scores[:, 0])))
    assert score_task(task, scores, y)[0]["log_loss"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["regression", "binary", "multiclass", "ordinal"])
def test_one_value_only_is_left_out_with_a_reason(kind):
    every = tuple(metric.name for metric in METRICS.values() if kind in metric.kinds)
    task, scores, y = example(kind, every)
    values, reasons = score_task(task, scores, np.ones_like(y))
    assert values == {}
    assert set(reasons) == set(every)
    assert score_task(task, scores[:1], y[:1])[0] == {}
    assert score_task(task, scores[:0], y[:0])[0] == {}


def test_certain_and_wrong_costs_a_finite_log_loss():
    task, _, _ = example("binary", ("log_loss",))
    values, _ = score_task(task, np.array([[1e6], [-1e6]]), np.array([0.0, 1.0]))
    assert 30 < values["log_loss"] < 1e3


def test_overall_scores_of_the_long_form_agree_with_hand_computations():
    y = np.array([1.0, 2.0, 3.0, 11.0, 13.0])
    predicted = np.array([1.5, 2.0, 2.0, 12.0, 12.0])
    tasks = (Regression("p"), Regression("q"))
    data = TaskData.from_stacked(tasks, np.zeros((5, 1)), np.array([0, 0, 0, 1, 1]), y)
    scores = dict.fromkeys("pq", predicted[:, None])
    found = score_overall(data, scores, {"p": 1.0, "q": 10.0}, long_form=True)
    sse = 0.25 + 1 + 1 + 1
    assert found["explained_variance_global"] == pytest.approx(100 * reference.r2_score(y, predicted))
    assert found["explained_variance_per_task"] == pytest.approx(100 * (1 - sse / (2 + 2)))
    assert found["mean_task_rmse"] == pytest.approx((np.sqrt(1.25 / 3) + 1) / 2)
    assert found["arrmse"] == pytest.approx((np.sqrt(1.25 / 5) + np.sqrt(2 / 10)) / 2)
    wide = score_overall(data, scores, {"p": 1.0, "q": 10.0}, long_form=False)
    assert "explained_variance_global" not in wide


def test_overall_scores_need_regression_tasks_only():
    task, scores, y = example("binary")
    data = TaskData.from_columns([task], np.zeros((80, 1)), y[:, None])
    assert score_overall(data, {"t": scores}, {}, long_form=False) == {}
