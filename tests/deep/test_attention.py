import pytest
import torch
from tests.deep.networks import CARDINALITIES, MIXED, encoder, labels, table
from tests.deep.test_experts import Take, convnet, images
from tests.deep.test_networks import train
from torch import nn
from torch.nn import functional

from polytask.core.errors import InputError
from polytask.deep import MTAN, Encoder, HardSharing
from polytask.deep.encoders import TableInput

ROWS, T = 9, len(MIXED)


def build(tasks=MIXED, seed=0, **options):
    return MTAN(tasks, encoder(seed=seed), seed=seed, **options).double()


def scattered(network):
    """The network with every one-dimensional part (norms, biases) away from its start."""
    generator = torch.Generator().manual_seed(2)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return network


def head(network, t, features):
    weights = network.heads.linear.weights
    return (features @ weights["weight"][t] + weights["bias"][t]) * network.heads.used[t]


def loop(network, inputs):
    """The formula, one task after the other, on tables."""
    found = []
    for t in range(T):
        x, past = inputs["numeric"], None
        for number, name in enumerate(network.stages):
            weights = network.trunk.stages[name].weights
            x = torch.relu(x @ weights["0.weight"][0] + weights["0.bias"][0])
            if past is not None:
                past = network.carries[number - 1].layer(past)
            part = network.masks[number]
            hidden = x @ part.trunk.weights["weight"][t] + part.trunk.weights["bias"][t]
            if past is not None:
                hidden = hidden + past @ part.past.weights["weight"][t]
            weights = part.mask.weights
            past = torch.sigmoid(torch.relu(hidden) @ weights["1.weight"][t] + weights["1.bias"][t]) * x
        found.append(head(network, t, past))
    return torch.stack(found)


@pytest.mark.parametrize("reduction", [1, 3])
def test_mtan_agrees_with_a_loop_over_tasks_in_values_and_gradients(reduction):
    network, inputs = build(reduction=reduction), table(ROWS)
    found, written = network.all_scores(inputs), loop(network, inputs)
    torch.testing.assert_close(found, written, rtol=0, atol=1e-12)
    factors = torch.randn(found.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    parameters = list(network.parameters())
    for one, two in zip(
        torch.autograd.grad((found * factors).sum(), parameters),
        torch.autograd.grad((written * factors).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-10)


def test_mtan_of_images_is_one_by_one_convolutions_with_batch_norm_and_a_carried_convolution():
    network, x = scattered(MTAN(MIXED, convnet()).double()), images()["image"]
    first, second = (network.trunk.stages[name].copy(0) for name in network.stages)
    one = first(x)
    two = second(one)
    network.carries.eval()  # its batch norm is over all tasks' rows
    scores = network.all_scores(images())
    for t in range(T):
        attended = one
        for number, features in enumerate((one, two)):
            part, width = network.masks[number], features.shape[1]
            weights = part.trunk.weights
            joined, kernel = features, weights["weight"][t].T
            if number:
                carried = network.carries[0].layer(attended)
                joined = torch.cat([features, functional.max_pool2d(carried, carried.shape[-1] // two.shape[-1])], 1)
                kernel = torch.cat([kernel, part.past.weights["weight"][t].T], 1)
            h = functional.conv2d(joined, kernel[..., None, None], weights["bias"][t])
            rest = part.mask.weights
            h = torch.relu(functional.batch_norm(h, None, None, rest["0.weight"][t], rest["0.bias"][t], True))
            h = functional.conv2d(h, rest["2.weight"][t].T[..., None, None], rest["2.bias"][t])
            h = functional.batch_norm(h, None, None, rest["3.weight"][t], rest["3.bias"][t], True)
            assert h.shape[1] == width
            attended = torch.sigmoid(h) * features
        torch.testing.assert_close(scores[t], head(network, t, attended.mean((-1, -2))), rtol=0, atol=1e-10)


@pytest.mark.parametrize("make", [encoder, convnet])
def test_with_all_masks_one_it_is_hard_sharing(make):
    trunk = make()
    network, hard = MTAN(MIXED, trunk).double().eval(), HardSharing(MIXED, trunk).double()
    for part in network.masks:
        (*_, scale), (*_, shift) = (
            [p for name, p in part.mask.weights.items() if name.endswith(end)] for end in ("weight", "bias")
        )
        scale.data.zero_()
        shift.data.fill_(60.0)
    inputs = table(ROWS) if make is encoder else images()
    torch.testing.assert_close(network.all_scores(inputs), hard.all_scores(inputs), rtol=0, atol=1e-12)


def test_masks_lie_between_zero_and_one_and_differ_between_tasks():
    network, inputs = build(), table(ROWS)
    seen = []
    for part in network.masks:
        part.mask.register_forward_hook(lambda module, args, output: seen.append(output))
    network.all_scores(inputs)
    for values in seen:
        assert ((values > 0) & (values < 1)).all()
        assert not values[0].equal(values[1])


def test_each_stage_carries_attention_on_to_the_next():
    network, inputs = build(), table(ROWS)
    before = network.all_scores(inputs)
    network.masks[0].trunk.weights["bias"].data[2] += 1
    changed = (network.all_scores(inputs) != before).flatten(1).any(1)
    assert changed.tolist() == [False, False, True, False, False]


def test_training_permuted_tasks_with_their_masks_and_heads_permutes_the_result():
    order = [3, 0, 4, 1, 2]
    inputs, targets = table(ROWS), labels(MIXED, ROWS)
    permuted = tuple(MIXED[t] for t in order)
    one, two = build(), build(permuted)
    shared = {id(parameter) for parameter in one.shared_parameters()}
    for source, target in zip(one.parameters(), two.parameters(), strict=True):
        target.data.copy_(source.data if id(source) in shared else source.data[order])
    scores = train(one, MIXED, inputs, targets).all_scores(inputs)
    again = train(two, permuted, inputs, targets[order]).all_scores(inputs)
    torch.testing.assert_close(again, scores[order], rtol=0, atol=1e-10)


def test_images_with_own_rows_give_each_task_the_scores_of_its_rows():
    network, inputs = MTAN(MIXED, convnet()).double().eval(), images()["image"]
    own = torch.stack([inputs + t for t in range(T)])
    scores = network.all_scores({"image": own}, own_rows=True)
    for t in range(T):
        alone = network.all_scores({"image": own[t]}, only=[t])[0]
        torch.testing.assert_close(scores[t], alone, rtol=0, atol=1e-12)


def test_a_stage_without_positions_may_follow_one_with_positions():
    stages = {
        "input": Take(),
        "conv": nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.MaxPool2d(2)),
        "flat": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4), nn.ReLU()),
    }
    network = MTAN(MIXED, Encoder(stages, n_features=4, channels={"input": 1, "conv": 3, "flat": 4})).double()
    assert network.all_scores(images()).shape == (T, 4, 3)


def test_relations_are_mean_masks_per_stage_and_their_correlation():
    network, inputs = build(), table(ROWS)
    seen = []
    for part in network.masks:
        part.mask.register_forward_hook(lambda module, args, output: seen.append(output.mean(1)))
    network.all_scores(inputs)
    relations = network.relations()
    attention = relations["attention"]
    assert attention.rows == ("layer1", "layer2")
    expected = torch.stack([values.mean(1) for values in seen]).detach()
    torch.testing.assert_close(torch.from_numpy(attention.values), expected, rtol=0, atol=1e-12)
    corrected = torch.corrcoef(torch.cat(seen, 1).detach())
    torch.testing.assert_close(torch.from_numpy(relations["masks"].values), corrected, rtol=0, atol=1e-10)


def test_categories_are_embedded_by_the_shared_trunk():
    network = MTAN(MIXED, encoder(cardinalities=CARDINALITIES)).double()
    network.all_scores(table(ROWS, categorical=True)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_impossible_settings_are_refused():
    with pytest.raises(InputError, match="reduction is 0"):
        build(reduction=0)
    for stages, channels in (
        ({"input": TableInput(3)}, {"input": 3}),
        ({"input": TableInput(3), "a": nn.Linear(3, 3)}, None),
    ):
        with pytest.raises(InputError, match="stage after its first"):
            MTAN(MIXED, Encoder(stages, n_features=3, channels=channels))
    conv = nn.Sequential(nn.Conv1d(1, 3, 3, stride=2), nn.ReLU())
    stages = {"input": Take(), "one": conv, "two": nn.Conv1d(3, 3, 3, stride=2)}
    network = MTAN(MIXED, Encoder(stages, n_features=3, channels={"input": 1, "one": 3, "two": 3}))
    with pytest.raises(InputError, match="for images only"):
        network({"image": torch.randn(4, 1, 20)})
