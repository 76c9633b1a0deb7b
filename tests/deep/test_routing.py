import math

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import is_valid_linkage
from tests.deep.networks import CARDINALITIES, MIXED, encoder, labels, table
from tests.deep.test_networks import train
from torch import nn

from polytask.core.errors import InputError
from polytask.core.task import Regression
from polytask.deep import AdaptiveSharing, Encoder, HardSharing, LearnedBranching, MultiTaskLoss

ROWS = 9
ALL = torch.ones(len(MIXED), ROWS, dtype=torch.bool)


def routed(widths=(8, 7, 6), seed=0, tasks=MIXED, **options):
    shape = {name: options.pop(name) for name in ("norm", "cardinalities") if name in options}
    return LearnedBranching(tasks, encoder(widths, seed=seed, **shape), seed=seed, **options).double()


def decided(network, seed=3):
    """The same network with choices made at random."""
    generator = torch.Generator().manual_seed(seed)
    for logits in network.choices.values():
        logits.data.copy_(torch.randn(logits.shape, generator=generator, dtype=torch.float64))
    return network


class Plain(nn.Module):
    """The network as plain modules in loops over branches and tasks."""

    def __init__(self, network):
        super().__init__()
        self.first = network.trunk.stages[network.trunk.names[0]].copy(0)
        n = network.trunk.n
        self.stages = nn.ModuleList(
            nn.ModuleList(network.trunk.stages[name].copy(b) for b in range(n)) for name in network.trunk.names[1:]
        )
        self.heads = nn.ModuleList(network.heads.linear.copy(t) for t in range(len(network.tasks)))
        self.choices = nn.ParameterList(logits.detach().clone() for logits in network.choices.values())
        self.temperature = network.temperature.item()

    def forward(self, inputs):
        x = self.first(inputs)
        x = [block(x) for block in self.stages[0]]
        for blocks, logits in zip([*self.stages[1:], self.heads], self.choices, strict=True):
            z = torch.softmax(logits / self.temperature, dim=1)
            x = [block(sum(z[k, j] * x[j] for j in range(len(x)))) for k, block in enumerate(blocks)]
        return torch.stack(x)


@pytest.mark.parametrize("own", [False, True])
def test_one_branch_is_hard_sharing_to_the_bit(own):
    inputs, targets = table(*((len(MIXED), ROWS) if own else (ROWS,)), categorical=True), labels(MIXED, ROWS)
    shape = {"cardinalities": CARDINALITIES, "norm": "batch"}
    networks = routed((8, 6), n_branches=1, **shape), HardSharing(MIXED, encoder(**shape)).double()
    scores = [train(network, MIXED, inputs, targets, own=own).all_scores(inputs, own) for network in networks]
    assert scores[0].equal(scores[1])


def test_it_trains_like_plain_modules_in_loops_over_branches_and_tasks():
    inputs, targets = table(ROWS, categorical=True), labels(MIXED, ROWS)
    network = decided(routed(n_branches=3, noise=False, cardinalities=CARDINALITIES, norm="layer"))
    plain = Plain(network)
    loss, optimiser = MultiTaskLoss(MIXED), torch.optim.Adam(plain.parameters(), lr=0.05)
    for _ in range(5):
        optimiser.zero_grad()
        loss(plain(inputs), targets, ALL).sum().backward()
        optimiser.step()
    train(network, MIXED, inputs, targets)
    mine, its = network.all_scores(inputs), plain(inputs)
    for t, task in enumerate(MIXED):
        torch.testing.assert_close(mine[t, :, : task.n_outputs], its[t, :, : task.n_outputs], rtol=0, atol=1e-10)
    for logits, own in zip(network.choices.values(), plain.choices, strict=True):
        torch.testing.assert_close(logits, own, rtol=0, atol=1e-10)


@pytest.mark.parametrize("own", [False, True])
def test_in_evaluation_it_is_the_tree_of_its_largest_choices(own):
    network = decided(routed(n_branches=4)).eval()
    inputs = table(*((len(MIXED), ROWS) if own else (ROWS,)))
    twin = AdaptiveSharing(MIXED, encoder((8, 7, 6)), tree=network.tree()).double()
    for name, row, own_row in zip(network.trunk.names, network.tree(), twin.tree.tolist(), strict=True):
        for task, branch in enumerate(row):
            for part, weight in twin.trunk.stages[name].weights.items():
                weight.data[own_row[task]] = network.trunk.stages[name].weights[part].data[branch]
    twin.heads.load_state_dict(network.heads.state_dict())
    torch.testing.assert_close(network.all_scores(inputs, own), twin.all_scores(inputs, own), rtol=0, atol=1e-12)


def test_the_tree_follows_the_largest_choice_of_every_branch():
    network = decided(routed(n_branches=3))
    choices = {name: logits.argmax(1).tolist() for name, logits in network.choices.items()}
    top = choices["tasks"]
    middle = [choices["layer3"][k] for k in top]
    low = [choices["layer2"][k] for k in middle]
    assert network.tree().tolist() == [[0] * 5, low, middle, top]


def test_evaluation_draws_no_noise_and_needs_no_training_before():
    network = decided(routed()).eval()
    state = torch.get_rng_state()
    assert network.all_scores(table(ROWS)).equal(network.all_scores(table(ROWS)))
    assert torch.get_rng_state().equal(state)


def test_training_draws_other_noise_for_every_batch_unless_told_not_to():
    assert not (noisy := routed()).all_scores(table(ROWS)).equal(noisy.all_scores(table(ROWS)))
    assert (still := routed(noise=False)).all_scores(table(ROWS)).equal(still.all_scores(table(ROWS)))


def test_the_largest_noisy_choice_is_a_sample_from_the_softmax():
    network = decided(routed(n_branches=3))
    odds = torch.softmax(network.choices["tasks"], 1).detach()
    draws = 4000
    counts = torch.zeros_like(odds)
    torch.manual_seed(0)
    for _ in range(draws):
        counts += nn.functional.one_hot(network._weights("tasks").argmax(1), 3)
    sigma = (odds * (1 - odds) / draws).sqrt()
    assert ((counts / draws - odds).abs() < 4.5 * sigma).all()


def test_choices_sum_to_one_and_a_low_temperature_makes_training_the_tree():
    network = decided(routed(noise=False, end_temperature=1e-3))
    for name in network.choices:
        torch.testing.assert_close(network._weights(name).sum(1), torch.ones(5, dtype=torch.float64))
    hot = network.all_scores(table(ROWS))
    network.temperature.fill_(1e-3)
    cold, tree = network.all_scores(table(ROWS)), network.eval().all_scores(table(ROWS))
    torch.testing.assert_close(cold, tree, rtol=0, atol=1e-10)
    assert (hot - tree).abs().max() > 1e-2


def test_the_temperature_falls_geometrically_and_stays():
    network = routed(start_temperature=4.0, end_temperature=0.25, anneal_epochs=4)
    seen = []
    for _ in range(6):
        seen.append(network.temperature.item())
        network.end_epoch()
    assert seen == pytest.approx([4.0, 2.0, 1.0, 0.5, 0.25, 0.25])


def test_only_the_branches_of_the_tree_in_use_are_computed_in_evaluation():
    network, seen = decided(routed(n_branches=4)).eval(), []
    for name in network.trunk.names[1:]:
        network.trunk.stages[name].stack.register_forward_hook(lambda _m, _a, y: seen.append(len(y[0])))
    network.all_scores(table(ROWS), only=[0, 3])
    assert seen == [len(set(row[[0, 3]])) for row in network.tree()[1:]]


def test_choices_learn_at_a_rate_of_their_own_and_never_decay():
    plain, choices = routed(rate=7.0).parameter_groups()
    assert (choices.learning_rate_scale, choices.weight_decay) == (7.0, False)
    assert (plain.learning_rate_scale, plain.weight_decay) == (1.0, True)
    assert len(choices.parameters) == 3


def test_relations_are_a_tree_and_probabilities():
    found = decided(routed(n_branches=3)).relations()
    assert is_valid_linkage(found["branches"].values)
    np.testing.assert_allclose(found["choices"].values.sum(1), 1.0)


def test_tasks_that_need_different_features_part():
    """One unit per branch cannot carry two features: the pairs of tasks must choose different branches."""
    tasks = [Regression(name) for name in ("a1", "b1", "a2", "b2")]
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.stack([x[:, 0], x[:, 1], -2 * x[:, 0], 0.5 * x[:, 1]])
    present = torch.ones_like(targets, dtype=torch.bool)
    torch.manual_seed(3)
    network = LearnedBranching(tasks, encoder((1,), activation="tanh"), n_branches=2, seed=3)
    optimiser, loss = torch.optim.Adam(network.parameters(), lr=0.05), MultiTaskLoss(tasks)
    for step in range(400):
        optimiser.zero_grad()
        loss(network.all_scores({"numeric": x}), targets, present).sum().backward()
        optimiser.step()
        if step % 10 == 0:
            network.end_epoch()
    network.eval()
    top = network.tree()[-1].tolist()
    assert top[0] == top[2] != top[1] == top[3]
    final = loss(network.all_scores({"numeric": x}), targets, present)
    assert (final / targets.var(1) < 0.2).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_branches": 0}, "n_branches is 0"),
        ({"end_temperature": 0.0}, "end_temperature is 0.0"),
        ({"start_temperature": 0.01}, "start_temperature 0.01"),
        ({"anneal_epochs": 0}, "anneal_epochs is 0"),
        ({"rate": math.inf}, "rate is inf"),
    ],
)
def test_bad_arguments_are_refused_by_name(options, message):
    with pytest.raises(InputError, match=message):
        routed(**options)


def test_an_encoder_of_one_stage_is_refused():
    with pytest.raises(InputError, match="never divided"):
        LearnedBranching(MIXED, Encoder(dict(encoder(()).stages), n_features=3))
