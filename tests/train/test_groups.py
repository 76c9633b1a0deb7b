"""Batches in which groups of rows have equal shares: exact shares, epochs, resume, several processes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.train.examples import schools, wide
from tests.train.test_checkpoint import OFTEN, StopError, assert_same_bits, run

from polytask.balance import Equal, GradDrop
from polytask.core.data import TaskData
from polytask.core.errors import InputError
from polytask.core.scaling import TargetScaler
from polytask.deep import HardSharing, mlp
from polytask.train import TrainSettings, fit
from polytask.train.batches import Placed, Share
from polytask.train.groups import GroupSampler, groups_of

CPU = torch.device("cpu")
SIZES = {"north": 70, "south": 25, "west": 10}


def regions(sizes=SIZES, missing=0.0, seed=0):
    """Rows of unequal regions; the first feature is the row's number."""
    names = np.repeat(list(sizes), list(sizes.values()))
    np.random.default_rng(5).shuffle(names)
    data = wide(len(names), seed=seed, missing=missing)
    x = data.inputs["numeric"].copy()
    x[:, 0] = np.arange(len(names))
    return replace(data, inputs={"numeric": x}, keys={"region": names})


def sampler(data, name="region", **options):
    settings = {"batch_size": 16, "seed": 3, **options}
    return GroupSampler(Placed(data, TargetScaler.fit(data), CPU), groups_of(data, name), **settings)


def drawn(found, epoch=0, share=None):
    """Numbers of the rows of every step of an epoch."""
    found.start(epoch)
    batches = [found.batch(step, *([] if share is None else [share])) for step in range(found.steps)]
    return [batch.inputs["numeric"][:, 0].long().numpy() for batch in batches]


@pytest.mark.parametrize("epoch", [0, 1])
def test_every_group_has_the_same_number_of_rows_in_every_step(epoch):
    data = regions()
    found = sampler(data)
    steps = drawn(found, epoch)
    assert len(steps) == 14  # ceil(70 / (16 // 3))
    for rows in steps:
        _, counts = np.unique(data.keys["region"][rows], return_counts=True)
        assert counts.tolist() == [5, 5, 5]
        assert len(rows) <= 16


def test_an_epoch_sees_every_row_of_the_largest_group_once_and_those_of_others_equally_often():
    data = regions()
    rows = np.concatenate(drawn(sampler(data)))
    for name, size in SIZES.items():
        _, counts = np.unique(rows[data.keys["region"][rows] == name], return_counts=True)
        assert len(counts) == size
        assert counts.sum() == 70
        assert counts.max() - counts.min() <= 1


def test_steps_of_an_epoch_that_does_not_divide_differ_by_one_row_of_each_group():
    data = regions({"a": 23, "b": 9})
    steps = drawn(sampler(data, batch_size=10))
    assert sorted({len(rows) for rows in steps}) == [6, 8]
    assert sorted(np.concatenate(steps)[data.keys["region"][np.concatenate(steps)] == "a"]) == sorted(
        np.flatnonzero(data.keys["region"] == "a")
    )


def test_a_groups_rows_depend_on_seed_and_epoch_and_not_on_other_groups():
    data = regions()
    first, again, other = (drawn(sampler(data, seed=seed), 2) for seed in (3, 3, 4))
    assert all((one == two).all() for one, two in zip(first, again, strict=True))
    assert any((one != two).any() for one, two in zip(first, other, strict=True))
    without = data.rows(np.flatnonzero(data.keys["region"] != "west"))
    kept = [rows[data.keys["region"][rows] == "south"] for rows in first]
    alone = [rows[np.isin(rows, np.flatnonzero(data.keys["region"] == "south"))] for rows in drawn(sampler(without), 2)]
    assert np.concatenate(kept)[:25].tolist() == np.concatenate(alone)[:25].tolist()


def test_two_processes_share_a_batch_and_its_balance():
    data = regions({"a": 40, "b": 20})
    found = sampler(data, batch_size=16, least_steps=1)
    whole, parts = drawn(found), [drawn(found, share=Share(number, 2)) for number in range(2)]
    for rows, first, second in zip(whole, *parts, strict=True):
        assert sorted(rows) == sorted([*first, *second])
        for part in (first, second):
            assert (data.keys["region"][part] == "a").sum() == 4


def test_classes_of_a_task_make_groups_and_rows_without_a_value_are_one_of_their_own():
    data = wide(200, missing=0.3)
    found = groups_of(data, "colour")
    assert found.names == ("", "blue", "green", "red")
    labels = data.labels["colour"]
    for code, colour in enumerate(("red", "green", "blue")):
        assert (found.of_row[labels.rows[labels.values == code]] == found.names.index(colour)).all()
    assert (found.of_row == 0).sum() == 200 - len(labels)
    numbers = replace(data, keys={"site": np.where(np.arange(200) % 4 == 0, np.nan, np.arange(200) % 4)})
    assert groups_of(numbers, "site").names == ("", "1.0", "2.0", "3.0")


def test_rows_without_any_label_are_never_drawn():
    data = regions(missing=0.7)
    labelled = np.unique(np.concatenate([labels.rows for labels in data.labels.values()]))
    assert len(labelled) < data.n_rows
    assert set(np.concatenate(drawn(sampler(data))).tolist()) == set(labelled.tolist())


def test_the_loss_of_an_epoch_is_the_mean_over_groups_of_their_means():
    """With a learning rate that changes nothing and sizes that divide, in float64."""
    data = regions({"a": 60, "b": 20, "c": 12})
    network = HardSharing(data.tasks, mlp(5, (6,), seed=0)).double()
    placed = Placed(data, TargetScaler.fit(data), CPU, torch.float64)
    with torch.no_grad():
        scores = network.all_scores(placed.inputs)
    expected = []
    for number, task in enumerate(data.tasks):
        losses = task.losses(scores[number, :, : task.n_outputs].numpy(), placed.targets[:, number].numpy())
        expected.append(np.mean([losses[data.keys["region"] == name].mean() for name in "abc"]))
    settings = TrainSettings(
        sampling="balanced", groups="region", max_epochs=1, batch_size=18, device="cpu", learning_rate=1e-300
    )
    found = fit(network, Equal(4), data, settings=settings)
    np.testing.assert_allclose(found.train_curve[0], expected, rtol=1e-10)


def test_unbiased_weights_are_one_where_every_step_has_the_usual_number_of_labels():
    data = regions({"a": 60, "b": 20, "c": 12})
    found = sampler(data, batch_size=18)
    np.testing.assert_allclose(found.labels, 180.0)
    curves = []
    for missing in ("mean", "unbiased"):
        settings = TrainSettings(
            sampling="balanced", groups="region", missing=missing, max_epochs=2, batch_size=18, device="cpu"
        )
        network = HardSharing(data.tasks, mlp(5, (6,), seed=0)).double()
        curves.append(fit(network, Equal(4), data, settings=settings).train_curve)
    np.testing.assert_allclose(*curves, rtol=1e-10)


def test_with_a_batch_for_each_task_every_step_has_the_usual_number_of_labels_too():
    data, curves = schools((40, 24, 8)), []
    for missing in ("mean", "unbiased"):
        settings = TrainSettings(sampling="round", missing=missing, max_epochs=2, batch_size=8, device="cpu")
        network = HardSharing(data.tasks, mlp(4, (6,), seed=0)).double()
        curves.append(fit(network, Equal(3), data, settings=settings).train_curve)
    np.testing.assert_allclose(*curves, rtol=1e-10)


@pytest.mark.parametrize("kind", ["hard", "single"])
def test_a_fit_broken_off_and_resumed_ends_with_the_same_bits(kind, tmp_path):
    data, valid = wide(150, missing=0.3), wide(60, seed=1)
    settings = replace(OFTEN, sampling="balanced", groups="ill")
    whole = run(kind, data, valid, settings=settings)

    def stop(text, share):
        if share >= 0.6:
            raise StopError

    with pytest.raises(StopError):
        run(kind, data, valid, tmp_path, settings=settings, progress=stop)
    assert_same_bits(whole, run(kind, data, valid, tmp_path, settings=settings))


def test_a_checkpoint_of_other_groups_is_left_alone(tmp_path):
    data = regions()
    settings = replace(OFTEN, sampling="balanced", groups="region")
    run("hard", data, None, tmp_path, settings=settings)
    other = replace(data, keys={"region": data.keys["region"][::-1]})
    run("hard", other, None, tmp_path, settings=settings)
    assert len(list(tmp_path.iterdir())) == 2


def test_tasks_are_compared_at_the_shared_representation_of_balanced_batches():
    data = regions()
    settings = TrainSettings(sampling="balanced", groups="region", max_epochs=2, device="cpu")
    fitted = fit(HardSharing(data.tasks, mlp(5, (6,), seed=0)), GradDrop(4), data, settings=settings)
    assert np.isfinite(fitted.train_curve).all()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sampling": "balanced"}, 'sampling is "balanced" and groups "None"; sampling="balanced" needs groups'),
        ({"groups": "region"}, 'sampling is "None" and groups "region"'),
        ({"sampling": "balanced", "groups": "regoin"}, 'unknown groups "regoin".*Did you mean "region"'),
        ({"sampling": "balanced", "groups": "height"}, 'groups is "height", a regression task'),
        (
            {"sampling": "balanced", "groups": "region", "batch_size": 2},
            "there are 3 groups of rows, but batch_size is 2",
        ),
        ({"sampling": "balanced", "groups": "region", "own_rows": True}, "own_rows is True and sampling"),
    ],
)
def test_groups_that_cannot_be_are_refused_before_the_first_step(options, told):
    data = regions()
    network = HardSharing(data.tasks, mlp(5, (6,), seed=0))
    with pytest.raises(InputError, match=told):
        fit(network, Equal(4), data, settings=TrainSettings(device="cpu", **options))


def test_without_any_label_nothing_is_trained():
    data = regions().without_labels()
    assert isinstance(data, TaskData)
    settings = TrainSettings(sampling="balanced", groups="region", device="cpu")
    assert fit(HardSharing(data.tasks, mlp(5, (6,))), Equal(4), data, settings=settings).train_curve.shape == (0, 4)
