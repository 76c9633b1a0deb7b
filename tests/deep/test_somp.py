import pytest
import torch
from tests.deep.networks import encoder, table
from torch import nn

from polytask.core.errors import InputError
from polytask.deep import Encoder
from polytask.deep.somp import somp, thin_encoder


def matrix(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Picture(nn.Module):
    def forward(self, inputs):
        return inputs["image"]


def convnet():
    torch.manual_seed(0)
    stages = {
        "input": Picture(),
        "conv1": nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
        "conv2": nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        "top": nn.Sequential(nn.Flatten(), nn.Linear(32, 7), nn.LayerNorm(7), nn.Tanh()),
    }
    channels = {"input": 2, "conv1": 6, "conv2": 8, "top": 7}
    found = Encoder(stages, n_features=7, channels=channels).double()
    found.train()(pictures())  # batch statistics that are not those of the start
    return found.eval()


def pictures():
    return {"image": matrix(5, 2, 8, 8)}


def test_the_residual_never_grows_and_is_that_of_the_weights():
    W = matrix(12, 7)
    for n_rows in range(1, 13):
        found = somp(W, n_rows)
        assert all(a >= b - 1e-12 for a, b in zip(found.residuals, found.residuals[1:], strict=False))
        left = (W - found.weights @ W[found.rows]).norm().item()
        assert found.residuals[-1] == pytest.approx(left, abs=1e-10)


def test_rows_of_low_rank_are_represented_exactly():
    W = matrix(20, 5) @ matrix(5, 30, seed=1)
    found = somp(W, 5)
    assert found.residuals[4] > 1e-3
    assert found.residuals[5] < 1e-10
    torch.testing.assert_close(found.weights @ W[found.rows], W, rtol=0, atol=1e-10)


def test_the_weights_are_those_of_least_squares():
    W = matrix(10, 20)
    found = somp(W, 4)
    expected = torch.linalg.lstsq(W[found.rows].T, W.T).solution.T
    torch.testing.assert_close(found.weights, expected, rtol=0, atol=1e-10)


def test_the_first_row_is_the_one_most_correlated_with_all():
    W = matrix(9, 4)
    closeness = [sum(abs(float(W[i] @ W[j])) for i in range(9)) / float(W[j].norm()) for j in range(9)]
    assert somp(W, 1).rows.tolist() == [max(range(9), key=closeness.__getitem__)]


@pytest.mark.parametrize("shape", [(6, 9), (9, 4)])
def test_picking_every_row_is_the_identity(shape):
    found = somp(matrix(*shape), shape[0])
    assert found.rows.tolist() == list(range(shape[0]))
    torch.testing.assert_close(found.weights, torch.eye(shape[0], dtype=torch.float64), rtol=0, atol=0)
    assert found.residuals[-1] < 1e-12


def test_a_row_that_was_picked_stands_for_itself_alone():
    found = somp(matrix(9, 3), 6)  # more rows than their rank
    torch.testing.assert_close(found.weights[found.rows], torch.eye(6, dtype=torch.float64), rtol=0, atol=0)
    assert found.residuals[-1] < 1e-10


def test_rows_of_zeros_are_picked_last():
    W = matrix(4, 3)
    W[1] = 0
    assert somp(W, 3).rows.tolist() == [0, 2, 3]


@pytest.mark.parametrize("norm", [None, "layer", "batch"])
def test_an_encoder_thinned_to_its_own_widths_is_the_same_function(norm):
    wide = encoder((8, 6), norm=norm).double().eval()
    inputs = table(7)
    torch.testing.assert_close(thin_encoder(wide, (8, 6))(inputs), wide(inputs), rtol=0, atol=1e-12)
    wide = convnet()
    torch.testing.assert_close(thin_encoder(wide, (6, 8, 7))(pictures()), wide(pictures()), rtol=0, atol=1e-12)


def test_a_linear_encoder_of_low_rank_is_thinned_without_loss():
    first, second = nn.Linear(3, 12, bias=False), nn.Linear(12, 4)
    wide = Encoder({**encoder(()).stages, "a": first, "b": second}, n_features=4).double()
    inputs = table(7)
    thin = thin_encoder(wide, (3, 4))  # 12 rows in 3 dimensions
    torch.testing.assert_close(thin(inputs), wide(inputs), rtol=0, atol=1e-10)
    assert thin.stages["a"].weight.shape == (3, 3)
    assert (thin.stages["a"].out_features, thin.stages["b"].in_features) == (3, 3)


def test_the_widths_of_a_thin_convolutional_encoder():
    wide = convnet()
    before = {name: value.clone() for name, value in wide.state_dict().items()}
    thin = thin_encoder(wide, (3, 4, 5))
    assert thin(pictures()).shape == (5, 5)
    assert thin.channels == {"input": 2, "conv1": 3, "conv2": 4, "top": 5}
    shapes = {name: tuple(value.shape) for name, value in thin.named_parameters()}
    assert shapes["stages.conv1.0.weight"] == (3, 2, 3, 3)
    assert shapes["stages.conv2.0.weight"] == (4, 3, 3, 3)
    assert shapes["stages.top.1.weight"] == (5, 16)
    assert thin.stages["conv1"][1].running_mean.shape == (3,)
    assert all(value.equal(before[name]) for name, value in wide.state_dict().items())


def test_a_thin_start_is_closer_to_the_wide_features_than_rows_taken_at_random():
    """With a linear read-out fitted on top, the thin start explains more of the wide encoder's features."""
    wide, inputs = encoder((64, 16)).double(), table(400)

    def unexplained(thin):
        x = torch.cat([thin(inputs).detach(), torch.ones(400, 1, dtype=torch.float64)], dim=1)
        y = wide(inputs).detach()
        return float((y - x @ torch.linalg.lstsq(x, y).solution).square().mean() / y.var(0).mean())

    chance = [unexplained(encoder((8, 8), seed=seed).double()) for seed in range(1, 8)]
    assert unexplained(thin_encoder(wide, (8, 8))) < min(chance)


def test_what_cannot_be_thinned_is_refused_by_name():
    wide = encoder((8, 6))
    with pytest.raises(InputError, match="widths has 1 entries, but the encoder has 2 layers"):
        thin_encoder(wide, (4,))
    with pytest.raises(InputError, match="widths has 9 for a layer of 8 units"):
        thin_encoder(wide, (9, 4))
    recurrent = Encoder({**encoder(()).stages, "rnn": nn.GRU(3, 4)}, n_features=4)
    with pytest.raises(InputError, match=r"cannot thin GRU\(3, 4\)"):
        thin_encoder(recurrent, ())
    with pytest.raises(InputError, match="n_rows is 0; of 4 rows"):
        somp(matrix(4, 3), 0)
