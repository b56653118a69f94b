"""The small algebra of a fold: which r directions of the m stacked rows to keep, and their polish.

All of it is float64 on the CPU. The stack is ``M = [diag(s) V; X]`` with ``V V' = I``, seen through its Gram matrix
``G = [[diag(s^2), diag(s) P'], [P diag(s), X X']]``, ``P = X V'``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streamsvd.arrays import one_thread, small_eigh

TRIGGER = 2.0


@dataclass(frozen=True, eq=False)
class Directions:
    """Orthonormal combinations Q (m, p) of the stacked rows, whose images ``Q'M`` are orthogonal with squared norms ``w``.

    ``M'M = (Q'M)'(Q'M) + M'(I - QQ')M``; ``discarded`` is the trace of the last term and ``top`` at least its spectral norm.
    """

    Q: np.ndarray
    w: np.ndarray
    discarded: float
    top: float


def leading(s: np.ndarray, P: np.ndarray, XX: np.ndarray, kept: int, /, *, exact: bool = False) -> Directions:
    """Find at most ``kept`` directions: two warm-started subspace steps from the old ones, or all eigenvectors where that is owed.

    Parameters
    ----------
    s : array (q,), singular values of the old rows
    P : array (b, q), products of the new rows with the old directions
    XX : array (b, b), Gram matrix of the new rows
    kept : int
    exact : bool
        Always take the eigenvectors (Frequent Directions needs them).

    Notes
    -----
    Any orthonormal Q keeps the ledger exact, so the subspace need not be converged. But new rows orthogonal to V are never seen from
    the old directions, however many steps are made: where the rest has a direction heavier than twice the least one kept, the fold is
    done again by eigenvectors. Cost: about ``2 (b^2 + 6 m kept) kept`` flops, or ``9 m^3``.
    """
    q, b = s.size, XX.shape[0]
    if not exact and q == kept and b >= kept:
        found = _warm(s, P, XX)
        if found is not None and found.top <= TRIGGER * found.w[-1]:
            return found
    G = np.zeros((q + b, q + b))
    G[np.arange(q), np.arange(q)] = s * s
    G[q:, :q] = P * s
    G[q:, q:] = XX
    w, Q = small_eigh(G)
    w = np.maximum(w, 0.0)
    rest = w[kept:]
    return Directions(Q[:, :kept], w[:kept], float(rest.sum()), float(rest[0]) if rest.size else 0.0)


def _warm(s: np.ndarray, P: np.ndarray, XX: np.ndarray) -> Directions | None:
    """Two steps of subspace iteration from the old directions, then Rayleigh and Ritz."""
    from scipy.linalg import eigvalsh, qr

    q, m = s.size, s.size + XX.shape[0]
    with one_thread():
        PP = P.T @ P
        norms = np.sqrt(s * s + np.diag(PP))
        if not np.all(norms > 0):
            return None
        # Y = G [diag(s); P] / norms: the second step, with the structure of G used.
        Y = np.empty((m, q))
        Y[:q] = s[:, None] * PP
        Y[np.arange(q), np.arange(q)] += s**3
        Y[q:] = P * (s * s) + XX @ P
        Y /= norms
        Q = np.asarray(qr(Y, mode="economic", overwrite_a=True, check_finite=False)[0])
        K = np.empty((m, q))
        K[:q] = (s * s)[:, None] * Q[:q] + s[:, None] * (P.T @ Q[q:])
        K[q:] = P @ (s[:, None] * Q[:q]) + XX @ Q[q:]
        H = Q.T @ K
        w, Z = small_eigh((H + H.T) / 2)
        Q, K = Q @ Z, K @ Z
        # R = (I - QQ') G (I - QQ'), with G Q = K and Q' G Q = diag(w).
        half = K - Q * (w / 2)
        R = -(half @ Q.T)
        R += R.T
        R[np.arange(q), np.arange(q)] += s * s
        R[q:, :q] += P * s
        R[:q, q:] += (P * s).T
        R[q:, q:] += XX
        discarded = float(np.maximum(np.diag(R), 0.0).sum())
        top = float(eigvalsh(R, subset_by_index=(m - 1, m - 1), check_finite=False)[0])
    return Directions(Q, np.maximum(w, 0.0), discarded, max(top, 0.0))


@dataclass(frozen=True, eq=False)
class Polish:
    """Corrected factors: ``V <- K @ rows`` with singular values ``s`` and left rotation ``Z``; ``again`` asks for a second pass."""

    K: np.ndarray
    s: np.ndarray
    Z: np.ndarray
    again: bool


def polish(D: np.ndarray, C: np.ndarray, /) -> Polish | None:
    """Orthonormalise rows ``diag(D) B`` whose unit-free Gram matrix ``C = B B'`` has been measured; None if Cholesky fails.

    ``C = L L'`` and the small SVD ``diag(D) L = Z S Y`` give ``diag(D) B = Z S (Y L^-1 B)`` with orthonormal rows in the bracket: Cholesky
    QR, preconditioned by the rotation that made the rows nearly orthogonal (Yamamoto et al. 2015; Demmel and Veselic 1992 for the
    scaling that keeps small singular values relatively accurate).
    """
    from scipy.linalg import LinAlgError, cholesky, solve_triangular, svd

    size = np.sqrt(np.diag(C))
    if not np.all(size > 0):
        return None
    with one_thread():
        try:
            L = cholesky(C / np.outer(size, size), lower=True, check_finite=False)
        except LinAlgError:
            return None
        Z, S, Y = svd((D * size)[:, None] * L, lapack_driver="gesvd", check_finite=False)
        K = solve_triangular(L, Y.T, trans=1, lower=True, check_finite=False).T / size
    return Polish(np.asarray(K), S, Z, bool(np.diag(L).min() < 0.5))
