"""Numba loops of ``kernels.rows``, imported at their first use.

The signatures are written out, read-only and mutable arrays alike, so that a process compiles (or reads from the cache) each loop once.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types

_f4, _f8 = types.float32, types.float64


def _rows(dtype: types.Type, layout: str = "C") -> types.Array:
    return types.Array(dtype, 2, layout, readonly=True)


def _vector(dtype: types.Type) -> types.Array:
    return types.Array(dtype, 1, "C", readonly=True)


_out = {dtype: types.Array(dtype, 2, "C") for dtype in (_f4, _f8)}
_sums = types.Array(_f8, 1, "C")
_jit = {"cache": True, "nogil": True, "error_model": "numpy"}


# Apart from its caller, so that only this sum may be reassociated: (x - shift) - mean must stay two steps.
@numba.njit(fastmath={"reassoc", "contract"}, **_jit)
def _energy(row):
    energy = 0.0
    for j in range(row.size):
        x = np.float64(row[j])  # float() of a float32 is a float32 in Numba
        energy += x * x
    return energy


@numba.njit([_f8(_out[t], _rows(t)) for t in (_f4, _f8)], **_jit)
def copy_into(out, X):
    """Copy rows and return their squared norm, which is finite only if all of them are (or overflows)."""
    total = 0.0
    for i in range(X.shape[0]):
        target, row = out[i], X[i]
        for j0 in range(0, row.size, 1024):
            part = row[j0 : j0 + 1024]
            target[j0 : j0 + 1024] = part
            total += _energy(part)
    return total


@numba.njit([types.void(_out[t], _rows(t, "A")) for t in (_f4, _f8)], **_jit)
def transpose_into(out, XT):  # noqa: D103
    b, d = out.shape
    for i0 in range(0, b, 32):
        i1 = min(i0 + 32, b)
        for j0 in range(0, d, 32):
            j1 = min(j0 + 32, d)
            for i in range(i0, i1):
                for j in range(j0, j1):
                    out[i, j] = XT[j, i]


@numba.njit([types.void(_sums, _rows(t), _vector(_f8), _vector(_f8)) for t in (_f4, _f8)], **_jit)
def column_sums(sums, rows, shift, weights):
    """Add weighted rows, four at a time: the sums are loaded and stored once for four rows, which is most of the cost."""
    b, d = rows.shape
    whole = b - b % 4
    for j0 in range(0, d, 512):
        j1 = min(j0 + 512, d)
        center, total = shift[j0:j1], sums[j0:j1]
        for i in range(0, whole, 4):
            u, v, w, x = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
            p, q, r, s = rows[i, j0:j1], rows[i + 1, j0:j1], rows[i + 2, j0:j1], rows[i + 3, j0:j1]
            for j in range(p.size):
                c = center[j]
                total[j] += (u * (p[j] - c) + v * (q[j] - c)) + (w * (r[j] - c) + x * (s[j] - c))
        for i in range(whole, b):
            w, row = weights[i], rows[i, j0:j1]
            for j in range(row.size):
                total[j] += w * (row[j] - center[j])


@numba.njit(
    [
        types.void(_out[o], _rows(t), types.int64, _vector(_f8), _vector(_f8), _vector(_f8))
        for t, o in ((_f4, _f4), (_f4, _f8), (_f8, _f8), (_f8, _f4))
    ],
    **_jit,
)
def fill_panel(out, rows, start, shift, mean, factor):  # noqa: D103
    b, c = out.shape
    first, second = shift[start : start + c], mean[start : start + c]
    for i in range(b):
        f, row, target = factor[i], rows[i, start : start + c], out[i]
        for j in range(c):
            target[j] = ((row[j] - first[j]) - second[j]) * f


@numba.njit(
    [
        types.void(
            _out[t],
            _rows(t),
            types.int64,
            _vector(_f8),
            _vector(_f8),
            _vector(_f8),
            _sums,
            _out[t],
            _vector(types.int64),
            _vector(_f8),
        )
        for t in (_f4, _f8)
    ],
    **_jit,
)
def enter_panel(out, rows, start, shift, mean, factor, energies, sketch, slots, signs):
    """Centre and round a panel, add its rows to the test sketch, and sum their energies."""
    b, c = out.shape
    for j0 in range(0, c, 512):
        j1 = min(j0 + 512, c)
        first, second = shift[start + j0 : start + j1], mean[start + j0 : start + j1]
        for i in range(b):
            f, row, target = factor[i], rows[i, start + j0 : start + j1], out[i, j0:j1]
            for j in range(row.size):
                target[j] = ((row[j] - first[j]) - second[j]) * f
            energies[i] += _energy(target)
            if slots[i] >= 0:
                sum_, sign = sketch[slots[i], start + j0 : start + j1], sketch.dtype.type(signs[i])
                for j in range(row.size):
                    sum_[j] += sign * target[j]


@numba.njit([types.void(_sums, _rows(t), types.int64, types.int64) for t in (_f4, _f8)], **_jit)
def row_energies(out, rows, start, stop):
    """Sum the squares of the columns start .. stop of each row in float64."""
    for i in range(rows.shape[0]):
        out[i] = 0.0
        for j in range(start, stop, 1024):
            out[i] += _energy(rows[i, j : min(j + 1024, stop)])
