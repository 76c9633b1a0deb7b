"""TreeGuidedGroupLasso: optimum, certificate, limits, the tree it finds, what it selects."""

from __future__ import annotations

import doctest

import cvxpy as cp
import numpy as np
import pytest
from scipy.cluster.hierarchy import average, centroid
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso

import polytask.linear.tree_guided_group_lasso
from polytask.core.errors import InputError
from polytask.linear import BlockSparse, TreeGuidedGroupLasso

TREE = np.array([[0, 1, 0.2, 2], [3, 4, 0.3, 2], [2, 5, 0.6, 3], [6, 7, 1.0, 5]])
FLAT = np.array([[0, 1, 1.0, 2], [5, 2, 1.0, 3], [6, 3, 1.0, 4], [7, 4, 1.0, 5]])


def penalty(W, groups):
    """The definition, of alpha 1, for a cvxpy or a plain matrix."""
    total = 0
    for row in groups:
        members = np.flatnonzero(row)
        if len(members):
            total += row[members[0]] * cp.sum(cp.norm(W[members], 2, axis=0))
    return total


@pytest.mark.parametrize("root_height", [1.0, 0.7])
@pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
def test_optimum_is_that_of_a_general_convex_solver(problems, share, root_height):
    X, y, tasks = problems.stacked()
    model = TreeGuidedGroupLasso(tree=TREE, root_height=root_height, tol=1e-9)
    alpha = share * model.alpha_max(X, y, tasks=tasks)
    model.set_params(alpha=alpha).fit(X, y, tasks=tasks)
    best = problems.optimum(X, y, tasks, lambda parts: (alpha * penalty(parts[0], model.group_weights_), []))
    ours = problems.loss(model, X, y, tasks) + alpha * penalty(model.coef_, model.group_weights_).value
    assert ours == pytest.approx(best, rel=1e-5)
    assert ours - model.dual_gap_ <= best + 1e-6 * abs(best)


def test_dual_gap_bounds_the_distance_to_the_optimum(problems):
    X, y, tasks = problems.stacked(3)

    def objective(model):
        return problems.loss(model, X, y, tasks) + 0.05 * penalty(model.coef_, model.group_weights_).value

    best = objective(TreeGuidedGroupLasso(0.05, tree=TREE, tol=1e-12).fit(X, y, tasks=tasks))
    for tol in (1e-1, 1e-3, 1e-5, 1e-7):
        rough = TreeGuidedGroupLasso(0.05, tree=TREE, tol=tol).fit(X, y, tasks=tasks)
        assert -1e-10 <= objective(rough) - best <= rough.dual_gap_ + 1e-10
        assert rough.dual_gap_ <= tol * problems.null_loss(y, tasks) * (1 + 1e-9)


def test_from_alpha_max_on_all_coefficients_are_zero_and_just_below_it_some_are_not(problems):
    X, y, tasks = problems.stacked(4)
    for tree in (TREE, None):
        top = TreeGuidedGroupLasso(tree=tree).alpha_max(X, y, tasks=tasks)
        assert not TreeGuidedGroupLasso(top * (1 + 1e-9), tree=tree, tol=1e-9).fit(X, y, tasks=tasks).coef_.any()
        assert TreeGuidedGroupLasso(0.98 * top, tree=tree, tol=1e-9).fit(X, y, tasks=tasks).coef_.any()


def test_a_root_at_height_zero_gives_the_row_sparse_model(problems):
    X, y, tasks = problems.stacked(5)
    tree = TreeGuidedGroupLasso(0.2, tree=TREE, root_height=0.0, tol=1e-12).fit(X, y, tasks=tasks)
    rows = BlockSparse(0.2, tol=1e-12).fit(X, y, tasks=tasks)
    np.testing.assert_allclose(tree.coef_, rows.coef_, atol=1e-6)


def test_all_joins_at_the_top_give_the_lasso_of_every_task(problems):
    X, y, tasks = problems.stacked(6)
    model = TreeGuidedGroupLasso(0.2, tree=FLAT, tol=1e-12).fit(X, y, tasks=tasks)
    for t in range(5):
        alone = Lasso(0.2, tol=1e-12, max_iter=100_000).fit(X[tasks == t], y[tasks == t])
        np.testing.assert_allclose(model.coef_[t], alone.coef_, atol=1e-6)


def test_one_task_is_the_lasso():
    rng = np.random.default_rng(7)
    X = rng.normal(size=(40, 5))
    y = X[:, 0] + 0.3 * rng.normal(size=40)
    np.testing.assert_allclose(
        TreeGuidedGroupLasso(0.1, tol=1e-12).fit(X, y).coef_[0], Lasso(0.1, tol=1e-12).fit(X, y).coef_, atol=1e-7
    )


def planted(seed=0, n=25, d=20):
    """Three pairs of tasks; each pair has three features of its own."""
    rng = np.random.default_rng(seed)
    W = np.zeros((6, d))
    for pair in range(3):
        W[2 * pair : 2 * pair + 2, 3 * pair : 3 * pair + 3] = rng.normal(size=(2, 3)) + 1.5
    tasks = np.repeat(np.arange(6), n)
    X = rng.normal(size=(len(tasks), d))
    return X, np.einsum("nd,nd->n", X, W[tasks]) + rng.normal(size=len(tasks)), tasks, W


def test_the_tree_that_is_found_joins_the_tasks_that_are_alike():
    X, y, tasks, _ = planted(n=80)
    model = TreeGuidedGroupLasso(0.1).fit(X, y, tasks=tasks)
    assert {tuple(sorted(pair)) for pair in model.tree_[:3, :2].astype(int).tolist()} == {(0, 1), (2, 3), (4, 5)}
    assert model.tree_[:3, 2].max() < model.tree_[3:, 2].min()


def test_with_the_right_tree_the_coefficients_are_nearer_to_the_truth_than_those_of_all_or_none_together():
    errors = []
    linked = np.array([[0, 1, 0.1, 2], [2, 3, 0.1, 2], [4, 5, 0.1, 2], [6, 7, 1.0, 4], [8, 9, 1.0, 6]])
    flat = np.array([[0, 1, 1.0, 2], [2, 3, 1.0, 2], [4, 5, 1.0, 2], [6, 7, 1.0, 4], [8, 9, 1.0, 6]])
    for seed in range(5):
        X, y, tasks, W = planted(seed)
        row = []
        for settings in ({"tree": linked}, {"tree": flat}, {"tree": linked, "root_height": 0.0}):
            model = TreeGuidedGroupLasso(**settings)
            top = model.alpha_max(X, y, tasks=tasks)
            fits = [model.set_params(alpha=share * top).fit(X, y, tasks=tasks).coef_ for share in (0.3, 0.2, 0.1, 0.05)]
            row.append(min(np.square(coef - W).sum() for coef in fits))
        errors.append(row)
    tree, lasso, rows = np.mean(errors, axis=0)
    assert tree < 0.9 * lasso
    assert tree < 0.9 * rows


def test_permuting_tasks_permutes_the_result(problems):
    X, y, tasks = problems.stacked(12)
    order = np.array([3, 1, 4, 0, 2])
    model = TreeGuidedGroupLasso(0.1, tol=1e-12).fit(X, y, tasks=tasks)
    other = TreeGuidedGroupLasso(0.1, tol=1e-12).fit(X, y, tasks=order[tasks])
    np.testing.assert_allclose(other.coef_[order], model.coef_, atol=1e-6)


def test_relations_show_the_guiding_tree_and_the_groups(problems):
    X, y, tasks = problems.stacked(13)
    relations = TreeGuidedGroupLasso(0.1, tree=TREE).fit(X, y, tasks=tasks).relations_
    np.testing.assert_array_equal(relations["guiding tree"].values, TREE)
    assert relations["task groups"].rows[:1] == ("group 1",)
    assert relations["task groups"].rows[-1] == "4 alone"
    np.testing.assert_allclose(relations["task groups"].values.sum(axis=0), 1.0)


def test_warm_start_from_the_solution_needs_fewer_steps_and_the_same_data_give_the_same_bytes(problems):
    X, y, tasks = problems.stacked(13)
    model = TreeGuidedGroupLasso(0.05, warm_start=True).fit(X, y, tasks=tasks)
    first = model.n_iter_
    assert TreeGuidedGroupLasso(0.05).fit(X, y, tasks=tasks).coef_.tobytes() == model.coef_.tobytes()
    assert model.fit(X, y, tasks=tasks).n_iter_ == 1 < first


def test_stopping_too_early_warns_and_says_what_to_do(problems):
    X, y, tasks = problems.stacked(14)
    with pytest.warns(ConvergenceWarning, match="increase max_iter"):
        TreeGuidedGroupLasso(1e-3, max_iter=2, tol=1e-12).fit(X, y, tasks=tasks)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0.0}, "alpha must be a positive number"),
        ({"root_height": 1.5}, "root_height must be from 0 to 1"),
        ({"start_ridge": -1.0}, "start_ridge must be"),
        ({"tree": TREE[:2]}, r"tree has shape \(2, 4\); a linkage matrix of 5 tasks has shape \(4, 4\)"),
        ({"tree": "any"}, "tree must be a SciPy linkage matrix or None"),
        ({"tree": np.zeros((4, 4))}, "tree is not a valid SciPy linkage matrix"),
        ({"tree": np.array([[0, 1, 0.5, 2], [5, 2, 0.3, 3], [6, 3, 0.6, 4], [7, 4, 1.0, 5]])}, "without inversions"),
    ],
)
def test_wrong_settings_are_refused_by_name(problems, settings, message):
    X, y, tasks = problems.stacked(15)
    with pytest.raises(InputError, match=message):
        TreeGuidedGroupLasso(**settings).fit(X, y, tasks=tasks)


def test_a_linkage_with_inversions_is_what_the_refusal_names():
    points = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.87]])
    linked = centroid(points)
    assert linked[1, 2] < linked[0, 2]
    X = np.random.default_rng(0).normal(size=(9, 2))
    with pytest.raises(InputError, match="without inversions, such as average"):
        TreeGuidedGroupLasso(tree=linked).fit(X, X @ np.ones((2, 3)))
    TreeGuidedGroupLasso(tree=average(points)).fit(X, X @ np.ones((2, 3)))


def test_examples_in_the_docstring_hold():
    assert doctest.testmod(polytask.linear.tree_guided_group_lasso).failed == 0
