"""Images in training: bytes are scaled in batches, the encoder follows the data, compare works on them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from polytask.compare import MethodSpec, Plan, SplitPlan, run
from polytask.core import Binary, InputError, Multiclass, TaskData
from polytask.core.scaling import TargetScaler
from polytask.train import HardSharingLearner, SingleTaskNetworkLearner, SoftSharingLearner
from polytask.train.batches import Placed, Sampler, place_inputs, rows_at_once

CPU = torch.device("cpu")
QUICK = {"channels": "4-4", "widths": "8", "max_epochs": 12, "learning_rate": 1e-2}
LEARNERS = [SingleTaskNetworkLearner(**QUICK), HardSharingLearner(**QUICK), SoftSharingLearner(**QUICK)]


def corners(n=120, seed=0, kind=np.uint8, own=False):
    """A bright patch in one of four corners: where (four classes), and whether it is above (two)."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 60, size=(n, 1, 8, 8)).astype(np.uint8)
    where = rng.integers(0, 4, n)
    for image, corner in zip(images, where, strict=True):
        down, right = 4 * (corner // 2), 4 * (corner % 2)
        image[0, down : down + 4, right : right + 4] = 250
    stored = images if kind == np.uint8 else images.astype(kind) / 255
    tasks = [Multiclass("where", ("accuracy",), ("a", "b", "c", "d")), Binary("below", ("accuracy",), ("no", "yes"))]
    if own:
        number = rng.permutation(np.arange(n) % 2)
        return TaskData.from_stacked(tasks, {"image": stored}, number, np.where(number == 0, where, where // 2))
    return TaskData.from_columns(tasks, {"image": stored}, np.stack([where, where // 2], axis=1))


def test_bytes_stay_bytes_until_a_batch_reads_them_as_shares_of_255():
    data = corners(own=True)
    placed = Placed(data, TargetScaler.fit(data), CPU)
    assert placed.inputs["image"].dtype == torch.uint8
    batch = placed.row_batch(torch.tensor([3, 1]))
    np.testing.assert_allclose(batch.inputs["image"], data.inputs["image"][[3, 1]] / np.float32(255))
    own = placed.own_batch(torch.tensor([[0, 1], [60, 61]]), torch.ones(2, 2, dtype=torch.bool))
    assert own.inputs["image"].shape == (2, 2, 1, 8, 8)
    assert own.inputs["image"].dtype == torch.float32


@pytest.mark.parametrize(("learner", "own"), [(LEARNERS[0], True), (LEARNERS[1], False)])
def test_bytes_and_the_same_floats_train_to_the_same_predictions(learner, own):
    learner = replace(learner, max_epochs=3)
    stored, floats = corners(own=own), corners(own=own, kind=np.float32)
    one, other = (learner.fit(data, seed=1).predict(corners(30, seed=5)) for data in (stored, floats))
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("learner", LEARNERS, ids=lambda learner: learner.network)
def test_networks_learn_from_images_and_their_models_are_saved(learner, own):
    test = corners(60, seed=9)
    model = learner.fit(corners(300, own=own), seed=0)
    scores = model.predict(test)
    for task in test.tasks:
        assert (task.decide(scores[task.name]) == test.labels[task.name].values).mean() > 0.9
    description, arrays = model.state()
    again = type(model).from_state(model.tasks, description, arrays).predict(test)
    for name, values in scores.items():
        np.testing.assert_allclose(again[name], values, atol=1e-6)


def test_images_of_another_size_or_a_table_are_refused_by_a_model_of_images():
    model = HardSharingLearner(**QUICK | {"max_epochs": 1}).fit(corners(40))
    data = corners(5)
    with pytest.raises(InputError, match="images of 1 channels, 8 x 8, but the data have images of 1 channels, 8 x 6"):
        model.predict(replace(data, inputs={"image": data.inputs["image"][..., :6]}))
    with pytest.raises(InputError, match="but the data have 3 numeric columns"):
        model.predict(replace(data, inputs={"numeric": np.zeros((5, 3))}))


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.zeros((4, 8, 8), np.uint8), "channels, height, width"),
        (np.zeros((4, 1, 8, 8), np.int64), "type int64"),
        (np.full((4, 1, 8, 8), np.nan), "image 0 has a pixel that is not finite"),
        (np.zeros((4, 1, 4, 4), np.uint8), "4 × 4 positions"),
    ],
)
def test_images_that_no_network_can_read_are_refused_before_training(images, said):
    data = TaskData.from_columns([Binary("b", classes=("n", "y"))], {"image": images}, np.array([[0.0], [1], [0], [1]]))
    with pytest.raises(InputError, match=said):
        SingleTaskNetworkLearner().fit(data)


def test_images_beside_a_table_are_refused():
    data = corners(4)
    both = replace(data, inputs={**data.inputs, "numeric": np.zeros((4, 2))})
    with pytest.raises(InputError, match="not both"):
        place_inputs(both, CPU)
    with pytest.raises(InputError, match="channels is"):
        HardSharingLearner(channels="16,32")


def test_large_images_are_scored_a_few_at_a_time():
    small, large = (place_inputs(corners(2), CPU), {"image": torch.zeros(2, 3, 400, 400, dtype=torch.uint8)})
    assert rows_at_once(large, 2) == 8
    assert rows_at_once(small, 2) > 1000
    data = corners(40)
    placed = Placed(data, TargetScaler.fit(data), CPU)
    assert Sampler(placed, batch_size=16, own_rows=False, seed=0).steps >= 3


def test_images_are_compared_like_tables(tmp_path):
    plan = Plan(
        methods=tuple(MethodSpec(name, QUICK) for name in ("single-task-network", "hard-sharing")),
        splits=SplitPlan.parse("2x1"),
        seeds=(0,),
        trials=1,
    )
    results = run(plan, corners(150), folder=tmp_path, n_jobs=0)
    assert {one.status for one in results.runs} == {"done"}
    assert all(one.scores["where"]["accuracy"] > 0.5 for one in results.runs)
