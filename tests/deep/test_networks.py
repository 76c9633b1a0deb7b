import copy

import pytest
import torch
from tests.deep.networks import CARDINALITIES, MIXED, NETWORKS, NEVER_SINGLE, encoder, labels, table
from torch import nn

from polytask.core.errors import InputError
from polytask.core.task import Regression
from polytask.deep import HardSharing, MultiTaskLoss, SingleTask, SoftSharing

ROWS = 9
ALL = torch.ones(len(MIXED), ROWS, dtype=torch.bool)


def build(kind, tasks=MIXED, seed=0, **options):
    return NETWORKS[kind](tasks, encoder(seed=seed, **options), seed=seed).double()


def train(network, tasks, inputs, targets, present=None, *, steps=5, optimiser=torch.optim.Adam, lr=0.05, own=False):
    present = torch.ones_like(targets, dtype=torch.bool) if present is None else present
    optimiser, loss = optimiser(network.parameters(), lr=lr), MultiTaskLoss(tasks)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(network.all_scores(inputs, own), targets, present).sum().backward()
        network.penalty_gradient()
        optimiser.step()
        network.after_step(lr)
    return network


def reached_twice(network, inputs):
    """Names of parameters with an element that the losses of two tasks reach."""
    scores = network.all_scores(inputs)
    present = torch.ones(scores.shape[:2], dtype=torch.bool)
    losses = MultiTaskLoss(network.tasks)(scores, labels(network.tasks, scores.shape[1]), present)
    names, parameters = zip(*network.named_parameters(), strict=True)
    counts = [torch.zeros_like(parameter) for parameter in parameters]
    for loss in losses:
        for count, gradient in zip(counts, torch.autograd.grad(loss, parameters, retain_graph=True), strict=True):
            count += gradient != 0
    return {name for name, count in zip(names, counts, strict=True) if (count > 1).any()}


@pytest.mark.parametrize("tasks", [MIXED, MIXED[:2], MIXED[:1]], ids=len)
@pytest.mark.parametrize("kind", NETWORKS)
def test_declared_shared_parameters_are_those_two_losses_reach(kind, tasks):
    network = build(kind, tasks, cardinalities=CARDINALITIES, norm="layer", activation="tanh")
    declared = {id(parameter) for parameter in network.shared_parameters()}
    names = {name for name, parameter in network.named_parameters() if id(parameter) in declared}
    assert names == reached_twice(network, table(ROWS, categorical=True))


@pytest.mark.parametrize("kind", NETWORKS)
def test_forward_returns_only_the_tasks_asked_for_with_their_own_widths(kind):
    network = build(kind, cardinalities=CARDINALITIES)
    inputs = table(ROWS, categorical=True)
    whole = network(inputs)
    assert {name: scores.shape[1] for name, scores in whole.items()} == {
        "price": 1,
        "sold": 1,
        "type": 3,
        "state": 3,
        "area": 1,
    }
    some = network(inputs, ["state", "price"])
    assert list(some) == ["state", "price"]
    for name, scores in some.items():
        torch.testing.assert_close(scores, whole[name], rtol=0, atol=1e-13)
    assert network(inputs, []) == {}


@pytest.mark.parametrize("kind", NETWORKS)
def test_own_rows_equal_each_tasks_scores_on_its_rows(kind):
    network = build(kind, cardinalities=CARDINALITIES)
    inputs = table(len(MIXED), ROWS, categorical=True)
    scores = network.all_scores(inputs, own_rows=True)
    for t in range(len(MIXED)):
        alone = network.all_scores({name: tensor[t] for name, tensor in inputs.items()})[t]
        torch.testing.assert_close(scores[t], alone, rtol=0, atol=1e-12)
    some = network.all_scores({name: tensor[[3, 1]] for name, tensor in inputs.items()}, own_rows=True, only=[3, 1])
    torch.testing.assert_close(some, scores[[3, 1]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("identical", [True, False])
def test_single_task_networks_train_like_separate_networks(identical, own):
    inputs, targets = table(*((len(MIXED), ROWS) if own else (ROWS,))), labels(MIXED, ROWS)
    network = SingleTask(MIXED, encoder(norm="layer"), identical=identical).double()
    alone = [
        nn.Sequential(*(stage.copy(t) for stage in network.encoder.stages.values()), network.heads.linear.copy(t))
        for t in range(len(MIXED))
    ]
    train(network, MIXED, inputs, targets, own=own)
    for t, task in enumerate(MIXED):
        optimiser, loss = torch.optim.Adam(alone[t].parameters(), lr=0.05), MultiTaskLoss([task])
        rows = {"numeric": inputs["numeric"][t]} if own else inputs
        for _ in range(5):
            optimiser.zero_grad()
            loss(alone[t](rows)[None], targets[t : t + 1], ALL[:1]).sum().backward()
            optimiser.step()
        scores = network.eval().all_scores(rows, only=[t])[0, :, : task.n_outputs]
        torch.testing.assert_close(scores, alone[t].eval()(rows)[:, : task.n_outputs], rtol=0, atol=1e-10)


def test_a_tasks_single_network_does_not_depend_on_the_other_tasks():
    inputs, targets = table(ROWS), labels(MIXED, ROWS)
    together = train(build("single"), MIXED, inputs, targets)(inputs)
    for t, task in enumerate(MIXED):
        alone = train(build("single", (task,)), (task,), inputs, targets[t : t + 1])(inputs)
        torch.testing.assert_close(together[task.name], alone[task.name], rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [kind for kind in NETWORKS if kind not in ("single", *NEVER_SINGLE)])
def test_with_one_task_every_network_is_the_single_task_network_bit_for_bit(kind, dtype):
    tasks, inputs = MIXED[2:3], {"numeric": table(ROWS)["numeric"].to(dtype)}
    targets = labels(tasks, ROWS).to(dtype)
    one, single = (train(build(k, tasks).to(dtype), tasks, inputs, targets) for k in (kind, "single"))
    assert one.all_scores(inputs).equal(single.all_scores(inputs))
    assert one.all_scores(inputs).dtype == dtype


ORDERLY = [
    "single", "soft", "soft, pairwise gradient", "soft, graph", "trace norm", "cross-stitch", "sluice",
]  # fmt: skip
"""Networks that start the same for every task and have no task that plays a part of its own."""


@pytest.mark.parametrize("kind", NETWORKS)
def test_gradients_of_the_losses_are_those_of_finite_differences(kind):
    """Along random directions in all parameters at once, with a smooth activation."""
    network = build(kind, activation="tanh", cardinalities=CARDINALITIES)
    inputs, targets, loss = table(ROWS, categorical=True), labels(MIXED, ROWS), MultiTaskLoss(MIXED)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(
        loss(network.all_scores(inputs), targets, ALL).sum(), parameters, allow_unused=True, materialize_grads=True
    )
    generator = torch.Generator().manual_seed(4)
    for _ in range(3):
        directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
        values = []
        for step in (1e-6, -2e-6):
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.data.add_(direction, alpha=step)
            values.append(loss(network.all_scores(inputs), targets, ALL).sum().item())
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.data.add_(direction, alpha=1e-6)
        slope = sum((g * d).sum().item() for g, d in zip(gradients, directions, strict=True))
        assert slope == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("kind", ORDERLY)
def test_training_permuted_tasks_permutes_the_result(kind):
    order = [3, 0, 4, 1, 2]
    inputs, targets = table(ROWS), labels(MIXED, ROWS)
    permuted = tuple(MIXED[t] for t in order)
    one = train(build(kind), MIXED, inputs, targets).all_scores(inputs)
    two = train(build(kind, permuted), permuted, inputs, targets[order]).all_scores(inputs)
    torch.testing.assert_close(two, one[order], rtol=0, atol=1e-10)


def test_training_hard_sharing_on_permuted_tasks_and_heads_permutes_the_result():
    order = [3, 0, 4, 1, 2]
    inputs, targets = table(ROWS), labels(MIXED, ROWS)
    permuted = tuple(MIXED[t] for t in order)
    one, two = build("hard"), build("hard", permuted)
    for name, weight in two.heads.linear.weights.items():
        weight.data.copy_(one.heads.linear.weights[name][order])
    scores = train(one, MIXED, inputs, targets).all_scores(inputs)
    torch.testing.assert_close(
        train(two, permuted, inputs, targets[order]).all_scores(inputs), scores[order], rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("kind", NETWORKS)
def test_an_absent_task_gets_exactly_zero_gradient_and_does_not_change_the_others(kind):
    inputs, targets, present = table(ROWS), labels(MIXED, ROWS), ALL.clone()
    present[2] = False
    network, loss = build(kind), MultiTaskLoss(MIXED)
    loss(network.all_scores(inputs), targets, present).sum().backward()
    shared = {id(parameter) for parameter in network.shared_parameters()}
    private = {name: p.grad.clone() for name, p in network.named_parameters() if id(p) not in shared}
    network.zero_grad()
    losses = loss(network.all_scores(inputs), targets, ALL)
    own = torch.autograd.grad(losses[2], [network.get_parameter(name) for name in private], retain_graph=True)
    losses.sum().backward()
    assert any((gradient != 0).any() for gradient in own)
    for (name, gradient), mine in zip(private.items(), own, strict=True):
        reached = mine != 0
        assert (gradient[reached] == 0).all(), name
        whole = network.get_parameter(name).grad
        torch.testing.assert_close(gradient[~reached], whole[~reached], rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_batch_without_any_label_gives_zero_gradients(kind):
    network = build(kind)
    MultiTaskLoss(MIXED)(network.all_scores(table(ROWS)), labels(MIXED, ROWS), ~ALL).sum().backward()
    assert all((parameter.grad == 0).all() for parameter in network.parameters())


@pytest.mark.parametrize("kind", NETWORKS)
def test_same_seed_same_network_and_global_random_state_is_left_alone(kind):
    state = torch.get_rng_state()
    one, two, other = build(kind), build(kind), build(kind, seed=1)
    assert torch.get_rng_state().equal(state)
    inputs = table(ROWS)
    assert one.all_scores(inputs).equal(two.all_scores(inputs))
    assert not one.all_scores(inputs).equal(other.all_scores(inputs))


@pytest.mark.parametrize("kind", NETWORKS)
def test_state_round_trip_gives_the_same_scores_penalty_and_relations(kind):
    inputs, targets = table(ROWS), labels(MIXED, ROWS)
    trained, fresh = (
        train(build(kind, norm="batch"), MIXED, inputs, targets).eval(),
        build(kind, seed=3, norm="batch").eval(),
    )
    fresh.load_state_dict(trained.state_dict())
    assert fresh.all_scores(inputs).equal(trained.all_scores(inputs))
    assert fresh.penalty().equal(trained.penalty())
    assert {n: r.to_json() for n, r in fresh.relations().items()} == {
        n: r.to_json() for n, r in trained.relations().items()
    }


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_parameter_has_its_own_storage(kind):
    parameters = list(build(kind, cardinalities=CARDINALITIES).parameters())
    assert len({p.data_ptr() for p in parameters}) == len(parameters)


@pytest.mark.parametrize("kind", NETWORKS)
def test_parameter_groups_hold_every_parameter_exactly_once(kind):
    network = build(kind, cardinalities=CARDINALITIES)
    grouped = [id(parameter) for group in network.parameter_groups() for parameter in group.parameters]
    assert sorted(grouped) == sorted(map(id, network.parameters()))


@pytest.mark.parametrize("kind", [kind for kind in NETWORKS if kind != "joint many-task"])  # whose tasks hear of others
def test_heads_start_at_constants(kind):
    network = build(kind)
    constants = torch.arange(float(len(MIXED) * 3)).view(len(MIXED), 3)
    before = network.all_scores(table(ROWS))
    network.start_heads(constants)
    once = network.all_scores(table(ROWS))
    network.start_heads(constants + 1)
    for t, task in enumerate(MIXED):
        moved = network.all_scores(table(ROWS))[t] - once[t]
        torch.testing.assert_close(moved[:, : task.n_outputs], torch.ones_like(moved[:, : task.n_outputs]))
        assert (moved[:, task.n_outputs :] == 0).all()
    assert not once.equal(before)


def test_hard_sharing_gradients_of_trunk_add_up_and_heads_do_not_touch_each_other():
    network, inputs, targets = build("hard"), table(ROWS), labels(MIXED, ROWS)
    losses = MultiTaskLoss(MIXED)(network.all_scores(inputs), targets, ALL)
    trunk = list(network.trunk.parameters())
    each = [torch.autograd.grad(loss, trunk, retain_graph=True) for loss in losses]
    W = network.heads.linear.weights["weight"]
    for t, loss in enumerate(losses):
        (gradient,) = torch.autograd.grad(loss, W, retain_graph=True)
        assert (gradient[[s for s in range(len(MIXED)) if s != t]] == 0).all()
    losses.sum().backward()
    for k, parameter in enumerate(trunk):
        torch.testing.assert_close(parameter.grad, sum(g[k] for g in each), rtol=0, atol=1e-12)


def test_hard_sharing_shows_its_shared_features_and_replacing_one_head_changes_one_task():
    network, inputs = build("hard"), table(ROWS)
    features = network.features(inputs)
    assert features.shape == (ROWS, 6)
    torch.testing.assert_close(network.heads(features), network.all_scores(inputs), rtol=0, atol=0)
    other = copy.deepcopy(network)
    other.heads.linear.weights["weight"].data[2] += 1
    same = (other.all_scores(inputs) == network.all_scores(inputs)).flatten(1).all(1)
    assert same.tolist() == [True, True, False, True, True]


def test_networks_without_tasks_or_with_unknown_ones_are_refused():
    with pytest.raises(InputError, match="tasks is empty"):
        HardSharing([], encoder())
    with pytest.raises(InputError, match='Did you mean "price"'):
        build("hard")(table(ROWS), ["prise"])


def test_networks_that_do_not_share_say_so():
    network = build("single")
    assert network.features(table(ROWS)) is None
    assert network.relations() == {}
    assert network.penalty() == 0
    assert not network.ready_to_grow(100, stalled=True)
    assert network.task_order() is None


def test_many_tasks_are_one_call():
    tasks = [Regression(f"t{t}") for t in range(300)]
    network = SoftSharing(tasks, encoder(), strength=0.1).double()
    assert network.all_scores(table(300, 4), own_rows=True).shape == (300, 4, 1)
    assert sum(1 for _ in network.parameters()) == 6
