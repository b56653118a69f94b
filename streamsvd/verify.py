"""Oracles that users can run themselves: the residual, subspace angles and orthonormality, in float64 and the plain way."""

from __future__ import annotations

from typing import Any

import numpy as np

from streamsvd.arrays import Array, is_sparse, to_numpy


def residual(A: Any, vt: Array, /, *, mean: Any = None, weights: Any = None) -> float:
    """Return ``||diag(sqrt(w)) (A - 1 mean') (I - V'V)||_F^2``, what the certified ``bound.residual`` must not be below.

    Parameters
    ----------
    A : array (n, d) or sparse
    vt : array (k, d), orthonormal rows
    mean : array (d,), optional
        Subtracted from every row; pass ``factors.mean`` for a centred stream.
    weights : array (n,), optional

    Notes
    -----
    Cost: ``2 n d k`` multiply-adds in float64, 4096 rows at a time.
    """
    V = to_numpy(vt).astype(np.float64)
    center = np.zeros(V.shape[1]) if mean is None else to_numpy(mean).astype(np.float64)
    A = A.tocsr() if is_sparse(A) else A
    total = 0.0
    for start in range(0, A.shape[0], 4096):
        rows = A[start : min(start + 4096, A.shape[0]), :]
        X = (rows.toarray() if is_sparse(rows) else to_numpy(rows)).astype(np.float64) - center
        rest = X - (X @ V.T) @ V
        w = 1.0 if weights is None else to_numpy(weights)[start : start + 4096, None]
        total += float(np.sum(w * rest * rest))
    return total


def angles(v1: Array, v2: Array, /) -> np.ndarray:
    """Return the principal angles between two row spaces, in radians, ascending (Björck and Golub 1973; sines where they are small).

    Parameters
    ----------
    v1, v2 : array (k1, d), array (k2, d)
        Rows need not be orthonormal.
    """
    from scipy.linalg import subspace_angles

    return subspace_angles(to_numpy(v1).astype(np.float64).T, to_numpy(v2).astype(np.float64).T)[::-1]


def orthonormality(vt: Array, /) -> float:
    """Return ``max |V V' - I|`` over all pairs of rows, in float64."""
    V = to_numpy(vt).astype(np.float64)
    return float(np.abs(V @ V.T - np.eye(V.shape[0])).max(initial=0.0))
