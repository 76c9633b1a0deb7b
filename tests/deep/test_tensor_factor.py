import copy
import math

import numpy as np
import pytest
import torch
from tests.deep.networks import CARDINALITIES, MIXED, encoder, labels, table
from tests.deep.test_networks import train
from torch import nn

from polytask.core.errors import InputError
from polytask.core.task import Regression
from polytask.deep import Encoder, HardSharing, MultiTaskLoss, Recurrent, SingleTask, TensorFactorisation, TensorInput
from polytask.deep.factorisation import FORMS, factor_shapes
from polytask.linear import GroupingOverlap

ROWS = 9
FOUR = tuple(Regression(f"t{t}") for t in range(4))
CATEGORIES = {"cardinalities": CARDINALITIES}


def single(tasks=FOUR, seed=0, **options):
    """Single-task networks that differ from each other, as training leaves them."""
    network = SingleTask(tasks, encoder(seed=seed, **CATEGORIES, **options), seed=seed, identical=False).double()
    return trained(network, tasks)


def factorised(tasks=FOUR, *, ranks=2, form="tucker", seed=0, **options):
    return TensorFactorisation(
        tasks, encoder(seed=seed, **CATEGORIES), ranks=ranks, form=form, seed=seed, **options
    ).double()


def trained(network, tasks=FOUR, **options):
    return train(network, tasks, table(ROWS, categorical=True), labels(tasks, ROWS), **options)


def loss(network, tasks=FOUR):
    targets = labels(tasks, ROWS)
    scores = network.all_scores(table(ROWS, categorical=True))
    return MultiTaskLoss(tasks)(scores, targets, torch.ones_like(targets, dtype=torch.bool)).sum()


def identity_codes(network):
    """Make the codes the identity and freeze them: component t is task t's weights."""
    for weight in network.factorised.values():
        weight.codes.data.copy_(torch.eye(len(network.tasks)))
        weight.codes.requires_grad_(False)
    return network


@pytest.mark.parametrize("form", FORMS)
def test_at_full_rank_the_factorisation_of_trained_networks_predicts_what_they_predict(form):
    networks = single(norm="batch").eval()
    made = TensorFactorisation.from_single_task(networks, form=form, tolerance=0.0).eval()
    inputs = table(ROWS, categorical=True, seed=5)
    torch.testing.assert_close(made.all_scores(inputs), networks.all_scores(inputs), rtol=0, atol=1e-10)
    for name, weight in made.weights().items():
        torch.testing.assert_close(weight, networks.get_parameter(made._paths[name]).detach(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_more_tolerance_means_smaller_ranks_and_layers_within_it(form):
    networks = single()
    sizes = []
    for tolerance in (0.0, 0.1, 0.4, 0.8):
        made = TensorFactorisation.from_single_task(networks, form=form, tolerance=tolerance)
        sizes.append(sum(factor.numel() for factor in made.factorised.parameters()))
        for name, weight in made.weights().items():
            true = networks.get_parameter(made._paths[name])
            assert (weight - true).norm() <= tolerance * true.norm() + 1e-10
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0]


def test_given_ranks_are_used_and_build_the_same_network_again():
    networks = single()
    made = TensorFactorisation.from_single_task(networks, form="tt", ranks=2)
    assert {ranks[0] for ranks in made.ranks.values()} == {2}
    again = factorised(ranks=made.ranks, form="tt", seed=7)
    again.load_state_dict(made.state_dict())
    inputs = table(ROWS, categorical=True)
    assert again.all_scores(inputs).equal(made.all_scores(inputs))


@pytest.mark.parametrize("own_rows", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_scores_and_gradients_are_those_of_a_loop_over_plain_networks(form, own_rows):
    """The loop twin: each task's weights by one einsum over the factors, in a plain module of its own."""
    network = factorised(form=form)
    plain = SingleTask(FOUR, encoder(**CATEGORIES)).double()
    inputs = table(*((len(FOUR), ROWS) if own_rows else (ROWS,)), categorical=True)
    factors, scores = dict(network.factorised.named_parameters()), []
    for t in range(len(FOUR)):
        modules = {name: branches.copy(t) for name, branches in plain.encoder.stages.items()}
        modules["heads"] = plain.heads.linear.copy(t)
        x = {name: tensor[t] for name, tensor in inputs.items()} if own_rows else inputs
        for stage, module in modules.items():
            swapped = {
                leaf: _slice(factors, name, form, t, transposed="embeddings" not in leaf)
                for name, leaf in _weights_of(stage, module)
            }
            x = torch.func.functional_call(module, swapped, (x,))
        scores.append(x)
    found = network.all_scores(inputs, own_rows)
    torch.testing.assert_close(found, torch.stack(scores), rtol=0, atol=1e-12)
    seed = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    names = list(factors)
    one = torch.autograd.grad((found * seed).sum(), [factors[name] for name in names])
    two = torch.autograd.grad((torch.stack(scores) * seed).sum(), [factors[name] for name in names])
    for name, left, right in zip(names, one, two, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-10, msg=name)


def _weights_of(stage, module):
    leaves = [name for name, weight in module.named_parameters() if weight.dim() > 1]
    return [(stage if len(leaves) == 1 else f"{stage}.{leaf}".replace(".", "_"), leaf) for leaf in leaves]


def _slice(factors, name, form, t, *, transposed):
    own = {key.partition(".")[2]: value for key, value in factors.items() if key.startswith(f"{name}.")}
    code = own["codes"][t]
    if form == "laf":
        W = torch.einsum("k,kio->io", code, own["basis"])
    elif form == "tucker":
        W = torch.einsum("k,kab,ia,ob->io", code, own["core"], own["side1"], own["side2"])
    else:
        W = torch.einsum("k,kor,ri->io", code, own["core1"], own["core2"])
    return W.T if transposed else W


@pytest.mark.parametrize("form", FORMS)
def test_scores_and_gradients_pass_a_finite_difference_check(form):
    network = TensorFactorisation(FOUR[:2], encoder((3, 2)), ranks=2, form=form).double()
    inputs = table(3)
    names, values = zip(*((name, value.detach()) for name, value in network.named_parameters()), strict=True)

    def squares(*some):
        found = torch.func.functional_call(network, dict(zip(names, some, strict=True)), (inputs,))
        return torch.stack([scores.square().mean() for scores in found.values()])

    assert torch.autograd.gradcheck(squares, [value.requires_grad_() for value in values], eps=1e-6, atol=1e-5)


def test_with_a_component_for_each_task_and_identity_codes_gradients_are_those_of_single_task_networks():
    networks = single()
    made = identity_codes(TensorFactorisation.from_single_task(networks, form="laf", ranks=4))
    for name, weight in made.factorised.items():
        weight.basis.data.copy_(networks.get_parameter(made._paths[_layer(made, name)]))
    networks.zero_grad()
    for network in (made, networks):
        loss(network).backward()
    for name, weight in made.factorised.items():
        expected = networks.get_parameter(made._paths[_layer(made, name)]).grad
        torch.testing.assert_close(weight.basis.grad, expected, rtol=0, atol=1e-12)
    for name, parameter in made.towers.named_parameters():
        torch.testing.assert_close(parameter.grad, networks.get_parameter(name).grad, rtol=0, atol=1e-12)


def _layer(network, key):
    return next(name for name in network._paths if name.replace(".", "_") == key)


def test_with_identity_codes_training_is_that_of_single_task_networks():
    networks = single()
    made = identity_codes(TensorFactorisation.from_single_task(networks, form="laf", ranks=4))
    for name, weight in made.factorised.items():
        weight.basis.data.copy_(networks.get_parameter(made._paths[_layer(made, name)]))
    inputs = table(ROWS, categorical=True)
    torch.testing.assert_close(
        trained(made).all_scores(inputs), trained(networks).all_scores(inputs), rtol=0, atol=1e-10
    )


def test_with_one_component_of_code_one_it_is_hard_sharing():
    """All tasks have one encoder: its gradient is that of the sum of the losses; heads and biases are their own."""
    hard = HardSharing(FOUR, encoder(**CATEGORIES)).double()
    network = factorised(ranks=1, form="laf", heads=False)
    for name, weight in network.factorised.items():
        weight.codes.data.fill_(1.0)
        path = network._paths[_layer(network, name)].replace("encoder", "trunk", 1)
        weight.basis.data.copy_(hard.get_parameter(path))
    network.heads.load_state_dict(hard.heads.state_dict())
    inputs = table(ROWS, categorical=True)
    torch.testing.assert_close(network.all_scores(inputs), hard.all_scores(inputs), rtol=0, atol=1e-12)
    for one in (network, hard):
        loss(one).backward()
    for name, weight in network.factorised.items():
        path = network._paths[_layer(network, name)].replace("encoder", "trunk", 1)
        torch.testing.assert_close(weight.basis.grad, hard.get_parameter(path).grad, rtol=0, atol=1e-12)


def test_without_hidden_layers_it_is_the_linear_model_of_latent_tasks():
    """The heads of a network without hidden layers are W = L S: latent tasks (p, K) times codes (K, T)."""
    rng = np.random.default_rng(0)
    X, planted = rng.normal(size=(60, 3)), rng.normal(size=(2, 3))
    Y = X @ planted.T @ rng.normal(size=(2, 4)) + 0.1 * rng.normal(size=(60, 4))
    fitted = GroupingOverlap(2, alpha=1e-3, ridge=1e-2).fit(X, Y)
    network = TensorFactorisation(FOUR, encoder(()), ranks=2, form="laf").double()
    (weight,) = network.factorised.values()
    weight.codes.data.copy_(torch.from_numpy(fitted.mixing_))
    weight.basis.data.copy_(torch.from_numpy(fitted.components_)[:, :, None])
    network.start_heads(torch.from_numpy(fitted.intercept_)[:, None])
    scores = network.all_scores({"numeric": torch.from_numpy(X)})[:, :, 0].T
    np.testing.assert_allclose(scores.detach().numpy(), fitted.predict(X), rtol=0, atol=1e-10)
    np.testing.assert_allclose(network.weights()["heads"].detach()[:, :, 0].numpy(), fitted.coef_, rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_weights_of_tasks_not_asked_for_are_not_computed(form, monkeypatch):
    tasks = tuple(Regression(f"t{t}") for t in range(13))
    network, rows = factorised(tasks, form=form), []
    product = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda one, two: (rows.append(one.shape), product(one, two))[1])
    inputs = table(ROWS, categorical=True)
    scores = network.all_scores(inputs, only=[3])
    assert rows
    assert all(shape[0] != 13 for shape in rows)
    monkeypatch.undo()
    torch.testing.assert_close(scores[0], network.all_scores(inputs)[3], rtol=0, atol=1e-12)
    loss_of_one = scores.sum()
    loss_of_one.backward()
    for weight in network.factorised.values():
        assert (weight.codes.grad[:3] == 0).all()
        assert (weight.codes.grad[3] != 0).any()
        assert all(factor.grad.isfinite().all() for factor in weight.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_decay_after_a_step_is_decoupled_decay_of_the_synthesised_weights(form):
    network = factorised(form=form, weight_decay=0.3)
    before = {name: weight.detach().clone() for name, weight in network.weights().items()}
    others = {name: value.detach().clone() for name, value in network.towers.named_parameters()}
    network.after_step(0.1)
    for name, weight in network.weights().items():
        torch.testing.assert_close(weight, (1 - 0.1 * 0.3) * before[name], rtol=1e-12, atol=0)
    for name, value in network.towers.named_parameters():
        assert value.equal(others[name])
    network.weight_decay = 0.0
    kept = copy.deepcopy(network.state_dict())
    network.after_step(0.1)
    assert all(value.equal(kept[name]) for name, value in network.state_dict().items())


def test_the_optimiser_is_told_not_to_decay_factors():
    network = factorised()
    own, factors = network.parameter_groups()
    assert {id(p) for p in factors.parameters} == {id(p) for p in network.factorised.parameters()}
    assert (own.weight_decay, factors.weight_decay) == (True, False)
    assert len(own.parameters) + len(factors.parameters) == sum(1 for _ in network.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_training_permuted_tasks_permutes_the_result(form):
    order = [2, 0, 3, 1]
    one, two = factorised(form=form), factorised(tuple(FOUR[t] for t in order), form=form)
    for left, right in zip(one.factorised.values(), two.factorised.values(), strict=True):
        right.start([left.codes[order], *left.factors()[1:]])
    inputs, targets = table(ROWS, categorical=True), labels(FOUR, ROWS)
    train(one, FOUR, inputs, targets)
    train(two, FOUR, inputs, targets[order])
    torch.testing.assert_close(two.all_scores(inputs), one.all_scores(inputs)[order], rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_codes_are_the_tasks_own_and_the_other_factors_shared(form):
    network = factorised(form=form)
    shared = {id(parameter) for parameter in network.shared_parameters()}
    for weight in network.factorised.values():
        assert [id(factor) in shared for factor in weight.factors()] == [False] + [True] * (len(weight.factors()) - 1)
    lone = factorised(FOUR[:1], form=form)
    assert lone.shared_parameters() == []
    assert lone.ranks == lone.relations() == {}


@pytest.mark.parametrize("form", FORMS)
def test_random_weights_vary_as_the_layers_own_would(form):
    wide = TensorFactorisation(FOUR, encoder((60, 50)), ranks=3, form=form).weights()["layer2"]
    own = SingleTask(FOUR, encoder((60, 50))).encoder.weights()["layer2.0.weight"]
    assert wide.std().item() == pytest.approx(own.std().item(), rel=0.35)


def test_heads_of_unequal_size_stay_the_tasks_own():
    network = factorised(MIXED)
    assert "heads" not in network.ranks
    assert "heads" in factorised().ranks
    assert "heads" not in factorised(heads=False).ranks
    with pytest.raises(InputError, match="only equal heads"):
        factorised(MIXED, heads=True)


def test_only_the_chosen_stages_are_factorised():
    network = factorised(stages=["layer2"])
    assert list(network.ranks) == ["layer2", "heads"]
    assert network.ranks == {"layer2": (2, 8, 6), "heads": (2, 2, 1)}


def test_relations_are_codes_and_sharing_strength_of_every_layer():
    network = factorised(form="laf")
    network.factorised["layer1"].codes.data = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]]).double()
    found = network.relations()
    codes = found["layer1 codes"]
    assert codes.kind == "loadings"
    assert codes.columns == tuple(task.name for task in FOUR)
    assert codes.values.tolist() == [[1, 0, 1, 0], [0, 1, 0, 1]]
    strength = found["sharing strength"]
    assert strength.columns == ("l1", "softmax")
    assert strength.values[strength.rows.index("layer1"), 0] == pytest.approx(2 / 6)


def test_convolutions_and_recurrent_layers_are_factorised():
    images = Encoder(
        {"input": TensorInput("image"), "conv": nn.Sequential(nn.Conv2d(2, 3, (2, 3)), nn.ReLU())}, n_features=3
    )
    sequences = Encoder(
        {"input": TensorInput("sequence"), "gru": Recurrent(2, 3, cell="gru")}, n_features=6, channel_axis=-1
    )
    generator = torch.Generator().manual_seed(1)
    image = {"image": torch.randn(5, 2, 4, 5, generator=generator).double()}
    sequence = {
        "sequence": torch.randn(5, 7, 2, generator=generator).double(),
        "length": torch.tensor([7, 1, 3, 4, 7]),
    }
    for plain, inputs in ((images, image), (sequences, sequence)):
        networks = SingleTask(FOUR, plain, identical=False).double()
        for form in FORMS:
            made = TensorFactorisation.from_single_task(networks, form=form, tolerance=0.0)
            torch.testing.assert_close(made.all_scores(inputs), networks.all_scores(inputs), rtol=0, atol=1e-10)
            made.all_scores(inputs).sum().backward()
            assert all(factor.grad.abs().sum() > 0 for factor in made.factorised.parameters())
            torch.testing.assert_close(
                made.all_scores(inputs, only=[2])[0], networks.all_scores(inputs)[2], rtol=0, atol=1e-10
            )
    assert factor_shapes((4, 3, 2, 2, 3), "tt", (4, 4, 2, 3))[-1] == (3, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"form": "tuker"}, 'Did you mean "tucker"'),
        ({"ranks": 0}, "ranks is 0"),
        ({"ranks": 0.1}, "ranks is 0.1"),
        ({"ranks": {"layer1": (2, 3, 3)}}, "ranks lacks the layers"),
        ({"ranks": {"layer3": (2, 3, 3)}}, "unknown layer"),
        ({"stages": ["layer3"]}, "unknown stage"),
        ({"stages": [], "heads": False}, "no layer's weights can be factorised"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"weight_decay": math.inf}, "weight_decay is inf"),
    ],
)
def test_impossible_settings_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        factorised(**options)


def test_an_unknown_form_of_trained_networks_is_refused():
    with pytest.raises(InputError, match='Did you mean "laf"'):
        TensorFactorisation.from_single_task(single(), form="lav")


@pytest.mark.parametrize("form", FORMS)
def test_it_can_be_exported_and_compiled_in_one_graph(form):
    network, inputs = factorised(form=form), table(ROWS, categorical=True)
    scores = network.all_scores(inputs)
    exported = torch.export.export(_Scores(network), (inputs["numeric"], inputs["categorical"]), strict=False)
    found = exported.module()(inputs["numeric"], inputs["categorical"])
    torch.testing.assert_close(found, scores, rtol=0, atol=1e-12)
    compiled = torch.compile(network.all_scores, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(inputs), scores, rtol=0, atol=1e-12)


class _Scores(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, numeric, categorical):
        return self.network.all_scores({"numeric": numeric, "categorical": categorical})
