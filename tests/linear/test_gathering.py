"""Moments gathered in one pass, whatever the data come in, are those of all rows at once."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from polytask.core.errors import InputError
from polytask.linear import MeanRegularised
from polytask.linear.gathering import gather_arrays, gather_batches, gather_dask, gather_table
from polytask.linear.moments import Moments

NAMES = ["a", "b", "c"]


def rows(seed=0, n=700, tasks=5, offset=0.0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 3)) * [1.0, 3.0, 0.1] + [0.0, 5.0, -2.0] + offset
    task = rng.integers(tasks, size=n)
    y = X @ [1.0, -1.0, 2.0] + task + rng.normal(size=n)
    return X, y, task


def assert_same(a, b, rtol=1e-10):
    np.testing.assert_array_equal(a.names, b.names)
    scale = np.sqrt(np.einsum("pdd->pd", b.gram[b.pattern]))
    np.testing.assert_allclose(a.n, b.n, rtol=1e-12)
    np.testing.assert_allclose(a.mean_x[a.pattern], b.mean_x[b.pattern], rtol=rtol, atol=rtol)
    np.testing.assert_allclose(a.mean_y, b.mean_y, rtol=rtol, atol=rtol)
    gram = (a.gram[a.pattern] - b.gram[b.pattern]) / np.maximum(scale[:, :, None] * scale[:, None, :], 1e-300)
    assert np.abs(gram).max() < rtol
    cross = (a.cross - b.cross) / np.maximum(scale * np.sqrt(b.yy)[:, None], 1e-300)
    assert np.abs(cross).max() < rtol
    np.testing.assert_allclose(a.yy, b.yy, rtol=rtol)


def by_definition(X, y, task):
    """Sums of each task, from long double numbers."""
    names = np.unique(task)
    found = []
    for name in names:
        x, t = X[task == name].astype(np.longdouble), y[task == name].astype(np.longdouble)
        x, t = x - x.mean(axis=0), t - t.mean()
        found.append((x.T @ x, x.T @ t, t @ t))
    return [np.array([part[k] for part in found], dtype=float) for k in range(3)]


@pytest.mark.parametrize("batch_rows", [1, 7, 100, 10_000])
def test_batches_of_any_size_give_the_moments_of_all_rows(batch_rows):
    X, y, task = rows()
    assert_same(gather_arrays(X, y, task, batch_rows=batch_rows), Moments.stacked(X, y, task))


def test_batches_with_missing_targets_and_weights_give_the_moments_of_all_rows():
    X, y, task = rows(1)
    y[::7] = np.nan
    y[:20] = np.nan  # a batch without any label
    weight = np.random.default_rng(2).integers(0, 3, size=len(y)).astype(float)
    assert_same(gather_arrays(X, y, task, weight, batch_rows=20), Moments.stacked(X, y, task, weight))


def test_columns_of_targets_are_gathered_too():
    X, y, _ = rows(2)
    Y = np.column_stack([y, -y, y**2])
    Y[::3, 1] = np.nan
    Y[:50, 2] = np.nan
    assert_same(gather_arrays(X, Y, batch_rows=50), Moments.of(X, Y))


def test_tasks_that_come_later_and_in_any_order_are_sorted_in():
    X, y, task = rows(3)
    labels = np.array(["e", "b", "zz", "a", "c"])[task]
    order = np.argsort(-task, kind="stable")
    found = gather_arrays(X[order], y[order], labels[order], batch_rows=60)
    assert found.names.tolist() == sorted(set(labels))
    assert_same(found, Moments.stacked(X, y, labels))


def test_no_digits_are_lost_however_far_the_means_are_from_zero_and_from_each_other():
    X, y, task = rows(4, offset=1e7)
    X += 1e5 * task[:, None]
    y += 1e8
    gram, cross, yy = by_definition(X, y, task)
    for found in (Moments.stacked(X, y, task), gather_arrays(X, y, task, batch_rows=50)):
        scale = np.sqrt(np.einsum("tdd->td", gram))
        assert np.abs((found.gram - gram) / (scale[:, :, None] * scale[:, None, :])).max() < 1e-8
        assert np.abs((found.cross - cross) / (scale * np.sqrt(yy)[:, None])).max() < 1e-8
        np.testing.assert_allclose(found.yy, yy, rtol=1e-8)


def test_no_digits_are_lost_when_the_first_row_of_a_task_is_an_outlier():
    X, y, task = rows(5)
    first = [int(np.argmax(task == t)) for t in range(5)]
    X[first, 1] = 1e9
    X[first, 2] = -2.0  # so that the outlier's column alone is far
    gram, cross, _ = by_definition(X, y, task)
    found = Moments.stacked(X, y, task)
    scale = np.sqrt(np.einsum("tdd->td", gram))
    assert np.abs((found.gram - gram) / (scale[:, :, None] * scale[:, None, :])).max() < 1e-12
    np.testing.assert_allclose(found.cross, cross, rtol=1e-6, atol=1e-6 * np.abs(cross).max())


def test_a_constant_column_of_a_task_has_sums_of_exactly_zero():
    X, y, task = rows(6)
    X[task == 2, 0] = 0.1
    found = Moments.stacked(X, y, task)
    assert (found.gram[2, 0] == 0.0).all()
    assert found.cross[2, 0] == 0.0


def test_a_task_with_more_rows_than_are_centred_at_a_time_is_read_in_parts(monkeypatch):
    X, y, task = rows(7)
    weight = np.linspace(0.5, 2.0, len(y))
    whole = Moments.stacked(X, y, task), Moments.stacked(X, y, task, weight)
    monkeypatch.setattr("polytask.linear.moments._CHUNK", 30)
    assert_same(Moments.stacked(X, y, task), whole[0])
    assert_same(Moments.stacked(X, y, task, weight), whole[1])


def test_float32_inputs_give_sums_of_float64():
    X, y, task = rows(8)
    narrow = X.astype(np.float32)
    found = gather_arrays(narrow, y, task, batch_rows=64)
    assert found.gram.dtype == np.float64
    assert_same(found, Moments.stacked(narrow.astype(np.float64), y, task))


@pytest.fixture
def table():
    X, y, task = rows(9)
    y[::11] = np.nan
    X = X.astype(np.float32)
    frame = pl.DataFrame({**dict(zip(NAMES, X.T, strict=True)), "school": [f"s{t}" for t in task], "score": y})
    return frame, Moments.stacked(X, y, np.array([f"s{t}" for t in task]))


def test_parquet_files_give_the_moments_of_their_rows(table, tmp_path):
    frame, wanted = table
    frame.write_parquet(tmp_path / "all.parquet", row_group_size=100)
    assert_same(gather_table(tmp_path / "all.parquet", "score", "school", batch_rows=64), wanted)
    frame[:300].write_parquet(tmp_path / "part-1.parquet")
    frame[300:].write_parquet(tmp_path / "part-2.parquet")
    parts = [tmp_path / "part-1.parquet", tmp_path / "part-2.parquet"]
    assert_same(gather_table(parts, "score", "school", features=NAMES), wanted)


def test_a_partitioned_folder_has_its_tasks_as_a_column(table, tmp_path):
    frame, wanted = table
    frame.write_parquet(tmp_path / "rows", partition_by="school")
    assert_same(gather_table(tmp_path / "rows", "score", "school", features=NAMES), wanted)
    for (school,), part in frame.group_by("school"):
        (tmp_path / f"other/school={school}").mkdir(parents=True)
        part.drop("school").write_parquet(tmp_path / f"other/school={school}/0.parquet")
    assert_same(gather_table(tmp_path / "other", "score", "school"), wanted)


def test_arrow_streams_of_polars_and_pyarrow_give_the_moments_of_their_rows(table):
    frame, wanted = table
    categorical = frame.with_columns(pl.col("school").cast(pl.Categorical))
    for source in (frame, categorical, frame.to_arrow(), frame.to_arrow().to_reader(100)):
        assert_same(gather_table(source, "score", "school", features=NAMES), wanted)


def test_a_duckdb_relation_gives_the_moments_of_its_rows(table, tmp_path):
    import duckdb

    frame, wanted = table
    frame.write_parquet(tmp_path / "all.parquet")
    relation = duckdb.sql(f"select * from read_parquet('{tmp_path / 'all.parquet'}')")
    assert_same(gather_table(relation, "score", "school", features=NAMES), wanted)


def test_target_columns_of_a_table_are_tasks_when_no_task_column_is_named(table):
    frame, _ = table
    frame = frame.with_columns((-pl.col("score")).alias("other"))
    found = gather_table(frame, ["score", "other"], features=NAMES, batch_rows=90)
    assert_same(found, Moments.of(frame.select(NAMES).to_numpy(), frame.select("score", "other").to_numpy()))


def test_weights_may_be_a_column_of_the_table(table):
    frame, _ = table
    weight = np.arange(len(frame)) % 4.0
    found = gather_table(frame.with_columns(weight=weight), "score", "school", "weight", batch_rows=90)
    labels = frame["school"].to_numpy().astype(str)
    assert_same(found, Moments.stacked(frame.select(NAMES).to_numpy(), frame["score"].to_numpy(), labels, weight))


def test_what_a_table_lacks_is_named(table, tmp_path):
    frame, _ = table
    with pytest.raises(InputError, match="no column 'pupil'"):
        gather_table(frame, "score", "pupil")
    with pytest.raises(InputError, match="does not exist"):
        gather_table(tmp_path / "none.parquet", "score", "school")
    with pytest.raises(InputError, match="'a' has a missing value"):
        gather_table(frame.with_columns(a=None), "score", "school")
    with pytest.raises(InputError, match="'score' is of type"):
        gather_table(frame.with_columns(score=pl.lit("high")), "score", "school")
    with pytest.raises(InputError, match="without a task"):
        gather_table(frame.with_columns(school=pl.lit(None, dtype=pl.String)), "score", "school")
    with pytest.raises(InputError, match="or a list of columns y"):
        gather_table(frame, "score")
    with pytest.raises(InputError, match="batch_rows"):
        gather_table(frame, "score", "school", batch_rows=0)


def test_what_batches_lack_is_named():
    X, y, task = rows()
    with pytest.raises(InputError, match="no row with a target"):
        gather_batches([])
    with pytest.raises(InputError, match="no row with a target"):
        gather_batches([(X, np.full(len(X), np.nan), task)])
    with pytest.raises(InputError, match="X has 700 rows but tasks has 10"):
        gather_arrays(X, y, task[:10])
    with pytest.raises(InputError, match="has 2 inputs, those before it 3"):
        gather_batches([(X, y, task), (X[:, :2], y, task)])
    for wrong in (np.nan, np.inf):
        bad = X.copy()
        bad[3, 1] = wrong
        with pytest.raises(InputError, match="column 1 of the inputs"):
            gather_arrays(bad, y, task)
    with pytest.raises(InputError, match="y has an infinite"):
        gather_arrays(X, np.where(np.arange(len(y)) == 3, np.inf, y), task)
    with pytest.raises(InputError, match="sample_weight must be finite and not negative"):
        gather_arrays(X, y, task, -np.ones(len(y)))


def test_a_library_that_is_not_installed_is_named_with_the_command(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "dask", None)
    with pytest.raises(InputError, match=r'pip install "polytask\[dask\]"'):
        gather_dask(None, None)


def test_dask_arrays_give_the_moments_of_their_rows():
    import dask.array as da

    X, y, task = rows(10)
    y[:100] = np.nan
    pieces = da.from_array(X, chunks=(100, 2)), da.from_array(y, chunks=70), da.from_array(task, chunks=300)
    assert_same(gather_dask(*pieces), Moments.stacked(X, y, task))
    Y = np.column_stack([y, y + 1.0])
    assert_same(gather_dask(pieces[0], da.from_array(Y, chunks=(200, 1))), Moments.of(X, Y))


@pytest.mark.filterwarnings("ignore")  # of the cluster's own shutdown
@pytest.mark.timeout(120)
def test_a_dask_cluster_gives_the_moments_of_a_single_process(table):
    import dask.dataframe as dd
    from dask.distributed import Client, LocalCluster

    frame, wanted = table
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, processes=True)
    with cluster, Client(cluster):
        found = gather_dask(dd.from_pandas(frame.to_pandas(), npartitions=5), "score", "school")
    assert_same(found, wanted)
    one, many = (MeanRegularised(alpha=0.1).fit_moments(moments) for moments in (wanted, found))
    np.testing.assert_allclose(many.coef_, one.coef_, rtol=1e-10, atol=1e-10)
