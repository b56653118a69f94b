"""What a sketch was asked for, and the check of what an update brings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from streamsvd.arrays import Array, dtype_name, from_numpy, is_sparse, namespace, to_numpy
from streamsvd.batch import as_batch, check_finite
from streamsvd.kernels.rows import SMALL


@dataclass(frozen=True, eq=False)
class Options:
    """What a sketch was asked for; two states merge only if these agree.

    ``decay`` is the factor by which each later row ages the earlier ones; ``half_life`` (seconds) does it by timestamps instead.
    """

    columns: int
    rank: int
    kept: int = 0
    center: bool = True
    decay: float = 1.0
    half_life: float | None = None
    shrink: float = 0.0
    dtype: str | None = None
    seed: int = 0
    unit: bool = False
    scale: np.ndarray | None = None
    keep_left: bool | str = False

    @cached_property
    def special(self) -> bool:
        """Tell whether rows must be changed or dated before they are stored."""
        return self.half_life is not None or self.scale is not None

    def difference(self, other: Options, /) -> str:
        """Name the first option in which two states differ, or return an empty string."""
        for name in ("columns", "center", "decay", "half_life", "rank", "kept", "shrink", "seed", "unit"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"{name}={mine} and {name}={theirs}"
        if (self.scale is None) != (other.scale is None) or (
            self.scale is not None and not np.array_equal(self.scale, np.asarray(other.scale))
        ):  # type: ignore[arg-type]
            return "different scale vectors"
        return ""

    def accept(
        self, X: Any, like: Array | None, weights: Any, timestamps: Any, last: float, /
    ) -> tuple[Array, np.ndarray, np.ndarray]:
        """Return the checked batch in the dtype and namespace of ``like``, its weights and its times; rows of weight 0 are left out.

        Large NumPy batches are checked for NaN and infinity where they are read anyway: when they are copied, or by their energy.
        """
        batch = as_batch(X, columns=self.columns, finite=False)
        if not isinstance(batch, np.ndarray) or batch.size <= SMALL or self.scale is not None or weights is not None:
            check_finite(batch)
        b = batch.shape[0]
        w = np.ones(b) if weights is None else _checked_weights(weights, b)
        t = np.zeros(b) if self.half_life is None and timestamps is None else self._checked_times(timestamps, b, last)
        batch = self._converted(batch, like)
        if self.scale is not None:
            batch = _divided(batch, self.scale)
        if weights is not None and not w.all():
            present = np.flatnonzero(w)
            batch, w, t = _take(batch, present), w[present], t[present]
        return batch, w, t

    def _converted(self, batch: Array, like: Array | None) -> Array:
        dtype = self.dtype or (dtype_name(batch) if like is None else dtype_name(like))
        if is_sparse(batch):
            if like is not None and not isinstance(like, np.ndarray):
                batch = from_numpy(batch.toarray(), like=like)
            return batch if dtype_name(batch) == dtype else batch.astype(dtype)
        if like is not None and namespace(batch) is not namespace(like):
            batch = from_numpy(to_numpy(batch), like=like)
        if dtype_name(batch) == dtype:
            return batch
        xp = namespace(batch)
        return batch.astype(dtype) if xp is np else xp.astype(batch, getattr(xp, dtype))

    def _checked_times(self, timestamps: Any, b: int, last: float) -> np.ndarray:
        if self.half_life is None:
            cure = "make it with half_life as a time, for example half_life='30s'"
            msg = f"got timestamps, but this sketch ages by rows or not at all; {cure}"
            raise ValueError(msg)
        if timestamps is None:
            cure = "pass update(X, timestamps=t) with one time a row"
            msg = f"half_life={self.half_life} s ages rows by time, but no timestamps came; {cure}"
            raise ValueError(msg)
        t = np.asarray(to_numpy(timestamps) if not isinstance(timestamps, (list, tuple)) else timestamps)
        if t.dtype.kind == "M":
            t = t.astype("datetime64[ns]").astype(np.int64) / 1e9
        t = np.atleast_1d(t).astype(np.float64)
        if t.shape != (b,):
            msg = f"got timestamps of shape {t.shape} for a batch of {b} rows; expected one time in seconds (or datetime64) for each row"
            raise ValueError(msg)
        steps = np.diff(t, prepend=last)
        if not np.isfinite(t).all() or (steps < 0).any():
            row = int(np.flatnonzero(~np.isfinite(t) | (steps < 0))[0])
            before = t[row - 1] if row else last
            msg = f"timestamps must be finite and in order; row {row} has {t[row]} after {before}: sort the batch by time first"
            raise ValueError(msg)
        return t


def _checked_weights(weights: Any, b: int) -> np.ndarray:
    w = np.asarray(to_numpy(weights) if not isinstance(weights, (list, tuple, float, int)) else weights)
    if w.dtype.kind not in "fiub":
        msg = f"got weights of dtype {w.dtype}; expected one non-negative number for each row"
        raise TypeError(msg)
    if w.shape != (b,):
        msg = f"got weights of shape {w.shape} for a batch of {b} rows; expected one weight for each row, shape ({b},)"
        raise ValueError(msg)
    w = w.astype(np.float64)
    bad = np.flatnonzero(~(np.isfinite(w) & (w >= 0)))
    if bad.size:
        msg = f"weights must be finite and not negative; row {bad[0]} has {w[bad[0]]} ({bad.size} such rows): clip them or drop those rows"
        raise ValueError(msg)
    return w


def _divided(batch: Array, scale: np.ndarray) -> Array:
    if is_sparse(batch):
        return (batch @ _diagonal(1.0 / scale)).tocsr().astype(batch.dtype)
    xp = namespace(batch)
    out = batch / from_numpy(scale, like=batch)[None, :]
    return out.astype(batch.dtype) if xp is np else xp.astype(out, batch.dtype)


def _diagonal(values: np.ndarray) -> Any:
    from scipy.sparse import diags_array

    return diags_array(values)


def _take(batch: Array, rows: np.ndarray) -> Array:
    if is_sparse(batch) or isinstance(batch, np.ndarray):
        return batch[rows]
    xp = namespace(batch)
    from streamsvd.arrays import device_of

    return xp.take(batch, xp.asarray(rows, device=device_of(batch)), axis=0)
