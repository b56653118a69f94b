"""The estimators keep every convention of scikit-learn and agree with its exact decompositions."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.decomposition import PCA, IncrementalPCA, TruncatedSVD
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

import streamsvd as ss
from estimator_rows import KINDS, rows
from streamsvd import StreamingPCA, StreamingSVD


@parametrize_with_checks(
    [StreamingPCA(), StreamingSVD(n_components=1), StreamingPCA(0.9), StreamingPCA(1, kind="truncated", whiten=True)]
)
def test_scikit_learn_accepts_the_estimators(estimator, check):
    check(estimator)


@pytest.mark.slow
def test_scikit_learn_accepts_them_with_array_api_dispatch():
    # SciPy reads the variable when it is imported, hence a process of its own. Without it, nothing below needs it.
    code = """
import warnings; warnings.simplefilter("error")
from sklearn.utils.estimator_checks import estimator_checks_generator
from sklearn.exceptions import SkipTestWarning
from unittest import SkipTest
from streamsvd import StreamingPCA, StreamingSVD
done = 0
for made in (StreamingPCA(), StreamingSVD(n_components=2)):
    for estimator, check in estimator_checks_generator(made):
        if "array_api" in str(check):
            try: check(estimator); done += 1
            except SkipTest: pass
print(done)
"""
    env = {"SCIPY_ARRAY_API": "1", "OPENBLAS_NUM_THREADS": "1", "PATH": ""}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    assert int(out.stdout) >= 2


@pytest.mark.parametrize("kind", KINDS)
def test_pca_is_that_of_scikit_learn_signs_included(kind):
    X = rows()
    ours, exact = StreamingPCA(6, kind=kind), PCA(6, svd_solver="full").fit(X)
    for batch in np.array_split(X, 17):
        ours.partial_fit(batch)
    assert np.abs(exact.components_).max() > 0.1
    for name in ("components_", "singular_values_", "explained_variance_", "explained_variance_ratio_", "mean_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(exact, name), rtol=1e-6, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(ours.noise_variance_, exact.noise_variance_, rtol=1e-6)
    np.testing.assert_allclose(ours.transform(X), exact.transform(X), atol=1e-6)
    np.testing.assert_allclose(
        ours.inverse_transform(ours.transform(X)), exact.inverse_transform(exact.transform(X)), atol=1e-6
    )
    assert ours.n_samples_seen_ == 400
    assert ours.n_components_ == 6
    assert ours.n_features_in_ == 30


@pytest.mark.parametrize("make", [np.asarray, sp.csr_array, sp.csc_matrix, sp.coo_array])
@pytest.mark.parametrize("kind", KINDS)
def test_svd_is_that_of_scikit_learn_dense_or_sparse(make, kind):
    dense = np.where(np.random.default_rng(1).random((300, 40)) < 0.1, rows(300, 40, seed=1), 0.0)
    exact = TruncatedSVD(4, algorithm="arpack").fit(dense)
    ours = StreamingSVD(4, kind=kind, kept=24 if kind == "truncated" else None).fit(make(dense))
    assert exact.singular_values_[-1] > 1
    np.testing.assert_allclose(ours.singular_values_, exact.singular_values_, rtol=1e-3)
    np.testing.assert_allclose(np.abs(np.sum(ours.components_ * exact.components_, axis=1)), 1.0, atol=0.02)
    np.testing.assert_allclose(np.abs(ours.transform(make(dense))), np.abs(dense @ ours.components_.T), atol=1e-9)
    assert not ours.mean_.any()


def test_noise_variance_is_that_of_the_whole_stream_where_incremental_pca_reports_its_last_batch():
    X = rows(2000, 40, decay=0.9)
    exact = PCA(10, svd_solver="full").fit(X).noise_variance_
    ours, theirs = StreamingPCA(10, kind="truncated"), IncrementalPCA(10)
    for batch in np.array_split(X, 100):
        ours.partial_fit(batch)
        theirs.partial_fit(batch)
    assert theirs.noise_variance_ < 0.2 * exact
    np.testing.assert_allclose(ours.noise_variance_, exact, rtol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_variance_holds_below_the_precision_of_float32_ratios(kind):
    rng = np.random.default_rng(0)
    X = (
        rng.standard_normal((500, 1)) @ rng.standard_normal((1, 20)) * 10 + 1e-3 * rng.standard_normal((500, 20))
    ).astype(np.float32)
    tail = np.linalg.svd(X.astype(np.float64) - X.mean(0, dtype=np.float64), compute_uv=False)[1:]
    np.testing.assert_allclose(StreamingPCA(1, kind=kind).fit(X).noise_variance_, (tail**2).sum() / 19 / 499, rtol=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_certificate_holds_for_the_true_singular_values_and_residual(kind):
    X = rows(600, 50, decay=0.95)
    pca = StreamingPCA(5, kind=kind).fit(X)
    truth = np.linalg.svd(X - X.mean(0), compute_uv=False)
    low, high = pca.bound_.sigma
    assert (low <= truth[:5]).all()
    assert (truth[:5] <= high).all()
    assert low[0] > 0.9 * truth[0]
    residual = ss.verify.residual(X, pca.components_, mean=pca.mean_)
    assert 0 < residual <= pca.bound_.residual <= 1.5 * residual


@pytest.mark.parametrize("kind", KINDS)
def test_whitened_coordinates_have_unit_variance_and_none_along_directions_without(kind):
    X = rows(200, 9, decay=0.5)
    X[:, 8] = 2.0 * X[:, 7]
    pca = StreamingPCA(9, kind=kind, whiten=True).fit(X)
    Z = pca.transform(X)
    np.testing.assert_allclose(Z[:, :8].std(axis=0, ddof=1), 1.0, rtol=1e-6)
    assert not Z[:, 8].any()
    np.testing.assert_allclose(pca.inverse_transform(Z), X, atol=1e-9)


def test_constant_rows_have_no_variance_and_no_nan():
    for n in (None, 3, 0.5):
        pca = StreamingPCA(n, whiten=True).fit(np.full((20, 5), 7.0))
        for value in (
            pca.explained_variance_,
            pca.explained_variance_ratio_,
            pca.transform(np.full((2, 5), 7.0)),
            pca.noise_variance_,
        ):
            assert not np.any(value)
        np.testing.assert_allclose(pca.mean_, 7.0)
        with pytest.raises(ValueError, match="do not vary"):
            pca.get_precision()


def test_nothing_is_read_before_fit():
    pca = StreamingPCA(2)
    for name in ("components_", "bound_", "factors_", "n_samples_seen_", "feature_names_in_"):
        assert not hasattr(pca, name)
    for call in (pca.transform, pca.inverse_transform, pca.score, lambda X: pca.get_covariance()):
        with pytest.raises(NotFittedError):
            call(rows())


def test_coordinates_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"shape \(5, 4\); expected 3 columns"):
        StreamingPCA(3).fit(rows()).inverse_transform(np.ones((5, 4)))


def test_the_rows_of_the_caller_are_not_written():
    X = rows()
    before = X.copy()
    StreamingPCA(3).fit(X).transform(X)
    StreamingSVD(3, kind="truncated").partial_fit(X[:5]).partial_fit(X[5:])
    assert np.array_equal(X, before)


def test_without_scikit_learn_the_error_names_the_extra():
    code = "import sys; sys.modules['sklearn'] = None\nimport streamsvd\n"
    for access in ("streamsvd.StreamingPCA", "import streamsvd.estimators"):
        out = subprocess.run([sys.executable, "-c", code + access], capture_output=True, text=True, check=False)
        assert "ImportError: " in out.stderr
        assert 'pip install "streamsvd[sklearn]"' in out.stderr
