"""Numba loops over whole pictures beside the sweep: order statistics over frames, the 5 x 5 median, predictions as bytes, luma."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

DAZZLED = np.float32(36.0)
_jit: dict[str, Any] = {"nogil": True, "error_model": "numpy", "cache": True}


@numba.njit(**_jit)
def order(out, frames, rank, start, n, center):
    """Write the order statistic ``rank`` over frames of the values start .. start + n, or of their distances from ``center``.

    The value is found bit by bit from counts, so that every step is a comparison of bytes that vectorises.
    """
    count, low = np.empty(n, np.uint8), np.empty(n, np.uint8)
    out[:n] = np.uint8(0)
    far = center.size > 0
    for bit in range(7, -1, -1):
        count[:] = np.uint8(0)
        for i in range(n):
            low[i] = out[i] | np.uint8(1 << bit)
        for f in range(frames.shape[0]):
            x = frames[f, start : start + n]
            if far:
                for i in range(n):
                    d = x[i] - center[i] if x[i] > center[i] else center[i] - x[i]
                    count[i] += np.uint8(np.uint8(d) < low[i])
            else:
                for i in range(n):
                    count[i] += np.uint8(x[i] < low[i])
        for i in range(n):
            out[i] = low[i] if count[i] <= rank else out[i]


@numba.njit(**_jit)
def begin(u, s2, frames, channels, tile):
    """Write the median of each value over frames into u (channels, m) and a clipped squared MAD into s2 (m,)."""
    b, m = frames.shape[0], s2.size
    low, high, mid = np.empty(tile * channels, np.uint8), np.empty(tile * channels, np.uint8), np.empty(0, np.uint8)
    half = np.float32(0.5)
    for start in range(0, m, tile):
        n = min(tile, m - start)
        width = n * channels
        order(low, frames, (b - 1) // 2, start * channels, width, mid)
        order(high, frames, b // 2, start * channels, width, mid)
        for i in range(n):
            for ch in range(channels):
                u[ch, start + i] = half * (np.float32(low[i * channels + ch]) + np.float32(high[i * channels + ch]))
        order(low, frames, b // 2, start * channels, width, high[:width])
        for i in range(n):
            total, peak = np.float32(0.0), np.float32(0.0)
            for ch in range(channels):
                mad = np.float32(1.4826) * np.float32(low[i * channels + ch])
                total += mad * mad
                peak = max(peak, u[ch, start + i])
            # The spread of a saturated value says nothing of the noise it will have in less light.
            least = np.float32(4.0) if peak < np.float32(254.0) else DAZZLED
            s2[start + i] = min(max(total / np.float32(channels), least), np.float32(100.0))


@numba.njit(**_jit)
def median5(out, mask, shape):
    """Write the 5 x 5 median of a binary mask, borders repeated: more than 12 of 25 are set."""
    h, w = shape
    column = np.empty(w + 4, np.uint8)
    for y in range(h):
        column[:] = np.uint8(0)
        for dy in range(-2, 3):
            at = min(max(y + dy, 0), h - 1) * w
            row = mask[at : at + w]
            for x in range(w):
                column[x + 2] += row[x] & np.uint8(1)
        column[0] = column[1] = column[2]
        column[w + 2] = column[w + 3] = column[w + 1]
        target = out[y * w : y * w + w]
        for x in range(w):
            total = column[x] + column[x + 1] + column[x + 2] + column[x + 3] + column[x + 4]
            target[x] = np.uint8(255) if total > 12 else np.uint8(0)


@numba.njit(**_jit)
def _bytes(out, u, c, channels, ch, start):
    """Write one channel of the prediction as bytes."""
    p = np.full(out.size, np.float32(0.5))
    for k in range(c.size):
        row, weight = u[k * channels + ch, start : start + out.size], c[k]
        for i in range(out.size):
            p[i] += weight * row[i]
    for i in range(out.size):
        out[i] = np.uint8(np.int32(min(max(p[i], np.float32(0.0)), np.float32(255.0))))


@numba.njit(**_jit)
def render(out, u, c, channels, tile):
    """Write the prediction for coefficients c as uint8, channels interleaved."""
    if channels == 1:
        _bytes(out, u, c, 1, 0, 0)
        return
    x, y, z = np.empty(tile, np.uint8), np.empty(tile, np.uint8), np.empty(tile, np.uint8)
    for start in range(0, u.shape[1], tile):
        n = min(tile, u.shape[1] - start)
        _bytes(x[:n], u, c, 3, 0, start)
        _bytes(y[:n], u, c, 3, 1, start)
        _bytes(z[:n], u, c, 3, 2, start)
        part = out[3 * start : 3 * (start + n)]
        for i in range(n):
            part[3 * i] = x[i]
            part[3 * i + 1] = y[i]
            part[3 * i + 2] = z[i]


@numba.njit(**_jit)
def luma(out, frames):
    """Write the luma (Rec. 601) of BGR pixels (n, 3)."""
    for i in range(out.size):
        b, g, r = np.int32(frames[3 * i]), np.int32(frames[3 * i + 1]), np.int32(frames[3 * i + 2])
        out[i] = np.uint8((29 * b + 150 * g + 77 * r + 128) >> 8)
