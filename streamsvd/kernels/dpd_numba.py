"""Numba loops of ``kernels.dpd``, imported at their first use: about one vectorised exponential for each entry, and nothing stored.

The exponential is written out: that of the C library is a call for each entry, which keeps a loop from being vectorised.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic, overload

_jit = {"cache": True, "nogil": True, "error_model": "numpy"}
# Sums may be reassociated (that is what vectorises them); NaN must stay NaN, for it marks what is missing.
_sums = {"fastmath": {"reassoc", "contract", "nsz"}, **_jit}
_exact = {"fastmath": {"contract"}, **_jit}
_f4, _f8 = types.float32, types.float64

LONG = 512  # so many terms are added in float32, then in float64
COLUMNS = 256  # columns of a tile of the right step: its vectors and a part of a row stay in the first-level cache


@intrinsic
def _times_power_of_two(_, p, t):
    """Return ``p 2^n`` where t is the integer n plus a constant that put n into its low bits."""

    def generate(context, builder, signature, args):
        double = signature.args[0] == types.float64
        integer = context.get_value_type(types.int64 if double else types.int32)
        bits, power = (builder.bitcast(value, integer) for value in args)
        bits = builder.add(bits, builder.shl(power, integer(52 if double else 23)))
        return builder.bitcast(bits, context.get_value_type(signature.args[0]))

    return p(p, p), generate


# Apart from their callers, for here nothing may be reassociated: (y + magic) - magic is what rounds.
@numba.njit(**_exact)
def _exp64(y):
    """Return exp(y) for -708 <= y <= 0 to 1e-14: reduction of Cody and Waite, Taylor series to degree 11."""
    t = y * 1.4426950408889634 + 6755399441055744.0
    n = t - 6755399441055744.0
    r = (y - n * 0.6931471803691238) - n * 1.9082149292705877e-10
    p = 2.505210838544172e-08
    p = p * r + 2.755731922398589e-07
    p = p * r + 2.7557319223985893e-06
    p = p * r + 2.48015873015873e-05
    p = p * r + 0.0001984126984126984
    p = p * r + 0.001388888888888889
    p = p * r + 0.008333333333333333
    p = p * r + 0.041666666666666664
    p = p * r + 0.16666666666666666
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    return _times_power_of_two(p, t)  # pyright: ignore[reportCallIssue]


@numba.njit(**_exact)
def _exp32(y):
    """Return exp(y) for -87 <= y <= 0 in float32 to 3e-7."""
    t = y * np.float32(1.4426950408889634) + np.float32(12582912.0)
    n = t - np.float32(12582912.0)
    r = (y - n * np.float32(0.693359375)) + n * np.float32(2.12194440e-4)
    p = np.float32(1.3888889e-3)
    p = p * r + np.float32(8.3333333e-3)
    p = p * r + np.float32(4.1666667e-2)
    p = p * r + np.float32(0.16666667)
    p = p * r + np.float32(0.5)
    p = p * r + np.float32(1.0)
    p = p * r + np.float32(1.0)
    return _times_power_of_two(p, t)  # pyright: ignore[reportCallIssue]


def _weight(y):
    """Return exp(y) for y <= 0; zero for NaN and where float32 or float64 could not hold it."""
    raise NotImplementedError


@overload(_weight, inline="never", jit_options=_exact)  # pyright: ignore[reportArgumentType]
def _weight_of(y):
    if y == types.float32:

        def single(y):
            low = np.float32(-87.0)
            w = _exp32(y if y > low else low)
            return w if y > low else np.float32(0.0)

        return single

    def double(y):
        w = _exp64(y if y > -708.0 else -708.0)
        return w if y > -708.0 else 0.0

    return double


def _matrix(dtype: types.Type, readonly: bool = True) -> types.Array:
    return types.Array(dtype, 2, "C", readonly=readonly)


def _vector(dtype: types.Type, readonly: bool = True) -> types.Array:
    return types.Array(dtype, 1, "C", readonly=readonly)


@numba.njit(**_sums)
def _nearest(x, b, c, k):
    """Return the step of one row whose weights underflow: a common factor cancels, so its nearest entry gets weight 1."""
    zero, low = x.dtype.type(0.0), x.dtype.type(np.inf)
    for j in range(x.size):
        e = x[j] - c * b[j]
        if k * (e * e) < low and b[j] != zero:
            low = k * (e * e)
    up, down = zero, zero
    for j in range(x.size):
        e = x[j] - c * b[j]
        w = _weight(low - k * (e * e)) * b[j]
        if w != zero:
            up += w * x[j]
            down += w * b[j]
    return up / down if down > zero else zero


@numba.njit(**_sums)
def _row(x, b, c, k):
    zero = x.dtype.type(0.0)
    up, down, mass = zero, zero, zero
    for j in range(x.size):
        e = x[j] - c * b[j]
        w = _weight(-k * (e * e))
        mass += w
        up += (w * b[j]) * (x[j] if w > zero else zero)
        down += (w * b[j]) * b[j]
    return up, down, mass


@numba.njit(**_exact)
def _add(up, down, mass, x, d, a, k):
    zero = x.dtype.type(0.0)
    for j in range(x.size):
        e = x[j] - a * d[j]
        w = _weight(-k * (e * e))
        mass[j] += w
        up[j] += (w * a) * (x[j] if w > zero else zero)
        down[j] += (w * a) * a


_step = [
    types.void(
        _vector(_f8, False), _vector(_f8, False), _matrix(t), _vector(t), _vector(t), t, _f8, types.intp, types.intp
    )
    for t in (_f4, _f8)
]


@numba.njit(_step, **_sums)
def left(new, mass, X, b, c, k, small, start, stop):
    """Write the steps of the rows start .. stop; each row stays in the first-level cache."""
    for i in range(start, stop):
        up, down, total = 0.0, 0.0, 0.0
        for j0 in range(0, b.size, LONG):
            u, d, t = _row(X[i, j0 : j0 + LONG], b[j0 : j0 + LONG], c[i], k)
            up, down, total = up + u, down + d, total + t
        mass[i] = total
        new[i] = up / down if down > small else _nearest(X[i], b, c[i], k)


@numba.njit(_step, **_sums)
def right(new, mass, X, a, d, k, small, start, stop):
    """Write the steps of the columns start .. stop, row after row on tiles of columns."""
    n = X.shape[0]
    column, sums, totals = np.empty(n, X.dtype), np.empty((3, COLUMNS), X.dtype), np.empty((3, COLUMNS))
    for j0 in range(start, stop, COLUMNS):
        j1 = min(stop, j0 + COLUMNS)
        totals[:] = 0.0
        for i0 in range(0, n, LONG):
            sums[:] = X.dtype.type(0.0)
            up, down, total = sums[0, : j1 - j0], sums[1, : j1 - j0], sums[2, : j1 - j0]
            for i in range(i0, min(n, i0 + LONG)):
                _add(up, down, total, X[i, j0:j1], d[j0:j1], a[i], k)
            totals += sums
        for j in range(j1 - j0):
            mass[j0 + j] = totals[2, j]
            if totals[1, j] > small:
                new[j0 + j] = totals[0, j] / totals[1, j]
            else:
                for i in range(n):
                    column[i] = X[i, j0 + j]
                new[j0 + j] = _nearest(column, a, d[j0 + j], k)


@numba.njit(
    [types.void(_matrix(t, False), _matrix(t), _matrix(t), _vector(t), types.intp, types.intp) for t in (_f4, _f8)],
    **_exact,
)
def weigh(out, X, fit, k, start, stop):
    """Write ``exp(-k_j (X - fit)_ij^2)`` for the rows start .. stop, zero where X is missing."""
    for i in range(start, stop):
        x, p, w = X[i], fit[i], out[i]
        for j in range(x.size):
            e = x[j] - p[j]
            w[j] = _weight(-k[j] * (e * e))
