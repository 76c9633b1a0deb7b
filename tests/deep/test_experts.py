import copy

import pytest
import torch
from tests.deep.networks import CARDINALITIES, MIXED, encoder, labels, table
from tests.deep.test_networks import train
from torch import nn

from polytask.core.errors import InputError
from polytask.core.task import Regression
from polytask.deep import PLE, DSelectK, Encoder, HardSharing, MMoE, OMoE, SingleTask
from polytask.deep.encoders import TableInput
from polytask.deep.seeding import seeded

ROWS, T = 9, len(MIXED)


def build(kind, tasks=MIXED, widths=(8, 6), seed=0, **options):
    return kind(tasks, encoder(widths, seed=seed), seed=seed, **options).double()


def layer(branches, branch, x):
    """One branch of a stage ``Linear, ReLU``."""
    return torch.relu(x @ branches.weights["0.weight"][branch] + branches.weights["0.bias"][branch])


def expert(experts, number, x):
    for branches in experts.stack.stages.values():
        x = layer(branches, number, x)
    return x


def gate(gates, number, x):
    return (x @ gates.linear.weights["weight"][number]).softmax(-1)


def head(network, t, mixture):
    if network.towers is not None:
        for name in ("0", "2")[: len(network.towers.weights) // 2]:
            weights = network.towers.weights
            mixture = torch.relu(mixture @ weights[f"{name}.weight"][t] + weights[f"{name}.bias"][t])
    weights = network.heads.linear.weights
    return (mixture @ weights["weight"][t] + weights["bias"][t]) * network.heads.used[t]


def loop_of_mmoe(network, inputs, own_rows=False):
    """The formula, one task and one expert after the other."""
    found = []
    for t in range(len(network.tasks)):
        x = inputs["numeric"][t] if own_rows else inputs["numeric"]
        gates = gate(network.gates, t, x) if isinstance(network, MMoE) else network.gates(x)[t]
        n = network.experts.stack.n
        found.append(head(network, t, sum(gates[:, [e]] * expert(network.experts, e, x) for e in range(n))))
    return torch.stack(found)


def loop_of_ple(network, inputs):
    """The formula, level by level, one task and one expert after the other."""
    shared, private = inputs["numeric"], [inputs["numeric"]] * T
    m_s, m_p = network.n_shared, network.n_private
    for level in network.levels:
        said = [expert(level.shared, e, shared) for e in range(m_s)]
        own = [[expert(level.private, t * m_p + e, private[t]) for e in range(m_p)] for t in range(T)]
        mixed = []
        for t in range(T):
            gates = gate(level.gates, t, private[t])
            mixed.append(sum(gates[:, [k]] * f for k, f in enumerate([*own[t], *said])))
        private = mixed
        if level.shared_gate is not None:
            gates = gate(level.shared_gate, 0, shared)
            shared = sum(gates[:, [k]] * f for k, f in enumerate([*said, *(f for one in own for f in one)]))
    return torch.stack([head(network, t, private[t]) for t in range(T)])


def assert_same(network, found, written):
    """Scores and gradients of a weighted sum of them agree."""
    torch.testing.assert_close(found, written, rtol=0, atol=1e-12)
    factors = torch.randn(found.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    names, parameters = zip(*network.named_parameters(), strict=True)
    for name, one, two in zip(
        names,
        torch.autograd.grad((found * factors).sum(), parameters),
        torch.autograd.grad((written * factors).sum(), parameters, allow_unused=True),
        strict=True,
    ):
        expected = torch.zeros_like(one) if two is None else two
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-10, msg=name)


@pytest.mark.parametrize("towers", [(), (5,), (5, 4)])
@pytest.mark.parametrize("own_rows", [False, True])
def test_mmoe_agrees_with_a_loop_over_tasks_and_experts(own_rows, towers):
    network, inputs = build(MMoE, n_experts=3, towers=towers), table(*((T, ROWS) if own_rows else (ROWS,)))
    assert_same(network, network.all_scores(inputs, own_rows), loop_of_mmoe(network, inputs, own_rows))


@pytest.mark.parametrize("towers", [(), (5,)])
@pytest.mark.parametrize("n_experts", [4, 5])
@pytest.mark.parametrize("per_example", [False, True])
def test_dselect_k_agrees_with_a_loop_also_where_gates_do_not_sum_to_one(per_example, n_experts, towers):
    network = build(DSelectK, n_experts=n_experts, per_example=per_example, towers=towers)
    for parameter in network.gates.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).double()
    network.heads.linear.weights["bias"].data += 1
    inputs = table(ROWS)
    assert_same(network, network.all_scores(inputs), loop_of_mmoe(network, inputs))


@pytest.mark.parametrize(
    ("widths", "options"),
    [
        ((8, 6), {"levels": 1}),
        ((8, 6), {"levels": 2}),
        ((8, 7, 6), {"levels": 3, "n_shared": 2, "n_private": 2}),
        ((8, 7, 6), {"levels": 2, "n_shared": 3, "n_private": 1, "towers": (5,)}),
        ((8, 6), {"levels": 2, "n_private": 0, "n_shared": 2}),
        ((8, 6), {"levels": 2, "n_private": 2, "n_shared": 0}),
    ],
)
def test_ple_agrees_with_a_loop_over_levels_tasks_and_experts(widths, options):
    network, inputs = build(PLE, widths=widths, **options), table(ROWS)
    assert_same(network, network.all_scores(inputs), loop_of_ple(network, inputs))


@pytest.mark.parametrize("options", [{"levels": 1, "n_private": 2}, {"levels": 2, "n_shared": 2, "n_private": 2}])
def test_ple_with_own_rows_gives_each_task_the_scores_of_its_rows(options):
    network, inputs = build(PLE, **options), table(T, ROWS)
    written = torch.stack([network.all_scores({"numeric": rows})[t] for t, rows in enumerate(inputs["numeric"])])
    assert_same(network, network.all_scores(inputs, own_rows=True), written)
    some = network.all_scores({"numeric": inputs["numeric"][[3, 1]]}, own_rows=True, only=[3, 1])
    torch.testing.assert_close(some, written[[3, 1]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [MMoE, OMoE])
def test_one_expert_is_hard_sharing_bit_for_bit(kind):
    inputs, targets = table(ROWS), labels(MIXED, ROWS)
    one = train(build(kind, n_experts=1), MIXED, inputs, targets)
    hard = train(build(HardSharing), MIXED, inputs, targets)
    torch.testing.assert_close(one.all_scores(inputs), hard.all_scores(inputs), rtol=0, atol=1e-12)


class OneHot(nn.Module):
    """A frozen gate that gives task t expert t alone."""

    def forward(self, x, own=False, *, only=None):
        gates = torch.eye(T, dtype=x.dtype)[:, None].expand(T, x.shape[-2], T)
        return gates if only is None else gates[only]


def test_an_expert_for_each_task_by_frozen_gates_is_single_task_learning():
    inputs, targets = table(ROWS), labels(MIXED, ROWS)
    network, single = build(MMoE, n_experts=T), build(SingleTask)
    network.gates = OneHot()
    for name in network.experts.stack.names:
        single.encoder.stages[name].load_state_dict(network.experts.stack.stages[name].state_dict())
    single.heads.load_state_dict(network.heads.state_dict())
    trained, alone = (train(n, MIXED, inputs, targets) for n in (network, single))
    torch.testing.assert_close(trained.all_scores(inputs), alone.all_scores(inputs), rtol=0, atol=1e-10)
    assert not trained.all_scores(inputs)[0].equal(trained.all_scores(inputs)[4])


def test_equal_gates_make_it_the_one_gate_mixture():
    inputs, network, one = table(ROWS), build(MMoE), build(OMoE)
    (weight,), (common,) = network.gates.parameters(), one.gates.parameters()
    weight.data.copy_(common.data.expand_as(weight))
    for part in ("experts", "heads"):
        getattr(one, part).load_state_dict(getattr(network, part).state_dict())
    torch.testing.assert_close(network.all_scores(inputs), one.all_scores(inputs), rtol=0, atol=1e-12)


def test_the_one_gate_mixture_shows_the_features_its_scores_are_linear_in():
    inputs, one = table(ROWS), build(OMoE)
    scores, features, weight = one.scores_and_features(inputs)
    assert features.equal(one.features(inputs))
    bias = one.heads.linear.weights["bias"][:, None] * one.heads.used
    torch.testing.assert_close(scores, features @ weight * one.heads.used + bias, rtol=0, atol=1e-12)
    for kind in (MMoE, PLE, DSelectK):
        assert build(kind).scores_and_features(inputs) is None
        assert build(kind).features(inputs) is None


def test_ple_with_one_level_and_no_private_experts_is_mmoe():
    inputs, network, ple = table(ROWS), build(MMoE, n_experts=3), build(PLE, levels=1, n_shared=3, n_private=0)
    ple.levels[0].shared.load_state_dict(network.experts.state_dict())
    ple.levels[0].gates.load_state_dict(network.gates.state_dict())
    ple.heads.load_state_dict(network.heads.state_dict())
    torch.testing.assert_close(ple.all_scores(inputs), network.all_scores(inputs), rtol=0, atol=1e-12)


@pytest.mark.parametrize("levels", [1, 2])
def test_ple_without_shared_experts_is_single_task_learning(levels):
    inputs, targets = table(ROWS), labels(MIXED, ROWS)
    ple, single = build(PLE, levels=levels, n_shared=0), build(SingleTask)
    assert ple.shared_parameters() == []
    for level in ple.levels:
        for name in level.private.stack.names:
            single.encoder.stages[name].load_state_dict(level.private.stack.stages[name].state_dict())
    single.heads.load_state_dict(ple.heads.state_dict())
    trained, alone = (train(n, MIXED, inputs, targets) for n in (ple, single))
    torch.testing.assert_close(trained.all_scores(inputs), alone.all_scores(inputs), rtol=0, atol=1e-10)


def test_a_private_expert_reaches_other_tasks_through_the_shared_stream_only():
    inputs = table(ROWS)
    for options, reaches in (({"levels": 2}, True), ({"levels": 2, "n_shared": 0}, False), ({"levels": 1}, False)):
        network = build(PLE, **options)
        before = network.all_scores(inputs)
        weight = network.levels[0].private.stack.stages["layer1"].weights["0.weight"]
        weight.data[1] += 1
        changed = (network.all_scores(inputs) != before).flatten(1).any(1)
        assert changed.tolist() == [reaches or t == 1 for t in range(T)]


@pytest.mark.parametrize("kind", [MMoE, DSelectK, PLE])
def test_training_permuted_tasks_with_their_gates_experts_and_heads_permutes_the_result(kind):
    order = [3, 0, 4, 1, 2]
    inputs, targets = table(ROWS), labels(MIXED, ROWS)
    permuted = tuple(MIXED[t] for t in order)
    one, two = build(kind), build(kind, permuted)
    private = {id(p) for n, p in one.named_parameters() if "private" in n or "heads" in n or n.endswith(("z", "w"))}
    private |= {id(p) for n, p in one.named_parameters() if "gates" in n}
    for (name, source), target in zip(one.named_parameters(), two.parameters(), strict=True):
        target.data.copy_(source.data[order] if id(source) in private else source.data)
        if "shared_gate" in name:  # shared experts first, then the tasks' own
            target.data[..., 1:] = source.data[..., 1:][..., order]
    scores = train(one, MIXED, inputs, targets).all_scores(inputs)
    again = train(two, permuted, inputs, targets[order]).all_scores(inputs)
    torch.testing.assert_close(again, scores[order], rtol=0, atol=1e-10)


@pytest.mark.parametrize("private", [1, 2])
def test_only_the_asked_tasks_private_experts_are_computed_in_the_last_level(private):
    network, inputs = build(PLE, levels=1, n_private=private), table(ROWS)
    whole = network.all_scores(inputs)
    some = network.all_scores(inputs, only=[3, 1])
    torch.testing.assert_close(some, whole[[3, 1]], rtol=0, atol=1e-12)
    some.sum().backward()
    gradient = network.levels[0].private.stack.stages["layer1"].weights["0.weight"].grad
    reached = (gradient.flatten(1) != 0).any(1).view(T, private).any(1)
    assert reached.tolist() == [False, True, False, True, False]


def test_the_experts_are_drawn_independently_and_the_first_is_the_encoder():
    weights = build(MMoE).experts.stack.weights()["layer1.0.weight"]
    assert weights[0].T.equal(encoder().stages["layer1"][0].weight.double())
    assert len(set(weights[:, 0, 0].tolist())) == 4


def test_dselect_k_with_saturated_gates_takes_exactly_its_experts():
    network, inputs = build(DSelectK, n_experts=4, n_selected=1), table(ROWS)
    codes = torch.tensor([[0, 1], [1, 0], [1, 1], [0, 0], [0, 1]])
    network.gates.z.data.copy_(codes.double() - 0.5)
    said = network.say(inputs, False)[0]
    for t, number in enumerate([1, 2, 3, 0, 1]):
        torch.testing.assert_close(network.all_scores(inputs)[t], head(network, t, said[number]), rtol=0, atol=1e-12)
    network.all_scores(inputs).sum().backward()
    assert network.gates.z.grad.abs().max() == 0


def test_the_penalty_of_dselect_k_changes_training_and_every_task():
    inputs, targets = table(ROWS), labels(MIXED, ROWS)
    for per_example in (False, True):
        with_, without = (
            train(build(DSelectK, strength=s, per_example=per_example), MIXED, inputs, targets) for s in (0.5, 0.0)
        )
        ones, twos = with_.gates.state_dict(), without.gates.state_dict()
        names = [name for name in ones if name != "last"]
        assert all((ones[n] != twos[n]).flatten(1).any(1).all() for n in names if "w" not in n or per_example)
        assert with_.penalty() > 0


@pytest.mark.parametrize("kind", [MMoE, OMoE, DSelectK])
def test_relations_are_the_mean_gates_of_the_training_batches(kind):
    network, inputs = build(kind), [table(ROWS, seed=seed) for seed in range(3)]
    expected = torch.zeros(T, 4, dtype=torch.float64)
    for batch in inputs:
        network.all_scores(batch)
        expected += network.gates(batch["numeric"]).mean(1).expand(T, 4) / 3
    network.eval().all_scores(inputs[0])
    relation = network.relations()["experts"]
    assert relation.kind == "loadings"
    assert relation.rows == ("expert 1", "expert 2", "expert 3", "expert 4")
    assert relation.columns == tuple(task.name for task in MIXED)
    torch.testing.assert_close(torch.from_numpy(relation.values), expected.T.detach(), rtol=0, atol=1e-12)


def test_relations_of_ple_are_the_use_of_private_and_shared_experts_per_level():
    network = build(PLE, n_shared=2)
    network.all_scores(table(ROWS))
    relations = network.relations()
    assert list(relations) == ["experts, level 1", "experts, level 2"]
    for relation in relations.values():
        assert relation.rows == ("private 1", "shared 1", "shared 2")
        assert relation.values.sum(0) == pytest.approx([1.0] * T)
    assert list(build(PLE, levels=1).relations()) == ["experts"]


def test_categories_are_embedded_once_for_experts_and_gates():
    network = MMoE(MIXED, encoder(cardinalities=CARDINALITIES)).double()
    inputs = table(ROWS, categorical=True)
    joined, _ = network.reader(inputs, False)
    assert network.gates.linear.weights["weight"].shape[1] == joined.shape[1]
    network.all_scores(inputs).sum().backward()
    assert sum("embeddings" in name for name, _ in network.named_parameters()) == len(CARDINALITIES)
    assert {id(p) for p in network.reader.parameters()} <= {id(p) for p in network.shared_parameters()}


def images():
    return {"image": torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}


class Take(nn.Module):
    """An input stage that takes one tensor."""

    def forward(self, inputs):
        return inputs["image"]


def convnet():
    with seeded(0):
        stages = {
            "input": Take(),
            "conv1": nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            "conv2": nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU()),
        }
    return Encoder(stages, n_features=5, channels={"input": 1, "conv1": 3, "conv2": 5})


@pytest.mark.parametrize("kind", [MMoE, OMoE, DSelectK, PLE])
@pytest.mark.parametrize("grid", [1, 2])
def test_experts_of_images_have_gates_on_means_over_cells(kind, grid):
    network, inputs = kind(MIXED, convnet(), grid=grid).double(), images()
    scores = network.all_scores(inputs)
    own = {"image": inputs["image"].expand(T, *inputs["image"].shape)}
    torch.testing.assert_close(network.all_scores(own, own_rows=True), scores, rtol=0, atol=1e-12)
    seen = network.reader.seen(inputs["image"], False, None)
    step = 6 // grid
    cells = inputs["image"].unfold(2, step, step).unfold(3, step, step).mean((-1, -2)).flatten(1)
    torch.testing.assert_close(seen, cells, rtol=0, atol=1e-14)


def test_mmoe_of_images_mixes_what_plain_convolutions_say():
    network, inputs = MMoE(MIXED, convnet(), n_experts=2).double(), images()
    stages = network.experts.stack.stages
    said = [stages["conv2"].copy(e)(stages["conv1"].copy(e)(inputs["image"])).mean((-1, -2)) for e in range(2)]
    gates = network.gates(inputs["image"].mean((-1, -2)))
    for t in range(T):
        mixture = sum(gates[t][:, [e]] * said[e] for e in range(2))
        torch.testing.assert_close(network.all_scores(inputs)[t], head(network, t, mixture), rtol=0, atol=1e-12)


def test_many_tasks_share_one_matrix_product_of_gates():
    tasks = [Regression(f"t{t}") for t in range(139)]
    network = MMoE(tasks, encoder()).double()
    assert network.all_scores(table(4)).shape == (139, 4, 1)
    assert [tuple(p.shape) for p in network.gates.parameters()] == [(139, 3, 4)]


def test_a_copied_network_keeps_its_own_use():
    network = build(MMoE)
    other = copy.deepcopy(network)
    other.all_scores(table(ROWS))
    assert network.use.seen.sum() == 0
    assert other.use.seen.tolist() == [[1]] * T


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (MMoE, {"n_experts": 0}, "n_experts is 0"),
        (MMoE, {"towers": (4, 0)}, r"towers is \[4, 0\]"),
        (MMoE, {"grid": 0}, "grid is 0"),
        (MMoE, {"widths": ()}, "only the stage"),
        (DSelectK, {"n_selected": 5}, "n_selected is 5"),
        (PLE, {"n_shared": 0, "n_private": 0}, "at least one expert"),
        (PLE, {"n_private": -1}, "n_private -1"),
        (PLE, {"levels": 3}, "levels is 3"),
        (PLE, {"levels": 0}, "levels is 0"),
    ],
)
def test_impossible_settings_are_refused(kind, options, words):
    with pytest.raises(InputError, match=words):
        build(kind, **options)


def test_an_encoder_without_channels_and_cells_of_a_table_are_refused():
    plain = Encoder({"input": TableInput(3), "layer": nn.Linear(3, 4)}, n_features=4)
    with pytest.raises(InputError, match="channels="):
        MMoE(MIXED, plain)
    with pytest.raises(InputError, match="only images have cells"):
        build(MMoE, grid=2).all_scores(table(ROWS))
