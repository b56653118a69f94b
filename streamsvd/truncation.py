"""One truncation: which directions of a stack of rows stay, and the orthonormal rows that result."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.arrays import Array, device_of, dtype_name, from_numpy, namespace, one_thread, small_svd, to_numpy
from streamsvd.stack import DenseRows, SparseRows, apply_left, gram_of
from streamsvd.subspace import leading, polish

if TYPE_CHECKING:
    from streamsvd.options import Options

POLISH_TOLERANCE = {"float32": 1e-6, "float64": 1e-13}
# Between folds the measured Gram matrix of the rows is known, so they may stray further than in what is read.
STRAY = 32.0
# Float32 products do where more than so many eps of the energy is left out, and the last direction kept has more than so many.
# A tenth of either lets the certificate fail on streams with one dominant direction (tests/test_certificate.py).
RESOLVED, RESOLVED_LAST = 1e3, 1e2
OUT_OF_RANGE = 2.0**120  # of float32 products; rows at the right exponent stay far below


@dataclass(frozen=True, eq=False)
class Basis:
    """Rows ``diag(s) V`` with ``C = V V'`` as measured: the identity to the polish tolerance, which is not enough for energies."""

    vt: Array
    s: np.ndarray
    C: np.ndarray

    def faded(self, factor: float, /) -> Basis:
        """Return the rows with their singular values multiplied."""
        return replace(self, s=self.s * factor)


@dataclass(frozen=True, eq=False)
class Kept:
    """What a truncation leaves: ``diag(s) V = Q' M``, and what it removed from ``M'M``.

    ``energy`` is that of the new rows, ``mass`` that of the whole stack, ``uncentered`` what centring by rank-one terms cancelled,
    ``rounding`` what float32 products may have moved.
    """

    basis: Basis
    Q: np.ndarray
    test: Array
    discarded: float
    top: float
    energy: float
    mass: float
    uncentered: float
    rounding: float = 0.0


def truncate(
    old: Basis,
    rows: DenseRows | SparseRows,
    options: Options,
    test: tuple[Array, float, Any],
    /,
) -> Kept:
    """Keep the ``options.kept`` heaviest directions of ``M = [diag(s) V; rows]``.

    Parameters
    ----------
    old : Basis
        Old rows, orthonormal up to the polish tolerance.
    rows : DenseRows or SparseRows, b of them
    test : (sketch, fade, (slots, signs) or None)
        The test sketch, taken along in the same pass over the panels.

    Notes
    -----
    Cost: ``d (b^2 / 2 + 2 b r + r^2 + r^2 / 2)`` multiply-adds, plus small algebra of order ``b^2 r``; by Householder QR,
    ``2 m d^2``, where the stack has more rows than columns.
    """
    m = old.s.size + rows.count
    kept = _tall(old, rows, options.kept, test) if old.vt.shape[1] <= m else _wide(old, rows, options, test)
    return _shrunk(kept, options.shrink) if options.shrink > 0 and m > options.kept and kept.basis.s.size else kept


def _wide(old: Basis, rows: DenseRows | SparseRows, options: Options, test: tuple[Array, float, Any]) -> Kept:
    """Truncate a stack of fewer rows than columns through its Gram matrix."""
    vt, eps = old.vt, float(np.finfo(dtype_name(old.vt)).eps)
    q, m = old.s.size, old.s.size + rows.count
    entered = rows.enter(vt, test)
    energy = float(np.trace(entered.XX))
    mass = energy + float(old.s @ old.s)
    if not 0 < mass < OUT_OF_RANGE:
        return Kept(_nothing(vt), np.zeros((m, 0)), entered.test, 0.0, 0.0, energy, mass, rows.uncentered)
    single, exact = eps > 1e-8, options.shrink > 0
    C, s = old.C, _normalised(old.s, old.C)
    found = leading(s, C, entered.P, entered.XX, options.kept, exact=exact, single=single)
    noise = eps * min(energy, mass - energy if rows.known is not None else energy)
    unresolved = found.discarded < RESOLVED * noise or float(found.w[-1]) < RESOLVED_LAST * noise
    if single and unresolved:
        # What the fold must resolve is near the rounding of float32 products.
        entered = replace(rows.enter(vt, (test[0], test[1], None), double=True), test=entered.test)
        C = gram_of(vt, double=True)
        s = _normalised(old.s, C)
        found = leading(s, C, entered.P, entered.XX, options.kept, exact=exact)
    least = math.sqrt(m) * eps * math.sqrt(found.w[0])
    D = np.maximum(np.sqrt(found.w), least)
    coefficients = found.Q.T / D[:, None]
    B, C = rows.rotate(vt, coefficients[:, :q] * s, coefficients[:, q:], energy)
    basis, Z, dropped = _orthonormal(B, C, D, found.w, least)
    discarded, top = found.discarded + float(dropped.sum()), found.top + float(dropped.max(initial=0.0))
    # A direction that old and new rows share gets 2 a b / (a + b) of its energies a, b through their product, which is rounded.
    rounding = 2.0 * noise if single and not unresolved else 0.0
    return Kept(basis, found.Q @ Z, entered.test, discarded, top, energy, mass, rows.uncentered, rounding)


def _tall(old: Basis, rows: DenseRows | SparseRows, kept: int, test: tuple[Array, float, Any]) -> Kept:
    """Factor a stack of more rows than columns by Householder QR in float64: no Gram matrix, so no squared condition number."""
    vt = old.vt
    fresh = rows.enter(vt[:0, :], test).test
    new = rows.dense()
    energy = float(np.vdot(new, new))
    mass = energy + float(old.s @ old.s)
    s = _normalised(old.s, gram_of(vt, double=True))
    M = np.concatenate([s[:, None] * to_numpy(vt), new])
    if not 0 < mass < np.inf:
        return Kept(_nothing(vt), np.zeros((M.shape[0], 0)), fresh, 0.0, 0.0, energy, mass, rows.uncentered)
    with one_thread():
        basis, R = np.linalg.qr(M)
        U, S, Vt = small_svd(R)
    eps = float(np.finfo(dtype_name(vt)).eps)
    p = min(kept, int(np.count_nonzero(math.sqrt(M.shape[0]) * eps * S[0] < S)))
    rest = S[p:] ** 2
    B = from_numpy(np.ascontiguousarray(Vt[:p]), like=vt, dtype=dtype_name(vt))
    new_basis, Q = Basis(B, S[:p].copy(), gram_of(B)), basis @ U[:, :p]
    return Kept(new_basis, Q, fresh, float(rest.sum()), float(rest.max(initial=0.0)), energy, mass, rows.uncentered)


def _nothing(vt: Array) -> Basis:
    return Basis(vt[:0, :], np.zeros(0), np.zeros((0, 0)))


def _normalised(s: np.ndarray, C: np.ndarray) -> np.ndarray:
    """Scale s so that ``diag(s) V`` as stored has the energy it should: the bias of rounding would add up fold after fold."""
    energy = float((s * s) @ np.diag(C))
    return s * math.sqrt(float(s @ s) / energy) if energy > 0 else s


def _orthonormal(
    B: Array, C: np.ndarray, D: np.ndarray, w: np.ndarray, least: float
) -> tuple[Basis, np.ndarray, np.ndarray]:
    """Return orthonormal rows and the small rotation Z with ``diag(D) B = Z diag(s) V``, and the energies of rows dropped as zero.

    Rows are polished only where their measured Gram matrix C says so. The energies stay those of ``w``: taking them from polished
    float32 rows adds the bias of float32 products fold after fold.
    """
    size = D * np.sqrt(np.maximum(np.diag(C), 0.0))
    keep = np.flatnonzero(size > least)
    dropped = np.maximum(np.delete(w, keep), np.delete(size, keep) ** 2)
    Z = np.eye(w.size)[:, keep]
    if keep.size < w.size:
        B, C, D, w = _rows(B, keep), C[np.ix_(keep, keep)], D[keep], w[keep]
    if _strays(C) <= STRAY * POLISH_TOLERANCE[dtype_name(B)]:
        return Basis(B, np.sqrt(w), C), Z, dropped
    basis, turn = _polished(B, C, D, w)
    return basis, Z @ turn, dropped


def presentable(basis: Basis, /) -> tuple[Basis, np.ndarray]:
    """Return a basis that is orthonormal to the polish tolerance, and the rotation Z that it took: what is read from a state."""
    if _strays(basis.C) <= POLISH_TOLERANCE[dtype_name(basis.vt)]:
        return basis, np.eye(basis.s.size)
    return _polished(basis.vt + 0, basis.C, basis.s, basis.s**2)


def _strays(C: np.ndarray) -> float:
    return float(np.abs(C - np.eye(C.shape[0])).max(initial=0.0))


def _polished(B: Array, C: np.ndarray, D: np.ndarray, w: np.ndarray) -> tuple[Basis, np.ndarray]:
    """Orthonormalise rows ``diag(D) B``, which are overwritten; return them with the energy of ``w``, and the rotation Z."""
    fixed = polish(D, C)
    if fixed is None:
        B, s, Z = _householder(B, D)
    else:
        apply_left(fixed.K, B)
        s, Z = fixed.s, fixed.Z
        inverse = _lower_inverse(gram_of(B)) if fixed.again else None
        if inverse is not None:
            apply_left(inverse, B)
        elif fixed.again:
            B, s, turn = _householder(B, s)
            Z = Z @ turn
    return Basis(B, s * math.sqrt(float(w.sum()) / float(s @ s)), gram_of(B)), Z


def _householder(B: Array, D: np.ndarray) -> tuple[Array, np.ndarray, np.ndarray]:
    """Orthonormalise ``diag(D) B`` by Householder QR and a small SVD, in float64 on the host; for rows on which Cholesky fails."""
    basis, R = np.linalg.qr(to_numpy(B).astype(np.float64).T)
    Z, s, Y = small_svd(D[:, None] * R.T)
    vt = np.ascontiguousarray(Y @ basis.T)
    return from_numpy(vt, like=B, dtype=dtype_name(B)), s, Z


def _shrunk(kept: Kept, shrink: float) -> Kept:
    """Subtract the largest energy removed from those of the last ``shrink`` share of the rows (all of them: Frequent Directions)."""
    old = kept.basis
    power = old.s**2
    less = power.copy()
    tail = slice(old.s.size - math.ceil(shrink * old.s.size), None)
    less[tail] = np.maximum(power[tail] - kept.top, 0.0)
    stay = np.flatnonzero(less > 0)
    basis = Basis(_rows(old.vt, stay), np.sqrt(less[stay]), old.C[np.ix_(stay, stay)])
    return replace(kept, basis=basis, Q=kept.Q[:, stay], discarded=kept.discarded + float((power - less).sum()))


def _rows(B: Array, keep: np.ndarray) -> Array:
    xp = namespace(B)
    return B[keep] if xp is np else xp.take(B, xp.asarray(keep, device=device_of(B)), axis=0)


def _lower_inverse(C: np.ndarray) -> np.ndarray | None:
    """Return the inverse Cholesky factor of a nearly orthonormal Gram matrix, or None where it has none."""
    try:
        return np.linalg.inv(np.linalg.cholesky(C))
    except np.linalg.LinAlgError:
        return None
