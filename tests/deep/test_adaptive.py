import copy

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import cophenet, is_valid_linkage
from scipy.spatial.distance import squareform
from tests.deep.networks import CARDINALITIES, MIXED, encoder, labels, table
from tests.deep.test_networks import train
from torch import nn

from polytask.core.errors import InputError
from polytask.core.task import Binary, Regression
from polytask.deep import AdaptiveSharing, Encoder, HardSharing, HeldOut, MultiTaskLoss, SingleTask, bilstm
from polytask.deep.branching import best_grouping, margins, task_affinity
from polytask.deep.tree import check_tree, plan, tree_relation

ROWS = 9
TREE = [[0, 0, 0, 0, 0], [0, 1, 0, 1, 1], [0, 1, 2, 1, 3]]
ALL = torch.ones(len(MIXED), ROWS, dtype=torch.bool)


def adaptive(tree=TREE, seed=0, **options):
    shape = {name: options.pop(name) for name in ("norm", "dropout", "cardinalities") if name in options}
    return AdaptiveSharing(MIXED, encoder(seed=seed, **shape), tree=tree, seed=seed, **options).double()


def scattered(network, seed=8):
    """The same network with branches that differ."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return network


def convnet():
    """Two convolutions, each followed by pooling in a stage of its own, and a linear stage."""
    torch.manual_seed(0)
    stages = {
        "input": Picture(),
        "conv1": nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        "top": nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU()),
    }
    return Encoder(stages, n_features=5)


class Picture(nn.Module):
    def forward(self, inputs):
        return inputs["image"]


def pictures(*shape):
    return {"image": torch.randn(*shape, 1, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)}


class Plain(nn.Module):
    """The network written as one module per branch, in a loop over tasks."""

    def __init__(self, network):
        super().__init__()
        self.tree = network.tree.tolist()
        self.blocks = nn.ModuleDict(
            {
                f"{name}-{b}": network.trunk.stages[name].copy(b)
                for name in network.trunk.names
                for b in range(network.trunk.stages[name].n)
            }
        )
        self.names = network.trunk.names
        self.heads = nn.ModuleList(network.heads.linear.copy(t) for t in range(len(network.tasks)))

    def forward(self, inputs, task):
        x = inputs
        for name, row in zip(self.names, self.tree, strict=True):
            x = self.blocks[f"{name}-{row[task]}"](x)
        return self.heads[task](x)


# -- contained special cases -----------------------------------------------------------------------


@pytest.mark.parametrize("own", [False, True])
def test_before_the_first_split_it_is_hard_sharing_to_the_bit(own):
    inputs, targets = table(*((len(MIXED), ROWS) if own else (ROWS,)), categorical=True), labels(MIXED, ROWS)
    shape = {"cardinalities": CARDINALITIES, "norm": "batch"}
    grown, hard = adaptive(None, **shape), HardSharing(MIXED, encoder(**shape)).double()
    assert grown.all_scores(inputs, own).equal(hard.all_scores(inputs, own))
    for network in (grown, hard):
        train(network, MIXED, inputs, targets, own=own)
    state = hard.state_dict()
    assert state.keys() == grown.state_dict().keys() - {"tree", "junction", "affinity"}
    assert all(value.equal(grown.state_dict()[name]) for name, value in state.items())
    assert {id(p) for p in grown.shared_parameters()} == {id(p) for p in grown.trunk.parameters()}


@pytest.mark.parametrize("own", [False, True])
def test_with_a_branch_for_every_task_it_is_single_task_learning(own):
    inputs, targets = table(*((len(MIXED), ROWS) if own else (ROWS,))), labels(MIXED, ROWS)
    grown = adaptive([[0] * 5, list(range(5)), list(range(5))], norm="batch")
    single = SingleTask(MIXED, encoder(norm="batch")).double()
    for name, weight in grown.heads.linear.weights.items():
        weight.data.copy_(single.heads.linear.weights[name])
    scores = [train(network, MIXED, inputs, targets, own=own).all_scores(inputs, own) for network in (grown, single)]
    torch.testing.assert_close(*scores, rtol=0, atol=1e-10)
    assert grown.shared_parameters() == []


def test_it_trains_like_one_module_per_branch_in_a_loop_over_tasks():
    inputs, targets = table(ROWS, categorical=True), labels(MIXED, ROWS)
    network = scattered(adaptive(cardinalities=CARDINALITIES, norm="layer"))
    plain = Plain(network)

    def total():
        scores = [nn.functional.pad(plain(inputs, t), (0, 3 - plain.heads[t].out_features)) for t in range(5)]
        return MultiTaskLoss(MIXED)(torch.stack(scores), targets, ALL).sum()

    MultiTaskLoss(MIXED)(network.all_scores(inputs), targets, ALL).sum().backward()
    total().backward()
    for name in network.trunk.names:
        branches = network.trunk.stages[name]
        for b in range(branches.n):
            for (part, weight), own in zip(
                branches.weights.items(), plain.blocks[f"{name}-{b}"].parameters(), strict=True
            ):
                mine = weight.grad[b].T if part == "0.weight" else weight.grad[b]
                torch.testing.assert_close(mine, own.grad, rtol=0, atol=1e-10)
    network.zero_grad()
    train(network, MIXED, inputs, targets)
    optimiser = torch.optim.Adam(plain.parameters(), lr=0.05)
    for _ in range(5):
        optimiser.zero_grad()
        total().backward()
        optimiser.step()
    scores = network.all_scores(inputs)
    for t, task in enumerate(MIXED):
        mine, its = scores[t, :, : task.n_outputs], plain(inputs, t)[:, : task.n_outputs]
        torch.testing.assert_close(mine, its, rtol=0, atol=1e-10)


def test_with_own_rows_a_branch_sees_the_rows_of_all_its_tasks_together():
    network = scattered(adaptive(norm="batch"))
    inputs = table(len(MIXED), ROWS)
    x = inputs["numeric"]
    rows = [x[t] for t in range(5)]
    for name, row in zip(("layer1", "layer2"), TREE[1:], strict=True):
        for b in range(max(row) + 1):
            members = [t for t in range(5) if row[t] == b]
            out = network.trunk.stages[name].copy(b)(torch.cat([rows[t] for t in members]))
            for t, part in zip(members, out.split(ROWS), strict=True):
                rows[t] = part
    expected = torch.stack([network.heads.linear.copy(t)(rows[t]) for t in range(5)]) * network.heads.used
    torch.testing.assert_close(network.all_scores(inputs, True), expected, rtol=0, atol=1e-10)


def test_training_permuted_tasks_permutes_the_result():
    order = [3, 0, 4, 1, 2]
    inputs, targets = table(ROWS), labels(MIXED, ROWS)
    one = scattered(adaptive())
    tasks, tree = tuple(MIXED[t] for t in order), np.array(TREE)[:, order]
    two = AdaptiveSharing(tasks, encoder(), tree=tree).double()
    for name, old_row, new_row in zip(one.trunk.names, TREE, two.tree.tolist(), strict=True):
        for place, t in enumerate(order):
            for part, weight in two.trunk.stages[name].weights.items():
                weight.data[new_row[place]] = one.trunk.stages[name].weights[part].data[old_row[t]]
    for part, weight in two.heads.linear.weights.items():
        weight.data.copy_(one.heads.linear.weights[part][order])
    scores = train(one, MIXED, inputs, targets).all_scores(inputs)[order]
    permuted = train(two, tasks, inputs, targets[order]).all_scores(inputs)
    torch.testing.assert_close(permuted, scores, rtol=0, atol=1e-10)


# -- splits ----------------------------------------------------------------------------------------


def test_a_split_changes_no_score_and_copies_start_with_the_weights_they_copy():
    inputs = table(ROWS)
    network = train(adaptive(None, norm="batch", dropout=0.2), MIXED, inputs, labels(MIXED, ROWS)).eval()
    before = network.all_scores(inputs)
    for stage, row in (("layer2", [0, 1, 0, 1, 1]), ("layer2", TREE[2]), ("layer1", TREE[1])):
        old = network.trunk.stages[stage].weights
        origins = network.split(stage, row)
        torch.testing.assert_close(network.all_scores(inputs), before, rtol=0, atol=1e-12)
        new = network.trunk.stages[stage].weights
        assert set(origins) == set(new.values())
        for name, weight in new.items():
            source, branches = origins[weight]
            assert source is old[name]
            assert weight.equal(source[branches])
    assert network.tree.tolist() == TREE
    assert not network.training
    assert not any(branches.training for branches in network.trunk.stages.values())


def test_a_split_of_a_convolution_changes_no_score_and_takes_the_pooling_above_with_it():
    network = AdaptiveSharing(MIXED, convnet(), seed=0).double()
    inputs = pictures(ROWS)
    train(network, MIXED, inputs, labels(MIXED, ROWS), steps=2).eval()
    before = network.all_scores(inputs)
    for stage in ("top", "conv2", "conv1"):
        network.split(stage, [0, 0, 1, 1, 0])
        torch.testing.assert_close(network.all_scores(inputs), before, rtol=0, atol=1e-12)
    assert network.tree.tolist() == [[0] * 5] + [[0, 0, 1, 1, 0]] * 4
    own = {"image": inputs["image"].expand(5, *inputs["image"].shape)}
    torch.testing.assert_close(network.all_scores(own, True), before, rtol=0, atol=1e-12)


def test_the_number_of_parameters_is_that_of_the_tree():
    network = adaptive()
    first, second, head = 3 * 8 + 8, 8 * 6 + 6, 6 * 3 + 3
    assert sum(p.numel() for p in network.parameters()) == 2 * first + 4 * second + 5 * head
    assert len(network.relations()["branches"].rows) == len(MIXED)


def test_splits_that_are_no_tree_are_refused():
    network = adaptive()
    with pytest.raises(InputError, match="Did you mean"):
        network.split("layer3", [0] * 5)
    with pytest.raises(InputError, match='joins tasks that stage "layer2" separates'):
        network.split("layer2", [0] * 5)
    with pytest.raises(InputError, match="one whole number for each of 5 tasks"):
        network.split("layer2", [0, 1])
    with pytest.raises(InputError, match="branches may part but never meet"):
        adaptive([[0] * 5, [0, 1, 0, 1, 1], [0] * 5])
    with pytest.raises(InputError, match=r"\(stages, tasks\) = \(3, 5\)"):
        adaptive([[0, 1]])


# -- growth ----------------------------------------------------------------------------------------

PAIRS = tuple(Binary(name, classes=("no", "yes")) for name in ("a1", "b1", "a2", "b2"))


def difficult_together(n=400, seed=0):
    """Held-out rows on which the a's are wrong together and the b's are wrong together."""
    rng = np.random.default_rng(seed)
    wrong = (rng.random((2, n)) < 0.5)[[0, 1, 0, 1]] ^ (rng.random((4, n)) < 0.02)
    margin = np.where(wrong, 0.8, 0.2) + 0.05 * rng.normal(size=(4, n))
    targets = (rng.random((4, n)) < 0.5).astype(float)
    second = np.where(targets == 1, 1 - margin, margin)
    scores = np.log(second / (1 - second))[..., None]
    return HeldOut(torch.tensor(scores), torch.tensor(targets), torch.ones(4, n, dtype=torch.bool))


def pairs(**options):
    return AdaptiveSharing(PAIRS, encoder((8, 6, 5)), seed=0, **options)


def test_it_grows_from_the_top_down_by_which_tasks_are_difficult_together():
    network, held_out = pairs(), difficult_together()
    for stage in (3, 2, 1):
        assert network.ready_to_grow(5, stalled=True)
        assert set(network.grow(held_out)) == set(network.trunk.stages[f"layer{stage}"].parameters())
        assert network.tree[stage:].tolist() == [[0, 1, 0, 1]] * (4 - stage)
        assert (network.tree[:stage] == 0).all()
    assert not network.ready_to_grow(5, stalled=True)
    affinity = network.relations()["difficulty"].values
    assert affinity[0, 2] > 0.9 > 0.6 > affinity[0, 1] > 0.4


def test_a_stage_where_one_group_is_best_ends_the_growth():
    network = pairs(alpha=0.0)
    assert network.ready_to_grow(1, stalled=True)
    assert network.grow(difficult_together()) is None
    assert (network.tree == 0).all()
    assert not network.ready_to_grow(100, stalled=True)


def test_a_phase_ends_when_training_stalls_or_after_its_epochs():
    assert not pairs().ready_to_grow(100, stalled=False)
    assert pairs().ready_to_grow(1, stalled=True)
    assert not pairs(phase_epochs=4).ready_to_grow(3, stalled=False)
    assert pairs(phase_epochs=4).ready_to_grow(4, stalled=False)


def test_branches_above_the_junction_are_grouped_not_tasks():
    network, held_out = pairs(base_cost=0.0), difficult_together()
    network.grow(held_out)  # free branches: every task parts
    assert network.tree[3].tolist() == [0, 1, 2, 3]
    network.base_cost = 1.0
    network.grow(held_out)
    assert network.tree[2].tolist() == [0, 1, 0, 1]
    network.base_cost = 0.0
    network.grow(held_out)
    assert network.tree[1].tolist() == [0, 1, 0, 1]  # two branches can form two groups at most


def test_early_stages_cost_twice_as_much_below_each_pooling_layer():
    network = AdaptiveSharing(PAIRS, convnet(), alpha=6.0).double()
    held_out = difficult_together()
    present = held_out.present.numpy()
    A = task_affinity(margins(PAIRS, held_out.scores.numpy(), held_out.targets.numpy(), present), present)
    chosen = [int(best_grouping(A, alpha=6.0, cost=cost).max()) + 1 for cost in (1.0, 2.0, 4.0)]
    assert chosen == [2, 2, 1]
    for stage in ("top", "conv2"):
        assert set(network.grow(held_out)) == set(network.trunk.stages[stage].parameters())
    assert network.grow(held_out) is None  # conv1 has two pooling layers above
    assert network.tree.tolist() == [[0] * 4, [0] * 4, [0] * 4, [0, 1, 0, 1], [0, 1, 0, 1]]


def test_growth_ignores_missing_labels():
    network, held_out = pairs(), difficult_together()
    missing = torch.rand(held_out.present.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    targets = held_out.targets.masked_fill(missing, float("nan"))
    network.grow(HeldOut(held_out.scores, targets, ~missing))
    assert network.tree[3].tolist() == [0, 1, 0, 1]


# -- state -----------------------------------------------------------------------------------------


def test_a_grown_network_is_built_again_from_its_state():
    inputs = table(ROWS)
    grown = train(adaptive(norm="batch"), MIXED, inputs, labels(MIXED, ROWS)).eval()
    for start in (None, [[0] * 5, [0] * 5, [0, 1, 1, 1, 1]]):
        fresh = adaptive(start, seed=5, norm="batch").eval()
        fresh.load_state_dict(grown.state_dict())
        assert fresh.all_scores(inputs).equal(grown.all_scores(inputs))
        assert fresh.relations()["branches"].to_json() == grown.relations()["branches"].to_json()
    back = adaptive(None, norm="batch")
    grown.load_state_dict(back.state_dict())
    assert grown.all_scores(inputs).equal(back.eval().all_scores(inputs))


def test_a_grown_network_inside_another_module_is_built_again_too():
    grown, fresh = nn.ModuleDict({"net": scattered(adaptive())}), nn.ModuleDict({"net": adaptive(None)})
    fresh.load_state_dict(grown.state_dict())
    assert fresh["net"].all_scores(table(ROWS)).equal(grown["net"].all_scores(table(ROWS)))


def test_a_state_with_an_impossible_tree_is_refused_by_name():
    state = adaptive().state_dict()
    state["tree"] = torch.tensor([[0] * 5, [0, 1, 0, 1, 1], [0] * 5])
    with pytest.raises(RuntimeError, match="tree: tree joins in stage 2 tasks that stage 1 separates"):
        adaptive(None).load_state_dict(state)


def test_frozen_stages_stay_frozen_when_they_are_split():
    network = adaptive(None)
    network.trunk.stages["layer2"].requires_grad_(False)
    network.split("layer2", TREE[2])
    assert not any(p.requires_grad for p in network.trunk.stages["layer2"].parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "alpha is -1"),
        ({"base_cost": float("inf")}, "base_cost is inf"),
        ({"phase_epochs": 0}, "phase_epochs is 0"),
    ],
)
def test_bad_arguments_are_refused_by_name(options, message):
    with pytest.raises(InputError, match=message):
        adaptive(None, **options)


# -- trees -----------------------------------------------------------------------------------------


def test_linkage_heights_say_how_many_stages_two_tasks_share():
    rng = np.random.default_rng(0)
    for _ in range(20):
        levels = [np.zeros(7, dtype=int)]
        for _ in range(3):
            levels.append(levels[-1] * 2 + rng.integers(0, 2, 7))
        tree = check_tree(np.array(levels[int(rng.integers(0, 2)) :][:3]), 3, 7)
        found = tree_relation(tree, [Regression(f"t{t}") for t in range(7)]).values
        assert is_valid_linkage(found)
        heights = squareform(cophenet(found))
        for s in range(7):
            for t in range(s):
                shared = int((tree[:, s] == tree[:, t]).sum())
                assert heights[s, t] == 4 - shared


def test_a_plan_runs_only_the_branches_of_the_tasks_asked_for():
    tree = check_tree(TREE, 3, 5)
    steps = plan(tree, [2, 0])
    assert [step.branches for step in steps] == [(0,), (0,), (0, 2)]
    assert [step.parents for step in steps] == [(0,), (0,), (0, 0)]
    assert steps[-1].place == (1, 0)
    network, seen = adaptive(), []
    for name in ("layer1", "layer2"):
        network.trunk.stages[name].stack.register_forward_hook(lambda _m, _a, out: seen.append(len(out[0])))
    network.all_scores(table(ROWS), only=[2, 0])
    assert seen == [1, 2]


def test_deep_copies_grow_apart():
    one = adaptive(None)
    two = copy.deepcopy(one)
    two.split("layer2", TREE[2])
    assert one.trunk.stages["layer2"].n == 1
    torch.testing.assert_close(one.all_scores(table(ROWS)), two.all_scores(table(ROWS)), rtol=0, atol=1e-12)


def test_sequences_branch_like_their_plain_modules():
    tasks = MIXED[:3]
    network = AdaptiveSharing(tasks, bilstm(n_inputs=4, hidden=(3, 2)), tree=[[0] * 3, [0, 0, 1], [0, 1, 2]]).double()
    scattered(network)
    inputs = {"sequence": torch.randn(ROWS, 6, 4, dtype=torch.float64), "length": torch.arange(ROWS) % 6 + 1}
    scores = network.all_scores(inputs)
    for row in range(ROWS):
        length = int(inputs["length"][row])
        x = inputs["sequence"][[row], :length]
        for t in range(3):
            first, second = (network.trunk.stages[f"layer{k}"].copy(int(network.tree[k, t])) for k in (1, 2))
            alone = network.heads.linear.copy(t)(second(first(x)).mean(1)) * network.heads.used[t]
            torch.testing.assert_close(alone[0], scores[t, row], rtol=0, atol=1e-10)
    own = {name: torch.stack([tensor, tensor.flip(0), tensor]) for name, tensor in inputs.items()}
    expected = torch.stack([scores[0], scores[1].flip(0), scores[2]])
    torch.testing.assert_close(network.all_scores(own, True), expected, rtol=0, atol=1e-10)
