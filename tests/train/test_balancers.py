"""Every balancer in the training loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.train.examples import schools, wide

from polytask import balance
from polytask.core.errors import InputError
from polytask.deep import HardSharing, SoftSharing, mlp
from polytask.train import HardSharingLearner, SoftSharingLearner, TrainSettings, fit
from polytask.train.balancers import BALANCERS, make_balancer

SETTINGS = TrainSettings(max_epochs=4, batch_size=32, device="cpu", learning_rate=1e-2, checkpoint_seconds=0.0)
SMALL = {"widths": "8", "device": "cpu", "max_epochs": 3, "batch_size": 32}
SHARED = [name for name in BALANCERS if make_balancer(name, wide(10).tasks).needs_shared]


def network(data, kind=HardSharing, **options):
    return kind(data.tasks, mlp(data.inputs["numeric"].shape[1], (8,), seed=0), **options)


def state(fitted):
    return {**fitted.network.state_dict(), **{f"b {k}": v for k, v in fitted.balancer.state_dict().items()}}


def same_bits(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_every_concrete_balancer_has_a_name():
    names = {type(make_balancer(name, wide(10).tasks)).__name__ for name in BALANCERS}
    bases = {"Balancer", "GradientBalancer", "GramBalancer", "LossBalancer"}
    given = {"Fixed", "TorchJDScalarizer", "TorchJDWeighting"}  # need more than the tasks
    exported = {
        name for name, kind in vars(balance).items() if isinstance(kind, type) and issubclass(kind, balance.Balancer)
    }
    assert names == exported - bases - given


@pytest.mark.parametrize("name", BALANCERS)
def test_every_balancer_learns_with_missing_labels(name):
    data = wide(200, missing=0.4)
    fitted = fit(
        network(data),
        make_balancer(name, data.tasks),
        data,
        settings=TrainSettings(**{**vars(SETTINGS), "max_epochs": 30}),
    )
    assert np.isfinite(fitted.train_curve).all()
    assert (fitted.train_curve[-1] < fitted.train_curve[0]).mean() >= 0.75


@pytest.mark.parametrize("name", BALANCERS)
def test_a_fit_broken_off_goes_on_bit_for_bit(name, tmp_path):
    data = wide(100, missing=0.2)
    whole = fit(network(data), make_balancer(name, data.tasks), data, settings=SETTINGS, seed=1)

    def stop(text, share):
        if share >= 0.5:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        fit(
            network(data), make_balancer(name, data.tasks), data,
            settings=SETTINGS, seed=1, checkpoint=tmp_path, progress=stop,
        )  # fmt: skip
    assert list(tmp_path.glob("fit-*.safetensors"))
    again = fit(network(data), make_balancer(name, data.tasks), data, settings=SETTINGS, seed=1, checkpoint=tmp_path)
    assert same_bits(state(whole), state(again))


@pytest.mark.parametrize("name", ["pcgrad", "upgrad", "mgda"])
def test_one_pass_through_the_heads_trains_as_one_pass_per_task(name):
    """Handing over the last shared representation changes the cost, not the update."""
    data = wide(120)

    class Hidden(HardSharing):
        def scores_and_features(self, inputs):
            return None

    found = [
        fit(network(data, kind), make_balancer(name, data.tasks), data, settings=SETTINGS).network.state_dict()
        for kind in (HardSharing, Hidden)
    ]
    for key, value in found[0].items():
        torch.testing.assert_close(value, found[1][key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SHARED)
def test_gradient_balancers_are_refused_where_nothing_is_shared(name):
    data = wide(40)
    with pytest.raises(InputError, match="shares none"):
        fit(network(data, SoftSharing, strength=0.1), make_balancer(name, data.tasks), data, settings=SETTINGS)
    with pytest.raises(InputError, match=f'balancer is "{name}".*shares none'):
        SoftSharingLearner(balancer=name)


def test_learners_train_with_a_named_balancer_also_on_one_task_and_one_label_per_row():
    models = {name: HardSharingLearner(**SMALL, balancer=name).fit(wide(90)) for name in ("equal", "pcgrad", "famo")}
    scores = {name: model.predict(wide(20, seed=1))["height"] for name, model in models.items()}
    assert not np.allclose(scores["equal"], scores["pcgrad"])
    assert not np.allclose(scores["equal"], scores["famo"])
    one = HardSharingLearner(**SMALL, balancer="pcgrad").fit(wide(60, tasks=1))
    assert np.isfinite(one.predict(wide(20, tasks=1))["height"]).all()
    long = schools((30, 30))
    assert np.isfinite(HardSharingLearner(**SMALL, balancer="cagrad").fit(long).predict(long)["school 0"]).all()


def test_a_task_whose_loss_is_not_finite_is_left_out_of_the_step_and_reported():
    data = wide(100)

    class Overflows(HardSharing):
        steps = 0

        def all_scores(self, inputs, own_rows=False, *, only=None):
            scores = super().all_scores(inputs, own_rows, only=only)
            if self.training:
                self.steps += 1
                if self.steps == 3:
                    scores = scores * torch.tensor([1.0, torch.inf, 1.0, 1.0]).view(4, 1, 1)
            return scores

    with pytest.warns(UserWarning, match='loss of task "ill" was not finite in 1 of 40 steps'):
        fitted = fit(network(data, Overflows), make_balancer("equal", data.tasks), data, settings=SETTINGS)
    assert all(value.isfinite().all() for value in fitted.network.state_dict().values())
    assert np.isfinite(fitted.train_curve).all()
