"""Numba loops that judge a frame on a sample of its pixels: gains, weights, edges."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

_jit: dict[str, Any] = {"nogil": True, "error_model": "numpy", "cache": True}
_fast = {"contract", "reassoc", "nsz"}
STEPS = 2


@numba.njit(**_jit)
def take(x, near, frame, index, channels):
    """Gather the sampled pixels and their right neighbours of one frame as (channels, S) float32."""
    for i in range(index.size):
        at = channels * index[i]
        for ch in range(channels):
            x[ch, i] = frame[at + ch]
            near[ch, i] = frame[at + channels + ch]


@numba.njit(**_jit)
def predict(p, u, c):
    """Write sum_k c_k u_k; p (channels, S), u (rank, channels, S)."""
    p[:] = np.float32(0.0)
    for k in range(c.size):
        for ch in range(p.shape[0]):
            for i in range(p.shape[1]):
                p[ch, i] += c[k] * u[k, ch, i]


@numba.njit(fastmath=_fast, **_jit)
def weights(w, x, p, s2, slope):
    """Write the DPD weight of each sampled pixel and return their mean; saturated pixels have weight 0 and do not count."""
    total, count = np.float32(0.0), np.float32(0.0)
    for i in range(w.size):
        d, peak = np.float32(0.0), np.float32(0.0)
        for ch in range(x.shape[0]):
            peak = max(peak, p[ch, i])
            e = x[ch, i] - min(p[ch, i], np.float32(255.0))
            d += e * e
        q = max(np.float32(1.0) - slope * d / s2[i], np.float32(0.0))
        q *= q
        q *= q
        q *= q
        q *= q
        total += q
        count += np.float32(1.0)
        w[i] = q if peak <= np.float32(256.0) else np.float32(0.0)
    return total / max(count, np.float32(1.0))


@numba.njit(**_jit)
def irls(c, x, u, s2, slope, w, p):
    """Take ``STEPS`` reweighted least-squares steps from c, in place, and return the mean weight at the result."""
    rank = c.size
    a, y = np.zeros((rank, rank)), np.zeros(rank)
    for _ in range(STEPS):
        predict(p, u, c)
        weights(w, x, p, s2, slope)
        _normal(a, y, x, u, w)
        if a[0, 0] < 1e-3 * w.size:  # nothing bright enough to tell a gain from
            break
        # A share of the old coefficients holds directions that the sample does not show.
        for k in range(rank):
            hold = 1e-6 * a[0, 0] + (1e-3 * a[k, k] if k else 0.0)
            a[k, k] += hold
            y[k] += hold * c[k]
        new = np.linalg.solve(a, y)
        for k in range(rank):
            c[k] = np.float32(new[k])
    predict(p, u, c)
    return weights(w, x, p, s2, slope)


@numba.njit(fastmath=_fast, **_jit)
def _normal(a, y, x, u, w):
    for k in range(y.size):
        total = np.float32(0.0)
        for ch in range(x.shape[0]):
            for i in range(w.size):
                total += w[i] * u[k, ch, i] * x[ch, i]
        y[k] = total
        for j in range(k + 1):
            total = np.float32(0.0)
            for ch in range(x.shape[0]):
                for i in range(w.size):
                    total += w[i] * u[k, ch, i] * u[j, ch, i]
            a[k, j] = total
            a[j, k] = total


@numba.njit(**_jit)
def ratio(x, p):
    """Return the median of x / p over sampled values that are neither dark nor saturated, or 1 where there are none."""
    found = np.empty(x.size, np.float32)
    count = 0
    for ch in range(x.shape[0]):
        for i in range(x.shape[1]):
            if x[ch, i] < 250 and p[ch, i] > 12:
                found[count] = x[ch, i] / p[ch, i]
                count += 1
    return np.float32(np.median(found[:count])) if count else np.float32(1.0)


@numba.njit(fastmath=_fast, **_jit)
def edges(x, near, p, p_near):
    """Return sum |dx| over sum |dp| of the steps to the right neighbour, and the share of sum |dp| that dx follows in sign and size.

    One gray level is added to each pixel, for flat pictures.
    """
    seen, expected, shared = np.float32(0.0), np.float32(0.0), np.float32(0.0)
    for ch in range(x.shape[0]):
        for i in range(x.shape[1]):
            dx, dp = near[ch, i] - x[ch, i], p_near[ch, i] - p[ch, i]
            both = min(abs(dx), abs(dp))
            seen += abs(dx)
            expected += abs(dp)
            shared += both if dx * dp > np.float32(0.0) else -both
    level = np.float32(x.size)
    return (seen + level) / (expected + level), (shared + level) / (expected + level)


@numba.njit(fastmath=_fast, **_jit)
def brightness(x, p, s2, slope):
    """Return the mean weight of a colour frame by its luma alone (blue, green, red)."""
    total = np.float32(0.0)
    for i in range(s2.size):
        e = np.float32(0.114) * (x[0, i] - min(p[0, i], np.float32(255.0)))
        e += np.float32(0.587) * (x[1, i] - min(p[1, i], np.float32(255.0)))
        e += np.float32(0.299) * (x[2, i] - min(p[2, i], np.float32(255.0)))
        q = max(np.float32(1.0) - slope * e * e / s2[i], np.float32(0.0))
        q *= q
        q *= q
        q *= q
        q *= q
        total += q
    return total / np.float32(max(s2.size, 1))


@numba.njit(**_jit)
def crowded(x, p, s2, cell, totals, rule, wide):
    """Return the share of grid cells in which more than 80 % of the sampled pixels are foreground."""
    hits = np.zeros(totals.size, np.int64)
    for i in range(s2.size):
        most = np.float32(0.0)
        for ch in range(x.shape[0]):
            e = x[ch, i] - min(p[ch, i], np.float32(255.0))
            most = max(most, e * e)
        if most > max(rule[0] * s2[i], rule[1]) * wide:
            hits[cell[i]] += 1
    full, there = 0, 0
    for j in range(totals.size):
        there += totals[j] > 0
        full += totals[j] > 0 and hits[j] > 0.8 * totals[j]
    return full / max(there, 1)


@numba.njit(**_jit)
def inspect(stats, c, frame, index, cell, totals, u, u_near, s2, low, slope, rule):
    """Fit the coefficients of a frame on the sample, in place of c, and write what a judge needs.

    ``stats`` (7,): mean weight, that of the fit from c alone, median of x over the prediction (1 where it was not needed), crowded, edges,
    their shared part, mean weight by luma.
    A fit that explains less than ``low`` is tried again from the median ratio, for a jump of the exposure leaves no weight to climb by.
    """
    channels = u.shape[1]
    shape = (channels, index.size)
    x, near, p = np.empty(shape, np.float32), np.empty(shape, np.float32), np.empty(shape, np.float32)
    w, start = np.empty(index.size, np.float32), c.copy()
    take(x, near, frame, index, channels)
    q = irls(c, x, u, s2, slope, w, p)
    stats[1], stats[2] = q, np.float32(1.0)
    if q < low:
        predict(p, u, start)
        r = ratio(x, p)
        stats[2] = r
        if np.float32(0.4) < r < np.float32(2.5):
            again = start * r
            found = irls(again, x, u, s2, slope, w, p)
            if found > np.float32(1.2) * q:
                q = found
                c[:] = again
        predict(p, u, c)
    stats[0] = q
    wide = max(np.float32(1.0), c[0] * c[0])
    stats[3] = crowded(x, p, s2, cell, totals, rule, wide)
    p_near = np.empty_like(p)
    predict(p_near, u_near, c)
    stats[4], stats[5] = edges(x, near, p, p_near)
    stats[6] = brightness(x, p, s2, slope) if channels == 3 else q
