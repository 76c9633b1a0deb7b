"""Soft sharing by trace norm against singular value decompositions and its limiting cases."""

import pytest
import torch
from tests.deep.networks import MIXED, encoder, labels, table
from tests.deep.test_networks import train

from polytask.core.errors import InputError
from polytask.core.task import Regression
from polytask.deep import SingleTask, TraceNormSharing
from polytask.deep.trace_norm_sharing import fold, soft_threshold, trace_norm_gradient, unfold, unfoldings

ROWS = 9
T = len(MIXED)
FORMS = ["laf", "tucker", "tt"]


def soft(strength=0.3, seed=0, tasks=MIXED, **options):
    return TraceNormSharing(tasks, encoder(), strength=strength, seed=seed, **options).double()


def scattered(**options):
    """A network whose tasks differ."""
    network = soft(**options)
    generator = torch.Generator().manual_seed(8)
    for parameter in network.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return network


def trace_norm(matrix):
    return torch.linalg.svdvals(matrix).sum()


def written_out(network):
    """The penalty from its definition, task axis last, by singular value decompositions; strength 1."""
    total = torch.zeros((), dtype=torch.float64)
    for W in network.coupled().values():
        last = W.movedim(0, -1)
        D = last.shape
        if network.form == "laf":
            matrices = [last.reshape(-1, D[-1])]
        elif network.form == "tucker":
            matrices = [last.movedim(k, 0).reshape(D[k], -1) for k in range(len(D))]
        else:
            matrices = [last.reshape(D[: k + 1].numel(), -1) for k in range(len(D) - 1)]
        for M in matrices:
            total = total + trace_norm(M) * (max(M.shape) ** -0.5 if network.normalise else 1)
    return total


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_the_penalty_and_its_gradient_are_those_of_the_singular_values(form, normalise):
    network = scattered(strength=0.7, form=form, normalise=normalise, update="gradient")
    expected = 0.7 * written_out(network)
    assert network.penalty().item() == pytest.approx(expected.item(), rel=1e-10)
    network.penalty_gradient()
    weights = list(network.coupled().values())
    for weight, gradient in zip(weights, torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=0, atol=1e-9)


def test_the_gradient_is_that_of_finite_differences_at_full_rank():
    M = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradient, step = trace_norm_gradient(M), 1e-6
    for i, j in [(0, 0), (1, 4), (3, 5)]:
        moved = torch.zeros_like(M)
        moved[i, j] = step
        slope = (trace_norm(M + moved) - trace_norm(M - moved)) / (2 * step)
        assert gradient[i, j].item() == pytest.approx(slope.item(), abs=1e-8)


def test_identical_tasks_have_the_norm_of_one_times_the_root_of_their_number():
    network = soft(strength=1.0, normalise=False)
    one = sum(weight[0].norm().item() for weight in network.coupled().values())
    assert network.penalty().item() == pytest.approx(T**0.5 * one, rel=1e-6)


def test_orthonormal_tasks_have_the_norm_of_their_number():
    network = soft(strength=1.0, normalise=False, stages=["layer1"])
    (weight,) = network.coupled().values()
    basis = torch.linalg.qr(torch.randn(24, T, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    weight.data.copy_(basis.T.view_as(weight))
    assert network.penalty().item() == pytest.approx(T, rel=1e-12)


def test_the_task_unfolding_does_not_change_when_tasks_are_mixed_orthogonally():
    network = scattered()
    before = network.penalty().item()
    mixing = torch.linalg.qr(torch.randn(T, T, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    for weight in network.coupled().values():
        weight.data.copy_(torch.einsum("ts,s...->t...", mixing, weight.data))
    assert network.penalty().item() == pytest.approx(before, rel=1e-12)


def test_of_vectors_all_unfoldings_are_the_task_unfolding_and_tucker_counts_it_twice():
    options = {"biases": True, "stages": ["layer1"], "normalise": False}
    networks = {form: scattered(strength=1.0, form=form, **options) for form in FORMS}
    norms = {form: n.value("", n.coupled()["layer1.0.bias"]).item() for form, n in networks.items()}
    assert norms["tt"] == pytest.approx(norms["laf"], rel=1e-12)
    assert norms["tucker"] == pytest.approx(2 * norms["laf"], rel=1e-12)


@pytest.mark.parametrize("shape", [(5, 3), (5, 4, 3), (2, 3, 4, 2)])
def test_unfolding_and_folding_undo_each_other(shape):
    W = torch.arange(float(torch.Size(shape).numel())).view(shape)
    for form in FORMS:
        for rows in unfoldings(form, len(shape)):
            assert fold(unfold(W, rows), rows, W).equal(W)
    assert [len(unfoldings(form, len(shape))) for form in FORMS] == [1, len(shape), len(shape) - 1]


def test_ranks_that_are_not_full_and_equal_singular_values_give_a_finite_subgradient():
    for M in (torch.zeros(3, 5), torch.ones(3, 5), torch.eye(3, 5), torch.eye(5, 3)):
        gradient = trace_norm_gradient(M)
        assert gradient.isfinite().all()
        assert torch.linalg.svdvals(gradient).max() <= 1 + 1e-5
        assert (gradient * M).sum().item() == pytest.approx(trace_norm(M).item(), abs=1e-4)


@pytest.mark.parametrize("shape", [(4, 7), (7, 4)])
def test_soft_thresholding_is_that_of_the_singular_value_decomposition(shape):
    M = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    U, sizes, V = torch.linalg.svd(M, full_matrices=False)
    threshold = sizes[2].item() + 0.01
    expected = U @ torch.diag((sizes - threshold).clamp(min=0)) @ V
    found = soft_threshold(M, threshold)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert torch.linalg.matrix_rank(found) == 2
    assert (soft_threshold(M, sizes[0].item() + 1e-9) == 0).all()


def test_the_proximal_step_of_the_task_unfolding_minimises_its_objective():
    before, after = scattered(strength=0.7, normalise=False), scattered(strength=0.7, normalise=False)
    after.after_step(0.2)

    def objective(weights):
        return sum(
            0.2 * 0.7 * trace_norm(weights[n].flatten(1)) + 0.5 * (weights[n] - before.coupled()[n]).square().sum()
            for n in weights
        ).item()

    end = {name: weight.detach() for name, weight in after.coupled().items()}
    best, generator = objective(end), torch.Generator().manual_seed(1)
    for size in (1e-3, 1e-2, 1e-1):
        for _ in range(5):
            moved = {n: w + size * torch.randn(w.shape, generator=generator, dtype=w.dtype) for n, w in end.items()}
            assert objective(moved) > best


@pytest.mark.parametrize("form", FORMS)
def test_a_huge_strength_leaves_nothing_and_no_strength_is_single_task_learning_exactly(form):
    network = scattered(strength=1e9, form=form)
    network.after_step(1.0)
    assert all((weight == 0).all() for weight in network.coupled().values())
    inputs, targets = table(ROWS), labels(MIXED, ROWS)
    single = train(SingleTask(MIXED, encoder()).double(), MIXED, inputs, targets, steps=3)
    for update in ("prox", "gradient"):
        none = train(soft(0.0, form=form, update=update), MIXED, inputs, targets, steps=3)
        assert none.all_scores(inputs).equal(single.all_scores(inputs))


def test_training_with_the_proximal_step_makes_the_stacked_weights_low_rank():
    inputs, targets = table(ROWS), labels(MIXED, ROWS)
    network = train(soft(3.0, normalise=False), MIXED, inputs, targets, steps=15, lr=0.02)
    ranks = [int(torch.linalg.matrix_rank(w.flatten(1), rtol=1e-6)) for w in network.coupled().values()]
    assert min(ranks) < T
    free = train(soft(0.0), MIXED, inputs, targets, steps=15, lr=0.02)
    assert [int(torch.linalg.matrix_rank(w.flatten(1), rtol=1e-6)) for w in free.coupled().values()] == [T, T]


def test_relations_are_loadings_whose_products_are_those_of_the_weights():
    network = scattered()
    found = network.relations()
    assert set(found) == {"encoder_changes", "factors"}
    loadings = torch.from_numpy(found["factors"].values)
    stacked = torch.cat([weight.flatten(1) for weight in network.coupled().values()], dim=1)
    torch.testing.assert_close(loadings.T @ loadings, (stacked @ stacked.T).detach(), rtol=0, atol=1e-8)
    assert found["factors"].columns == tuple(task.name for task in MIXED)
    assert soft().relations()["factors"].rows == ("factor 1",)
    assert "factors" not in soft(tasks=MIXED[:1]).relations()


def test_many_tasks_have_finite_steps_in_single_precision():
    tasks = [Regression(f"t{t}") for t in range(60)]
    for form in FORMS:
        network = TraceNormSharing(tasks, encoder(), strength=0.1, form=form)
        for update in ("prox", "gradient"):
            network.update = update
            network.penalty_gradient()
            network.after_step(1e-2)
        assert all(weight.isfinite().all() and weight.grad.isfinite().all() for weight in network.coupled().values())
        assert network.penalty().isfinite()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strength": -1.0}, "strength is -1.0"),
        ({"form": "tukker"}, 'Did you mean "tucker"'),
        ({"update": "proximal"}, 'Did you mean "prox"'),
        ({"stages": ["layer3"]}, "unknown stage"),
    ],
)
def test_impossible_settings_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        soft(**options)
