"""The Gaussian of the components is that of scikit-learn's PCA, and stays finite where rows are degenerate."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from estimator_rows import rows
from streamsvd import StreamingPCA


@pytest.mark.parametrize("k", [3, 12])
@pytest.mark.parametrize("whiten", [False, True])
def test_covariance_precision_and_score_are_those_of_scikit_learn(k, whiten):
    X = rows(300, 12, decay=0.8)
    ours, exact = StreamingPCA(k, whiten=whiten).fit(X), PCA(k, svd_solver="full").fit(X)
    if (
        k == 12
    ):  # whitening changes coordinates, not the rows; scikit-learn's own covariance is another one with whiten=True
        np.testing.assert_allclose(ours.get_covariance(), np.cov(X.T), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(ours.get_covariance(), exact.get_covariance(), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(ours.get_precision(), exact.get_precision(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(ours.get_covariance() @ ours.get_precision(), np.eye(12), atol=1e-9)
    np.testing.assert_allclose(ours.score_samples(X), exact.score_samples(X), rtol=1e-8)
    assert ours.score(X) == pytest.approx(exact.score(X), rel=1e-9)


def test_score_prefers_rows_of_the_support_where_rows_are_degenerate():
    X = rows(100, 10, decay=0.5)
    X[:, 9] = X[:, 8]
    pca = StreamingPCA().fit(X)
    off = X + np.eye(10)[9]
    assert np.isfinite(pca.score_samples(X)).all()
    assert (pca.score_samples(off) < pca.score_samples(X) - 1e3).all()
