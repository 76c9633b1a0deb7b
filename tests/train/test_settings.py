"""What the settings of training do: parts of a batch, half precision, averages, warm-up, memory."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.train.examples import wide
from tests.train.test_checkpoint import OFTEN, StopError, assert_same_bits, encoder, run

from polytask.balance import CAGrad, Equal, PCGrad, Uncertainty
from polytask.balance.base import LossBalancer
from polytask.core.errors import InputError
from polytask.deep import HardSharing, SingleTask, mlp
from polytask.train import OutOfMemoryError, TrainSettings, fit
from polytask.train.average import AveragedWeights
from polytask.train.balancers import BALANCERS, make_balancer
from polytask.train.loop import _Loop
from polytask.train.precision import Precision

CPU = torch.device("cpu")
QUICK = TrainSettings(max_epochs=4, batch_size=32, device="cpu", learning_rate=1e-2)


def double(data, balancer, settings, network=HardSharing):
    made = network(data.tasks, mlp(5, (8, 6), seed=0)).double()
    return fit(made, balancer.double(), data, wide(60, seed=1), settings=settings, seed=2)


# -- parts of a batch --------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("network", [HardSharing, SingleTask])
def test_equal_weights_on_parts_of_a_batch_take_the_steps_of_the_whole(parts, network):
    data = wide(150, missing=0.6)
    whole = double(data, Equal(4), QUICK, network)
    inparts = double(data, Equal(4), replace(QUICK, accumulate=parts), network)
    for key, value in whole.network.state_dict().items():
        torch.testing.assert_close(inparts.network.state_dict()[key], value, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(inparts.train_curve, whole.train_curve, rtol=1e-9)


WEIGHTINGS = ("uncertainty", "dwa", "famo", "gls", "imtl-l", "rlw", "scale-normalisation", "stch", "uw-so")


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("parts", [2, 3])
def test_loss_weightings_on_parts_of_a_batch_take_the_steps_of_the_whole(name, parts):
    """In float64; some task has no label in some part."""
    data = wide(150, missing=0.6).thinned({"ill": 12}, seed=0)
    whole, inparts = (
        double(data, make_balancer(name, data.tasks, seed=1), replace(QUICK, accumulate=number))
        for number in (1, parts)
    )
    for first, second in ((whole.network, inparts.network), (whole.balancer, inparts.balancer)):
        for key, value in first.state_dict().items():
            torch.testing.assert_close(second.state_dict()[key], value, rtol=1e-8, atol=1e-9, msg=key)
    np.testing.assert_allclose(inparts.train_curve, whole.train_curve, rtol=1e-9)


def test_the_first_look_at_the_parts_draws_no_masks_and_moves_no_running_means():
    """Equal weights given as learned ones that do not move: the bits are those of weights that need no first look."""

    class Same(Equal):
        constant = False

    data, found = wide(160), []
    for balancer in (Equal(4), Same(4)):
        network = HardSharing(data.tasks, mlp(5, (8, 6), dropout=0.3, norm="batch", seed=0)).double()
        fitted = fit(network, balancer, data, settings=replace(QUICK, accumulate=2), seed=2)
        found.append(fitted.network.state_dict())
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-12, atol=1e-14, msg=key)


def test_every_loss_weighting_is_tried_in_parts():
    made = {name: make_balancer(name, wide(20).tasks) for name in BALANCERS}
    weighting = {name for name, balancer in made.items() if isinstance(balancer, LossBalancer)}
    assert weighting == {*WEIGHTINGS, "equal"}
    assert {name for name in weighting if made[name].constant} == {"equal"}


def test_other_balancers_balance_each_part_and_take_the_mean_of_the_parts():
    data = wide(160)  # 16 rows a step, so that the parts are of one size
    network = HardSharing(data.tasks, mlp(5, (8, 6), seed=0)).double()
    loop = _Loop(network, CAGrad(4), data, None, replace(QUICK, accumulate=2, clip=None), 0, CPU, None)
    loop.sampler.start(0)
    loop.update()
    found = [value.grad.clone() for value in loop.parameters]
    network = HardSharing(data.tasks, mlp(5, (8, 6), seed=0)).double()
    alone = _Loop(network, CAGrad(4), data, None, replace(QUICK, clip=None), 0, CPU, None)
    for share in loop.shares:
        alone.sampler.start(0)
        alone.balance(alone.sampler.batch(0, share), None)
    for gradient, value in zip(found, alone.parameters, strict=True):
        torch.testing.assert_close(gradient, value.grad / 2, rtol=1e-9, atol=1e-12)


# -- half precision ----------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("balancer", [Equal, PCGrad, CAGrad])
def test_half_precision_learns_nearly_what_full_precision_does(precision, balancer):
    data, valid = wide(300), wide(100, seed=0)
    curves = {}
    for name in ("float32", precision):
        network = HardSharing(data.tasks, mlp(5, (16, 8), seed=0))
        settings = replace(QUICK, precision=name, max_epochs=10)
        fitted = fit(network, balancer(4), data, valid, settings=settings)
        assert all(value.dtype == torch.float32 for value in network.parameters())
        curves[name] = fitted.valid_curve
    assert not (curves[precision] == curves["float32"]).all()
    np.testing.assert_allclose(curves[precision], curves["float32"], rtol=0.05, atol=0.02)


def test_gradients_are_scaled_after_losses_are_weighted_and_unscaled_before_they_are_clipped():
    """Losses and what a balancer learns are as without scaling; so are the gradients that the step takes."""

    watched = []

    class Watch(Uncertainty):
        def weights(self, losses, present):
            watched.append(losses.clone())
            return super().weights(losses, present)

    data, gradients = wide(100), []
    for scale in (1.0, 2.0**12):
        network = HardSharing(data.tasks, mlp(5, (8, 6), seed=0))
        balancer = Watch([task.kind for task in data.tasks])
        loop = _Loop(network, balancer, data, None, QUICK, 0, CPU, None)
        loop.precision.scales, loop.precision.scale = scale > 1, scale
        loop.sampler.start(0)
        loop.update()
        gradients.append([value.grad.clone() for value in loop._optimised()])
    assert watched[0].equal(watched[1])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-7)


def test_a_step_that_overflows_is_left_out_and_halves_the_scale():
    data = wide(100)
    loop = _Loop(
        HardSharing(data.tasks, encoder(data)), Equal(4), data, None, replace(QUICK, precision="float16"), 0, CPU, None
    )
    loop.sampler.start(0)
    loop.precision.scale = 2.0**40
    before = {name: value.clone() for name, value in loop.network.named_parameters()}
    loop.update()
    assert all(value.equal(before[name]) for name, value in loop.network.named_parameters())
    assert loop.precision.scale == 2.0**39
    loop.precision.scale = 2.0**10
    loop.update()
    assert not all(value.equal(before[name]) for name, value in loop.network.named_parameters())


def test_the_scale_doubles_after_two_thousand_calm_steps():
    precision, weight = Precision("float16", CPU), torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    for _ in range(2000):
        assert precision.scale == 2.0**16
        assert precision.unscale([weight])
    assert precision.scale == 2.0**17


# -- average, learning rate --------------------------------------------------------------------


def test_the_average_follows_its_formula_and_gives_the_weights_back():
    layer = torch.nn.Linear(3, 2)
    average, expected = AveragedWeights(layer, 0.9), layer.weight.detach().clone()
    for step in range(30):
        with torch.no_grad():
            layer.weight += 0.1 * torch.randn(2, 3, generator=torch.Generator().manual_seed(step))
        average.update(layer)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * layer.weight.detach()
    now = layer.weight.detach().clone()
    with average.in_place(layer):
        torch.testing.assert_close(layer.weight.detach(), expected, rtol=1e-5, atol=1e-6)
    assert layer.weight.detach().equal(now)


def test_the_averaged_weights_are_what_is_judged_and_kept():
    data, valid = wide(150), wide(60, seed=1)
    settings = replace(QUICK, average=0.99, max_epochs=6)
    fitted = fit(HardSharing(data.tasks, encoder(data)), Equal(4), data, valid, settings=settings)
    plain = fit(HardSharing(data.tasks, encoder(data)), Equal(4), data, valid, settings=replace(settings, average=None))
    np.testing.assert_array_equal(fitted.train_curve, plain.train_curve)
    assert (fitted.valid_curve != plain.valid_curve).all()
    loop = _Loop(fitted.network, Equal(4), data, valid, QUICK, 0, CPU, None)
    again = loop.valid_losses().double().numpy()
    np.testing.assert_allclose(again, fitted.valid_curve[fitted.best_epoch[0]], rtol=1e-6)


def test_the_rate_rises_over_the_warm_up_and_then_takes_its_schedule():
    settings = TrainSettings(learning_rate=0.5, max_epochs=10, warm_up=2, schedule="cosine")
    rates = [settings.rate(step, 100) for step in range(100)]
    np.testing.assert_allclose(rates[:20], 0.5 * np.arange(1, 21) / 20, rtol=1e-12)
    np.testing.assert_allclose(rates[20:], [0.25 * (1 + math.cos(math.pi * k / 80)) for k in range(80)], rtol=1e-12)


@pytest.mark.parametrize(
    "options", [{"average": 0.9}, {"precision": "float16"}, {"accumulate": 2}, {"sampling": "uniform"}, {"warm_up": 2}]
)
def test_a_fit_with_these_settings_broken_off_and_resumed_ends_with_the_same_bits(options, tmp_path):
    data, valid = wide(150, missing=0.3), wide(60, seed=1)
    settings = replace(OFTEN, **options)
    whole = run("hard", data, valid, settings=settings)

    def stop(text, share):
        if share >= 0.6:
            raise StopError

    with pytest.raises(StopError):
        run("hard", data, valid, tmp_path, settings=settings, progress=stop)
    assert_same_bits(whole, run("hard", data, valid, tmp_path, settings=settings))


# -- memory ------------------------------------------------------------------------------------


class Fills(Equal):
    """Asks for more memory than there is, in its 25th step on more than ``most`` rows."""

    calls, enough = 0, False

    def backward(self, losses, *args, **options):
        Fills.calls += 1
        if Fills.calls == 25 and not Fills.enough:
            torch.empty(2**60, dtype=torch.uint8)
        return super().backward(losses, *args, **options)


def test_out_of_memory_is_told_with_the_remedy_and_the_fit_goes_on_from_its_checkpoint(tmp_path):
    data, valid = wide(150), wide(60, seed=1)
    Fills.__name__ = "Equal"
    with pytest.raises(OutOfMemoryError, match=r"step 5 of epoch 3 .*accumulate=2, which needs about half.*checkpoint"):
        run("hard", data, valid, tmp_path, balancer=Fills(4))
    Fills.enough = True
    resumed = run("hard", data, valid, tmp_path, balancer=Equal(4))
    assert_same_bits(run("hard", data, valid, balancer=Equal(4)), resumed)


def test_after_running_out_of_memory_the_fit_goes_on_in_smaller_parts(tmp_path):
    data, valid = wide(150), wide(60, seed=1)
    Fills.__name__, Fills.calls, Fills.enough = "Equal", 0, False
    with pytest.raises(OutOfMemoryError):
        run("hard", data, valid, tmp_path, balancer=Fills(4))
    Fills.enough, Fills.calls = True, 0
    parts = replace(OFTEN, accumulate=2)
    run("hard", data, valid, tmp_path, balancer=Fills(4), settings=parts)
    assert 0 < Fills.calls < 2 * 50 - 25


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"accumulate": 0}, "accumulate must be at least 1"),
        ({"precision": "half"}, 'unknown precision "half"'),
        ({"missing": "none"}, 'unknown treatment of missing labels "none"'),
        ({"average": 1.0}, "average must lie between 0 and 1"),
        ({"warm_up": 200}, "warm_up must be 0 or more epochs, fewer than max_epochs"),
    ],
)
def test_settings_are_checked_when_they_are_made(options, told):
    with pytest.raises(InputError, match=told):
        TrainSettings(**options)


def test_too_many_parts_for_a_batch_are_refused_before_the_first_step():
    data = wide(100)
    with pytest.raises(InputError, match="some batch has 10 rows, too few for 1 processes with accumulate=6"):
        fit(HardSharing(data.tasks, encoder(data)), Equal(4), data, settings=replace(QUICK, accumulate=6))
