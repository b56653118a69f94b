"""``n_components`` is a number, a share of the energy, or all there is, and anything else is explained."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.decomposition import PCA

from estimator_rows import KINDS, rows
from streamsvd import StreamingPCA, StreamingSVD


@pytest.mark.parametrize("kind", KINDS)
def test_a_share_of_the_energy_takes_as_few_components_as_hold_it(kind):
    X = rows()
    ours, exact = StreamingPCA(0.93, kind=kind).fit(X), PCA(0.93, svd_solver="full").fit(X)
    assert ours.n_components_ == exact.n_components_ > 1
    assert 0.93 <= ours.explained_variance_ratio_.sum() < 0.93 + ours.explained_variance_ratio_[-1]
    assert ours.transform(X).shape == (400, exact.n_components_)
    np.testing.assert_allclose(ours.noise_variance_, exact.noise_variance_, rtol=1e-6)


def test_a_share_that_the_kept_rows_do_not_hold_is_said():
    pca = StreamingPCA(0.99, kept=5).fit(rows(decay=0.95))
    with pytest.warns(UserWarning, match=r"n_components=0.99 is not reached: the 5 components hold 0\.\d+ .*kept=10"):
        assert pca.n_components_ == 5
    assert pca.transform(rows()).any()


@pytest.mark.parametrize(("n", "d", "expected"), [(100, 12, 12), (8, 40, 7), (1, 5, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_no_number_means_every_direction_in_which_the_rows_vary(n, d, expected, kind):
    X = rows(n, d)
    pca = StreamingPCA(kind=kind).fit(X)
    assert pca.n_components_ == expected
    np.testing.assert_allclose(pca.inverse_transform(pca.transform(X)), X, atol=1e-9)
    assert StreamingPCA(kind=kind).partial_fit(X).n_components_ == expected


@pytest.mark.parametrize(
    ("parameters", "error", "says"),
    [
        ({"n_components": 0}, ValueError, "n_components=0 with 30 columns; expected a whole number of 1 .. 30"),
        ({"n_components": 31}, ValueError, "1 .. 30"),
        ({"n_components": 1.0}, ValueError, "share of the energy"),
        ({"n_components": True}, TypeError, "n_components=True"),
        ({"n_components": "mle"}, TypeError, "n_components='mle'"),
        ({"n_components": 3, "kind": "exact"}, ValueError, "kind='exact'"),
        ({"n_components": 3, "kept": 2}, ValueError, "kept=2"),
        ({"n_components": 3, "decay": 1.5}, ValueError, "decay=1.5"),
        ({"n_components": 3, "half_life": "soon"}, ValueError, "half_life='soon'"),
        ({"n_components": 3, "half_life": "5s"}, ValueError, "timestamps"),
        ({"n_components": 3, "shrink": 2}, ValueError, "shrink=2"),
    ],
)
def test_parameters_are_checked_by_fit(parameters, error, says):
    with pytest.raises(error, match=says.replace("(", r"\(")):
        StreamingPCA(**parameters).fit(rows())


def test_all_components_of_too_many_columns_are_refused_with_a_cure():
    wide = sp.csr_array(([1.0], ([0], [3])), shape=(1, 1_000_000))
    with pytest.raises(ValueError, match="n_components=64"):
        StreamingSVD().partial_fit(wide)
    assert StreamingSVD(1).partial_fit(wide).components_[0, 3] == pytest.approx(1.0)
