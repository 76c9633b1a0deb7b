import pytest
import torch
from tests.deep.networks import CARDINALITIES, MIXED, encoder, labels, table
from tests.deep.test_networks import train
from torch import nn

from polytask.core.errors import InputError
from polytask.core.task import Binary, Multiclass, Regression
from polytask.deep import Encoder, HardSharing, JointManyTask, LowSupervision, MultiTaskLoss, bilstm, convnet
from polytask.deep.soft_labels import SoftLabels

ROWS = 9
ALL = torch.ones(len(MIXED), ROWS, dtype=torch.bool)
DEEP = {"price": 3, "sold": 1, "type": 2, "state": 1, "area": 3}
CHAIN = (Multiclass("low", classes=("a", "b", "c")), Binary("middle", classes=("no", "yes")), Regression("high"))


def joint(levels=DEEP, seed=0, tasks=MIXED, widths=(8, 7, 6), **options):
    shape = {name: options.pop(name) for name in ("norm", "cardinalities") if name in options}
    return JointManyTask(tasks, encoder(widths, seed=seed, **shape), levels=levels, seed=seed, **options).double()


def chain(**options):
    """One task per level, as in the paper."""
    return joint({"low": 1, "middle": 2, "high": 3}, tasks=CHAIN, **options)


class Plain(nn.Module):
    """The cascade written out task by task, one row of equations per level."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.stages = [network.trunk.stages[name].copy(0) for name in network.trunk.names]
        self.heads, self.tables = {}, {}
        for tap, members in network.members.items():
            level = network.outputs[network.trunk.names[tap]]
            for place, t in enumerate(members):
                self.heads[t] = level.heads.linear.copy(place)
                if level.embedding is not None:
                    self.tables[t] = level.embedding.detach()[place].clone().requires_grad_()
        found = [*self.heads.values(), *self.stages]
        self.trained = [p for module in found for p in module.parameters()] + list(self.tables.values())

    def forward(self, inputs):
        tasks, levels, scores = self.network.tasks, self.network.levels, {}
        x = h = self.stages[0](inputs)
        for stage in range(len(self.stages)):
            if stage:
                parts = [h]
                if stage - 1 in levels:
                    if self.network.shortcuts and stage > 1:
                        parts.append(x)
                    if self.network.label_embeddings:
                        told = [self.said(tasks[t], scores[t]) @ self.tables[t] for t in scores]
                        parts.append(sum(told))
                h = self.stages[stage](torch.cat(parts, dim=1))
            for t, level in enumerate(levels):
                if level == stage:
                    scores[t] = self.heads[t](h)
        return torch.stack([nn.functional.pad(scores[t], (0, 3 - scores[t].shape[1])) for t in range(len(tasks))])

    def said(self, task, scores):
        if task.kind == "regression":
            soft = scores[:, :1]
        elif task.kind == "binary":
            second = torch.sigmoid(scores[:, :1])
            soft = torch.cat([1 - second, second], dim=1)
        elif task.kind == "multiclass":
            soft = scores[:, : task.n_outputs].softmax(1)
        else:
            above = torch.sigmoid(scores[:, : task.n_outputs])
            above = torch.stack([above[:, : k + 1].min(1).values for k in range(task.n_outputs)], dim=1)
            soft = torch.cat([1 - above[:, :1], above[:, :-1] - above[:, 1:], above[:, -1:]], dim=1)
        table = max(t.shape[0] for t in self.tables.values())
        own = next(self.tables[t] for t in self.tables if self.network.tasks[t] is task)
        return nn.functional.pad(soft, (0, min(table, own.shape[0]) - soft.shape[1]))


# -- contained special cases and the twin ----------------------------------------------------------


@pytest.mark.parametrize("own", [False, True])
def test_with_every_task_at_the_last_stage_it_is_hard_sharing_to_the_bit(own):
    inputs, targets = table(*((len(MIXED), ROWS) if own else (ROWS,)), categorical=True), labels(MIXED, ROWS)
    shape = {"cardinalities": CARDINALITIES, "norm": "batch"}
    networks = joint(None, widths=(8, 6), **shape), HardSharing(MIXED, encoder(**shape)).double()
    scores = [train(network, MIXED, inputs, targets, own=own).all_scores(inputs, own) for network in networks]
    assert scores[0].equal(scores[1])


def test_without_shortcuts_labels_and_regularisation_it_is_low_supervision():
    inputs, targets = table(ROWS), labels(MIXED, ROWS)
    bare = joint(shortcuts=False, label_embeddings=False, delta=0.0, head_delta=0.0)
    low = LowSupervision(MIXED, encoder((8, 7, 6)), levels=DEEP).double()
    for tap, members in bare.members.items():
        heads = bare.outputs[bare.trunk.names[tap]].heads.linear.weights
        for name, weight in low.heads.linear.weights.items():
            for place, t in enumerate(members):
                part = weight.data[t, : low.widths[t]] if name == "weight" else weight.data[t]
                heads[name].data[place].copy_(part[..., : heads[name].shape[-1]])
    scores = [train(network, MIXED, inputs, targets).all_scores(inputs) for network in (bare, low)]
    torch.testing.assert_close(*scores, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shortcuts", [True, False])
@pytest.mark.parametrize("label_embeddings", [True, False])
@pytest.mark.parametrize("levels", [DEEP, {"price": 3, "sold": 1, "type": 3, "state": 0, "area": 0}])
def test_it_trains_like_its_equations_written_out_task_by_task(levels, shortcuts, label_embeddings):
    inputs, targets = table(ROWS, categorical=True), labels(MIXED, ROWS)
    network = joint(
        levels, cardinalities=CARDINALITIES, shortcuts=shortcuts, label_embeddings=label_embeddings, order="together"
    )
    plain = Plain(network)
    loss, optimiser = MultiTaskLoss(MIXED), torch.optim.Adam(plain.trained, lr=0.05)
    for _ in range(5):
        optimiser.zero_grad()
        loss(plain(inputs), targets, ALL).sum().backward()
        optimiser.step()
    train(network, MIXED, inputs, targets)
    mine, its = network.all_scores(inputs), plain(inputs)
    for t, task in enumerate(MIXED):
        torch.testing.assert_close(mine[t, :, : task.n_outputs], its[t, :, : task.n_outputs], rtol=0, atol=1e-10)


def test_images_and_sequences_read_the_input_at_every_level():
    generator = torch.Generator().manual_seed(0)
    picture = {"image": torch.randn(ROWS, 2, 8, 8, generator=generator)}
    sequence = {
        "sequence": torch.randn(ROWS, 6, 4, generator=generator),
        "length": torch.arange(ROWS) % 6 + 1,
    }
    images = convnet((2, 8, 8), (4, 5), widths=(6,))
    for inputs, trunk in ((picture, images), (sequence, bilstm(n_inputs=4, hidden=(3, 2, 2)))):
        network = JointManyTask(CHAIN, trunk, levels={"low": 1, "middle": 2, "high": 3}, dim=2)
        scores = network.all_scores(inputs)
        assert scores.shape == (3, ROWS, 3)
        loss = scores[2].square().sum()
        first = next(network.trunk.stages["input"].parameters(), None)
        loss.backward()
        assert first is None or first.grad is not None
        alone = {name: tensor[[4]] for name, tensor in inputs.items()}
        torch.testing.assert_close(network.all_scores(alone)[:, 0], scores[:, 4], rtol=0, atol=1e-5)
        own = {name: torch.stack([tensor, tensor.flip(0), tensor]) for name, tensor in inputs.items()}
        expected = torch.stack([scores[0], scores[1].flip(0), scores[2]])
        torch.testing.assert_close(network.all_scores(own, True), expected, rtol=0, atol=1e-5)


# -- label embeddings ------------------------------------------------------------------------------


def gradient_of_low_head(network):
    network.all_scores(table(ROWS), only=[2]).square().sum().backward()
    return network.outputs["layer1"].heads.linear.weights["weight"].grad


def test_a_higher_task_reaches_the_heads_below_through_what_they_predict():
    assert (gradient_of_low_head(chain()) != 0).any()


def test_without_label_embeddings_it_does_not_reach_them():
    network = chain(label_embeddings=False)
    assert gradient_of_low_head(network) is None
    assert all(level.embedding is None for level in network.outputs.values())


def test_label_embeddings_of_all_levels_below_add_up():
    network, inputs = chain(), table(ROWS)
    seen = []
    network.trunk.stages["layer3"].stack.register_forward_hook(lambda _m, args, _y: seen.append(args[0]))
    scores = network.all_scores(inputs)
    low, middle = (network.outputs[name] for name in ("layer1", "layer2"))
    second = torch.sigmoid(scores[1][:, :1])
    expected = scores[0].softmax(1) @ low.embedding[0] + torch.cat([1 - second, second], 1) @ middle.embedding[0]
    torch.testing.assert_close(seen[0][:, -8:], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(seen[0][:, 7:10], inputs["numeric"], rtol=0, atol=0)


def test_soft_labels_are_the_probabilities_of_each_kind_and_sum_to_one():
    scores = torch.randn(5, ROWS, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    soft = SoftLabels(MIXED)(scores)
    assert soft.shape == (5, ROWS, 4)
    for t, task in enumerate(MIXED):
        if task.labels:
            expected = torch.from_numpy(task.probabilities(scores[t, :, : task.n_outputs].numpy()))
            torch.testing.assert_close(soft[t, :, : len(task.labels)], expected, rtol=0, atol=1e-12)
            torch.testing.assert_close(soft[t].sum(1), torch.ones(ROWS, dtype=torch.float64))
            assert (soft[t, :, len(task.labels) :] == 0).all()
        else:
            assert soft[t, :, 0].equal(scores[t, :, 0])
            assert (soft[t, :, 1:] == 0).all()


def test_soft_labels_let_gradients_through():
    scores = torch.randn(5, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(SoftLabels(MIXED), (scores,))


def test_levels_above_the_tasks_asked_for_are_not_computed():
    network, seen = chain(), []
    for name in network.trunk.names:
        network.trunk.stages[name].stack.register_forward_hook(lambda *_, name=name: seen.append(name))
    for task, stages in zip(CHAIN, (2, 3, 4), strict=True):
        seen.clear()
        network(table(ROWS), [task.name])
        assert seen == list(network.trunk.names[:stages])


def test_with_own_rows_only_rows_of_tasks_further_up_go_on():
    network, rows = chain(), []
    for name in network.trunk.names:
        network.trunk.stages[name].stack.register_forward_hook(lambda _m, _a, y: rows.append(y[0].shape[-2]))
    network.all_scores(table(3, ROWS), True)
    assert rows == [3 * ROWS, 3 * ROWS, 2 * ROWS, ROWS]


# -- successive regularisation ---------------------------------------------------------------------


def shift(network, by=0.1):
    for parameter in network.parameters():
        parameter.data += by


def sizes(network, names):
    return {name: sum(p.numel() for p in network.get_submodule(name).parameters()) for name in names}


@pytest.mark.parametrize("anchor", ["level", "all"])
def test_the_penalty_is_0_when_a_task_begins_and_its_formula_after_a_shift(anchor):
    network = chain(anchor=anchor, cardinalities=())
    count = sizes(
        network, ["trunk.stages.layer1", "trunk.stages.layer2", "outputs.layer1.heads", "outputs.layer2.heads"]
    )
    table_size = network.outputs["layer1"].embedding.numel()
    first, second = 1e-3 * count["trunk.stages.layer1"] + 1e-2 * count["outputs.layer1.heads"], 0.0
    second = 1e-3 * (count["trunk.stages.layer2"] + table_size) + 1e-2 * count["outputs.layer2.heads"]
    expected = {0: 0.0, 1: first, 2: second + (first if anchor == "all" else 0.0)}
    for task in (0, 1, 2, 1):
        network.begin_tasks([task])
        assert network.penalty() == 0
        shift(network)
        assert network.penalty().item() == pytest.approx(0.1**2 * expected[task], rel=1e-9)


def test_the_first_stage_is_kept_while_any_task_is_trained():
    network = JointManyTask(
        CHAIN, encoder((8, 7, 6), cardinalities=CARDINALITIES), levels={"low": 1, "middle": 2, "high": 3}
    ).double()
    for task in range(3):
        network.begin_tasks([task])
        for parameter in network.trunk.stages["input"].parameters():
            parameter.data += 0.1
        count = sum(p.numel() for p in network.trunk.stages["input"].parameters())
        assert network.penalty().item() == pytest.approx(1e-3 * 0.01 * count, rel=1e-9)


def test_the_proximal_step_minimises_its_objective():
    before, after = chain(delta=0.7, head_delta=2.0), chain(delta=0.7, head_delta=2.0)
    for network in (before, after):
        network.begin_tasks([2])
        shift(network)
    after.after_step(0.3)
    distances = [
        (mine - its.detach()).square().sum() for mine, its in zip(after.parameters(), before.parameters(), strict=True)
    ]
    objective = 0.5 * sum(distances) + 0.3 * sum(
        delta * (parameter - start).square().sum() for parameter, start, delta in after._kept()
    )
    for gradient in torch.autograd.grad(objective, list(after.parameters())):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-11)


def one_epoch(network, inputs, targets, steps=3):
    """Plain sequential training by gradient descent."""
    loss, optimiser = MultiTaskLoss(network.tasks), torch.optim.SGD(network.parameters(), lr=0.1)
    for (task,) in network.task_order():
        network.begin_tasks([task])
        for _ in range(steps):
            optimiser.zero_grad()
            scores = network.all_scores(inputs, only=[task])
            full = scores.new_zeros(3, *scores.shape[1:]).index_copy(0, torch.tensor([task]), scores)
            present = torch.zeros(3, ROWS, dtype=torch.bool)
            present[task] = True
            loss(full, targets, present).sum().backward()
            optimiser.step()
            network.after_step(0.1)
    return network


def test_delta_0_is_plain_sequential_training():
    inputs, targets = table(ROWS), labels(CHAIN, ROWS)
    free = one_epoch(chain(delta=0.0, head_delta=0.0), inputs, targets)
    assert not [name for name, _ in free.named_buffers() if name.startswith("start_")]
    regularised = chain()
    regularised.after_step = lambda _: None
    plain = one_epoch(regularised, inputs, targets)
    assert free.all_scores(inputs).equal(plain.all_scores(inputs))
    assert not one_epoch(chain(), inputs, targets).all_scores(inputs).equal(free.all_scores(inputs))


def test_a_huge_delta_freezes_the_levels_below():
    inputs, targets = table(ROWS), labels(CHAIN, ROWS)
    network = chain(delta=1e12, head_delta=1e12, anchor="all")
    loss, optimiser = MultiTaskLoss(CHAIN), torch.optim.SGD(network.parameters(), lr=0.1)
    network.begin_tasks([2])
    start = {name: value.clone() for name, value in network.state_dict().items()}
    for _ in range(5):
        optimiser.zero_grad()
        loss(network.all_scores(inputs), targets, torch.tensor([[0], [0], [1]]).bool().expand(3, ROWS)).sum().backward()
        optimiser.step()
        network.after_step(0.1)
    for name, value in network.state_dict().items():
        moved = (value - start[name]).abs().max()
        if "layer3" in name or name == "outputs.layer2.embedding":
            assert moved > 1e-3, name
        else:
            assert moved < 1e-6, name


def test_an_epoch_goes_through_levels_or_tasks_from_low_to_high():
    assert joint().task_order() == [[1, 3], [2], [0, 4]]
    assert joint(order="tasks").task_order() == [[1], [3], [2], [0], [4]]
    assert chain().task_order() == chain(order="tasks").task_order()
    assert joint(order="together").task_order() is None
    assert joint(order="together").penalty() == 0


def test_what_is_kept_is_part_of_the_state():
    network, fresh = chain(), chain(seed=4)
    network.begin_tasks([2])
    shift(network)
    fresh.load_state_dict(network.state_dict())
    assert fresh.penalty().item() == network.penalty().item() > 0


def test_heads_start_at_constants_and_levels_above_hear_of_it():
    network, inputs = joint(), table(ROWS)
    constants = torch.arange(15.0).view(5, 3)
    network.start_heads(constants)
    bias = {t: network.outputs[f"layer{DEEP[task.name]}"].heads.linear.weights["bias"] for t, task in enumerate(MIXED)}
    for tap, members in network.members.items():
        for place, t in enumerate(members):
            outputs = MIXED[t].n_outputs
            assert bias[t][place, :outputs].tolist() == constants[t, :outputs].tolist(), tap
            assert (bias[t][place, outputs:] == 0).all()
    assert network.all_scores(inputs).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delta": -1.0}, "delta is -1"),
        ({"head_delta": float("inf")}, "head_delta is inf"),
        ({"dim": 0}, "dim is 0"),
        ({"anchor": "levels"}, 'unknown anchor "levels". Did you mean "level"'),
        ({"order": "level"}, 'unknown order "level". Did you mean "levels"'),
        ({"levels": {"low": 1}}, "levels has no entry"),
    ],
)
def test_bad_arguments_are_refused_by_name(options, message):
    with pytest.raises(InputError, match=message):
        JointManyTask(CHAIN, encoder((8, 7, 6)), **{"levels": {"low": 1, "middle": 2, "high": 3}, **options})


def test_a_level_that_begins_with_a_norm_is_refused_by_name():
    stages = dict(encoder((8,)).stages)
    stages["layer2"] = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 4))
    trunk = Encoder(stages, n_features=4, channels={"input": 3, "layer1": 8, "layer2": 4})
    with pytest.raises(InputError, match=r"begins with LayerNorm\(\(8,\)"):
        JointManyTask(CHAIN[:2], trunk, levels={"low": 1, "middle": 2})
