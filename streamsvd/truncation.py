"""One truncation: which directions of a stack of rows stay, and the orthonormal rows that result."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.arrays import Array, device_of, dtype_name, from_numpy, namespace, one_thread, to_numpy
from streamsvd.stack import DenseRows, SparseRows, apply_left
from streamsvd.subspace import leading, polish

if TYPE_CHECKING:
    from streamsvd.options import Options

POLISH_TOLERANCE = {"float32": 1e-6, "float64": 1e-13}
RESOLVED = 1e3


@dataclass(frozen=True, eq=False)
class Kept:
    """What a truncation leaves: ``diag(s) V = Q' M``, and what it removed from ``M'M``.

    ``energy`` is that of the new rows, ``mass`` that of the whole stack, ``uncentered`` what centring by rank-one terms cancelled.
    """

    vt: Array
    s: np.ndarray
    Q: np.ndarray
    test: Array
    discarded: float
    top: float
    energy: float
    mass: float
    uncentered: float


def truncate(
    vt: Array,
    s: np.ndarray,
    rows: DenseRows | SparseRows,
    options: Options,
    test: tuple[Array, float, Any],
    /,
    *,
    double: bool = False,
) -> Kept:
    """Keep the ``options.kept`` heaviest directions of ``M = [diag(s) V; rows]``.

    Parameters
    ----------
    vt, s : array (q, d), array (q,)
        Old rows, orthonormal up to the polish tolerance.
    rows : DenseRows or SparseRows, b of them
    test : (sketch, fade, (slots, signs) or None)
        The test sketch, taken along in the same pass over the panels.
    double : bool
        Form float64 products of float32 rows at once.

    Notes
    -----
    Cost: ``d (b^2 / 2 + 2 b r + r^2 + r^2 / 2)`` multiply-adds, plus small algebra of order ``b^2 r``; by Householder QR,
    ``2 m d^2``, where the stack has more rows than columns.
    """
    m = s.size + rows.count
    if vt.shape[1] <= m:
        kept = _tall(vt, s, rows, options.kept, test)
    else:
        kept = _wide(vt, s, rows, options, test, double)
    if options.shrink > 0 and m > options.kept and kept.s.size:
        return _shrunk(kept, options.shrink)
    return kept


def _wide(
    vt: Array,
    s: np.ndarray,
    rows: DenseRows | SparseRows,
    options: Options,
    test: tuple[Array, float, Any],
    double: bool,
) -> Kept:
    eps = float(np.finfo(dtype_name(vt)).eps)
    q, m = s.size, s.size + rows.count
    entered = rows.enter(vt, test, double=double)
    energy = float(np.trace(entered.XX))
    mass = energy + float(s @ s)
    if not 0 < mass < np.inf:
        return Kept(vt[:0, :], np.zeros(0), np.zeros((m, 0)), entered.test, 0.0, 0.0, energy, mass, rows.uncentered)
    found = leading(s, entered.P, entered.XX, options.kept, exact=options.shrink > 0, single=eps > 1e-8 and not double)
    if eps > 1e-8 and not double and min(found.discarded, float(found.w[-1])) < RESOLVED * eps * energy:
        # What the fold must resolve is near the rounding of float32 products.
        entered = replace(rows.enter(vt, (test[0], test[1], None), double=True), test=entered.test)
        found = leading(s, entered.P, entered.XX, options.kept, exact=options.shrink > 0)
    least = math.sqrt(m) * eps * math.sqrt(found.w[0])
    D = np.maximum(np.sqrt(found.w), least)
    coefficients = found.Q.T / D[:, None]
    B, C = rows.rotate(vt, coefficients[:, :q] * s, coefficients[:, q:], energy)
    vt, s, Z, dropped = _orthonormal(B, C, D, found.w, least)
    discarded, top = found.discarded + float(dropped.sum()), found.top + float(dropped.max(initial=0.0))
    return Kept(vt, s, found.Q @ Z, entered.test, discarded, top, energy, mass, rows.uncentered)


def _tall(vt: Array, s: np.ndarray, rows: DenseRows | SparseRows, kept: int, test: tuple[Array, float, Any]) -> Kept:
    """Factor a stack of more rows than columns by Householder QR in float64: no Gram matrix, so no squared condition number."""
    from scipy.linalg import qr, svd

    fresh = rows.enter(vt[:0, :], test).test
    new = rows.dense()
    M = np.concatenate([s[:, None] * to_numpy(vt), new])
    energy = float(np.vdot(new, new))
    mass = energy + float(s @ s)
    if not 0 < mass < np.inf:
        return Kept(vt[:0, :], np.zeros(0), np.zeros((M.shape[0], 0)), fresh, 0.0, 0.0, energy, mass, rows.uncentered)
    with one_thread():
        basis, R = qr(M, mode="economic", overwrite_a=True, check_finite=False)
        U, S, Vt = svd(R, check_finite=False)
    eps = float(np.finfo(dtype_name(vt)).eps)
    p = min(kept, int(np.count_nonzero(math.sqrt(M.shape[0]) * eps * S[0] < S)))
    rest = S[p:] ** 2
    B = from_numpy(np.ascontiguousarray(Vt[:p]), like=vt, dtype=dtype_name(vt))
    Q = np.asarray(basis) @ U[:, :p]
    return Kept(
        B, S[:p].copy(), Q, fresh, float(rest.sum()), float(rest.max(initial=0.0)), energy, mass, rows.uncentered
    )


def _orthonormal(
    B: Array, C: np.ndarray, D: np.ndarray, w: np.ndarray, least: float
) -> tuple[Array, np.ndarray, np.ndarray, np.ndarray]:
    """Return orthonormal rows V, s and the small rotation Z with ``diag(D) B = Z diag(s) V``, and the energies of rows dropped as zero.

    Rows are polished only where their measured Gram matrix C says so. The energies stay those of ``w``: taking them from polished
    float32 rows adds the bias of float32 products fold after fold.
    """
    tolerance = POLISH_TOLERANCE[dtype_name(B)]
    size = D * np.sqrt(np.maximum(np.diag(C), 0.0))
    keep = np.flatnonzero(size > least)
    dropped = np.maximum(np.delete(w, keep), np.delete(size, keep) ** 2)
    Z = np.eye(w.size)[:, keep]
    if keep.size < w.size:
        B, C, D, w = _rows(B, keep), C[np.ix_(keep, keep)], D[keep], w[keep]
    if keep.size == 0 or np.abs(C - np.eye(keep.size)).max() <= tolerance:
        return B, np.sqrt(w), Z, dropped
    fixed = polish(D, C)
    if fixed is None:
        B, s, turn = _householder(B, D)
    else:
        apply_left(fixed.K, B)
        s, turn = fixed.s, fixed.Z
        if fixed.again:
            second = polish(np.ones(s.size), _gram(B))
            if second is None:
                B, s, more = _householder(B, s)
                turn = turn @ more
            else:
                apply_left(_lower_inverse(_gram(B)), B)
    return B, s * math.sqrt(float(w.sum()) / float(s @ s)), Z @ turn, dropped


def _householder(B: Array, D: np.ndarray) -> tuple[Array, np.ndarray, np.ndarray]:
    """Orthonormalise ``diag(D) B`` by Householder QR and a small SVD, in float64 on the host; for rows on which Cholesky fails."""
    from scipy.linalg import qr, svd

    basis, R = qr(to_numpy(B).astype(np.float64).T, mode="economic", check_finite=False)
    Z, s, Y = svd(D[:, None] * np.asarray(R).T, check_finite=False)
    vt = np.ascontiguousarray(Y @ np.asarray(basis).T)
    return from_numpy(vt, like=B, dtype=dtype_name(B)), s, Z


def _shrunk(kept: Kept, shrink: float) -> Kept:
    """Subtract the largest energy removed from those of the last ``shrink`` share of the rows (all of them: Frequent Directions)."""
    power = kept.s**2
    less = power.copy()
    tail = slice(kept.s.size - math.ceil(shrink * kept.s.size), None)
    less[tail] = np.maximum(power[tail] - kept.top, 0.0)
    stay = np.flatnonzero(less > 0)
    discarded = kept.discarded + float((power - less).sum())
    return replace(kept, vt=_rows(kept.vt, stay), s=np.sqrt(less[stay]), Q=kept.Q[:, stay], discarded=discarded)


def _rows(B: Array, keep: np.ndarray) -> Array:
    xp = namespace(B)
    return B[keep] if xp is np else xp.take(B, xp.asarray(keep, device=device_of(B)), axis=0)


def _gram(B: Array) -> np.ndarray:
    return to_numpy(B @ B.T).astype(np.float64)


def _lower_inverse(C: np.ndarray) -> np.ndarray:
    from scipy.linalg import cholesky, solve_triangular

    return np.asarray(solve_triangular(cholesky(C, lower=True), np.eye(C.shape[0]), lower=True))
