"""Numba sweep of the background model: uint8 frames, a tile of pixels at a time, all frames of a block within it.

All floats of a tile lie in one workspace whose rows are ``ROW`` apart: between arrays of their own the compiler would have to test
dozens of pairs for overlap, and it gives up at a few. ``ROW`` is no power of two, for rows 8 KiB apart would share cache sets.
Rank 1 has loops of its own; `streamsvd.kernels.video_rank_numba` has those of any rank. The oracle is `streamsvd.kernels.video.sweep`.

Rows, for r components, c channels and s = r (r + 1) / 2: background (r c), 1/s2, threshold, moments A (s), b (r c), sum of weights,
sum of weighted squares; behind them what one frame needs.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types

from streamsvd.kernels.video_rank_numba import ROW, mark_any, solve_any, weigh_any
from streamsvd.kernels.video_rival_numba import absorb, follow

TILE = 2048
LEAST = np.float32(0.01)  # accumulated weight below which a pixel keeps its background
_TOP, _ZERO, _ONE, _SATURATED = np.float32(255.0), np.float32(0.0), np.float32(1.0), np.float32(256.0)
_OFF, _ON = np.uint8(0), np.uint8(255)
_jit: dict[str, Any] = {"nogil": True, "error_model": "numpy", "cache": True}
# Contraction cannot reach what decides a mask: a min stands between its product and its difference. So look and learn agree bit for bit.
_fast = {"contract", "nnan", "ninf", "nsz"}


@numba.njit(fastmath=_fast, **_jit)
def _gray(out, ws, xs, c, n, slope, wide):
    c2 = c * c
    for i in range(n):
        x, p = np.float32(xs[i]), c * ws[i]
        e = x - min(p, _TOP)
        d = e * e
        out[i] = _ON if d > ws[2 * ROW + i] * wide else _OFF
        # (1 - q/16)^16 in place of exp(-q): the same to second order, and it vectorises.
        w = max(_ONE - slope * d * ws[ROW + i], _ZERO)
        w = w if p <= _SATURATED else _ZERO
        w *= w
        w *= w
        w *= w
        w *= w
        ws[3 * ROW + i] += w * c2
        ws[4 * ROW + i] += w * (c * x)
        ws[5 * ROW + i] += w
        ws[6 * ROW + i] += w * d


@numba.njit(fastmath=_fast, **_jit)
def _color(out, ws, xs, c, n, slope, wide):
    c2 = c * c
    for i in range(n):
        x0, p0 = np.float32(xs[i]), c * ws[i]
        x1, p1 = np.float32(xs[ROW + i]), c * ws[ROW + i]
        x2, p2 = np.float32(xs[2 * ROW + i]), c * ws[2 * ROW + i]
        e0, e1, e2 = x0 - min(p0, _TOP), x1 - min(p1, _TOP), x2 - min(p2, _TOP)
        e0 *= e0
        e1 *= e1
        e2 *= e2
        out[i] = _ON if max(e0, max(e1, e2)) > ws[4 * ROW + i] * wide else _OFF
        d = e0 + e1 + e2
        w = max(_ONE - slope * d * ws[3 * ROW + i], _ZERO)
        w = w if max(p0, max(p1, p2)) <= _SATURATED else _ZERO
        w *= w
        w *= w
        w *= w
        w *= w
        ws[5 * ROW + i] += w * c2
        wc = w * c
        ws[6 * ROW + i] += wc * x0
        ws[7 * ROW + i] += wc * x1
        ws[8 * ROW + i] += wc * x2
        ws[9 * ROW + i] += w
        ws[10 * ROW + i] += w * d


@numba.njit(fastmath=_fast, **_jit)
def _mark_gray(out, ws, xs, c, n, wide):
    for i in range(n):
        e = np.float32(xs[i]) - min(c * ws[i], _TOP)
        out[i] = _ON if e * e > ws[2 * ROW + i] * wide else _OFF


@numba.njit(fastmath=_fast, **_jit)
def _mark_color(out, ws, xs, c, n, wide):
    for i in range(n):
        e0 = np.float32(xs[i]) - min(c * ws[i], _TOP)
        e1 = np.float32(xs[ROW + i]) - min(c * ws[ROW + i], _TOP)
        e2 = np.float32(xs[2 * ROW + i]) - min(c * ws[2 * ROW + i], _TOP)
        out[i] = _ON if max(e0 * e0, max(e1 * e1, e2 * e2)) > ws[4 * ROW + i] * wide else _OFF


@numba.njit(**_jit)
def _planes(xs, frame, start, n, channels):
    if channels == 1:
        xs[:n] = frame[start : start + n]
        return
    part = frame[3 * start : 3 * (start + n)]
    for i in range(n):
        xs[i] = part[3 * i]
        xs[ROW + i] = part[3 * i + 1]
        xs[2 * ROW + i] = part[3 * i + 2]


@numba.njit(**_jit)
def _enter(ws, u, s2, roi, start, n, tau2, least):
    rows = u.shape[0]
    for j in range(rows):
        ws[j * ROW : j * ROW + n] = u[j, start : start + n]
    scale, inside = s2[start : start + n], roi[start : start + n]
    inverse, limit = ws[rows * ROW : rows * ROW + n], ws[(rows + 1) * ROW : (rows + 1) * ROW + n]
    for i in range(n):
        inverse[i] = _ONE / scale[i]
        t = max(tau2 * scale[i], least)
        limit[i] = t if inside[i] else np.float32(np.inf)


@numba.njit(**_jit)
def _count(mask):
    count = np.uint32(0)
    for i in range(mask.size):
        count += np.uint32(mask[i] & np.uint8(1))
    return np.int64(count)


@numba.njit(**_jit)
def _solve_one(ws, n, channels):
    weights = ws[(channels + 2) * ROW : (channels + 2) * ROW + n]
    for ch in range(channels):
        u, b = ws[ch * ROW : ch * ROW + n], ws[(channels + 3 + ch) * ROW : (channels + 3 + ch) * ROW + n]
        for i in range(n):
            new = b[i] / max(weights[i], LEAST)
            new = new if weights[i] > LEAST else u[i]
            u[i] = new
            b[i] = new * max(weights[i], LEAST)
    for i in range(n):
        weights[i] = max(weights[i], LEAST)


@numba.njit(**_jit)
def _leave(ws, u, moments, s2, start, n, channels, good, decay, scaling):
    eta, lacking, share, floor = scaling
    rows, kept = u.shape[0], moments.shape[0]
    for j in range(rows):
        u[j, start : start + n] = ws[j * ROW : j * ROW + n]
    for j in range(kept):
        source, row = ws[(rows + 2 + j) * ROW : (rows + 2 + j) * ROW + n], moments[j, start : start + n]
        for i in range(n):
            row[i] = source[i] * decay
    at = (rows + 2 + kept) * ROW
    weights, squares, scale = ws[at : at + n], ws[at + ROW : at + ROW + n], s2[start : start + n]
    lack, bottom, wanted = good * lacking, good * share * np.float32(0.1), good * share * np.float32(0.2)
    for i in range(n):
        found = squares[i] / (np.float32(channels) * max(weights[i] - lack, bottom))
        new = max(eta * scale[i] + (_ONE - eta) * found, floor)
        scale[i] = new if weights[i] > wanted else scale[i]


def _arrays(dtype: types.Type, dims: int, *, readonly: bool = False, layout: str = "C") -> types.Array:
    return types.Array(dtype, dims, layout, readonly=readonly)


_f4, _u1, _i8 = types.float32, types.uint8, types.int64
_masks, _counts, _frames = _arrays(_u1, 2), _arrays(_i8, 1), _arrays(_u1, 2, readonly=True)
_coef, _per_frame, _flags = (
    _arrays(_f4, 2, readonly=True),
    _arrays(_f4, 1, readonly=True),
    _arrays(_u1, 1, readonly=True),
)
_state, _vector = _arrays(_f4, 2), _arrays(_f4, 1)
_span, _rule = types.UniTuple(_i8, 2), types.UniTuple(_f4, 3)
_HEAD = (_masks, _counts, _frames, _coef, _per_frame)


@numba.njit([types.void(*_HEAD, _state, _vector, _flags, _rule, _span)], **_jit)
def look(out, counts, frames, coef, wide, u, s2, roi, rule, span):
    """Write the masks of frames (b, pixels x channels) against the background as it is; see `streamsvd.kernels.video.look`."""
    rank = coef.shape[1]
    channels = u.shape[0] // rank
    ws, xs = np.empty((u.shape[0] + 2 + channels) * ROW, np.float32), np.empty(channels * ROW, np.uint8)
    for start in range(span[0], span[1], TILE):
        n = min(TILE, span[1] - start)
        _enter(ws, u, s2, roi, start, n, rule[0], rule[1])
        for f in range(frames.shape[0]):
            mask = out[f, start : start + n]
            _planes(xs, frames[f], start, n, channels)
            if rank > 1:
                mark_any(mask, ws, (u.shape[0] + 2) * ROW, xs, coef[f], n, channels, wide[f])
            elif channels == 1:
                _mark_gray(mask, ws, xs, coef[f, 0], n, wide[f])
            else:
                _mark_color(mask, ws, xs, coef[f, 0], n, wide[f])
            counts[f] += _count(mask)


@numba.njit(
    [
        types.void(
            *_HEAD,
            _flags,
            _state,
            _state,
            _vector,
            _state,
            _vector,
            _flags,
            _rule,
            _rule,
            types.UniTuple(_f4, 4),
            _span,
        )
    ],
    **_jit,
)
def learn(out, counts, frames, coef, wide, usable, u, moments, s2, v, n2, roi, rule, rates, scaling, span):
    """Write masks where ``out`` has rows and move the background by a block of frames; see `streamsvd.kernels.video.learn`."""
    rank = coef.shape[1]
    channels, rows, kept = u.shape[0] // rank, u.shape[0], moments.shape[0]
    ws, xs = np.empty((rows + kept + 6 + channels) * ROW, np.float32), np.empty(channels * ROW, np.uint8)
    own, sums, limit = np.empty(TILE, np.uint8), (rows + 2 + kept) * ROW, (rows + 1) * ROW
    good = np.float32(0.0)
    for f in range(frames.shape[0]):
        good += np.float32(usable[f])
    for start in range(span[0], span[1], TILE):
        n = min(TILE, span[1] - start)
        _enter(ws, u, s2, roi, start, n, rule[0], rule[1])
        for j in range(kept):
            ws[(rows + 2 + j) * ROW : (rows + 2 + j) * ROW + n] = moments[j, start : start + n]
        ws[sums : sums + 2 * ROW] = _ZERO
        for f in range(frames.shape[0]):
            if not (usable[f] or out.shape[0]):
                continue
            mask = out[f, start : start + n] if out.shape[0] else own[:n]
            _planes(xs, frames[f], start, n, channels)
            if rank > 1:
                mark_any(mask, ws, sums + 2 * ROW, xs, coef[f], n, channels, wide[f])
                if usable[f]:
                    weigh_any(ws, sums, xs, coef[f], n, channels, rule[2])
            elif not usable[f]:
                if channels == 1:
                    _mark_gray(mask, ws, xs, coef[f, 0], n, wide[f])
                else:
                    _mark_color(mask, ws, xs, coef[f, 0], n, wide[f])
            elif channels == 1:
                _gray(mask, ws, xs, coef[f, 0], n, rule[2], wide[f])
            else:
                _color(mask, ws, xs, coef[f, 0], n, rule[2], wide[f])
            if out.shape[0]:
                counts[f] += _count(mask)
            if usable[f] and n2.size:
                follow(v, n2, ws, limit, xs, mask, start, _ONE / coef[f, 0])
        if good > 0:
            if rank > 1:
                solve_any(ws, n, rank, channels)
            else:
                _solve_one(ws, n, channels)
            _leave(ws, u, moments, s2, start, n, channels, good, rates[0], scaling)
            if n2.size:
                absorb(u, moments, v, n2, start, start + n, rates[1], rates[2])
