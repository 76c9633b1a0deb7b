from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.train.examples import schools, wide

from polytask.core.errors import InputError
from polytask.core.scaling import TargetScaler
from polytask.train.batches import Placed, Sampler, place_inputs

CPU = torch.device("cpu")


def placed(data):
    return Placed(data, TargetScaler.fit(data), CPU)


def test_an_epoch_of_row_batches_holds_every_label_once():
    data = wide(101, missing=0.4)
    sampler = Sampler(placed(data), batch_size=16, own_rows=False, seed=3)
    sampler.start(0)
    batches = [sampler.batch(step) for step in range(sampler.steps)]
    assert sum(batch.present.sum(1) for batch in batches).tolist() == [len(data.labels[name]) for name in data.names]
    for number, name in enumerate(data.names):
        seen = np.concatenate([batch.targets[number][batch.present[number]].numpy() for batch in batches])
        expected = TargetScaler.fit(data).apply(number, data.labels[name].values)
        np.testing.assert_allclose(np.sort(seen), np.sort(expected), rtol=1e-5)
    sizes = [batch.present.shape[1] for batch in batches]
    assert max(sizes) - min(sizes) <= 1


def test_rows_without_any_label_are_never_drawn():
    data = wide(100, missing=0.5).rows(np.arange(100))
    blank = np.zeros(100, dtype=bool)
    for labels in data.labels.values():
        blank[labels.rows] = True
    sampler = Sampler(placed(data), batch_size=100, own_rows=False, seed=0)
    sampler.start(0)
    assert sum(len(sampler.batch(step).inputs["numeric"]) for step in range(sampler.steps)) == blank.sum()


def test_with_own_rows_each_task_sees_only_its_rows_with_their_targets():
    data = schools()
    sampler = Sampler(placed(data), batch_size=8, own_rows=True, seed=1)
    scaler = TargetScaler.fit(data)
    target_of = {}
    for number, name in enumerate(data.names):
        labels = data.labels[name]
        for row, value in zip(labels.rows, scaler.apply(number, labels.values), strict=True):
            target_of[data.inputs["numeric"][row].astype(np.float32).tobytes()] = value
    for epoch in range(3):
        sampler.start(epoch)
        for step in range(sampler.steps):
            batch = sampler.batch(step)
            assert batch.inputs["numeric"].shape == (3, 8, 4)
            assert (batch.inputs["numeric"][:, :, 0] == torch.arange(3)[:, None]).all()
            for rows, targets in zip(batch.inputs["numeric"], batch.targets, strict=True):
                wanted = [target_of[row.numpy().tobytes()] for row in rows]
                np.testing.assert_allclose(targets.numpy(), wanted, rtol=1e-5)


def test_with_own_rows_a_task_repeats_a_row_only_after_all_its_rows():
    data = schools((30, 12, 50))
    sampler = Sampler(placed(data), batch_size=8, own_rows=True, seed=1)
    sampler.start(0)
    rows = torch.cat([sampler.batch(step).inputs["numeric"][:, :, 1] for step in range(sampler.steps)], dim=1)
    drawn = rows.shape[1]
    assert drawn * 3 >= 92 > (drawn - 8) * 3  # an epoch draws about as many labels as there are
    for number, size in enumerate((30, 12, 50)):
        _, counts = np.unique(rows[number].numpy(), return_counts=True)
        assert counts.max() - (counts.min() if len(counts) == size else 0) <= 1


def test_a_tasks_own_rows_do_not_depend_on_the_other_tasks():
    data = schools((40, 40, 40))
    whole = Sampler(placed(data), batch_size=10, own_rows=True, seed=7)
    alone = Sampler(placed(data.only(["school 1"])), batch_size=10, own_rows=True, seed=7)
    whole.start(4)
    alone.start(4)
    assert whole.steps == alone.steps
    for step in range(whole.steps):
        assert torch.equal(whole.batch(step).inputs["numeric"][1], alone.batch(step).inputs["numeric"][0])


def test_a_task_without_labels_is_absent_from_own_rows():
    data = schools().rows(np.flatnonzero(schools().inputs["numeric"][:, 0] != 1))
    sampler = Sampler(placed(data), batch_size=8, own_rows=True, seed=0)
    sampler.start(0)
    assert sampler.batch(0).present.all(1).tolist() == [True, False, True]


@pytest.mark.parametrize("own_rows", [False, True])
@pytest.mark.parametrize("data", [wide(90, missing=0.6), schools((5, 70, 1))], ids=["wide", "long"])
def test_evaluation_visits_every_label_once_with_either_way_of_batching(data, own_rows):
    counts, sums = 0, 0
    for batch in placed(data).everything(own_rows):
        counts = counts + batch.present.sum(1)
        sums = sums + (batch.targets * batch.present).sum(1)
    scaler = TargetScaler.fit(data)
    assert counts.tolist() == [len(data.labels[name]) for name in data.names]
    expected = [scaler.apply(t, data.labels[name].values).sum() for t, name in enumerate(data.names)]
    np.testing.assert_allclose(sums.numpy(), expected, atol=1e-4)


def test_long_row_batches_fill_absent_targets_with_zero():
    data = schools((20, 20))
    batch = placed(data).row_batch(torch.arange(40))
    assert (batch.present.sum(0) == 1).all()
    assert (batch.targets[~batch.present] == 0).all()


def test_the_order_differs_between_epochs_and_returns_with_the_same_seed():
    sampler = Sampler(placed(wide()), batch_size=240, own_rows=False, seed=0, least_steps=1)
    first = []
    for epoch in (0, 1, 0):
        sampler.start(epoch)
        first.append(sampler.batch(0).inputs["numeric"])
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0], first[1])


def test_small_tables_get_smaller_batches():
    sampler = Sampler(placed(wide(100)), batch_size=128, own_rows=False, seed=0, least_steps=10)
    assert sampler.steps == 10


def test_a_feature_that_is_not_finite_is_named_with_its_row():
    data = wide(20)
    x = data.inputs["numeric"].copy()
    x[7, 2] = 1e300  # overflows float32
    with pytest.raises(InputError, match=r'"age" is 1e\+300 in row 7'):
        place_inputs(replace(data, inputs={"numeric": x}, features={"numeric": ("a", "b", "age", "d", "e")}), CPU)


def test_a_code_beyond_its_cardinality_is_refused():
    data = wide(20, categorical=True)
    with pytest.raises(InputError, match="codes are 0 … 1"):
        place_inputs(replace(data, cardinalities=(3, 2)), CPU)


def test_data_that_are_not_encoded_are_refused():
    data = wide(20)
    with pytest.raises(InputError, match="encode the table first"):
        place_inputs(replace(data, inputs={"age": data.inputs["numeric"][:, 0]}), CPU)
