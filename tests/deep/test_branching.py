import itertools

import numpy as np
import pytest
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score
from tests.deep.networks import MIXED

from polytask.core.errors import InputError
from polytask.core.task import Binary, sigmoid
from polytask.deep.branching import (
    best_grouping,
    branch_affinity,
    grouping_loss,
    margins,
    numbered,
    separation,
    spectral_clusters,
    task_affinity,
)

BINARY = tuple(Binary(f"t{t}", classes=("no", "yes")) for t in range(4))


def answers(n_tasks=4, n_rows=40, seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n_tasks, n_rows, 1))
    targets = (rng.random((n_tasks, n_rows)) < 0.5).astype(float)
    return scores, targets, rng.random((n_tasks, n_rows)) < 0.8


def blocks(sizes, within=0.9, across=0.4, noise=0.02, seed=0):
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(len(sizes)), sizes)
    A = np.where(group[:, None] == group, within, across) + noise * rng.normal(size=(len(group),) * 2)
    A = (A + A.T) / 2
    np.fill_diagonal(A, 1.0)
    return A, group


def test_the_margin_of_each_kind_of_task_is_its_formula():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(5, 6, 3))
    targets = np.array([rng.normal(size=6), [0, 1] * 3, [0, 1, 2] * 2, [0, 1, 2, 3, 0, 1], rng.normal(size=6)])
    present = rng.random((5, 6)) < 0.7
    found = margins(MIXED, scores, targets, present)
    s, y = scores, targets
    softmax = np.exp(s[2]) / np.exp(s[2]).sum(axis=1, keepdims=True)
    above = np.minimum.accumulate(sigmoid(s[3]), axis=1)
    expected = np.stack(
        [
            np.abs(y[0] - s[0, :, 0]),
            np.abs(y[1] - sigmoid(s[1, :, 0])),
            1 - softmax[np.arange(6), y[2].astype(int)],
            np.abs((y[3][:, None] > np.arange(3)) - above).mean(axis=1),
            np.abs(y[4] - s[4, :, 0]),
        ]
    )
    np.testing.assert_allclose(found, expected * present, atol=1e-12)


def test_affinity_is_its_definition_over_the_rows_two_tasks_have_in_common():
    scores, targets, present = answers()
    m = margins(BINARY, scores, targets, present)
    A = task_affinity(m, present)
    hard = [m[t] >= m[t, present[t]].mean() for t in range(4)]
    for i, j in itertools.product(range(4), repeat=2):
        both = present[i] & present[j]
        agree = np.mean(hard[i][both] == hard[j][both])
        assert A[i, j] == pytest.approx(1.0 if i == j else agree, abs=1e-12)


def test_affinity_lies_in_0_1_is_symmetric_and_1_on_the_diagonal():
    for seed in range(5):
        scores, targets, present = answers(seed=seed)
        A = task_affinity(margins(BINARY, scores, targets, present), present)
        assert (A >= 0).all()
        assert (A <= 1).all()
        np.testing.assert_array_equal(A, A.T)
        assert (np.diag(A) == 1).all()


def test_affinity_does_not_depend_on_which_class_is_called_the_second():
    scores, targets, present = answers()
    flip = np.array([True, False, True, False])[:, None]
    one = task_affinity(margins(BINARY, scores, targets, present), present)
    scores, targets = np.where(flip[..., None], -scores, scores), np.where(flip, 1 - targets, targets)
    np.testing.assert_allclose(task_affinity(margins(BINARY, scores, targets, present), present), one, atol=1e-12)


def test_permuted_tasks_have_the_permuted_affinity_and_the_same_groups():
    order = np.array([4, 2, 6, 0, 5, 1, 3])
    A, _ = blocks((4, 3))
    scores, targets, present = answers()
    m = margins(BINARY, scores, targets, present)
    four = np.array([2, 0, 3, 1])
    np.testing.assert_array_equal(task_affinity(m[four], present[four]), task_affinity(m, present)[np.ix_(four, four)])
    groups = best_grouping(A[np.ix_(order, order)], alpha=4.0, cost=1.0)
    assert adjusted_rand_score(groups, best_grouping(A, alpha=4.0, cost=1.0)[order]) == 1.0


def test_a_copied_task_has_affinity_1_and_lands_in_the_same_group():
    scores, targets, _ = answers(n_rows=200)
    scores[3], targets[3] = scores[0], targets[0]
    here = np.ones(targets.shape, dtype=bool)
    A = task_affinity(margins(BINARY, scores, targets, here), here)
    assert A[0, 3] == 1.0
    for d in (2, 3):
        groups = spectral_clusters(A, d)
        assert groups[0] == groups[3]


def test_tasks_of_complementary_difficulty_have_affinity_0():
    m = np.array([[0.1, 0.9] * 10, [0.9, 0.1] * 10])
    assert task_affinity(m, np.ones(m.shape, dtype=bool))[0, 1] == 0.0


def test_tasks_without_a_common_row_have_the_affinity_of_independence():
    m = np.array([[0.0, 0.0, 1.0, 0, 0, 0, 0], [0, 0, 0, 0.0, 0.0, 0.0, 1.0], [0] * 7])
    present = np.array([[1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1], [0] * 7], dtype=bool)
    A = task_affinity(m, present)
    assert A[0, 1] == pytest.approx(1 / 3 * 1 / 4 + 2 / 3 * 3 / 4)
    assert A[0, 2] == A[2, 1] == 0.5
    assert A[2, 2] == 1.0


def test_branch_affinity_is_its_definition_and_that_of_tasks_when_each_is_a_branch():
    scores, targets, present = answers()
    A = task_affinity(margins(BINARY, scores, targets, present), present)
    np.testing.assert_allclose(branch_affinity(A, np.arange(4)), A, atol=1e-14)
    branches = np.array([0, 1, 0, 2])
    B = branch_affinity(A, branches)

    def one_sided(k, j):
        return np.mean([min(A[s, t] for t in range(4) if branches[t] == j) for s in range(4) if branches[s] == k])

    for k, j in itertools.product(range(3), repeat=2):
        assert B[k, j] == pytest.approx((one_sided(k, j) + one_sided(j, k)) / 2, abs=1e-14)


def test_the_grouping_loss_is_its_formula():
    A, _ = blocks((3, 2))
    groups = np.array([0, 0, 1, 1, 0])
    inner = [1 - np.mean([min(A[k, j] for j in group) for k in group]) for group in ([0, 1, 4], [2, 3])]
    assert separation(A, groups) == pytest.approx(np.mean(inner), abs=1e-14)
    assert grouping_loss(A, groups, alpha=3.0, cost=0.5) == pytest.approx(0.5 + 3 * np.mean(inner), abs=1e-14)


def test_without_weight_on_separation_nothing_is_divided():
    for cost in (0.0, 1.0):
        assert (best_grouping(blocks((3, 2))[0], alpha=0.0, cost=cost) == 0).all()


def test_free_branches_divide_all_that_differ():
    assert best_grouping(blocks((3, 2))[0], alpha=1.0, cost=0.0).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("alpha", [1.0, 3.0, 20.0, 200.0])
def test_the_grouping_found_is_the_best_of_all_divisions_where_groups_are_clear(alpha):
    A, _ = blocks((2, 2, 2), noise=0.01)
    found = grouping_loss(A, best_grouping(A, alpha=alpha, cost=1.0), alpha=alpha, cost=1.0)
    every = {tuple(numbered(np.array(labels))) for labels in itertools.product(range(6), repeat=6)}
    least = min(grouping_loss(A, np.array(labels), alpha=alpha, cost=1.0) for labels in every)
    assert found == pytest.approx(least, abs=1e-12)


def test_a_dearer_branch_never_gives_more_groups():
    A, _ = blocks((3, 3, 3))
    counts = [int(best_grouping(A, alpha=4.0, cost=cost).max()) + 1 for cost in (0.0, 0.1, 0.5, 1.0, 4.0)]
    assert counts[0] == 9
    assert counts[-1] == 1
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("sizes", [(4, 3), (5, 2, 4), (3, 3, 3, 3)])
def test_clusters_are_the_planted_ones_and_those_of_scikit_learn(sizes):
    A, group = blocks(sizes)
    found = spectral_clusters(A, len(sizes), seed=1)
    assert adjusted_rand_score(found, group) == 1.0
    theirs = SpectralClustering(len(sizes), affinity="precomputed", random_state=0).fit_predict(A)
    assert adjusted_rand_score(found, theirs) == 1.0


def test_clusters_are_numbered_by_first_items_never_empty_and_drawn_from_the_seed():
    A = np.ones((6, 6))  # nothing to tell apart
    for d in range(1, 7):
        groups = spectral_clusters(A, d)
        assert sorted(set(groups.tolist())) == list(range(d))
        assert groups.tolist() == numbered(groups).tolist()
        assert groups.tolist() == spectral_clusters(A, d).tolist()


def test_a_number_of_clusters_that_cannot_be_is_refused():
    with pytest.raises(InputError, match="d is 4; 3 items"):
        spectral_clusters(np.ones((3, 3)), 4)
