"""From whatever a user holds to a checked batch: a 2-D float array of any strides, or CSR, in its own namespace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.arrays import Array, dtype_name, is_sparse, namespace
from streamsvd.kernels.rows import all_finite

if TYPE_CHECKING:
    from collections.abc import Sequence

_FLOATS = ("float32", "float64")
_TO_FLOAT32 = ("float16", "bfloat16", "bool", "int8", "uint8", "int16", "uint16")
_TO_FLOAT64 = ("int32", "uint32", "int64", "uint64", "float128", "longdouble", "float96")


def as_batch(X: Any, /, *, columns: int | None = None, names: Sequence[str] = (), finite: bool = True) -> Array:
    """Return rows as a 2-D float32 or float64 array, or a SciPy CSR array, checked.

    Parameters
    ----------
    X : array (b, d)
        NumPy, torch, CuPy, SciPy sparse, an Arrow batch or table, a Polars or pandas frame, or anything with ``__dlpack__``.
    columns : int, optional
        The width that is expected.
    names : sequence of str
        Columns to take from a table; all of them if empty.
    finite : bool
        Refuse NaN and infinity.

    Returns
    -------
    batch : array (b, d)
        In the namespace of X. Half precision, bool and integers of at most 16 bits become float32, wider integers float64.

    Raises
    ------
    TypeError
        If the values are not real numbers.
    ValueError
        If X is not 2-D, has another width, no columns, or entries that are not finite; the message names the first such row.
    """
    if type(X) is np.ndarray and X.dtype.name in _FLOATS:
        batch = X
    elif is_sparse(X):
        batch = _csr(X)
    elif hasattr(X, "__arrow_c_stream__") or hasattr(X, "__arrow_c_array__"):
        from streamsvd.tables import matrix

        batch = matrix(X, select=list(names) or None)[0]
        batch = _widen(batch)
    else:
        batch = _widen(_array(X))
    _check_shape(batch, columns)
    if finite:
        check_finite(batch)
    return batch


def _array(X: Any) -> Array:
    if isinstance(X, np.ma.MaskedArray):
        if np.ma.count_masked(X):
            msg = f"got a masked array with {np.ma.count_masked(X)} masked entries; drop or fill them first, for example X[~X.mask.any(1)]"
            raise ValueError(msg)
        return np.asarray(X.data)
    if isinstance(X, (np.ndarray, list, tuple)):
        return np.asarray(X)
    if hasattr(X, "__array_namespace__") or type(X).__module__.partition(".")[0] in ("torch", "cupy"):
        return X.detach() if hasattr(X, "detach") else X
    if hasattr(X, "__dlpack__"):
        return np.from_dlpack(X)
    if hasattr(X, "__array__"):
        return np.asarray(X)
    expected = "an array (NumPy, torch, CuPy, SciPy sparse), an Arrow or Polars table, or a DLPack object"
    msg = f"got {type(X).__name__}; expected rows as {expected}"
    raise TypeError(msg)


def _widen(X: Array) -> Array:
    name = dtype_name(X)
    if name in _FLOATS:
        return X
    if name in _TO_FLOAT32:
        target = "float32"
    elif name in _TO_FLOAT64:
        target = "float64"
    else:
        cure = (
            "split it into real and imaginary parts"
            if "complex" in name
            else "convert it to numbers, for example X.astype('float32')"
        )
        msg = f"got dtype {name}; expected real numbers (float32, float64, half precision, integers or bool): {cure}"
        raise TypeError(msg)
    if isinstance(X, np.ndarray):
        return X.astype(target)
    xp = namespace(X)
    return xp.astype(X, getattr(xp, target))


def _csr(X: Any) -> Any:
    from scipy.sparse import csr_array

    name = X.dtype.name
    if name not in (*_FLOATS, *_TO_FLOAT32, *_TO_FLOAT64):
        msg = f"got a sparse matrix of dtype {name}; expected real numbers: convert it, for example X.astype('float32')"
        raise TypeError(msg)
    if len(X.shape) != 2:
        return X.toarray()
    out = csr_array(X)
    if not out.has_canonical_format:
        out = out.copy()
        out.sum_duplicates()
    target = name if name in _FLOATS else "float32" if name in _TO_FLOAT32 else "float64"
    return out if out.dtype.name == target else out.astype(target)


def _check_shape(X: Array, columns: int | None) -> None:
    if X.ndim != 2:
        cure = (
            "X.reshape(1, -1) makes one row of it, X.reshape(-1, 1) one column"
            if X.ndim == 1
            else "X.reshape(len(X), -1) flattens each sample"
        )
        msg = f"got an array of shape {tuple(X.shape)}; expected rows as a 2-D array (rows, columns): {cure}"
        raise ValueError(msg)
    if X.shape[1] == 0:
        msg = f"got an array of shape {tuple(X.shape)}: it has no columns; expected at least one"
        raise ValueError(msg)
    if columns is not None and X.shape[1] != columns:
        msg = (
            f"got rows with {X.shape[1]} columns (shape {tuple(X.shape)}); this state has {columns}: "
            "select the same columns, or widen the state first with streamsvd.widen(state, columns)"
        )
        raise ValueError(msg)


def check_finite(X: Array, /) -> None:
    """Refuse NaN and infinity; the message counts the rows and names the first."""
    data = X.data if is_sparse(X) else X
    if data.shape[0] == 0 or all_finite(data.reshape(1, -1) if is_sparse(X) else data):
        return
    if is_sparse(X):
        bad = np.flatnonzero(~np.isfinite(data))
        rows = np.unique(np.searchsorted(X.indptr, bad, side="right") - 1)
        row, column, count = int(rows[0]), int(X.indices[bad[0]]), rows.size
    else:
        xp = namespace(X)
        mask = xp.isfinite(X)
        per_row = xp.all(mask, axis=1)
        row = int(xp.argmin(xp.astype(per_row, xp.int8)))
        column = int(xp.argmin(xp.astype(mask[row, :], xp.int8)))
        count = X.shape[0] - int(xp.sum(xp.astype(per_row, xp.int64)))
    msg = (
        f"got NaN or infinity in {count} of {X.shape[0]} rows of this batch, first in row {row}, column {column}; "
        "the state is unchanged: drop such rows (X[numpy.isfinite(X).all(axis=1)]) or fill them, then update again"
    )
    raise ValueError(msg)
