import numpy as np
import pytest
import torch
from tests.train.examples import schools, wide

from polytask.balance import Equal, GradDrop, PCGrad
from polytask.core.errors import InputError
from polytask.core.scaling import TargetScaler
from polytask.deep import HardSharing, JointManyTask, mlp
from polytask.train import TrainSettings, fit
from polytask.train.batches import Placed
from polytask.train.loop import _Loop
from polytask.train.sampling import DRAWN, DrawnTasks, make_sampler, task_probabilities

CPU = torch.device("cpu")
SIZES = (640, 80, 10)


def placed(data):
    return Placed(data, TargetScaler.fit(data), CPU)


def drawn(sampling, data=None, **options):
    settings = {"batch_size": 8, "seed": 4, "temperature": 3.0, "epochs": 9, **options}
    return DrawnTasks(placed(data or schools(SIZES)), sampling, **settings)


def encoder(data):
    return mlp(data.inputs["numeric"].shape[1], (6,), seed=0)


def test_probabilities_are_those_of_their_formulas():
    n = np.array([640.0, 80.0, 10.0, 0.0])

    def found(name, epoch=0):
        return task_probabilities(n, name, temperature=3.0, epoch=epoch, epochs=9)

    def share(weights):
        return np.array([*weights, 0.0]) / np.sum(weights)

    np.testing.assert_allclose(found("proportional"), share(n[:3]), rtol=1e-12)
    np.testing.assert_allclose(found("uniform"), share([1, 1, 1]), rtol=1e-12)
    np.testing.assert_allclose(found("temperature"), share(n[:3] ** (1 / 3)), rtol=1e-12)
    np.testing.assert_allclose(found("annealed", 0), share(n[:3]), rtol=1e-12)
    np.testing.assert_allclose(found("annealed", 4), share(n[:3] ** 0.6), rtol=1e-12)
    np.testing.assert_allclose(found("annealed", 8), share(n[:3] ** 0.2), rtol=1e-12)


@pytest.mark.parametrize("sampling", DRAWN)
def test_tasks_are_drawn_as_often_as_their_probability_says(sampling):
    """Over 1e5 draws, within four standard errors."""
    sampler = drawn(sampling, batch_size=8)
    epoch, counts = 5, np.zeros(3)
    sampler.steps = 100_000
    sampler.start(epoch)
    for step in range(sampler.steps):
        counts[sampler.tasks(step)[0][0]] += 1
    p = task_probabilities(np.array(SIZES), sampling, temperature=3.0, epoch=epoch, epochs=9)
    errors = np.sqrt(p * (1 - p) * counts.sum())
    assert (np.abs(counts - p * counts.sum()) < 4 * errors).all()


def test_an_epoch_draws_about_as_many_rows_as_there_are_labels_and_small_tasks_start_again():
    sampler = drawn("uniform", schools((200, 30, 12)))
    assert sampler.steps == int(np.ceil(242 / 8))
    for epoch in range(2):
        sampler.start(epoch)
        seen = [[], [], []]
        for step in range(sampler.steps):
            (task,), first = sampler.tasks(step)
            batch = sampler.batch(step)
            assert not first
            assert batch.present[task].all()
            assert (batch.inputs["numeric"][:, 0] == task).all()
            seen[task] += batch.inputs["numeric"][:, 1].tolist()
        for rows, size in zip(seen, (200, 30, 12), strict=True):
            _, counts = np.unique(rows, return_counts=True)
            assert counts.max() - (counts.min() if len(counts) == size else 0) <= 1
        assert len(seen[2]) > 12


def test_the_same_seed_and_epoch_draw_the_same_batches_and_others_do_not():
    first, again, other = drawn("annealed"), drawn("annealed"), drawn("annealed", seed=5)
    for sampler in (first, again, other):
        sampler.start(3)
    same = [first.batch(step).targets.equal(again.batch(step).targets) for step in range(first.steps)]
    assert all(same)
    assert [first.tasks(step) for step in range(50)] != [other.tasks(step) for step in range(50)]


def test_sequential_sees_every_label_once_task_by_task():
    data = wide(150, missing=0.4)
    sampler = make_sampler(
        placed(data), TrainSettings(sampling="sequential", batch_size=16), None, own_rows=False, seed=1
    )
    sampler.start(0)
    counts, order = np.zeros(4, dtype=int), []
    for step in range(sampler.steps):
        (task,), first = sampler.tasks(step)
        counts[task] += int(sampler.batch(step).present[task].sum())
        order += [task] if first else []
    assert order == [0, 1, 2, 3]
    assert counts.tolist() == [len(data.labels[name]) for name in data.names]


@pytest.mark.parametrize("sampling", [*DRAWN, "sequential", "round", "rows"])
def test_networks_learn_under_every_sampling_also_with_a_gradient_balancer(sampling):
    data, valid = schools((120, 60, 20)), schools((60, 60, 60), seed=1)
    settings = TrainSettings(sampling=sampling, max_epochs=25, device="cpu", learning_rate=2e-2)
    fitted = fit(HardSharing(data.tasks, encoder(data)), PCGrad(3), data, valid, settings=settings)
    best = fitted.valid_curve[fitted.best_epoch[0]]
    assert best.mean() < 0.5 * fitted.valid_curve[0].mean()


def test_rows_and_round_are_what_own_rows_false_and_true_were():
    data, valid = schools(), schools(seed=1)
    for sampling, own_rows in (("rows", False), ("round", True)):
        curves = [
            fit(
                HardSharing(data.tasks, encoder(data)), Equal(3), data, valid,
                settings=TrainSettings(max_epochs=3, device="cpu", **options),
            ).valid_curve
            for options in ({"sampling": sampling}, {"own_rows": own_rows})
        ]  # fmt: skip
        np.testing.assert_array_equal(*curves)


def test_with_unbiased_weights_every_label_counts_alike_in_an_epoch():
    """The parts of a task's loss add up, over an epoch, to its mean over all its labels for every step."""
    data = wide(200, missing=0.5).thinned({"height": 20}, seed=0)
    settings = TrainSettings(batch_size=16, missing="unbiased", device="cpu")
    loop = _Loop(HardSharing(data.tasks, encoder(data)), Equal(4), data, None, settings, 0, CPU, None)
    loop.sampler.start(0)
    total, whole = torch.zeros(4), torch.zeros(4)
    labels = torch.zeros(4)
    for step in range(loop.sampler.steps):
        batch = loop.sampler.batch(step)
        losses, counts, _ = loop.measure(batch)
        (seen,) = loop.labels_of([batch])
        total += loop.join(losses, counts, seen)[1]
        whole += losses.detach() * counts
        labels += counts
    torch.testing.assert_close(total / loop.sampler.steps, whole / labels, rtol=1e-5, atol=1e-6)


def test_samplings_that_do_not_fit_are_refused_before_the_first_step():
    data = wide(60)
    levels = {name: 1 + number % 2 for number, name in enumerate(data.names)}
    many = JointManyTask(data.tasks, mlp(5, (8, 6)), levels=levels)
    with pytest.raises(InputError, match='sampling is "uniform", but this network takes its tasks in turn'):
        fit(many, Equal(4), data, settings=TrainSettings(sampling="uniform", device="cpu"))
    for options, cause in (({"sampling": "uniform"}, 'sampling="uniform"'), ({"own_rows": True}, "own_rows=True")):
        told = f'GradDrop works at the last shared representation, but with {cause} tasks do not see .* sampling="rows"'
        with pytest.raises(InputError, match=told):
            fit(HardSharing(data.tasks, encoder(data)), GradDrop(4), data, settings=TrainSettings(**options))
    with pytest.raises(InputError, match="own_rows is True and sampling"):
        TrainSettings(own_rows=True, sampling="rows")
    with pytest.raises(InputError, match='unknown sampling "sqrt"'):
        TrainSettings(sampling="sqrt")
    with pytest.raises(InputError, match="temperature must be"):
        TrainSettings(temperature=0)
