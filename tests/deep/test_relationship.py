import copy
import math

import pytest
import torch
from tests.deep.networks import CARDINALITIES, MIXED, encoder, labels, table
from tests.deep.test_networks import train
from torch import nn

from polytask.core.errors import InputError
from polytask.core.task import Binary, Multiclass, Regression
from polytask.deep import Encoder, HardSharing, MultiTaskLoss, RelationshipNetwork, TensorInput
from polytask.deep.relationship import LayerPrior, LayerRule, authors_precision
from polytask.deep.tensor_normal import quadratic_form

ROWS = 9
FOUR = tuple(Multiclass(f"t{t}", classes=("a", "b", "c")) for t in range(4))
EAGER = {"refresh_every": 1, "damping": 0.0}


def related(tasks=FOUR, seed=0, widths=(8, 6), **options):
    return RelationshipNetwork(tasks, encoder(widths, **CATEGORIES), seed=seed, **options).double()


CATEGORIES = {"cardinalities": CARDINALITIES}


def scattered(**options):
    """A network whose tasks differ and whose covariances have been learned."""
    network = related(**options)
    generator = torch.Generator().manual_seed(8)
    for parameter in network.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    network.refresh()
    return network


def trained(network, tasks=FOUR, **options):
    return train(network, tasks, table(ROWS, categorical=True), labels(tasks, ROWS), **options)


def dense(prior):
    found = torch.ones(1, 1, dtype=torch.float64)
    for precision, size in zip(prior.precisions(), prior.shape, strict=True):
        if precision is None:
            precision = torch.eye(size, dtype=torch.float64)
        found = torch.kron(found, precision if precision.dim() == 2 else precision.diag())
    return found


@pytest.mark.parametrize("options", [{}, {"mode": "paper"}, {"mode": "authors"}, {"cov": "mtrl"}, {"modes": "tasks"},
                                     {"largest": 4}, {"largest": 4, "large": "identity"}])  # fmt: skip
def test_penalty_and_gradient_are_those_of_the_dense_kronecker_product(options):
    network = scattered(strength=0.7, **options)
    network.penalty_gradient()
    total = 0.0
    for name, weight, prior in network._layers():
        D = weight.numel()
        scale = {"stable": 1 / D, "paper": 1.0, "authors": 2.0}[options.get("mode", "stable")]
        pulled = dense(prior) @ weight.detach().flatten()
        total += 0.7 * scale * 0.5 * (weight.detach().flatten() @ pulled).item()
        torch.testing.assert_close(weight.grad.flatten(), 0.7 * scale * pulled, rtol=1e-10, atol=1e-12, msg=name)
    assert network.penalty().item() == pytest.approx(total, rel=1e-10)
    first = {name: weight.grad.clone() for name, weight in network.coupled().items()}
    network.penalty_gradient()
    for name, weight in network.coupled().items():
        torch.testing.assert_close(weight.grad, 2 * first[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize(("mode", "scale"), [("stable", None), ("paper", 1.0), ("authors", 2.0)])
def test_before_the_first_refresh_the_prior_is_weight_decay(mode, scale):
    network = related(strength=0.7, mode=mode)
    network.penalty_gradient()
    expected = 0.0
    for weight in network.coupled().values():
        factor = 0.7 * (1 / weight.numel() if scale is None else scale)
        expected += 0.5 * factor * weight.square().sum().item()
        torch.testing.assert_close(weight.grad, factor * weight.detach(), rtol=1e-12, atol=0)
    assert network.penalty().item() == pytest.approx(expected, rel=1e-12)


def test_training_with_identity_covariances_is_training_with_weight_decay():
    network, plain = related(strength=0.3, mode="paper"), related(strength=0.0)
    trained(network, optimiser=torch.optim.SGD)
    related_ids = {id(weight) for weight in plain.coupled().values()}
    rest = [parameter for parameter in plain.parameters() if id(parameter) not in related_ids]
    optimiser = torch.optim.SGD(
        [{"params": list(plain.coupled().values()), "weight_decay": 0.3}, {"params": rest}], lr=0.05
    )
    inputs, targets = table(ROWS, categorical=True), labels(FOUR, ROWS)
    for _ in range(5):
        optimiser.zero_grad()
        loss = MultiTaskLoss(FOUR)(plain.all_scores(inputs), targets, torch.ones_like(targets, dtype=torch.bool))
        loss.sum().backward()
        optimiser.step()
    torch.testing.assert_close(network.all_scores(inputs), plain.all_scores(inputs), rtol=0, atol=1e-12)


def test_without_strength_and_own_stages_it_is_hard_sharing_bit_for_bit():
    inputs = table(ROWS, categorical=True)
    network = trained(related(strength=0.0, own_stages=(), **EAGER))
    hard = trained(HardSharing(FOUR, encoder(**CATEGORIES)).double())
    assert network.all_scores(inputs).equal(hard.all_scores(inputs))
    assert network.features(inputs).equal(hard.features(inputs))


@pytest.mark.parametrize("own_rows", [False, True])
def test_without_strength_it_is_a_trunk_with_private_upper_layers(own_rows):
    """The loop twin: plain modules, one upper stage and head after the other; scores and gradients."""
    network = related(strength=0.0, seed=4, identical=False)
    inputs = table(*((len(FOUR), ROWS) if own_rows else (ROWS,)), categorical=True)
    targets, present = labels(FOUR, ROWS), torch.ones(len(FOUR), ROWS, dtype=torch.bool)
    trunk = nn.Sequential(*(network.encoder.stages[name].copy(0) for name in ("input", "layer1")))
    upper = [network.encoder.stages["layer2"].copy(t) for t in range(len(FOUR))]
    heads = [network.heads.linear.copy(t) for t in range(len(FOUR))]
    each = [{name: tensor[t] for name, tensor in inputs.items()} if own_rows else inputs for t in range(len(FOUR))]
    twin = torch.stack([heads[t](upper[t](trunk(each[t]))) for t in range(len(FOUR))])
    scores = network.all_scores(inputs, own_rows)
    torch.testing.assert_close(scores, twin, rtol=0, atol=1e-12)
    for some in (scores, twin):
        MultiTaskLoss(FOUR)(some, targets, present).sum().backward()
    shared = network.encoder.stages["layer1"].weights["0.weight"].grad[0]
    torch.testing.assert_close(shared, trunk[1][0].weight.grad.T, rtol=0, atol=1e-12)
    for t in range(len(FOUR)):
        own = network.encoder.stages["layer2"].weights["0.weight"].grad[t]
        torch.testing.assert_close(own, upper[t][0].weight.grad.T, rtol=0, atol=1e-12)
        torch.testing.assert_close(
            network.heads.linear.weights["weight"].grad[t], heads[t].weight.grad.T, rtol=0, atol=1e-12
        )


def test_scores_and_gradients_pass_a_finite_difference_check():
    network, inputs = scattered(widths=(3, 2)), table(3, categorical=True)
    names, values = zip(*((name, value.detach()) for name, value in network.named_parameters()), strict=True)

    def loss(*some):
        found = torch.func.functional_call(network, dict(zip(names, some, strict=True)), (inputs,))
        return torch.stack([scores.square().mean() for scores in found.values()])

    assert torch.autograd.gradcheck(loss, [value.requires_grad_() for value in values], eps=1e-6, atol=1e-5)


def test_the_stable_prior_has_covariances_of_unit_mean_variance_and_follows_with_damping():
    network = scattered(damping=0.9)
    fresh = scattered(damping=0.0)
    for (name, _, prior), (_, _, at_once) in zip(network._layers(), fresh._layers(), strict=True):
        for slow, quick in zip(prior.covariances(), at_once.covariances(), strict=True):
            size = len(slow)
            assert slow.trace().item() == pytest.approx(size), name
            assert (torch.linalg.eigvalsh(slow) > 0).all()
            torch.testing.assert_close(slow, 0.9 * torch.eye(size).double() + 0.1 * quick, rtol=0, atol=1e-12)
        for covariance, precision in zip(prior.covariances(), prior.precisions(), strict=True):
            torch.testing.assert_close(covariance @ precision, torch.eye(len(covariance)).double(), rtol=0, atol=1e-8)


def test_the_paper_mode_starts_from_identities_and_gives_a_quadratic_form_near_the_number_of_weights():
    network = scattered(mode="paper", eps=1e-9)
    for _, weight, prior in network._layers():
        assert quadratic_form(weight.detach(), prior.covariances()).item() == pytest.approx(weight.numel(), rel=1e-4)


def test_mtrl_with_the_tasks_alone_learns_omega():
    network = scattered(mode="paper", cov="mtrl", modes="tasks", eps=1e-12)
    for _, weight, prior in network._layers():
        flat = weight.detach().flatten(1)
        values, vectors = torch.linalg.eigh(flat @ flat.T)
        omega = (vectors * values.sqrt() / values.sqrt().sum()) @ vectors.T
        torch.testing.assert_close(prior.covariances()[0], omega, rtol=0, atol=1e-8)
        nuclear = torch.linalg.svdvals(flat).sum().item()
        assert 2 * prior.value(weight).item() == pytest.approx(nuclear**2, rel=1e-6)


def test_the_authors_precision_inverts_large_singular_values_only_and_limits_the_trace():
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double())[0]
    raw = rotation @ torch.diag(torch.tensor([4.0, 0.5, 0.05]).double()) @ rotation.T
    expected = rotation @ torch.diag(torch.tensor([0.25, 2.0, 0.05]).double()) @ rotation.T
    torch.testing.assert_close(authors_precision(raw), expected, rtol=0, atol=1e-12)
    many = authors_precision(0.101 * torch.eye(400).double())
    assert many.trace().item() == pytest.approx(3000)


def test_the_authors_mode_learns_the_tasks_precision_of_the_heads_alone_without_normalisation():
    network = scattered(mode="authors")
    assert network.own_stages == ()
    assert list(network.coupled()) == ["heads"]
    W = network.heads.linear.weights["weight"].detach().flatten(1)
    raw = W @ W.T + 1e-5 * torch.eye(4).double()
    tasks, *others = network.priors["heads"].covariances()
    torch.testing.assert_close(tasks, raw, rtol=0, atol=1e-12)
    assert others == [None, None]
    torch.testing.assert_close(network.priors["heads"].precision0, authors_precision(raw), rtol=0, atol=1e-10)


def test_covariances_are_refreshed_every_so_many_steps_in_training():
    network = related(refresh_every=3)
    before = network.covariances()["layer2"][0].clone()
    trained(network, steps=2)
    assert network.covariances()["layer2"][0].equal(before)
    trained(network, steps=1)
    assert not network.covariances()["layer2"][0].equal(before)


@pytest.mark.parametrize("mode", ["stable", "paper", "authors"])
def test_training_with_frequent_refreshes_stays_finite(mode):
    network = trained(related(mode=mode, strength=1e-2, refresh_every=1), steps=60)
    assert all(tensor.isfinite().all() for tensor in network.state_dict().values())
    assert network.penalty() > 0


def test_a_layer_of_zeros_keeps_its_covariances():
    network = related(own_stages=())
    network.heads.linear.weights["weight"].data.zero_()
    network.refresh()
    assert network.covariances()["heads"][0].equal(torch.eye(4).double())


def test_tasks_with_planted_weights_show_their_correlation():
    network = related(own_stages=("layer2",), widths=(60, 40), **EAGER)
    planted = torch.tensor([[1.0, 0.9, -0.8, 0.0], [0.9, 1.0, -0.7, 0.0], [-0.8, -0.7, 1.0, 0.0], [0, 0, 0, 1.0]])
    draws = torch.randn(4, 2400, generator=torch.Generator().manual_seed(0)).double()
    network.coupled()["layer2"].data = (torch.linalg.cholesky(planted.double()) @ draws).view(4, 60, 40)
    for _ in range(5):
        network.refresh()
    shown = network.relations()["layer2 tasks"]
    assert shown.rows == shown.columns == tuple(task.name for task in FOUR)
    assert shown.values == pytest.approx(planted.numpy(), abs=0.05)


def test_relations_name_tasks_units_and_classes_and_leave_large_axes_out():
    found = scattered(widths=(80, 6)).relations()
    assert list(found) == ["layer2 tasks", "layer2 outputs", "heads tasks", "heads inputs", "heads outputs"]
    assert found["heads outputs"].rows == ("a", "b", "c")
    assert found["heads inputs"].rows[0] == "input 1"
    assert all(relation.kind == "correlation" for relation in found.values())


def test_tasks_of_unequal_sizes_keep_heads_of_their_own():
    network = related(MIXED)
    assert list(network.coupled()) == ["layer2"]
    with pytest.raises(InputError, match="only equal heads can be related"):
        related(MIXED, heads=True)
    with pytest.raises(InputError, match="no layer's weights can be related"):
        related(MIXED, own_stages=())


def test_large_axes_get_diagonal_covariances_or_none():
    diagonal = scattered(widths=(8, 6), largest=6).covariances()["layer2"]
    assert [one.dim() for one in diagonal] == [2, 1, 2]
    identity = scattered(widths=(8, 6), largest=6, large="identity").covariances()["layer2"]
    assert [one is None for one in identity] == [False, True, False]


def test_weights_under_the_prior_have_no_other_decay():
    network = related()
    rest, prior = network.parameter_groups()
    assert {id(p) for p in prior.parameters} == {id(p) for p in network.coupled().values()}
    assert (rest.weight_decay, prior.weight_decay) == (True, False)
    assert len(rest.parameters) + len(prior.parameters) == sum(1 for _ in network.parameters())


def test_a_lone_task_has_no_prior():
    network = related(FOUR[:1])
    assert network.coupled() == {}
    assert network.penalty() == 0
    assert network.relations() == {}


def test_training_permuted_tasks_permutes_scores_and_covariances():
    order = [2, 0, 3, 1]
    one = related(FOUR, **EAGER)
    two = related(tuple(FOUR[t] for t in order), **EAGER)
    for name, weight in two.heads.linear.weights.items():
        weight.data.copy_(one.heads.linear.weights[name][order])
    inputs, targets = table(ROWS, categorical=True), labels(FOUR, ROWS)
    train(one, FOUR, inputs, targets, steps=4)
    train(two, FOUR, inputs, targets[order], steps=4)
    torch.testing.assert_close(two.all_scores(inputs), one.all_scores(inputs)[order], rtol=0, atol=1e-8)
    left, right = one.covariances()["heads"][0], two.covariances()["heads"][0]
    torch.testing.assert_close(right, left[order][:, order], rtol=0, atol=1e-8)


def test_a_saved_network_goes_on_exactly_where_it_stopped():
    whole, first, second = (related(refresh_every=3) for _ in range(3))
    sgd = {"optimiser": torch.optim.SGD}
    trained(whole, steps=10, **sgd)
    trained(first, steps=5, **sgd)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    trained(second, steps=5, **sgd)
    for name, value in whole.state_dict().items():
        assert value.equal(second.state_dict()[name]), name


def test_convolutions_are_tensors_of_order_four():
    encoder = Encoder(
        {"input": TensorInput("image"), "conv": nn.Sequential(nn.Conv2d(2, 3, (2, 3)), nn.ReLU())},
        n_features=3,
        channels={"input": 2, "conv": 3},
    )
    network = RelationshipNetwork(FOUR, encoder, **EAGER).double()
    network.coupled()["conv"].data += torch.randn(4, 3, 2, 2, 3, generator=torch.Generator().manual_seed(0))
    network.refresh()
    prior = network.priors["conv"]
    assert prior.shape == (4, 3, 2, 6)
    network.penalty_gradient()
    weight = network.coupled()["conv"]
    expected = dense(prior) @ weight.detach().flatten() / weight.numel()
    torch.testing.assert_close(weight.grad.flatten(), expected, rtol=0, atol=1e-12)
    image = torch.randn(5, 2, 4, 5, generator=torch.Generator().manual_seed(1)).double()
    trunk_free = network.encoder.stages["conv"].copy(1)(image).flatten(2).mean(-1)
    expected_scores = network.heads.linear.copy(1)(trunk_free)
    torch.testing.assert_close(network.all_scores({"image": image})[1], expected_scores, rtol=0, atol=1e-12)
    assert "conv positions" in network.relations()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strength": -1.0}, "strength is -1.0"),
        ({"strength": math.inf}, "strength is inf"),
        ({"mode": "stabel"}, 'Did you mean "stable"'),
        ({"cov": "mtlr"}, 'Did you mean "mtrl"'),
        ({"modes": "task"}, 'Did you mean "tasks"'),
        ({"large": "diag"}, "unknown large"),
        ({"eps": 0.0}, "eps is 0.0"),
        ({"damping": 1.0}, "damping is 1.0"),
        ({"refresh_every": 0}, "refresh_every is 0"),
        ({"own_stages": ["layer1"]}, "name the last stages"),
        ({"own_stages": ["layer3"]}, "unknown stage"),
        ({"mode": "authors", "cov": "mtrl"}, "its own rule"),
    ],
)
def test_impossible_settings_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        related(**options)


def test_every_stage_may_be_the_tasks_own():
    network = related(own_stages=("input", "layer1", "layer2"))
    assert network.shared_parameters() == []
    assert set(network.coupled()) == {"input.embeddings.0.weight", "input.embeddings.1.weight", "layer1", "layer2",
                                      "heads"}  # fmt: skip
    inputs = table(len(FOUR), ROWS, categorical=True)
    assert network.all_scores(inputs, own_rows=True).shape == (4, ROWS, 3)


def test_one_output_per_task_leaves_that_axis_out_of_the_prior():
    tasks = (Regression("a"), Binary("b", classes=("no", "yes")), Regression("c"))
    assert related(tasks).covariances()["heads"][2] is None
    assert LayerPrior((3, 4, 1), LayerRule()).shape == (
        3,
        4,
        1,
    )


def test_one_layers_weights_are_not_made_to_explain_more_covariances_than_they_can_tell_apart():
    """Heads of one output are a matrix: with two full covariances, as in the paper, the inputs' explains everything."""
    tasks = tuple(Regression(f"t{t}") for t in range(3))
    planted = torch.tensor([[1.0, 0.9, -0.8], [0.9, 1.0, -0.7], [-0.8, -0.7, 1.0]]).double()
    draws = torch.randn(3, 60, generator=torch.Generator().manual_seed(0)).double()
    W = (torch.linalg.cholesky(planted) @ draws)[:, :, None]
    shown = {}
    for mode in ("stable", "paper"):
        network = related(tasks, own_stages=(), widths=(8, 60), mode=mode, **EAGER)
        network.coupled()["heads"].data = W.clone()
        for _ in range(5):
            network.refresh()
        shown[mode] = network.relations()["heads tasks"].values
    assert shown["stable"] == pytest.approx(planted.numpy(), abs=0.15)
    assert abs(shown["paper"][0, 1]) < 0.1
    sides = related(FOUR, widths=(40, 30)).covariances()["layer2"]
    assert [one.dim() for one in sides] == [2, 2, 2]
    sides = related(FOUR, widths=(200, 30)).covariances()["layer2"]
    assert [one.dim() for one in sides] == [2, 1, 2]


def test_it_can_be_compiled_in_one_graph():
    network, inputs = scattered(), table(ROWS, categorical=True)
    compiled = torch.compile(network.all_scores, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(inputs), network.all_scores(inputs), rtol=0, atol=1e-12)
