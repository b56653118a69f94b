"""Passes over a block of rows that BLAS cannot express: checked copies, column sums with a shift, centring with one rounding.

Each function has the same meaning on every backend. NumPy runs a Numba loop (one pass, no float64 copy of the block);
any other namespace runs the array-API twin, which is also the oracle of the loop.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from streamsvd.arrays import Array, device_of, namespace

SMALL = 16384


def all_finite(X: Array, /) -> bool:
    """Tell whether every entry of a dense array is finite, in one pass and without a copy of it."""
    if not isinstance(X, np.ndarray):
        xp = namespace(X)
        return bool(xp.all(xp.isfinite(X)))
    if not (X.flags.c_contiguous or X.flags.f_contiguous):
        return bool(np.isfinite(X).all())
    # The sum of squares is finite only if every entry is; where it overflows, the entries are looked at one by one.
    flat = X.ravel(order="K")
    with np.errstate(all="ignore"):
        return bool(np.isfinite(flat.dot(flat))) or bool(np.isfinite(X).all())


def copy_rows(out: Array, X: Array, /) -> None:
    """Write the rows X (b, d), in any order and of any float dtype, into the row-major ``out`` (b, d).

    Column-major rows are read in cache-sized tiles: about two memory copies, where a plain transposing copy costs ten.
    """
    if (
        isinstance(X, np.ndarray)
        and X.size > SMALL
        and X.strides[0] == X.itemsize
        and X.strides[1] > 0
        and X.dtype == out.dtype
    ):
        from streamsvd.kernels import rows_numba

        rows_numba.transpose_into(out, X.T)
    else:
        out[:, :] = X


def column_sums(rows: Array, shift: Array, weights: Array, /) -> Array:
    """Weighted column sums of ``rows - shift`` in float64, added row after row.

    Parameters
    ----------
    rows : array (b, d), row-major
    shift : array (d,), float64
    weights : array (b,), float64

    Returns
    -------
    sums : array (d,), float64
    """
    if isinstance(rows, np.ndarray):
        from streamsvd.kernels import rows_numba

        sums = np.zeros(rows.shape[1])
        rows_numba.column_sums(sums, rows, shift, weights)
        return sums
    xp = namespace(rows)
    return weights @ (xp.astype(rows, xp.float64) - shift[None, :])


def largest(rows: Array, shift: Array, /) -> float:
    """Return the largest magnitude among ``rows - shift`` from the extremes of each column."""
    xp = namespace(rows)
    high, low = xp.max(rows, axis=0), xp.min(rows, axis=0)
    return float(xp.max(xp.maximum(xp.abs(high - shift), xp.abs(low - shift))))


def fill_panel(out: Array, rows: Array, start: int, shift: Array, mean: Array, factor: Array, /) -> Array:
    """Write ``((rows - shift) - mean) * factor`` of the columns from ``start`` on into ``out``, rounded once from float64.

    Parameters
    ----------
    out : array (b, c), row-major: the panel
    rows : array (b, d), row-major
    start : int
        The panel holds columns start .. start + c of the rows.
    shift, mean : array (d,), float64
        Subtracted one after the other: their sum would carry the rounding of a large offset.
    factor : array (b,), float64
        Square root of the weight of each row, times a power of two.

    Returns
    -------
    out
    """
    stop = start + out.shape[1]
    if isinstance(rows, np.ndarray):
        from streamsvd.kernels import rows_numba

        rows_numba.fill_panel(out, rows, start, shift, mean, factor)
        return out
    xp = namespace(rows)
    x = (xp.astype(rows[:, start:stop], xp.float64) - shift[None, start:stop]) - mean[None, start:stop]
    out[:, :] = xp.astype(x * factor[:, None], out.dtype)
    return out


def scatter_signs(panel: Array, slots: np.ndarray, signs: np.ndarray, count: int, /) -> Array:
    """Return ``S @ panel`` for a sparse sign matrix S (count, b) with the one entry ``signs[i]`` at ``slots[i]`` of column i."""
    if isinstance(panel, np.ndarray):
        from streamsvd.kernels import rows_numba

        out = np.zeros((count, panel.shape[1]), dtype=panel.dtype)
        rows_numba.scatter_signs(out, panel, slots, signs)
        return out
    xp: Any = namespace(panel)
    S = np.zeros((count, panel.shape[0]))
    S[slots, np.arange(panel.shape[0])] = signs
    return xp.asarray(S, dtype=panel.dtype, device=device_of(panel)) @ panel


def row_energies(panel: Array, /) -> Array:
    """Return the squared norm of each row of a row-major panel (b, c), summed in float64: array (b,)."""
    if isinstance(panel, np.ndarray):
        from streamsvd.kernels import rows_numba

        out = np.empty(panel.shape[0])
        rows_numba.row_energies(out, panel)
        return out
    xp = namespace(panel)
    return xp.sum(xp.astype(panel, xp.float64) ** 2, axis=1)
