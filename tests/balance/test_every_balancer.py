"""What every balancer promises: one table, and every exported balancer is a row of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import polytask.balance as room
from polytask import registry
from polytask.balance import base, copies
from polytask.core.errors import InputError

T = 4
KINDS = ("regression", "binary", "multiclass", "ordinal")


@dataclass(frozen=True)
class Row:
    """One balancer and what ``methods.md`` says of it.

    ``degree``: losses and gradients times c change the update of shared parameters by c to this power;
    ``ordered``: the numbering of the tasks plays a role through random draws;
    ``fixed``: it is made for a fixed set of tasks in a fixed order.
    """

    make: Callable[[int], nn.Module]
    degree: float | None = 1.0
    ordered: bool = False
    fixed: bool = False


class Mean(nn.Module):
    def forward(self, losses):
        return losses.mean()


class Inverse(nn.Module):
    def forward(self, gram):
        return 1 / (gram.diagonal() + 1e-300).sqrt().clamp(min=1e-12)


TABLE = {
    "Equal": Row(lambda n: room.Equal(n)),
    "Fixed": Row(lambda n: room.Fixed([0.5, 2.0, 0.1, 1.0, 3.0][:n]), fixed=True),
    "Uncertainty": Row(lambda n: room.Uncertainty((KINDS * 2)[:n], init=0.3), fixed=True),
    "Uncertainty, automatic": Row(lambda n: room.Uncertainty(["regression"] * n, init="auto"), 0.0),
    "Uncertainty, Laplace": Row(lambda n: room.Uncertainty(["regression"] * n, noise="laplace")),
    "Uncertainty, positive": Row(lambda n: room.Uncertainty(["regression"] * n, positive=True)),
    "DWA": Row(lambda n: room.DWA(n)),
    "RLW": Row(lambda n: room.RLW(n, seed=1), ordered=True),
    "GLS": Row(lambda n: room.GLS()),
    "STCH": Row(lambda n: room.STCH(n, mu=0.5), None),
    "STCH, relative": Row(lambda n: room.STCH(n, relative=True, warm_up=1), 0.0),
    "IMTLL": Row(lambda n: room.IMTLL(n)),
    "UWSO": Row(lambda n: room.UWSO(), None),
    "UWSO, inverse": Row(lambda n: room.UWSO(temperature=None), 0.0),
    "ScaleNormalisation": Row(lambda n: room.ScaleNormalisation(n, beta=0.1), 0.0),
    "FAMO": Row(lambda n: room.FAMO(n)),
    "TorchJDScalarizer": Row(lambda n: room.TorchJDScalarizer(Mean())),
    "MGDA": Row(lambda n: room.MGDA(n)),
    "MGDA, normalised": Row(lambda n: room.MGDA(n, normalise="l2"), 0.0),
    "PCGrad": Row(lambda n: room.PCGrad(n, seed=1), ordered=True),
    "GradVac": Row(lambda n: room.GradVac(n, seed=1, beta=0.5), ordered=True),
    "CAGrad": Row(lambda n: room.CAGrad(n)),
    "IMTLG": Row(lambda n: room.IMTLG(n)),
    "NashMTL": Row(lambda n: room.NashMTL(n, max_norm=None), 0.0),
    "NashMTL, limited": Row(lambda n: room.NashMTL(n), None),
    "FairGrad": Row(lambda n: room.FairGrad(n, alpha=2.0), -1 / 3),
    "AlignedMTL": Row(lambda n: room.AlignedMTL(n)),
    "UPGrad": Row(lambda n: room.UPGrad(n)),
    "ConFIG": Row(lambda n: room.ConFIG(n)),
    "DBMTL": Row(lambda n: room.DBMTL(n), 0.0),
    "GradNorm": Row(lambda n: room.GradNorm(n)),
    "GradDrop": Row(lambda n: room.GradDrop(n, seed=1)),
    "TorchJDWeighting": Row(lambda n: room.TorchJDWeighting(Inverse(), n), 0.0),
}
EVERY = sorted(TABLE)
GRADIENT = sorted(n for n in TABLE if isinstance(TABLE[n].make(T), room.GradientBalancer))
GRAM = sorted(n for n in TABLE if isinstance(TABLE[n].make(T), room.GramBalancer))


def test_every_exported_balancer_is_a_row():
    exported = {
        name
        for name in registry.exports("balance")
        if isinstance(thing := getattr(room, name), type)
        and issubclass(thing, room.Balancer)
        and not thing.__abstractmethods__
    }
    assert exported == {name.split(",")[0] for name in TABLE}


class Problem:
    """A trunk and T heads; ``losses`` are always positive."""

    def __init__(self, n_tasks=T, *, seed=0, order=None, scale=1.0, dtype=torch.float64):
        g = torch.Generator().manual_seed(seed)
        order = range(n_tasks) if order is None else order

        def normal(*shape):
            return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

        self.x, self.w1, self.w2 = normal(5, 6), nn.Parameter(normal(9, 6)), nn.Parameter(normal(7, 9))
        heads, self.y = normal(n_tasks, 7), normal(n_tasks, 5)
        sizes = torch.exp(normal(n_tasks))
        self.heads = [nn.Parameter(heads[t]) for t in order]
        self.y, self.sizes, self.scale = self.y[list(order)], sizes[list(order)], scale
        self.shared = [self.w1, self.w2]

    def features(self):
        return torch.tanh(self.x @ self.w1.T) @ self.w2.T

    def losses(self, z, numbers=None):
        numbers = range(len(self.heads)) if numbers is None else numbers
        return [self.scale * self.sizes[t] * ((z @ self.heads[t] - self.y[t]).square().mean() + 0.05) for t in numbers]

    def step(self, balancer, *, vector=False, present=None, features=True, losses=None):
        for parameter in [*self.shared, *self.heads]:
            parameter.grad = None
        z = self.features()
        values = self.losses(z) if losses is None else losses(z)
        values = torch.stack(values) if vector else values
        return balancer.backward(
            values,
            self.shared,
            self.heads,
            present=present,
            features=z if features or balancer.needs_features else None,
        )

    def direction(self):
        return torch.cat([p.grad.flatten() for p in self.shared])

    def jacobian(self):
        z = self.features()
        return torch.stack(
            [torch.cat([g.flatten() for g in torch.autograd.grad(loss, self.shared, retain_graph=True)])
             for loss in self.losses(z)]
        )  # fmt: skip

    def alone(self, t):
        return torch.autograd.grad(self.losses(self.features())[t], self.heads[t])[0]


def made(name, n_tasks=T):
    return TABLE[name].make(n_tasks)


@pytest.mark.parametrize("vector", [False, True], ids=["list", "vector"])
@pytest.mark.parametrize("name", [n for n in EVERY if n != "GradDrop"])  # whose update is no weighted sum
def test_shared_parameters_get_the_weighted_sum_of_the_tasks_gradients(name, vector):
    problem = Problem()
    weights = problem.step(made(name), vector=vector)
    assert weights.shape == (T,)
    assert not weights.requires_grad
    torch.testing.assert_close(problem.direction(), weights.double() @ problem.jacobian(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", GRADIENT)
def test_heads_get_their_own_gradient(name):
    problem = Problem()
    balancer = made(name)
    weights = problem.step(balancer)
    factors = torch.ones(T)
    if name == "GradNorm":
        factors = weights
    if name == "DBMTL":
        factors = 1 / torch.stack(problem.losses(problem.features())).detach()
    for t, head in enumerate(problem.heads):
        torch.testing.assert_close(head.grad, factors[t] * problem.alone(t))


@pytest.mark.parametrize("name", [n for n in EVERY if not TABLE[n].ordered and not TABLE[n].fixed])
def test_a_permutation_of_tasks_permutes_weights_and_keeps_the_update(name):
    order = [2, 0, 3, 1]
    one, other = Problem(), Problem(order=order)
    first, second = made(name), made(name)
    for _ in range(2):
        weights, permuted = one.step(first), other.step(second)
    torch.testing.assert_close(permuted, weights[torch.tensor(order)], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(other.direction(), one.direction(), rtol=1e-6, atol=1e-8)


def test_random_orders_that_are_permuted_with_the_tasks_permute_the_weights():
    from polytask.balance.gradvac import vaccinate
    from polytask.balance.pcgrad import random_orders, surgery

    J, order = Problem().jacobian(), torch.tensor([2, 0, 3, 1])
    gram, orders = J @ J.T, random_orders(T, torch.Generator().manual_seed(0))
    moved = order.argsort()[orders[order]]
    again = gram[order][:, order]
    torch.testing.assert_close(surgery(again, moved), surgery(gram, orders)[order])
    targets = torch.rand(T, T, dtype=torch.float64) / 2
    there, _ = vaccinate(gram, targets, orders, 0.1)
    here, _ = vaccinate(again, targets[order][:, order], moved, 0.1)
    torch.testing.assert_close(here, there[order])


@pytest.mark.parametrize("c", [1e-3, 30.0])
@pytest.mark.parametrize("name", [n for n in EVERY if TABLE[n].degree is not None])
def test_scaling_all_losses_scales_the_update_as_stated(name, c):
    plain, scaled = Problem(), Problem(scale=c)
    first, second = made(name), made(name)
    for _ in range(2):
        plain.step(first)
        scaled.step(second)
    expected = c ** TABLE[name].degree * plain.direction()
    torch.testing.assert_close(scaled.direction(), expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("name", EVERY)
def test_one_task_is_trained_in_its_own_direction(name):
    problem = Problem(1)
    problem.step(made(name, 1))
    own = problem.jacobian()[0]
    assert float(torch.cosine_similarity(problem.direction(), own, 0)) == pytest.approx(1)


@pytest.mark.parametrize("name", EVERY)
def test_identical_tasks_are_trained_in_their_common_direction(name):
    problem = Problem(1)
    problem.step(made(name, 3), losses=lambda z: problem.losses(z, [0]) * 3)
    cosine = float(torch.cosine_similarity(problem.direction(), problem.jacobian()[0], 0))
    assert cosine == pytest.approx(1, abs=1e-6)


def nasty(problem, case):
    def losses(z):
        base = problem.losses(z)
        if case == "zero gradient":
            return [base[0], (z * 0).sum() + 0.5, *base[2:]]
        if case == "all zero":
            return [(z * 0).sum() + 0.5 for _ in base]
        if case == "opposite":
            return [z.sum() + 100, 100 - z.sum(), *base[2:]]
        if case == "rank one":
            return [(k + 1) * base[0] for k in range(T)]
        if case == "scales":
            return [loss * 10.0 ** (5 * k - 10) for k, loss in enumerate(base)]
        if case == "zero loss":
            return [base[0] * 0, *base[1:]]
        return [loss * 1e15 for loss in base]

    return losses


@pytest.mark.parametrize("case", ["zero gradient", "all zero", "opposite", "rank one", "scales", "zero loss", "huge"])
@pytest.mark.parametrize("name", EVERY)
def test_degenerate_gradients_give_finite_updates(name, case):
    problem = Problem()
    balancer = made(name)
    for _ in range(2):
        weights = problem.step(balancer, losses=nasty(problem, case))
        assert torch.isfinite(weights).all()
        assert torch.isfinite(problem.direction()).all()
        assert all(torch.isfinite(value.double()).all() for value in balancer.state_dict().values())


@pytest.mark.parametrize("name", GRAM)
def test_every_route_to_the_gram_matrix_gives_the_same_weights(name, monkeypatch):
    monkeypatch.setattr(base, "FEW_TASKS", 0)
    answers = []
    problem = Problem()
    with monkeypatch.context() as patch:
        patch.setattr(base, "FEW_TASKS", T)
        answers.append((problem.step(made(name)), problem.direction()))
    for level, features in (("exact", True), ("exact", False), ("tasks", True), ("tasks", False)):
        problem, balancer = Problem(), made(name)
        balancer.level = level
        answers.append((problem.step(balancer, features=features), problem.direction()))
        vector = made(name)
        vector.level = level
        answers.append((problem.step(vector, features=features, vector=True), problem.direction()))
    J = Problem().jacobian()
    fresh = made(name)
    losses = torch.stack(Problem().losses(Problem().features())).detach()
    fresh.head_weights(losses, torch.ones(T, dtype=torch.bool))
    answers.append((fresh.task_weights(J @ J.T, losses, range(T)), answers[0][1]))
    for weights, direction in answers:
        torch.testing.assert_close(weights.detach(), answers[0][0], rtol=1e-6, atol=1e-8, check_dtype=False)
        torch.testing.assert_close(direction, answers[0][1], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", GRAM)
def test_features_level_compares_gradients_of_the_representation(name):
    problem, balancer = Problem(), made(name)
    balancer.level, balancer.needs_features = "features", True
    weights = problem.step(balancer)
    z = problem.features()
    losses = problem.losses(z)
    D = torch.stack([torch.autograd.grad(loss, z, retain_graph=True)[0].flatten() for loss in losses])
    fresh, values = made(name), torch.stack(losses).detach()
    fresh.head_weights(values, torch.ones(T, dtype=torch.bool))
    torch.testing.assert_close(weights, fresh.task_weights(D @ D.T, values, range(T)).detach(), rtol=1e-6, atol=1e-8,
                               check_dtype=False)  # fmt: skip


@pytest.mark.parametrize("poison", [float("nan"), 1e30])
@pytest.mark.parametrize("name", EVERY)
def test_an_absent_task_changes_nothing(name, poison):
    """Tasks 0 and 2 of four: the update is that of a problem of these two."""
    present = torch.tensor([True, False, True, False])
    problem = Problem()

    def losses(z):
        return [loss if here else loss.detach() * poison for loss, here in zip(problem.losses(z), present, strict=True)]

    weights = problem.step(made(name), present=present, losses=losses)
    assert torch.equal(weights[~present], torch.zeros(2, dtype=weights.dtype))
    assert torch.isfinite(problem.direction()).all()
    for t in (1, 3):
        assert problem.heads[t].grad is None or not problem.heads[t].grad.any()
    if TABLE[name].ordered or name.startswith(("Fixed", "DWA", "STCH", "UWSO", "Uncertainty")):
        return  # their weights are numbered, or normalised by all T tasks
    two = Problem()
    two.heads = [two.heads[0], two.heads[2]]
    two.y, two.sizes = two.y[[0, 2]], two.sizes[[0, 2]]
    alone = two.step(made(name, 2))
    torch.testing.assert_close(weights[present], alone, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(problem.direction(), two.direction(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", EVERY)
def test_a_batch_without_any_label_changes_nothing(name):
    problem, balancer = Problem(), made(name)
    nobody = torch.zeros(T, dtype=torch.bool)
    weights = problem.step(balancer, present=nobody)
    assert not weights.any()
    for parameter in [*problem.shared, *problem.heads]:
        assert parameter.grad is None or not parameter.grad.any()
    assert torch.isfinite(problem.step(balancer)).all()


def trained(balancer, n_steps, problem, seed=0):
    """Train and return the weights of every step."""
    optimiser = torch.optim.Adam([*problem.shared, *problem.heads, *balancer.parameters()], 0.02)
    history = []
    for number in range(n_steps):
        present = torch.rand(T, generator=torch.Generator().manual_seed(seed + number)) < 0.8
        optimiser.zero_grad()
        z = problem.features()
        history.append(balancer.backward(problem.losses(z), problem.shared, problem.heads, present=present, features=z))
        optimiser.step()
        if balancer.needs_second_look:
            balancer.after_step(problem.losses(problem.features()), present=present)
        if number % 3 == 2:
            balancer.end_epoch()
    return torch.stack(history)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("name", EVERY)
def test_a_saved_state_continues_as_if_nothing_had_happened(name, every):
    problem, balancer = Problem(), made(name)
    if every > 1:
        if not isinstance(balancer, room.GramBalancer):
            return
        balancer.every = every
    trained(balancer, 7, problem)
    restored = made(name)
    if every > 1:
        restored.every = every
    restored.load_state_dict({key: value.clone() for key, value in balancer.state_dict().items()})
    twin = copy.deepcopy(problem)
    assert torch.equal(trained(balancer, 5, problem, 50), trained(restored, 5, twin, 50))


@pytest.mark.parametrize("name", EVERY)
def test_two_runs_are_equal_bit_for_bit(name):
    torch.manual_seed(0)
    one = trained(made(name), 5, Problem())
    torch.manual_seed(99)  # global state plays no role
    assert torch.equal(one, trained(made(name), 5, Problem()))


@pytest.mark.parametrize("name", EVERY)
def test_training_lowers_the_losses_in_single_precision(name):
    problem = Problem(dtype=torch.float32)
    balancer = made(name)
    before = torch.stack(problem.losses(problem.features())).detach()
    trained(balancer, 60, problem)
    after = torch.stack(problem.losses(problem.features())).detach()
    assert float((after / before).log().mean()) < 0


@pytest.mark.parametrize("name", GRAM)
def test_weights_are_refreshed_every_k_steps_and_when_a_task_is_new(name):
    problem, balancer = Problem(), made(name)
    balancer.every = 3
    calls = []
    original = balancer.task_weights
    balancer.task_weights = lambda *arguments: calls.append(1) or original(*arguments)
    first = torch.tensor([True, True, False, True])
    for present in (first, first, None, None, None, None, None):
        problem.step(balancer, present=present)
    assert len(calls) == 4  # at steps 0, 2 (task 2 is new), 3 and 6


@pytest.mark.parametrize("name", GRADIENT)
def test_a_network_that_shares_nothing_is_refused_before_the_first_step(name):
    balancer = made(name)
    assert balancer.needs_shared
    with pytest.raises(InputError, match="SoftSharing shares none"):
        balancer.check([], network="SoftSharing")
    with pytest.raises(InputError, match="shares none"):
        balancer.check([nn.Parameter(torch.zeros(2), requires_grad=False)])
    problem = Problem()
    z = problem.features()
    with pytest.raises(InputError, match="shares none"):
        balancer.backward(problem.losses(z), [], problem.heads, features=z)
    with pytest.raises(InputError, match="has 3 entries"):
        balancer.backward(problem.losses(z)[:3], problem.shared, problem.heads, features=z)


def test_a_method_at_the_features_is_refused_without_them():
    problem = Problem()
    for balancer in (room.PCGrad(T, level="features"), room.GradDrop(T)):
        with pytest.raises(InputError, match="last shared representation"):
            balancer.check(problem.shared, features=False)
        problem.step(balancer)
        with pytest.raises(InputError, match="last shared representation"):  # nor later, never silently another level
            balancer.backward(problem.losses(problem.features()), problem.shared, problem.heads)


def test_where_tasks_do_not_see_the_same_rows_that_is_told_and_not_that_the_network_has_no_trunk():
    problem = Problem()
    for balancer, instead in ((room.PCGrad(T, level="features"), 'level="exact"'), (room.GradDrop(T), "PCGrad")):
        with pytest.raises(InputError, match='with sampling="round" tasks do not see the same rows; use') as caught:
            balancer.check(problem.shared, network="HardSharing", apart='sampling="round"')
        assert instead in str(caught.value)
        assert 'or sampling="rows"' in str(caught.value)
        assert "trunk" not in str(caught.value)
    room.PCGrad(T).check(problem.shared, apart='sampling="round"')


@pytest.mark.parametrize("name", [n for n in EVERY if n not in GRADIENT])
def test_a_loss_weighting_serves_any_network(name):
    made(name).check([], features=False)


def test_a_gradient_that_is_not_finite_leaves_the_memory_clean():
    problem, balancer = Problem(), room.NashMTL(T)
    good = problem.step(balancer)
    problem.step(balancer, losses=lambda z: [loss * float("inf") for loss in problem.losses(z)])
    assert not torch.isfinite(problem.direction()).all()  # visible to a gradient scaler
    torch.testing.assert_close(problem.step(balancer), good)


def test_stacked_heads_of_copies_give_the_update_of_separate_heads():
    problem = Problem()
    weights = problem.step(room.PCGrad(T, level="features"))
    direction = problem.direction()
    stacked = nn.Parameter(torch.stack([head.detach() for head in problem.heads]))
    for parameter in problem.shared:
        parameter.grad = None
    spread = copies(problem.features(), T)
    losses = problem.sizes * (((spread.each * stacked[:, None]).sum(-1) - problem.y).square().mean(1) + 0.05)
    again = room.PCGrad(T, level="features").backward(losses, problem.shared, [stacked], features=spread)
    torch.testing.assert_close(again, weights)
    torch.testing.assert_close(problem.direction(), direction)
    torch.testing.assert_close(stacked.grad, torch.stack([head.grad for head in problem.heads]))
