"""What a robust state asks of a batch: numbers that are finite or missing, and weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.arrays import Array, dtype_name, from_numpy, is_sparse, namespace, to_numpy
from streamsvd.batch import as_batch
from streamsvd.kernels.rows import all_finite
from streamsvd.options import _checked_weights
from streamsvd.waiting import prototype

if TYPE_CHECKING:
    from streamsvd.recursion import RobustOptions


def accepted(
    X: Any, options: RobustOptions, like: Array | None, weights: Any, timestamps: Any, /, *, keep: bool = False
) -> tuple[Array, np.ndarray, Array] | None:
    """Return the checked batch in the dtype and namespace of ``like``, its weights, and the prototype; None if no row is left.

    Rows of weight 0 are left out, and so, unless ``keep``, are rows without any entry.

    Raises
    ------
    TypeError, ValueError
        For sparse, infinite or otherwise unfit rows; the message says what to write.
    """
    if timestamps is not None:
        msg = "got timestamps, but a robust state ages by rows; leave them out, or set decay for rows that come evenly"
        raise ValueError(msg)
    batch = dense(X, columns=options.columns)
    like = prototype(batch) if like is None else like
    assert like is not None
    if namespace(batch) is not namespace(like):
        batch = from_numpy(to_numpy(batch), like=like)
    xp = namespace(like)
    if dtype_name(batch) != dtype_name(like):
        batch = batch.astype(like.dtype) if isinstance(batch, np.ndarray) else xp.astype(batch, like.dtype)
    b = batch.shape[0]
    w = np.ones(b) if weights is None else _checked_weights(weights, b)
    there = w > 0
    if not keep:
        there &= to_numpy(xp.any(xp.isfinite(batch), axis=1))
    if not there.all():
        rows = np.flatnonzero(there)
        batch = batch[rows] if isinstance(batch, np.ndarray) else xp.take(batch, from_numpy(rows, like=batch), axis=0)
        w = w[there]
    return (batch, w, like) if keep or w.size else None


def dense(X: Any, /, *, columns: int | None = None) -> Array:
    """Return a 2-D float array in which NaN marks what is missing.

    Raises
    ------
    TypeError
        For a sparse matrix, and for what is no real numbers.
    ValueError
        For infinity, and for what is not 2-D.
    """
    if is_sparse(X):
        msg = f"got a sparse matrix of shape {X.shape}; its zeros are entries here: pass X.toarray(), with NaN for what is missing"
        raise TypeError(msg)
    X = as_batch(X, columns=columns, finite=False)
    xp = namespace(X)
    if X.shape[0] and not all_finite(X) and bool(xp.any(xp.isinf(X))):
        count = int(xp.sum(xp.astype(xp.isinf(X), xp.int64)))
        cure = "write NaN for what is missing: numpy.where(numpy.isinf(X), numpy.nan, X)"
        msg = f"got infinity in {count} of {X.shape[0] * X.shape[1]} entries; {cure}"
        raise ValueError(msg)
    return X
