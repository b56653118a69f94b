"""Rank-one approximations: stationary, no worse than their start, warm-started, batched, non-negative where the tensor is."""

from __future__ import annotations

import numpy as np
import pytest

from backends import BACKENDS
from streamsvd.arrays import to_numpy
from streamsvd.kronecker import outer
from streamsvd.rank_one import best_rank_one, contract, hosvd_start, truncated_rank_one


def tensor(*shape, complex_=False, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    return x + 1j * rng.standard_normal(shape) if complex_ else x


def error(T, weight, vectors):
    return np.linalg.norm(T - weight * outer(vectors))


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("shape", [(7,), (5, 4), (4, 5, 3), (3, 2, 4, 2)])
def test_a_rank_one_tensor_is_found(shape, complex_):
    T = outer([tensor(n, complex_=complex_, seed=n) for n in shape])
    found = best_rank_one(T, modes=len(shape))
    assert error(T, found.weight, found.vectors) <= 1e-10 * np.linalg.norm(T)
    weight, vectors = truncated_rank_one(T, modes=len(shape))
    if not complex_:
        assert error(T, weight, vectors) <= 1e-10 * np.linalg.norm(T)


def test_a_matrix_gives_its_largest_singular_value():
    T = tensor(6, 9)
    assert best_rank_one(T, modes=2, tol=1e-15).weight == pytest.approx(np.linalg.norm(T, 2), rel=1e-8)
    assert truncated_rank_one(T, modes=2)[0] == pytest.approx(np.linalg.norm(T, 2), rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_power_iteration_is_no_worse_than_one_unfolding_after_the_other(seed):
    T = np.abs(tensor(6, 5, 4, seed=seed)) + 0.1
    weight, vectors = truncated_rank_one(T, modes=3)
    found = best_rank_one(T, modes=3)
    assert found.weight >= weight * (1 - 1e-12)
    assert all((v >= 0).all() for v in (*found.vectors, *vectors))
    for i, v in enumerate(found.vectors):
        np.testing.assert_allclose(contract(T, found.vectors, skip=i), found.weight * v, atol=1e-4)


def test_a_warm_start_takes_fewer_sweeps():
    T = np.abs(tensor(8, 7, 6)) + np.abs(tensor(8, 1, 1, seed=1))
    cold = best_rank_one(T, modes=3)
    warm = best_rank_one(T * 1.001 + 1e-3, modes=3, start=cold.vectors)
    assert warm.sweeps < cold.sweeps
    again = best_rank_one(T, modes=3, start=hosvd_start(T, modes=3), max_sweeps=0)
    assert 0 < again.weight <= cold.weight


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_is_each_by_itself_on_every_backend(backend):
    T = np.abs(tensor(3, 4, 5, 2))
    found = best_rank_one(backend(T), modes=3, tol=1e-14)
    for f in range(3):
        alone = best_rank_one(T[f], modes=3, tol=1e-14)
        assert float(to_numpy(found.weight)[f]) == pytest.approx(float(alone.weight), rel=1e-9)
    weight, vectors = truncated_rank_one(backend(T), modes=3)
    assert float(to_numpy(weight)[1]) == pytest.approx(float(truncated_rank_one(T[1], modes=3)[0]), rel=1e-12)
    assert len(vectors) == 3


@pytest.mark.parametrize("scale", [1e-60, 1.0, 1e60])
@pytest.mark.parametrize("seed", range(3))
def test_squaring_finds_what_the_eigensolver_does_where_nothing_is_negative(seed, scale):
    rng = np.random.default_rng(seed)
    T = scale * outer([rng.random((2, n)) ** 8 for n in (9, 1, 12, 5)]) + 0.01 * scale * rng.random((2, 9, 1, 12, 5))
    weight, vectors = truncated_rank_one(T, modes=4)
    fast, found = truncated_rank_one(T, modes=4, positive=True)
    np.testing.assert_allclose(fast, weight, rtol=1e-9)
    for v, w in zip(found, vectors, strict=True):
        np.testing.assert_allclose(v, w, atol=1e-7)


def test_squaring_takes_zeros_and_entries_of_every_size():
    T = outer([10.0 ** -np.arange(0.0, 120.0, 20), 10.0 ** -np.arange(0.0, 60.0, 20)])
    weight, (u, v) = truncated_rank_one(np.stack([T, 0 * T]), modes=2, positive=True)
    np.testing.assert_allclose(weight[0] * outer([u[0], v[0]]), T, rtol=1e-9)
    assert weight[1] == 0
    assert np.isfinite(u).all()


def test_zeros_have_weight_zero():
    found = best_rank_one(np.zeros((2, 3, 4)), modes=3)
    assert found.weight == 0
    assert all(np.isfinite(v).all() for v in found.vectors)
