"""Passes over a block of rows that BLAS cannot express: checked copies, column sums with a shift, centring with one rounding.

Each function has the same meaning on every backend. NumPy runs a Numba loop (one pass, no float64 copy of the block);
any other namespace runs the array-API twin, which is also the oracle of the loop.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from streamsvd.arrays import Array, device_of, namespace, to_numpy

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


def copy_rows(out: Array, X: Array, /) -> bool:
    """Write the rows X (b, d), in any order and of any float dtype, into the row-major ``out`` (b, d); tell whether all are finite.

    Column-major rows are read in cache-sized tiles: about two memory copies, where a plain transposing copy costs ten.
    """
    if isinstance(X, np.ndarray) and X.size > SMALL and X.dtype == out.dtype:
        from streamsvd.kernels import rows_numba

        if X.flags.c_contiguous:
            return bool(np.isfinite(rows_numba.copy_into(out, X))) or bool(np.isfinite(X).all())
        if X.strides[0] == X.itemsize and X.strides[1] > 0:
            rows_numba.transpose_into(out, X.T)
            return all_finite(out)
    out[:, :] = X
    return all_finite(out)


def column_sums(rows: Array, shift: Array, weights: Array, /) -> Array:
    """Weighted column sums of ``rows - shift`` in float64, added four rows at a time.

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


def enter_panel(
    out: Array, rows: Array, start: int, shift: Array, mean: Array, factor: Array, test: tuple[Array, Any], /
) -> np.ndarray:
    """Fill a panel as ``fill_panel`` does, and in the same pass return the energy of each row and add the rows to a test sketch.

    Parameters
    ----------
    out, rows, start, shift, mean, factor
        As in ``fill_panel``.
    test : (sketch, (slots, signs) or None)
        To row ``slots[i]`` of the sketch (t, d), the panel's columns of row i are added with its sign, in place.

    Returns
    -------
    energies : array (b,), float64, on the host
    """
    sketch, drawn = test
    stop = start + out.shape[1]
    if isinstance(rows, np.ndarray):
        from streamsvd.kernels import rows_numba

        energies = np.zeros(out.shape[0])
        slots, signs = drawn if drawn is not None else (np.full(out.shape[0], -1), energies)
        rows_numba.enter_panel(out, rows, start, shift, mean, factor, energies, sketch, slots, signs)
        return energies
    fill_panel(out, rows, start, shift, mean, factor)
    xp = namespace(rows)
    if drawn is not None:
        S = np.zeros((sketch.shape[0], out.shape[0]))
        S[drawn[0], np.arange(out.shape[0])] = drawn[1]
        sketch[:, start:stop] += xp.asarray(S, dtype=out.dtype, device=device_of(out)) @ out
    return to_numpy(xp.sum(xp.astype(out, xp.float64) ** 2, axis=1))


def row_energies(rows: Array, start: int = 0, stop: int | None = None, /) -> Array:
    """Return the squared norm of the columns start .. stop of each row, row-major (b, d), summed in float64: array (b,)."""
    stop = rows.shape[1] if stop is None else stop
    if isinstance(rows, np.ndarray):
        from streamsvd.kernels import rows_numba

        out = np.empty(rows.shape[0])
        rows_numba.row_energies(out, rows, start, stop)
        return out
    xp = namespace(rows)
    return xp.sum(xp.astype(rows[:, start:stop], xp.float64) ** 2, axis=1)
