"""Sluice networks: their special cases, a loop over towers, and the orthogonality of subspaces."""

import pytest
import torch
from tests.deep.networks import MIXED, encoder, labels, table
from tests.deep.test_cross_stitch import images, total_loss, towers
from tests.deep.test_networks import train

from polytask.core.errors import InputError
from polytask.core.task import Regression
from polytask.deep import CrossStitch, HardSharing, SingleTask, Sluice

ROWS = 9
T = len(MIXED)


def sluice(tasks=MIXED, widths=(8, 8), seed=0, **options):
    options = {"identical": False, **options}
    return Sluice(tasks, encoder(widths, norm="layer"), seed=seed, **options).double()


def scattered(**options):
    """A network whose weights α and β are arbitrary."""
    network = sluice(**options)
    generator = torch.Generator().manual_seed(8)
    for weight in network.mixing_parameters():
        weight.data += torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    return network


def read_only(network, layers):
    """Let task t read layer ``layers[t]`` only."""
    network.layer_weights.data.zero_()
    network.layer_weights.data[torch.arange(len(layers)), torch.tensor(layers)] = 1


def mixture(weights, parts):
    return sum(weights[s, b] * part for s, tower in enumerate(parts) for b, part in enumerate(tower))


def loop(network, inputs):
    """The network written out, one subspace after the other."""
    n, plain = network.subspaces, towers(network)
    x, layers = [inputs] * len(plain), []
    for k, name in enumerate(network.encoder.names):
        x = [stages[k](value) for (stages, _), value in zip(plain, x, strict=True)]
        if name in network.mixing:
            alpha, parts = network.mixing[name], [value.chunk(n, dim=-1) for value in x]
            x = [torch.cat([mixture(alpha[t, a], parts) for a in range(n)], -1) for t in range(len(x))]
        if name in network.layers:
            maps = network.projections
            layers.append([maps[name].copy(t)(v) if name in maps else v for t, v in enumerate(x)])
    beta = network.layer_weights
    features = [sum(beta[t, k] * layer[t] for k, layer in enumerate(layers)) for t in range(len(plain))]
    return torch.stack([head(value) for (_, head), value in zip(plain, features, strict=True)])


@pytest.mark.parametrize(
    ("widths", "options"),
    [((8, 8), {}), ((8, 6), {"subspaces": 1}), ((6, 9), {"subspaces": 3}), ((8, 8), {"stages": ["layer1"]})],
)
def test_scores_and_gradients_of_mixing_weights_equal_those_of_a_loop(widths, options):
    network, inputs = scattered(widths=widths, **options), table(ROWS)
    scores, looped = network.all_scores(inputs), loop(network, inputs)
    torch.testing.assert_close(scores, looped, rtol=0, atol=1e-12)
    pull = torch.randn(scores.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * (looped != 0)
    weights = network.mixing_parameters()
    for one, two in zip(
        torch.autograd.grad(scores, weights, pull), torch.autograd.grad(looped, weights, pull), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-10)


def test_without_exchange_reading_the_last_layer_it_is_the_single_task_networks_bit_for_bit():
    network, single = (
        sluice(own_weight=1.0, last_weight=1.0),
        SingleTask(MIXED, encoder((8, 8), norm="layer"), identical=False).double(),
    )
    inputs, targets = table(ROWS), labels(MIXED, ROWS)
    for each in (network, single):
        total_loss(each, inputs, targets).backward()
    assert network.all_scores(inputs).equal(single.all_scores(inputs))
    for name, value in single.named_parameters():
        assert network.get_parameter(name).grad.equal(value.grad), name


def test_mixing_whose_subspaces_are_tied_is_a_cross_stitch_network():
    stitch = CrossStitch(MIXED, encoder((8, 8), norm="layer"), identical=False).double()
    network = sluice()
    read_only(network, [1] * T)
    for name, alpha in stitch.mixing.items():
        alpha.data += torch.randn(alpha.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        network.mixing[name].data.copy_(torch.einsum("ts,ab->tasb", alpha, torch.eye(2, dtype=torch.float64)))
    inputs, targets = table(ROWS), labels(MIXED, ROWS)
    torch.testing.assert_close(network.all_scores(inputs), stitch.all_scores(inputs), rtol=0, atol=1e-13)
    for each in (network, stitch):
        total_loss(each, inputs, targets).backward()
    for name, weight in stitch.encoder.named_parameters():
        torch.testing.assert_close(network.encoder.get_parameter(name).grad, weight.grad, rtol=0, atol=1e-12)


def hard_like(**options):
    """Equal towers, every mixture the mean of the same subspace of all towers."""
    network = sluice(identical=True, **options)
    for alpha in network.mixing.values():
        alpha.data.copy_(torch.eye(2)[None, :, None, :].expand_as(alpha) / T)
    return network


def test_equal_towers_mixed_evenly_are_hard_sharing():
    network = hard_like()
    read_only(network, [1] * T)
    shared = HardSharing(MIXED, encoder((8, 8), norm="layer")).double()
    shared.heads.load_state_dict(network.heads.state_dict())
    inputs, targets = table(ROWS), labels(MIXED, ROWS)
    torch.testing.assert_close(network.all_scores(inputs), shared.all_scores(inputs), rtol=0, atol=1e-7)
    for each in (network, shared):
        total_loss(each, inputs, targets).backward()
    for name, weight in shared.trunk.named_parameters():
        summed = network.encoder.get_parameter(name).grad.sum(0, keepdim=True)
        torch.testing.assert_close(summed, weight.grad, rtol=0, atol=1e-6)


def test_equal_towers_mixed_evenly_read_at_different_layers_are_low_supervision():
    levels = [0, 1, 1, 0, 1]
    network, inputs = hard_like(), table(ROWS)
    read_only(network, levels)
    x, layers = inputs, []
    for name in network.encoder.names:
        x = network.encoder.stages[name].copy(0)(x)
        layers.append(x)
    features = torch.stack([layers[1 + level] for level in levels])
    torch.testing.assert_close(network.all_scores(inputs), network.heads(features, own=True), rtol=0, atol=1e-7)


def test_layers_read_evenly_without_exchange_are_the_mean_of_each_towers_layers():
    network, inputs = sluice(own_weight=1.0, last_weight=0.5), table(ROWS)
    single = SingleTask(MIXED, encoder((8, 8), norm="layer"), identical=False).double()
    first, _ = single.encoder.run_stage("layer1", inputs["numeric"])
    mean = (first + single.encoder(inputs)) / 2
    torch.testing.assert_close(network.all_scores(inputs), network.heads(mean, own=True), rtol=0, atol=1e-13)


def test_a_subspace_that_is_not_exchanged_stays_private():
    """The second subspaces do not reach other towers: their gradients come from the own task alone."""
    tasks = (Regression("a"), Regression("b"))
    network = Sluice(tasks, encoder((8, 8)), stages=["layer1"], own_weight=1.0, last_weight=0.0).double()
    network.mixing["layer1"].data[:, 0, :, 0] = 0.5
    scores = network.all_scores(table(ROWS))
    (reached,) = torch.autograd.grad(scores[0].sum(), network.encoder.stages["layer1"].weights["0.weight"])
    assert (reached[1, :, :4] != 0).any()
    assert (reached[1, :, 4:] == 0).all()
    assert (reached[0, :, 4:] != 0).any()


def test_with_one_task_nothing_is_added():
    network = sluice(MIXED[:1])
    assert dict(network.mixing) == {}
    assert network.layer_weights is None
    assert network.relations() == {}
    assert network.shared_parameters() == []


def test_two_subspaces_add_four_weights_per_layer_and_pair_of_tasks_and_one_per_layer_and_task():
    network, single = sluice(), SingleTask(MIXED, encoder((8, 8), norm="layer"))
    count = sum(p.numel() for p in network.parameters()) - sum(p.numel() for p in single.parameters())
    assert count == 4 * 2 * T**2 + 2 * T
    assert set(sluice(widths=(8, 6)).projections) == {"layer1"}


def test_weights_start_as_asked_and_have_their_own_rate_and_no_decay():
    network = sluice(own_weight=0.55, last_weight=0.8, mixing_rate=30.0)
    alpha = network.mixing["layer1"].flatten(0, 1).flatten(1)
    torch.testing.assert_close(alpha.diagonal(), torch.full((2 * T,), 0.55).double())
    torch.testing.assert_close(alpha.sum(1), torch.ones(2 * T, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(network.layer_weights, torch.tensor([[0.2, 0.8]] * T).double())
    towers, mixing = network.parameter_groups()
    assert [id(p) for p in mixing.parameters] == [id(p) for p in network.mixing_parameters()]
    assert (mixing.learning_rate_scale, mixing.weight_decay) == (30.0, False)
    assert (towers.learning_rate_scale, towers.weight_decay) == (1.0, True)


def test_starting_from_trained_networks_without_exchange_reproduces_them():
    inputs, targets = table(ROWS), labels(MIXED, ROWS)
    trained = train(SingleTask(MIXED, encoder((8, 6))).double(), MIXED, inputs, targets, steps=2)
    network = Sluice.from_single_task(trained, own_weight=1.0, last_weight=1.0)
    assert network.all_scores(inputs).equal(trained.all_scores(inputs))


def test_permuting_the_tasks_of_a_trained_network_permutes_its_scores():
    order = [3, 0, 4, 1, 2]
    inputs, targets = table(ROWS), labels(MIXED, ROWS)
    permuted = tuple(MIXED[t] for t in order)
    one, two = (
        train(sluice(tasks, identical=True, orthogonality=0.1), tasks, inputs, y, steps=3)
        for tasks, y in [(MIXED, targets), (permuted, targets[order])]
    )
    torch.testing.assert_close(two.all_scores(inputs), one.all_scores(inputs)[order], rtol=0, atol=1e-10)


def test_relations_are_the_weights_of_subspaces_and_of_layers():
    network = scattered()
    relations = network.relations()
    assert list(relations) == ["mixing_layer1", "mixing_layer2", "layers"]
    assert relations["mixing_layer1"].rows[:3] == ("price [1]", "price [2]", "sold [1]")
    assert relations["mixing_layer1"].values[2, 1] == network.mixing["layer1"][1, 0, 0, 1].item()
    assert relations["layers"].rows == tuple(task.name for task in MIXED)
    assert relations["layers"].columns == ("layer1", "layer2")
    assert relations["layers"].values[3, 0] == network.layer_weights[3, 0].item()


# -- orthogonality ---------------------------------------------------------------------------------


def written_out(network):
    """The penalty on weights in autograd, from its formula."""
    total = torch.zeros((), dtype=torch.float64)
    for site in network.sites:
        W = network.encoder.stages[site].weights["0.weight"]
        for G in W:
            parts = G.chunk(network.subspaces, dim=1)
            for s in range(len(parts)):
                for v in range(s):
                    cross = (parts[s].T @ parts[v]).square().sum()
                    total = total + cross / (parts[0].shape[1] ** 2 if network.normalise else 1)
    return network.orthogonality * total


@pytest.mark.parametrize("options", [{}, {"normalise": False}, {"subspaces": 4}, {"stages": ["layer2"]}])
def test_the_penalty_on_weights_and_its_closed_form_gradient_are_those_of_autograd(options):
    network = sluice(orthogonality=0.7, **options)
    expected = written_out(network)
    assert network.penalty().item() == pytest.approx(expected.item(), rel=1e-12)
    network.penalty_gradient()
    weights = [network.encoder.stages[site].weights["0.weight"] for site in network.sites]
    for weight, gradient in zip(weights, torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=0, atol=1e-12)
    network.penalty_gradient()
    torch.testing.assert_close(weights[0].grad, 2 * torch.autograd.grad(written_out(network), weights[0])[0])


def test_orthogonal_halves_have_no_penalty_and_equal_orthonormal_halves_that_of_the_identity():
    network = sluice(widths=(8, 8), stages=["layer2"], orthogonality=0.5, normalise=False)
    weight = network.encoder.stages["layer2"].weights["0.weight"]
    basis = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    weight.data.copy_(basis)
    assert network.penalty().item() < 1e-28
    weight.data[:, :, 4:] = weight.data[:, :, :4]
    assert network.penalty().item() == pytest.approx(T * 0.5 * 4, rel=1e-12)
    network.penalty_gradient()
    first, second = basis[:, :4], basis[:, :4]
    torch.testing.assert_close(weight.grad[0, :, :4], 0.5 * 2 * second @ (second.T @ first), rtol=0, atol=1e-12)


def test_the_penalty_on_kernels_is_that_of_their_units():
    network = images(Sluice, orthogonality=0.3)
    total = torch.zeros((), dtype=torch.float64)
    weights = [network.encoder.stages[site].weights["0.weight"] for site in network.sites]
    for W in weights:
        for kernels in W:
            first, second = kernels.flatten(1).chunk(2)
            total = total + (first @ second.T).square().sum() / len(first) ** 2
    assert network.penalty().item() == pytest.approx(0.3 * total.item(), rel=1e-12)
    network.penalty_gradient()
    for weight, gradient in zip(weights, torch.autograd.grad(0.3 * total, weights), strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("own", [False, True])
def test_the_penalty_on_activations_and_its_gradient_are_those_of_autograd(own):
    network = scattered(orthogonality=0.7, on="activations")
    inputs = table(*((T, ROWS) if own else (ROWS,)))
    network.all_scores(inputs, own)
    network.penalty_gradient()
    rows = {"numeric": inputs["numeric"].reshape(-1, 3)} if own else inputs
    x, total = [rows] * T, torch.zeros((), dtype=torch.float64)
    parameters = dict(network.named_parameters())
    values = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
    twin = scattered(orthogonality=0.7, on="activations")
    outputs = []
    twin._outputs = outputs
    torch.func.functional_call(_Reads(twin), {f"network.{k}": v for k, v in values.items()}, (rows,))
    for x in outputs:
        for h in x:
            first, second = h.chunk(2, dim=1)
            total = total + 0.7 * (first.T @ second / len(h)).square().sum() / 16
    assert network.penalty().item() == pytest.approx(total.item(), rel=1e-6)  # kept in float32
    total.backward()
    for name, value in values.items():
        grad = parameters[name].grad
        expected = torch.zeros_like(value) if value.grad is None else value.grad
        torch.testing.assert_close(torch.zeros_like(value) if grad is None else grad, expected, rtol=0, atol=1e-12)


class _Reads(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, inputs):
        return self.network.read(inputs, False, None, ())


def test_a_trained_penalty_makes_subspaces_more_orthogonal():
    inputs, targets = table(ROWS), labels(MIXED, ROWS)
    for on in ("weights", "activations"):
        none, some = (
            train(sluice(orthogonality=strength, on=on, normalise=False), MIXED, inputs, targets, steps=4, lr=0.02)
            for strength in (1e-9, 10.0)
        )
        assert some.penalty().item() / 10.0 < 0.9 * none.penalty().item() / 1e-9


def test_without_strength_there_is_no_penalty():
    network = sluice()
    network.all_scores(table(ROWS))
    network.penalty_gradient()
    assert network.penalty() == 0
    assert all(parameter.grad is None for parameter in network.parameters())
    fresh = sluice(orthogonality=1.0, on="activations")
    fresh.penalty_gradient()
    assert fresh.penalty() == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"subspaces": 3}, "subspaces is 3 but stage"),
        ({"subspaces": 0}, "subspaces is 0"),
        ({"subspaces": 1, "orthogonality": 0.1}, "it needs at least 2"),
        ({"own_weight": -0.1}, "own_weight is -0.1"),
        ({"last_weight": 2.0}, "last_weight is 2.0"),
        ({"orthogonality": -1.0}, "orthogonality is -1.0"),
        ({"on": "weight"}, 'Did you mean "weights"'),
        ({"stages": ["layer9"]}, "unknown stage"),
    ],
)
def test_impossible_settings_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        sluice(**options)
