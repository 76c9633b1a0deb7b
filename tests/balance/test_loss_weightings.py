"""Loss weightings: fixed points, closed forms, what they remember, and TorchJD's answers."""

from __future__ import annotations

import math

import pytest
import torch
import torchjd.scalarization as jd
from torch import nn

from polytask.balance import (
    DWA,
    FAMO,
    GLS,
    IMTLL,
    RLW,
    STCH,
    UWSO,
    ScaleNormalisation,
    TorchJDScalarizer,
    TorchJDWeighting,
    Uncertainty,
)
from polytask.core.errors import InputError

F64 = torch.float64
LOSSES = torch.tensor([0.3, 2.0, 11.0], dtype=F64)
EVERYONE = torch.ones(3, dtype=torch.bool)


def settled(balancer, loss, steps=1500):
    """Return e^s after minimising over the balancer's parameters for fixed losses."""
    balancer = balancer.double()
    optimiser = torch.optim.Adam(balancer.parameters(), 0.1)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 0.2 * 0.992**step
        optimiser.zero_grad()
        losses = torch.full((1,), loss, dtype=F64, requires_grad=True)
        balancer.backward(losses, [], [])
        optimiser.step()
    return float(next(iter(balancer.parameters())).detach().exp())


@pytest.mark.parametrize(
    ("make", "optima"),
    [
        (lambda: Uncertainty(["regression"], noise="laplace"), (0.01, 1.0, 25.0)),
        (lambda: Uncertainty(["regression"], positive=True), (0.0733, 1.0, 13.43)),
        (lambda: IMTLL(1), (100.0, 1.0, 0.04)),
    ],
    ids=["laplace", "positive", "imtl-l"],
)
def test_learned_scales_settle_at_their_closed_form(make, optima):
    for loss, optimum in zip((0.01, 1.0, 25.0), optima, strict=True):
        assert settled(make(), loss, 700) == pytest.approx(optimum, rel=1e-2)


@pytest.mark.parametrize("options", [{}, {"noise": "laplace"}, {"positive": True}])
@pytest.mark.parametrize("kind", ["regression", "binary"])
def test_automatic_noise_starts_where_its_gradient_is_zero(kind, options):
    balancer = Uncertainty([kind] * 3, init="auto", **options).double()
    balancer.backward(LOSSES.clone().requires_grad_(), [], [])
    torch.testing.assert_close(balancer.log_variances.grad, torch.zeros(3, dtype=F64), rtol=0, atol=1e-9)


def test_the_positive_form_keeps_the_total_above_zero():
    for s in (-10.0, -1.0, 0.0, 5.0):
        balancer = Uncertainty(["regression"] * 3, init=s, positive=True)
        total = (balancer.weights(LOSSES, EVERYONE) * LOSSES * 1e-3).sum() + balancer.regulariser(EVERYONE)
        assert float(total.detach()) > 0
    with pytest.raises(InputError, match="choose one"):
        Uncertainty(["regression"], positive=True, noise="laplace")
    with pytest.raises(InputError, match='Did you mean "laplace"'):
        Uncertainty(["regression"], noise="laplac")


def test_geometric_mean_has_the_gradient_of_the_geometric_mean():
    losses = LOSSES.clone().requires_grad_()
    (expected,) = torch.autograd.grad(jd.GeometricMean()(losses), losses)
    torch.testing.assert_close(GLS().weights(LOSSES, EVERYONE), expected)


def test_geometric_mean_of_many_small_losses_does_not_underflow():
    weights = GLS().weights(torch.full((50,), 0.1), torch.ones(50, dtype=torch.bool))
    torch.testing.assert_close(weights, torch.full((50,), 1 / 50))


def test_dwa_follows_the_ratio_of_the_last_two_epochs_and_agrees_with_torchjd():
    ours, theirs = DWA(3, temperature=1.5), jd.DWA(temperature=1.5)
    g = torch.Generator().manual_seed(0)
    for _ in range(4):
        for _ in range(3):
            losses = (torch.rand(3, generator=g, dtype=F64) + 0.1).requires_grad_()
            (expected,) = torch.autograd.grad(theirs(losses), losses)
            torch.testing.assert_close(ours.weights(losses.detach(), EVERYONE), expected)
        ours.end_epoch()
        theirs.step()


def test_dwa_of_constant_losses_is_equal_weighting():
    balancer = DWA(3)
    for _ in range(4):
        torch.testing.assert_close(balancer.weights(LOSSES, EVERYONE), torch.ones(3, dtype=F64))
        balancer.end_epoch()


def test_dwa_gives_weight_to_the_task_that_stands_still():
    balancer = DWA(2)
    both = torch.ones(2, dtype=torch.bool)
    for losses in ([1.0, 1.0], [1.0, 0.2]):
        balancer.weights(torch.tensor(losses), both)
        balancer.end_epoch()
    first, second = balancer.weights(torch.tensor([1.0, 0.1]), both).tolist()
    assert first > 1 > second
    assert first / second == pytest.approx(math.exp((1.0 - 0.2) / 2))


def test_random_weights_have_mean_one_and_sum_to_the_tasks_present():
    balancer = RLW(3, seed=0)
    draws = torch.stack([balancer.weights(LOSSES, EVERYONE) for _ in range(4000)])
    torch.testing.assert_close(draws.mean(0), torch.ones(3, dtype=F64), rtol=0, atol=0.05)
    some = balancer.weights(LOSSES, torch.tensor([True, False, True]))
    assert float(some.sum()) == pytest.approx(2)


@pytest.mark.parametrize("mu", [0.1, 1.0, 10.0])
def test_smooth_tchebycheff_is_torchjds_and_lies_in_its_bracket(mu):
    losses, reference = LOSSES.clone().requires_grad_(), torch.tensor([0.1, 0.2, 0.3], dtype=F64)
    preferences = torch.tensor([1.0, 2.0, 0.5], dtype=F64)
    value = jd.STCH(mu, weights=preferences, reference=reference)(losses)
    (expected,) = torch.autograd.grad(value, losses)
    ours = STCH(3, mu=mu, preferences=preferences.tolist(), reference=reference.tolist())
    torch.testing.assert_close(ours.weights(LOSSES, EVERYONE), expected)
    largest = float((preferences * (LOSSES - reference)).max())
    assert largest <= float(value.detach()) <= largest + mu * math.log(3) + 1e-12


def test_relative_smooth_tchebycheff_differentiates_its_formula_after_the_warm_up():
    balancer = STCH(3, mu=0.3, relative=True, warm_up=2)
    for scale in (1.0, 3.0):
        assert torch.equal(balancer.weights(LOSSES * scale, EVERYONE), torch.ones(3, dtype=F64))
    now = torch.tensor([0.5, 0.5, 30.0], dtype=F64, requires_grad=True)
    value = 3 * 0.3 * torch.logsumexp((now / (2 * LOSSES)).log() / 0.3, 0)
    (expected,) = torch.autograd.grad(value, now)
    torch.testing.assert_close(balancer.weights(now.detach(), EVERYONE), expected)


def test_imtll_agrees_with_torchjd():
    ours, theirs = IMTLL(3).double(), jd.IMTLL(3).double()
    with torch.no_grad():
        ours.log_factors.copy_(torch.tensor([0.5, -1.0, 2.0]))
        theirs.log_scale.copy_(ours.log_factors)
    one, two = LOSSES.clone().requires_grad_(), LOSSES.clone().requires_grad_()
    ours.backward(one, [], [])
    theirs(two).backward()
    torch.testing.assert_close(one.grad, two.grad)
    torch.testing.assert_close(ours.log_factors.grad, theirs.log_scale.grad)


def test_uncertainty_of_regression_agrees_with_torchjd():
    ours, theirs = Uncertainty(["regression"] * 3, init=0.7).double(), jd.UW(3).double()
    nn.init.constant_(theirs.log_var, 0.7)
    one, two = LOSSES.clone().requires_grad_(), LOSSES.clone().requires_grad_()
    ours.backward(one, [], [])
    theirs(two).backward()
    torch.testing.assert_close(one.grad, two.grad)
    torch.testing.assert_close(ours.log_variances.grad, theirs.log_var.grad)


def test_analytic_uncertainty_is_a_softmax_of_inverse_losses():
    weights = UWSO(temperature=2.0).weights(LOSSES, EVERYONE)
    torch.testing.assert_close(weights, 3 * torch.softmax(1 / LOSSES / 2, 0))
    torch.testing.assert_close(UWSO(temperature=None).weights(LOSSES, EVERYONE), 1 / LOSSES)


def test_uncertainty_at_its_optimum_is_analytic_uncertainty():
    learned = Uncertainty(["regression"] * 3, init="auto").double()
    torch.testing.assert_close(learned.weights(LOSSES, EVERYONE).detach() * 2, 1 / LOSSES, rtol=1e-6, atol=0)


def test_scale_normalisation_brings_first_losses_to_one_and_then_follows():
    fixed, following = ScaleNormalisation(3), ScaleNormalisation(3, beta=0.25)
    for balancer in (fixed, following):
        torch.testing.assert_close(balancer.weights(LOSSES, EVERYONE) * LOSSES, torch.ones(3, dtype=F64))
    torch.testing.assert_close(fixed.weights(2 * LOSSES, EVERYONE), 1 / LOSSES)
    torch.testing.assert_close(following.weights(2 * LOSSES, EVERYONE), 1 / (1.25 * LOSSES))


def test_scale_normalisation_starts_with_the_first_loss_a_task_shows():
    balancer = ScaleNormalisation(3)
    balancer.weights(LOSSES, torch.tensor([True, False, True]))
    weights = balancer.weights(torch.tensor([1.0, 5.0, 1.0], dtype=F64), EVERYONE)
    torch.testing.assert_close(weights, 1 / torch.tensor([0.3, 5.0, 11.0], dtype=F64))


def test_famo_agrees_with_torchjd_over_many_steps():
    bounds = torch.tensor([0.05, 0.0, 0.1], dtype=F64)
    ours = FAMO(3, learning_rate=0.1, decay=0.01, bounds=bounds.tolist())
    theirs = jd.FAMO(3, min_losses=bounds, lr=0.1, weight_decay=0.01).double()
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        losses = (LOSSES * (0.5 + torch.rand(3, generator=g, dtype=F64))).requires_grad_()
        (expected,) = torch.autograd.grad(theirs(losses), losses)
        weights = ours.weights(losses.detach(), EVERYONE)
        torch.testing.assert_close(weights, expected, rtol=1e-6, atol=1e-9)
        assert float(weights.sum()) == pytest.approx(1)
        after = losses.detach() * (0.5 + torch.rand(3, generator=g, dtype=F64) / 2)
        ours.after_step(after)
        theirs.update(after)


def test_famo_raises_the_task_that_improves_least():
    balancer = FAMO(3)
    for _ in range(10):
        balancer.weights(LOSSES, EVERYONE)
        balancer.after_step(LOSSES * torch.tensor([0.5, 0.99, 0.5], dtype=F64))
    assert balancer.logits[1] > balancer.logits[0]
    assert balancer.logits[1] > balancer.logits[2]


def test_famo_learns_nothing_from_a_task_that_was_absent():
    balancer = FAMO(3, decay=0.0)
    some = torch.tensor([True, False, True])
    balancer.weights(LOSSES, some)
    balancer.after_step(LOSSES * 0.5 + torch.tensor([0.0, 100.0, 3.0]), present=some)
    assert balancer.logits[1] == 0
    assert balancer.logits[0] < 0 < balancer.logits[2]  # task 2 improved less than task 0


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: DWA(2, temperature=0.0), "temperature"),
        (lambda: STCH(2, mu=0.0), "mu"),
        (lambda: STCH(2, preferences=[1.0]), "preferences"),
        (lambda: STCH(2, relative=True, warm_up=0), "warm_up"),
        (lambda: UWSO(temperature=-1.0), "temperature"),
        (lambda: ScaleNormalisation(2, beta=2.0), "beta"),
        (lambda: FAMO(2, learning_rate=-1.0), "learning_rate"),
        (lambda: FAMO(2, bounds=[0.0]), "bounds"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, named):
    with pytest.raises(InputError, match=named):
        make()


# the adapter ---------------------------------------------------------------------------------------------------------


def test_a_torchjd_weighting_balances_as_its_own_aggregator_does():
    from torchjd.aggregation import IMTLG, IMTLGWeighting

    theta = nn.Parameter(torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=F64))
    A = torch.randn(3, 7, generator=torch.Generator().manual_seed(1), dtype=F64)
    losses = [torch.sin(a @ theta) for a in A]
    J = torch.stack([torch.autograd.grad(loss, theta, retain_graph=True)[0] for loss in losses])
    TorchJDWeighting(IMTLGWeighting(), 3).backward(losses, [theta], [])
    torch.testing.assert_close(theta.grad, IMTLG()(J))


def test_a_torchjd_scalarizer_trains_its_own_parameters_and_keeps_them():
    balancer = TorchJDScalarizer(jd.UW(3).double())
    losses = LOSSES.clone().requires_grad_()
    weights = balancer.backward(losses, [], [])
    torch.testing.assert_close(losses.grad, weights)
    (parameter,) = balancer.parameters()
    assert parameter.grad is not None
    assert set(balancer.state_dict()) == {"scalarizer.log_var", "drawn"}


def test_what_a_torchjd_object_draws_depends_on_seed_and_step_only_and_leaves_the_global_generator_alone():
    from torchjd.aggregation import RandomWeighting

    gram, losses = torch.eye(3, dtype=F64), LOSSES.clone().requires_grad_()

    def drawn(before, seed=0):
        torch.manual_seed(before)
        weighting = TorchJDWeighting(RandomWeighting(), 3, seed=seed)
        scalarizer = TorchJDScalarizer(jd.Random(), seed=seed)
        made = [weighting.gram_weights(gram, losses) for _ in range(2)]
        made += [scalarizer.backward(losses, [], []) for _ in range(2)]
        assert torch.rand(1).equal(torch.rand(1, generator=torch.Generator().manual_seed(before)))
        return torch.stack(made)

    first = drawn(1)
    assert first.equal(drawn(2))
    assert len(torch.cat([first, drawn(1, seed=1)]).unique(dim=0)) == 4  # two steps, two seeds


def test_what_a_torchjd_object_sets_when_first_used_comes_back():
    from torchjd.aggregation import CRMOGMWeighting, IMTLGWeighting

    def make():
        return TorchJDWeighting(CRMOGMWeighting(IMTLGWeighting(), alpha=0.9), 3)

    A = torch.randn(3, 3, 7, generator=torch.Generator().manual_seed(1), dtype=F64)
    first, second = make(), make()
    for a in A[:2]:
        first.gram_weights(a @ a.T, LOSSES)
    assert "weighting._lambda" in first.state_dict()
    second.load_state_dict(first.state_dict())
    gram = A[2] @ A[2].T
    assert not make().gram_weights(gram, LOSSES).allclose(first.gram_weights(gram, LOSSES))
    first.load_state_dict(second.state_dict())
    assert first.gram_weights(gram, LOSSES).equal(second.gram_weights(gram, LOSSES))


def test_polytask_balance_does_not_import_torchjd():
    import subprocess
    import sys

    code = "import sys, polytask.balance; print('torchjd' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
