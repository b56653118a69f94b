"""The small algebra of a fold: any answer is an exact split of the Gram matrix, and what it says of the rest is certain."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams import SPECTRA, orthonormal, rows_of, with_spectrum
from streamsvd.subspace import TRIGGER, leading, polish

KEPT, D = 8, 90
EPS = {"float64": 2.3e-16, "float32": 1.2e-7}


def stack(kind, *, seed=0, defect=0.0, scale=1.0, rows=24):
    """Old rows as a fold leaves them, and new ones: s, V, X, and the matrix M of both."""
    rng = np.random.default_rng(seed)
    stream = rows_of(kind, rng, 200 + rows, D)
    _, s, vt = np.linalg.svd(stream[:200], full_matrices=False)
    V = vt[:KEPT] + defect * rng.standard_normal((KEPT, D))
    X = stream[200:] * scale
    return s[:KEPT], V, X, np.concatenate([s[:KEPT, None] * V, X])


def found_in(s, V, X, *, dtype="float64", **options):
    C, P, XX = V @ V.T, X @ V.T, X @ X.T
    if dtype == "float32":
        P, XX = P.astype(dtype).astype(float), XX.astype(dtype).astype(float)
    return leading(s, C, P, XX, KEPT, single=dtype == "float32", **options)


def assert_split(found, M, *, eps=2.3e-16):
    """Assert ``M'M = (Q'M)'(Q'M) + M'(I - QQ')M`` with w, trace and norm as told."""
    mass = float(np.vdot(M, M))
    B = found.Q.T @ M
    rest = M - found.Q @ B
    np.testing.assert_allclose(found.Q.T @ found.Q, np.eye(found.w.size), rtol=0, atol=1e-13)
    np.testing.assert_allclose(B @ B.T, np.diag(found.w), rtol=0, atol=300 * eps * mass)
    assert found.discarded == pytest.approx(float(np.vdot(rest, rest)), rel=0, abs=30 * eps * mass)
    norm = float(np.linalg.norm(rest, 2) ** 2)
    assert found.top >= norm - 30 * eps * mass
    assert found.top <= found.discarded * (1 + 1e-12)
    assert np.all(np.diff(found.w) <= 0)
    return norm


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", [*SPECTRA, "drift", "heavy tail", "adversarial"])
def test_any_answer_splits_the_stack_exactly(kind, dtype, exact):
    for seed in range(4):
        s, V, X, M = stack(kind, seed=seed)
        found = found_in(s, V, X, dtype=dtype, exact=exact)
        norm = assert_split(found, M, eps=EPS[dtype])
        best = np.linalg.svd(M, compute_uv=False) ** 2
        mass = best.sum()
        assert found.discarded >= best[KEPT:].sum() - 30 * EPS[dtype] * mass
        assert found.discarded <= 2.0 * best[KEPT:].sum() + 30 * EPS[dtype] * mass
        # No direction more than twice as heavy as the least one kept is left out, and the bound of it is sharp.
        assert norm <= TRIGGER * found.w[-1] + 30 * EPS[dtype] * mass
        assert found.top <= 1.5 * norm + 60 * EPS[dtype] * mass


@pytest.mark.parametrize("defect", [1e-9, 1e-7, 1e-6])
def test_the_defect_of_old_rows_does_not_enter_the_energies(defect):
    """With V taken for orthonormal, energies would be off by the defect times s_1^2: far more than the rounding of float32 rows."""
    rng = np.random.default_rng(1)
    V = orthonormal(rng, KEPT, D) + defect * rng.standard_normal((KEPT, D))
    s = np.r_[100.0, np.linspace(1, 0.1, KEPT - 1)]
    X = 30.0 * rng.standard_normal((24, 1)) * V[:1] + 1e-3 * rng.standard_normal((24, D))
    M = np.concatenate([s[:, None] * V, X])
    for exact in (False, True):
        found = found_in(s, V, X, exact=exact)
        assert_split(found, M)
        # The first-order error would be as large as what is discarded, or larger.
        assert found.discarded < 3e3 * defect * float(np.vdot(M, M)) or defect < 1e-8


@given(
    q=st.integers(0, KEPT),
    b=st.integers(1, 30),
    rank=st.integers(0, 12),
    seed=st.integers(0, 999),
    power=st.integers(-12, 12),
)
def test_any_shape_and_rank_is_split_exactly(q, b, rank, seed, power):
    rng = np.random.default_rng(seed)
    V = orthonormal(rng, max(q, 1), D)[:q]
    s = np.sort(rng.uniform(0, 1, q))[::-1] * 10.0**power
    X = rng.standard_normal((b, rank)) @ rng.standard_normal((rank, D))
    M = np.concatenate([s[:, None] * V, X])
    found = found_in(s, V, X)
    assert found.w.size == min(KEPT, q + b)
    assert_split(found, M, eps=1e-15)
    best = np.linalg.svd(M, compute_uv=False) ** 2
    assert found.discarded <= 2.5 * best[KEPT:].sum() + 1e-12 * float(best.sum())


@pytest.mark.parametrize("kappa", [1.0, 1e4, 1e8, 1e12])
def test_polish_gives_orthonormal_rows_and_small_singular_values(kappa):
    rng = np.random.default_rng(2)
    D_, B = np.geomspace(1, 1 / kappa, 10), orthonormal(rng, 10, 40)
    B = B + 0.05 * rng.standard_normal(B.shape) / np.sqrt(40)
    fixed = polish(D_, B @ B.T)
    V = fixed.K @ B
    np.testing.assert_allclose(V @ V.T, np.eye(10), rtol=0, atol=1e-14)
    np.testing.assert_allclose((fixed.Z * fixed.s) @ V, D_[:, None] * B, rtol=0, atol=1e-14)
    np.testing.assert_allclose(fixed.Z.T @ fixed.Z, np.eye(10), rtol=0, atol=1e-13)
    reference = np.linalg.svd(D_[:, None] * B, compute_uv=False)
    assert np.all(np.abs(fixed.s / reference - 1) <= 1e-15 * kappa + 1e-12)
    assert not fixed.again


def test_polish_asks_for_a_second_pass_where_rows_lean_on_each_other():
    B = with_spectrum(np.random.default_rng(3), 10, 40, np.geomspace(1, 1e-4, 10))
    fixed = polish(np.ones(10), B @ B.T)
    assert fixed is None or fixed.again


@pytest.mark.parametrize("C", [np.diag([1.0, 0.0]), np.ones((2, 2)), np.array([[1.0, 2.0], [2.0, 1.0]])])
def test_polish_gives_up_where_cholesky_fails(C):
    fixed = polish(np.ones(2), C)
    assert fixed is None or fixed.again
    assert math.isfinite(TRIGGER)
