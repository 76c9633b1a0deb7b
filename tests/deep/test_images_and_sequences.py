"""Every network of the table on images and on sequences: own rows, tasks asked for, missing labels, training."""

import pytest
import torch
from tests.deep.networks import MIXED, NETWORKS, labels
from tests.deep.test_encoders import image, text
from tests.deep.test_networks import reached_twice

from polytask.deep import MultiTaskLoss, bilstm, convnet

ROWS = 7
BUILDS = {
    "convnet": (lambda: convnet((2, 8, 9), (4,), widths=(6,), norm="group", activation="tanh"), image),
    "bilstm": (lambda: bilstm(vocabulary=11, embedding=3, hidden=(2, 4)), text),
}
# a recurrent layer has no one weight per channel, which orthogonality on weights needs
PAIRS = [(kind, encoder) for kind in NETWORKS for encoder in BUILDS if (kind, encoder) != ("sluice", "bilstm")]


def build(kind, encoder):
    return NETWORKS[kind](MIXED, BUILDS[encoder][0](), seed=0).double()


@pytest.mark.parametrize(("kind", "encoder"), PAIRS)
def test_own_rows_and_chosen_tasks_give_each_tasks_scores_on_its_rows(kind, encoder):
    network = build(kind, encoder).eval()
    inputs = BUILDS[encoder][1](len(MIXED), ROWS)
    scores = network.all_scores(inputs, own_rows=True)
    assert scores.shape == (len(MIXED), ROWS, 3)
    for t in (0, 3):
        alone = network.all_scores({name: tensor[t] for name, tensor in inputs.items()}, only=[t])[0]
        torch.testing.assert_close(scores[t], alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("kind", "encoder"), PAIRS)
def test_training_with_missing_labels_lowers_the_loss(kind, encoder):
    network, loss = build(kind, encoder), MultiTaskLoss(MIXED)
    inputs, targets = BUILDS[encoder][1](ROWS), labels(MIXED, ROWS)
    present = torch.rand(targets.shape, generator=torch.Generator().manual_seed(3)) < 0.7
    targets = targets.masked_fill(~present, torch.nan)
    optimiser, losses = torch.optim.Adam(network.parameters(), lr=0.02), []
    for _ in range(10):
        optimiser.zero_grad()
        total = loss(network.all_scores(inputs), targets, present).sum()
        total.backward()
        network.penalty_gradient()
        optimiser.step()
        network.after_step(0.02)
        losses.append(total.item())
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize(("kind", "encoder"), PAIRS)
def test_declared_shared_parameters_are_those_two_losses_reach(kind, encoder):
    # in training, MTAN's batch statistics over the rows of all tasks let every loss reach every mask
    network = build(kind, encoder).train(kind != "mtan")
    declared = {id(parameter) for parameter in network.shared_parameters()}
    names = {name for name, parameter in network.named_parameters() if id(parameter) in declared}
    assert names == reached_twice(network, BUILDS[encoder][1](ROWS))
