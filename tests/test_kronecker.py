"""The mode-wise posterior is the dense one, for any number of factors, real or complex, and stays exact where the noise vanishes."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import BACKENDS
from streamsvd.arrays import to_numpy
from streamsvd.kronecker import kron, kron_form, mode_product, multi_product, nearest_kronecker, outer, posterior


def numbers(rng, *shape, complex_=False):
    x = rng.standard_normal(shape)
    return x + 1j * rng.standard_normal(shape) if complex_ else x


def dense(H, gammas, y, noise):
    """Mean, variances and cost from the formulas as they are written."""
    A, g, y = reduce(np.kron, H), reduce(np.kron, gammas), y.reshape(-1)
    C = noise * np.eye(A.shape[0]) + (A * g) @ A.conj().T
    K = np.linalg.solve(C, A * g)
    variance = g - np.real(np.sum((A * g).conj() * K, axis=0))
    cost = np.linalg.slogdet(C)[1] + np.real(y.conj() @ np.linalg.solve(C, y))
    return (K.conj().T @ y), variance, cost


@st.composite
def problems(draw):
    d = draw(st.integers(1, 4))
    largest = {1: 9, 2: 6, 3: 4, 4: 3}[d]
    shapes = [(draw(st.integers(1, largest)), draw(st.integers(1, largest))) for _ in range(d)]
    rng, complex_ = np.random.default_rng(draw(st.integers(0, 2**31))), draw(st.booleans())
    H = []
    for m, n in shapes:
        rank = draw(st.integers(1, min(m, n)))
        H.append(numbers(rng, m, rank, complex_=complex_) @ numbers(rng, rank, n, complex_=complex_))
    gammas = [rng.random(n) * (rng.random(n) > 0.2) for _, n in shapes]
    return H, gammas, numbers(rng, *(m for m, _ in shapes), complex_=complex_), draw(st.sampled_from([1e-3, 0.1, 3.0]))


@given(problems(), st.booleans())
def test_posterior_is_the_dense_one(problem, exact):
    H, gammas, y, noise = problem
    found = posterior(kron_form(H, gammas, exact=exact), y, noise)
    mean, variance, cost = dense(H, gammas, y, noise)
    scale = np.abs(mean).max() + 1e-3
    np.testing.assert_allclose(found.mean.reshape(-1), mean, atol=1e-7 * scale)
    np.testing.assert_allclose(found.variance.reshape(-1), variance, atol=1e-9)
    assert found.cost == pytest.approx(cost, rel=1e-6, abs=1e-6)
    share = (1 - variance / np.where((g := reduce(np.kron, gammas)) > 0, g, 1))[g > 0]
    assert found.freedom == pytest.approx(share.sum(), rel=1e-6, abs=1e-6)


@given(problems())
def test_multi_product_is_the_kronecker_product(problem):
    H, gammas, _, _ = problem
    x = outer(gammas)
    whole = reduce(np.kron, H)
    np.testing.assert_allclose(kron(H), whole, atol=1e-12)
    np.testing.assert_allclose(multi_product(x, H).reshape(-1), whole @ x.reshape(-1), atol=1e-10)
    one = x
    for mode, A in enumerate(H):
        one = mode_product(one, A, mode=mode)
    np.testing.assert_allclose(one, multi_product(x, H), atol=1e-10)


def test_leading_axes_are_a_batch():
    rng = np.random.default_rng(1)
    H = [numbers(rng, 3, 2, 4), numbers(rng, 3, 3, 2)]
    gammas, y, noise = [rng.random((3, 4)), rng.random((3, 2))], numbers(rng, 3, 2, 3), rng.random(3) + 0.1
    found = posterior(kron_form(H, gammas), y, noise)
    for f in range(3):
        alone = posterior(kron_form([A[f] for A in H], [g[f] for g in gammas]), y[f], noise[f])
        np.testing.assert_allclose(found.mean[f], alone.mean, rtol=1e-12)
        np.testing.assert_allclose(found.cost[f], alone.cost, rtol=1e-12)


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("noise", [1e-6, 1e-10, 1e-12])
def test_mean_is_right_to_nine_digits_at_tiny_noise(noise, complex_):
    """The reference is the dense formula in 50 digits; ``sigma^-2 Sigma H'y`` in doubles is off by up to a factor here."""
    mpmath = pytest.importorskip("mpmath")
    rng = np.random.default_rng(2)
    H = [numbers(rng, 3, 4, complex_=complex_), numbers(rng, 2, 3, complex_=complex_)]
    gammas, y = [rng.random(4) + 0.1, rng.random(3) + 0.1], numbers(rng, 3, 2, complex_=complex_)
    with mpmath.workdps(50):
        A = [mpmath.matrix(h.tolist()) for h in H]
        whole = mpmath.matrix(6, 12)
        for i in np.ndindex(3, 2, 4, 3):
            whole[i[0] * 2 + i[1], i[2] * 3 + i[3]] = A[0][i[0], i[2]] * A[1][i[1], i[3]]
        G = mpmath.diag([mpmath.mpf(float(a)) * mpmath.mpf(float(b)) for a in gammas[0] for b in gammas[1]])
        C = mpmath.mpf(noise) * mpmath.eye(6) + whole * G * whole.transpose_conj()
        solved = mpmath.lu_solve(C, mpmath.matrix(y.reshape(-1).tolist()))
        true = np.array([complex(v) for v in G * whole.transpose_conj() * solved])
    found = posterior(kron_form(H, gammas), y, noise).mean.reshape(-1)
    assert np.linalg.norm(found - true) <= 1e-9 * np.linalg.norm(true)


def test_variances_keep_their_digits_where_the_data_determine_everything():
    rng = np.random.default_rng(3)
    H, noise = [numbers(rng, 6, 3), numbers(rng, 5, 2)], 1e-12
    found = posterior(kron_form(H, [np.ones(3), np.ones(2)]), numbers(rng, 6, 5), noise).variance
    A = np.kron(*H)
    limit = noise * np.diag(np.linalg.inv(A.T @ A)).reshape(3, 2)
    np.testing.assert_allclose(found, limit, rtol=1e-9)


def test_a_dictionary_without_full_rank_adds_nothing_at_tiny_noise():
    rng = np.random.default_rng(4)
    thin = numbers(rng, 4, 2) @ numbers(rng, 2, 5)
    x = numbers(rng, 5, 3)
    other = numbers(rng, 3, 3)
    y = thin @ x @ other.T
    found = posterior(kron_form([thin, other], [np.ones(5), np.ones(3)]), y, 1e-12)
    shortest = np.linalg.pinv(thin) @ y @ np.linalg.inv(other).T
    np.testing.assert_allclose(found.mean, shortest, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("complex_", [False, True])
def test_every_backend_gives_the_same(backend, complex_):
    rng = np.random.default_rng(5)
    H = [numbers(rng, 3, 4, complex_=complex_), numbers(rng, 4, 2, complex_=complex_)]
    gammas, y = [rng.random(4), rng.random(2)], numbers(rng, 3, 4, complex_=complex_)
    plain = posterior(kron_form(H, gammas), y, 0.1)
    for exact in (True, False):
        form = kron_form([backend(h) for h in H], [backend(g) for g in gammas], exact=exact)
        found = posterior(form, backend(y), backend(np.asarray(0.1)))
        np.testing.assert_allclose(to_numpy(found.mean), plain.mean, atol=1e-12)
        np.testing.assert_allclose(to_numpy(found.variance), plain.variance, atol=1e-12)


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("shapes", [[(2, 3), (4, 2)], [(2, 2), (3, 1), (2, 3)]])
def test_nearest_kronecker_finds_a_kronecker_product_and_the_distance_from_it(shapes, complex_):
    rng = np.random.default_rng(6)
    true = kron([numbers(rng, *shape, complex_=complex_) for shape in shapes])
    factors, residual = nearest_kronecker(true, shapes)
    np.testing.assert_allclose(kron(factors), true, atol=1e-10)
    assert residual <= 1e-10
    noisy = true + 0.1 * numbers(rng, *true.shape, complex_=complex_)
    factors, residual = nearest_kronecker(noisy, shapes)
    assert residual == pytest.approx(np.linalg.norm(noisy - kron(factors)))
    assert residual <= np.linalg.norm(noisy - true)


def test_nearest_kronecker_of_two_factors_is_the_optimum():
    rng = np.random.default_rng(7)
    A = numbers(rng, 6, 6)
    residual = nearest_kronecker(A, [(2, 3), (3, 2)])[1]
    rearranged = A.reshape(2, 3, 3, 2).transpose(0, 2, 1, 3).reshape(6, 6)
    assert residual**2 == pytest.approx(np.sum(np.linalg.svd(rearranged, compute_uv=False)[1:] ** 2), rel=1e-6)


def test_shapes_that_do_not_multiply_are_named():
    with pytest.raises(ValueError, match=r"matrix \(4, 4\).*\(6, 4\)"):
        nearest_kronecker(np.eye(4), [(2, 2), (3, 2)])
