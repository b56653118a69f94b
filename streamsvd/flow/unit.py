"""``scale="unit"``: states of exact moments scale as they are read, truncated ones take a pass over the source before they fold it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.arrays import is_sparse, to_numpy
from streamsvd.flow.pieces import Piece, located

if TYPE_CHECKING:
    from collections.abc import Iterable

REREAD = "pass something that can be read twice (a path, a table, a list of arrays), a vector scale=, or kind='gram'"


def check_reread(source: Any, /) -> None:
    """Refuse a source that cannot be read twice."""
    for part in source if isinstance(source, list | tuple) else [source]:
        if hasattr(part, "__next__") or callable(getattr(part, "stop", None)):
            once = "gives its rows once" if hasattr(part, "__next__") else "has no end"
            msg = f"scale='unit' with a truncated state reads the source twice, and a {type(part).__name__} {once}; {REREAD}"
            raise ValueError(msg)


def check_same(measured: int | None, folded: int, /) -> None:
    """Refuse a result whose source gave other rows when it was read again."""
    if measured not in (None, folded):
        msg = f"the source gave {measured} rows when its columns were measured and {folded} when they were folded; {REREAD}"
        raise ValueError(msg)


def deviations(stream: Iterable[Piece], options: Any, advance: Any, /) -> tuple[np.ndarray, int]:
    """Return the standard deviation of each column (root mean square without centring; 1 where it is 0) and the rows that it is of.

    Weights and decay count as in the state; moments of batches are joined in float64 (Chan, Golub and LeVeque 1983).
    """
    if options.half_life is not None:
        msg = "scale='unit' with a half_life in time wants kind='gram', which measures as it goes; or pass a vector scale="
        raise ValueError(msg)
    from streamsvd.batch import as_batch

    rows, total = 0, 0.0
    mean, square = np.zeros(options.columns), np.zeros(options.columns)
    for piece in stream:
        if piece.x is None or not piece.x.shape[0]:
            continue
        with located(piece):
            x = as_batch(piece.x, columns=options.columns)
        w = np.asarray(piece.beside.get("weights", np.ones(x.shape[0])))
        x, w = (x, w) if w.all() else (x[np.flatnonzero(w)], w[w != 0])
        w = w * options.decay ** np.arange(w.size - 1, -1, -1.0)
        past = options.decay**w.size
        here, spread = _moments(x, w, options.center)
        total, before = total * past + w.sum(), total * past
        share = w.sum() / total if total > 0 else 0.0
        square = square * past + spread + before * share * (here - mean) ** 2
        mean = mean + share * (here - mean)
        rows += w.size
        advance(x.shape[0])
    deviation = np.sqrt(square / (total - 1.0 if options.center and total > 1.0 else max(total, 1e-300)))
    return np.where(deviation > 0, deviation, 1.0), rows


def _moments(x: Any, w: np.ndarray, center: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the weighted mean of each column (0 without centring) and the weighted sum of squares about it."""
    if is_sparse(x):
        mean = (x.T.astype(np.float64) @ w) / max(w.sum(), 1e-300) * center
        return mean, np.maximum((x.multiply(x).T.astype(np.float64) @ w) - w.sum() * mean**2, 0.0)
    x = to_numpy(x).astype(np.float64)
    mean = (w @ x) / max(w.sum(), 1e-300) * center
    return mean, w @ (x - mean) ** 2
