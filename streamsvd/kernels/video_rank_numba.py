"""The loops of `streamsvd.kernels.video_numba` for any number of components: one simple pass over the tile for each term."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

ROW = 2096
RIDGE = np.float32(0.5)  # frames' worth of the old background in each solve
_TOP, _ZERO, _ONE, _SATURATED = np.float32(255.0), np.float32(0.0), np.float32(1.0), np.float32(256.0)
_jit: dict[str, Any] = {"nogil": True, "error_model": "numpy", "cache": True}


@numba.njit(**_jit)
def mark_any(out, ws, spare, xs, c, n, channels, wide):
    """Write the mask of a tile; leave the predictions of each channel in the rows from ``spare`` on."""
    limit = ws[(c.size * channels + 1) * ROW : (c.size * channels + 1) * ROW + n]
    out[:] = np.uint8(0)
    for ch in range(channels):
        p, x = ws[spare + ch * ROW : spare + ch * ROW + n], xs[ch * ROW : ch * ROW + n]
        p[:] = _ZERO
        for k in range(c.size):
            u, weight = ws[(k * channels + ch) * ROW : (k * channels + ch) * ROW + n], c[k]
            for i in range(n):
                p[i] += weight * u[i]
        for i in range(n):
            e = np.float32(x[i]) - min(max(p[i], _ZERO), _TOP)
            out[i] |= np.uint8(255) if e * e > limit[i] * wide else np.uint8(0)


@numba.njit(**_jit)
def weigh_any(ws, sums, xs, c, n, channels, slope):
    """Add a frame to the moments of a tile, with the predictions that `mark_any` left."""
    rows, spare = c.size * channels, sums + 2 * ROW
    inverse, total = ws[rows * ROW : rows * ROW + n], ws[sums + ROW : sums + ROW + n]
    sw = ws[sums : sums + n]
    w, d = (
        ws[spare + channels * ROW : spare + channels * ROW + n],
        ws[spare + (channels + 1) * ROW : spare + (channels + 1) * ROW + n],
    )
    d[:] = _ZERO
    w[:] = _ONE
    for ch in range(channels):
        p, x = ws[spare + ch * ROW : spare + ch * ROW + n], xs[ch * ROW : ch * ROW + n]
        for i in range(n):
            e = np.float32(x[i]) - min(max(p[i], _ZERO), _TOP)
            d[i] += e * e
            w[i] = w[i] if p[i] <= _SATURATED else _ZERO
    for i in range(n):
        q = max(_ONE - slope * d[i] * inverse[i], _ZERO) * w[i]
        q *= q
        q *= q
        q *= q
        q *= q
        w[i] = q
        sw[i] += q
        total[i] += q * d[i]
    row = (rows + 2) * ROW
    for k in range(c.size):
        for j in range(k + 1):
            target, weight = ws[row : row + n], c[k] * c[j]
            for i in range(n):
                target[i] += w[i] * weight
            row += ROW
    for k in range(c.size):
        for ch in range(channels):
            target, weight, x = ws[row : row + n], c[k], xs[ch * ROW : ch * ROW + n]
            for i in range(n):
                target[i] += w[i] * weight * np.float32(x[i])
            row += ROW


@numba.njit(**_jit)
def solve_any(ws, n, rank, channels):
    """Solve (A + ridge) u = b + ridge u_old at each pixel by Cholesky; the ridge holds directions that no frame has shown of late."""
    a, y = np.zeros((rank, rank), np.float32), np.zeros(rank, np.float32)
    first = (rank * channels + 2) * ROW
    moments = first + rank * (rank + 1) // 2 * ROW
    for i in range(n):
        for k in range(rank):
            for j in range(k + 1):
                s = ws[first + (k * (k + 1) // 2 + j) * ROW + i]
                for q in range(j):
                    s -= a[k, q] * a[j, q]
                a[k, j] = np.sqrt(max(s + RIDGE, np.float32(1e-6))) if j == k else s / a[j, j]
        for ch in range(channels):
            for k in range(rank):
                at = (k * channels + ch) * ROW + i
                s = ws[moments + at] + RIDGE * ws[at]
                for q in range(k):
                    s -= a[k, q] * y[q]
                y[k] = s / a[k, k]
            for k in range(rank - 1, -1, -1):
                s = y[k]
                for q in range(k + 1, rank):
                    s -= a[q, k] * y[q]
                y[k] = s / a[k, k]
                ws[(k * channels + ch) * ROW + i] = y[k]
