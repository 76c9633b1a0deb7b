"""TaskClustering: metrics, transfer, partitions, limits, new tasks."""

from __future__ import annotations

import doctest

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import check_grad
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

import polytask.linear.task_clustering
from polytask.core.errors import InputError
from polytask.linear import TaskClustering
from polytask.linear.solvers import metric, partition


def problem(seed=0, T=6, n=60, d=8, noise=0.1):
    """Tasks of two kinds in turn whose classes depend on different columns; returns X, y, tasks, kinds."""
    rng = np.random.default_rng(seed)
    kind = np.arange(T) % 2
    tasks = np.repeat(np.arange(T), n)
    X = rng.normal(size=(len(tasks), d))
    signal = np.where(kind[tasks] == 0, X[:, 0] + X[:, 1], X[:, 2] - X[:, 3])
    return X, ((signal > 0) ^ (rng.random(len(tasks)) < noise)).astype(int), tasks, kind


# -- the metric -------------------------------------------------------------------------------------


def test_objective_of_a_metric_is_the_definition_and_its_slope_the_derivative():
    X, y, tasks, _ = problem(n=12, T=2, d=4)
    parts = [(X[tasks == t], y[tasks == t]) for t in (0, 1)]
    signs = [metric._signs(part) for part in parts]
    u = np.array([0.5, 2.0, 0.5, 1.0])
    total = 0.0
    for rows, classes in parts:
        same, other = [], []
        for i in range(len(rows)):
            for k in range(len(rows)):
                if i != k:
                    distance = np.sqrt((u * (rows[i] - rows[k]) ** 2).sum())
                    (same if classes[i] == classes[k] else other).append(distance)
        total += (np.mean(same) - np.mean(other)) / 2
    rows = [part[0] for part in parts]
    assert metric._objective(rows, signs, u)[0] == pytest.approx(total, abs=1e-5)
    error = check_grad(
        lambda v: metric._objective(rows, signs, v)[0], lambda v: metric._objective(rows, signs, v)[1], u
    )
    assert error < 1e-5


def test_a_metric_lowers_its_objective_at_every_step_and_stays_on_the_simplex():
    X, y, tasks, _ = problem(1)
    u, values = metric.fit_metric([(X[tasks == 0], y[tasks == 0])], tol=1e-6, max_steps=100)
    assert (np.diff(values) < 0).all()
    assert len(values) > 2
    assert (u >= 0).all()
    assert u.sum() == pytest.approx(8.0)
    assert u[:2].sum() > 7.0  # the columns that the classes depend on


def test_onto_the_simplex_is_the_nearest_point_of_it():
    rng = np.random.default_rng(2)
    for _ in range(20):
        v = 3 * rng.normal(size=6)
        p = metric.onto_simplex(v, 6.0)
        assert p.sum() == pytest.approx(6.0)
        assert (p >= 0).all()
        others = rng.dirichlet(np.ones(6), size=200) * 6.0
        assert ((v - p) @ (others - p).T <= 1e-9).all()


def test_rows_of_one_class_teach_no_metric():
    u, values = metric.fit_metric(
        [(np.random.default_rng(0).normal(size=(5, 3)), np.zeros(5, int))], tol=0, max_steps=9
    )
    np.testing.assert_array_equal(u, np.ones(3))
    assert len(values) == 1


# -- partitions -------------------------------------------------------------------------------------


def test_criterion_is_the_definition_and_does_not_depend_on_the_names_of_clusters():
    rng = np.random.default_rng(3)
    C, labels = rng.random((7, 7)), np.array([0, 1, 1, 2, 0, 2, 1])
    J = sum(C[t, labels == labels[t]].mean() for t in range(7)) / 7
    assert partition.criterion(C, labels) == pytest.approx(J)
    assert partition.criterion(C, np.array([5, 0, 0, 3, 5, 3, 0])) == pytest.approx(J)


def test_every_partition_is_tried_once():
    stirling = {(5, 1): 1, (5, 2): 15, (5, 3): 25, (5, 5): 1, (8, 4): 1701}
    for (T, k), count in stirling.items():
        found = {tuple(labels) for labels in partition.partitions(T, k)}
        assert len(found) == count
        assert all(len(set(labels)) == k for labels in found)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_annealing_finds_the_best_of_all_partitions_on_small_problems(k):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        C = rng.random((8, 8)) + np.eye(8)
        best = partition.criterion(C, partition.best_partition(C, k, n_starts=1, seed=0))
        found = max(
            partition.criterion(C, partition.anneal(C, rng.permutation(np.arange(8) % k), k, rng)) for _ in range(5)
        )
        assert found == pytest.approx(best, abs=1e-12)


def test_planted_clusters_of_many_tasks_are_found_and_nothing_is_left_empty():
    rng = np.random.default_rng(4)
    label = rng.permutation(np.arange(40) % 4)
    C = 0.6 + 0.1 * (label[:, None] == label) + 0.05 * rng.normal(size=(40, 40))
    found = partition.best_partition(C, 4, n_starts=3, seed=0)
    np.testing.assert_array_equal(found, partition.in_order(label))
    for k in (1, 7, 40):
        assert len(np.unique(partition.best_partition(C, k, n_starts=1, seed=0))) == k


# -- the method -------------------------------------------------------------------------------------


def test_as_many_clusters_as_tasks_keep_every_task_its_own_metric():
    X, y, tasks, _ = problem(5)
    model = TaskClustering(6).fit(X, y, tasks=tasks)
    np.testing.assert_array_equal(model.labels_, np.arange(6))
    np.testing.assert_array_equal(model.metrics_, model.own_metrics_)
    for t in range(6):
        alone, _ = metric.fit_metric([(X[tasks == t] / model.scale_, y[tasks == t])], tol=1e-5, max_steps=200)
        np.testing.assert_array_equal(model.own_metrics_[t], alone)


def test_one_cluster_has_one_metric_from_the_pairs_of_all_tasks():
    X, y, tasks, _ = problem(6)
    model = TaskClustering(1).fit(X, y, tasks=tasks)
    Z = X / X.std(axis=0)
    pooled, _ = metric.fit_metric([(Z[tasks == t], y[tasks == t]) for t in range(6)], tol=1e-5, max_steps=200)
    np.testing.assert_array_equal(model.metrics_, [pooled])
    assert set(model.labels_) == {0}


@pytest.mark.parametrize("k", [1, 3])
def test_transfer_is_the_leave_one_out_accuracy_of_nearest_neighbours_under_the_other_metric(k):
    X, y, tasks, _ = problem(7, T=3, n=12)
    model = TaskClustering(2, n_neighbors=k).fit(X, y, tasks=tasks)
    for t in range(3):
        for s in range(3):
            Z = X[tasks == t] / model.scale_ * np.sqrt(model.own_metrics_[s])
            expected = cross_val_score(KNeighborsClassifier(k), Z, y[tasks == t], cv=LeaveOneOut()).mean()
            assert model.transfer_[t, s] == pytest.approx(expected)


def test_criterion_of_the_model_is_that_of_its_clusters_and_no_other_partition_is_better():
    X, y, tasks, _ = problem(8, noise=0.3)
    model = TaskClustering(3).fit(X, y, tasks=tasks)
    assert model.criterion_ == partition.criterion(model.transfer_, model.labels_)
    assert model.criterion_ == max(partition.criterion(model.transfer_, p) for p in partition.partitions(6, 3))


def test_identical_tasks_end_in_one_cluster():
    X, y, tasks, _ = problem(9, T=4, n=40)
    twice = TaskClustering(4).fit(np.tile(X, (2, 1)), np.tile(y, 2), tasks=np.concatenate([tasks, tasks + 4]))
    np.testing.assert_array_equal(twice.labels_[:4], twice.labels_[4:])
    np.testing.assert_array_equal(twice.transfer_[:4], twice.transfer_[4:])
    once = TaskClustering(4).fit(X, y, tasks=tasks)
    np.testing.assert_allclose(twice.metrics_, once.metrics_, atol=1e-6)


@pytest.mark.parametrize("T", [6, 12])
def test_kinds_of_tasks_are_found_and_help_against_one_metric_and_against_own_ones(T):
    scores = []
    for seed in range(3):
        X, y, tasks, kind = problem(seed, T=T, n=40)
        test = problem(seed + 100, T=T, n=100)
        models = [TaskClustering(k).fit(X, y, tasks=tasks) for k in (2, 1, T)]
        np.testing.assert_array_equal(models[0].labels_, kind)
        scores.append([model.score(test[0], test[1], tasks=test[2]) for model in models])
    clusters, pooled, own = np.mean(scores, axis=0)
    assert clusters > pooled + 0.05
    assert clusters > own + 0.01


@pytest.mark.parametrize("k", [1, 5])
def test_predictions_are_those_of_nearest_neighbours_in_the_own_rows_under_the_metric_of_the_cluster(k):
    X, y, tasks, _ = problem(10)
    test = problem(110)
    model = TaskClustering(2, n_neighbors=k).fit(X, y, tasks=tasks)
    found = model.predict(test[0], test[2])
    for t in range(6):
        root = np.sqrt(model.metrics_[model.labels_[t]]) / model.scale_
        oracle = KNeighborsClassifier(k).fit(X[tasks == t] * root, y[tasks == t])
        np.testing.assert_array_equal(found[test[2] == t], oracle.predict(test[0][test[2] == t] * root))


def test_a_new_task_joins_the_cluster_of_its_kind_and_is_predicted_from_its_few_examples():
    X, y, tasks, kind = problem(11)
    model = TaskClustering(2).fit(X, y, tasks=tasks)
    new = problem(12, T=2, n=240, noise=0.0)
    for t in (0, 1):
        rows, classes = new[0][new[2] == t], np.array(["no", "yes"])[new[1][new[2] == t]]
        assert model.cluster_of(rows[:40], classes[:40]) == model.labels_[np.flatnonzero(kind == t)[0]]
        guess = model.predict_new_task(rows[40:], rows[:40], classes[:40])
        plain = KNeighborsClassifier(1).fit(rows[:40], classes[:40]).predict(rows[40:])
        assert (guess == classes[40:]).mean() > (plain == classes[40:]).mean() + 0.05


def test_columns_with_missing_labels_and_stacked_rows_agree():
    rng = np.random.default_rng(13)
    X = rng.normal(size=(60, 4))
    Y = np.where(X[:, [0, 0, 1]] + 0.3 * rng.normal(size=(60, 3)) > 0, 2.0, 5.0)
    Y[rng.random(Y.shape) < 0.2] = np.nan
    columns = TaskClustering(2).fit(X, Y)
    row, task = np.nonzero(~np.isnan(Y))
    order = np.argsort(task, kind="stable")
    stacked = TaskClustering(2).fit(X[row[order]], Y[row, task][order], tasks=task[order])
    np.testing.assert_array_equal(columns.labels_, stacked.labels_)
    assert columns.predict(X).shape == (60, 3)
    assert set(np.unique(columns.predict(X))) == {2.0, 5.0}
    assert columns.score(X, Y) == 1.0  # every labelled row is its own nearest neighbour


def test_units_of_the_columns_do_not_matter():
    X, y, tasks, _ = problem(14, T=4)
    units = np.array([1e3, 1.0, 1e-3, 1.0, 1.0, 50.0, 1.0, 1.0])
    plain, scaled = TaskClustering(2).fit(X, y, tasks=tasks), TaskClustering(2).fit(X * units, y, tasks=tasks)
    np.testing.assert_allclose(scaled.metrics_, plain.metrics_, atol=1e-4)
    np.testing.assert_array_equal(scaled.labels_, plain.labels_)


def test_relations_show_transfer_clusters_and_metrics():
    X, y, tasks, kind = problem(15)
    frame = pd.DataFrame(X, columns=list("abcdefgh")).assign(robot=np.array(list("uvwxyz"))[tasks])
    model = TaskClustering(2).fit(frame, y, tasks="robot")
    relations = model.relations_
    assert relations["transfer"].rows == tuple("uvwxyz")
    np.testing.assert_array_equal(relations["task clusters"].values.argmax(axis=0), kind)
    assert relations["metrics"].rows == tuple("abcdefgh")
    np.testing.assert_array_equal(model.predict(frame), TaskClustering(2).fit(X, y, tasks=tasks).predict(X, tasks))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_clusters": 0}, "n_clusters must be a whole number"),
        ({"n_neighbors": 1.5}, "n_neighbors must be a whole number"),
        ({"n_starts": 0}, "n_starts must be a whole number"),
        ({"max_iter": 0}, "max_iter must be a whole number"),
        ({"tol": -1.0}, "tol must be"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings, message):
    X, y, tasks, _ = problem(16)
    with pytest.raises(InputError, match=message):
        TaskClustering(**settings).fit(X, y, tasks=tasks)


def test_wrong_data_are_refused_by_name():
    X, y, tasks, _ = problem(17)
    with pytest.raises(ValueError, match="Unknown label type"):
        TaskClustering().fit(X, X[:, 0], tasks=tasks)
    with pytest.raises(InputError, match="y has shape"):
        TaskClustering().fit(X, y[:-1], tasks=tasks)
    model = TaskClustering().fit(X, y, tasks=tasks)
    with pytest.raises(InputError, match="give the task of each row"):
        model.predict(X)
    with pytest.raises(InputError, match="was not among the 6 tasks"):
        model.predict(X[:1], [77])


def test_examples_in_the_docstring_hold():
    assert doctest.testmod(polytask.linear.task_clustering).failed == 0
