"""Operators agree with the matrix that they stand for, in products, float64 products, energy and transposes."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.sparse.linalg import aslinearoperator

from streamsvd.operators import Centered, Csr, as_operator, centered, product, svd_of_product

N, D = 37, 23


def dense(seed=0):
    return (
        np.random.default_rng(seed).standard_normal((N, D)) * (np.random.default_rng(seed + 1).random((N, D)) < 0.4)
        + 0.0
    )


def cases():
    A, rng = dense(), np.random.default_rng(2)
    left, right, mean = rng.uniform(0.5, 2, N), rng.uniform(0.5, 2, D), rng.standard_normal(D)
    U, s, Vt = rng.standard_normal((N, 4)), rng.uniform(1, 2, 4), rng.standard_normal((4, D))
    scaled = left[:, None] * A * right
    return {
        "dense": (as_operator(A), A),
        "csr": (as_operator(sp.csr_array(A)), A),
        "coo": (as_operator(sp.coo_array(A)), A),
        "scaled": (Csr(sp.csc_array(A), left, right), scaled),
        "left": (Csr(sp.csr_array(A), left), left[:, None] * A),
        "right": (Csr(sp.csr_array(A), None, right), A * right),
        "centred dense": (centered(A), A - A.mean(axis=0)),
        "centred sparse": (centered(sp.csr_array(A)), A - A.mean(axis=0)),
        "centred scaled": (Centered(Csr(sp.csr_array(A), left, right), mean), scaled - mean),
        "product": (product(U, s, Vt), U @ np.diag(s) @ Vt),
        "foreign": (as_operator(aslinearoperator(A)), A),
    }


@pytest.fixture(params=list(cases()))
def case(request):
    return cases()[request.param]


@pytest.mark.parametrize("flip", [False, True], ids=["as it is", "transposed"])
def test_products_energy_and_transposes_are_those_of_the_matrix(case, flip):
    op, A = (case[0].T, case[1].T) if flip else case
    rng = np.random.default_rng(3)
    X, Y = rng.standard_normal((A.shape[1], 5)), rng.standard_normal((A.shape[0], 5))
    assert op.shape == A.shape
    assert op.T.T.shape == A.shape
    np.testing.assert_allclose(op.matmat(X), A @ X, atol=1e-12)
    np.testing.assert_allclose(op.rmatmat(Y), A.T @ Y, atol=1e-12)
    found, work = op.normal(X)
    np.testing.assert_allclose(found, A.T @ (A @ X), atol=1e-11)
    np.testing.assert_allclose(op.normal(2 * X, 0.5, work)[0], A.T @ (A @ X) / 2, atol=1e-11)
    for found, wanted in ((op.project(Y), A.T @ Y), (op.coproject(X), A @ X)):
        assert found is None or found.dtype == np.float64
        assert found is None or np.allclose(found, wanted, atol=1e-12)
    energy = op.energy(0.5)
    assert energy is None or energy == pytest.approx(0.25 * np.sum(A**2), rel=1e-12)


def test_only_foreign_operators_certify_nothing():
    unknown = [
        name for name, (op, _) in cases().items() if op.energy(1.0) is None or op.project(np.ones((N, 1))) is None
    ]
    assert unknown == ["foreign"]


def test_float32_is_projected_in_float64():
    A = dense().astype(np.float32)
    U = np.random.default_rng(4).standard_normal((N, 20)).astype(np.float32)
    for op in (
        as_operator(A),
        as_operator(sp.csr_array(A)),
        Csr(sp.csr_array(A), np.ones(N), np.ones(D)),
        centered(A, np.zeros(D)),
    ):
        assert op.dtype == "float32"
        assert op.matmat(np.ones((D, 2), np.float32)).dtype == np.float32
        np.testing.assert_allclose(op.project(U), A.astype(float).T @ U.astype(float), atol=1e-13)


def test_a_centred_matrix_keeps_its_digits_beside_a_large_offset():
    A = dense() + 1e6
    exact = (A.astype(np.longdouble) - A.astype(np.longdouble).mean(axis=0)).astype(float)
    assert centered(A).energy(1.0) == pytest.approx(np.sum(exact**2), rel=1e-8)


def test_csr_is_not_copied_and_its_transpose_is_shared():
    A = sp.csr_array(dense())
    op = as_operator(A)
    assert np.shares_memory(op.matrix.data, A.data)
    assert op.T.matrix is op.flipped
    assert op.T.T.matrix is op.matrix


def test_a_mapped_file_is_read_a_chunk_at_a_time(tmp_path, monkeypatch):
    from streamsvd import adaptors

    A = dense()
    mapped = np.memmap(tmp_path / "a", np.float64, "w+", shape=A.shape)
    mapped[:] = A
    monkeypatch.setattr(adaptors, "CHUNK_BYTES", 8 * D * 5)
    op, X = as_operator(mapped), np.ones((D, 2))
    assert len(op._rows()) == 8
    np.testing.assert_allclose(op.normal(X)[0], A.T @ (A @ X), atol=1e-12)
    np.testing.assert_allclose(op.coproject(X), A @ X, atol=1e-12)


@pytest.mark.parametrize("rank", [None, 2])
def test_the_svd_of_a_product_is_exact(rank):
    rng = np.random.default_rng(5)
    U, s, Vt = rng.standard_normal((50, 6)), rng.standard_normal(6), rng.standard_normal((6, 30))
    A = (U * s) @ Vt
    u, found, vt = svd_of_product(U, s, Vt, rank=rank)
    want = np.linalg.svd(A, compute_uv=False)[: rank or 6]
    np.testing.assert_allclose(found, want, rtol=1e-12)
    np.testing.assert_allclose(u.T @ u, np.eye(found.size), atol=1e-13)
    np.testing.assert_allclose(vt @ vt.T, np.eye(found.size), atol=1e-13)
    if rank is None:
        np.testing.assert_allclose((u * found) @ vt, A, atol=1e-12)


@pytest.mark.parametrize(
    ("left", "right", "words"),
    [
        (np.ones(N + 1), None, r"left of shape \(38,\)"),
        (None, np.ones(3), "one factor for each column"),
        (np.full(N, np.inf), None, r"left\[0\] is inf"),
    ],
)
def test_bad_scales_are_refused(left, right, words):
    with pytest.raises(ValueError, match=words):
        Csr(sp.csr_array(dense()), left, right)


def test_what_is_no_matrix_is_refused():
    with pytest.raises(TypeError, match="expected rows as an array"):
        as_operator("file.csv")
    with pytest.raises(ValueError, match="2-D"):
        as_operator(np.ones(3))
