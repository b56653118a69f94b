"""The small algebra of a fold: which r directions of the m stacked rows to keep, and their polish.

All of it is float64 on the CPU. The stack is ``M = [diag(s) V; X]``, seen through its Gram matrix
``G = [[diag(s) C diag(s), diag(s) P'], [P diag(s), X X']]``, ``P = X V'``, ``C = V V'``. V is orthonormal to the polish tolerance only, and
taking C for the identity would enter energies in first order, times s_1^2: far above the rounding of rows where the residual is small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from streamsvd.arrays import blas_routine, one_thread, small_eigh, small_svd

TRIGGER = 2.0
TURNED = 1e6
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
    s: np.ndarray,
    C: np.ndarray,
    P: np.ndarray,
    XX: np.ndarray,
    kept: int,
    /,
    *,
    exact: bool = False,
    single: bool = False,
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
    """Two steps of subspace iteration from the old directions, then Rayleigh and Ritz; None where the steps degenerate.

    Products with the new rows are taken in the precision of their Gram matrix, all that makes Q orthonormal and ``w`` in float64.
    """
    q, m = s.size, s.size + XX.shape[0]
    power = s * s
    low_P, low_XX = P.astype(dtype), XX.astype(dtype)
    PP = (low_P.T @ low_P).astype(np.float64)
    norms = np.sqrt(power + np.diag(PP))
    if not np.all(norms > 0):
        return None
    # Y = G [diag(s); P] / norms, the second step with the structure of G used. Its span is that of [I; F].
    upper = (s[:, None] * (PP + C * power) / norms).astype(dtype)
    lower = ((P * power + low_XX @ low_P) / norms).astype(dtype)
    found = _orthonormal_columns(upper, lower)
    if found is None:
        return None
    Q, F = found
    low_Q, turned = Q[q:].astype(dtype), s[:, None] * Q[:q]
    K = np.empty((m, q))
    K[:q] = s[:, None] * (C @ turned + low_P.T @ low_Q)
    K[q:] = low_P @ turned.astype(dtype) + low_XX @ low_Q
    H = Q.T @ K
    H = (H + H.T) / 2
    w, Z = small_eigh(H)
    # The trace of R = (I - QQ') G (I - QQ'), with G Q = K and Q' G Q = H; its diagonal, clamped, is less noisy where that shows.
    diagonal = np.concatenate([power * np.diag(C), np.diag(XX)])
    discarded = float(diagonal.sum() - np.trace(H))
    if dtype == np.float64 or discarded <= 0:
        discarded = float(np.maximum(diagonal - np.einsum("ij,ij->i", Q, 2.0 * K - Q @ H), 0.0).sum())
    top = _certified_top(s, C, low_P, low_XX, F, low_Q)
    return Directions(Q @ Z, np.maximum(w, 0.0), discarded, min(top, discarded))


def _orthonormal_columns(upper: np.ndarray, lower: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return orthonormal columns Q (m, q), float64, with the span of ``[upper; lower]``, and ``F = lower upper^-1``.

    ``[I; F]`` spans the same, and is well conditioned unless the subspace turns by nearly a right angle (then None): one Cholesky QR
    of it is orthonormal to the rounding of float64, whatever the precision that F was found in.
    """
    q = upper.shape[0]
    try:
        F = lower @ np.linalg.inv(upper)
        wide = F.astype(np.float64)
        N = wide.T @ wide
        if not float(np.trace(N)) < TURNED:
            return None
        N.flat[:: q + 1] += 1.0
        inverse = blas_routine("dtrtri")(np.linalg.cholesky(N), lower=1)[0]
    except np.linalg.LinAlgError:
        return None
    Q = np.empty((q + F.shape[0], q))
    Q[:q] = inverse.T
    np.matmul(wide, inverse.T, out=Q[q:])
    return Q, F


def _certified_top(
    s: np.ndarray, C: np.ndarray, P: np.ndarray, XX: np.ndarray, F: np.ndarray, low_Q: np.ndarray
) -> float:
    """Return an upper bound, about 10 % above the truth, of the largest eigenvalue of G on the complement of Q.

    A few Lanczos steps propose a value t, one Cholesky factorization proves it. The complement is ``{(-F'z, z)}``, so t is an upper bound
    if and only if ``t (I + F F') - S`` is positive, with ``S = X X' + F D C D F' - F D P' - P D F'`` and ``D = diag(s)``: a b x b matrix in
    place of m x m.
    """
    dtype, b = XX.dtype, XX.shape[0]
    FD = F * s.astype(dtype)
    S = FD @ (FD @ (C / 2).astype(dtype) - P).T
    S += S.T
    S += XX
    N = F @ F.T
    N.flat[:: b + 1] += 1
    # Rounding of S is that of its terms, which cancel.
    eps, size = float(np.finfo(dtype).eps), float(np.einsum("ij,ij->", FD, FD))
    slack = 4.0 * eps * (float(np.linalg.norm(np.diag(XX))) + size)
    factor = blas_routine("spotrf" if dtype == np.float32 else "dpotrf")
    t = _lanczos(S, low_Q)
    for grow in (1.08, 1.2, 1.5, 2.5):
        bound = grow * t + slack
        if factor((dtype.type(bound) * N - S).T, lower=1, overwrite_a=1, clean=0)[1] == 0:
            return bound * (1.0 + b * eps) + slack
    return float(np.linalg.eigvalsh(S.astype(np.float64))[-1]) + slack


def _lanczos(S: np.ndarray, low_Q: np.ndarray) -> float:
    """Estimate, from below, the largest quotient ``z'Sz / z'Nz`` with ``N^-1 = I - low_Q low_Q'``, by a few Lanczos steps."""
    diagonal = np.diag(S)
    first = int(np.argmax(diagonal))
    if not diagonal[first] > 0:
        return 0.0
    # V holds N-orthonormal vectors, W = N V, so no product with N is needed: the image of v under N^-1 S is S v measured by N.
    V, W = (np.zeros((LANCZOS_STEPS, S.shape[0]), S.dtype) for _ in range(2))
    y, least, steps = S[:, first], 1e-5 * float(diagonal[first]), 0
    for j in range(LANCZOS_STEPS):
        z = y - low_Q @ (low_Q.T @ y)
        for _ in range(2):
            along = W[:j] @ z
            z, y = z - V[:j].T @ along, y - W[:j].T @ along
        size = float(y @ z) ** 0.5 if y @ z > 0 else 0.0
        if not size > least:
            break
        V[j], W[j] = z / size, y / size
        y, steps = S @ V[j], j + 1
    V = V[:steps]
    T = (V @ S @ V.T).astype(np.float64)
    return max(float(np.linalg.eigvalsh((T + T.T) / 2)[-1]), 0.0) if steps else 0.0


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
    size = np.sqrt(np.diag(C))
    if not np.all(size > 0):
        return None
    with one_thread():
        try:
            L = np.linalg.cholesky(C / np.outer(size, size))
        except np.linalg.LinAlgError:
            return None
        Z, S, Y = small_svd((D * size)[:, None] * L)
        K = blas_routine("dtrsm")(1.0, L, Y, side=1, lower=1) / size
    return Polish(K, S, Z, bool(np.diag(L).min() < 0.5))
