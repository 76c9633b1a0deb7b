import math

import pytest
import torch
from torch import nn

from polytask.balance import Balancer, Equal, Fixed, Uncertainty
from polytask.core.errors import InputError

KINDS = ("regression", "binary", "multiclass", "ordinal")
BALANCERS = {
    "sum": lambda: Equal(4),
    "mean": lambda: Equal(4, reduction="mean"),
    "fixed": lambda: Fixed([1.0, 0.0, 0.5, 2.0]),
    "uncertainty": lambda: Uncertainty(KINDS, init=0.3),
    "uncertainty, automatic": lambda: Uncertainty(KINDS, init="auto"),
}


def problem(scale=None, seed=0):
    """Four losses of one shared vector and one private number each."""
    generator = torch.Generator().manual_seed(seed)
    shared = nn.Parameter(torch.randn(6, generator=generator, dtype=torch.float64))
    private = nn.Parameter(torch.randn(4, generator=generator, dtype=torch.float64))
    A = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    losses = (A @ shared - private).square() + 0.1
    return shared, private, losses if scale is None else losses * scale


def gradients(balancer, losses, shared, private, **options):
    weights = balancer.backward(losses, [shared], [private], **options)
    return weights, shared.grad, private.grad


@pytest.mark.parametrize("name", BALANCERS)
def test_gradients_are_those_of_the_weighted_sum(name):
    shared, private, losses = problem()
    weights, g_shared, g_private = gradients(BALANCERS[name]().double(), losses, shared, private)
    assert weights.shape == (4,)
    assert not weights.requires_grad
    shared_2, private_2, losses_2 = problem()
    (weights * losses_2).sum().backward()
    torch.testing.assert_close(g_shared, shared_2.grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(g_private, private_2.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", BALANCERS)
def test_gradients_add_to_what_is_there(name):
    shared, private, losses = problem()
    shared.grad = torch.ones_like(shared)
    _, g_shared, _ = gradients(BALANCERS[name]().double(), losses, shared, private)
    shared_2, private_2, losses_2 = problem()
    _, g_2, _ = gradients(BALANCERS[name]().double(), losses_2, shared_2, private_2)
    torch.testing.assert_close(g_shared, g_2 + 1, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", BALANCERS)
def test_an_absent_task_has_weight_zero_and_changes_nothing_even_if_its_loss_is_nan(name):
    present = torch.tensor([True, True, False, True])
    shared, private, losses = problem()
    balancer = BALANCERS[name]().double()
    nan = torch.where(present, torch.ones(4, dtype=torch.float64), torch.nan)
    weights = balancer.backward(losses * nan, [shared], [private], present=present)
    assert weights[2] == 0
    assert weights.isfinite().all()
    for parameter in balancer.parameters():
        assert parameter.grad[2] == 0
        assert parameter.grad.isfinite().all()
        assert parameter.isfinite().all()


@pytest.mark.parametrize("name", BALANCERS)
def test_an_absent_task_leaves_weights_and_private_gradients_of_the_others_as_they_are(name):
    present = torch.tensor([True, True, False, True])
    shared, private, losses = problem()
    weights, _, g_private = gradients(BALANCERS[name]().double(), losses, shared, private, present=present)
    shared_2, private_2, losses_2 = problem()
    all_weights, _, _ = gradients(BALANCERS[name]().double(), losses_2, shared_2, private_2)
    assert weights[[0, 1, 3]].equal(all_weights[[0, 1, 3]])
    assert g_private[2] == 0
    assert g_private[[0, 1, 3]].equal(private_2.grad[[0, 1, 3]])


@pytest.mark.parametrize("name", BALANCERS)
def test_no_task_present_gives_zero_gradients(name):
    shared, private, losses = problem()
    absent = torch.zeros(4, dtype=torch.bool)
    weights, g_shared, g_private = gradients(BALANCERS[name]().double(), losses, shared, private, present=absent)
    assert (weights == 0).all()
    assert (g_shared == 0).all()
    assert (g_private == 0).all()


@pytest.mark.parametrize("name", ["sum", "mean", "uncertainty", "uncertainty, automatic"])
def test_weights_follow_a_permutation_of_tasks(name):
    order = [2, 0, 3, 1]
    permuted = {"sum": Equal(4), "mean": Equal(4, reduction="mean")}.get(name) or Uncertainty(
        [KINDS[t] for t in order], init="auto" if "auto" in name else 0.3
    )
    losses, present = torch.tensor([0.5, 2.0, 1.0, 3.0]), torch.ones(4, dtype=torch.bool)
    assert permuted.weights(losses[order], present).equal(BALANCERS[name]().weights(losses, present)[order])


@pytest.mark.parametrize("name", BALANCERS)
def test_state_round_trip_gives_the_same_weights(name):
    losses, present = torch.tensor([0.5, 2.0, 1.0, 3.0]), torch.ones(4, dtype=torch.bool)
    one, two = BALANCERS[name](), BALANCERS[name]()
    one.weights(losses, present)
    for parameter in one.parameters():
        parameter.data += 0.7
    two.load_state_dict(one.state_dict())
    assert two.weights(losses * 3, present).equal(one.weights(losses * 3, present))


@pytest.mark.parametrize("name", BALANCERS)
def test_loss_balancers_need_no_shared_parameters(name):
    balancer = BALANCERS[name]()
    assert isinstance(balancer, Balancer)
    assert not balancer.needs_shared
    loss = nn.Parameter(torch.ones(4))
    balancer.backward(loss * 1.0, [], [loss])
    assert loss.grad is not None


def test_equal_weights_are_one_or_one_over_tasks():
    losses, present = torch.ones(4), torch.ones(4, dtype=torch.bool)
    assert Equal(4).weights(losses, present).tolist() == [1.0] * 4
    assert Equal(4, reduction="mean").weights(losses, present).tolist() == [0.25] * 4


def test_fixed_weights_take_the_type_of_the_losses():
    present = torch.ones(2, dtype=torch.bool)
    assert Fixed([1, 3]).weights(torch.ones(2, dtype=torch.float64), present).tolist() == [1.0, 3.0]
    assert Fixed([1, 3]).weights(torch.ones(2), present).dtype == torch.float32


@pytest.mark.parametrize("loss", [0.01, 1.0, 25.0])
def test_uncertainty_settles_at_the_loss_for_regression_and_twice_the_loss_for_classes(loss):
    balancer = Uncertainty(KINDS).double()
    optimiser = torch.optim.LBFGS(
        balancer.parameters(), max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
    )
    losses = torch.full((4,), loss, dtype=torch.float64)

    def closure():
        optimiser.zero_grad()
        objective = (balancer.weights(losses, losses > 0) * losses).sum() + balancer.regulariser(losses > 0)
        objective.backward()
        return objective

    optimiser.step(closure)
    settled = balancer.log_variances.exp().tolist()
    assert settled == pytest.approx([loss, 2 * loss, 2 * loss, 2 * loss], rel=1e-5)


def test_automatic_start_is_the_settled_state_for_each_tasks_first_loss():
    balancer = Uncertainty(KINDS, init="auto").double()
    losses = torch.tensor([0.5, 2.0, 7.0, 3.0], dtype=torch.float64).requires_grad_()
    balancer.backward(losses * 1, [], [], present=torch.tensor([True, True, False, True]))
    assert balancer.log_variances.exp()[[0, 1, 3]].tolist() == pytest.approx([0.5, 4.0, 6.0])
    assert balancer.log_variances.grad.abs().max() < 1e-12
    balancer.backward(losses * 1, [], [])
    assert balancer.log_variances.exp().tolist() == pytest.approx([0.5, 4.0, 14.0, 6.0])


def test_at_the_optimum_rescaling_a_loss_leaves_the_update_unchanged():
    results = []
    for scale in (torch.ones(4), torch.tensor([1000.0, 1.0, 0.01, 5.0])):
        shared, private, losses = problem(scale.double())
        results.append(gradients(Uncertainty(KINDS, init="auto").double(), losses, shared, private)[1:])
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_at_zero_uncertainty_is_half_the_sum_of_regression_losses():
    weights = Uncertainty(["regression", "regression"]).weights(torch.ones(2), torch.ones(2, dtype=torch.bool))
    assert weights.tolist() == [0.5, 0.5]


def test_gradient_of_log_variance_is_its_closed_form():
    shared, private, losses = problem()
    balancer = Uncertainty(KINDS, init=0.3).double()
    balancer.backward(losses, [shared], [private])
    factors = torch.tensor([0.5, 1.0, 1.0, 1.0], dtype=torch.float64)
    expected = 0.5 - factors * math.exp(-0.3) * losses.detach()
    torch.testing.assert_close(balancer.log_variances.grad, expected, rtol=0, atol=1e-7)


def test_a_task_learned_perfectly_keeps_a_finite_weight_and_can_come_back():
    balancer = Uncertainty(["regression"])
    optimiser = torch.optim.SGD(balancer.parameters(), lr=100.0)
    losses = torch.zeros(1)
    for _ in range(5):
        optimiser.zero_grad()
        balancer.backward(losses.clone().requires_grad_(), [], [])
        optimiser.step()
    weight = balancer.weights(losses, torch.ones(1, dtype=torch.bool))
    assert weight.item() == pytest.approx(0.5 * math.exp(10), rel=1e-5)
    optimiser.zero_grad()
    balancer.backward(torch.ones(1, requires_grad=True) * 1, [], [])
    assert balancer.log_variances.grad.item() < 0


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Equal(0), "n_tasks is 0"),
        (lambda: Equal(2, reduction="men"), 'Did you mean "mean"'),
        (lambda: Fixed([]), "weights is"),
        (lambda: Fixed([1.0, -1.0]), "weights is"),
        (lambda: Fixed([0.0, 0.0]), "weights is"),
        (lambda: Uncertainty([]), "kinds is empty"),
        (lambda: Uncertainty(["regresion"]), 'Did you mean "regression"'),
        (lambda: Uncertainty(KINDS, init=11.0), "init is 11"),
        (lambda: Uncertainty(KINDS, init="first"), "init is"),
    ],
)
def test_impossible_settings_are_refused(build, words):
    with pytest.raises(InputError, match=words):
        build()
