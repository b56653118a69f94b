"""svd of a matrix that is held: near the best subspace, certified, the same bits for a seed, at any scale and from any kind of matrix."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from backends import BACKENDS
from streams import with_spectrum
from streamsvd import verify
from streamsvd.arrays import to_numpy
from streamsvd.operators import Csr, centered, product
from streamsvd.randomized import svd

J = np.arange(1.0, 201.0)
SPECTRA = {
    "1/j": 1 / J,
    "slow": J**-0.3,
    "geometric .9": 0.9**J,
    "geometric .5": 0.5**J,
    "flat": np.ones(200),
    "clustered": np.concatenate([np.full(6, 1.0), np.full(6, 0.97), np.full(188, 0.1)]),
    "deficient": np.concatenate([[3.0, 2.0, 1.0], np.zeros(197)]),
    "zero": np.zeros(200),
}
SHAPES = {"tall": (900, 310), "wide": (310, 900)}
WAYS = {
    "krylov": {"method": "krylov"},
    "deep": {"method": "krylov", "passes": 30},
    "subspace": {"method": "subspace"},
    "auto": {},
}
EPS = {"float32": 2e-6, "float64": 1e-13}
K = 10


def matrix(kind, shape="tall", dtype="float64", seed=0):
    return with_spectrum(np.random.default_rng(seed), *SHAPES[shape], SPECTRA[kind]).astype(dtype)


def captured(A, vt):
    return float(np.sum((np.asarray(A, float) @ to_numpy(vt).astype(float).T) ** 2))


def check(A, f, k, *, share=0.98):
    """Everything that a result says is true of the dense matrix A."""
    A = np.asarray(A, dtype=np.float64)
    s = np.linalg.svd(A, compute_uv=False)
    eps, vt, u = EPS[str(to_numpy(f.vt).dtype)], to_numpy(f.vt).astype(float), to_numpy(f.u).astype(float)
    assert vt.shape == (k, A.shape[1])
    assert u.shape == (A.shape[0], k)
    assert verify.orthonormality(vt) < eps
    assert verify.orthonormality(u.T) < eps
    assert captured(A, vt) >= share * np.sum(s[:k] ** 2)
    residual = verify.residual(A, vt)
    assert residual <= f.bound.residual
    assert f.bound.residual <= 1.05 * residual + 100 * f.bound.rounding
    assert np.linalg.norm(A - (A @ vt.T) @ vt, 2) ** 2 <= f.bound.spectral
    low, high = f.bound.sigma
    assert np.all(low <= s[:k])
    assert np.all(s[:k] <= high)
    assert f.bound.optimal[0] <= np.sum(s[k:] ** 2) <= f.bound.optimal[1]
    assert f.energy == pytest.approx(np.sum(s**2), rel=1e-6)
    whole = np.linalg.norm(A - (u * to_numpy(f.s)) @ vt) ** 2
    assert whole <= f.bound.residual + 4 * eps**2 * f.energy + 1e-300


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", SPECTRA)
def test_every_method_finds_and_certifies_every_spectrum(kind, way, shape, dtype):
    A = matrix(kind, shape, dtype)
    f = svd(A, K, **WAYS[way])
    check(A, f, K)
    assert to_numpy(f.vt).dtype == dtype
    assert f.info["missing_energy_upper_estimate"] <= 0.01


@given(
    st.integers(0, 2**32),
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(1, 12),
    st.sampled_from(["krylov", "subspace", "auto"]),
)
def test_any_shape_and_rank_is_certified(seed, n, d, rank, method):
    rank = min(rank, n, d)
    A = np.random.default_rng(seed).standard_normal((n, d)) * np.random.default_rng(seed + 1).choice(
        [0.0, 1.0, 1e-4], d
    )
    check(A, svd(A, rank, method=method, passes=60), rank, share=0.97)


def test_a_small_matrix_is_solved_exactly():
    A = with_spectrum(np.random.default_rng(1), 60, 40, 0.99 ** np.arange(40))
    f = svd(A, 5)
    assert f.info["method"] == "exact"
    assert f.s == pytest.approx(np.linalg.svd(A, compute_uv=False)[:5], rel=1e-13)


def test_the_residual_of_a_low_rank_matrix_is_rounding():
    A = matrix("deficient")
    f = svd(A, 3)
    assert f.bound.residual < 1e-9 * f.energy
    assert f.bound.sigma[1] - f.bound.sigma[0] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("power", [-150, -40, 40, 150])
def test_the_answer_does_not_depend_on_the_scale(power):
    A, factor = matrix("1/j"), 2.0 ** round(power / np.log10(2))
    for method in ("krylov", "subspace"):
        near, far = svd(A, K, method=method), svd(A * factor, K, method=method)
        np.testing.assert_allclose(far.s / factor, near.s, rtol=1e-9)
        assert np.abs(far.vt - near.vt).max() < 1e-6
        assert far.bound.residual_norm == pytest.approx(near.bound.residual_norm * factor, rel=1e-6)
    small = np.float32(10.0) ** np.float32(power / 5)
    check((A * small).astype(np.float32) / small, svd(A.astype(np.float32), K), K)
    f = svd((A * small).astype(np.float32), K, method="krylov")
    assert f.s / small == pytest.approx(near.s, rel=1e-2)


def test_the_same_seed_gives_the_same_bits_and_another_other_bits():
    A = matrix("slow", dtype="float32")
    a, b, c = (svd(A, 3, passes=4, seed=seed) for seed in (5, 5, 6))
    assert np.array_equal(a.vt, b.vt)
    assert np.array_equal(a.u, b.u)
    assert not np.array_equal(a.vt, c.vt)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("way", WAYS)
def test_every_array_library_finds_the_same(backend, way):
    A = matrix("geometric .9")
    f, same = svd(backend(A), K, **WAYS[way]), svd(A, K, **WAYS[way])
    assert type(f.vt) is type(backend(A)[:1, :])
    np.testing.assert_allclose(to_numpy(f.s), same.s, rtol=1e-8)
    check(A, f, K)


def test_sparse_dense_mapped_and_foreign_operators_agree(tmp_path):
    from scipy.sparse.linalg import aslinearoperator

    A = sp.random_array((800, 300), density=0.05, rng=np.random.default_rng(3))
    dense = A.toarray()
    mapped = np.memmap(tmp_path / "a", np.float64, "w+", shape=dense.shape)
    mapped[:] = dense
    want = svd(dense, 6, tol=1e-6)
    for other in (A.tocsr(), A.tocsc(), A.tocoo(), sp.csr_matrix(A), mapped, product(dense, np.ones(300), np.eye(300))):
        f = svd(other, 6, tol=1e-6)
        assert f.s == pytest.approx(want.s, rel=1e-6)
        check(dense, f, 6)
    f = svd(aslinearoperator(A), 6, tol=1e-6)
    assert f.s == pytest.approx(want.s, rel=1e-6)
    assert f.bound is None
    assert np.isnan(f.norm)


def test_wide_and_tall_views_give_the_transposed_answer():
    A = matrix("geometric .9")
    f, g = svd(A, K, tol=1e-8), svd(A.T, K, tol=1e-8)
    np.testing.assert_allclose(f.s, g.s, rtol=1e-8)
    assert verify.angles(f.vt, g.u.T).max() < 1e-3


def test_a_centred_matrix_is_a_pca():
    A = matrix("1/j") + 5.0
    f = svd(centered(A), K)
    check(A - A.mean(axis=0), f, K)
    np.testing.assert_allclose(f.mean, A.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(f.transform(A), (A - A.mean(axis=0)) @ f.vt.T, atol=1e-10)


def test_a_normalised_graph_is_not_formed():
    rng = np.random.default_rng(4)
    A = sp.random_array((500, 300), density=0.03, rng=rng, dtype=np.float32).tocsr()
    A.data[:] = 1
    left = np.where(A.sum(axis=1) > 0, 1 / np.sqrt(np.maximum(A.sum(axis=1), 1)), 0)
    right = np.where(A.sum(axis=0) > 0, 1 / np.sqrt(np.maximum(A.sum(axis=0), 1)), 0)
    op = Csr(A, left, right)
    formed = (op.left[:, None] * A.toarray() * op.right).astype(np.float64)
    f = svd(op, 8, tol=1e-4)
    check(formed, f, 8)
    assert f.s[0] == pytest.approx(1, rel=1e-5)


def test_a_warm_start_needs_one_pass():
    rng = np.random.default_rng(5)
    A = matrix("slow")
    before = svd(A, K, tol=1e-6)
    changed = A + 0.002 * rng.standard_normal(A.shape)
    best = np.sum(np.linalg.svd(changed, compute_uv=False)[:K] ** 2)
    warm = svd(changed, K, warm_start=before)
    cold = svd(changed, K, method="subspace", passes=1)
    assert warm.info["method"] == "subspace"
    assert warm.info["passes"] == 1
    assert captured(changed, warm.vt) > 0.995 * best
    assert captured(changed, cold.vt) < 0.8 * best
    check(changed, warm, K)
    check(changed, svd(changed, K, warm_start=before.vt[:4], method="krylov"), K)
    check(changed.T, svd(changed.T, K, warm_start=before.u.T, method="krylov"), K)


def test_krylov_beats_subspace_iteration_at_equal_work():
    A = matrix("slow")
    by_krylov, by_subspace = (svd(A, K, method=m, passes=p) for m, p in (("krylov", 6), ("subspace", 5)))
    assert by_krylov.info["columns"] <= 5 * by_subspace.info["columns"]
    assert captured(A, by_krylov.vt) > captured(A, by_subspace.vt)


@pytest.mark.parametrize("kind", ["slow", "1/j", "flat"])
def test_a_smaller_tolerance_is_met(kind):
    A = matrix(kind)
    best = np.sum(np.linalg.svd(A, compute_uv=False)[:K] ** 2)
    for tol in (0.1, 0.01, 1e-4):
        f = svd(A, K, tol=tol)
        assert 1 - captured(A, f.vt) / best <= tol
        assert f.info["missing_energy_upper_estimate"] <= tol


def cluster(copies, spread, tail, above=()):
    """A spectrum with a cluster of so many singular values, equal or nearly so, below a few others and above a tail without gaps."""
    head = np.concatenate([above, 1 - spread * np.arange(copies)])
    return np.concatenate([head, tail * min(1.0, head[-1]) / np.arange(1, 301 - head.size) ** 0.3])


CLUSTERS = {
    "20 equal": cluster(20, 0.0, 0.8),
    "40 equal": cluster(40, 0.0, 0.9),
    "40 nearly equal": cluster(40, 1e-4, 0.8),
    "40 close": cluster(40, 3e-3, 0.9),
    "3 above 40 equal": cluster(40, 0.0, 0.5, above=(3.0, 2.5, 2.0)),
    "two of 12": np.concatenate([cluster(12, 0.0, 1.0)[:12], cluster(12, 0.0, 0.6)[: 300 - 12] * 0.95]),
}


@pytest.mark.parametrize("rank", [10, 17, 20, 30, 50])
@pytest.mark.parametrize("kind", CLUSTERS)
def test_the_default_tolerance_is_met_inside_and_across_clusters_wider_than_a_block(kind, rank):
    """A start of b columns finds b copies of a singular value, and nothing in its Krylov space tells of the others."""
    s = CLUSTERS[kind]
    best = np.sum(s[:rank] ** 2)
    for seed in (0, 1):
        A = with_spectrum(np.random.default_rng(seed), 500, 300, s).astype(np.float32)
        for options in ({}, {"passes": 14}):
            f = svd(A, rank, seed=seed, **options)
            assert 1 - captured(A, f.vt) / best <= 0.01
        check(A, f, rank)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [5, 20, 30])
@pytest.mark.parametrize("kind", ["20 equal", "40 close", "3 above 40 equal"])
def test_estimates_hold_on_clusters_over_200_seeds(kind, rank):
    """Where the estimates stopped it, no more is missing than was asked for; the matrix is as large as keeps noise of the start small."""
    s = CLUSTERS[kind]
    A = with_spectrum(np.random.default_rng(0), 500, 300, s).astype(np.float32)
    best, missing, upper = np.sum(s[:rank] ** 2), [], []
    for seed in range(200):
        f = svd(A, rank, seed=seed)
        missing.append(1 - captured(A, f.vt) / best)
        upper.append(f.info["missing_energy_upper_estimate"])
    missing, upper = np.array(missing), np.array(upper)
    seen = missing > 1e-5
    ratio = upper[seen] / missing[seen] if seen.any() else np.ones(1)
    print(
        f"missing at most {missing.max():.5f}; upper / truth: median {np.median(ratio):.2f}, {ratio.min():.2f} .. {ratio.max():.2f}"
    )
    assert missing.max() <= 0.01
    assert ratio.min() > 0.5


@pytest.mark.slow
def test_estimates_are_calibrated_over_200_seeds():
    """On a spectrum without gaps; the estimates are those of the basis, and the certifying pass only adds to what it holds."""
    s = 1 - 0.5 * np.arange(400) / 400
    A = with_spectrum(np.random.default_rng(0), 900, 400, s).astype(np.float32)
    best, upper, point = np.sum(s[:5] ** 2), [], []
    for seed in range(200):
        f = svd(A, 5, passes=8, seed=seed)
        missing = 1 - captured(A, f.vt) / best
        upper.append(f.info["missing_energy_upper_estimate"] / missing)
        point.append(f.info["missing_energy_estimate"] / missing)
    for name, ratio in (("upper", upper), ("point", point)):
        print(f"{name} / truth: median {np.median(ratio):.2f}, {min(ratio):.2f} .. {max(ratio):.2f}")
    assert min(upper) > 1
    assert np.median(upper) < 5
    assert 0.5 < np.median(point) < 2


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"rank": 0}, ValueError, r"expected 1 \.\. 300"),
        ({"rank": 301}, ValueError, r"rank=301 for a matrix of shape \(310, 300\)"),
        ({"rank": 2.5}, TypeError, "whole number"),
        ({"rank": True}, TypeError, "whole number"),
        ({"rank": 3, "method": "lanczos"}, ValueError, "'krylov'"),
        ({"rank": 3, "passes": 0}, ValueError, "at least 1"),
        ({"rank": 3, "oversample": -1}, ValueError, "0 or more"),
        ({"rank": 3, "tol": 1.0}, ValueError, "tol=0.01"),
        ({"rank": 3, "warm_start": np.ones((2, 299))}, ValueError, "append zeros"),
        ({"rank": 3, "warm_start": np.full((2, 300), np.nan)}, ValueError, "NaN"),
    ],
)
def test_bad_options_are_refused_by_name(options, error, words):
    with pytest.raises(error, match=words):
        svd(np.ones((310, 300)), **options)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_entries_that_are_not_finite_are_refused(bad):
    A = np.ones((310, 300))
    A[7, 9] = bad
    for given_ in (A, sp.csr_array(A)):
        with pytest.raises(ValueError, match="row 7, column 9"):
            svd(given_, 3)
