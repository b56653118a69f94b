"""The small algebra of a fold: which r directions of the m stacked rows to keep, and their polish.

All of it is float64 on the CPU. The stack is ``M = [diag(s) V; X]``, seen through its Gram matrix
``G = [[diag(s) C diag(s), diag(s) P'], [P diag(s), X X']]``, ``P = X V'``, ``C = V V'``. V is orthonormal to the polish tolerance only, and
taking C for the identity would enter energies in first order, times s_1^2: far above the rounding of rows where the residual is small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from streamsvd.arrays import one_thread, small_eigh

TRIGGER = 2.0
WELL_CONDITIONED = 1e-5
LANCZOS_STEPS = 8


@dataclass(frozen=True, eq=False)
class Directions:
    """Orthonormal combinations Q (m, p) of the stacked rows, whose images ``Q'M`` are orthogonal with squared norms ``w``.

    ``M'M = (Q'M)'(Q'M) + M'(I - QQ')M``; ``discarded`` is the trace of the last term and ``top`` at least its spectral norm.
    """

    Q: np.ndarray
    w: np.ndarray
    discarded: float
    top: float


def leading(
    s: np.ndarray, C: np.ndarray, P: np.ndarray, XX: np.ndarray, kept: int, /, *, exact: bool = False, single: bool = False
) -> Directions:
    """Find at most ``kept`` directions: two warm-started subspace steps from the old ones, or all eigenvectors where that is owed.

    Parameters
    ----------
    s : array (q,), singular values of the old rows
    C : array (q, q), Gram matrix of the old directions
    P : array (b, q), products of the new rows with the old directions
    XX : array (b, b), Gram matrix of the new rows
    kept : int
    exact : bool
        Always take the eigenvectors (Frequent Directions needs them).
    single : bool
        ``P`` and ``XX`` are accurate to float32 only, so products with them are float32 too.

    Notes
    -----
    Any orthonormal Q keeps the ledger exact, so the subspace need not be converged. But new rows orthogonal to V are never seen from
    the old directions, however many steps are made: where the rest has a direction heavier than twice the least one kept, the fold is
    done again by eigenvectors. Cost: about ``2 (b^2 + 6 m kept) kept`` flops, or ``9 m^3``.
    """
    q, b = s.size, XX.shape[0]
    if not exact and q == kept and b >= kept:
        with one_thread():
            found = _warm(s, C, P, XX, np.float32 if single else np.float64)
        if found is not None and found.top <= TRIGGER * found.w[-1]:
            return found
    G = np.zeros((q + b, q + b))
    G[:q, :q] = C * np.outer(s, s)
    G[q:, :q] = P * s
    G[q:, q:] = XX
    w, Q = small_eigh(G)
    w = np.maximum(w, 0.0)
    rest = w[kept:]
    return Directions(Q[:, :kept], w[:kept], float(rest.sum()), float(rest[0]) if rest.size else 0.0)


def _warm(s: np.ndarray, C: np.ndarray, P: np.ndarray, XX: np.ndarray, dtype: Any) -> Directions | None:
    """Two steps of subspace iteration from the old directions, then Rayleigh and Ritz; None where the steps degenerate."""
    q, m = s.size, s.size + XX.shape[0]
    power, diagonal = s * s, np.diag(XX)
    low_P, low_XX = P.astype(dtype), XX.astype(dtype)
    PP = (low_P.T @ low_P).astype(np.float64)
    norms = np.sqrt(power + np.diag(PP))
    if not np.all(norms > 0):
        return None
    # Y = G [diag(s); P] / norms: the second step, with the structure of G used.
    Y = np.empty((m, q))
    Y[:q] = s[:, None] * (PP + C * power)
    Y[q:] = P * power + low_XX @ low_P
    Y /= norms
    Q = _orthonormal_columns(Y)
    low_Q = Q[q:].astype(dtype)
    K = np.empty((m, q))
    K[:q] = s[:, None] * (C @ (s[:, None] * Q[:q]) + low_P.T @ low_Q)
    K[q:] = low_P @ (s[:, None] * Q[:q]).astype(dtype) + low_XX @ low_Q
    H = Q.T @ K
    w, Z = small_eigh((H + H.T) / 2)
    Q, K = Q @ Z, K @ Z
    # Diagonal of R = (I - QQ') G (I - QQ'), with G Q = K and Q' G Q = diag(w).
    rest = np.concatenate([power * np.diag(C), diagonal]) - np.einsum("ij,ij->i", Q, 2.0 * K - Q * w)
    discarded = float(np.maximum(rest, 0.0).sum())
    top = _certified_top(s, C, low_P, low_XX, Q)
    return Directions(Q, np.maximum(w, 0.0), discarded, min(top, discarded))


def _orthonormal_columns(Y: np.ndarray) -> np.ndarray:
    """Orthonormalise columns by Cholesky QR, twice, or by Householder QR where their condition is not surely below 1e6."""
    from scipy.linalg.blas import dtrsm

    Y = Y / np.sqrt(np.einsum("ij,ij->j", Y, Y))
    try:
        for _ in range(2):
            L = np.linalg.cholesky(Y.T @ Y)
            if np.diag(L).min() < WELL_CONDITIONED:
                break
            # Y L^-T, with Y seen as the column-major transpose of itself.
            Y = dtrsm(1.0, L, Y.T, lower=1).T
        else:
            return Y
    except np.linalg.LinAlgError:
        pass
    return np.linalg.qr(Y)[0]


def _certified_top(s: np.ndarray, C: np.ndarray, P: np.ndarray, XX: np.ndarray, Q: np.ndarray) -> float:
    """Return an upper bound, at most about 10 % above the truth, of the largest eigenvalue of G on the complement of Q.

    A few Lanczos steps propose a value t, one Cholesky factorization proves it. The complement is ``{(-F'z, z)}`` with
    ``F = Q_2 Q_1^-1``, so t is an upper bound if and only if ``t (I + F F') - S`` is positive, where
    ``S = X X' + (F D - P)(F D - P)' - P P' + F D (C - I) D F'`` and ``D = diag(s)``: a b x b matrix in place of m x m.
    """
    from scipy.linalg.lapack import dpotrf, spotrf

    dtype, q, b = XX.dtype, s.size, XX.shape[0]
    try:
        F = np.linalg.solve(Q[:q].T, Q[q:].T).T.astype(dtype)
    except np.linalg.LinAlgError:
        return float("inf")
    FD = F * s.astype(dtype)
    defect = (FD @ (C - np.eye(q)).astype(dtype)) @ FD.T
    FD -= P
    S = XX + FD @ FD.T - P @ P.T + (defect + defect.T) / 2
    N = F @ F.T
    N.flat[:: b + 1] += 1
    # Rounding of S: that of its terms, which cancel.
    slack = 4.0 * float(np.finfo(dtype).eps) * float(np.linalg.norm(np.diag(XX)) + np.linalg.norm(FD) ** 2)
    t = _lanczos(S, F)
    factor = spotrf if dtype == np.float32 else dpotrf
    for grow in (1.03, 1.1, 1.3, 2.0, 4.0):
        bound = grow * t + slack
        if factor((dtype.type(bound) * N - S).T, lower=1, overwrite_a=1, clean=0)[1] == 0:
            return bound + slack
    return float(np.linalg.eigvalsh(S.astype(np.float64))[-1]) + slack


def _lanczos(S: np.ndarray, F: np.ndarray) -> float:
    """Estimate, from below, the largest quotient ``z'Sz / (z'z + |F'z|^2)`` by a few Lanczos steps on S."""
    diagonal = np.diag(S)
    first = int(np.argmax(diagonal))
    if not diagonal[first] > 0:
        return 0.0
    V = np.zeros((LANCZOS_STEPS, S.shape[0]), S.dtype)
    x, steps = S[:, first], 0
    for j in range(LANCZOS_STEPS):
        for _ in range(2):
            x = x - V[:j].T @ (V[:j] @ x)
        size = float(np.sqrt(x @ x))
        if not size > 1e-6 * float(diagonal[first]):
            break
        V[j] = x / size
        x, steps = S @ V[j], j + 1
    V = V[:steps]
    T = (V @ S @ V.T).astype(np.float64)
    w, Z = np.linalg.eigh((T + T.T) / 2)
    z = V.T @ Z[:, -1].astype(S.dtype)
    more = F.T @ z
    return max(float(w[-1]) / (float(z @ z) + float(more @ more)), 0.0)


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
    from scipy.linalg.blas import dtrsm

    size = np.sqrt(np.diag(C))
    if not np.all(size > 0):
        return None
    with one_thread():
        try:
            L = np.linalg.cholesky(C / np.outer(size, size))
        except np.linalg.LinAlgError:
            return None
        Z, S, Y = np.linalg.svd((D * size)[:, None] * L)
        K = dtrsm(1.0, L, Y, side=1, lower=1) / size
    return Polish(K, S, Z, bool(np.diag(L).min() < 0.5))
