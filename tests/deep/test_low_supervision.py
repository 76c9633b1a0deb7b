import pytest
import torch
from tests.deep.networks import CARDINALITIES, LEVELS, MIXED, encoder, labels, table
from tests.deep.test_networks import train
from torch import nn

from polytask.core.errors import InputError
from polytask.deep import Encoder, HardSharing, LowSupervision, MultiTaskLoss, bilstm

ROWS = 9
ALL = torch.ones(len(MIXED), ROWS, dtype=torch.bool)
STAGES = ("input", "layer1", "layer2")


def low(levels=LEVELS, seed=0, **options):
    return LowSupervision(MIXED, encoder(seed=seed, **options), levels=levels, seed=seed).double()


class Plain(nn.Module):
    """The same network as plain modules and a loop over tasks."""

    def __init__(self, network):
        super().__init__()
        self.levels = network.levels
        self.stages = nn.ModuleList(network.trunk.stages[name].copy(0) for name in network.trunk.names)
        self.heads = nn.ModuleList(network.heads.linear.copy(t) for t in range(len(MIXED)))
        self.widths = network.widths

    def forward(self, inputs, task):
        x = inputs
        for stage in self.stages[: self.levels[task] + 1]:
            x = stage(x)
        head = self.heads[task]
        return nn.functional.linear(x, head.weight[:, : self.widths[task]], head.bias)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("levels", [None, {task.name: 2 for task in MIXED}, {task.name: "layer2" for task in MIXED}])
def test_with_every_task_at_the_last_stage_it_is_hard_sharing_to_the_bit(levels, own):
    inputs, targets = table(*((len(MIXED), ROWS) if own else (ROWS,)), categorical=True), labels(MIXED, ROWS)
    shape = {"cardinalities": CARDINALITIES, "norm": "batch"}
    one, hard = low(levels, **shape), HardSharing(MIXED, encoder(**shape)).double()
    scores = [train(network, MIXED, inputs, targets, own=own).all_scores(inputs, own) for network in (one, hard)]
    assert scores[0].equal(scores[1])
    assert one.state_dict().keys() == hard.state_dict().keys()
    assert all(value.equal(hard.state_dict()[name]) for name, value in one.state_dict().items())


def test_it_trains_like_plain_modules_in_a_loop_over_tasks():
    inputs, targets = table(ROWS, categorical=True), labels(MIXED, ROWS)
    network = low(cardinalities=CARDINALITIES, norm="layer")
    plain = Plain(network)
    optimiser, loss = torch.optim.Adam(plain.parameters(), lr=0.05), MultiTaskLoss(MIXED)
    torch.testing.assert_close(network.all_scores(inputs)[3], plain(inputs, 3), rtol=0, atol=1e-10)
    train(network, MIXED, inputs, targets)
    for _ in range(5):
        optimiser.zero_grad()
        loss(torch.stack([plain(inputs, t) for t in range(5)]), targets, ALL).sum().backward()
        optimiser.step()
    scores = network.all_scores(inputs)
    for t, task in enumerate(MIXED):
        mine, its = scores[t, :, : task.n_outputs], plain(inputs, t)[:, : task.n_outputs]
        torch.testing.assert_close(mine, its, rtol=0, atol=1e-10)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("task", range(len(MIXED)))
def test_a_tasks_batch_gives_no_gradient_to_stages_above_its_level(task, own):
    network = low(cardinalities=CARDINALITIES)
    inputs = table(*((1, ROWS) if own else (ROWS,)), categorical=True)
    network.all_scores(inputs, own, only=[task]).square().sum().backward()
    for stage, name in enumerate(STAGES):
        gradients = [p.grad for p in network.trunk.stages[name].parameters()]
        if stage > network.levels[task]:
            assert all(gradient is None for gradient in gradients), name
        else:
            assert all(gradient is not None and (gradient != 0).any() for gradient in gradients), name


def test_stages_above_the_tasks_asked_for_are_not_computed():
    network, seen = low(), []
    for name in STAGES:
        network.trunk.stages[name].stack.register_forward_hook(lambda *_, name=name: seen.append(name))
    asked = {task.name: [task.name] for task in MIXED}
    for task in MIXED:
        seen.clear()
        network(table(ROWS), asked[task.name])
        assert seen == list(STAGES[: LEVELS[task.name] + 1])
        seen.clear()
        network.all_scores(table(1, ROWS), True, only=[[t.name for t in MIXED].index(task.name)])
        assert seen == list(STAGES[: LEVELS[task.name] + 1])


def test_with_own_rows_only_tasks_further_up_go_on():
    network, rows = low(), []
    for name in STAGES:
        network.trunk.stages[name].stack.register_forward_hook(
            lambda _m, _a, out: rows.append(out[0].shape[:2].numel())
        )
    network.all_scores(table(5, ROWS), True)
    expected = [sum(level >= stage for level in network.levels) for stage in range(3)]
    assert rows == [ROWS * count for count in expected]


def test_low_tasks_do_not_change_when_the_layers_above_are_drawn_again():
    network, inputs = low(), table(ROWS)
    before = network.all_scores(inputs)
    for parameter in network.trunk.stages["layer2"].parameters():
        parameter.data.normal_()
    changed = (network.all_scores(inputs) != before).flatten(1).any(1)
    assert changed.tolist() == [LEVELS[task.name] == 2 for task in MIXED]


def test_a_head_reads_no_more_features_than_its_level_has():
    network = low()
    assert network.widths == [{0: 3, 1: 8, 2: 6}[LEVELS[task.name]] for task in MIXED]
    weight = train(network, MIXED, table(ROWS), labels(MIXED, ROWS)).heads.linear.weights["weight"]
    for t, width in enumerate(network.widths):
        assert (weight[t, :width, 0] != 0).all()
        assert (weight[t, width:] == 0).all()


def test_stages_above_the_highest_level_are_left_out():
    network = low({task.name: 1 for task in MIXED})
    assert network.trunk.names == STAGES[:2]
    assert network.all_scores(table(ROWS)).shape == (5, ROWS, 3)


def test_sequences_are_tapped_at_the_mean_over_their_valid_positions():
    tasks = MIXED[:2]
    network = LowSupervision(tasks, bilstm(n_inputs=4, hidden=(3, 2)), levels={"price": 2, "sold": 1}).double()
    inputs = {"sequence": torch.randn(ROWS, 6, 4, dtype=torch.float64), "length": torch.arange(ROWS) % 6 + 1}
    scores = network.all_scores(inputs)
    for row in range(ROWS):
        length = int(inputs["length"][row])
        alone = {"sequence": inputs["sequence"][[row], :length]}
        torch.testing.assert_close(network.all_scores(alone)[:, 0], scores[:, row], rtol=0, atol=1e-12)
    own = {name: torch.stack([tensor, tensor.flip(0)]) for name, tensor in inputs.items()}
    expected = torch.stack([scores[0], scores[1].flip(0)])
    torch.testing.assert_close(network.all_scores(own, True), expected, rtol=0, atol=1e-12)


def test_relations_show_the_stages_each_task_passes():
    found = low().relations()["levels"]
    assert found.columns == STAGES
    assert found.values.sum(1).tolist() == [LEVELS[task.name] + 1 for task in MIXED]


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ({**LEVELS, "pric": 1}, 'levels: unknown task "pric". Did you mean "price"'),
        ({"price": 1}, 'levels has no entry for the task "sold"'),
        ({**LEVELS, "price": 3}, r'levels has 3 for the task "price"; the stages are 0 … 2'),
        ({**LEVELS, "price": "layer9"}, 'levels of task "price": unknown stage "layer9"'),
    ],
)
def test_levels_that_cannot_be_are_refused_by_name(levels, message):
    with pytest.raises(InputError, match=message):
        low(levels)


def test_an_encoder_that_hides_its_channels_is_refused():
    whole = encoder()
    hidden = Encoder(dict(whole.stages), n_features=6)
    with pytest.raises(InputError, match="build it with channels="):
        LowSupervision(MIXED, hidden, levels=LEVELS)
    assert LowSupervision(MIXED, hidden).levels == (2,) * 5
