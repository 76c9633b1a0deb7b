"""The mixture solver: its bound is a dense Gaussian likelihood, rises in every round, and its limits."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from polytask.linear.moments import Block, Moments
from polytask.linear.solvers.task_evidence import SquaredStatistics
from polytask.linear.solvers.task_mixture import (
    Design,
    Prior,
    TaskMixture,
    formed,
    partitions,
    plain_design,
    prior_of_one,
    run,
    with_clusters,
)


def problem(seed=0, sizes=(6, 4, 9, 5, 7, 8), d=3, shared=False):
    rng = np.random.default_rng(seed)
    T = len(sizes)
    W = np.array([[2.0, 0.0, 1.0], [-1.0, 1.0, 0.0]])[np.arange(T) % 2][:, :d] + 0.3 * rng.normal(size=(T, d))
    if shared:
        X = rng.normal(size=(9, d))
        blocks = [Block(X, np.ones(9), X @ W.T + 0.5 * rng.normal(size=(9, T)), np.arange(T))]
    else:
        blocks = []
        for task, n in enumerate(sizes):
            X = rng.normal(size=(n, d))
            blocks.append(Block(X, np.ones(n), (X @ W[task] + 0.5 * rng.normal(size=n))[:, None], np.array([task])))
    moments = Moments.of_blocks(blocks, T, d)
    return SquaredStatistics(moments.uncentred(), own_intercepts=False), blocks, T


def some_prior(T, d=3, K=2, p=1, seed=0):
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(K, d, d))
    shares = rng.dirichlet(np.ones(K), size=T)
    return Prior(
        rng.normal(size=(K, p, d)),
        np.zeros((K, p * d, p * d)),
        0.3 * roots @ roots.transpose(0, 2, 1),
        0.4,
        np.inf,
        np.log(shares),
        np.zeros((K, 0)),
    )


def dense(block, mean, S, noise):
    """The labels of a task under one cluster, with n × n matrices."""
    H = block.X
    return multivariate_normal(H @ mean, H @ S @ H.T + noise * np.eye(len(H)))


def test_bound_at_given_means_is_the_dense_mixture_likelihood_of_every_task():
    data, blocks, T = problem()
    prior = some_prior(T)
    found = TaskMixture(data, plain_design(T)).posterior(prior)
    total = 0.0
    for task, block in enumerate(blocks):
        scores = prior.log_shares[task] + [
            dense(block, prior.mean[k, 0], prior.covariance[k], prior.noise).logpdf(block.Y[:, 0]) for k in (0, 1)
        ]
        total += logsumexp(scores)
        np.testing.assert_allclose(found.shares[task], np.exp(scores - logsumexp(scores)), atol=1e-10)
    assert found.value == pytest.approx(total + data.noise_log_prior(prior.noise), abs=1e-8)


def test_bound_of_one_cluster_with_its_best_mean_is_the_joint_likelihood_of_all_tasks():
    data, blocks, T = problem()
    mixture = TaskMixture(data, plain_design(T))
    start = prior_of_one(data, plain_design(T))
    rng = np.random.default_rng(1)
    root = rng.normal(size=(3, 3))
    S = 0.2 * root @ root.T
    prior = Prior(start.mean, start.mean_covariance, S[None], 0.4, 1.7, np.zeros((T, 1)), start.gate)
    mean, V = mixture._learn_mean(prior, np.ones(T), mixture._matrices(prior, 0))
    prior = Prior(mean[None], V[None], S[None], 0.4, 1.7, np.zeros((T, 1)), start.gate)
    every = np.concatenate([block.X for block in blocks])
    owner = np.repeat(np.arange(T), [len(block.X) for block in blocks])
    covariance = 1.7 * every @ every.T + 0.4 * np.eye(len(every))
    covariance += (owner[:, None] == owner) * (every @ S @ every.T)
    y = np.concatenate([block.Y[:, 0] for block in blocks])
    want = multivariate_normal(np.zeros(len(y)), covariance).logpdf(y)
    found = mixture.posterior(prior).value
    assert found == pytest.approx(want + data.noise_log_prior(0.4), abs=1e-8)
    # the posterior mean of every task, too
    cross = 1.7 * np.einsum("nd->dn", every)[None] + (owner == np.arange(T)[:, None])[:, None] * (S @ every.T)
    np.testing.assert_allclose(
        mixture.coefficients(prior, np.ones((T, 1))), cross @ np.linalg.solve(covariance, y), atol=1e-8
    )


def test_second_moments_are_those_of_the_dense_posterior():
    data, blocks, T = problem()
    prior = some_prior(T, K=1)
    _, first, second = TaskMixture(data, plain_design(T)).expectations(prior)
    S, m = prior.covariance[0], prior.mean[0, 0]
    for task, block in enumerate(blocks):
        H = block.X
        gain = S @ H.T @ np.linalg.inv(H @ S @ H.T + prior.noise * np.eye(len(H)))
        mean = m + gain @ (block.Y[:, 0] - H @ m)
        np.testing.assert_allclose(first[task], mean, atol=1e-9)
        np.testing.assert_allclose(second[task], S - gain @ H @ S + np.outer(mean, mean), atol=1e-9)


@pytest.mark.parametrize("form", ["full", "diagonal", "spherical"])
@pytest.mark.parametrize("features", ["none", "means", "gate"])
@pytest.mark.parametrize("shared", [False, True])
def test_no_plain_round_lowers_the_bound_and_shares_add_up_to_one(form, features, shared):
    data, _, T = problem(shared=shared)
    f = np.column_stack([np.ones(T), np.linspace(-1, 1, T)])
    design = Design(
        f if features == "means" else np.ones((T, 1)),
        f if features == "gate" else np.zeros((T, 0)),
        form=form,
        strength=5.0,
        centre=0.2 * np.eye(3),
    )
    mixture = TaskMixture(data, design)
    prior, shares = with_clusters(prior_of_one(data, design), np.arange(T) % 2, 2, narrower=1.0)
    prior = mixture.learn(
        Prior(
            prior.mean,
            prior.mean_covariance,
            np.repeat(prior.covariance, 2, axis=0),
            prior.noise,
            prior.breadth,
            prior.log_shares,
            prior.gate,
        ),
        shares,
    )
    values = []
    for _ in range(25):
        prior, posterior = mixture.advance(prior)
        values.append(posterior.value)
        np.testing.assert_allclose(posterior.shares.sum(axis=1), 1.0, atol=1e-12)
    assert (np.diff(values) >= -1e-9).all()
    assert values[-1] > values[0]


def test_extrapolated_rounds_end_where_plain_ones_do_and_do_not_fall():
    data, _, T = problem(1)
    mixture = TaskMixture(data, plain_design(T))
    plain = prior_of_one(data, plain_design(T))
    for _ in range(500):
        plain, _ = mixture.advance(plain)
    found, posterior, reached = run(mixture.advance, prior_of_one(data, plain_design(T)), tol=1e-11, max_iter=500)
    assert (np.diff(reached) >= 0).all()
    assert posterior.value == pytest.approx(mixture.posterior(plain).value, abs=1e-4)
    assert posterior.value >= mixture.posterior(plain).value - 1e-9
    assert found.noise == pytest.approx(plain.noise, rel=1e-2)


def test_covariance_zero_gives_all_tasks_of_a_cluster_one_vector():
    data, _, T = problem()
    design = Design(np.ones((T, 1)), np.zeros((T, 0)), strength=np.inf, centre=np.zeros((3, 3)))
    mixture = TaskMixture(data, design)
    prior, posterior, _ = run(mixture.advance, prior_of_one(data, design), tol=1e-9, max_iter=200)
    W = mixture.coefficients(prior, posterior.shares)
    np.testing.assert_allclose(W, np.tile(W[0], (T, 1)), atol=1e-12)
    assert (prior.covariance == 0).all()


def test_forms_keep_the_trace_and_partitions_have_every_size():
    S = np.array([[[2.0, 0.5], [0.5, 1.0]]])
    np.testing.assert_allclose(formed(S, "diagonal")[0], np.diag([2.0, 1.0]))
    np.testing.assert_allclose(formed(S, "spherical")[0], 1.5 * np.eye(2))
    np.testing.assert_allclose(formed(S, "full"), S)
    data, _, T = problem()
    found = partitions(data, prior_of_one(data, plain_design(T)), 4, 0)
    assert {K: labels.max() + 1 for K, labels in found.items()} == {1: 1, 2: 2, 3: 3, 4: 4}
    np.testing.assert_array_equal(found[2], np.arange(T) % 2)
