"""Scales and efficiencies of the density power divergence: quartiles, medians and the estimating equation of sigma.

The divergence of Basu, Harris, Hjort and Jones (1998) with a normal model gives a residual ``e`` the weight
``exp(-alpha e^2 / 2 sigma^2)``: alpha = 0 is least squares, a larger alpha is more robust and less efficient.
"""

from __future__ import annotations

import numpy as np

from streamsvd.arrays import Array, namespace, to_numpy
from streamsvd.kernels.rows import all_finite

SAMPLE = 1 << 18


def efficiency(alpha: float, /) -> float:
    """Efficiency of a location under normal noise, ``(1 + alpha^2 / (1 + 2 alpha))^(-3/2)`` (Basu et al. 1998, section 4)."""
    return (1.0 + alpha * alpha / (1.0 + 2.0 * alpha)) ** -1.5


def spread(X: Array, /) -> tuple[float, float, float]:
    """Return the quartiles of all entries (Hazen's rule, NaN left out) and the interquartile range, or what stands for it.

    Where more than half of the entries are one number the range is zero, and the median of the magnitudes stands for it; where that is zero
    too, the root mean square of the magnitudes below the 99th percentile, or of all; 1 for a matrix of zeros.

    Parameters
    ----------
    X : array (n, p)

    Returns
    -------
    low, high, scale : float
        scale is positive.

    Notes
    -----
    Cost: one selection among the n p entries (NumPy), or one sort (elsewhere).
    """
    if isinstance(X, np.ndarray):
        x = X.ravel(order="K")
        x = x if all_finite(X) else x[~np.isnan(x)]
        if x.size == 0:
            return 0.0, 0.0, 1.0
        low, high = (float(q) for q in np.quantile(x, [0.25, 0.75], method="hazen"))
    else:
        xp = namespace(X)
        flat = xp.reshape(X, (-1,))
        present = int(xp.sum(xp.astype(xp.isfinite(flat), xp.int64)))
        if present == 0:
            return 0.0, 0.0, 1.0
        order = xp.sort(xp.where(xp.isfinite(flat), flat, xp.full_like(flat, np.inf)))
        low, high = (_hazen(order, present, share) for share in (0.25, 0.75))
        if not high > low:
            x = to_numpy(order)[:present]
    if high > low:
        return low, high, high - low
    size = np.abs(x)  # pyright: ignore[reportPossiblyUnboundVariable]
    middle = float(np.median(size))
    if middle > 0:
        return low, high, middle
    inner = size[size <= np.quantile(size, 0.99)]
    top = float(size.max())
    if top == 0:
        return low, high, 1.0
    rest = float(np.sqrt(np.mean((inner / top) ** 2)))
    return low, high, top * (rest if rest > 0 else float(np.sqrt(np.mean((size / top) ** 2))))


def medians(X: Array, axis: int, /) -> np.ndarray:
    """Return the median along an axis, NaN left out, zero where nothing is left: array (p,) or (n,), float64.

    Cost: one selection for each row or column (NumPy without NaN), or one sort.
    """
    if isinstance(X, np.ndarray) and all_finite(X):
        return np.median(X, axis=axis).astype(np.float64)
    xp = namespace(X)
    present = xp.isfinite(X)
    order = to_numpy(xp.sort(xp.where(present, X, xp.full_like(X, np.inf)), axis=axis))
    count = to_numpy(xp.sum(xp.astype(present, xp.int64), axis=axis))
    middle = np.stack([np.maximum(count - 1, 0) // 2, np.minimum(count // 2, X.shape[axis] - 1)], axis=axis)
    found = np.take_along_axis(order, middle, axis=axis).astype(np.float64).mean(axis=axis)
    return np.where(count > 0, found, 0.0)


def mdpde_scale(E: Array, alpha: float, /) -> float:
    """Return the root of the estimating equation of sigma, from the median of the magnitudes as a start.

    ``sigma^2 = sum W e^2 / (sum W - N alpha / (1 + alpha)^(3/2))`` with ``W = exp(-alpha e^2 / 2 sigma^2)`` over the N entries
    that are not NaN (Basu et al. 1998, eq. 2.6 for a normal scale): unbiased for normal residuals at every alpha, blind to gross ones.

    Parameters
    ----------
    E : array of residuals
    alpha : float

    Notes
    -----
    Cost: at most 50 passes over 2^18 entries, evenly taken. Zero if more than half of the residuals are zero.
    """
    e = to_numpy(E).reshape(-1)
    e = e[:: max(1, e.size // SAMPLE)]
    e = e[np.isfinite(e)].astype(np.float64)
    top = float(np.abs(e).max(initial=0.0))
    if e.size == 0 or top == 0:
        return 0.0
    e = e / top
    sigma = float(np.median(np.abs(e))) / 0.6744897501960817
    if alpha == 0:
        return top * float(np.sqrt(np.mean(e * e)))
    if sigma == 0:
        return 0.0
    q = e * e
    floor = 0.1 * (1.0 + alpha) ** -1.5
    for _ in range(50):
        w = np.exp(-alpha * q / (2.0 * sigma * sigma))
        share = max(float(np.mean(w)) - alpha / (1.0 + alpha) ** 1.5, floor)
        new = float(np.sqrt(np.mean(w * q) / share))
        if abs(new - sigma) <= 1e-10 * sigma:
            break
        sigma = new
    return top * sigma


def _hazen(order: Array, count: int, share: float) -> float:
    place = min(max(share * count - 0.5, 0.0), count - 1.0)
    below = int(place)
    a, b = float(order[below]), float(order[min(below + 1, count - 1)])
    return a + (place - below) * (b - a)
