import pytest
import torch
from torch import nn
from torch.nn import functional

from polytask.auxiliary import DomainHead, GradientReversal
from polytask.auxiliary.adversarial import ramp
from polytask.core.errors import InputError
from polytask.deep.seeding import seeded


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    return features, torch.randint(0, 3, (8,), generator=generator)


def head(strength):
    return DomainHead(5, 3, widths=(7,), strength=strength, seed=1).double()


@pytest.mark.parametrize("strength", [0.0, 0.4, 3.0])
def test_forward_is_the_identity_and_the_gradient_is_minus_strength_times_the_true_one(strength):
    features, _ = batch()
    plain, turned = features.clone().requires_grad_(), features.clone().requires_grad_()
    out = GradientReversal(strength)(turned)
    assert out.equal(features)
    plain.sin().prod(1).sum().backward()
    out.sin().prod(1).sum().backward()
    torch.testing.assert_close(turned.grad, -strength * plain.grad, rtol=0, atol=1e-14)


def test_the_reversed_gradient_is_minus_strength_times_finite_differences():
    features, domains = batch()
    domain_head = head(0.7)

    def loss(x):
        return functional.cross_entropy(domain_head(x), domains)

    x = features.clone().requires_grad_()
    loss(x).backward()
    step = 1e-6
    for row, column in ((0, 0), (3, 4), (7, 2)):
        up, down = features.clone(), features.clone()
        up[row, column] += step
        down[row, column] -= step
        slope = (loss(up) - loss(down)).item() / (2 * step)
        assert x.grad[row, column].item() == pytest.approx(-0.7 * slope, abs=1e-7)


def test_the_heads_own_gradient_is_not_reversed():
    features, domains = batch()
    one, plain = head(5.0), head(5.0).head
    functional.cross_entropy(one(features.clone().requires_grad_()), domains).backward()
    functional.cross_entropy(plain(features), domains).backward()
    for mine, true in zip(one.head.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, true.grad, rtol=0, atol=1e-14)


def test_adversarial_training_forgets_a_domain_that_a_trunk_with_strength_zero_keeps():
    generator = torch.Generator().manual_seed(3)
    domain = torch.randint(0, 2, (200,), generator=generator)
    signal = torch.randn(200, 1, generator=generator)
    x = torch.cat([signal, domain[:, None] * 4.0 - 2.0], dim=1)

    def domain_weight(strength):
        with seeded(0):
            trunk, main = nn.Linear(2, 2), nn.Linear(2, 1)
        other = DomainHead(2, 2, widths=(), strength=strength)
        groups = [{"params": [*trunk.parameters(), *main.parameters()]}, {"params": other.parameters()}]
        groups[1]["weight_decay"] = 0.3  # damps the two players' turning around the saddle point
        optimiser = torch.optim.SGD(groups, lr=0.1)
        for _ in range(400):
            optimiser.zero_grad()
            features = trunk(x)
            loss = (main(features) - signal).square().mean() + functional.cross_entropy(other(features), domain)
            loss.backward()
            optimiser.step()
        assert (main(trunk(x)) - signal).square().mean() < 0.01
        return trunk.weight[:, 1].norm().item()

    assert domain_weight(0.0) > 0.2
    assert domain_weight(1.0) < 0.05


def test_strength_is_part_of_the_state():
    one, two = GradientReversal(0.3), GradientReversal()
    two.load_state_dict(one.state_dict())
    assert two.strength == 0.3


def test_ramp_goes_from_nought_to_nearly_one():
    assert ramp(0.0) == 0.0
    assert ramp(0.5) == pytest.approx(0.9866142981514305)
    assert ramp(1.0) == pytest.approx(0.9999092042625951)
    assert ramp(0.3) < ramp(0.4)


def test_the_same_seed_gives_the_same_head_and_global_random_state_is_left_alone():
    state = torch.get_rng_state()
    one, two, other = DomainHead(5, 3, seed=1), DomainHead(5, 3, seed=1), DomainHead(5, 3, seed=2)
    assert torch.get_rng_state().equal(state)
    assert one.head[0].weight.equal(two.head[0].weight)
    assert not one.head[0].weight.equal(other.head[0].weight)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: GradientReversal(-1.0), "strength is -1.0"),
        (lambda: GradientReversal(float("nan")), "strength is nan"),
        (lambda: DomainHead(5, 1), "n_domains is 1"),
        (lambda: ramp(1.5), "progress is 1.5"),
    ],
)
def test_impossible_settings_are_refused(build, words):
    with pytest.raises(InputError, match=words):
        build()
