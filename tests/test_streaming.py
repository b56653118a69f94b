"""A stream is the same however it is cut, copied, weighted or merged, and stays in its array library."""

from __future__ import annotations

import copy
import pickle
from datetime import timedelta

import joblib
import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError

import streamsvd as ss
from backends import BACKENDS
from estimator_rows import KINDS, names, rows
from streamsvd import StreamingPCA, StreamingSVD
from streamsvd.arrays import namespace, to_numpy


@given(cuts=st.lists(st.integers(0, 120), max_size=12), kind=st.sampled_from(KINDS))
def test_any_cut_of_the_stream_gives_the_same_bits(cuts, kind):
    X = rows(120, 16)
    whole, cut = StreamingPCA(4, kind=kind).partial_fit(X), StreamingPCA(4, kind=kind)
    for batch in np.split(X, sorted(cuts)):
        cut.partial_fit(batch)
    assert np.array_equal(cut.components_, whole.components_)
    assert np.array_equal(cut.singular_values_, whole.singular_values_)
    assert whole.singular_values_[3] > 0
    assert cut.n_samples_seen_ == 120


@pytest.mark.parametrize("kind", KINDS)
def test_batches_smaller_than_the_number_of_components_and_single_rows(kind):
    X = rows(40, 12)
    pca = StreamingPCA(6, kind=kind).partial_fit(X[:2])
    assert pca.transform(X).shape == (40, 6)
    assert np.count_nonzero(pca.singular_values_ > 1e-6 * pca.singular_values_[0]) == 1
    assert ss.verify.orthonormality(pca.components_) < 1e-12
    for row in X[2:]:
        pca.partial_fit(row[None, :])
    np.testing.assert_allclose(pca.singular_values_, PCA(6).fit(X).singular_values_, rtol=1e-6)


def test_a_batch_without_rows_changes_nothing():
    pca = StreamingPCA(2)
    with pytest.raises(NotFittedError):
        pca.partial_fit(np.zeros((0, 5))).transform(np.zeros((1, 5)))
    assert not hasattr(pca, "n_features_in_")
    pca.partial_fit(rows(20, 7))
    before = pca.state_
    assert pca.partial_fit(np.zeros((0, 7))).state_ is before


def test_partial_fit_works_out_no_factors_and_reading_does_so_once(monkeypatch):
    calls, real = [], ss.Gram.factors
    monkeypatch.setattr(ss.Gram, "factors", lambda *args: calls.append(1) or real(*args))
    pca = StreamingPCA(3, kind="gram")
    for batch in np.array_split(rows(), 8):
        pca.partial_fit(batch)
    assert not calls
    assert pca.transform(rows()).any()
    assert pca.explained_variance_.all()
    assert len(calls) == 1
    pca.partial_fit(rows(seed=1))
    assert pca.n_samples_seen_ == 800
    assert pca.singular_values_.all()
    assert len(calls) == 2


def test_fit_starts_anew_and_forgets_names():
    pca = StreamingPCA(2).fit(pl.DataFrame(rows(50, 4), schema=names(4)))
    pca.fit(rows(60, 6))
    assert pca.n_samples_seen_ == 60
    assert pca.n_features_in_ == 6
    assert not hasattr(pca, "feature_names_in_")


@pytest.mark.parametrize("estimator", [StreamingPCA(3), StreamingSVD(3, kind="truncated"), StreamingPCA(0.9)])
def test_clones_copies_and_pickles_go_on_alike(estimator, tmp_path):
    X = rows(150, 12)
    estimator = clone(estimator).partial_fit(X[:70])
    joblib.dump(estimator, tmp_path / "it")
    copies = [copy.deepcopy(estimator), pickle.loads(pickle.dumps(estimator)), joblib.load(tmp_path / "it")]
    copies.append(joblib.load(tmp_path / "it", mmap_mode="r"))
    before = estimator.transform(X)
    for one in copies:
        assert np.array_equal(one.transform(X), before)
    after = clone(estimator).fit(X).partial_fit(X[:0])
    estimator.partial_fit(X[70:])
    for one in copies:
        assert np.array_equal(one.partial_fit(X[70:]).components_, estimator.components_)
        assert one.n_samples_seen_ == 150
    assert np.array_equal(after.components_, estimator.components_)
    assert not np.array_equal(estimator.transform(X), before)


def test_pickles_do_not_carry_the_empty_part_of_the_buffer():
    X = np.random.default_rng(0).standard_normal((4, 5000))
    pca = StreamingPCA(10, kind="truncated").partial_fit(X)
    assert len(pickle.dumps(pca.state_)) < 10 * 4 * 5000 * 8
    assert len(pickle.dumps(pca.state_)) > 4 * 5000 * 8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [np.asarray, sp.csr_array])
def test_weights_are_repetitions(kind, make):
    X = rows(80, 10)
    weights = np.random.default_rng(0).integers(0, 4, 80)
    weighted = StreamingPCA(4, kind=kind, kept=10 if kind == "truncated" else None).fit(make(X), sample_weight=weights)
    repeated = PCA(4, svd_solver="full").fit(np.repeat(X, weights, axis=0))
    np.testing.assert_allclose(weighted.explained_variance_, repeated.explained_variance_, rtol=1e-8)
    np.testing.assert_allclose(weighted.components_, repeated.components_, atol=1e-6)
    np.testing.assert_allclose(weighted.mean_, repeated.mean_, atol=1e-10)
    assert weighted.n_samples_seen_ == np.count_nonzero(weights)


@pytest.mark.parametrize("half_life", ["10s", timedelta(seconds=10)])
def test_decay_by_rows_and_by_time(half_life):
    X = rows(60, 6)
    by_rows = StreamingPCA(2, half_life=10).fit(X)
    by_time = StreamingPCA(2, half_life=half_life).fit(X, timestamps=np.arange(60.0))
    weights = 0.5 ** (np.arange(59, -1, -1) / 10)
    by_weight = StreamingPCA(2).fit(X, sample_weight=weights)
    np.testing.assert_allclose(by_rows.components_, by_weight.components_, atol=1e-9)
    np.testing.assert_allclose(by_time.components_, by_weight.components_, atol=1e-9)
    np.testing.assert_allclose(by_time.singular_values_, by_weight.singular_values_)
    assert not np.allclose(by_weight.components_, StreamingPCA(2).fit(X).components_, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_merge_is_a_new_estimator_of_the_rows_of_both(kind):
    X = rows()
    a, b = (
        StreamingPCA(4, kind=kind, whiten=True).fit(pl.DataFrame(part, schema=names(30)))
        for part in (X[:90], X[90:] + 1.0)
    )
    both = a.merge(b)
    exact = PCA(4).fit(np.concatenate([X[:90], X[90:] + 1.0]))
    np.testing.assert_allclose(both.singular_values_, exact.singular_values_, rtol=1e-6)
    np.testing.assert_allclose(both.components_, exact.components_, atol=1e-5)
    np.testing.assert_allclose(both.mean_, exact.mean_)
    assert both.n_samples_seen_ == 400
    assert (a.n_samples_seen_, b.n_samples_seen_) == (90, 310)
    assert list(both.feature_names_in_) == names(30)
    assert both.whiten
    assert both.set_output(transform="polars").transform(pl.DataFrame(X, schema=names(30))).shape == (400, 4)


@pytest.mark.parametrize(
    ("other", "error", "says"),
    [
        (StreamingPCA(3), NotFittedError, "not fitted"),
        (StreamingSVD(3).fit(rows()), TypeError, "StreamingSVD"),
        (StreamingPCA(4).fit(rows()), ValueError, "n_components=3 and n_components=4"),
        (StreamingPCA(3, whiten=True).fit(rows()), ValueError, "whiten=False and whiten=True"),
        (StreamingPCA(3, decay=0.9).fit(rows()), ValueError, "decay=None and decay=0.9"),
        (StreamingPCA(3).fit(rows(50, 8)), ValueError, "columns=30 and columns=8"),
        (StreamingPCA(3).fit(pl.DataFrame(rows(), schema=names(30)[::-1])), ValueError, "'c0' in one and 'c29'"),
        (StreamingPCA(3).fit(rows().astype(np.float32)), ValueError, "float32"),
    ],
)
def test_merge_refuses_and_says_what_differs(other, error, says):
    mine = StreamingPCA(3).fit(pl.DataFrame(rows(), schema=names(30)))
    with pytest.raises(error, match=says):
        mine.merge(other)
    if error is not TypeError:
        with pytest.raises(error):
            other.merge(mine)


def test_merge_of_all_components_says_that_row_counts_decided():
    with pytest.raises(ValueError, match="kept 5 components in one fit and 8"):
        StreamingPCA().fit(rows(5, 5).repeat(2, axis=1)).merge(StreamingPCA().fit(np.tile(rows(8, 5), 2)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "estimator", [StreamingPCA(3, whiten=True), StreamingPCA(3, kind="truncated"), StreamingSVD(0.9)]
)
def test_results_stay_in_the_library_and_dtype_of_the_rows(backend, dtype, estimator):
    X = rows(120, 20).astype(dtype)
    reference, mine, data = clone(estimator).fit(X), clone(estimator), backend(X)
    for start, stop in ((0, 50), (50, 100), (100, 120)):
        mine.partial_fit(data[start:stop, :], sample_weight=backend(np.ones(stop - start)))
    tolerance = 2e-3 if dtype == "float32" else 1e-8
    Z = mine.transform(data)
    results = {"Z": Z, "back": mine.inverse_transform(Z)}
    results |= {
        name: getattr(mine, name) for name in ("components_", "singular_values_", "explained_variance_", "mean_")
    }
    if isinstance(mine, StreamingPCA):
        results["covariance"] = mine.get_covariance()
        np.testing.assert_allclose(to_numpy(mine.score_samples(data)), reference.score_samples(X), rtol=1e-2)
    for name, value in results.items():
        assert namespace(value) is namespace(data), name
        assert str(value.dtype).endswith(dtype), name
        assert to_numpy(value).any() or name == "mean_", name
    np.testing.assert_allclose(to_numpy(Z), reference.transform(X), atol=tolerance * 30)
    np.testing.assert_allclose(to_numpy(mine.singular_values_), reference.singular_values_, rtol=tolerance)
    np.testing.assert_allclose(mine.transform(X), reference.transform(X), atol=tolerance * 30)
    assert isinstance(mine.transform(X), np.ndarray)
    assert namespace(reference.transform(data)) is namespace(data)
