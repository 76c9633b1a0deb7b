import math

import pytest
import torch

from polytask.core.errors import InputError
from polytask.deep.gates import LinearGates, SelectGates, selectors, smooth_step
from polytask.deep.running_mean import RunningMean


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def written_step(a, width):
    if a <= -width / 2:
        return 0.0
    if a >= width / 2:
        return 1.0
    return -2 * a**3 / width**3 + 3 * a / (2 * width) + 0.5


def written_selector(z, n, width):
    """r(z) for one selector, digit by digit; the first digit is the highest."""
    found = []
    for i in range(n):
        digits = format(i, f"0{len(z)}b")
        steps = [smooth_step(a, width) for a in z]
        found.append(math.prod(s if d == "1" else 1 - s for d, s in zip(digits, steps, strict=True)))
    return torch.stack(found)


@pytest.mark.parametrize("width", [0.5, 1.0, 3.0])
def test_the_smooth_step_is_its_formula(width):
    a = torch.linspace(-2, 2, 401, dtype=torch.float64)
    written = torch.tensor([written_step(float(value), width) for value in a], dtype=torch.float64)
    torch.testing.assert_close(smooth_step(a, width), written, rtol=0, atol=1e-14)


@pytest.mark.parametrize("width", [0.5, 1.0])
def test_the_smooth_step_has_a_continuous_slope_and_symmetry(width):
    edges = torch.tensor([-width / 2, width / 2], dtype=torch.float64)
    for shift in (-1e-9, 0.0, 1e-9):
        a = (edges + shift).requires_grad_()
        (slope,) = torch.autograd.grad(smooth_step(a, width).sum(), a)
        torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-6)
    a = rows(20)
    torch.testing.assert_close(smooth_step(a, width) + smooth_step(-a, width), torch.ones_like(a), rtol=0, atol=1e-14)
    inside = (width * (torch.rand(20, dtype=torch.float64) - 0.5) * 0.99).requires_grad_()
    assert torch.autograd.gradcheck(lambda b: smooth_step(b, width), inside)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8])
def test_selectors_are_the_product_over_binary_digits(n):
    bits = math.ceil(math.log2(n))
    z = 0.3 * rows(6, bits)
    written = torch.stack([written_selector(row, n, 1.0) for row in z])
    torch.testing.assert_close(selectors(z, n), written, rtol=0, atol=1e-14)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_selectors_sum_to_one_where_the_number_of_experts_is_a_power_of_two(n):
    total = selectors(0.3 * rows(50, n.bit_length() - 1), n).sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-14)


@pytest.mark.parametrize("n", [3, 5, 6, 7])
def test_selectors_sum_to_less_than_one_where_it_is_not(n):
    total = selectors((0.2 * rows(50, math.ceil(math.log2(n)))).clamp(-0.45, 0.45), n).sum(-1)
    assert (total < 1).all()


@pytest.mark.parametrize("width", [0.4, 1.0])
def test_beyond_the_step_a_selector_is_exactly_one_expert(width):
    codes = torch.tensor([[int(d) for d in format(i, "03b")] for i in range(8)], dtype=torch.float64)
    z = width * (codes - 0.5) * (1 + torch.rand(8, 3, dtype=torch.float64))
    assert selectors(z, 8, width).equal(torch.eye(8, dtype=torch.float64))


def test_linear_gates_are_softmaxes_without_bias_whose_rows_sum_to_one():
    gates = LinearGates(3, 5, 4).double()
    x = rows(7, 5)
    (weight,) = gates.parameters()
    for t in range(3):
        torch.testing.assert_close(gates(x)[t], (x @ weight[t]).softmax(-1), rtol=0, atol=1e-14)
    assert (gates(x).sum(-1) - 1).abs().max() < 1e-14
    assert not weight[0].equal(weight[1])
    own = rows(2, 7, 5)
    some = gates(own, True, only=torch.tensor([2, 0]))
    torch.testing.assert_close(some[0], gates(own[0])[2], rtol=0, atol=1e-14)
    torch.testing.assert_close(some[1], gates(own[1])[0], rtol=0, atol=1e-14)


def select(n_experts=5, seed=0, **options):
    return SelectGates(3, 6, n_experts, seed=seed, **{"n_selected": 2, **options}).double()


def parts(gates, t, x):
    """z (k, bits) and w (k,) of task t, for one row."""
    if gates.linear is None:
        z, w = gates.z[t], gates.w[t]
    else:
        logits = x @ gates.linear.weights["weight"][t] + gates.linear.weights["bias"][t]
        z, w = logits[: -gates.n_selected], logits[-gates.n_selected :]
    return z.view(gates.n_selected, -1), w


def written_gates(gates, x):
    found = []
    for t in range(3):
        taken = []
        for row in x:
            z, w = parts(gates, t, row)
            chosen = [written_selector(z_j, gates.n_experts, gates.width) for z_j in z]
            taken.append(sum(weight * r for weight, r in zip(w.softmax(0), chosen, strict=True)))
        found.append(torch.stack(taken))
    return torch.stack(found)


def written_penalty(gates, x):
    total = 0
    for t in range(3):
        for row in x:
            z, _ = parts(gates, t, row)
            for z_j in z:
                r = written_selector(z_j, gates.n_experts, gates.width)
                total = total - gates.strength * (r * (r + 1e-6).log()).sum() / len(x)
                if not math.log2(gates.n_experts).is_integer():
                    total = total + 1 / (r.sum() + 1e-6) / len(x)
    return total


def scattered(**options):
    gates = select(**options)
    for parameter in gates.parameters():
        parameter.data += 0.1 * rows(*parameter.shape, seed=3)
    return gates


@pytest.mark.parametrize("n_experts", [4, 5])
@pytest.mark.parametrize("per_example", [False, True])
def test_selecting_gates_agree_with_their_formula_in_values_and_gradients(n_experts, per_example):
    gates, x = scattered(n_experts=n_experts, per_example=per_example, width=0.8), rows(4, 6)
    written, found = written_gates(gates, x), gates(x)
    torch.testing.assert_close(found, written, rtol=0, atol=1e-12)
    factors, parameters = rows(*found.shape, seed=5), list(gates.parameters())
    for one, two in zip(
        torch.autograd.grad((found * factors).sum(), parameters),
        torch.autograd.grad((written * factors).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_experts", [4, 5])
@pytest.mark.parametrize("per_example", [False, True])
def test_the_penalty_is_its_formula_for_all_tasks_and_its_gradient_joins_that_of_the_losses(n_experts, per_example):
    gates, x = scattered(n_experts=n_experts, per_example=per_example, strength=0.7), rows(4, 6)
    gates(x).sum().backward()
    before = [parameter.grad.clone() for parameter in gates.parameters()]
    written = written_penalty(gates, x if per_example else x[:1])
    assert gates.penalty().item() == pytest.approx(written.item(), rel=1e-12)
    gates.penalty_gradient()
    expected = torch.autograd.grad(written, list(gates.parameters()), allow_unused=True)
    for parameter, start, gradient in zip(gates.parameters(), before, expected, strict=True):
        added = parameter.grad - start
        torch.testing.assert_close(added, torch.zeros_like(added) if gradient is None else gradient, rtol=0, atol=1e-12)
    steps = (gates.z if gates.linear is None else gates.linear.weights["bias"]).grad
    assert (steps.flatten(1).abs().sum(1) > 1e-6).all()


@pytest.mark.parametrize("per_example", [False, True])
def test_the_penalty_drives_every_gate_to_at_most_k_experts(per_example):
    gates, x = select(n_experts=8, n_selected=2, per_example=per_example, strength=1.0), rows(30, 6)
    assert ((gates(x) > 0).sum(-1) == 8).all()
    optimiser = torch.optim.Adam(gates.parameters(), lr=0.05)
    for _ in range(200):
        optimiser.zero_grad()
        gates(x).square().sum().mul(0).backward()
        gates.penalty_gradient()
        optimiser.step()
    taken = (gates(x) > 0).sum(-1)
    if per_example:
        assert taken.double().mean() < 4
    else:
        assert taken.max() <= 2
        assert gates.penalty() < 1e-4


def test_the_second_term_of_the_penalty_keeps_weight_on_experts_that_exist():
    gates = select(n_experts=5, strength=0.0)
    gates.z.data.fill_(0.45)  # almost all weight on expert 7 of 0 … 4
    optimiser = torch.optim.Adam(gates.parameters(), lr=0.02)
    assert gates(rows(1, 6)).sum(-1).max() < 0.2
    for _ in range(300):
        optimiser.zero_grad()
        gates.penalty_gradient()
        optimiser.step()
    assert (gates(rows(1, 6)).sum(-1) > 0.99).all()


def test_without_a_batch_or_a_penalty_nothing_is_added():
    for gates in (select(per_example=True, strength=0.3), select(n_experts=4, strength=0.0)):
        gates.penalty_gradient()
        assert all(parameter.grad is None for parameter in gates.parameters())
    gates = select(per_example=True).eval()
    gates(rows(4, 6))
    assert gates.penalty() == 0


def test_selecting_gates_start_nearly_equal():
    gates = select(n_experts=8, width=2.0)
    assert gates.z.abs().max() <= 0.02
    assert gates.w.abs().max() <= 0.05
    linear = select(n_experts=8, width=2.0, per_example=True).linear.weights
    assert linear["weight"][..., :-2].abs().max() <= 0.02
    assert 0.02 < linear["weight"][..., -2:].abs().max() <= 0.05
    assert (gates(rows(2, 6)) - 1 / 8).abs().max() < 0.02


def test_selecting_gates_take_own_rows_and_some_tasks():
    gates, own = scattered(per_example=True), rows(2, 7, 6)
    some = gates(own, True, only=torch.tensor([2, 0]))
    torch.testing.assert_close(some[0], gates(own[0])[2], rtol=0, atol=1e-14)
    static = scattered()
    assert static(own, True, only=torch.tensor([2, 0])).equal(static(own[0])[[2, 0]])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_experts": 1, "n_selected": 1}, "n_experts is 1"),
        ({"n_selected": 6}, "n_selected is 6"),
        ({"n_selected": 0}, "n_selected is 0"),
        ({"width": 0.0}, "width is 0"),
        ({"strength": -1.0}, "strength is -1"),
        ({"strength": float("nan")}, "strength is nan"),
    ],
)
def test_impossible_settings_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        select(**options)


def test_the_running_mean_is_plain_for_a_hundred_batches_then_exponential():
    use, values = RunningMean(2, 3).double(), rows(101, 2, 3)
    for batch in values[:100]:
        use(batch)
    torch.testing.assert_close(use.mean, values[:100].mean(0), rtol=0, atol=1e-13)
    use(values[100])
    torch.testing.assert_close(use.mean, 0.99 * values[:100].mean(0) + 0.01 * values[100], rtol=0, atol=1e-13)


def test_the_running_mean_counts_each_task_by_itself_and_only_while_training():
    use, values = RunningMean(2, 3).double(), rows(4, 2, 3)
    use(values[0])
    use(values[1, :1], torch.tensor([1]))
    torch.testing.assert_close(use.mean[0], values[0, 0])
    torch.testing.assert_close(use.mean[1], (values[0, 1] + values[1, 0]) / 2)
    before = use.mean.clone()
    with torch.no_grad():
        use(values[2])
    use.eval()
    use(values[3])
    assert use.mean.equal(before)
