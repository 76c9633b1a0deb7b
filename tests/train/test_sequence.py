import itertools

import numpy as np
import pytest
import torch
from tests.train.examples import schools, wide

from polytask.balance import Equal
from polytask.core.data import Labels, TaskData
from polytask.core.scaling import TargetScaler
from polytask.deep import JointManyTask, MultiTaskLoss, mlp
from polytask.train import TrainSettings, fit
from polytask.train.batches import Placed
from polytask.train.sequence import TaskSampler

ORDER = [[2], [0], [3], [1]]


def sampler(data, order=ORDER, **options):
    placed = Placed(data, TargetScaler.fit(data), torch.device("cpu"))
    return TaskSampler(placed, order, **{"batch_size": 16, "seed": 1, **options})


def rows_of(batch, data):
    """Numbers of the rows of a batch, found by their inputs."""
    first = torch.from_numpy(data.inputs["numeric"][:, 1].astype(np.float32))
    return [int(torch.nonzero(first == value)[0]) for value in batch.inputs["numeric"][:, 1]]


@pytest.mark.parametrize("data", [wide(90, missing=0.4), schools((40, 30, 20, 10))], ids=["wide", "long"])
@pytest.mark.parametrize("order", [ORDER, [[3, 1], [0, 2]], [[0, 1, 2, 3]]], ids=len)
def test_an_epoch_sees_every_labelled_row_of_each_group_once_and_the_groups_in_order(order, data):
    drawn = sampler(data, order)
    drawn.start(0)
    seen = {tuple(tasks): [] for tasks in order}
    groups = [tuple(drawn.tasks(step)[0]) for step in range(drawn.steps)]
    for step, tasks in enumerate(groups):
        batch = drawn.batch(step)
        assert batch.present[list(tasks)].any(0).all()
        assert len(batch.inputs["numeric"]) <= 16
        seen[tasks] += rows_of(batch, data)
    assert list(dict.fromkeys(groups)) == [tuple(tasks) for tasks in order]
    for tasks, rows in seen.items():
        labelled = [data.labels[data.names[task]].rows for task in tasks]
        assert sorted(rows) == np.unique(np.concatenate(labelled)).tolist()


def test_the_first_step_of_every_group_is_told():
    drawn = sampler(wide(90))
    firsts = [step for step in range(drawn.steps) if drawn.tasks(step)[1]]
    assert firsts == drawn.starts[:-1]
    assert len(firsts) == 4


def test_epochs_differ_and_are_drawn_again_from_seed_and_number():
    drawn, again, data = sampler(wide(90)), sampler(wide(90)), wide(90)
    found = []
    for epoch in (0, 1):
        drawn.start(epoch)
        found.append(rows_of(drawn.batch(0), data))
    again.start(1)
    assert rows_of(again.batch(0), data) == found[1] != found[0]


def test_a_groups_rows_do_not_depend_on_which_other_tasks_there_are():
    data = wide(90)
    one, other = sampler(data), sampler(data.only([data.names[2]]), [[0]])
    one.start(3)
    other.start(3)
    assert rows_of(one.batch(0), data)[:8] == rows_of(other.batch(0), data)[:8]


def test_groups_without_labels_are_passed_over():
    data = wide(90)
    none = {**data.labels, "ill": Labels(np.zeros(0, dtype=np.int64), np.zeros(0))}
    bare = TaskData(data.tasks, data.inputs, none)
    assert [sampler(bare).tasks(step)[0] for step in sampler(bare).starts[:-1]] == [[2], [0], [3]]
    assert sampler(bare, [[0], [1, 2]]).order == [[0], [1, 2]]


SETTINGS = TrainSettings(max_epochs=2, batch_size=32, device="cpu", learning_rate=1e-2, clip=None)
LEVELS = {"height": 2, "ill": 1, "health": 2, "colour": 1}


def cascade(data, **options):
    return JointManyTask(data.tasks, mlp(5, (8, 6)), levels=LEVELS, **options)


@pytest.mark.parametrize("order", ["levels", "tasks"])
def test_training_level_by_level_is_the_loop_of_the_paper(order):
    data = wide(120, missing=0.3)
    options = {"delta": 0.1, "head_delta": 1.0, "order": order}
    network, twin = cascade(data, **options), cascade(data, **options)
    fitted = fit(network, Equal(4), data, settings=SETTINGS, seed=5)
    drawn = sampler(data, twin.task_order(), batch_size=32, seed=5)
    biases = [p for name, p in twin.named_parameters() if "bias" in name.rsplit(".", 1)[-1]]
    known = {id(p) for p in biases}
    groups = [
        {"params": [p for p in twin.parameters() if id(p) not in known], "weight_decay": 1e-4},
        {"params": biases, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=1e-2, fused=True)
    for epoch in range(2):
        drawn.start(epoch)
        for step in range(drawn.steps):
            tasks, first = drawn.tasks(step)
            if first:
                twin.begin_tasks(tasks)
            batch = drawn.batch(step)
            optimiser.zero_grad()
            scores = twin.train().all_scores(batch.inputs, only=tasks)
            MultiTaskLoss([data.tasks[task] for task in tasks])(
                scores, batch.targets[tasks], batch.present[tasks]
            ).sum().backward()
            optimiser.step()
            twin.after_step(1e-2)
    for (name, mine), its in zip(fitted.network.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-6, msg=name)


def test_heads_of_higher_tasks_do_not_move_while_lower_tasks_are_trained():
    """Not even by the optimiser's momentum."""
    data = wide(120)
    seen = []

    class Watched(JointManyTask):
        def after_step(self, learning_rate):
            seen.append((int(self.current), self.outputs["layer2"].heads.linear.weights["weight"].detach().clone()))
            super().after_step(learning_rate)

    fit(Watched(data.tasks, mlp(5, (8, 6)), levels=LEVELS), Equal(4), data, settings=SETTINGS)
    moves = 0
    for (_, before), (level, after) in itertools.pairwise(seen):
        if level == 0:
            assert before.equal(after)
            moves += 1
    assert moves == 2 * 5 - 1


def test_every_task_is_learned_and_judged_when_they_are_trained_in_turn():
    data, valid = wide(240), wide(80, seed=0)
    fitted = fit(cascade(data), Equal(4), data, valid, settings=TrainSettings(max_epochs=15, device="cpu"))
    assert np.isfinite(fitted.train_curve).all()
    assert (fitted.train_curve[-1] < fitted.train_curve[0]).all()


def test_asking_for_own_rows_changes_nothing_where_tasks_take_turns():
    """A turn holds the rows with labels of its tasks and no others, in training and in judging."""
    data, valid = schools(), schools(seed=1)
    levels = {name: 1 + number % 2 for number, name in enumerate(data.names)}
    curves = []
    for own_rows in (True, None):
        network = JointManyTask(data.tasks, mlp(data.inputs["numeric"].shape[1], (8, 6)), levels=levels)
        settings = TrainSettings(max_epochs=2, device="cpu", own_rows=own_rows)
        curves.append(fit(network, Equal(len(data.tasks)), data, valid, settings=settings).valid_curve)
    np.testing.assert_array_equal(*curves)
