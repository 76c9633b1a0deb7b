"""Every balancer gives the joint batch's update where the batch is spread over processes (threads, here)."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tests.balance.test_every_balancer import TABLE, T
from torch import nn

from polytask.balance import Exchange, GramBalancer, LinearHeads, PCGrad, base

PARTS = 2


class Together:
    """Adds up what as many threads hand over; every thread gets the same sum."""

    def __init__(self, parts=PARTS):
        self.barrier = threading.Barrier(parts, timeout=20)
        self.held = [None] * parts

    def sum(self, part, tensor):
        self.held[part] = tensor.detach().clone()
        self.barrier.wait()
        total = sum(self.held[1:], self.held[0].clone())
        self.barrier.wait()
        return total


def network():
    generator = torch.Generator().manual_seed(0)
    trunk = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.Tanh()).double()
    heads = nn.Parameter(torch.randn(T, 6, 1, dtype=torch.float64, generator=generator))
    with torch.no_grad():  # not by the global generator, which the threads share
        for parameter in trunk.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
    return trunk, heads


def batch():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(24, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(T, 24, generator=generator, dtype=torch.float64)
    present = torch.rand(T, 24, generator=generator) < 0.6
    present[1, ::2] = False  # a task whose labels are all in the second part
    return x, y, present


def step(balancer, rows, exchange=None, scale=1.0):
    """Return the weights and the gradients of the shared and the private parameters, on some rows of the batch."""
    trunk, heads = network()
    x, y, present = batch()
    labels = present.sum(1)
    z = trunk(x[rows])
    scores = torch.matmul(z, heads)
    read = scores.detach() + scale * (scores - scores.detach())  # gradients times scale, values as they are
    losses = (((read[..., 0] - y[:, rows]) ** 2 + 0.01) * present[:, rows]).sum(1) / labels
    features = LinearHeads(z, scores, heads) if balancer.needs_features else None
    weights = balancer.backward(
        losses, list(trunk.parameters()), [heads], present=labels > 0, features=features, exchange=exchange
    )
    return weights, torch.cat([parameter.grad.flatten() / scale for parameter in [*trunk.parameters(), heads]])


def in_parts(make, **options):
    """Return the weights and gradients of every part, each computed in a thread of its own."""
    together = Together()

    def run(part):
        exchange = Exchange(lambda tensor: together.sum(part, tensor), **options)
        return step(make(), slice(part, None, PARTS), exchange, options.get("scale", 1.0))

    with ThreadPoolExecutor(PARTS) as pool:
        return list(pool.map(run, range(PARTS)))


def at(make, level):
    balancer = make(T)
    if isinstance(balancer, GramBalancer):
        balancer.level, balancer.needs_features = level, level == "features"
    return balancer


CASES = [
    (name, level)
    for name, row in TABLE.items()
    for level in (("exact", "features") if isinstance(row.make(T), GramBalancer) else ("exact",))
]


@pytest.mark.parametrize("scale", [1.0, 64.0])
@pytest.mark.parametrize(("name", "level"), CASES)
def test_parts_of_a_batch_add_up_to_the_update_of_the_joint_batch(name, level, scale):
    def make():
        return at(TABLE[name].make, level)

    weights, joint = step(make(), slice(None))
    parts = in_parts(make, scale=scale)
    for used, _ in parts:
        torch.testing.assert_close(used, weights, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(sum(gradient for _, gradient in parts), joint, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["UPGrad", "NashMTL", "CAGrad"])
def test_with_more_tasks_than_gradients_are_added_for_nothing_is_left_unformed(name, monkeypatch):
    monkeypatch.setattr(base, "FEW_TASKS", 0)
    weights, joint = step(at(TABLE[name].make, "exact"), slice(None))
    parts = in_parts(lambda: at(TABLE[name].make, "exact"))
    torch.testing.assert_close(parts[0][0], weights, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(parts[0][1] + parts[1][1], joint, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("few", [0, 4])
def test_summed_gram_matrices_leave_out_the_products_between_parts(few, monkeypatch):
    """At the representation parts are different rows, so nothing is left out; for parameters it is an approximation."""
    monkeypatch.setattr(base, "FEW_TASKS", few)
    grams = {}

    class Watch(PCGrad):
        def gram_weights(self, gram, losses):
            grams.setdefault(self.level, []).append(gram.clone())
            return torch.ones(len(gram), dtype=gram.dtype)

    for level in ("exact", "features"):
        for rows in (slice(None), slice(0, None, 2), slice(1, None, 2)):
            step(at(lambda n: Watch(n), level), rows)
        in_parts(lambda level=level: at(lambda n: Watch(n), level), grams=True)
        joint, first, second, summed = grams[level][:4]
        torch.testing.assert_close(summed, first + second, rtol=1e-9, atol=1e-14)
        assert torch.allclose(summed, joint, rtol=1e-9) == (level == "features")
