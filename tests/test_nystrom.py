"""Nyström sketches: never above the matrix, near its best eigenpairs, and linear in it."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from backends import BACKENDS
from streams import orthonormal
from streamsvd.arrays import to_numpy
from streamsvd.nystrom import nystrom, start

D = 80


def psd(w, seed=0):
    Q = orthonormal(np.random.default_rng(seed), D, D)
    return (Q.T * w) @ Q


W = 0.7 ** np.arange(D)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "w", [W, 1 / np.arange(1, D + 1.0) ** 2, np.where(np.arange(D) < 5, 1.0, 0.0), np.ones(D), np.zeros(D)]
)
def test_the_approximation_lies_below_the_matrix_and_is_near_the_best(w, dtype):
    A = psd(w)
    f = nystrom(A.astype(dtype), 5)
    eps = 1e-5 if dtype == "float32" else 1e-12
    vt, s = f.vt.astype(float), f.s.astype(float)
    assert np.abs(vt @ vt.T - np.eye(5)).max() < eps
    assert np.linalg.eigvalsh(A - (vt.T * s) @ vt).min() > -10 * eps
    assert np.all(s <= np.sort(w)[::-1][:5] + eps)
    best = np.sum(np.sort(w)[::-1][5:])
    assert np.sum(w) - np.sum(s) <= 1.6 * best + 100 * eps
    assert f.info["residual_trace"] == pytest.approx(np.sum(w) - np.sum(s), abs=100 * eps)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_array_library_finds_the_same(backend):
    A = psd(W)
    f = nystrom(backend(A), 4)
    assert type(f.vt) is type(backend(A)[:1, :])
    np.testing.assert_allclose(to_numpy(f.s), nystrom(A, 4).s, rtol=1e-8)


def test_terms_add_up_to_the_sum_in_any_order():
    terms = [np.outer(x, x) for x in np.random.default_rng(1).standard_normal((12, D))]
    empty = start(D, 6)
    one, two, whole = empty, empty, nystrom(sum(terms), 6)
    for i, term in enumerate(terms):
        one, two = (one.update(sp.csr_array(term)), two) if i % 3 else (one, two.update(term))
    for both in (one.merge(two), two.merge(one)):
        np.testing.assert_allclose(both.factors().s, whole.s, rtol=1e-9)
    assert np.array_equal(empty.sketch, np.zeros_like(empty.sketch))


@pytest.mark.parametrize("power", [-120, 120])
def test_the_scale_does_not_matter(power):
    A = psd(W)
    np.testing.assert_allclose(nystrom(A * 10.0**power, 5).s / 10.0**power, nystrom(A, 5).s, rtol=1e-9)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: nystrom(np.ones((3, 4)), 1), "symmetric positive semidefinite"),
        (lambda: nystrom(np.eye(4), 5), r"1 \.\. 4"),
        (lambda: start(4, 2).update(np.eye(5)), r"shape \(4, 4\)"),
        (lambda: start(4, 1).merge(start(4, 1, seed=1)), "different test matrices"),
    ],
)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
