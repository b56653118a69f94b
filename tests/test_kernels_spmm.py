"""Sparse times dense: the vector loop agrees with SciPy for every width, dtype and shape of rows, on any number of threads."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from streamsvd.kernels import spmm as module
from streamsvd.kernels import spmm_numba
from streamsvd.kernels.spmm import spmm, transposed

WIDTHS = [1, 3, 4, 5, 8, 10, 15, 16, 24, 32, 40, 64, 65, 100, 128]
TOL = {"float32": 2e-6, "float64": 1e-14}


def graph(rng, n=60, d=45, density=0.1, dtype="float64", index="int32"):
    """A matrix with empty rows and columns and one row that is full."""
    A = sp.random_array((n, d), density=density, rng=rng, dtype=np.float64).toarray()
    A[n // 3], A[n // 2], A[:, d // 4] = rng.standard_normal(d), 0.0, 0.0
    out = sp.csr_array(A.astype(dtype))
    out.indices, out.indptr = out.indices.astype(index), out.indptr.astype(index)
    return out


def close(found, csr, X, scale=None):
    exact = csr.astype(np.float64) @ X.astype(np.float64)
    size = abs(csr).astype(np.float64) @ np.abs(X).astype(np.float64)
    if scale is not None:
        exact, size = exact * scale[:, None], size * np.abs(scale)[:, None]
    assert np.all(np.abs(found - exact) <= TOL[found.dtype.name] * 8 * size + 1e-300)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_width_agrees_with_scipy(width, dtype):
    rng = np.random.default_rng(width)
    A = graph(rng, dtype=dtype)
    X = rng.standard_normal((45, width)).astype(dtype)
    found = spmm(A, X)
    assert found.dtype == dtype
    close(found, A, X)


@given(
    st.integers(0, 2**32),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 130),
    st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    st.sampled_from([("float32", "int32"), ("float64", "int64")]),
    st.integers(1, 4),
)
def test_any_matrix_agrees_with_scipy(seed, n, d, width, density, kinds, threads):
    rng = np.random.default_rng(seed)
    A = graph(rng, n, d, density, *kinds)
    X = rng.standard_normal((d, width)).astype(kinds[0])
    out = np.full((n, width), np.nan, kinds[0])
    assert spmm(A, X, out, threads=threads) is out
    close(out, A, X)


@pytest.mark.parametrize("index", ["int32", "int64"])
def test_unsorted_and_repeated_columns_are_summed(index):
    rng = np.random.default_rng(0)
    A = graph(rng, index=index)
    for i in range(A.shape[0]):
        order = rng.permutation(np.arange(A.indptr[i], A.indptr[i + 1]))
        A.indices[A.indptr[i] : A.indptr[i + 1]] = A.indices[order]
        A.data[A.indptr[i] : A.indptr[i + 1]] = A.data[order]
    twice = sp.csr_array((np.repeat(A.data, 2), np.repeat(A.indices, 2), A.indptr * 2), shape=A.shape)
    X = rng.standard_normal((45, 12))
    close(spmm(A, X), A, X)
    close(spmm(twice, X), 2 * A, X)


def test_the_bits_do_not_depend_on_the_threads():
    rng = np.random.default_rng(1)
    A = graph(rng, 3000, 500, 0.02, "float32")
    X = rng.standard_normal((500, 24)).astype(np.float32)
    for threads in (2, 3, 7):
        assert np.array_equal(spmm(A, X, threads=threads), spmm(A, X, threads=1))


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_threads_share_the_entries_though_one_row_is_heavy(parts):
    rng = np.random.default_rng(2)
    A = graph(rng, 4000, 300, 0.01)
    cuts = spmm_numba.cuts(A.indptr, parts)
    assert cuts[0] == 0
    assert cuts[-1] == 4000
    work = np.diff([A.indptr[c] + 2 * c for c in cuts])
    assert np.all(work >= 0)
    assert work.max() <= (A.nnz + 8000) / parts + 302


def test_rows_are_scaled_as_they_are_written():
    rng = np.random.default_rng(3)
    A, X, scale = graph(rng), rng.standard_normal((45, 9)), rng.standard_normal(60)
    close(spmm(A, X, scale=scale), A, X, scale)


@pytest.mark.parametrize("x", ["float32", "float64"])
def test_a_float64_result_of_float32_is_summed_in_float64(x):
    rng = np.random.default_rng(4)
    A = graph(rng, 50, 4000, 0.5, "float32")
    X = rng.standard_normal((4000, 10)).astype(x)
    out = spmm(A, X, np.empty((50, 10)))
    exact = A.astype(np.float64) @ X.astype(np.float64)
    assert np.abs(out - exact).max() < 1e-11
    assert np.abs(spmm(A, X.astype(np.float32)) - exact).max() > 1e-7


@pytest.mark.parametrize(
    "change",
    [lambda X: np.asfortranarray(X), lambda X: np.repeat(X, 2, axis=1)[:, ::2], lambda X: X[::-1][::-1]],
    ids=["columns", "strided", "reversed"],
)
def test_any_layout_of_x_is_taken(change):
    rng = np.random.default_rng(5)
    A, X = graph(rng), rng.standard_normal((45, 8))
    close(spmm(A, change(X)), A, X)


def test_read_only_arrays_are_read():
    rng = np.random.default_rng(6)
    A, X = graph(rng), rng.standard_normal((45, 8))
    for x in (A.data, A.indices, A.indptr, X):
        x.flags.writeable = False
    close(spmm(A, X), A, X)


@pytest.mark.parametrize("dtype", ["int32", "complex128", "float16"])
def test_other_numbers_fall_back_to_scipy(dtype):
    rng = np.random.default_rng(7)
    A, X = graph(rng, dtype="float32"), (3 * rng.standard_normal((45, 4))).astype(dtype)
    np.testing.assert_allclose(spmm(A, X), A.toarray() @ X, rtol=1e-5, atol=1e-5)
    out = np.empty((4, 60), (A.toarray() @ X).dtype).T
    assert spmm(A, X, out) is out
    np.testing.assert_allclose(out, A.toarray() @ X, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (4, 6)])
def test_empty_matrices_give_zeros(shape):
    A = sp.csr_array(shape, dtype=np.float64)
    assert np.array_equal(spmm(A, np.ones((shape[1], 3))), np.zeros((shape[0], 3)))
    assert spmm(A, np.ones((shape[1], 0))).shape == (shape[0], 0)


def test_the_transpose_has_sorted_columns():
    A = graph(np.random.default_rng(8))
    flipped = transposed(A)
    assert flipped.format == "csr"
    assert flipped.has_sorted_indices
    assert np.array_equal(flipped.toarray(), A.toarray().T)


@pytest.mark.parametrize(
    ("x", "out", "words"),
    [
        ((44, 2), None, r"expected X of shape \(45, l\)"),
        ((45,), None, "reshape"),
        ((45, 2), (60, 3), r"expected \(60, 2\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(x, out, words):
    A = graph(np.random.default_rng(9))
    with pytest.raises(ValueError, match=words):
        spmm(A, np.ones(x), None if out is None else np.ones(out))


def test_panels_cover_each_width_within_the_row():
    for width in range(1, 200):
        panels = module._panels(width)
        seen = {c for start, w in panels.tolist() for c in range(start, start + w)}
        assert seen == set(range(width))
