"""What labels say about coefficients: exact for squared loss, a bound for logistic loss; joining groups."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_expit
from scipy.stats import multivariate_normal

from polytask.linear.moments import Block, Moments
from polytask.linear.solvers.task_evidence import (
    SquaredStatistics,
    TaskEvidence,
    agglomerate,
    coarse_groups,
    first_appearance,
    fit_alone,
    group_evidence,
    grouping_evidence,
)


def squared(blocks, n_tasks, d, *, own=True):
    moments = Moments.of_blocks(blocks, n_tasks, d)
    return SquaredStatistics(moments if own else moments.uncentred(), own_intercepts=own)


def rows(seed=0, sizes=(7, 4, 9), d=3):
    rng = np.random.default_rng(seed)
    return [
        Block(rng.normal(size=(n, d)) + 0.5, np.ones(n), rng.normal(size=(n, 1)) + 2.0, np.array([task]))
        for task, n in enumerate(sizes)
    ]


def classes(seed=0, n=30, d=3, tasks=2):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    Y = (X @ rng.normal(size=(d, tasks)) + 0.4 + rng.normal(size=(n, tasks)) > 0).astype(float)
    weights = rng.uniform(0.5, 2.0, size=n)
    return [Block(X, weights, Y, np.arange(tasks))]


def evidence_of(blocks, *, logistic, own, d=3):
    tasks = len(logistic)
    return TaskEvidence(
        squared([] if all(logistic) else blocks, tasks, d, own=own),
        blocks if all(logistic) else [],
        logistic=np.array(logistic),
        own_intercepts=own,
    )


def without_level(X, y):
    """Return inputs and targets in a basis of what is free of the intercept."""
    Q = np.linalg.svd(np.ones((1, len(y))))[2][1:]
    return Q @ X, Q @ y


@pytest.mark.parametrize("own", [False, True])
def test_quadratic_of_squared_loss_is_the_log_likelihood_with_the_intercept_integrated_out(own):
    blocks = rows()
    evidence = evidence_of(blocks, logistic=[False] * 3, own=own)
    evidence.set_noise(0.7)
    w = np.random.default_rng(1).normal(size=3)
    for task, block in enumerate(blocks):
        X, y = block.X, block.Y[:, 0]
        constant = 0.0
        if own:
            constant = -0.5 * np.log(len(y))
            X, y = without_level(X, y)
        want = multivariate_normal(X @ w, 0.7 * np.eye(len(y))).logpdf(y) + constant
        found = evidence.constant[task] + evidence.linear[task] @ w - 0.5 * w @ evidence.precision[task] @ w
        assert found == pytest.approx(want, abs=1e-10)


def test_logistic_bound_is_below_the_likelihood_and_touches_it_where_xi_is_the_margin():
    blocks = classes()
    evidence = evidence_of(blocks, logistic=[True, True], own=True)
    block, rng = blocks[0], np.random.default_rng(1)
    W = rng.normal(size=(2, 3))
    z = (block.X - evidence.mean_x[0]) @ W.T + evidence.bias
    exact = block.weights @ (block.Y * log_expit(z) + (1 - block.Y) * log_expit(-z))

    def bound():
        return [
            evidence.constant[t] + evidence.linear[t] @ W[t] - 0.5 * W[t] @ evidence.precision[t] @ W[t] for t in (0, 1)
        ]

    assert (np.array(bound()) < exact).all()
    evidence.rows[0].xi[:] = np.abs(z)
    evidence._assemble()
    np.testing.assert_allclose(bound(), exact, atol=1e-9)


@pytest.mark.parametrize("logistic", [False, True])
def test_refit_raises_the_expected_bound(logistic):
    blocks = classes() if logistic else rows(sizes=(8, 9))
    evidence = evidence_of(blocks, logistic=[logistic] * 2, own=True)
    rng = np.random.default_rng(3)
    mean, root = rng.normal(size=(2, 3)), rng.normal(size=(2, 3, 3))
    covariance = root @ root.transpose(0, 2, 1)

    def expected():
        second = covariance + mean[:, :, None] * mean[:, None, :]
        value = evidence.constant.sum() + (evidence.linear * mean).sum() - 0.5 * (evidence.precision * second).sum()
        return value if logistic else value + evidence.squared.noise_log_prior(evidence.noise)

    values = [expected()]
    for _ in range(20):
        evidence.refit(mean, covariance)
        values.append(expected())
    assert (np.diff(values) >= -1e-10).all()
    assert values[1] > values[0]
    before = evidence.snapshot()
    evidence.refit(2.0 * mean, covariance)
    evidence.restore(before)
    assert expected() == pytest.approx(values[-1], abs=1e-10)


def test_noise_slope_is_the_derivative_and_noise_its_zero():
    statistics = squared(rows(), 3, 3)

    def value(log_noise):
        noise = np.exp(log_noise)
        return -0.5 * (statistics.n.sum() * log_noise + 5.0 / noise) + statistics.noise_log_prior(noise)

    slope = (value(0.3 + 1e-6) - value(0.3 - 1e-6)) / 2e-6
    assert statistics.noise_slope(5.0, np.exp(0.3)) == pytest.approx(slope, rel=1e-6)
    assert statistics.noise_slope(5.0, statistics.noise(5.0)) == pytest.approx(0.0, abs=1e-12)


def test_group_evidence_is_a_gaussian_integral():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(6, 3)), rng.normal(size=6)
    prior = np.diag([0.5, 1.0, 2.0])
    found = group_evidence((X.T @ X)[None], (X.T @ y)[None], prior)[0]
    marginal = multivariate_normal(np.zeros(6), np.eye(6) + X @ np.linalg.inv(prior) @ X.T).logpdf(y)
    assert found + multivariate_normal(np.zeros(6), np.eye(6)).logpdf(y) == pytest.approx(marginal, abs=1e-10)


def test_grouping_evidence_is_that_of_the_centre_of_tasks_that_differ():
    blocks = rows(sizes=(8,))
    data = squared(blocks, 1, 3, own=False)
    J, h = grouping_evidence(data, 0.6, 0.4)
    X, y = blocks[0].X, blocks[0].Y[:, 0]
    inverse = np.linalg.inv(0.6 * np.eye(8) + 0.4 * X @ X.T)
    np.testing.assert_allclose(J[0], X.T @ inverse @ X, atol=1e-10)
    np.testing.assert_allclose(h[0], X.T @ inverse @ y, atol=1e-10)


def test_agglomeration_joins_the_pair_that_gains_most_and_adds_up_the_evidence():
    rng = np.random.default_rng(0)
    W = np.array([[2.0, 0.0], [0.0, 2.0]])[[0, 1, 0, 1, 0]] + 0.05 * rng.normal(size=(5, 2))
    X = rng.normal(size=(5, 12, 2))
    y = np.einsum("tnd,td->tn", X, W) + 0.3 * rng.normal(size=(5, 12))
    J, h = np.einsum("tnd,tne->tde", X, X) / 0.09, np.einsum("tnd,tn->td", X, y) / 0.09
    levels = agglomerate(J, h, np.eye(2), np.arange(5))
    assert [level.labels.max() + 1 for level in levels] == [5, 4, 3, 2, 1]
    np.testing.assert_array_equal(levels[3].labels, [0, 1, 0, 1, 0])
    for labels, value in [(level.labels, level.value) for level in levels]:
        groups = [
            group_evidence(J[labels == g].sum(0)[None], h[labels == g].sum(0)[None], np.eye(2))[0]
            for g in range(labels.max() + 1)
        ]
        assert value == pytest.approx(sum(groups), abs=1e-8)
    gains = {
        (s, t): group_evidence((J[s] + J[t])[None], (h[s] + h[t])[None], np.eye(2))[0]
        - group_evidence(J[[s, t]], h[[s, t]], np.eye(2)).sum()
        for s in range(5)
        for t in range(s + 1, 5)
    }
    first = max(gains, key=gains.get)
    ties = np.log(np.sum(np.exp(np.array(list(gains.values())) - gains[first])))
    assert levels[1].ties == pytest.approx(ties, abs=1e-8)
    assert levels[1].labels[first[0]] == levels[1].labels[first[1]]


def test_groups_are_numbered_by_first_appearance_and_many_tasks_are_grouped_by_seed():
    np.testing.assert_array_equal(first_appearance(np.array([7, 2, 7, 9, 2])), [0, 1, 0, 2, 1])
    points = np.random.default_rng(0).normal(size=(40, 2))
    np.testing.assert_array_equal(coarse_groups(points, 40, 0), np.arange(40))
    coarse = coarse_groups(points, 10, 0)
    assert len(np.unique(coarse)) == 10
    np.testing.assert_array_equal(coarse, coarse_groups(points, 10, 0))


def test_a_task_without_rows_stays_at_its_prior():
    evidence = evidence_of(rows()[:2], logistic=[False] * 3, own=True)
    assert (fit_alone(evidence)[2] == 0).all()
    assert evidence.constant[2] == 0.0
