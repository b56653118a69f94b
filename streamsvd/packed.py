"""Small symmetric systems, one for each row or column of a batch: packed lower triangles, weighted normal equations, elimination."""

from __future__ import annotations

from typing import Any

import numpy as np

from streamsvd.arrays import Array, namespace, to_numpy


def pairs(V: Any, /) -> Any:
    """Return the products of rows k >= l of V (r, d), in the order of a packed lower triangle."""
    rows, columns = np.tril_indices(V.shape[0])
    if isinstance(V, np.ndarray):
        return V[rows] * V[columns]
    return namespace(V).stack([V[int(k), :] * V[int(m), :] for k, m in zip(rows, columns, strict=True)])


def pair_turn(M: np.ndarray, /) -> np.ndarray:
    """Return the matrix that turns packed ``A`` into packed ``M A M'``."""
    rows, columns = np.tril_indices(M.shape[0])
    plain = M[np.ix_(rows, rows)] * M[np.ix_(columns, columns)]
    crossed = M[np.ix_(rows, columns)] * M[np.ix_(columns, rows)]
    return np.ascontiguousarray(plain + np.where(rows != columns, crossed, 0.0))


def regress(W: Array, filled: Array, vt: Array, products: Array, old: np.ndarray, /) -> np.ndarray:
    """Solve the weighted normal equations of each row; a row without weights keeps its coefficients."""
    xp, (b, r) = namespace(W), old.shape
    sums = to_numpy(xp.astype(W @ products.T, xp.float64))
    right = to_numpy(xp.astype((W * filled) @ vt.T, xp.float64))
    M = np.zeros((b, r, r))
    rows, columns = np.tril_indices(r)
    M[:, rows, columns] = sums
    M[:, columns, rows] = sums
    ridge = 1e-12
    M[:, np.arange(r), np.arange(r)] += ridge
    return np.linalg.solve(M, (right + ridge * old)[:, :, None])[:, :, 0]


def solved(moments: Array, cross: Array, old: Array, ridge: float, /) -> Array:
    """Solve ``(A_i + ridge) u_i = b_i + ridge old_i`` for all columns at once: LDL' elimination on vectors of their length."""
    r, xp = cross.shape[0], namespace(cross)
    A = {(k, m): moments[k * (k + 1) // 2 + m, :] + (ridge if k == m else 0.0) for k in range(r) for m in range(k + 1)}
    y = [cross[k, :] + ridge * old[k, :] for k in range(r)]
    for m in range(r):
        # What rounding makes of a dead direction must not be divided by.
        A[m, m] = xp.where(A[m, m] > ridge * 1e-3, A[m, m], xp.full_like(A[m, m], ridge))
        for k in range(m + 1, r):
            factor = A[k, m] / A[m, m]
            y[k] = y[k] - factor * y[m]
            for n in range(m + 1, k + 1):
                A[k, n] = A[k, n] - factor * A[n, m]
    for m in reversed(range(r)):
        for k in range(m + 1, r):
            y[m] = y[m] - A[k, m] * y[k]
        y[m] = y[m] / A[m, m]
    return xp.stack(y)
