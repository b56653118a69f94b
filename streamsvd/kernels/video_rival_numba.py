"""Numba loops of the further colour that each pixel keeps: what stopped, or what an object uncovered, becomes background in time."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from streamsvd.kernels.video_rank_numba import ROW

SEED = np.float32(20.0)  # frames' worth of trust in a background that was just absorbed
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_jit: dict[str, Any] = {"nogil": True, "error_model": "numpy", "cache": True}


@numba.njit(**_jit)
def follow(v, n2, ws, limit, xs, mask, start, gain):
    """Follow one further colour at each masked pixel; unmasked ones are skipped eight at a time."""
    n, channels = mask.size, v.shape[0]
    words = mask[: n - n % 8].view(np.uint64)
    for word in range(words.size + 1):
        if word < words.size and words[word] == 0:
            continue
        for i in range(8 * word, min(8 * word + 8, n)):
            if mask[i] == 0:
                continue
            at = start + i
            most = _ZERO
            for ch in range(channels):
                e = np.float32(xs[ch * ROW + i]) * gain - v[ch, at]
                most = max(most, e * e)
            if most <= ws[limit + i]:
                n2[at] += _ONE
                step = max(_ONE / (n2[at] + _ONE), np.float32(0.02))
                for ch in range(channels):
                    v[ch, at] += step * (np.float32(xs[ch * ROW + i]) * gain - v[ch, at])
                continue
            n2[at] -= np.float32(0.5)
            if n2[at] <= 0:
                n2[at] = _ONE
                for ch in range(channels):
                    v[ch, at] = np.float32(xs[ch * ROW + i]) * gain


@numba.njit(**_jit)
def absorb(u, moments, v, n2, start, stop, patience, keep):
    """Make a further colour that has stayed the background, and the background the further colour."""
    channels, rank = v.shape[0], u.shape[0] // v.shape[0]
    pairs = rank * (rank + 1) // 2
    for at in range(start, stop):
        n2[at] *= keep
        if n2[at] <= patience:
            continue
        n2[at] = _ZERO
        moments[:, at] = _ZERO
        for k in range(rank):
            moments[k * (k + 3) // 2, at] = SEED
        for ch in range(channels):
            old = u[ch, at]
            u[ch, at] = v[ch, at]
            v[ch, at] = old
            moments[pairs + ch, at] = SEED * u[ch, at]
        for j in range(channels, rank * channels):
            u[j, at] = _ZERO
