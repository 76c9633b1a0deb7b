import itertools
import math

import pytest
import torch

from polytask.core.errors import InputError
from polytask.deep.factorisation import (
    FORMS,
    balance,
    cheapest_order,
    decompose,
    factor_shapes,
    full_ranks,
    random_factors,
    sharing_strength,
    synthesise,
)

SHAPES = [(5, 4, 6), (3, 7, 1), (4, 3, 2, 5), (4, 3, 2, 3, 2), (12, 3, 2), (1, 4, 3)]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn(shape, form, ranks, seed=0):
    return [normal(*size, seed=seed + number) for number, size in enumerate(factor_shapes(shape, form, ranks))]


def written_out(factors, form):
    """The product by one einsum over all factors."""
    codes, *rest = factors
    if form == "laf":
        return torch.einsum("tk,k...->t...", codes, rest[0])
    if form == "tucker":
        outer, inner = "abcde"[: rest[0].dim()], "vwxyz"[: rest[0].dim()]
        pairs = [f"{big}{small}" for big, small in zip(outer, inner, strict=True)]
        return torch.einsum(f"{inner},{','.join(pairs)}->{outer}", rest[0], codes, *rest[1:])
    found = codes
    for core in rest:
        found = torch.tensordot(found, core, dims=1)
    return found


def some_ranks(shape, form):
    return tuple(max(1, rank - 1) for rank in full_ranks(shape, form, 2))


@pytest.mark.parametrize("split", ["balanced", "codes"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_full_rank_decompositions_are_exact(shape, form, split):
    W = normal(*shape)
    for options in ({}, {"ranks": full_ranks(shape, form)}):
        factors = decompose(W, form, split=split, **options)
        torch.testing.assert_close(synthesise(factors, form), W, rtol=0, atol=1e-12)
    assert [tuple(factor.shape) for factor in factors] == factor_shapes(shape, form, full_ranks(shape, form))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_synthesis_is_the_product_written_out_in_values_and_gradients(shape, form):
    factors = [factor.requires_grad_() for factor in drawn(shape, form, some_ranks(shape, form))]
    found, expected = synthesise(factors, form), written_out(factors, form)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    weight = normal(*shape, seed=9)
    for one, two in zip(
        torch.autograd.grad((found * weight).sum(), factors),
        torch.autograd.grad((expected * weight).sum(), factors),
        strict=True,
    ):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
def test_synthesis_passes_a_finite_difference_check(form):
    factors = [factor.requires_grad_() for factor in drawn((3, 4, 2), form, some_ranks((3, 4, 2), form))]
    assert torch.autograd.gradcheck(lambda *some: synthesise(some, form), factors, eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_tasks_slice_is_the_synthesis_of_its_code(shape, form):
    factors = drawn(shape, form, some_ranks(shape, form))
    rows = torch.tensor([shape[0] - 1, 0])
    torch.testing.assert_close(
        synthesise(factors, form, rows=rows), synthesise(factors, form)[rows], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_error_stays_within_the_tolerance_and_ranks_fall_with_it(shape, form):
    W = normal(*shape)
    before = full_ranks(shape, form)
    for tolerance in (0.0, 0.1, 0.3, 0.6, 0.9):
        factors = decompose(W, form, tolerance=tolerance)
        assert (synthesise(factors, form) - W).norm() <= tolerance * W.norm() + 1e-12
        ranks = tuple(factors[1].shape) if form == "tucker" else tuple(f.shape[-1] for f in factors[:-1])
        if form == "laf":
            ranks = (factors[0].shape[1],)
        assert all(rank <= last for rank, last in zip(ranks, before, strict=True))
        before = ranks
    assert factors[0].shape[1] <= min(shape[0], W.numel() // shape[0])


def test_the_rank_of_the_shared_basis_is_the_smallest_within_the_tolerance():
    left, right = torch.linalg.qr(normal(5, 5))[0], torch.linalg.qr(normal(12, 5))[0]
    W = (left * torch.tensor([4.0, 3.0, 0.3, 0.4, 1e-12])) @ right.T
    # ||W|| = 5.02: beyond two components 0.5 is left, beyond three (the larger first) 0.3
    for tolerance, rank in ((0.11, 2), (0.09, 3), (0.05, 4), (1e-9, 4)):
        assert decompose(W.view(5, 4, 3), "laf", tolerance=tolerance)[0].shape == (5, rank)


@pytest.mark.parametrize(("form", "ranks"), [("laf", (2,)), ("tucker", (2, 3, 3)), ("tt", (2, 3))])
def test_low_rank_weights_are_found_to_have_low_rank(form, ranks):
    W = written_out(drawn((6, 5, 4), form, ranks), form)
    factors = decompose(W, form, tolerance=1e-8)
    assert [tuple(factor.shape) for factor in factors] == factor_shapes((6, 5, 4), form, ranks)


def test_a_tensor_train_of_a_matrix_is_the_shared_basis():
    """With one axis beside the task both are the truncated singular value decomposition."""
    W = normal(6, 8)
    for options in ({"tolerance": 0.3}, {"ranks": (3,)}):
        laf, train = decompose(W, "laf", **options), decompose(W, "tt", **options)
        for one, two in zip(laf, train, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_tucker_with_identity_sides_is_the_free_tensor():
    core = normal(4, 3, 5)
    eyes = [torch.eye(size, dtype=torch.float64) for size in core.shape]
    assert synthesise([eyes[0], core, *eyes[1:]], "tucker").equal(core)


@pytest.mark.parametrize("form", FORMS)
def test_changing_the_components_by_an_invertible_matrix_leaves_the_product_as_it_is(form):
    codes, second, *rest = drawn((5, 4, 3), form, full_ranks((5, 4, 3), form, 2))
    Q = normal(2, 2, seed=5)
    turned = [codes @ Q, torch.tensordot(torch.linalg.inv(Q), second, dims=1), *rest]
    torch.testing.assert_close(synthesise(turned, form), synthesise([codes, second, *rest], form), rtol=0, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
def test_the_balanced_split_gives_codes_and_components_one_length_and_the_other_keeps_singular_values(form):
    W = normal(5, 4, 6)
    codes, second, *_ = decompose(W, form)
    torch.testing.assert_close(codes.norm(dim=0), second.flatten(1).norm(dim=1), rtol=1e-10, atol=0)
    values = torch.linalg.svdvals(W.flatten(1))
    if form == "laf":  # the bound of ||codes||² + ||basis||² >= 2 ||W||_* is met
        assert (codes.square().sum() + second.square().sum()).item() == pytest.approx(2 * values.sum().item())
    codes, second, *_ = decompose(W, form, split="codes")
    holder = second.flatten(1).norm(dim=1) if form == "tucker" else codes.norm(dim=0)
    torch.testing.assert_close(holder, values, rtol=1e-10, atol=0)


def test_balancing_leaves_components_of_zeros_alone():
    factors = balance([torch.zeros(3, 2), torch.ones(2, 4, 5)])
    assert factors[0].equal(torch.zeros(3, 2))
    assert factors[1].equal(torch.ones(2, 4, 5))


@pytest.mark.parametrize("form", FORMS)
def test_random_factors_make_weights_of_the_deviation_asked_for(form):
    shape = (40, 30, 20)
    W = synthesise(random_factors(shape, form, full_ranks(shape, form), std=0.3, generator=torch.Generator()), form)
    assert W.shape == shape
    assert W.std().item() == pytest.approx(0.3, rel=0.1)


@pytest.mark.parametrize("seed", range(20))
def test_the_order_of_products_is_the_cheapest_of_all(seed):
    small, more = torch.randint(1, 9, (2, 4), generator=torch.Generator().manual_seed(seed)).tolist()
    large = [few * times for few, times in zip(small, more, strict=True)]

    def products(order):
        sizes, total = list(small), 0
        for mode in order:
            total += math.prod(sizes) * large[mode]
            sizes[mode] = large[mode]
        return total

    assert products(cheapest_order(small, large)) == min(map(products, itertools.permutations(range(4))))


@pytest.mark.parametrize(("n_tasks", "ranks"), [(200, (2, 3)), (3, (3, 6))])
def test_both_directions_of_a_tensor_train_give_one_product(n_tasks, ranks):
    factors = drawn((n_tasks, 4, 6), "tt", ranks)
    torch.testing.assert_close(synthesise(factors, "tt"), written_out(factors, "tt"), rtol=0, atol=1e-12)


def test_sharing_strength_is_0_for_a_component_each_and_1_for_equal_tasks():
    eye = torch.eye(4)
    assert sharing_strength(eye) == 0
    assert sharing_strength(torch.tensor([[2.0, -1.0], [4.0, 2.0], [-2.0, 1.0]])) == pytest.approx(1)
    assert sharing_strength(eye, normalise="softmax") == pytest.approx(0.72, abs=0.005)


@pytest.mark.parametrize("ranks", [(3,), (0, 4, 6), (6, 4, 6), (5, 4, 7)])
def test_ranks_out_of_range_are_refused(ranks):
    with pytest.raises(InputError, match="numbers from 1 to at most"):
        decompose(normal(5, 4, 6), "tucker", ranks=ranks)


def test_tensor_train_ranks_that_cannot_follow_each_other_are_refused():
    with pytest.raises(InputError, match="10 is more than 3 units times the rank 2"):
        decompose(normal(20, 3, 30), "tt", ranks=(10, 2))


@pytest.mark.parametrize("tolerance", [-0.1, 1.0, float("nan")])
def test_tolerances_that_are_no_share_are_refused(tolerance):
    with pytest.raises(InputError, match="tolerance is"):
        decompose(normal(5, 4, 6), "laf", tolerance=tolerance)
