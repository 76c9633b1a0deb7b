from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.train.examples import schools, wide

from polytask.balance import Equal, Uncertainty
from polytask.balance.base import Balancer
from polytask.core.data import Labels, TaskData
from polytask.core.errors import InputError
from polytask.core.scaling import TargetScaler
from polytask.core.task import Regression
from polytask.deep import HardSharing, MultiTaskLoss, ParameterGroup, SingleTask, SoftSharing, mlp
from polytask.train import DivergedError, TrainSettings, fit
from polytask.train.batches import Placed
from polytask.train.loop import _Loop

QUICK = TrainSettings(max_epochs=6, batch_size=32, device="cpu", learning_rate=1e-2)


def encoder(data, dropout=0.0, widths=(8,)):
    return mlp(data.inputs["numeric"].shape[1], widths, cardinalities=data.cardinalities, dropout=dropout, seed=0)


def train(kind, data, valid=None, *, settings=QUICK, seed=0, dropout=0.0, balancer=None, **options):
    network = kind(data.tasks, encoder(data, dropout), **options)
    return fit(network, balancer or Equal(len(data.tasks)), data, valid, settings=settings, seed=seed)


def weights(fitted):
    return {name: value.clone() for name, value in fitted.network.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def with_settings(**changes):
    return TrainSettings(**{**QUICK.__dict__, **changes})


class SlowTrunk(HardSharing):
    """Its trunk learns at a tenth of the rate and never decays."""

    def parameter_groups(self):
        return [
            ParameterGroup(list(self.trunk.parameters()), learning_rate_scale=0.1, weight_decay=False),
            ParameterGroup(list(self.heads.parameters())),
        ]


def test_a_network_scales_the_learning_rate_of_its_parameters_and_exempts_them_from_decay():
    data = wide(40)
    one_step = with_settings(max_epochs=1, batch_size=64, least_steps=1, weight_decay=0.5, clip=None)
    first = HardSharing(data.tasks, encoder(data)).state_dict()
    whole, slow, bare = (
        weights(train(kind, data, settings=replace(one_step, weight_decay=decay)))
        for kind, decay in [(HardSharing, 0.5), (SlowTrunk, 0.5), (HardSharing, 0.0)]
    )
    for name, start in first.items():
        if name.startswith("trunk"):
            assert (bare[name] - start).abs().max() > 0.009
            torch.testing.assert_close(slow[name] - start, 0.1 * (bare[name] - start), rtol=0, atol=1e-6)
        else:
            assert slow[name].equal(whole[name])


def test_networks_without_groups_of_their_own_have_one_group_with_decay_and_one_without():
    data = wide(40)
    loop = _Loop(
        HardSharing(data.tasks, encoder(data)), Uncertainty([t.kind for t in data.tasks]), data, None, QUICK, 0,
        torch.device("cpu"), None,
    )  # fmt: skip
    assert [(group["scale"], group["weight_decay"]) for group in loop.optimiser.param_groups] == [
        (1.0, QUICK.weight_decay),
        (1.0, 0.0),
    ]


@pytest.mark.parametrize("kind", [HardSharing, SingleTask])
@pytest.mark.parametrize("missing", [0.1, 0.5, 0.99])
def test_missing_labels_leave_losses_and_weights_finite(kind, missing):
    data = wide(300, missing=missing)
    fitted = train(kind, data, wide(80, seed=1, missing=missing))
    assert all(value.isfinite().all() for value in fitted.network.state_dict().values() if value.is_floating_point())
    assert np.isfinite(fitted.train_curve[:, fitted.trained]).all()


def test_the_training_loss_of_an_epoch_is_the_mean_over_observed_labels():
    """With a learning rate that changes nothing, the running mean is the mean over observed cells."""
    data = wide(200, missing=0.5)
    network = HardSharing(data.tasks, encoder(data))
    before = network.eval()({"numeric": torch.tensor(data.inputs["numeric"], dtype=torch.float32)})
    scaler = TargetScaler.fit(data)
    expected = []
    for number, task in enumerate(data.tasks):
        labels = data.labels[task.name]
        scores = before[task.name].detach().numpy().astype(np.float64)[labels.rows]
        expected.append(task.losses(scores, scaler.apply(number, labels.values)).mean())
    still = with_settings(learning_rate=1e-12, weight_decay=0.0, max_epochs=1)
    fitted = fit(network, Equal(4), data, data, settings=still)
    np.testing.assert_allclose(fitted.train_curve[0], expected, rtol=1e-5)
    np.testing.assert_allclose(fitted.valid_curve[0], expected, rtol=1e-5)


@pytest.mark.parametrize("kind", [HardSharing, SingleTask])
@pytest.mark.parametrize("own_rows", [True, False])
def test_a_task_without_training_labels_does_not_disturb_the_others(kind, own_rows):
    data = wide(160)
    none = {**data.labels, "ill": Labels(np.zeros(0, dtype=np.int64), np.zeros(0))}
    thinner = TaskData(data.tasks, data.inputs, none)
    fitted = train(kind, thinner, wide(60, seed=1), settings=with_settings(own_rows=own_rows))
    assert fitted.trained.tolist() == [True, False, True, True]
    assert np.isfinite(fitted.train_curve[:, fitted.trained]).all()
    assert np.isnan(fitted.train_curve[:, ~fitted.trained]).all()
    if kind is SingleTask:
        whole = train(kind, data, wide(60, seed=1), settings=with_settings(own_rows=own_rows))
        np.testing.assert_allclose(whole.train_curve[:, 2:], fitted.train_curve[:, 2:], rtol=1e-4)


def test_no_label_at_all_trains_nothing_and_keeps_the_first_weights():
    data = wide(50).without_labels()
    network = HardSharing(data.tasks, encoder(data))
    first = {name: value.clone() for name, value in network.state_dict().items()}
    fitted = fit(network, Equal(4), data, settings=QUICK)
    assert same(first, weights(fitted))
    assert fitted.train_curve.shape == (0, 4)


@pytest.mark.parametrize("kind", [HardSharing, SingleTask])
def test_same_seed_same_bytes_and_another_seed_others(kind):
    data, valid = wide(200, missing=0.2), wide(60, seed=1)
    first, again, other = (weights(train(kind, data, valid, seed=seed, dropout=0.3)) for seed in (5, 5, 6))
    assert same(first, again)
    assert not same(first, other)


def test_training_leaves_the_global_random_state_alone():
    torch.manual_seed(11)
    before = torch.get_rng_state()
    train(HardSharing, wide(100), dropout=0.5)
    assert torch.equal(before, torch.get_rng_state())


def valid_losses(network, data, scaler):
    loss = MultiTaskLoss(data.tasks)
    with torch.no_grad():
        (batch,) = Placed(data, scaler, torch.device("cpu")).everything(own_rows=False)
        return loss(network.all_scores(batch.inputs), batch.targets, batch.present).numpy()


def test_early_stopping_keeps_the_best_epoch_of_the_mean_over_tasks():
    data, valid = wide(60), wide(200, seed=1)  # other relations: overfits at once
    valid = TaskData(data.tasks, wide(200).inputs, wide(200).labels)
    fitted = train(HardSharing, data, valid, settings=with_settings(max_epochs=300, patience=5, learning_rate=3e-2))
    epochs, best = len(fitted.valid_curve), fitted.best_epoch
    assert len(set(best.tolist())) == 1
    assert epochs == best[0] + 1 + 5 < 300
    scaler = TargetScaler.fit(data)
    constant = []
    for number, task in enumerate(data.tasks):
        scores = task.constant_scores(scaler.apply(number, data.labels[task.name].values))
        values = scaler.apply(number, valid.labels[task.name].values)
        constant.append(task.losses(np.tile(scores, (len(values), 1)), values).mean())
    assert (fitted.valid_curve / constant).mean(axis=1).argmin() == best[0]
    np.testing.assert_allclose(
        valid_losses(fitted.network, valid, scaler), fitted.valid_curve[best[0]], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("own_rows", [True, False])
def test_single_task_networks_each_keep_their_own_best_epoch(own_rows):
    data, valid = wide(60), TaskData(wide().tasks, wide(200).inputs, wide(200).labels)
    settings = with_settings(max_epochs=300, patience=5, learning_rate=2e-2, own_rows=own_rows)
    fitted = train(SingleTask, data, valid, settings=settings)
    assert len(set(fitted.best_epoch.tolist())) > 1
    found = valid_losses(fitted.network, valid, TargetScaler.fit(data))
    for number, best in enumerate(fitted.best_epoch):
        assert fitted.valid_curve[: best + 6, number].argmin() == best
        assert (fitted.valid_curve[best + 5 :, number] == fitted.valid_curve[best + 5, number]).all()
        np.testing.assert_allclose(found[number], fitted.valid_curve[best, number], rtol=1e-5)


def test_without_validation_labels_training_keeps_the_last_epoch():
    for valid in (None, wide(40).without_labels()):
        fitted = train(HardSharing, wide(100), valid)
        assert (fitted.best_epoch == QUICK.max_epochs - 1).all()
        assert len(fitted.train_curve) == QUICK.max_epochs


def test_single_task_networks_trained_together_equal_each_trained_alone():
    data, valid = wide(200), wide(100, seed=1)
    settings = with_settings(clip=0.5)
    together = train(SingleTask, data, valid, settings=settings)
    for number, name in enumerate(data.names):
        alone = train(SingleTask, data.only([name]), valid.only([name]), settings=settings)
        np.testing.assert_allclose(together.train_curve[:, number], alone.train_curve[:, 0], rtol=1e-4)
        np.testing.assert_allclose(together.valid_curve[:, number], alone.valid_curve[:, 0], rtol=1e-4)
        outputs = data.tasks[number].n_outputs
        both = weights(together), weights(alone)
        for key in both[0]:
            mine, its = both[0][key][number], both[1][key][0]
            if key.startswith("heads"):  # padded to the widest head
                mine, its = mine[..., :outputs], its[..., :outputs]
            torch.testing.assert_close(mine, its, rtol=1e-3, atol=1e-5)


def test_long_form_single_task_networks_equal_each_school_trained_alone():
    data = schools((40, 40, 40))
    together = train(SingleTask, data)
    for number, name in enumerate(data.names):
        alone = train(SingleTask, data.only([name]), settings=with_settings(own_rows=True))
        np.testing.assert_allclose(together.train_curve[:, number], alone.train_curve[:, 0], rtol=1e-4)


def test_hard_sharing_of_one_task_is_a_single_task_network():
    data, valid = wide(150, tasks=1), wide(60, seed=1, tasks=1)
    hard, single = train(HardSharing, data, valid), train(SingleTask, data, valid)
    np.testing.assert_allclose(hard.train_curve, single.train_curve, rtol=1e-5)
    np.testing.assert_allclose(hard.valid_curve, single.valid_curve, rtol=1e-5)


def test_soft_sharing_of_strength_zero_is_single_task_learning():
    data = wide(150, missing=0.3)
    soft, single = train(SoftSharing, data, strength=0.0), train(SingleTask, data)
    np.testing.assert_allclose(soft.train_curve, single.train_curve, rtol=1e-5)


def test_networks_without_shared_parameters_learn_opposite_schools_that_a_shared_line_cannot():
    data, valid = schools((60, 60, 60, 60), own_slope=True), schools((60, 60, 60, 60), seed=1, own_slope=True)
    settings = with_settings(max_epochs=40, learning_rate=2e-2)
    single = train(SingleTask, data, valid, settings=settings)
    assert (single.valid_curve.min(axis=0) < 0.1).all()


def test_own_rows_and_row_batches_reach_the_same_fit_in_long_form():
    data, valid = schools((60, 60)), schools((60, 60), seed=1)
    for own_rows in (True, False):
        settings = with_settings(max_epochs=40, learning_rate=2e-2, own_rows=own_rows)
        assert (train(SingleTask, data, valid, settings=settings).valid_curve.min(axis=0) < 0.1).all()


def test_weight_decay_spares_biases_and_the_balancer():
    data = wide(100)
    network, balancer = (
        HardSharing(data.tasks, encoder(data)),
        Uncertainty([task.kind for task in data.tasks], init=1.0),
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.5)
    settings = with_settings(learning_rate=1e-3, weight_decay=500.0, max_epochs=1, batch_size=100, least_steps=1)
    fit(network, balancer, data, settings=settings)
    for name, value in network.named_parameters():
        if "bias" in name:
            assert (value > 0.45).all()
        else:
            assert (value.abs() < 0.27).all()
    assert (balancer.log_variances > 0.9).all()


def test_uncertainty_weights_are_trained():
    data = wide(200)
    balancer = Uncertainty([task.kind for task in data.tasks])
    train(HardSharing, data, balancer=balancer)
    assert (balancer.log_variances.detach() != 0).all()


def test_categorical_inputs_are_learned_from():
    data = wide(300, categorical=True, tasks=1)
    codes = data.inputs["categorical"][:, 1]
    data = TaskData(
        data.tasks,
        data.inputs,
        {"height": Labels(np.arange(300), codes.astype(float))},
        cardinalities=data.cardinalities,
    )
    fitted = train(HardSharing, data, settings=with_settings(max_epochs=60))
    assert fitted.train_curve[-1, 0] < 0.1


def test_a_loss_that_is_not_finite_names_task_and_epoch():
    data = wide(100)
    network = HardSharing(data.tasks, encoder(data))
    with torch.no_grad():
        network.heads.linear.weights["bias"][2, 0] = torch.inf
    with pytest.raises(
        DivergedError, match=r'training loss of task "health" is nan in epoch 1, first in step 1 of .*; lower'
    ):
        fit(network, Equal(4), data, settings=with_settings(max_epochs=3))


def test_clipping_bounds_the_gradient_of_each_separate_task():
    data = wide(64, tasks=1)
    labels = Labels(np.arange(64), data.labels["height"].values)
    tasks = (Regression("a"), Regression("b"))
    both = TaskData(tasks, data.inputs, {"a": labels, "b": labels})

    class Lopsided(Balancer):
        needs_shared = False

        def backward(self, losses, shared, private, *, present=None, features=None):
            (losses * torch.tensor([1e6, 1.0])).sum().backward()
            return losses.detach()

    norms = []

    class Watched(SingleTask):
        def after_step(self, learning_rate):
            squares = sum(value.grad.flatten(1).square().sum(1) for value in self.parameters())
            norms.append(squares.sqrt())

    fit(Watched(tasks, encoder(both)), Lopsided(), both, settings=with_settings(max_epochs=1, clip=0.01))
    for norm in norms:
        assert norm.tolist() == pytest.approx([0.01, 0.01], rel=1e-3)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [("constant", [1, 1, 1, 1]), ("cosine", [1, 0.853553, 0.5, 0]), ("one-cycle", [0.04, 0.933013, 0.586824, 0])],
)
def test_learning_rate_schedules(schedule, rates):
    settings = TrainSettings(learning_rate=1.0, schedule=schedule)
    assert [settings.rate(step, 100) for step in (0, 25, 50, 100)] == pytest.approx(rates, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "cosin"}, 'Did you mean "cosine"'),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"learning_rate": float("nan")}, "learning_rate must be a positive number"),
        ({"weight_decay": -1.0}, "weight_decay must be 0 or more"),
        ({"clip": 0.0}, "clip must be positive"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_their_name(changes, message):
    with pytest.raises(InputError, match=message):
        TrainSettings(**changes)


def test_impossible_pairs_are_refused_before_the_first_step():
    data = wide(50)
    network = HardSharing(data.tasks, encoder(data))
    with pytest.raises(InputError, match="the network has the tasks"):
        fit(network, Equal(4), data.only(["ill"]), settings=QUICK)
    with pytest.raises(InputError, match="they must be the same"):
        fit(network, Equal(4), data, data.only(["ill"]), settings=QUICK)
    with pytest.raises(InputError, match=r"unknown device.*Did you mean"):
        fit(network, Equal(4), data, settings=with_settings(device="cud"))

    class Conflicts(Equal):
        needs_shared = True

    with pytest.raises(InputError, match="SingleTask shares none"):
        fit(SingleTask(data.tasks, encoder(data)), Conflicts(4), data, settings=QUICK)


class Growing(HardSharing):
    """Asks after every epoch or stall, and grows once, after its second epoch."""

    asked: list

    def ready_to_grow(self, epochs, stalled):
        self.asked.append((epochs, stalled, len(list(self.parameters()))))
        return epochs == 2 and not hasattr(self, "extra")

    def grow(self, held_out):
        self.seen = held_out
        self.extra = torch.nn.Parameter(torch.zeros(1))
        return {}

    def all_scores(self, inputs, own_rows=False, *, only=None):
        scores = super().all_scores(inputs, own_rows, only=only)
        return scores + self.extra if hasattr(self, "extra") else scores


def test_a_network_that_grows_is_asked_after_epochs_and_what_it_added_is_trained():
    data, valid = wide(120), wide(60, seed=1)
    network = Growing(data.tasks, encoder(data))
    network.asked = []
    fitted = fit(network, Equal(4), data, valid, settings=QUICK)
    first = network.asked[0][2]
    assert network.asked == [(1, False, first), (2, False, first), *((k, False, first + 1) for k in (1, 2, 3))]
    assert network.extra.item() != 0
    assert (fitted.best_epoch >= 2).all()


def test_growth_is_decided_on_held_out_rows_with_the_weights_of_the_best_epoch():
    data, valid = wide(120), wide(60, seed=1, missing=0.3)
    network = Growing(data.tasks, encoder(data))
    network.asked = []
    fitted = fit(network, Equal(4), data, valid, settings=with_settings(max_epochs=3))
    seen, scaler = network.seen, TargetScaler.fit(data)
    found = MultiTaskLoss(data.tasks)(seen.scores, seen.targets, seen.present).numpy()
    curve = fitted.valid_curve[:2]
    constant = _Loop(network, Equal(4), data, valid, QUICK, 0, torch.device("cpu"), None).stopping.constant_loss
    np.testing.assert_allclose(found, curve[(curve / constant).mean(axis=1).argmin()], rtol=1e-5)
    assert seen.present.sum(1).tolist() == [len(valid.labels[name]) for name in valid.names]
    assert scaler.apply(0, valid.labels["height"].values).mean() == pytest.approx(
        seen.targets[0][seen.present[0]].mean().item(), rel=1e-4
    )


def test_without_held_out_labels_no_network_grows():
    data = wide(120)
    for valid in (None, wide(40).without_labels()):
        network = Growing(data.tasks, encoder(data))
        network.asked = []
        fit(network, Equal(4), data, valid, settings=QUICK)
        assert network.asked == []


def test_progress_is_told_every_epoch_and_ends_at_one():
    seen = []
    data = wide(100)
    network = HardSharing(data.tasks, encoder(data))
    fit(network, Equal(4), data, settings=QUICK, progress=lambda text, share: seen.append((text, share)))
    assert [share for _, share in seen] == pytest.approx([*np.arange(1, 7) / 6, 1.0])
