"""Cross-stitch networks against separate towers, a loop over towers and their limiting cases."""

import pytest
import torch
from tests.deep.networks import CARDINALITIES, MIXED, encoder, labels, table
from tests.deep.test_networks import train
from torch import nn
from torch.autograd import gradcheck

from polytask.core.errors import InputError
from polytask.core.task import Regression
from polytask.deep import CrossStitch, Encoder, HardSharing, MultiTaskLoss, SingleTask, TensorInput
from polytask.deep.mixing import mix, mix_channels, mix_own_rows, weighted_sum

ROWS = 9
T = len(MIXED)
GRANULARITIES = ["layer", "channel"]


def stitch(tasks=MIXED, seed=0, **options):
    options = {"identical": False, "granularity": "layer", **options}
    return CrossStitch(tasks, encoder(norm="layer"), seed=seed, **options).double()


def scattered(**options):
    """A network whose mixing weights are arbitrary."""
    network = stitch(**options)
    generator = torch.Generator().manual_seed(8)
    for alpha in network.mixing.values():
        alpha.data += torch.randn(alpha.shape, generator=generator, dtype=torch.float64)
    return network


def total_loss(network, inputs, targets):
    return MultiTaskLoss(MIXED)(network.all_scores(inputs), targets, torch.ones_like(targets, dtype=torch.bool)).sum()


def towers(network):
    """The stages of each task's tower and its head, as plain modules that own the network's weights' values."""
    return [
        ([network.encoder.stages[name].copy(t) for name in network.encoder.names], network.heads.linear.copy(t))
        for t in range(len(network.tasks))
    ]


def loop(network, plain, alphas, rows):
    """Cross-stitch written out: one tower after the other, one product of number and feature after the other."""
    x = [rows] * len(plain)
    for k, name in enumerate(network.encoder.names):
        x = [stages[k](value) for (stages, _), value in zip(plain, x, strict=True)]
        if name in alphas:
            x = [sum(alphas[name][t, s] * x[s] for s in range(len(x))) for t in range(len(x))]
    return [head(value) for (_, head), value in zip(plain, x, strict=True)]


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("stages", [None, ["layer1"], ["layer2"], ["input", "layer2"]])
def test_scores_and_gradients_equal_those_of_a_loop_over_towers(granularity, stages):
    network = scattered(granularity=granularity, stages=stages)
    plain, inputs, targets = towers(network), table(ROWS), labels(MIXED, ROWS)
    alphas = {name: alpha.detach().clone().requires_grad_() for name, alpha in network.mixing.items()}
    looped = torch.stack(loop(network, plain, alphas, inputs))
    scores = network.all_scores(inputs)
    torch.testing.assert_close(scores, looped, rtol=0, atol=1e-12)
    total_loss(network, inputs, targets).backward()
    MultiTaskLoss(MIXED)(looped, targets, torch.ones_like(targets, dtype=torch.bool)).sum().backward()
    for name, alpha in alphas.items():
        torch.testing.assert_close(network.mixing[name].grad, alpha.grad, rtol=0, atol=1e-10)
    for t, (stages_of, head) in enumerate(plain):
        for k, name in enumerate(network.encoder.names):
            own = network.encoder.stages[name].weights
            for weight, value in stages_of[k].named_parameters():
                expected = value.grad.T if value.dim() == 2 else value.grad
                torch.testing.assert_close(own[weight].grad[t], expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(network.heads.linear.weights["weight"].grad[t], head.weight.grad.T)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_identity_mixing_is_the_single_task_networks_bit_for_bit_in_scores_and_gradients(granularity):
    network, single = (
        stitch(own_weight=1.0, granularity=granularity),
        SingleTask(MIXED, encoder(norm="layer"), identical=False).double(),
    )
    inputs, targets = table(ROWS), labels(MIXED, ROWS)
    for each in (network, single):
        MultiTaskLoss(MIXED)(
            each.all_scores(inputs), targets, torch.ones_like(targets, dtype=torch.bool)
        ).sum().backward()
    assert network.all_scores(inputs).equal(single.all_scores(inputs))
    for name, value in single.named_parameters():
        assert network.get_parameter(name).grad.equal(value.grad), name


def test_training_with_fixed_identity_mixing_is_single_task_training():
    network, inputs, targets = stitch(own_weight=1.0), table(ROWS), labels(MIXED, ROWS)
    network.mixing.requires_grad_(False)
    single = SingleTask(MIXED, encoder(norm="layer"), identical=False).double()
    assert (
        train(network, MIXED, inputs, targets)
        .all_scores(inputs)
        .equal(train(single, MIXED, inputs, targets).all_scores(inputs))
    )


def test_uniform_mixing_of_equal_towers_is_one_shared_encoder():
    network = stitch(identical=True)
    for alpha in network.mixing.values():
        alpha.data.fill_(1 / T)
    shared = HardSharing(MIXED, encoder(norm="layer")).double()
    shared.heads.load_state_dict(network.heads.state_dict())
    inputs = table(ROWS)
    torch.testing.assert_close(network.all_scores(inputs), shared.all_scores(inputs), rtol=0, atol=1e-13)
    targets = labels(MIXED, ROWS)
    for each in (network, shared):
        MultiTaskLoss(MIXED)(
            each.all_scores(inputs), targets, torch.ones_like(targets, dtype=torch.bool)
        ).sum().backward()
    for name, weight in shared.trunk.named_parameters():
        summed = network.encoder.get_parameter(name).grad.sum(0, keepdim=True)
        torch.testing.assert_close(summed, weight.grad, rtol=0, atol=1e-12)
        for gradient in network.encoder.get_parameter(name).grad:  # the towers stay equal
            torch.testing.assert_close(T * gradient[None], weight.grad, rtol=0, atol=1e-12)


def test_exchanging_mixing_weights_exchange_the_towers():
    tasks = (Regression("a"), Regression("b"))
    network, single = stitch(tasks, own_weight=0.0, stages=["layer2"]), stitch(tasks, own_weight=1.0)
    inputs = table(ROWS)
    features = single.encoder(inputs)
    exchanged = network.heads(features[[1, 0]], own=True)
    torch.testing.assert_close(network.all_scores(inputs), exchanged, rtol=0, atol=0)


def test_units_per_channel_with_equal_weights_are_units_per_layer():
    layer, channel = scattered(), stitch(granularity="channel")
    for name, alpha in channel.mixing.items():
        alpha.data.copy_(layer.mixing[name].unsqueeze(-1).expand_as(alpha))
    inputs = table(T, ROWS)
    for own in (False, True):
        rows = inputs if own else table(ROWS)
        torch.testing.assert_close(channel.all_scores(rows, own), layer.all_scores(rows, own), rtol=0, atol=1e-12)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_permuting_the_tasks_of_a_trained_network_permutes_its_scores(granularity):
    order = [3, 0, 4, 1, 2]
    inputs, targets = table(ROWS), labels(MIXED, ROWS)
    permuted = tuple(MIXED[t] for t in order)
    one, two = (
        train(stitch(tasks, identical=True, granularity=granularity), tasks, inputs, y)
        for tasks, y in [(MIXED, targets), (permuted, targets[order])]
    )
    torch.testing.assert_close(two.all_scores(inputs), one.all_scores(inputs)[order], rtol=0, atol=1e-10)
    torch.testing.assert_close(two.mixing["layer1"], one.mixing["layer1"][order][:, order], rtol=0, atol=1e-10)


def test_starting_from_trained_networks_without_exchange_reproduces_them():
    inputs, targets = table(ROWS), labels(MIXED, ROWS)
    trained = train(SingleTask(MIXED, encoder(norm="batch", dropout=0.2)).double(), MIXED, inputs, targets).eval()
    network = CrossStitch.from_single_task(trained, own_weight=1.0)
    assert network.all_scores(inputs).equal(trained.all_scores(inputs))
    exchanging = CrossStitch.from_single_task(trained, granularity="channel", own_weight=0.5, stages=["layer1"])
    assert exchanging.mixing["layer1"].shape == (T, T, 8)
    assert not exchanging.all_scores(inputs).equal(trained.all_scores(inputs))
    before = trained.all_scores(inputs)
    train(network.train(), MIXED, inputs, targets)
    assert trained.all_scores(inputs).equal(before)


def test_mixing_weights_start_convex_and_have_their_own_rate_and_no_decay():
    network = stitch(own_weight=0.7, mixing_rate=30.0)
    alpha = network.mixing["layer1"]
    torch.testing.assert_close(alpha.diagonal(), torch.full((T,), 0.7, dtype=torch.float32).double())
    torch.testing.assert_close(alpha.sum(1), torch.ones(T, dtype=torch.float64), rtol=0, atol=1e-6)
    towers, mixing = network.parameter_groups()
    assert [id(p) for p in mixing.parameters] == [id(p) for p in network.mixing.values()]
    assert (mixing.learning_rate_scale, mixing.weight_decay) == (30.0, False)
    assert (towers.learning_rate_scale, towers.weight_decay) == (1.0, True)


def test_relations_are_the_mixing_weights_of_each_stage():
    network = scattered()
    relations = network.relations()
    assert list(relations) == ["mixing_layer1", "mixing_layer2"]
    names = tuple(task.name for task in MIXED)
    for site, alpha in network.mixing.items():
        found = relations[f"mixing_{site}"]
        assert found.rows == found.columns == names
        torch.testing.assert_close(torch.from_numpy(found.values), alpha.detach())
    per_channel = scattered(granularity="channel")
    torch.testing.assert_close(
        torch.from_numpy(per_channel.relations()["mixing_layer1"].values),
        per_channel.mixing["layer1"].mean(-1).detach(),
    )


def test_towers_after_the_last_unit_belong_to_one_task():
    network = stitch(stages=["layer1"])
    shared = {id(p) for p in network.shared_parameters()}
    assert shared == {id(p) for p in network.encoder.stages["layer1"].parameters()}
    assert stitch(MIXED[:1]).shared_parameters() == []
    assert dict(stitch(MIXED[:1]).mixing) == {}


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_embedded_inputs_can_be_mixed_too(granularity):
    network = CrossStitch(
        MIXED, encoder(cardinalities=CARDINALITIES), stages=["input"], granularity=granularity, own_weight=1 / T
    ).double()
    equal = CrossStitch(MIXED, encoder(cardinalities=CARDINALITIES), stages=[]).double()
    inputs = table(ROWS, categorical=True)
    torch.testing.assert_close(network.all_scores(inputs), equal.all_scores(inputs), rtol=0, atol=1e-7)


def images(network_of, **options):
    stages = {
        "conv1": nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        "conv2": nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()),
    }
    start = {"input": TensorInput("image"), **stages}
    plain = Encoder(start, n_features=6, channels={"input": 2, "conv1": 4, "conv2": 6})
    return network_of(MIXED, plain, identical=False, **options).double()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_convolutions_are_mixed_at_every_position_alike(granularity):
    network = images(CrossStitch, granularity=granularity)
    for alpha in network.mixing.values():
        alpha.data += torch.randn(alpha.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    pictures = torch.randn(ROWS, 2, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = [pictures] * T
    for name in ("conv1", "conv2"):
        x = [network.encoder.stages[name].copy(t)(x[t]) for t in range(T)]
        alpha = network.mixing[name].detach()
        alpha = alpha if granularity == "channel" else alpha.unsqueeze(-1)
        x = [sum(alpha[t, s][:, None, None] * x[s] for s in range(T)) for t in range(T)]
    expected = torch.stack([network.heads.linear.copy(t)(x[t].mean((2, 3))) for t in range(T)])
    torch.testing.assert_close(network.all_scores({"image": pictures}), expected, rtol=0, atol=1e-12)
    own = torch.randn(2, ROWS, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scores = network.all_scores({"image": own}, own_rows=True, only=[3, 1])
    for place, t in enumerate([3, 1]):
        alone = network.all_scores({"image": own[place]})[t]
        torch.testing.assert_close(scores[place], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rows_first", [False, True])
@pytest.mark.parametrize("n_parts", [1, 2])
@pytest.mark.parametrize(("shape", "axis"), [((3, 5, 4), 1), ((3, 5, 4, 2, 2), 1), ((3, 5, 2, 4), -1)])
def test_mixtures_are_their_formula_in_every_layout_whole_and_in_parts(shape, axis, n_parts, rows_first, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = (x.transpose(0, 1).contiguous().transpose(0, 1) if rows_first else x).requires_grad_()
    weight = torch.randn(2, n_parts, 3, n_parts, generator=generator, dtype=torch.float64, requires_grad=True)
    place = 2 if axis == 1 else x.dim() - 1
    parts = x.unflatten(place, (n_parts, -1)).movedim(place, 1)
    expected = torch.einsum("manb,nb...->ma...", weight, parts).movedim(1, place).flatten(place, place + 1)
    for cached in (1 << 17, 8):
        monkeypatch.setattr("polytask.deep.mixing._CACHED", cached)
        found = mix(weight, x, axis)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
        pull = torch.randn(found.shape, generator=generator, dtype=torch.float64)
        for one, two in zip(
            torch.autograd.grad(found, (weight, x), pull),
            torch.autograd.grad(expected, (weight, x), pull, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_the_gradients_of_a_mixture_in_parts_are_those_of_finite_differences(monkeypatch):
    monkeypatch.setattr("polytask.deep.mixing._CACHED", 8)
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(s, generator=generator, dtype=torch.float64) for s in [(2, 2, 2, 2), (2, 3, 4)])
    assert gradcheck(mix, (weight.requires_grad_(), x.requires_grad_()), eps=1e-6, atol=1e-5)


@pytest.mark.parametrize(("shape", "axis"), [((3, 5, 4), 1), ((3, 5, 4, 2), 1), ((3, 5, 2, 4), -1)])
def test_mixtures_per_channel_and_of_own_rows_are_their_formulas(shape, axis):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    weight = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    letters = "nbc...->mbc..." if axis == 1 else "n...c->m...c"
    expected = torch.einsum("mnc," + letters, weight, x)
    torch.testing.assert_close(mix_channels(weight, x, axis), expected, rtol=0, atol=1e-13)
    of_subspaces = torch.randn(2, 2, 3, 2, generator=generator, dtype=torch.float64)
    rows = torch.randn(3, 2, *shape[1:], generator=generator, dtype=torch.float64)
    whole = torch.stack([mix(of_subspaces, rows[:, t], axis)[t] for t in range(2)])
    torch.testing.assert_close(mix_own_rows(of_subspaces, rows, axis), whole, rtol=0, atol=1e-13)


def test_weighted_sums_of_large_layers_have_the_gradients_of_finite_differences(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    layers = [torch.randn(2, 2, 3, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    expected = torch.einsum("tk,ktbc->tbc", weight, torch.stack(layers))
    for cached in (1 << 17, 8):
        monkeypatch.setattr("polytask.deep.mixing._CACHED", cached)
        torch.testing.assert_close(weighted_sum(weight, layers), expected, rtol=0, atol=1e-14)
        assert gradcheck(lambda w, *x: weighted_sum(w, x), (weight, *layers), eps=1e-6, atol=1e-5)


def test_many_towers_mix_in_one_product():
    tasks = [Regression(f"t{t}") for t in range(40)]
    network = CrossStitch(tasks, encoder(widths=(32, 32)))
    inputs = {"numeric": torch.randn(200, 3, generator=torch.Generator().manual_seed(0))}
    assert network.all_scores(inputs).shape == (40, 200, 1)
    network.all_scores(inputs).sum().backward()
    assert network.mixing["layer1"].grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"granularity": "channels"}, 'Did you mean "channel"'),
        ({"own_weight": 1.5}, "own_weight is 1.5"),
        ({"mixing_rate": 0.0}, "mixing_rate is 0.0"),
        ({"stages": ["layer9"]}, "unknown stage"),
    ],
)
def test_impossible_settings_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        stitch(**options)


def test_encoders_without_a_hidden_stage_or_without_channels_are_refused():
    with pytest.raises(InputError, match="only stage is input"):
        CrossStitch(MIXED, encoder(widths=()))
    unknown = Encoder({"input": TensorInput("image"), "flat": nn.Flatten()}, n_features=4)
    with pytest.raises(InputError, match='channels of stage "flat"'):
        CrossStitch(MIXED, unknown, granularity="channel")
