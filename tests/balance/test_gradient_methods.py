"""Gradient methods: the papers' closed forms, their promises, TorchJD's answers, and pinned numbers."""

from __future__ import annotations

import math

import pytest
import torch
import torchjd.aggregation as jd
from torchjd.linalg import QuadprogProjector

from polytask.balance import (
    DBMTL,
    IMTLG,
    MGDA,
    AlignedMTL,
    CAGrad,
    ConFIG,
    FairGrad,
    GradDrop,
    GradNorm,
    GradVac,
    NashMTL,
    PCGrad,
    UPGrad,
    graddrop,
)
from polytask.balance.features import Dense
from polytask.balance.gradvac import vaccinate
from polytask.balance.pcgrad import random_orders, surgery
from polytask.core.errors import InputError

F64 = torch.float64


def drop_signs(rows, *arguments, **options):
    return graddrop.drop_signs(Dense(rows), *arguments, **options)


def jacobian(n_tasks, width=40, seed=0, spread=0.5):
    g = torch.Generator().manual_seed(seed)
    J = torch.randn(n_tasks, width, generator=g, dtype=F64)
    return J * torch.exp(spread * torch.randn(n_tasks, 1, generator=g, dtype=F64))


def weights_of(method, J, losses=None):
    losses = torch.ones(len(J), dtype=F64) if losses is None else losses
    return method.gram_weights(J @ J.T, losses)


TWO = torch.tensor([[1.0, 0.0], [-1.0, 2.0]], dtype=F64)  # in conflict: inner product -1, squared lengths 1 and 5

# two tasks -----------------------------------------------------------------------------------------------------------


def test_mgda_of_two_tasks_is_the_papers_formula():
    for seed in range(20):
        g1, g2 = J = jacobian(2, seed=seed, spread=2)
        expected = float(((g2 - g1) @ g2 / (g1 - g2).square().sum()).clamp(0, 1))
        torch.testing.assert_close(weights_of(MGDA(2), J), torch.tensor([expected, 1 - expected], dtype=F64))


def test_pcgrad_of_two_tasks_projects_each_on_the_others_normal_plane():
    g1, g2 = TWO
    d = weights_of(PCGrad(2), TWO) @ TWO
    torch.testing.assert_close(d, g1 - (g1 @ g2) / (g2 @ g2) * g2 + g2 - (g1 @ g2) / (g1 @ g1) * g1)
    assert d @ g1 >= 0
    assert d @ g2 >= 0


def test_imtlg_of_two_tasks_weights_by_the_others_length():
    for seed in range(5):
        J = jacobian(2, seed=seed)
        n = J.norm(dim=1)
        torch.testing.assert_close(weights_of(IMTLG(2), J), n.flip(0) / n.sum())


def test_nash_of_two_tasks_weights_by_inverse_lengths():
    for seed in range(5):
        J = jacobian(2, seed=seed, spread=2)
        a = weights_of(NashMTL(2, max_norm=None), J)
        n, cosine = J.norm(dim=1), float(torch.cosine_similarity(J[0], J[1], 0))
        torch.testing.assert_close(a, 1 / (n * math.sqrt(1 + cosine)), rtol=1e-7, atol=0)


def test_upgrad_of_two_tasks_in_conflict_averages_the_projections():
    g1, g2 = TWO
    p1, p2 = g1 - (g1 @ g2) / (g2 @ g2) * g2, g2 - (g1 @ g2) / (g1 @ g1) * g1
    torch.testing.assert_close(weights_of(UPGrad(2), TWO) @ TWO, (p1 + p2) / 2, rtol=1e-7, atol=1e-7)


def test_cagrad_of_two_tasks_is_the_best_on_a_fine_grid():
    J = jacobian(2, seed=1, spread=1)
    g0, c = J.mean(0), 0.5
    w = torch.linspace(0, 1, 200_001, dtype=F64)
    mix = torch.stack([w, 1 - w], 1)
    gram = J @ J.T
    lengths = (mix @ gram * mix).sum(1).sqrt()
    dual = mix @ (J @ g0) + c * g0.norm() * lengths
    d = weights_of(CAGrad(2, c=c), J) @ J
    assert float((J @ d).min()) == pytest.approx(float(dual.min()), rel=1e-7)


def test_aligned_gradients_of_two_orthogonal_tasks_have_the_shorter_length():
    J = torch.diag(torch.tensor([3.0, 0.5], dtype=F64))
    torch.testing.assert_close(weights_of(AlignedMTL(2), J) @ J, torch.tensor([0.5, 0.5], dtype=F64))


def test_config_of_two_tasks_is_the_bisector():
    g1, g2 = J = jacobian(2, seed=3)
    bisector = g1 / g1.norm() + g2 / g2.norm()
    bisector = bisector / bisector.norm()
    torch.testing.assert_close(weights_of(ConFIG(2), J) @ J, (g1 + g2) @ bisector * bisector)


def test_dbmtl_stretches_gradients_of_log_losses_to_the_longest():
    J, losses = jacobian(3), torch.tensor([2.0, 0.1, 5.0], dtype=F64)
    logs = J / losses[:, None]
    longest = logs.norm(dim=1).max()
    expected = (longest * logs / logs.norm(dim=1, keepdim=True)).sum(0)
    torch.testing.assert_close(weights_of(DBMTL(3), J, losses) @ J, expected)


# promises ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_tasks", [3, 8, 30])
def test_mgda_improves_every_task_by_at_least_its_squared_length(n_tasks):
    J = jacobian(n_tasks, 200, n_tasks)
    w = weights_of(MGDA(n_tasks), J)
    d = w @ J
    gains = J @ d
    assert float(gains.min()) >= float(d @ d) * (1 - 1e-6)
    torch.testing.assert_close(gains[w > 0], (d @ d).expand(int((w > 0).sum())), rtol=1e-6, atol=0)


@pytest.mark.parametrize("n_tasks", [3, 8, 30])
@pytest.mark.parametrize("width", [50, 400])
def test_upgrad_hurts_no_task(n_tasks, width):
    J = jacobian(n_tasks, width, n_tasks, 1.0)
    d = weights_of(UPGrad(n_tasks), J) @ J
    assert float((J @ d / J.norm(dim=1)).min()) >= -1e-7 * float(d.norm())


def test_methods_return_the_sum_or_mean_when_nothing_conflicts():
    J = jacobian(5).abs()
    torch.testing.assert_close(weights_of(UPGrad(5), J), torch.full((5,), 0.2, dtype=F64))
    torch.testing.assert_close(weights_of(PCGrad(5), J), torch.ones(5, dtype=F64))
    torch.testing.assert_close(weights_of(GradVac(5), J), torch.ones(5, dtype=F64))


@pytest.mark.parametrize("c", [0.1, 0.5, 0.9, 3.0])
@pytest.mark.parametrize("n_tasks", [2, 3, 10, 50])
def test_cagrad_ends_on_its_ball_with_primal_and_dual_equal(c, n_tasks):
    J = jacobian(n_tasks, 300, n_tasks)
    g0 = J.mean(0)
    weights = weights_of(CAGrad(n_tasks, c=c), J)
    d, u = weights @ J, weights - 1 / n_tasks
    assert float((d - g0).norm()) == pytest.approx(c * float(g0.norm()), rel=1e-6)
    w = u / u.sum()
    dual = float(w @ J @ g0) + c * float(g0.norm()) * float((w @ J).norm())
    assert float((J @ d).min()) == pytest.approx(dual, rel=1e-6)


def test_cagrad_runs_from_the_average_to_mgda():
    J = jacobian(6)
    torch.testing.assert_close(weights_of(CAGrad(6, c=0.0), J), torch.full((6,), 1 / 6, dtype=F64))
    far = weights_of(CAGrad(6, c=1e5), J) @ J
    near = weights_of(MGDA(6), J) @ J
    assert float(torch.cosine_similarity(far, near, 0)) == pytest.approx(1, abs=1e-6)
    rescaled = weights_of(CAGrad(6, c=0.5, rescale=True), J)
    torch.testing.assert_close(rescaled * 1.25, weights_of(CAGrad(6, c=0.5), J))


def test_imtlg_projects_equally_on_every_unit_gradient():
    J = jacobian(7)
    w = weights_of(IMTLG(7), J)
    projections = J @ (w @ J) / J.norm(dim=1)
    torch.testing.assert_close(projections, projections[:1].expand(7))
    assert float(w.sum()) == pytest.approx(1)


def test_config_has_the_same_cosine_with_every_gradient():
    J = jacobian(7)
    d = weights_of(ConFIG(7), J) @ J
    cosines = torch.cosine_similarity(J, d[None], 1)
    torch.testing.assert_close(cosines, cosines[:1].expand(7))
    assert float(d.norm()) == pytest.approx(float((J @ d).sum() / d.norm()))


def test_nash_weight_times_gain_is_one_and_scaling_a_task_scales_its_weight_inversely():
    J = jacobian(6)
    a = weights_of(NashMTL(6, max_norm=None), J)
    torch.testing.assert_close(a * (J @ (a @ J)), torch.ones(6, dtype=F64), rtol=1e-6, atol=0)
    factors = torch.tensor([1, 10, 1e-3, 5, 1e4, 1], dtype=F64)
    scaled = weights_of(NashMTL(6, max_norm=None), J * factors[:, None])
    torch.testing.assert_close(scaled, a / factors, rtol=1e-6, atol=0)


def test_nash_direction_is_never_longer_than_asked():
    J = jacobian(6) * 1e3
    assert float((weights_of(NashMTL(6), J) @ J).norm()) == pytest.approx(1)
    assert float((weights_of(NashMTL(6, max_norm=0.2), J * 1e-6) @ J * 1e-6).norm()) <= 0.2


def test_fairgrad_with_alpha_one_is_nash():
    J = jacobian(5)
    torch.testing.assert_close(weights_of(FairGrad(5), J), weights_of(NashMTL(5, max_norm=None), J))


def test_aligned_gradients_form_a_system_of_condition_one():
    J = jacobian(5)
    values, vectors = torch.linalg.eigh(J @ J.T)
    B = vectors @ torch.diag((values[0] / values).sqrt()) @ vectors.T
    singular = torch.linalg.svdvals(B @ J)
    torch.testing.assert_close(singular, values[0].sqrt().expand(5))
    torch.testing.assert_close(weights_of(AlignedMTL(5), J), B.sum(0))


def test_pcgrad_meets_the_original_gradients_in_the_given_order():
    J = jacobian(6, 8, 2)
    orders = random_orders(6, torch.Generator().manual_seed(3))
    d = torch.zeros(8, dtype=F64)
    for i in range(6):
        h = J[i].clone()
        for j in orders[i]:
            if h @ J[j] < 0:
                h -= (h @ J[j]) / (J[j] @ J[j]) * J[j]
        d += h
    torch.testing.assert_close(surgery(J @ J.T, orders) @ J, d)


def test_random_orders_hold_every_other_task_once():
    orders = random_orders(9, torch.Generator().manual_seed(0))
    for i, row in enumerate(orders.tolist()):
        assert sorted(row) == [j for j in range(9) if j != i]


def test_gradvac_brings_a_pair_to_its_target_cosine():
    J = TWO
    targets = torch.tensor([[1.0, 0.4], [0.4, 1.0]], dtype=F64)
    orders = torch.tensor([[1], [0]])
    g1, g2 = J
    weights, new = vaccinate(J @ J.T, targets, orders, 0.1)
    # w = 1ᵀ C with C[0, 1] and C[1, 0] the amounts added: rebuild both new gradients
    h1, h2 = g1 + (weights[1] - 1) * g2, g2 + (weights[0] - 1) * g1
    assert float(torch.cosine_similarity(h1, g2, 0)) == pytest.approx(0.4)
    assert float(torch.cosine_similarity(h2, g1, 0)) == pytest.approx(0.4)
    assert float(new[0, 1]) == pytest.approx(0.9 * 0.4 + 0.1 * float(torch.cosine_similarity(g1, g2, 0)))


def test_gradvac_with_targets_of_zero_is_pcgrad():
    J = jacobian(6, 8, 2)
    orders = random_orders(6, torch.Generator().manual_seed(3))
    weights, _ = vaccinate(J @ J.T, torch.zeros(6, 6, dtype=F64), orders, 0.0)
    torch.testing.assert_close(weights, surgery(J @ J.T, orders))


def test_random_methods_repeat_with_the_seed_and_change_with_the_step():
    J = jacobian(10, 6, 1)
    one, two, other = PCGrad(10, seed=4), PCGrad(10, seed=4), PCGrad(10, seed=5)
    first = weights_of(one, J)
    assert torch.equal(first, weights_of(two, J))
    assert not torch.equal(first, weights_of(other, J))
    assert not torch.equal(first, weights_of(one, J))


def test_mgda_normalisations_divide_before_they_compare():
    J, losses = jacobian(3, spread=2), torch.tensor([0.5, 2.0, 8.0], dtype=F64)
    for name, divisor in (("l2", J.norm(dim=1)), ("loss", losses), ("loss+", losses * J.norm(dim=1))):
        direction = weights_of(MGDA(3, normalise=name), J, losses) @ J
        unit = J / divisor[:, None]
        torch.testing.assert_close(direction, weights_of(MGDA(3), unit) @ unit)


# GradNorm and GradDrop -----------------------------------------------------------------------------------------------


def test_gradnorm_equalises_lengths_when_tasks_learn_alike():
    J = jacobian(4, spread=1.5)
    balancer = GradNorm(4, alpha=0.0)
    optimiser = torch.optim.Adam(balancer.parameters(), 5e-2)
    for _ in range(600):
        for group in optimiser.param_groups:
            group["lr"] *= 0.99
        weights = balancer.head_weights(torch.ones(4, dtype=F64), torch.ones(4, dtype=torch.bool))
        weights_of(balancer, J)
        optimiser.step()
    lengths = weights.double() * J.norm(dim=1)
    torch.testing.assert_close(lengths, lengths.mean().expand(4), rtol=2e-2, atol=0)
    assert float(weights.sum()) == pytest.approx(4, rel=1e-5)


def test_gradnorm_pulls_the_slow_task_forward():
    J = torch.eye(2, dtype=F64)
    balancer = GradNorm(2)
    everyone = torch.ones(2, dtype=torch.bool)
    balancer.head_weights(torch.tensor([1.0, 1.0], dtype=F64), everyone)
    weights_of(balancer, J, torch.tensor([0.9, 0.1], dtype=F64))
    assert balancer.raw.grad[0] < 0 < balancer.raw.grad[1]  # a step downhill raises the weight of the slow task


def test_graddrop_keeps_gradients_of_one_sign():
    rows = torch.rand(3, 4, 6, dtype=F64)
    z = torch.rand(4, 6, dtype=F64) + 0.1
    torch.testing.assert_close(drop_signs(rows, z, torch.rand(6, dtype=F64)), rows.sum(0))
    torch.testing.assert_close(drop_signs(rows, -z, torch.rand(6, dtype=F64)), rows.sum(0))


def test_graddrop_of_one_row_agrees_with_torchjd():
    J = jacobian(4, 30)
    torch.manual_seed(7)
    theirs = jd.GradDrop()(J)
    torch.manual_seed(7)
    thresholds = torch.rand(30, dtype=F64)
    torch.testing.assert_close(drop_signs(J[:, None], torch.ones(1, 30, dtype=F64), thresholds)[0], theirs)


def test_graddrop_keeps_each_sign_as_often_as_its_purity_says():
    rows = torch.tensor([[[3.0]], [[-1.0]]], dtype=F64)
    u = torch.linspace(0, 1, 801, dtype=F64)[:-1] + 1 / 1600
    kept = torch.stack([drop_signs(rows, torch.ones(1, 1, dtype=F64), each[None])[0, 0] for each in u])
    assert float((kept == 3).double().mean()) == pytest.approx(0.75, abs=5e-3)
    assert float((kept == -1).double().mean()) == pytest.approx(0.25, abs=5e-3)
    assert float(drop_signs(rows, torch.ones(1, 1, dtype=F64), u[:1], leak=1.0)) == 2.0


# TorchJD -------------------------------------------------------------------------------------------------------------

exact_projector = QuadprogProjector(norm_eps=0.0, reg_eps=1e-12)


@pytest.mark.parametrize("n_tasks", [2, 3, 10, 50])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda T: IMTLG(T), lambda T: jd.IMTLG()),
        (lambda T: UPGrad(T), lambda T: jd.UPGrad(projector=exact_projector)),
        (lambda T: ConFIG(T), lambda T: jd.ConFIG()),
    ],
    ids=["imtlg", "upgrad", "config"],
)
def test_directions_agree_with_torchjd(ours, theirs, n_tasks):
    for seed in range(3):
        J = jacobian(n_tasks, 200, seed)
        torch.testing.assert_close(weights_of(ours(n_tasks), J) @ J, theirs(n_tasks)(J), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_tasks", [2, 3, 10, 50])
def test_aligned_mtl_is_torchjds_times_the_number_of_tasks(n_tasks):
    J = jacobian(n_tasks, 200)
    torch.testing.assert_close(weights_of(AlignedMTL(n_tasks), J) @ J, n_tasks * jd.AlignedMTL()(J))


@pytest.mark.parametrize("n_tasks", [2, 3, 10, 50])
def test_pcgrad_agrees_with_torchjd_for_the_same_permutations(n_tasks):
    J = jacobian(n_tasks, 2 * n_tasks)
    torch.manual_seed(5)
    theirs = jd.PCGrad()(J)
    torch.manual_seed(5)
    orders = [torch.randperm(n_tasks) for _ in range(n_tasks)]
    orders = torch.stack([order[order != i] for i, order in enumerate(orders)])
    torch.testing.assert_close(surgery(J @ J.T, orders) @ J, theirs)


@pytest.mark.parametrize("n_tasks", [2, 3, 10])
def test_gradvac_agrees_with_torchjd_for_the_same_permutations(n_tasks):
    J = jacobian(n_tasks, 2 * n_tasks)
    peer, targets = jd.GradVacWeighting(beta=0.3, eps=0.0), torch.zeros(n_tasks, n_tasks, dtype=F64)
    for step in range(4):
        torch.manual_seed(step)
        theirs = peer(J @ J.T)
        torch.manual_seed(step)
        others = [torch.tensor([j for j in range(n_tasks) if j != i]) for i in range(n_tasks)]
        orders = torch.stack([each[torch.randperm(n_tasks - 1)] for each in others])
        weights, targets = vaccinate(J @ J.T, targets, orders, 0.3)
        torch.testing.assert_close(weights, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("n_tasks", [2, 3, 10, 50])
def test_mgda_is_never_longer_than_torchjds(n_tasks):
    J = jacobian(n_tasks, 200)
    assert float((weights_of(MGDA(n_tasks), J) @ J).norm()) <= float(jd.MGDA()(J).norm()) * (1 + 1e-9)


@pytest.mark.parametrize("n_tasks", [2, 3, 10, 30])
def test_cagrad_agrees_with_torchjd_to_its_solvers_tolerance(n_tasks):
    J = jacobian(n_tasks, 200)
    ours, theirs = weights_of(CAGrad(n_tasks, c=0.5), J) @ J, jd.CAGrad(c=0.5)(J)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.norm()))
    assert float((J @ ours).min()) >= float((J @ theirs).min()) - 1e-6 * float(theirs.norm())


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem")  # the peer's own
@pytest.mark.parametrize("n_tasks", [2, 3, 10])
def test_nash_agrees_with_torchjd_to_its_solvers_tolerance(n_tasks):
    J = jacobian(n_tasks, 200, 1)
    theirs = jd.NashMTL(n_tasks, max_norm=1.0, optim_niter=100)(J)
    ours = weights_of(NashMTL(n_tasks), J) @ J
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2 * float(theirs.norm()))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_fairgrad_agrees_with_torchjd(alpha):
    J = jacobian(5, 200) / 10
    theirs = jd.FairGrad(alpha=alpha)(J)
    torch.testing.assert_close(weights_of(FairGrad(5, alpha=alpha), J) @ J, theirs, rtol=1e-4, atol=1e-4)


# pinned --------------------------------------------------------------------------------------------------------------

PINNED_J = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0], [1.0, -2.0, 0.5]], dtype=F64)
PINNED_L = torch.tensor([1.0, 0.5, 2.0], dtype=F64)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (AlignedMTL, [1.13798702, 0.667010543, 1.02444266]),
        (CAGrad, [0.486741124, 0.333333333, 0.333333333]),
        (ConFIG, [1.35482473, 0.752185778, 1.00970443]),
        (DBMTL, [2.90593263, 2.0, 5.38074167]),
        (FairGrad, [0.870254163, 0.469875435, 0.759677439]),
        (GradNorm, [1.0, 1.0, 1.0]),
        (GradVac, [2.52777778, 1.6374269, 1.97465887]),
        (IMTLG, [0.434696389, 0.241339293, 0.323964318]),
        (MGDA, [0.410810811, 0.210810811, 0.378378378]),
        (NashMTL, [0.502441496, 0.27128272, 0.438599992]),
        (PCGrad, [2.52777778, 1.6374269, 1.97465887]),
        (UPGrad, [0.98748377, 0.568758709, 0.745412041]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_weights_of_a_known_matrix_stay_what_they_are(make, expected):
    weights = weights_of(make(3), PINNED_J, PINNED_L)
    torch.testing.assert_close(weights.detach().tolist(), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("make", "options", "named"),
    [
        (MGDA, {"normalise": "best"}, "normalise"),
        (GradVac, {"beta": 2.0}, "beta"),
        (CAGrad, {"c": -1.0}, "c is -1"),
        (NashMTL, {"max_norm": 0.0}, "max_norm"),
        (FairGrad, {"alpha": 0.0}, "alpha"),
        (GradNorm, {"alpha": -1.0}, "alpha"),
        (GradDrop, {"leak": 2.0}, "leak"),
        (PCGrad, {"level": "feature"}, 'Did you mean "features"'),
        (PCGrad, {"every": 0}, "every"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, options, named):
    with pytest.raises(InputError, match=named):
        make(3, **options)
    with pytest.raises(InputError, match="n_tasks"):
        make(0)
