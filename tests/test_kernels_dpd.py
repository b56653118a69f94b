"""Weighted half-steps: each Numba loop agrees with its array-API twin and with the formula, and no weight becomes 0 / 0."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import BACKENDS, plain, strict
from streamsvd.arrays import to_numpy
from streamsvd.kernels import dpd

SHAPES = [(1, 1), (1, 700), (700, 1), (37, 513), (530, 300)]
TOLERANCE = {"float64": 1e-12, "float32": 2e-5}


def problem(shape, dtype="float64", missing=0.1, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal(shape)
    X[rng.random(shape) < missing] = np.nan
    return X.astype(dtype), rng.standard_normal(shape[1]), rng.standard_normal(shape[0])


def formula(X, b, c, k):
    """The step as it is written down, in float64 and with every weight."""
    there = np.isfinite(X)
    x = np.where(there, X, 0.0).astype(np.float64)
    W = np.where(there, np.exp(-k * (x - np.outer(c, b)) ** 2), 0.0)
    down = W @ (b * b)
    return np.divide((W * x) @ b, down, out=np.zeros(len(c)), where=down > 0), W.sum(axis=1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("backend", BACKENDS)
def test_both_steps_are_the_formula(backend, dtype, shape):
    X, b, c = problem(shape, dtype)
    tolerance = TOLERANCE[dtype]
    b, c = (v.astype(dtype).astype(float) for v in (b, c))
    for found, expected in (
        (dpd.left(backend(X), b, c, 0.7), formula(X, b, c, 0.7)),
        (dpd.right(backend(X), c, b, 0.7), formula(X.T, c, b, 0.7)),
    ):
        for mine, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=tolerance * max(1.0, np.abs(theirs).max()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_weights_are_exponentials_and_zero_where_missing(backend, dtype):
    X, b, c = problem((40, 90), dtype)
    fit, rate = np.outer(c, b).astype(dtype), np.linspace(0.1, 3, 90).astype(dtype)
    W = to_numpy(dpd.weigh(backend(X), backend(fit), backend(rate)))
    expected = np.where(np.isfinite(X), np.exp(-rate * (np.nan_to_num(X) - fit).astype(float) ** 2), 0.0)
    assert W.dtype == dtype
    np.testing.assert_allclose(W, expected, rtol=0, atol=TOLERANCE[dtype] / 10)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_exponential_is_exact_to_the_dtype(dtype):
    e = np.linspace(0, 26 if dtype == "float64" else 9, 200_001).astype(dtype)[None, :]
    W = dpd.weigh(e, np.zeros_like(e), np.ones(e.shape[1], dtype))
    error = np.abs(W / np.exp(-(e.astype(np.longdouble) ** 2)) - 1)
    rounding = 1 + e.astype(float) ** 2  # of the square, which enters the exponent
    assert np.max(error / rounding) < (1e-14 if dtype == "float64" else 4e-7)


@pytest.mark.parametrize("backend", [plain, strict])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_row_far_from_everything_is_weighted_by_its_nearest_entry(backend, dtype):
    X, b, c = problem((6, 50), dtype, missing=0.0)
    X[2] = 1e4 * b
    X[4, :] = np.nan
    new, mass = dpd.left(backend(X), b, c, 1.0)
    assert mass[2] == 0
    assert new[4] == mass[4] == 0
    # As its nearest entry alone counts, the quotient there is that entry's own.
    j = int(np.argmin(np.abs(X[2] - c[2] * b.astype(dtype))))
    assert new[2] == pytest.approx(X[2, j] / b[j], rel=1e-3)
    assert np.isfinite(new).all()


def test_threads_change_no_bit():
    X, b, c = problem((1500, 900))
    with ThreadPoolExecutor(3) as pool:
        for step, u, v in ((dpd.left, b, c), (dpd.right, c, b)):
            for mine, theirs in zip(step(X, u, v, 0.5, pool=pool), step(X, u, v, 0.5), strict=True):
                np.testing.assert_array_equal(mine, theirs)


def test_float32_adds_long_columns_in_float64():
    X = np.ones((400_000, 1), np.float32)
    _, mass = dpd.right(X, np.zeros(400_000), np.zeros(1), 0.1)
    # Equal terms are the worst case of the short sums in float32; one long sum would be wrong by 1e-3.
    assert mass[0] == pytest.approx(400_000 * np.exp(-0.1), rel=1e-5)
    assert np.cumsum(X * np.float32(np.exp(-0.1)), dtype=np.float32)[-1] != pytest.approx(mass[0], rel=2e-4)


@given(seed=st.integers(0, 10**6), k=st.floats(0.01, 5), gross=st.floats(0, 100))
def test_a_step_never_lowers_the_objective(seed, k, gross):
    X, b, c = problem((13, 9), seed=seed)
    X = np.where(np.random.default_rng(seed).random(X.shape) < 0.2, gross, X)
    new, before = dpd.left(X, b, c, k)
    _, after = dpd.left(X, b, new, k)
    assert (after >= before - 1e-12).all()
    new, before = dpd.right(X, c, b, k)
    _, after = dpd.right(X, c, new, k)
    assert (after >= before - 1e-12).all()
