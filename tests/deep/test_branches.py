import copy

import pytest
import torch
from tests.deep.networks import CARDINALITIES, table
from torch import nn

from polytask.core.errors import InputError
from polytask.deep import Branches, TableInput

N, ROWS = 3, 7

BLOCKS = {
    "linear": lambda: nn.Linear(3, 5),
    "linear without bias": lambda: nn.Linear(3, 5, bias=False),
    "linear with one output": lambda: nn.Linear(3, 1),
    "wide linear": lambda: nn.Linear(3, 12),
    "layer norm": lambda: nn.LayerNorm(3),
    "layer norm without affine": lambda: nn.LayerNorm(3, elementwise_affine=False),
    "layer norm without bias": lambda: nn.LayerNorm(3, bias=False),
    "batch norm": lambda: nn.BatchNorm1d(3),
    "batch norm without affine": lambda: nn.BatchNorm1d(3, affine=False),
    "batch norm without statistics": lambda: nn.BatchNorm1d(3, track_running_stats=False),
    "activation": nn.Tanh,
    "two layers": lambda: nn.Sequential(
        nn.Linear(3, 12), nn.BatchNorm1d(12), nn.GELU(), nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 2)), nn.ReLU()
    ),
    "activation first": lambda: nn.Sequential(nn.Tanh(), nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 1)),
    "dropout of nothing": lambda: nn.Sequential(nn.Dropout(0.0), nn.Linear(3, 4)),
}


def scrambled(block: nn.Module, seed: int) -> nn.Module:
    """The block with every floating-point weight and statistic drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    block = copy.deepcopy(block).double()
    for value in block.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator, dtype=torch.float64) + 0.2)
    return block


def gradients(block):
    return {name: weight.grad for name, weight in block.named_parameters()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("kind", BLOCKS)
def test_every_branch_equals_the_plain_module_in_value_gradient_and_state(kind, own, training):
    plain = [scrambled(BLOCKS[kind](), seed).train(training) for seed in range(N)]
    branches = Branches.from_modules(plain).train(training)
    x = table(*((N, ROWS) if own else (ROWS,)))["numeric"].requires_grad_()
    y = branches(x, own)
    weight = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    (y * weight).sum().backward()
    x_grad = torch.zeros_like(x)
    for k, module in enumerate(plain):
        x_k = (x[k] if own else x).detach().requires_grad_()
        y_k = module(x_k)
        (y_k * weight[k]).sum().backward()
        torch.testing.assert_close(y[k], y_k, rtol=0, atol=1e-10)
        (x_grad[k] if own else x_grad).add_(x_k.grad)
        for name, gradient in gradients(module).items():
            stacked = branches.weights[name].grad[k]
            expected = gradient.T if stacked.shape != gradient.shape else gradient
            torch.testing.assert_close(stacked, expected, rtol=0, atol=1e-10)
        for name, value in branches.copy(k).state_dict().items():
            torch.testing.assert_close(value, module.state_dict()[name], rtol=0, atol=1e-10)
    torch.testing.assert_close(x.grad, x_grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("own", [True, False])
def test_branches_of_a_table_input_embed_with_their_own_tables(own):
    plain = [scrambled(TableInput(3, CARDINALITIES, (2, 4)), seed) for seed in range(N)]
    branches = Branches.from_modules(plain)
    inputs = table(*((N, ROWS) if own else (ROWS,)), categorical=True)
    y = branches(inputs, own)
    y.square().sum().backward()
    for k, module in enumerate(plain):
        y_k = module({name: tensor[k] if own else tensor for name, tensor in inputs.items()})
        y_k.square().sum().backward()
        torch.testing.assert_close(y[k], y_k, rtol=0, atol=0)
        for name, gradient in gradients(module).items():
            torch.testing.assert_close(branches.weights[name].grad[k], gradient, rtol=0, atol=1e-12)
        assert branches.copy(k).n_features == module.n_features == y.shape[-1]


@pytest.mark.parametrize("kind", BLOCKS)
def test_only_computes_the_branches_asked_for_and_leaves_the_others_alone(kind):
    branches = Branches.from_modules([scrambled(BLOCKS[kind](), seed) for seed in range(N)])
    whole = copy.deepcopy(branches)
    x = table(ROWS)["numeric"]
    before = copy.deepcopy(branches.state_dict())
    some = branches(x, only=torch.tensor([2, 0]))
    torch.testing.assert_close(some, whole(x)[[2, 0]], rtol=0, atol=1e-12)
    for name, value in branches.state_dict().items():
        torch.testing.assert_close(value[1], before[name][1], rtol=0, atol=0)
        torch.testing.assert_close(value[[0, 2]], whole.state_dict()[name][[0, 2]], rtol=0, atol=1e-12)


def test_a_linear_layer_keeps_the_axes_between_rows_and_features():
    plain = [scrambled(nn.Linear(3, 4), seed) for seed in range(N)]
    branches = Branches.from_modules(plain)
    for x, own in ((table(N, ROWS, 2)["numeric"], True), (table(ROWS, 2)["numeric"], False)):
        y = branches(x, own)
        assert y.shape == (N, ROWS, 2, 4)
        for k in range(N):
            torch.testing.assert_close(y[k], plain[k](x[k] if own else x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("own", [True, False])
def test_dropout_masks_differ_between_branches(own):
    branches = Branches(nn.Dropout(0.5), 2)
    y = branches(torch.ones(2, 500) if own else torch.ones(500), own)
    assert not torch.equal(y[0], y[1])
    assert branches.eval()(torch.ones(5)).equal(torch.ones(2, 5))


def test_branch_zero_keeps_the_blocks_weights_and_others_are_drawn_anew():
    block = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    branches = Branches(block, 3, seed=5)
    assert branches.copy(0)[2].weight.equal(block[2].weight)
    W = branches.weights["2.weight"]
    assert W.shape == (3, 4, 2)
    assert not W[0].equal(W[1])
    assert not W[1].equal(W[2])
    assert all(w.equal(W[0]) for w in Branches(block, 3, identical=True).weights["2.weight"])


def test_construction_is_deterministic_and_leaves_global_random_state_alone():
    block = nn.Linear(3, 4)
    state = torch.get_rng_state()
    one, two, other = Branches(block, 3, seed=5), Branches(block, 3, seed=5), Branches(block, 3, seed=6)
    assert torch.get_rng_state().equal(state)
    assert one.weights["weight"].equal(two.weights["weight"])
    assert not one.weights["weight"].equal(other.weights["weight"])


def test_branches_do_not_alias_the_block():
    block = nn.Linear(3, 4)
    before = block.weight.detach().clone()
    branches = Branches(block, 1)
    with torch.no_grad():
        branches.weights["weight"].zero_()
        branches.copy(0).bias.fill_(7.0)
    assert block.weight.equal(before)
    assert not (branches.weights["bias"] == 7.0).any()


def test_float32_stays_float32():
    assert Branches(nn.Linear(3, 4), 2)(torch.zeros(5, 3)).dtype == torch.float32


def test_state_round_trip_gives_the_same_outputs():
    block = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    one, two = Branches(block, 3, seed=1), Branches(block, 3, seed=2)
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    one(x)
    two.load_state_dict(one.state_dict())
    assert one.eval()(x).equal(two.eval()(x))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Branches(nn.LSTM(3, 4), 2), "LSTM"),
        (lambda: Branches(nn.Sequential(nn.Linear(3, 4), nn.PReLU()), 2), "PReLU"),
        (lambda: Branches(nn.BatchNorm1d(3, momentum=None), 2), "momentum"),
        (lambda: Branches(nn.Embedding(3, 2, padding_idx=0), 2), "Embedding"),
        (lambda: Branches(nn.Linear(3, 4), 0), "n is 0"),
        (lambda: Branches.from_modules([]), "modules is empty"),
        (lambda: Branches.from_modules([nn.Linear(3, 4), nn.Linear(3, 5)]), "equally built"),
        (lambda: Branches(nn.Linear(3, 4), 2).copy(2), "branch is 2"),
        (lambda: Branches(nn.BatchNorm1d(3), 2)(torch.zeros(5, 3, 2)), "rows of features"),
    ],
)
def test_what_cannot_be_stacked_is_refused_by_name(build, words):
    with pytest.raises(InputError, match=words):
        build()
