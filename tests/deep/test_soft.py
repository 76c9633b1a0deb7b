import copy

import numpy as np
import pytest
import torch
from tests.deep.networks import CARDINALITIES, MIXED, encoder, labels, table
from tests.deep.test_networks import train

from polytask.core.errors import InputError
from polytask.deep import BranchedEncoder, HardSharing, MultiTaskLoss, SingleTask, SoftSharing

ROWS = 9


T = len(MIXED)
GRAPH = np.array(
    [
        [9.0, 1.0, 0.5, 0.0, 0.0],
        [1.0, 0.0, 2.0, 0.0, 0.0],
        [0.5, 2.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 3.0],
        [0.0, 0.0, 0.0, 3.0, 0.0],
    ]
)
"""Two groups of tasks: the first three, the last two."""
FORMS = {
    "mean": {},
    "pairwise": {"form": "pairwise"},
    "graph": {"form": "graph", "graph": GRAPH},
    "anchor, a task": {"form": "anchor", "anchor": "type"},
    "anchor, an encoder": {"form": "anchor", "anchor": encoder(cardinalities=CARDINALITIES, seed=5)},
}


def soft(strength=0.3, seed=0, **options):
    return SoftSharing(MIXED, encoder(cardinalities=CARDINALITIES), strength=strength, seed=seed, **options).double()


def scattered(**options):
    """A network whose tasks differ."""
    network = soft(**options)
    generator = torch.Generator().manual_seed(8)
    for parameter in network.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return network


def spread(network, kind="mean"):
    """The penalty written out in autograd, strength 1."""
    total = torch.zeros((), dtype=torch.float64)
    for name, W in network.coupled().items():
        if kind == "mean":
            total = total + sum((w - W.mean(0)).square().sum() for w in W)
        elif kind.startswith("anchor"):
            other = W[2].detach() if kind == "anchor, a task" else ANCHOR[name].double()
            total = total + sum(
                (w - other).square().sum() for t, w in enumerate(W) if t != 2 or kind != "anchor, a task"
            )
        else:
            pull = np.ones((T, T)) if kind == "pairwise" else GRAPH
            total = total + sum(pull[s, t] * (W[s] - W[t]).square().sum() for t in range(len(W)) for s in range(t))
    return total


ANCHOR = {
    name: weight[0].detach()
    for name, weight in BranchedEncoder(FORMS["anchor, an encoder"]["anchor"], 1).weights().items()
}


@pytest.mark.parametrize("kind", FORMS)
def test_the_penalty_is_its_formula(kind):
    network = scattered(strength=0.7, **FORMS[kind])
    assert network.penalty().item() == pytest.approx(0.7 * spread(network, kind).item(), rel=1e-12)


def test_the_pairwise_penalty_is_tasks_times_the_penalty_to_the_mean():
    assert scattered(form="pairwise").penalty().item() == pytest.approx(
        len(MIXED) * scattered().penalty().item(), rel=1e-12
    )


@pytest.mark.parametrize("kind", FORMS)
def test_the_closed_form_gradient_is_that_of_autograd(kind):
    network = scattered(strength=0.7, update="gradient", **FORMS[kind])
    network.penalty_gradient()
    coupled = network.coupled()
    expected = torch.autograd.grad(0.7 * spread(network, kind), list(coupled.values()))
    for weight, gradient in zip(coupled.values(), expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=0, atol=1e-11)
    network.penalty_gradient()
    torch.testing.assert_close(next(iter(coupled.values())).grad, 2 * expected[0], rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", FORMS)
def test_the_proximal_step_minimises_its_objective(kind):
    before, after = (scattered(strength=0.7, **FORMS[kind]) for _ in range(2))
    after.after_step(0.2)
    start, end = before.coupled(), after.coupled()
    objective = 0.2 * 0.7 * spread(after, kind) + 0.5 * sum((end[n] - start[n].detach()).square().sum() for n in end)
    for gradient in torch.autograd.grad(objective, list(end.values())):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-11)
    if not kind.startswith("anchor"):
        for name, weight in end.items():
            torch.testing.assert_close(weight.mean(0), start[name].mean(0), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("kind", "graph"), [("pairwise", np.ones((T, T))), ("mean", np.full((T, T), 1 / T))])
def test_a_complete_graph_is_the_pairwise_penalty_or_that_to_the_mean(kind, graph):
    network, other = scattered(form="graph", graph=graph), scattered(**FORMS[kind])
    assert network.penalty().item() == pytest.approx(other.penalty().item(), rel=1e-12)
    for each in (network, other):
        each.after_step(0.3)
    for name, weight in network.coupled().items():
        torch.testing.assert_close(weight, other.coupled()[name], rtol=0, atol=1e-12)


def test_infinite_strength_ties_the_connected_tasks_of_a_graph():
    before, after = scattered(), scattered(strength=1e12, **FORMS["graph"])
    after.after_step(1.0)
    for name, weight in after.coupled().items():
        start = before.coupled()[name]
        for group in ([0, 1, 2], [3, 4]):
            expected = start[group].mean(0).expand(len(group), *start.shape[1:])
            torch.testing.assert_close(weight[group], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("update", ["prox", "gradient"])
def test_an_anchor_is_not_pulled_itself_and_infinite_strength_ties_the_others_to_it(update):
    network = scattered(strength=1e12, update=update, **FORMS["anchor, a task"])
    before = {name: weight.detach().clone() for name, weight in network.coupled().items()}
    network.penalty_gradient()
    network.after_step(1.0)
    for name, weight in network.coupled().items():
        assert weight[2].equal(before[name][2])
        if update == "prox":
            torch.testing.assert_close(weight, before[name][2].expand_as(weight), rtol=0, atol=1e-9)
        else:
            assert (weight.grad[2] == 0).all()


def test_an_anchor_that_is_an_encoder_pulls_a_lone_task_and_is_saved_but_not_trained():
    options = FORMS["anchor, an encoder"]
    lone = SoftSharing(MIXED[:1], encoder(cardinalities=CARDINALITIES), strength=1e12, **options).double()
    lone.after_step(1.0)
    for name, weight in lone.coupled().items():
        torch.testing.assert_close(weight[0], ANCHOR[name].double(), rtol=0, atol=1e-9)
    assert not {name for name, _ in lone.named_parameters() if "anchor" in name}
    fresh = SoftSharing(
        MIXED[:1],
        encoder(cardinalities=CARDINALITIES),
        strength=1e12,
        form="anchor",
        anchor=encoder(cardinalities=CARDINALITIES),
    ).double()
    fresh.load_state_dict(lone.state_dict())
    assert fresh.penalty().equal(lone.penalty())


def test_each_update_pulls_once_either_by_its_gradient_or_by_its_proximal_step():
    by_gradient, by_prox = scattered(update="gradient"), scattered()
    by_gradient.after_step(1.0)
    assert by_gradient.penalty().equal(scattered().penalty())
    by_prox.penalty_gradient()
    assert all(parameter.grad is None for parameter in by_prox.parameters())


def test_moving_every_task_by_the_same_vector_leaves_the_penalty_unchanged():
    network = scattered()
    before = network.penalty().item()
    for weight in network.coupled().values():
        weight.data += torch.randn(weight.shape[1:], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert network.penalty().item() == pytest.approx(before, rel=1e-10)


@pytest.mark.parametrize("update", ["prox", "gradient"])
def test_strength_zero_is_single_task_learning_exactly(update):
    inputs, targets = table(ROWS, categorical=True), labels(MIXED, ROWS)
    none = train(soft(0.0, update=update), MIXED, inputs, targets)
    single = SingleTask(MIXED, encoder(cardinalities=CARDINALITIES)).double()
    assert none.all_scores(inputs).equal(train(single, MIXED, inputs, targets).all_scores(inputs))


def test_infinite_strength_is_one_encoder_trained_on_the_mean_of_the_losses():
    inputs, targets = table(ROWS, categorical=True), labels(MIXED, ROWS)
    tied = train(soft(1e9), MIXED, inputs, targets, optimiser=torch.optim.SGD, steps=20)
    shared = HardSharing(MIXED, encoder(cardinalities=CARDINALITIES)).double()
    shared.heads.load_state_dict(soft().heads.state_dict())
    optimiser = torch.optim.SGD(
        [
            {"params": shared.trunk.parameters(), "lr": 0.05 / len(MIXED)},
            {"params": shared.heads.parameters(), "lr": 0.05},
        ]
    )
    for _ in range(20):
        optimiser.zero_grad()
        MultiTaskLoss(MIXED)(
            shared.all_scores(inputs), targets, torch.ones_like(targets, dtype=torch.bool)
        ).sum().backward()
        optimiser.step()
    assert tied.penalty().item() < 1e-5
    assert (shared.all_scores(inputs) - soft().all_scores(inputs)).abs().max() > 0.01
    torch.testing.assert_close(tied.all_scores(inputs), shared.all_scores(inputs), rtol=0, atol=1e-7)


def test_more_strength_means_closer_tasks():
    inputs, targets = table(ROWS, categorical=True), labels(MIXED, ROWS)
    spreads = [spread(train(soft(s), MIXED, inputs, targets)).item() for s in (0.0, 0.1, 1.0, 10.0)]
    assert spreads == sorted(spreads, reverse=True)


def test_a_huge_strength_is_stable():
    network = scattered(strength=1e30)
    network.after_step(1.0)
    assert all(parameter.isfinite().all() for parameter in network.parameters())
    assert network.penalty().isfinite()


def test_only_the_chosen_stages_and_weights_are_coupled():
    network = scattered(stages=["layer1"], biases=False)
    assert list(network.coupled()) == ["layer1.0.weight"]
    before = {name: p.clone() for name, p in network.named_parameters()}
    network.after_step(1.0)
    changed = {name for name, p in network.named_parameters() if not p.equal(before[name])}
    assert len(changed) == 1
    assert soft(stages=[]).penalty() == 0


def test_copies_and_replaced_weights_are_coupled_not_the_old_ones():
    network = soft()
    for other in (copy.deepcopy(network), soft(seed=1)):
        other.load_state_dict(scattered().state_dict(), assign=True)
        parameters = dict(other.named_parameters())
        assert other.penalty() > 1
        for name, weight in other.coupled().items():
            stage, rest = name.split(".", 1)
            assert weight is parameters[f"encoder.stages.{stage}.stack.{rest}"]
    assert network.penalty() < 1e-20


def test_relations_are_cosines_of_what_training_changed():
    network = soft()
    assert (network.relations()["encoder_changes"].values == torch.eye(5).numpy()).all()
    for name, weight in network.coupled().items():
        change = torch.randn(weight.shape[1:], generator=torch.Generator().manual_seed(len(name)), dtype=torch.float64)
        weight.data[0] += change
        weight.data[1] += 3 * change
        weight.data[2] -= change
    cosines = network.relations()["encoder_changes"]
    assert cosines.rows == cosines.columns == tuple(task.name for task in MIXED)
    assert cosines.values[0, 1] == pytest.approx(1.0)
    assert cosines.values[0, 2] == pytest.approx(-1.0)
    assert cosines.values[0, 3] == 0.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strength": -1.0}, "strength is -1.0"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"form": "pairs"}, 'Did you mean "pairwise"'),
        ({"update": "proximal"}, 'Did you mean "prox"'),
        ({"stages": ["layer3"]}, "unknown stage"),
        ({"form": "graph"}, 'graph is missing but form is "graph"'),
        ({"graph": GRAPH}, 'graph is given but form is "mean"'),
        ({"form": "anchor"}, "anchor is missing"),
        ({"form": "graph", "graph": np.ones((2, 2))}, r"graph has shape \(2, 2\)"),
        ({"form": "graph", "graph": np.triu(np.ones((T, T)))}, "graph must be symmetric"),
        ({"form": "anchor", "anchor": "prise"}, 'Did you mean "price"'),
        ({"form": "anchor", "anchor": encoder((5, 6))}, 'without weights "input'),
    ],
)
def test_impossible_settings_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        soft(**options)
