"""The engine: inner products without a Jacobian equal those of the Jacobian, for every kind of layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from polytask.balance import PCGrad, copies
from polytask.balance.features import LinearHeads, through_heads
from polytask.balance.gram import TaskRows, _split, parameter_gram, reaches_around
from polytask.core.errors import InputError


def trunks():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(12, 12)

        def forward(self, x):
            return self.linear(torch.tanh(self.linear(x)))

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(12, 5, batch_first=True)

        def forward(self, x):
            return self.rnn(x.view(-1, 1, 12).expand(-1, 3, -1))[0][:, -1]

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 7))

        def forward(self, x):
            return checkpoint(self.inside, x, use_reentrant=False)

    class LeftProduct(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 12))

        def forward(self, x):
            return (self.weight @ x.T).T

    return {
        "linear": nn.Sequential(nn.Linear(12, 30), nn.ReLU(), nn.Linear(30, 20, bias=False), nn.Tanh()),
        "layer norm": nn.Sequential(nn.Linear(12, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 6)),
        "batch norm": nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 6)),
        "dropout": nn.Sequential(nn.Linear(12, 16), nn.Dropout(0.5), nn.Linear(16, 6)),
        "sequence": nn.Sequential(nn.Unflatten(1, (3, 4)), nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 5), nn.Flatten()),
        "convolution": nn.Sequential(
            nn.Unflatten(1, (3, 2, 2)), nn.Conv2d(3, 8, 2, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten()
        ),
        "strided convolution": nn.Sequential(
            nn.Unflatten(1, (3, 2, 2)),
            nn.Conv2d(3, 4, 2, stride=2, padding=1, bias=False),
            nn.Conv2d(4, 4, 2, groups=2),
            nn.Flatten(),
        ),
        "tied": Tied(),
        "recurrent": Recurrent(),
        "checkpointed": Checkpointed(),
        "left product": LeftProduct(),
    }  # fmt: skip


def seeded_trunk(name):
    torch.manual_seed(0)
    return trunks()[name].double()


def jacobian_gram(losses, parameters):
    rows = [
        torch.cat(
            [g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)]
        )
        for loss in losses
    ]
    J = torch.stack(rows)
    return J @ J.T


def losses_of(trunk, n_rows=4, n_tasks=3):
    torch.manual_seed(1)
    x = torch.randn(n_rows, 12, dtype=torch.float64)
    z = trunk(x)
    heads = torch.randn(n_tasks, z.shape[1], dtype=torch.float64)
    return z, [(torch.sin(z @ head)).square().mean() for head in heads]


@pytest.mark.parametrize("n_rows", [2, 40])
@pytest.mark.parametrize("name", trunks())
def test_ghost_products_equal_those_of_the_jacobian(name, n_rows):
    trunk = seeded_trunk(name)
    _, losses = losses_of(trunk, n_rows)
    parameters = list(trunk.parameters())
    gram = parameter_gram(losses, lambda place: None, parameters)
    torch.testing.assert_close(gram, jacobian_gram(losses, parameters), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(TaskRows(losses, lambda place: None, parameters).gram(), gram)


def test_linear_and_convolution_weights_need_no_jacobian_when_rows_are_few():
    for name in ("linear", "sequence", "convolution"):
        trunk = seeded_trunk(name)
        _, losses = losses_of(trunk, 2)
        ghosts, others = _split(losses, list(trunk.parameters()))
        weights = [p for p in trunk.parameters() if p.dim() > 1]
        assert len(ghosts) + len([p for p in others if p.dim() > 1]) == len(weights)
        assert len(ghosts) >= 1
    tied = seeded_trunk("tied")
    assert _split(losses_of(tied)[1], list(tied.parameters()))[0] == []  # two uses: not a sum of two products


def test_the_stacked_trunk_of_a_sharing_network_has_ghosts_too():
    from polytask.core.task import Regression
    from polytask.deep import HardSharing, mlp

    network = HardSharing([Regression("a"), Regression("b")], mlp(12, (32, 32)))
    z = network.features({"numeric": torch.randn(4, 12)})
    ghosts, _ = _split([z], network.shared_parameters())
    assert len(ghosts) == 2


@pytest.mark.parametrize("level", ["exact", "tasks"])
def test_a_compiled_trunk_works(level):
    trunk = seeded_trunk("linear")
    compiled = torch.compile(trunk, backend="aot_eager")
    torch.manual_seed(1)
    x = torch.randn(4, 12, dtype=torch.float64)
    grams = []
    for forward in (compiled, trunk):
        z = forward(x)
        losses = [z[:, t].square().mean() for t in range(3)]
        parameters = list(trunk.parameters())
        rows = TaskRows(losses, lambda place: None, parameters)
        grams.append(rows.gram() if level == "tasks" else parameter_gram(losses, lambda place: None, parameters))
    torch.testing.assert_close(*grams)


def test_parameters_that_are_frozen_or_not_reached_count_for_nothing():
    trunk = seeded_trunk("linear")
    _, losses = losses_of(trunk)
    reached = list(trunk.parameters())
    stray = nn.Parameter(torch.randn(3, 3, dtype=torch.float64))
    frozen = nn.Parameter(torch.randn(3, 3), requires_grad=False)
    gram = parameter_gram(losses, lambda place: None, [*reached, stray, frozen])
    torch.testing.assert_close(gram, jacobian_gram(losses, reached))


def test_low_precision_activations_are_compared_in_float32():
    trunk = seeded_trunk("linear").float()
    x = torch.randn(4, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = trunk(x)
        losses = [z[:, t].float().square().mean() for t in range(3)]
    gram = parameter_gram(losses, lambda place: None, list(trunk.parameters()))
    assert gram.dtype == torch.float32
    torch.testing.assert_close(gram, jacobian_gram(losses, list(trunk.parameters())), rtol=3e-2, atol=1e-3)


# the representation -------------------------------------------------------------------------------------------------


def heads_of(kind, z, n_outputs):
    torch.manual_seed(2)
    T, h = 5, z.shape[1]
    W = nn.Parameter(torch.randn(T, h, n_outputs, dtype=torch.float64))
    y = torch.randn(T, len(z), n_outputs, dtype=torch.float64)
    if kind == "copies":
        spread = copies(z, T)
        return spread, (torch.bmm(spread.each, W) - y).square().mean((1, 2)), [W]
    if kind == "linear":
        scores = torch.einsum("bh,thk->tbk", z, W)
        return LinearHeads(z, scores, W), (scores - y).square().mean((1, 2)), [W]
    if kind == "vector":
        return z, (torch.einsum("bh,thk->tbk", z, W) - y).square().mean((1, 2)), [W]
    parts = [nn.Parameter(w.detach().clone()) for w in W]
    return z, [(z @ part - y[t]).square().mean() for t, part in enumerate(parts)], parts


@pytest.mark.parametrize("n_outputs", [1, 3, 40])
@pytest.mark.parametrize("kind", ["copies", "linear", "vector", "list"])
@pytest.mark.parametrize("tasks", [[0, 1, 2, 3, 4], [1, 3, 4], [2]])
def test_one_pass_through_the_heads_gives_every_tasks_gradient(kind, n_outputs, tasks):
    trunk = seeded_trunk("linear")
    z, _ = losses_of(trunk)
    features, losses, private = heads_of(kind, z, n_outputs)
    factors = torch.rand(len(tasks), dtype=torch.float64) + 0.5
    found, own = through_heads(losses, tasks, features, private, factors)
    D = torch.stack([torch.autograd.grad(losses[t], z, retain_graph=True)[0] for t in tasks])
    torch.testing.assert_close(torch.stack([found.row(place) for place in range(len(tasks))]), D)
    torch.testing.assert_close(found.gram(), D.flatten(1) @ D.flatten(1).T)
    weights = torch.randn(len(tasks), dtype=torch.float64)
    torch.testing.assert_close(found.combined(weights), torch.einsum("t,tbh->bh", weights, D))
    per_row, per_task = torch.randn_like(z), torch.randn(len(tasks), z.shape[1], dtype=torch.float64)
    torch.testing.assert_close(found.over_rows(per_row.detach()), torch.einsum("bh,tbh->th", per_row, D))
    torch.testing.assert_close(found.over_tasks(per_task), torch.einsum("th,tbh->bh", per_task, D))
    expected = torch.autograd.grad(
        sum(f * losses[t] for f, t in zip(factors, tasks, strict=True)), private, allow_unused=True
    )
    for ours, theirs in zip(own, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs)


def test_shared_parameters_behind_the_representation_are_noticed():
    trunk = seeded_trunk("linear")
    late = nn.Linear(20, 1).double()
    z, _ = losses_of(trunk)
    losses = [late(z).mean(), z.square().mean()]
    assert not reaches_around(losses, z, list(trunk.parameters()))
    assert reaches_around(losses, z, [*trunk.parameters(), *late.parameters()])
    with pytest.raises(InputError, match="around the tensor given"):
        PCGrad(2, level="features").backward(losses, [*trunk.parameters(), *late.parameters()], [], features=z)


def test_a_representation_the_losses_do_not_use_is_refused():
    z = torch.randn(3, 4, requires_grad=True) * 2
    with pytest.raises(InputError, match="do not depend"):
        through_heads(torch.ones(2, requires_grad=True) * 1, [0, 1], copies(z, 2), [], None)


def test_linear_heads_of_the_wrong_shape_are_refused():
    with pytest.raises(InputError, match=r"\(T, h, K\)"):
        LinearHeads(torch.zeros(3, 4), torch.zeros(2, 3, 1), torch.zeros(2, 1, 4))


@pytest.mark.parametrize(
    ("level", "kind"),
    [(level, kind) for level in ("features", "exact", "tasks") for kind in ("copies", "linear", "vector", "list")]
    + [("exact", "none"), ("tasks", "none")],
)
def test_hooks_of_parameters_see_one_finished_gradient(level, kind):
    """What distributed training relies on: each parameter's gradient arrives once, in one backward pass."""
    trunk = seeded_trunk("linear")
    z, _ = losses_of(trunk)
    features, losses, private = heads_of("vector" if kind == "none" else kind, z, 1)
    arrived = {}
    everything = [*trunk.parameters(), *private]
    for parameter in everything:
        parameter.register_post_accumulate_grad_hook(
            lambda p: arrived.__setitem__(id(p), [*arrived.get(id(p), []), p.grad.clone()])
        )
    balancer = PCGrad(5, level=level)
    weights = balancer.backward(
        losses, list(trunk.parameters()), private, features=None if kind == "none" else features
    )
    assert [len(arrived[id(p)]) for p in everything] == [1] * len(everything)
    torch.testing.assert_close([arrived[id(p)][0] for p in trunk.parameters()], alone(kind, weights)[0])
    torch.testing.assert_close([p.grad for p in private], alone(kind, weights)[1])


def alone(kind, weights):
    """Return the weighted gradients of the trunk and the unweighted ones of the heads, by plain differentiation."""
    trunk = seeded_trunk("linear")
    z, _ = losses_of(trunk)
    _, losses, private = heads_of("vector" if kind == "none" else kind, z, 1)
    weighted = sum(w * loss for w, loss in zip(weights, losses, strict=True))
    shared = torch.autograd.grad(weighted, list(trunk.parameters()), retain_graph=True)
    return list(shared), list(torch.autograd.grad(sum(losses), private))


def test_functional_layers_count_as_the_modules_do():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(8, 12, dtype=torch.float64))
    x = torch.randn(3, 12, dtype=torch.float64)
    z = functional.linear(x, weight)
    losses = [z[:, t].square().mean() for t in range(3)]
    ghosts, _ = _split(losses, [weight])
    assert len(ghosts) == 1
    torch.testing.assert_close(parameter_gram(losses, lambda p: None, [weight]), jacobian_gram(losses, [weight]))


@pytest.mark.parametrize("level", ["features", "exact"])
def test_the_networks_of_the_package_name_their_representation(level):
    """Tasks of unequal width, a trunk of branches, stacked heads: the update is the weighted sum all the same."""
    from polytask.core.task import Binary, Multiclass, Regression
    from polytask.deep import HardSharing, MultiTaskLoss, mlp

    tasks = [Regression("a"), Multiclass("b", (), ("x", "y", "z")), Binary("c", (), ("n", "y"))] * 2
    network, measure = HardSharing(tasks, mlp(12, (16, 32))), MultiTaskLoss(tasks)
    g = torch.Generator().manual_seed(0)
    inputs = {"numeric": torch.randn(8, 12, generator=g)}
    targets = torch.randint(2, (6, 8), generator=g).float()
    here = torch.rand(6, 8, generator=g) < 0.7
    here[4] = False

    def losses_and_features():
        z = network.features(inputs)
        scores = network.heads(z)
        (weight,) = [p for p in network.heads.parameters() if p.dim() == 3]
        return measure(scores, targets, here), LinearHeads(z, scores, weight)

    shared = network.shared_parameters()
    private = [p for p in network.parameters() if all(p is not s for s in shared)]
    losses, features = losses_and_features()
    weights = PCGrad(6, level=level, seed=1).backward(losses, shared, private, present=here.any(1), features=features)
    assert weights[4] == 0
    again, _ = losses_and_features()
    expected = torch.autograd.grad((weights * again).sum(), shared, retain_graph=True)
    torch.testing.assert_close([p.grad for p in shared], list(expected), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close([p.grad for p in private], list(torch.autograd.grad(again.sum(), private)))
