"""A task whose loss is not finite: left out and told, or the end of the fit before any weight changes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.train.examples import schools, wide
from tests.train.test_checkpoint import OFTEN
from tests.train.test_record import Kept

from polytask.balance import Equal, Uncertainty
from polytask.core.errors import InputError
from polytask.deep import HardSharing, SingleTask, mlp
from polytask.jobs.comparing import fixed_parameters
from polytask.settings import load_settings
from polytask.train import DivergedError, TrainSettings, fit
from polytask.train.loop import _Loop

CPU = torch.device("cpu")
SETTINGS = TrainSettings(max_epochs=4, batch_size=32, device="cpu", learning_rate=1e-2)


def spoiled(at, kind=HardSharing, once=True):
    """A network whose scores of the second task overflow in one training step, or from it on."""

    class Overflows(kind):
        steps = 0

        def all_scores(self, inputs, own_rows=False, *, only=None):
            scores = super().all_scores(inputs, own_rows, only=only)
            if self.training:
                self.steps += 1
                if self.steps == at or (self.steps > at and not once):
                    factor = torch.ones(len(scores), 1, 1)
                    factor[1] = torch.inf
                    scores = scores * factor
            return scores

    Overflows.__name__ = kind.__name__
    return Overflows


def train(network, data, settings=SETTINGS, balancer=None, **options):
    made = network(data.tasks, mlp(data.inputs["numeric"].shape[1], (8,), seed=0))
    return made, lambda: fit(made, balancer or Equal(len(data.tasks)), data, settings=settings, seed=2, **options)


def rows_of(data, settings, epoch, step, task):
    """Numbers of the rows of a step that carry a task's label, drawn anew."""
    network = HardSharing(data.tasks, mlp(data.inputs["numeric"].shape[1], (8,), seed=0))
    sampler = _Loop(network, Equal(len(data.tasks)), data, None, settings, 2, CPU, None).sampler
    sampler.start(epoch)
    batch = sampler.batch(step)
    rows = batch.rows[task] if batch.rows.ndim == 2 else batch.rows
    return np.unique(rows[batch.present[task]].numpy())


@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate": 2}, {"sampling": "round", "batch_size": 8}, {"sampling": "balanced", "groups": "ill"}],
)
def test_a_task_that_is_left_out_is_told_with_step_and_rows_of_the_batch_and_counted_once(options):
    data, settings, kept = wide(100, missing=0.3), replace(SETTINGS, **options), Kept()
    at = 13 * settings.accumulate  # the last part of the 13th step
    network, run = train(spoiled(at), data, settings, record=kept)
    per_epoch = _Loop(network, Equal(4), data, None, settings, 2, CPU, None).sampler.steps
    epoch, step = divmod(12, per_epoch)
    rows = rows_of(data, settings, epoch, step, 1)
    told = (
        f'loss of task "ill" was not finite in 1 of {4 * per_epoch} steps, which went on without it, first in step '
        f"{step + 1} of epoch {epoch + 1}, with training rows {', '.join(map(str, rows[:5]))}"
    )
    with pytest.warns(UserWarning, match=told + rf"(, …)? \({len(rows)} in all\)"):
        fitted = run()
    (event,) = [event for event in kept.events if event["event"] == "left out"]
    del event["seconds"]
    assert event == {
        "event": "left out",
        "task": "ill",
        "epoch": epoch + 1,
        "step": step + 1,
        "rows": rows[:5].tolist(),
        "n_rows": len(rows),
    }
    assert all(value.isfinite().all() for value in fitted.network.state_dict().values())


@pytest.mark.parametrize("kind", [HardSharing, SingleTask])
def test_to_stop_ends_the_fit_before_any_weight_changes(kind):
    data, last = wide(100), {}

    class Remembers(spoiled(8, kind)):
        def after_step(self, learning_rate):
            super().after_step(learning_rate)
            last.update({name: value.detach().clone() for name, value in self.named_parameters()})

    Remembers.__name__ = kind.__name__
    balancer = Uncertainty([task.kind for task in data.tasks])
    network, run = train(Remembers, data, replace(SETTINGS, on_nonfinite="stop"), balancer)
    rows = rows_of(data, SETTINGS, 0, 7, 1)
    told = rf'loss of task "ill" is nan in step 8 of epoch 1, with training rows {rows[0]}, .*\({len(rows)} in all\)'
    with pytest.raises(DivergedError, match=told + '; look for .*on_nonfinite="drop"'):
        run()
    for name, value in network.named_parameters():
        assert value.isfinite().all()
        assert value.equal(last[name]), name
    assert balancer.log_variances.isfinite().all()


def test_long_form_rows_are_those_of_the_task():
    data = schools((30, 20, 25))
    _, run = train(spoiled(2), data, replace(SETTINGS, on_nonfinite="stop", sampling="round", batch_size=8))
    with pytest.raises(DivergedError) as caught:
        run()
    told = str(caught.value).split("training rows ")[1].split(" (")[0].replace(", …", "")
    numbers = [int(number) for number in told.split(", ")]
    assert set(numbers) <= set(data.labels["school 1"].rows.tolist())
    assert "(8 in all)" in str(caught.value)


def test_a_loss_that_is_never_finite_names_step_and_rows_too():
    data = wide(100)
    _, run = train(spoiled(1, once=False), data)
    with pytest.raises(DivergedError, match=r"in epoch 1, first in step 1 of epoch 1, with training rows"):
        run()


def test_the_first_place_survives_a_resume(tmp_path):
    data = wide(150)

    def stop(text, share):
        if share >= 0.6:
            raise KeyboardInterrupt

    _, run = train(spoiled(4), data, OFTEN, checkpoint=tmp_path, progress=stop)
    with pytest.raises(KeyboardInterrupt):
        run()
    _, run = train(HardSharing, data, OFTEN, checkpoint=tmp_path)
    with pytest.warns(UserWarning, match="first in step 4 of epoch 1, with training rows"):
        run()


def test_the_flag_of_the_command_line_reaches_every_network_and_no_other_method(tmp_path):
    given = load_settings(data="a.csv", targets="price", methods="ridge, hard-sharing", on_nan="stop")
    assert fixed_parameters(given, "hard-sharing") == {"on_nonfinite": "stop"}
    assert fixed_parameters(given, "ridge") == {}
    path = tmp_path / "c.yaml"
    path.write_text("data: a.csv\non_nan: stop\nmethods: {hard-sharing: {on_nonfinite: drop}}\n")
    assert fixed_parameters(load_settings(path), "hard-sharing") == {"on_nonfinite": "drop"}
    assert fixed_parameters(load_settings(data="a.csv", methods="hard-sharing"), "hard-sharing") == {}
    with pytest.raises(InputError, match=r'--on-nan: unknown on_nan "stopp".*Did you mean "stop"'):
        load_settings(on_nan="stopp")
    with pytest.raises(InputError, match='unknown on_nonfinite "halt"'):
        TrainSettings(on_nonfinite="halt")
