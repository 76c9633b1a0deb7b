from __future__ import annotations

import numpy as np
import pytest

from polytask.core import InputError
from polytask.sources import clustered, conflicting, curved_pair, related, unrelated

MAKERS = [related, unrelated, conflicting, clustered]


@pytest.mark.parametrize("make", MAKERS)
def test_same_seed_same_problem_and_test_rows_do_not_change_training_rows(make):
    one, other = make(40, 30, 4, seed=3), make(40, 30, 4, seed=3, n_test=10)
    np.testing.assert_array_equal(one.data.inputs["numeric"], other.data.inputs["numeric"])
    np.testing.assert_array_equal(one.data.columns(), other.data.columns())
    assert one.test is None
    assert other.test.n_rows == 10
    assert not np.array_equal(one.data.columns(), make(40, 30, 4, seed=4).data.columns())


@pytest.mark.parametrize("make", MAKERS)
def test_true_weights_have_unit_norm_and_explain_the_stated_share(make):
    found = make(20_000, 20, 3, noise=0.5, seed=1)
    np.testing.assert_allclose(np.linalg.norm(found.weights, axis=0), 1.0)
    residual = found.data.columns() - found.data.inputs["numeric"] @ found.weights
    np.testing.assert_allclose(residual.std(axis=0), 0.5, rtol=0.03)
    np.testing.assert_allclose(found.data.columns().var(axis=0), 1.25, rtol=0.05)


def test_related_tasks_share_their_support_and_similarity_one_makes_them_equal():
    found = related(10, 50, 6, n_relevant=7, similarity=1.0)
    support = found.weights != 0
    assert (support == support[:, :1]).all()
    assert support.sum() == 7 * 6
    np.testing.assert_allclose(found.weights, np.repeat(found.weights[:, :1], 6, axis=1))


def test_weights_of_related_tasks_correlate_by_similarity_on_average():
    products = []
    for seed in range(40):
        weights = related(2, 200, 10, n_relevant=100, similarity=0.6, seed=seed).weights
        products.append((weights.T @ weights)[np.triu_indices(10, 1)].mean())
    assert np.mean(products) == pytest.approx(0.6, abs=0.05)


def test_unrelated_tasks_have_weights_that_do_not_correlate():
    products = [unrelated(2, 100, 4, seed=seed).weights for seed in range(100)]
    assert abs(np.mean([(w.T @ w)[np.triu_indices(4, 1)] for w in products])) < 0.03


def test_conflicting_by_sign_has_a_mean_of_zero_and_by_support_disjoint_features():
    sign = conflicting(10, 20, 4)
    np.testing.assert_allclose(sign.weights.mean(axis=1), 0.0, atol=1e-12)
    support = conflicting(10, 20, 4, way="support")
    assert ((support.weights != 0).sum(axis=1) <= 1).all()
    with pytest.raises(InputError, match="n_relevant"):
        conflicting(10, 20, 5, way="support")


def test_clusters_are_close_inside_and_far_apart():
    found = clustered(10, 200, 9, n_clusters=3, spread=0.1)
    alike = found.groups[:, None] == found.groups
    product = found.weights.T @ found.weights
    assert product[alike].min() > 0.95
    assert np.abs(product[~alike]).max() < 0.3


def test_binary_labels_follow_the_logistic_model():
    found = related(40_000, 5, 2, noise=0.5, kind="binary", seed=2)
    logits = found.data.inputs["numeric"] @ found.weights / 0.5
    labels = found.data.columns()
    assert set(np.unique(labels)) == {0.0, 1.0}
    inside = np.abs(logits[:, 0] - 1.0) < 0.1
    assert labels[inside, 0].mean() == pytest.approx(1 / (1 + np.exp(-1.0)), abs=0.03)


def test_missing_share_is_left_out_and_never_in_the_test_rows():
    found = related(5000, 5, 3, missing=0.4, n_test=50)
    assert np.isnan(found.data.columns()).mean() == pytest.approx(0.4, abs=0.02)
    assert not np.isnan(found.test.columns()).any()


@pytest.mark.parametrize("bad", [{"noise": 0.0}, {"missing": 1.0}, {"kind": "counts"}, {"n_relevant": 9}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(InputError):
        related(10, 5, 2, **bad)


@pytest.mark.parametrize("cosine", [-1.0, 0.0, 0.3, 1.0])
def test_a_curved_pair_is_its_formula(cosine):
    found = curved_pair(4000, cosine=cosine, scale=0.7, frequencies=(1.0, 2.5), phases=(0.2, 0.4), seed=2)
    np.testing.assert_allclose(found.weights.T @ found.weights, [[1, cosine], [cosine, 1]], atol=1e-12)
    assert found.weights.shape == (100, 2)
    signal = 0.7 * found.data.inputs["numeric"] @ found.weights
    residual = found.data.columns() - (signal + np.sin(signal + 0.2) + np.sin(2.5 * signal + 0.4))
    np.testing.assert_allclose(residual.std(axis=0), 0.1, rtol=0.05)
    assert abs(np.corrcoef(residual.T)[0, 1]) < 0.06


def test_a_curved_pair_without_waves_is_linear_and_its_test_rows_have_the_same_truth():
    found = curved_pair(50, 3, cosine=0.5, frequencies=(), phases=(), noise=1e-9, n_test=20, seed=1)
    for rows in (found.data, found.test):
        np.testing.assert_allclose(rows.columns(), rows.inputs["numeric"] @ found.weights, atol=1e-7)
    np.testing.assert_array_equal(
        curved_pair(50, 3, cosine=0.5, frequencies=(), phases=(), noise=1e-9, seed=1).data.columns(),
        found.data.columns(),
    )


def test_an_impossible_curved_pair_is_refused():
    with pytest.raises(InputError, match="cosine must lie in"):
        curved_pair(10, cosine=1.2)
    with pytest.raises(InputError, match="phases 1"):
        curved_pair(10, cosine=0.5, phases=(1.0,))
