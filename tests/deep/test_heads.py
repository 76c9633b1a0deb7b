import numpy as np
import pytest
import torch
from tests.deep.networks import MIXED, labels, table

from polytask.core.errors import InputError
from polytask.core.task import Multiclass, Ordinal, Regression
from polytask.deep import Heads, MultiTaskLoss

ROWS = 11
WIDEST = max(task.n_outputs for task in MIXED)


def scores(seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(MIXED), ROWS, WIDEST, generator=generator, dtype=torch.float64) * 3


def some_present(seed=4):
    present = torch.rand(len(MIXED), ROWS, generator=torch.Generator().manual_seed(seed)) < 0.6
    present[:, 0] = True
    return present


def test_losses_equal_the_tasks_own_losses_over_labelled_rows():
    s, y, present = scores(), labels(MIXED, ROWS), some_present()
    losses = MultiTaskLoss(MIXED)(s, y, present)
    for t, task in enumerate(MIXED):
        rows = present[t].numpy()
        own = task.losses(s[t, rows, : task.n_outputs].numpy(), y[t, rows].numpy()).mean()
        assert losses[t].item() == pytest.approx(own, rel=1e-12)


@pytest.mark.parametrize(
    "tasks", [(task,) for task in MIXED] + [MIXED], ids=lambda tasks: tasks[0].kind + str(len(tasks))
)
def test_gradients_equal_finite_differences(tasks):
    y, present = labels(tasks, 4), torch.tensor([True, False, True, True]).expand(len(tasks), 4)
    s = scores()[: len(tasks), :4].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: MultiTaskLoss(tasks)(s, y, present), s, eps=1e-6, atol=1e-5)


def test_classes_a_task_does_not_have_change_nothing():
    tasks = (Multiclass("a", classes=("x", "y")), Multiclass("b", classes=("p", "q", "r", "s")))
    ordinals = (Ordinal("c", classes=("lo", "hi")), Ordinal("d", classes=("1", "2", "3", "4")))
    for pair in (tasks, ordinals):
        s, y = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)), labels(pair, 6).float()
        moved = s.clone()
        moved[0, :, pair[0].n_outputs :] += 100
        present = torch.ones(2, 6, dtype=torch.bool)
        s, y = s[:, :, : pair[1].n_outputs], y
        moved = moved[:, :, : pair[1].n_outputs]
        assert MultiTaskLoss(pair)(s, y, present).equal(MultiTaskLoss(pair)(moved, y, present))


def test_what_stands_in_unlabelled_rows_reaches_neither_value_nor_gradient():
    y, present = labels(MIXED, ROWS), some_present()
    clean = scores().requires_grad_()
    dirty = scores().masked_fill(~present.unsqueeze(-1), torch.nan).requires_grad_()
    loss = MultiTaskLoss(MIXED)
    loss(clean, y, present).sum().backward()
    loss(dirty, y.masked_fill(~present, torch.nan), present).sum().backward()
    assert clean.grad.equal(dirty.grad)
    assert (dirty.grad[~present] == 0).all()


def test_a_task_without_labels_has_loss_and_gradient_exactly_zero():
    present = torch.zeros(len(MIXED), ROWS, dtype=torch.bool)
    s = scores().requires_grad_()
    losses = MultiTaskLoss(MIXED)(s, torch.full((len(MIXED), ROWS), torch.nan, dtype=torch.float64), present)
    losses.sum().backward()
    assert (losses == 0).all()
    assert (s.grad == 0).all()


def test_an_absent_task_does_not_change_the_others():
    s, y, present = scores(), labels(MIXED, ROWS), some_present()
    without = present.clone()
    without[1] = False
    loss = MultiTaskLoss(MIXED)
    others = [0, 2, 3, 4]
    assert loss(s, y, present)[others].equal(loss(s, y, without)[others])


@pytest.mark.parametrize("size", [1e3, 1e4])
def test_huge_scores_stay_finite_in_float32(size):
    s = (scores().float() * size).requires_grad_()
    MultiTaskLoss(MIXED)(s, labels(MIXED, ROWS).float(), some_present()).sum().backward()
    assert s.grad.isfinite().all()


def test_losses_follow_a_permutation_of_tasks():
    order = [3, 0, 4, 1, 2]
    s, y, present = scores(), labels(MIXED, ROWS), some_present()
    permuted = MultiTaskLoss([MIXED[t] for t in order])(s[order], y[order], present[order])
    torch.testing.assert_close(permuted, MultiTaskLoss(MIXED)(s, y, present)[order], rtol=0, atol=1e-14)


def test_padding_outputs_are_zero_whatever_the_weights():
    heads = Heads(MIXED, 3).double()
    for weight in heads.parameters():
        weight.data.fill_(1.0)
    s = heads(table(ROWS)["numeric"])
    assert s.shape == (len(MIXED), ROWS, WIDEST)
    for t, task in enumerate(MIXED):
        assert (s[t, :, task.n_outputs :] == 0).all()
        assert (s[t, :, : task.n_outputs] != 0).all()


def test_identical_heads_depend_on_seed_and_size_only_not_on_the_other_tasks():
    together, alone = Heads(MIXED, 3, identical=True, seed=2), Heads(MIXED[:1], 3, identical=True, seed=2)
    x = table(ROWS)["numeric"].float()
    np.testing.assert_allclose(together(x)[0, :, :1].detach(), alone(x)[0].detach(), atol=1e-6)
    assert together.linear.weights["weight"][0, :, 0].equal(together.linear.weights["weight"][4, :, 0])
    independent = Heads([Regression("a"), Regression("b")], 3).linear.weights["weight"]
    assert not independent[0].equal(independent[1])


def test_a_loss_of_no_tasks_is_refused():
    with pytest.raises(InputError, match="tasks is empty"):
        MultiTaskLoss([])
