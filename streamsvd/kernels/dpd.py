"""Half-steps of weighted regression with the weights of the density power divergence, each one pass over the matrix.

With a residual ``e`` and the rate ``k = alpha / (2 sigma^2)`` an entry has the weight ``exp(-k e^2)``, and a missing entry (NaN) has none.
Each function has the same meaning on every backend. NumPy runs a Numba loop that stores nothing of the size of the matrix;
any other namespace runs the array-API twin, which is also the oracle of the loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.arrays import Array, from_numpy, namespace, to_numpy

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

# A sum of weights below this is taken again relative to its nearest entry, so that a row far from everything gives no 0 / 0.
SMALL = {"float32": 1e-30, "float64": 1e-280}
SHARE = 1 << 18  # entries that are worth a thread
TILE = 256


def left(
    X: Array, b: np.ndarray, c: np.ndarray, k: float, /, *, pool: Executor | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """One step of iteratively reweighted least squares for the coefficient of every row.

    ``c_i <- sum_j W_ij x_ij b_j / sum_j W_ij b_j^2`` with ``W_ij = exp(-k (x_ij - c_i b_j)^2)``, a majorise-minimise step of
    ``-sum_j W_ij`` (Roy, Basu and Ghosh 2023, arXiv 2109.10680, alternating regression).

    Parameters
    ----------
    X : array (n, p), float32 or float64, row-major; NaN marks what is missing
    b : array (p,)
        The right vector.
    c : array (n,)
        The coefficients before.
    k : float
        ``alpha / (2 sigma^2)``.
    pool : concurrent.futures.Executor, optional
        Threads among which the rows are divided; the bits do not depend on it.

    Returns
    -------
    c : array (n,), float64
        Zero for a row without entries. A row whose weights all underflow is weighted relative to its nearest entry.
    mass : array (n,), float64
        ``sum_j W_ij``, at the coefficients before.

    Notes
    -----
    Cost: one exponential and about 10 flops an entry; memory ``O(n + p)``, for the twin ``O(n p)``.
    """
    if isinstance(X, np.ndarray):
        return _numba_step("left", X, b, c, k, pool)
    return _step(X, b, c, k, 1)


def right(
    X: Array, a: np.ndarray, d: np.ndarray, k: float, /, *, pool: Executor | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The same step for the coefficient of every column: ``left`` of the transpose, without transposing.

    Parameters
    ----------
    X : array (n, p), float32 or float64, row-major; NaN marks what is missing
    a : array (n,)
        The left vector.
    d : array (p,)
        The coefficients before.
    k : float
        ``alpha / (2 sigma^2)``.
    pool : concurrent.futures.Executor, optional
        Threads among which the columns are divided; the bits do not depend on it.

    Returns
    -------
    d, mass : array (p,), array (p,), float64

    Notes
    -----
    Cost: as for ``left``.
    """
    if isinstance(X, np.ndarray):
        return _numba_step("right", X, a, d, k, pool)
    return _step(X, a, d, k, 0)


def weigh(X: Array, fit: Array, k: Array, /) -> Array:
    """Return the weights ``exp(-k_j (x_ij - fit_ij)^2)``, zero where X is NaN.

    Parameters
    ----------
    X, fit : array (n, p), of one dtype
    k : array (p,)
        ``alpha / (2 sigma_j^2)`` for every column.

    Returns
    -------
    W : array (n, p), in the dtype of X

    Notes
    -----
    Cost: one exponential an entry.
    """
    if isinstance(X, np.ndarray):
        from streamsvd.kernels import dpd_numba

        X, fit = np.ascontiguousarray(X), np.ascontiguousarray(fit, X.dtype)
        out = np.empty(X.shape, X.dtype)
        dpd_numba.weigh(out, X, fit, np.ascontiguousarray(k, X.dtype), 0, X.shape[0])
        return out
    xp = namespace(X)
    present = xp.isfinite(X)
    E = xp.where(present, X - fit, xp.zeros_like(X))
    return xp.where(present, xp.exp(-k[None, :] * (E * E)), xp.zeros_like(X))


def _numba_step(
    name: str, X: np.ndarray, v: np.ndarray, old: np.ndarray, k: float, pool: Executor | None
) -> tuple[np.ndarray, np.ndarray]:
    from streamsvd.kernels import dpd_numba

    loop: Callable[..., None] = getattr(dpd_numba, name)
    size = old.shape[0]
    v, old = (np.ascontiguousarray(x, X.dtype) for x in (v, old))
    new, mass = np.empty(size), np.empty(size)
    arguments = (new, mass, X, v, old, X.dtype.type(k), SMALL[X.dtype.name])
    if pool is None or X.size < 2 * SHARE:
        loop(*arguments, 0, size)
        return new, mass
    # A row or column belongs to one thread, so no sum depends on how many threads there are.
    part = TILE * max(1, SHARE * size // (X.size * TILE))
    list(pool.map(lambda start: loop(*arguments, start, min(start + part, size)), range(0, size, part)))
    return new, mass


def _step(X: Any, v: np.ndarray, old: np.ndarray, k: float, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """The twin: every weight relative to the largest of its row (axis 1) or column (axis 0), which changes no quotient."""
    xp = namespace(X)
    V, C = (xp.astype(from_numpy(np.asarray(x, np.float64), like=X), X.dtype) for x in (v, old))
    V, C = xp.expand_dims(V, axis=1 - axis), xp.expand_dims(C, axis=axis)
    present, zero = xp.isfinite(X), xp.zeros_like(X)
    E = xp.where(present, X - C * V, zero)
    Q = k * (E * E)
    matters = present & (xp.abs(V) > 0)
    low = xp.min(xp.where(matters, Q, xp.full_like(X, np.inf)), axis=axis, keepdims=True)
    low = xp.where(xp.isfinite(low), low, xp.zeros_like(low))
    W = xp.where(matters, xp.exp(xp.minimum(low - Q, zero)), zero) * V
    up = xp.sum(xp.astype(W * xp.where(present, X, zero), xp.float64), axis=axis)
    down = xp.sum(xp.astype(W * V, xp.float64), axis=axis)
    mass = xp.sum(xp.astype(xp.where(present, xp.exp(-Q), zero), xp.float64), axis=axis)
    safe = xp.where(down > 0, down, xp.ones_like(down))
    return to_numpy(xp.where(down > 0, up / safe, xp.zeros_like(up))), to_numpy(mass)
