import copy

import pytest
import torch
from tests.deep.networks import CARDINALITIES, table
from torch import nn
from torch.nn.utils import parametrize

from polytask.core.errors import InputError
from polytask.deep import Branches, Looped, Recurrent, Residual, TableInput, padded
from polytask.deep.branches import STACKS

N, ROWS = 3, 7


class Basic(nn.Module):
    """A residual block as image libraries write it."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(nn.Conv2d(2, 4, 1, stride=2, bias=False), nn.BatchNorm2d(4))

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.downsample(x))


class Counting(nn.Module):
    """A module that gives its buffer a new value, and has one that is not saved."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("factor", torch.ones(1), persistent=False)

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return (x - self.mean) * self.scale * self.factor


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Picky(nn.Module):
    """A kind without a form of its own."""

    def forward(self, x):
        return torch.cumsum(x, -1)


def residual():
    block = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    return nn.Sequential(Residual(block, nn.Conv2d(2, 4, 1)), nn.ReLU())


TABLE, SEQUENCE, ROW, IMAGE = (3,), (5, 4), (2, 9), (2, 6, 5)
BLOCKS = {
    "linear": (lambda: nn.Linear(3, 5), TABLE),
    "linear without bias": (lambda: nn.Linear(3, 5, bias=False), TABLE),
    "linear with one output": (lambda: nn.Linear(3, 1), TABLE),
    "wide linear": (lambda: nn.Linear(3, 12), TABLE),
    "layer norm": (lambda: nn.LayerNorm(3), TABLE),
    "layer norm without affine": (lambda: nn.LayerNorm(3, elementwise_affine=False), TABLE),
    "layer norm without bias": (lambda: nn.LayerNorm(3, bias=False), TABLE),
    "layer norm of images": (lambda: nn.LayerNorm((6, 5)), IMAGE),
    "batch norm": (lambda: nn.BatchNorm1d(3), TABLE),
    "batch norm without affine": (lambda: nn.BatchNorm1d(3, affine=False), TABLE),
    "batch norm without statistics": (lambda: nn.BatchNorm1d(3, track_running_stats=False), TABLE),
    "batch norm of rows": (lambda: nn.BatchNorm1d(2), ROW),
    "batch norm of images": (lambda: nn.BatchNorm2d(2), IMAGE),
    "group norm": (lambda: nn.GroupNorm(1, 2), IMAGE),
    "group norm of rows": (lambda: nn.GroupNorm(2, 2), ROW),
    "group norm without affine": (lambda: nn.GroupNorm(2, 2, affine=False), IMAGE),
    "activation": (nn.Tanh, TABLE),
    "two layers": (
        lambda: nn.Sequential(
            nn.Linear(3, 12),
            nn.BatchNorm1d(12),
            nn.GELU(),
            nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 2)),
            nn.ReLU(),
        ),
        TABLE,
    ),
    "activation first": (lambda: nn.Sequential(nn.Tanh(), nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 1)), TABLE),
    "dropout of nothing": (lambda: nn.Sequential(nn.Dropout(0.0), nn.Linear(3, 4)), TABLE),
    "one slope": (nn.PReLU, IMAGE),
    "slopes of channels": (lambda: nn.PReLU(2), IMAGE),
    "slopes of units": (lambda: nn.PReLU(3), TABLE),
    "convolution of rows": (lambda: nn.Conv1d(2, 4, 3, padding=1), ROW),
    "convolution": (lambda: nn.Conv2d(2, 4, 3), IMAGE),
    "convolution with options": (
        lambda: nn.Conv2d(2, 4, (3, 2), stride=2, padding=(2, 1), dilation=2, bias=False),
        IMAGE,
    ),
    "convolution of the same size": (lambda: nn.Conv2d(2, 4, 3, padding="same"), IMAGE),
    "convolution in groups": (lambda: nn.Conv2d(2, 4, 3, groups=2), IMAGE),
    "convolution with circular padding": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), IMAGE),
    "convolution of rows with reflection": (lambda: nn.Conv1d(2, 3, 3, padding="same", padding_mode="reflect"), ROW),
    "pooling": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.MaxPool2d(2), nn.AvgPool2d(2, padding=1)),
        IMAGE,
    ),
    "pooling of rows": (lambda: nn.Sequential(nn.MaxPool1d(2), nn.Conv1d(2, 4, 3), nn.AdaptiveAvgPool1d(1)), ROW),
    "pooling to one": (lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)), IMAGE),
    "adaptive maximum": (lambda: nn.AdaptiveMaxPool2d((2, 3)), IMAGE),
    "flattened": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(48, 3)), IMAGE),
    "flattened in part": (lambda: nn.Flatten(1, 2), IMAGE),
    "residual": (residual, IMAGE),
    "residual of a shared shortcut": (lambda: Residual(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))), TABLE),
    "another library's residual block": (Basic, IMAGE),
    "LSTM": (lambda: Recurrent(4, 3), SEQUENCE),
    "GRU in one direction": (lambda: Recurrent(4, 3, cell="gru", bidirectional=False), SEQUENCE),
    "transposed convolution": (lambda: nn.ConvTranspose2d(2, 3, 3, stride=2), IMAGE),
    "attention": (Attention, SEQUENCE),
    "transformer layer": (lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), SEQUENCE),
    "own statistics": (Counting, TABLE),
    "parametrised": (lambda: parametrize.register_parametrization(nn.Linear(3, 4), "weight", nn.Softplus()), TABLE),
}


def example(kind, *lead):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*lead, *BLOCKS[kind][1], generator=generator, dtype=torch.float64)


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
    plain = [scrambled(BLOCKS[kind][0](), seed).train(training) for seed in range(N)]
    branches = Branches.from_modules(plain).train(training)
    x = example(kind, *((N, ROWS) if own else (ROWS,))).requires_grad_()
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


def test_the_padding_row_of_an_embedding_gets_no_gradient():
    plain = [scrambled(nn.Embedding(5, 2, padding_idx=1), seed) for seed in range(N)]
    branches = Branches.from_modules(plain)
    codes = torch.tensor([[0, 1, 4], [1, 1, 2]])
    y = branches(codes)
    y.square().sum().backward()
    for k, module in enumerate(plain):
        module(codes).square().sum().backward()
        torch.testing.assert_close(y[k], module(codes), rtol=0, atol=0)
        torch.testing.assert_close(branches.weights["weight"].grad[k], module.weight.grad, rtol=0, atol=1e-12)
        assert branches.copy(k).padding_idx == 1


@pytest.mark.parametrize("kind", BLOCKS)
def test_only_computes_the_branches_asked_for_and_leaves_the_others_alone(kind):
    branches = Branches.from_modules([scrambled(BLOCKS[kind][0](), seed) for seed in range(N)])
    whole = copy.deepcopy(branches)
    x = example(kind, ROWS)
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


@pytest.mark.parametrize(
    "block", [nn.Dropout2d(0.5), nn.Sequential(Picky(), nn.Dropout(0.5)), nn.Dropout(0.5, inplace=True)]
)
def test_masks_of_other_blocks_differ_between_branches_too(block):
    y = Branches(block, 2)(torch.ones(40, 6, 2, 2))
    assert not y[0].equal(y[1])


def test_rows_of_branches_padded_to_one_length_keep_their_values_and_gradients():
    plain = [scrambled(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), seed) for seed in range(N)]
    branches = Branches.from_modules(plain)
    rows = [table(count, seed=count)["numeric"].requires_grad_() for count in (4, 1, 6)]
    x, present = padded(rows)
    assert present.sum(1).tolist() == [4, 1, 6]
    y = branches(x, own=True)
    (y.square() * present.unsqueeze(-1)).sum().backward()
    for k, module in enumerate(plain):
        alone = rows[k].detach().clone().requires_grad_()
        module(alone).square().sum().backward()
        torch.testing.assert_close(y[k, : len(alone)], module(alone), rtol=0, atol=1e-12)
        torch.testing.assert_close(rows[k].grad, alone.grad, rtol=0, atol=1e-12)
        torch.testing.assert_close(branches.weights["1.weight"].grad[k], module[1].weight.grad, rtol=0, atol=1e-12)


class Looking(nn.Module):
    """A kind whose forward looks at values."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        if self.training:
            self.calls += 1
        return self.linear(x) if x.sum() > 0 else x


def test_a_block_that_looks_at_values_is_refused_by_the_first_call_and_may_loop(monkeypatch):
    with pytest.raises(InputError, match=r"cannot batch Looking.*STACKS\[Looking\] = Looped"):
        Branches(Looking(), 2)(torch.ones(2, 5, 3), own=True)
    assert Branches(Looking(), 1)(torch.ones(5, 3)).shape == (1, 5, 3)
    monkeypatch.setitem(STACKS, Looking, Looped)
    plain = [scrambled(Looking(), seed) for seed in range(N)]
    branches = Branches.from_modules(plain)
    x = torch.stack([table(ROWS)["numeric"].abs(), -table(ROWS)["numeric"].abs(), table(ROWS)["numeric"].abs()])
    y = branches(x, own=True)
    y.square().sum().backward()
    assert y[1].equal(x[1])
    for k, module in enumerate(plain):
        module(x[k]).square().sum().backward() if k != 1 else None
        torch.testing.assert_close(y[k], module(x[k]), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        branches.weights["linear.weight"].grad[0], plain[0].linear.weight.grad, rtol=0, atol=1e-12
    )
    branches(x[:2], own=True, only=torch.tensor([2, 0]))
    assert branches.stack.calls.tolist() == [2, 1, 2]


def test_a_block_that_returns_several_tensors_is_refused():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(InputError, match="Pair returns a tuple"):
        Branches(Pair(), 2)(torch.ones(5, 3))


def test_errors_that_are_not_about_batching_stay_what_they_are():
    class Wrong(nn.Module):
        def forward(self, x):
            return x.view(7)

    with pytest.raises(RuntimeError, match="shape"):
        Branches(Wrong(), 2)(torch.ones(5, 3))


@pytest.mark.parametrize("kind", ["linear", "convolution", "batch norm", "own statistics", "LSTM", "slopes of units"])
def test_frozen_weights_stay_frozen(kind):
    block = scrambled(BLOCKS[kind][0](), 0).requires_grad_(False)
    branches = Branches(block, 2)
    assert not any(weight.requires_grad for weight in branches.parameters())
    assert not any(weight.requires_grad for weight in branches.copy(1).parameters())


def test_forward_hooks_run():
    block = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    block[0].register_forward_hook(lambda module, args, output: 2 * output)
    x = table(ROWS)["numeric"].float()
    torch.testing.assert_close(Branches(block, 2)(x)[0], block(x))


def test_weights_of_any_module_keep_their_names():
    assert set(Branches(Basic(), 2).weights) == {name for name, _ in Basic().named_parameters()}
    assert set(Branches(Basic(), 2).stack.state_dict()) == set(Basic().state_dict())


def test_many_convolutions_are_computed_in_parts_with_the_same_result(monkeypatch):
    branches = Branches(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)), 5, seed=1).double()
    whole = copy.deepcopy(branches)
    x = example("convolution", 5, ROWS)
    expected = whole(x, own=True)
    expected.square().sum().backward()
    monkeypatch.setattr("polytask.deep.branches._BYTES", 2 * ROWS * 30 * 4 * 8)
    calls = []
    branches.stack.register_forward_hook(lambda *_: calls.append(1))
    y = branches(x, own=True)
    y.square().sum().backward()
    assert len(calls) == 3
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    for name, weight in branches.weights.items():
        torch.testing.assert_close(weight.grad, whole.weights[name].grad, rtol=0, atol=1e-12)
    for name, value in branches.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name], rtol=0, atol=1e-12)
    some = branches.eval()(x[:3], own=True, only=torch.tensor([4, 0, 1]))
    torch.testing.assert_close(some, whole.eval()(x[:3], own=True, only=torch.tensor([4, 0, 1])), rtol=0, atol=1e-12)


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
        (lambda: Branches(nn.LSTM(3, 4), 2), "Recurrent"),
        (lambda: Branches(nn.LazyLinear(3), 2), "run it once first"),
        (lambda: Branches(nn.BatchNorm1d(3, momentum=None), 2), "momentum"),
        (lambda: Branches(nn.Embedding(3, 2, max_norm=1.0), 2), "max_norm"),
        (lambda: Branches(nn.Linear(3, 4), 0), "n is 0"),
        (lambda: Branches.from_modules([]), "modules is empty"),
        (lambda: padded([]), "rows is empty"),
        (lambda: padded([torch.zeros(2, 3), torch.zeros(2, 4)]), "only the first axis"),
        (lambda: Branches.from_modules([nn.Linear(3, 4), nn.Linear(3, 5)]), "equally built"),
        (lambda: Branches(nn.Linear(3, 4), 2).copy(2), "branch is 2"),
        (lambda: Branches(nn.BatchNorm1d(3), 2)(torch.zeros(5, 3, 2, 2)), r"\(B, features\)"),
    ],
)
def test_what_cannot_be_stacked_is_refused_by_name(build, words):
    with pytest.raises(InputError, match=words):
        build()
