import itertools
import math

import numpy as np
import pytest
import torch

from polytask.deep.tensor_normal import (
    correlation,
    fix_gauge,
    flip_flop,
    inverse,
    mean_one,
    mode_product,
    negative_log_prior,
    prior_gradient,
    quadratic_form,
    root_covariance,
    scatter,
    smoothed_objective,
    unfold,
)
from polytask.linear.penalised import root_covariance as linear_root_covariance

SHAPES = [(6, 5, 4), (3, 30, 4), (4, 30, 3), (3, 3, 3, 2), (1, 6, 5)]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spd(size, seed=0):
    A = normal(size, size + 2, seed=seed)
    return A @ A.T / size + 0.1 * torch.eye(size, dtype=torch.float64)


def covariances(shape):
    return [spd(size, seed=7 + mode) for mode, size in enumerate(shape)]


def identities(shape):
    return [torch.eye(size, dtype=torch.float64) for size in shape]


def matrix(one, size):
    if one is None:
        return torch.eye(size, dtype=torch.float64)
    return one.diag() if one.dim() == 1 else one


def kronecker(some, shape):
    dense = torch.ones(1, 1, dtype=torch.float64)
    for one, size in zip(some, shape, strict=True):
        dense = torch.kron(dense, matrix(one, size))
    return dense


def mixed_forms(shape):
    """One full, one diagonal and, where there is a third mode, an identity covariance."""
    full, diagonal, *_ = covariances(shape)
    return [full, diagonal.diagonal().clone(), None, spd(shape[3]) if len(shape) > 3 else None][: len(shape)]


@pytest.mark.parametrize("forms", [covariances, mixed_forms])
@pytest.mark.parametrize("shape", SHAPES)
def test_quadratic_form_gradient_and_density_are_those_of_the_dense_kronecker_product(shape, forms):
    W, some = normal(*shape), forms(shape)
    dense = kronecker(some, shape)
    vector = W.flatten()
    expected = vector @ torch.linalg.solve(dense, vector)
    torch.testing.assert_close(quadratic_form(W, some), expected, rtol=1e-11, atol=0)
    torch.testing.assert_close(
        prior_gradient(W, [inverse(one) for one in some]).flatten(),
        torch.linalg.solve(dense, vector),
        rtol=0,
        atol=1e-10,
    )
    normalised = torch.distributions.MultivariateNormal(torch.zeros_like(vector), dense).log_prob(vector)
    constant = 0.5 * W.numel() * math.log(2 * math.pi)
    torch.testing.assert_close(negative_log_prior(W, some), -normalised - constant, rtol=1e-11, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_prior_gradient_is_that_of_half_the_quadratic_form(shape):
    W, some = normal(*shape).requires_grad_(), covariances(shape)
    (gradient,) = torch.autograd.grad(0.5 * quadratic_form(W, some), W)
    torch.testing.assert_close(prior_gradient(W.detach(), [inverse(one) for one in some]), gradient, rtol=0, atol=1e-10)
    assert torch.autograd.gradcheck(lambda V: quadratic_form(V, some), W, eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_scatter_is_the_dense_formula_and_its_diagonal(shape):
    W, some = normal(*shape), covariances(shape)
    for mode, size in enumerate(shape):
        others = [one for place, one in enumerate(some) if place != mode]
        dense = kronecker(others, [s for place, s in enumerate(shape) if place != mode])
        rows = unfold(W, mode)
        expected = size / W.numel() * rows @ torch.linalg.solve(dense, rows.T)
        torch.testing.assert_close(scatter(W, some, mode), expected, rtol=0, atol=1e-11)
        torch.testing.assert_close(scatter(W, some, mode, diagonal=True), expected.diagonal(), rtol=0, atol=1e-11)


def test_mode_product_multiplies_every_fibre():
    W, A = normal(2, 3, 4, 5), normal(6, 4, seed=1)
    torch.testing.assert_close(mode_product(W, A, 2), torch.einsum("abcd,mc->abmd", W, A), rtol=0, atol=1e-13)
    assert mode_product(W.transpose(0, 3), normal(2, 2), 3).shape == (5, 3, 4, 2)


def test_identity_covariances_give_the_squared_norm():
    W = normal(6, 5, 4)
    for some in (identities(W.shape), [None, None, None], [torch.ones(size).double() for size in W.shape]):
        torch.testing.assert_close(quadratic_form(W, some), W.square().sum(), rtol=1e-13, atol=0)
        torch.testing.assert_close(negative_log_prior(W, some), 0.5 * W.square().sum(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("shape", [(6, 5, 4), (3, 3, 3, 2)])
def test_after_an_exact_update_the_quadratic_form_is_the_number_of_weights(shape):
    W = 17 * normal(*shape)
    for mode in range(len(shape)):
        new = flip_flop(W, covariances(shape), eps=0.0, order=[mode])
        torch.testing.assert_close(quadratic_form(W, new), torch.tensor(W.numel()).double(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("eps", [1e-3, 1e-1])
@pytest.mark.parametrize("forms", [identities, mixed_forms])
@pytest.mark.parametrize("shape", SHAPES)
def test_no_update_of_twenty_sweeps_raises_the_smoothed_objective(shape, forms, eps):
    W, some = normal(*shape), forms(shape)
    values = [smoothed_objective(W, some, eps=eps).item()]
    for _ in range(20):
        for mode in [*range(1, len(shape)), 0]:
            some = flip_flop(W, some, eps=eps, order=[mode])
            values.append(smoothed_objective(W, some, eps=eps).item())
    assert all(after <= before + 1e-9 * abs(before) for before, after in itertools.pairwise(values))
    assert values[-1] >= 0.5 * W.numel() * len(shape) * (1 + math.log(eps))
    assert all((torch.linalg.eigvalsh(matrix(one, 1)) > 0).all() for one in some if one is not None)


def test_each_update_minimises_the_smoothed_objective_over_its_covariance():
    W, some = normal(4, 6, 5), covariances((4, 6, 5))
    for mode in range(3):
        new = flip_flop(W, some, eps=0.01, order=[mode])
        S = new[mode].clone().requires_grad_()
        others = [S if place == mode else one for place, one in enumerate(new)]
        (gradient,) = torch.autograd.grad(smoothed_objective(W, others, eps=0.01), S)
        torch.testing.assert_close(gradient + gradient.T, torch.zeros_like(S), rtol=0, atol=1e-6)


def test_the_log_determinant_counts_with_plus_since_minus_has_no_minimum():
    """The paper prints minus; growing covariances would then lower the objective without end."""
    W, start = normal(4, 3, 2), identities((4, 3, 2))
    grown = [[scale * one for one in start] for scale in (1.0, 1e3, 1e6)]
    minus = [quadratic_form(W, some) - negative_log_prior(W, some) for some in grown]
    assert minus[2] < minus[1] < minus[0]
    plus = [negative_log_prior(W, some) for some in grown]
    assert plus[2] > plus[1] > plus[0]


def test_moving_scale_between_covariances_leaves_the_distribution_as_it_is():
    W, some = normal(4, 6, 5), covariances((4, 6, 5))
    moved = [3.7 * some[0], some[1] / 3.7, some[2]]
    fixed = fix_gauge(some)
    for other in (moved, fixed):
        torch.testing.assert_close(quadratic_form(W, other), quadratic_form(W, some), rtol=1e-12, atol=0)
        torch.testing.assert_close(negative_log_prior(W, other), negative_log_prior(W, some), rtol=1e-12, atol=0)
    assert [one.trace().item() for one in fixed[1:]] == pytest.approx([6, 5])
    torch.testing.assert_close(kronecker(fixed, W.shape), kronecker(some, W.shape), rtol=0, atol=1e-9)


def test_fixing_the_gauge_between_sweeps_keeps_the_conditioning_of_a_rank_deficient_layer():
    W, some = normal(3, 40, 2), identities((3, 40, 2))
    for _ in range(50):
        some = fix_gauge(flip_flop(W, some, eps=1e-3, relative=True))
    for one in some:
        values = torch.linalg.eigvalsh(one)
        assert values[0] > 0
        assert values[-1] / values[0] < 1e5


def test_relative_smoothing_does_not_see_the_scale_of_the_weights():
    W, some = normal(4, 6, 5), identities((4, 6, 5))
    one = mean_one(flip_flop(W, some, eps=1e-2, relative=True))
    two = mean_one(flip_flop(1e-3 * W, some, eps=1e-2, relative=True))
    for left, right in zip(one, two, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-12)
        assert left.trace().item() == pytest.approx(len(left))


def test_roots_with_identity_others_are_the_task_covariance_of_multi_task_relationship_learning():
    W = normal(5, 8, 3)
    (omega, *_) = flip_flop(W, [torch.eye(5).double(), None, None], eps=0.0, roots=True)
    np.testing.assert_allclose(omega.numpy(), linear_root_covariance(W.flatten(1).numpy()), rtol=0, atol=1e-10)
    assert omega.trace().item() == pytest.approx(1)
    nuclear = torch.linalg.svdvals(W.flatten(1)).sum()
    torch.testing.assert_close(quadratic_form(W, [omega, None, None]), nuclear**2, rtol=1e-9, atol=0)


def test_no_covariance_of_trace_one_gives_a_smaller_quadratic_form_than_the_root():
    W = normal(5, 8, 3)
    best = quadratic_form(W, [root_covariance(scatter(W, [None] * 3, 0)), None, None])
    for seed in range(50):
        other = spd(5, seed=seed)
        assert quadratic_form(W, [other / other.trace(), None, None]) > best
    diagonal = root_covariance(scatter(W, [None] * 3, 0, diagonal=True))
    for seed in range(50):
        other = normal(5, seed=seed).abs() + 1e-3
        assert quadratic_form(W, [other / other.sum(), None, None]) >= quadratic_form(W, [diagonal, None, None])


def test_orthogonal_tasks_of_equal_norm_have_equal_unrelated_roots_and_opposite_tasks_oppose():
    W = torch.eye(4, dtype=torch.float64).view(4, 2, 2)
    torch.testing.assert_close(root_covariance(scatter(W, [None] * 3, 0)), torch.eye(4).double() / 4)
    w = normal(1, 2, 2)
    opposite = root_covariance(scatter(torch.cat([w, -w]), [None] * 3, 0))
    torch.testing.assert_close(opposite, torch.tensor([[0.5, -0.5], [-0.5, 0.5]]).double(), rtol=0, atol=1e-5)


def test_the_planted_correlation_between_tasks_is_recovered():
    planted = torch.tensor([[1.0, 0.9, -0.8], [0.9, 1.0, -0.7], [-0.8, -0.7, 1.0]]).double()
    features, classes = spd(60, seed=3), spd(40, seed=4)
    W = normal(3, 60, 40)
    for mode, one in enumerate((planted, features, classes)):
        W = mode_product(W, torch.linalg.cholesky(one), mode)
    some = identities(W.shape)
    for _ in range(20):
        some = mean_one(flip_flop(W, some, eps=1e-3, relative=True))
    torch.testing.assert_close(correlation(some[0]), planted, rtol=0, atol=0.05)


def test_a_task_given_twice_is_correlated_with_itself():
    W = normal(3, 10, 8)
    W = torch.cat([W, W[:1]])
    some = identities(W.shape)
    for _ in range(10):
        some = mean_one(flip_flop(W, some, eps=1e-3, relative=True))
    assert correlation(some[0])[0, 3] > 0.95
    assert correlation(some[0])[0, 1].abs() < 0.5


def test_correlation_of_a_task_without_variance_is_zero():
    found = correlation(torch.tensor([[4.0, 0.0], [0.0, 0.0]]))
    assert found.tolist() == [[1.0, 0.0], [0.0, 1.0]]
