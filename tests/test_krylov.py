"""Krylov bases: orthonormal though only the last blocks are projected on, whatever the spectrum does to them."""

from __future__ import annotations

import numpy as np
import pytest

from streams import with_spectrum
from streamsvd import krylov
from streamsvd.krylov import (
    block_krylov,
    combine,
    next_block,
    orthonormalize,
    power_of_two,
    project_out,
    subspace_iteration,
)
from streamsvd.normals import normals
from streamsvd.operators import as_operator
from streamsvd.verify import orthonormality

J = np.arange(1.0, 301.0)
SPECTRA = {
    "slow": J**-0.2,
    "1/j": 1 / J,
    "gap": np.where(J <= 4, 100.0, 1.0) / J**0.1,
    "geometric .7": 0.7**J,
    "deficient": (J <= 20) / J,
}


def operator(kind, dtype):
    return as_operator(with_spectrum(np.random.default_rng(0), 700, 400, SPECTRA[kind]).astype(dtype))


@pytest.fixture
def lost(monkeypatch):
    """The largest product of columns of different blocks, seen as each block is added."""
    seen = []

    def spy(blocks, *rest):
        V, beta = next_block(blocks, *rest)
        seen.append(max(np.abs(B.T.astype(float) @ V).max(initial=0) for B in blocks))
        return V, beta

    monkeypatch.setattr(krylov, "next_block", spy)
    return seen


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", SPECTRA)
def test_the_basis_stays_orthonormal_enough(kind, dtype, lost):
    op = operator(kind, dtype)
    found = block_krylov(op, 5, normals(0, 400, 8, dtype=dtype), passes=40, tol=None, seed=0)
    assert len(lost) == 39
    assert max(lost) < 4 * np.sqrt(np.finfo(dtype).eps)
    assert orthonormality(found.V.T) < 20 * np.sqrt(np.finfo(dtype).eps)


def test_without_the_recurrence_the_basis_is_lost(lost, monkeypatch):
    monkeypatch.setattr(krylov._Loss, "after", lambda *a, **kw: False)
    op = operator("1/j", "float32")
    block_krylov(op, 5, normals(0, 400, 8, dtype="float32"), passes=40, tol=None, seed=0)
    assert max(lost) > 0.1


def test_a_full_basis_is_exact():
    op = operator("slow", "float64")
    found = block_krylov(op, 6, normals(0, 400, 7), passes=1000, tol=None, seed=0)
    assert found.columns == 400
    s = np.linalg.svd(op.array @ found.V, compute_uv=False)
    np.testing.assert_allclose(s, SPECTRA["slow"][:6], rtol=1e-10)


def test_tolerance_stops_early():
    op = operator("slow", "float64")
    passes = [block_krylov(op, 5, normals(0, 400, 8), passes=100, tol=t, seed=0).passes for t in (0.3, 0.03, 0.003)]
    assert passes == sorted(passes)
    assert passes[0] < passes[2] < 30


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("condition", [1, 1e3, 1e6, 1e12, np.inf])
def test_columns_are_orthonormalised_whatever_their_condition(condition, dtype):
    rng = np.random.default_rng(1)
    Z = with_spectrum(
        rng, 200, 12, 1 / np.geomspace(1, condition, 12) if condition < np.inf else (np.arange(12) < 3) * 1.0
    )
    Q = orthonormalize(Z.astype(dtype))
    assert orthonormality(Q.T) < 20 * np.finfo(dtype).eps
    if condition < 1e3:
        np.testing.assert_allclose(Q @ (Q.T @ Z), Z, atol=1e-5)


def test_zero_columns_are_replaced():
    assert orthonormality(orthonormalize(np.zeros((30, 4))).T) < 1e-14


def test_what_is_projected_out_is_returned():
    rng = np.random.default_rng(2)
    V = np.linalg.qr(rng.standard_normal((100, 12)))[0]
    blocks, Z = [np.ascontiguousarray(V[:, :5]), np.ascontiguousarray(V[:, 5:])], rng.standard_normal((100, 4))
    rest, H, G, size = project_out(blocks, Z.copy())
    np.testing.assert_allclose(H, V.T @ Z, atol=1e-13)
    np.testing.assert_allclose(rest, Z - V @ (V.T @ Z), atol=1e-13)
    np.testing.assert_allclose((G[1] * G[0]) @ G[1].T, rest.T @ rest, atol=1e-12)
    assert size == pytest.approx(np.linalg.norm(Z))
    np.testing.assert_allclose(combine(blocks, H), V @ H, atol=1e-13)


def test_little_that_is_left_is_projected_twice():
    rng = np.random.default_rng(3)
    V = np.linalg.qr(rng.standard_normal((100, 6)))[0]
    Z = V @ rng.standard_normal((6, 3)) + 1e-9 * rng.standard_normal((100, 3))
    rest = project_out([V], Z)[0]
    assert np.abs(V.T @ rest).max() < 1e-15 * np.linalg.norm(rest) * 10


@pytest.mark.parametrize("room", [3, 1, 0])
def test_a_block_has_no_more_columns_than_there_is_room_for(room):
    rng = np.random.default_rng(4)
    V, Z = np.linalg.qr(rng.standard_normal((9, 9 - room)))[0], rng.standard_normal((9, 4))
    rest, _, G, size = project_out([V], Z)
    fresh, beta = next_block([V], rest, G, size, room, (0, 0))
    assert fresh.shape == (9, room)
    assert beta.shape == (room, 4)
    assert orthonormality(np.concatenate([V, fresh], axis=1).T) < 1e-13


def test_an_exhausted_block_goes_on_with_random_columns():
    rng = np.random.default_rng(5)
    V = np.linalg.qr(rng.standard_normal((60, 4)))[0]
    Z = V @ rng.standard_normal((4, 4))
    rest, _, G, size = project_out([V], Z)
    fresh, beta = next_block([V], rest, G, size, 50, (0, 0))
    assert orthonormality(np.concatenate([V, fresh], axis=1).T) < 1e-13
    assert np.abs(beta).max() < 1e-13


def test_subspace_iteration_converges_and_orders_its_columns():
    op = operator("1/j", "float64")
    found = subspace_iteration(op, 5, normals(0, 400, 12), passes=12, tol=None)
    s = np.linalg.norm(op.array @ found.V[:, :5], axis=0)
    np.testing.assert_allclose(s, SPECTRA["1/j"][:5], rtol=1e-4)
    assert found.passes == 12
    assert subspace_iteration(op, 5, normals(0, 400, 12), passes=50, tol=1e-6).passes < 50


@pytest.mark.parametrize(
    ("largest", "dtype", "scale"), [(1.0, "float32", 1.0), (0.0, "float64", 1.0), (2.0**500, "float64", 2.0**-501)]
)
def test_only_extreme_scales_are_changed(largest, dtype, scale):
    assert power_of_two(largest, dtype) == scale
