"""Namespaces, precision, small factorizations, signs and threads."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from backends import BACKENDS
from streams import orthonormal
from streamsvd import arrays
from streamsvd.arrays import (
    blas_threads,
    dtype_name,
    fix_signs,
    from_numpy,
    is_sparse,
    namespace,
    one_thread,
    signs,
    small_eigh,
    solve_triangular,
    to_numpy,
)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_arrays_travel_to_numpy_and_back(backend, dtype):
    rows = np.random.default_rng(0).standard_normal((4, 3)).astype(dtype)
    x = backend(rows)
    assert dtype_name(x) == dtype
    np.testing.assert_array_equal(to_numpy(x), rows)
    for layout in (
        rows,
        np.asfortranarray(rows),
        rows[::-1],
        rows[:, ::-1],
        rows[:1][::-1],
        rows[:0][::-1],
        rows[::-1].T,
    ):
        back = from_numpy(layout, like=x)
        assert type(back) is type(x)
        assert namespace(back) is namespace(x)
        np.testing.assert_array_equal(to_numpy(back), layout)
    other = "float32" if dtype == "float64" else "float64"
    assert dtype_name(from_numpy(rows, like=x, dtype=other)) == other


def test_half_precision_and_integers_have_bare_names():
    torch = pytest.importorskip("torch")
    assert dtype_name(torch.zeros(1, dtype=torch.bfloat16)) == "bfloat16"
    assert dtype_name(np.zeros(1, "int16")) == "int16"


def test_sparse_is_told_from_dense():
    assert is_sparse(sparse.csr_array(np.eye(2)))
    assert is_sparse(sparse.coo_matrix(np.eye(2)))
    assert not is_sparse(np.eye(2))
    assert not is_sparse([[1.0]])


@pytest.mark.parametrize("top", [None, 1, 5, 29, 30])
def test_small_eigh_is_sorted_and_exact(top):
    rng = np.random.default_rng(1)
    Q = orthonormal(rng, 30, 30)
    w = np.sort(rng.uniform(-1, 5, 30))[::-1]
    G = (Q.T * w) @ Q
    values, vectors = small_eigh(G, top=top)
    k = 30 if top is None else top
    assert values.shape == (k,)
    assert vectors.shape == (30, k)
    np.testing.assert_allclose(values, w[:k], rtol=0, atol=1e-13)
    np.testing.assert_allclose(G @ vectors, vectors * values, rtol=0, atol=1e-12)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(k), rtol=0, atol=1e-13)


def test_small_eigh_reads_one_triangle_in_float64():
    G = np.array([[2.0, 99.0], [1.0, 2.0]], dtype="float32")
    w, Q = small_eigh(G)
    assert w.dtype == Q.dtype == np.float64
    np.testing.assert_allclose(w, [3, 1], rtol=1e-15)
    assert small_eigh(np.zeros((0, 0)))[0].shape == (0,)


@pytest.mark.parametrize("trans", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_triangular_systems_are_solved(backend, dtype, trans):
    rng = np.random.default_rng(2)
    L = (np.tril(rng.standard_normal((6, 6))) + 4 * np.eye(6)).astype(dtype)
    B = rng.standard_normal((6, 3)).astype(dtype)
    X = solve_triangular(backend(L), backend(B), trans=trans)
    assert type(X) is type(backend(B))
    assert dtype_name(X) == dtype
    left = (L.T if trans else L).astype(float) @ to_numpy(X).astype(float)
    np.testing.assert_allclose(left, B, rtol=0, atol=1e-13 if dtype == "float64" else 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_largest_entry_of_each_row_becomes_positive(backend):
    rows = np.array([[1.0, -3.0, 2.0], [0.5, 4.0, -1.0], [-2.0, 1.0, 2.0], [2.0, -2.0, 0.0], [0.0, 0.0, 0.0]])
    expected = np.array([-1.0, 1.0, -1.0, 1.0, 1.0])
    np.testing.assert_array_equal(to_numpy(signs(backend(rows))), expected)
    np.testing.assert_array_equal(to_numpy(fix_signs(backend(rows))), rows * expected[:, None])


def test_signs_do_not_depend_on_the_sign_they_get():
    rows = np.random.default_rng(3).standard_normal((50, 7))
    rows[:, 0] = -rows[:, 3]
    flipped = rows * np.where(np.arange(50) % 2, -1.0, 1.0)[:, None]
    np.testing.assert_array_equal(fix_signs(flipped), fix_signs(rows))
    assert signs(np.zeros((0, 4))).shape == (0,)


def thread_counts():
    from threadpoolctl import ThreadpoolController

    found = ThreadpoolController().select(user_api="blas").lib_controllers
    return [lib.num_threads for lib in found if "opencv" not in lib.filepath]  # which brings one for itself alone


def test_thread_counts_are_one_inside_and_restored_after():
    from threadpoolctl import threadpool_limits

    with threadpool_limits(2, user_api="blas"):
        before = thread_counts()
        with one_thread():
            assert set(thread_counts()) == {1}
            with one_thread():
                assert set(thread_counts()) == {1}
        assert thread_counts() == before

        class Trouble(Exception):
            pass

        def fail():
            with one_thread():
                raise Trouble

        with pytest.raises(Trouble):
            fail()
        assert thread_counts() == before
        with blas_threads(10):
            assert set(thread_counts()) == {1}
        with blas_threads(1e12):
            assert thread_counts() == before
        assert thread_counts() == before


def test_large_products_are_those_above_a_measured_size():
    assert 1e5 < arrays.PARALLEL_FLOPS < 1e10
