from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from tests.train.examples import wide

from polytask.balance import GradDrop, PCGrad
from polytask.core.errors import InputError
from polytask.deep import MTAN, PLE, DSelectK, HardSharing, MMoE, OMoE, mlp
from polytask.registry import learner_class
from polytask.sources import curved_pair
from polytask.train import (
    CGCLearner,
    DselectKLearner,
    HardSharingLearner,
    MmoeLearner,
    MTANLearner,
    PLELearner,
    TrainSettings,
    fit,
)

NAMES = {
    "mmoe": MmoeLearner,
    "dselect-k": DselectKLearner,
    "cgc": CGCLearner,
    "ple": PLELearner,
    "mtan": MTANLearner,
}
QUICK = {"max_epochs": 4, "widths": "8-8", "device": "cpu"}


def test_names_of_the_command_line():
    assert all(learner_class(name) is kind for name, kind in NAMES.items())


@pytest.mark.parametrize("kind", NAMES.values())
def test_the_search_space_names_fields_and_every_draw_is_accepted(kind):
    space = kind.search_space()
    assert set(space) <= {field.name for field in fields(kind)}
    rng = np.random.default_rng(0)
    for _ in range(20):
        drawn = {name: distribution.sample(rng) for name, distribution in space.items()}
        assert replace(kind(), **drawn) == kind(**drawn)


@pytest.mark.parametrize(
    ("kind", "names", "shape"),
    [
        (MmoeLearner, ["experts"], (4, 3)),
        (DselectKLearner, ["experts"], (4, 3)),
        (CGCLearner, ["experts"], (3, 3)),
        (PLELearner, ["experts, level 1", "experts, level 2"], (3, 3)),
        (MTANLearner, ["attention", "masks"], (2, 3)),
    ],
)
def test_the_model_shows_what_each_task_used(kind, names, shape):
    data = wide(80, categorical=True)
    data = data.only(data.names[:3])
    relations = kind(**QUICK).fit(data, seed=1).relations()
    assert set(relations) == {*names, "predictions"}
    assert relations[names[0]].values.shape == shape
    assert relations[names[0]].columns == data.names
    if kind is not MTANLearner:
        assert relations[names[0]].values.sum(0) == pytest.approx([1.0] * 3, abs=1e-5)


def test_the_selection_penalty_is_effective_in_training():
    data = wide(80)
    weak, strong = (DselectKLearner(**QUICK, strength=s).fit(data, seed=1).network.gates for s in (0.0, 10.0))
    assert not weak.z.equal(strong.z)
    assert strong.penalty() / 10.0 < select_entropy(weak)


def select_entropy(gates):
    gates.strength = 1.0
    return gates.penalty()


def network(kind, **options):
    data = wide(40)
    return kind(data.tasks, mlp(data.inputs["numeric"].shape[1], (6, 6)), **options), data


@pytest.mark.parametrize("kind", [MMoE, DSelectK, PLE, MTAN])
def test_a_balancer_of_features_is_refused_where_tasks_mix_their_own_and_one_of_parameters_works(kind):
    net, data = network(kind)
    with pytest.raises(InputError, match=f"last shared representation, but {kind.__name__} has none"):
        fit(net, GradDrop(len(data.tasks)), data)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    fitted = fit(net, PCGrad(len(data.tasks)), data, settings=TrainSettings(max_epochs=1, device="cpu"))
    changed = sum(not one.equal(two) for one, two in zip(before, fitted.network.parameters(), strict=True))
    assert changed > len(before) // 2


@pytest.mark.parametrize("kind", [OMoE, HardSharing])
def test_a_balancer_of_features_works_where_there_is_one_trunk(kind):
    net, data = network(kind)
    fitted = fit(net, GradDrop(len(data.tasks)), data, settings=TrainSettings(max_epochs=1, device="cpu"))
    assert np.isfinite(fitted.train_curve).all()


def test_networks_without_shared_experts_have_nothing_to_balance_in_gradients():
    net, data = network(PLE, n_shared=0)
    with pytest.raises(InputError, match="but PLE shares none"):
        fit(net, PCGrad(len(data.tasks)), data)


def test_experts_learn_opposite_curved_tasks_better_than_one_small_trunk():
    pair = curved_pair(400, 10, cosine=-1.0, frequencies=(2.0,), phases=(0.5,), n_test=400, seed=0)
    quick = {"widths": "6", "max_epochs": 20, "learning_rate": 1e-2, "device": "cpu"}

    def error(learner):
        scores = learner.fit(pair.data, seed=0).predict(pair.test)
        return np.mean((np.column_stack(list(scores.values())) - pair.test.columns()) ** 2)

    assert error(MmoeLearner(**quick)) < 0.9 * error(HardSharingLearner(**quick))


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (MmoeLearner, {"n_experts": 0}, "n_experts is 0"),
        (MmoeLearner, {"widths": ""}, "at least one hidden layer"),
        (DselectKLearner, {"n_experts": 1}, "n_experts is 1"),
        (DselectKLearner, {"n_selected": 5}, "n_selected is 5"),
        (DselectKLearner, {"strength": -1.0}, "strength is -1"),
        (CGCLearner, {"n_shared": 0}, "n_shared is 0"),
        (CGCLearner, {"n_private": -1}, "n_private is -1"),
        (PLELearner, {"levels": 0}, "levels is 0"),
        (PLELearner, {"widths": "32"}, "levels is 2"),
        (MTANLearner, {"mask_reduction": 0}, "mask_reduction is 0"),
    ],
)
def test_impossible_settings_are_refused_before_training(kind, options, words):
    with pytest.raises(InputError, match=words):
        kind(**options)


def test_saved_use_of_experts_is_that_of_the_kept_weights():
    data = wide(80)
    model = MmoeLearner(**QUICK).fit(data, seed=1)
    description, arrays = model.state()
    again = type(model).from_state(model.tasks, description, arrays)
    assert torch.equal(again.network.use.mean, model.network.use.mean)
    assert again.relations()["experts"].to_json() == model.relations()["experts"].to_json()
