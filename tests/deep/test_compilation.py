"""Branches and networks under ``torch.compile``, ``torch.export`` and autocast."""

import copy

import pytest
import torch
from tests.deep.networks import MIXED, encoder, table
from tests.deep.test_branches import BLOCKS, ROWS, N, example, scrambled
from tests.deep.test_encoders import ENCODERS

from polytask.deep import Branches, HardSharing, SingleTask, SoftSharing

COMPILED = [
    "two layers",
    "batch norm of images",
    "convolution with options",
    "convolution of rows with reflection",
    "flattened",
    "residual",
    "another library's residual block",
    "attention",
    "own statistics",
    "LSTM",
]


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", COMPILED)
def test_compiled_branches_are_one_graph_and_equal_the_plain_ones(kind):
    branches = Branches.from_modules([scrambled(BLOCKS[kind][0](), seed) for seed in range(N)])
    plain = copy.deepcopy(branches)
    backend = "eager" if kind == "LSTM" else "aot_eager"  # which would unroll it
    compiled = torch.compile(branches, backend=backend, fullgraph=True)
    x = example(kind, N, ROWS)
    y = compiled(x, True)
    y.square().sum().backward()
    expected = plain(x, True)
    expected.square().sum().backward()
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-10)
    for name, value in branches.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-10, atol=1e-10)
    for name, weight in branches.weights.items():
        torch.testing.assert_close(weight.grad, plain.weights[name].grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["convnet", "resnet", "bilstm of tokens"])
@pytest.mark.parametrize("network", [SingleTask, HardSharing])
def test_a_network_can_be_exported(network, kind):
    build, inputs = ENCODERS[kind]
    plain = network(MIXED, build()).double().eval()
    rows = inputs(7)
    exported = torch.export.export(plain, (rows,)).module()
    expected = plain(rows)
    found = exported(rows)
    assert list(found) == [task.name for task in MIXED]
    for name, scores in expected.items():
        torch.testing.assert_close(found[name], scores, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "network", [SingleTask, HardSharing, lambda tasks, base: SoftSharing(tasks, base, strength=0.1)]
)
def test_a_compiled_network_trains_like_the_plain_one(network):
    plain = network(MIXED, encoder(norm="batch")).double()
    other = copy.deepcopy(plain)
    inputs = table(ROWS)
    scores = torch.compile(other.all_scores, backend="aot_eager", fullgraph=True)(inputs)
    scores.square().sum().backward()
    plain.all_scores(inputs).square().sum().backward()
    for (name, weight), twin in zip(plain.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(twin.grad, weight.grad, rtol=0, atol=1e-12, msg=name)


@pytest.mark.parametrize("kind", [*COMPILED, "group norm", "slopes of channels", "pooling to one", "transformer layer"])
@pytest.mark.parametrize("own", [True, False])
def test_autocast_gives_the_values_and_gradients_of_float32_up_to_its_precision(kind, own):
    branches = Branches.from_modules([scrambled(BLOCKS[kind][0](), seed).float() for seed in range(N)])
    whole = copy.deepcopy(branches)
    x = example(kind, *((N, ROWS) if own else (ROWS,))).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = branches(x, own)
    expected = whole(x, own)
    scale = expected.abs().max()
    torch.testing.assert_close(y.float() / scale, expected / scale, rtol=0, atol=0.03)
    y.float().mean().backward()
    expected.mean().backward()
    for name, weight in branches.weights.items():
        gradient = whole.weights[name].grad
        assert weight.grad.dtype == torch.float32
        cosine = torch.nn.functional.cosine_similarity(weight.grad.flatten(), gradient.flatten(), dim=0)
        assert cosine > 0.98 or gradient.abs().max() < 1e-3, name
