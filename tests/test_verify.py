"""The oracles that users can run themselves, checked against identities that hold by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from backends import BACKENDS
from streams import Truth, orthonormal, rows_of
from streamsvd import verify


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_residual_is_the_energy_outside_the_subspace(backend):
    rng = np.random.default_rng(0)
    rows, vt = rng.standard_normal((50, 12)), orthonormal(rng, 3, 12)
    expected = np.linalg.norm(rows @ (np.eye(12) - vt.T @ vt)) ** 2
    assert verify.residual(backend(rows), backend(vt)) == pytest.approx(expected, rel=1e-13)
    mean, weights = rng.standard_normal(12), rng.uniform(0, 3, 50)
    centred = np.sqrt(weights)[:, None] * (rows - mean) @ (np.eye(12) - vt.T @ vt)
    got = verify.residual(backend(rows), backend(vt), mean=backend(mean), weights=backend(weights))
    assert got == pytest.approx(np.linalg.norm(centred) ** 2, rel=1e-13)


def test_the_best_subspace_leaves_the_tail_of_the_spectrum():
    rows = rows_of("1/j", np.random.default_rng(1), 80, 20)
    truth = Truth(rows)
    assert verify.residual(rows, truth.vt[:5], mean=truth.mean) == pytest.approx(truth.optimal(5), rel=1e-12)
    assert verify.residual(rows, truth.vt[:5]) > truth.optimal(5)


def test_residuals_of_sparse_and_of_many_rows():
    rng = np.random.default_rng(2)
    rows, vt = rng.standard_normal((9000, 6)), orthonormal(rng, 2, 6)
    expected = np.linalg.norm(rows - rows @ vt.T @ vt) ** 2
    assert verify.residual(rows, vt) == pytest.approx(expected, rel=1e-12)
    assert verify.residual(sparse.csc_array(rows), vt) == pytest.approx(expected, rel=1e-12)
    assert verify.residual(rows.astype("float32"), vt.astype("float32")) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_angles_are_those_between_the_subspaces(backend):
    a, b = np.eye(5)[:2], np.eye(5)[:2].copy()
    b[1] = [0, np.cos(0.3), np.sin(0.3), 0, 0]
    np.testing.assert_allclose(verify.angles(backend(a), backend(b)), [0, 0.3], atol=1e-15)
    np.testing.assert_allclose(verify.angles(backend(a), backend(np.eye(5)[2:4])), [np.pi / 2] * 2)


def test_tiny_angles_are_resolved_and_scaling_does_not_matter():
    a = np.eye(4)[:1]
    b = 7.0 * np.array([[1.0, 1e-12, 0, 0]])
    assert verify.angles(a, b)[0] == pytest.approx(1e-12, rel=1e-3)
    both = verify.angles(orthonormal(np.random.default_rng(3), 3, 9), orthonormal(np.random.default_rng(4), 3, 9))
    assert np.all(np.diff(both) >= 0)
    assert 0.1 < both[0] < both[-1] <= np.pi / 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_orthonormality_looks_at_all_pairs(backend):
    rows = np.eye(4)
    rows[3, 1] = 1e-3
    assert verify.orthonormality(backend(rows)) == pytest.approx(1e-3)
    assert verify.orthonormality(backend(2 * np.eye(3))) == pytest.approx(3)
    assert verify.orthonormality(np.eye(3)) == 0
    assert verify.orthonormality(np.zeros((0, 3))) == 0
