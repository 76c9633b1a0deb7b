"""A fit that runs out of memory leaves the last step it finished, unless its weights had begun to move."""

from dataclasses import replace

import pytest
import torch
from tests.train.examples import wide
from tests.train.test_checkpoint import OFTEN, assert_same_bits, encoder, levels
from tests.train.test_nonfinite import spoiled, train

from polytask.balance import FAMO, Equal, NashMTL, PCGrad, Uncertainty
from polytask.deep import HardSharing, JointManyTask
from polytask.train import DivergedError, OutOfMemoryError, fit
from polytask.train.checkpoint import read

RARELY = replace(OFTEN, checkpoint_seconds=1e6)
DATA, VALID = wide(150, missing=0.3), wide(60, seed=1)


def run(network, balancer, folder=None, settings=RARELY):
    return fit(network, balancer, DATA, VALID, settings=settings, seed=3, checkpoint=folder)


def filling(kind, at, *, evaluating=False):
    """A network that runs out of memory after the forward pass of a training step (or of an evaluation)."""

    class Fills(kind):
        calls = 0

        def all_scores(self, inputs, own_rows=False, *, only=None):
            return self.counted(super().all_scores(inputs, own_rows, only=only))

        def scores_and_features(self, inputs):
            found = super().scores_and_features(inputs)
            return found if found is None else self.counted(found)

        def counted(self, found):  # masks are drawn by now, and running means have moved
            self.calls += self.training != evaluating
            if self.calls == at and self.training != evaluating:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return found

    Fills.__name__ = kind.__name__
    return Fills


def hard(kind=HardSharing):
    return kind(DATA.tasks, encoder(DATA))


def facts(folder):
    (path,) = folder.iterdir()
    return read(path)[1]


BALANCERS = {
    "equal": lambda: Equal(4),
    "uncertainty": lambda: Uncertainty([task.kind for task in DATA.tasks], init="auto"),
    "famo": lambda: FAMO(4),
    "pcgrad": lambda: PCGrad(4, seed=1),
    "nash-mtl": lambda: NashMTL(4, every=3),
}


@pytest.mark.parametrize("name", BALANCERS)
@pytest.mark.parametrize("average", [None, 0.9])
def test_the_last_finished_step_is_left_and_the_same_fit_ends_with_the_bits_of_one_that_had_memory(
    name, average, tmp_path
):
    settings = replace(RARELY, average=average)
    whole = run(hard(), BALANCERS[name](), settings=settings)
    at = 47 if name == "famo" else 24  # FAMO looks twice at each step
    with pytest.raises(OutOfMemoryError, match=r"out of memory in step 4 of epoch 3 .*accumulate=2.*the checkpoint"):
        run(hard(filling(HardSharing, at)), BALANCERS[name](), tmp_path, settings)
    assert (facts(tmp_path)["epoch"], facts(tmp_path)["step"]) == (2, 3)
    assert_same_bits(whole, run(hard(), BALANCERS[name](), tmp_path, settings))


def test_a_network_that_takes_its_levels_in_turn_goes_back_too(tmp_path):
    def joint(kind):
        return kind(DATA.tasks, encoder(DATA, (8, 6)), levels=levels(DATA))

    whole = run(joint(JointManyTask), Equal(4))
    steps = 11
    for at in (steps, 2, 5):  # from one checkpoint to the next
        with pytest.raises(OutOfMemoryError):
            run(joint(filling(JointManyTask, at)), Equal(4), tmp_path)
    assert_same_bits(whole, run(joint(JointManyTask), Equal(4), tmp_path))


def test_the_fit_goes_on_in_smaller_parts(tmp_path):
    with pytest.raises(OutOfMemoryError):
        run(hard(filling(HardSharing, 24)), PCGrad(4), tmp_path)
    (path,) = tmp_path.iterdir()
    counting = filling(HardSharing, 10**9)
    network = hard(counting)
    resumed = run(network, PCGrad(4), tmp_path, replace(RARELY, accumulate=2))
    assert list(tmp_path.iterdir()) == [path]
    assert len(resumed.train_curve) <= 5
    assert network.calls == 2 * (10 * len(resumed.train_curve) - 23)


def test_memory_that_runs_out_in_the_validation_leaves_the_epochs_last_step(tmp_path):
    whole = run(hard(), Equal(4))
    with pytest.raises(
        OutOfMemoryError, match=r"out of memory in the validation of epoch 2 .*again with more memory; "
    ):
        run(hard(filling(HardSharing, 2, evaluating=True)), Equal(4), tmp_path)
    assert facts(tmp_path) == {"epoch": 1, "step": 10, "phase": 0}
    assert_same_bits(whole, run(hard(), Equal(4), tmp_path))


class Moving(torch.optim.AdamW):
    """Runs out of memory in its 24th step, half of whose parameters have moved."""

    calls = 0

    def step(self, closure=None):
        Moving.calls += 1
        if Moving.calls == 24:
            with torch.no_grad():
                for group in self.param_groups:
                    group["params"][0] += 1.0
            raise torch.OutOfMemoryError("out of memory")
        return super().step(closure)


@pytest.mark.parametrize("seconds", [0.0, 1e6])
def test_weights_that_had_begun_to_move_are_not_written(seconds, tmp_path, monkeypatch):
    """The last periodic checkpoint stays, or there is none."""
    whole = run(hard(), Equal(4))
    monkeypatch.setattr(torch.optim, "AdamW", Moving)
    Moving.calls = 0
    told = "goes on from the checkpoint" if seconds == 0 else "goes on from the start, since there is no checkpoint"
    settings = replace(RARELY, checkpoint_seconds=seconds)
    with pytest.raises(OutOfMemoryError, match=told):
        run(hard(), Equal(4), tmp_path, settings)
    found = [read(path)[1] for path in tmp_path.iterdir()]
    assert found == ([{"epoch": 2, "step": 3, "phase": 0}] if seconds == 0 else [])
    assert_same_bits(whole, run(hard(), Equal(4), tmp_path, settings))


def test_where_nothing_can_be_written_either_the_periodic_checkpoint_is_named(tmp_path, monkeypatch):
    import polytask.train.loop as loop

    write, calls = loop.disk.write, []

    def full(path, tensors, about):
        calls.append(about["step"])
        if len(calls) > 1:
            raise MemoryError
        write(path, tensors, about)

    monkeypatch.setattr(loop.disk, "write", full)
    settings = replace(RARELY, checkpoint_seconds=0.0)

    class Once(filling(HardSharing, 2)):
        pass

    Once.__name__ = "HardSharing"
    with pytest.raises(OutOfMemoryError, match="goes on from the checkpoint"):
        run(hard(Once), Equal(4), tmp_path, settings)
    assert calls == [1, 1]
    assert facts(tmp_path)["step"] == 1


def test_without_a_folder_nothing_is_kept_and_the_start_is_named():
    with pytest.raises(OutOfMemoryError, match="goes on from the start, since there is no checkpoint"):
        run(hard(filling(HardSharing, 3)), Equal(4))


def test_after_a_stop_the_same_fit_goes_on_from_the_step_before_also_leaving_the_task_out(tmp_path):
    data = wide(150)
    settings = replace(OFTEN, checkpoint_seconds=1e6)
    with pytest.warns(UserWarning, match="not finite in 1 of"):
        whole = train(spoiled(17), data, settings)[1]()
    for at in (17, 1):  # the second time from the checkpoint of the first
        _, run = train(spoiled(at), data, replace(settings, on_nonfinite="stop"), checkpoint=tmp_path)
        with pytest.raises(DivergedError, match="in step 7 of epoch 2"):
            run()
    _, run = train(spoiled(1), data, settings, checkpoint=tmp_path)
    with pytest.warns(UserWarning, match="not finite in 1 of .* first in step 7 of epoch 2"):
        assert_same_bits(whole, run())
