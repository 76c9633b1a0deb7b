"""Diffusion down a tree: exact against dense Gaussians, gradients, linkage matrices."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.cluster.hierarchy import is_monotonic, is_valid_linkage
from scipy.stats import multivariate_normal

from polytask.linear.moments import Block, Moments
from polytask.linear.solvers.coalescent import (
    Diffusion,
    Scales,
    believe,
    covariance_of,
    lengths_of,
    levels_of,
    linkage_of,
    log_prior,
    star,
    typical_heights,
)
from polytask.linear.solvers.task_evidence import SquaredStatistics, TaskEvidence

PARTITIONS = [
    [0, 1, 2, 3, 4, 5],
    [0, 1, 2, 0, 3, 4],
    [0, 1, 2, 0, 3, 2],
    [0, 1, 2, 0, 1, 2],
    [0, 1, 0, 0, 1, 0],
    [0] * 6,
]
TREE = linkage_of([np.array(labels) for labels in PARTITIONS], np.array([0.1, 0.3, 0.5, 0.6, 1.0]))


def quadratics(seed=0, T=6, d=3, n=8):
    rng = np.random.default_rng(seed)
    B = rng.normal(size=(T, n, d))
    return np.einsum("tnd,tne->tde", B, B), rng.normal(size=(T, d)), rng.normal(size=T), B


def data(seed=0, T=6, d=3, n=7):
    rng = np.random.default_rng(seed)
    blocks = [
        Block(rng.normal(size=(n, d)), np.ones(n), rng.normal(size=(n, 1)), np.array([task])) for task in range(T)
    ]
    squared = SquaredStatistics(Moments.of_blocks(blocks, T, d).uncentred(), own_intercepts=False)
    return blocks, TaskEvidence(squared, [], logistic=np.zeros(T, dtype=bool), own_intercepts=False)


def test_partitions_become_a_valid_linkage_of_the_same_groups():
    assert is_valid_linkage(TREE)
    assert is_monotonic(TREE)
    np.testing.assert_array_equal(TREE[:, :2], [[0, 3], [2, 5], [1, 4], [6, 7], [8, 9]])
    np.testing.assert_array_equal(TREE[:, 3], [2, 2, 2, 4, 6])


def test_covariance_is_the_path_from_the_origin_that_two_tasks_share():
    C = covariance_of(TREE, 6, 0.7)
    np.testing.assert_allclose(np.diag(C), 1.7)
    assert C[0, 3] == pytest.approx(0.7 + 1.0 - 0.1)
    assert C[0, 2] == pytest.approx(0.7 + 1.0 - 0.6)
    assert C[0, 1] == pytest.approx(0.7)
    assert np.linalg.eigvalsh(C).min() > 0
    np.testing.assert_allclose(lengths_of(TREE, 6)[[0, 3, 6]], [0.1, 0.1, 0.5])


@pytest.mark.parametrize("tree", [TREE, star(6, 0.9), star(6, 0.0)], ids=["tree", "star", "no height"])
def test_tree_marginal_likelihood_and_beliefs_are_those_of_the_dense_gaussian(tree):
    P, h, constant, _ = quadratics()
    found = believe(P, h, constant, tree, 0.7)
    prior = np.kron(covariance_of(tree, 6, 0.7), np.eye(3))
    data_precision = np.zeros((18, 18))
    for task in range(6):
        data_precision[3 * task : 3 * task + 3, 3 * task : 3 * task + 3] = P[task]
    posterior = prior - prior @ np.linalg.solve(np.linalg.inv(data_precision) + prior, prior)
    value = constant.sum() - 0.5 * np.linalg.slogdet(np.eye(18) + prior @ data_precision)[1]
    value += 0.5 * h.ravel() @ posterior @ h.ravel()
    assert found.value == pytest.approx(value, abs=1e-8)
    np.testing.assert_allclose(found.mean.ravel(), posterior @ h.ravel(), atol=1e-8)
    for task in range(6):
        own = slice(3 * task, 3 * task + 3)
        np.testing.assert_allclose(found.covariance[task], posterior[own, own], atol=1e-8)


def test_labels_have_the_marginal_likelihood_of_their_dense_covariance():
    blocks, evidence = data()
    scales = Scales(TREE, np.array([0.5, 1.0, 2.0]), 0.4, 0.8)
    C = covariance_of(TREE, 6, 0.4)
    X = np.concatenate([block.X for block in blocks])
    owner = np.repeat(np.arange(6), 7)
    covariance = C[np.ix_(owner, owner)] * ((X * scales.features) @ X.T) + 0.8 * np.eye(len(X))
    want = multivariate_normal(np.zeros(len(X)), covariance).logpdf(np.concatenate([b.Y[:, 0] for b in blocks]))
    assert Diffusion(evidence, "fixed", 1.0).beliefs(scales).value == pytest.approx(want, abs=1e-8)


@pytest.mark.parametrize("heights", ["learned", "star", "fixed"])
def test_gradient_is_that_of_the_objective(heights):
    _, evidence = data()
    diffusion = Diffusion(evidence, heights, 0.7)
    like = Scales(star(6, 1.0) if heights == "star" else TREE, np.array([0.5, 1.0, 2.0]), 0.4, 0.8)
    at = diffusion.pack(like) + 0.2 * np.random.default_rng(0).normal(size=len(diffusion.pack(like)))
    value, gradient = diffusion.value_and_gradient(at, like)
    assert value == pytest.approx(diffusion.value(diffusion.unpack(at, like)), abs=1e-9)
    steps = 1e-5 * np.eye(len(at))
    numeric = [
        (diffusion.value_and_gradient(at + e, like)[0] - diffusion.value_and_gradient(at - e, like)[0]) / 2e-5
        for e in steps
    ]
    np.testing.assert_allclose(gradient, numeric, atol=1e-6)


def test_improvement_raises_the_objective_to_a_point_of_zero_gradient():
    _, evidence = data()
    diffusion = Diffusion(evidence, "learned", 0.7)
    start = Scales(TREE, np.array([0.5, 1.0, 2.0]), 0.4, 0.8)
    before = diffusion.value(start)
    found = diffusion.improve(start, 500, exact=True)
    value, gradient = diffusion.value_and_gradient(diffusion.pack(found), found)
    assert value > before
    assert np.abs(gradient).max() < 1e-6
    assert is_monotonic(found.linkage)


def test_prior_of_heights_is_largest_where_waits_are_typical_and_has_no_unit():
    typical = TREE.copy()
    typical[:, 2] = typical_heights(6)
    assert log_prior(typical) == pytest.approx(0.0, abs=1e-12)
    assert log_prior(TREE) < 0
    scaled = TREE.copy()
    scaled[:, 2] *= 7.0
    assert log_prior(scaled) == pytest.approx(log_prior(TREE), abs=1e-12)


def test_star_is_a_valid_linkage_in_few_layers():
    for n in (1, 2, 3, 9):
        tree = star(n, 2.0)
        assert tree.shape == (n - 1, 4)
        assert n == 1 or is_valid_linkage(tree)
        np.testing.assert_allclose(covariance_of(tree, n, 0.5), 0.5 + 2.0 * np.eye(n) * (n > 1))
    assert len(levels_of(star(64, 1.0))) == 6
