"""Subspaces of the right side of an operator: block Lanczos on A'A with all blocks kept, and subspace iteration.

Both apply the normal operator ``c^2 A'A`` (d, d) as a product with A and one with A', each scaled by the power of two c, so that neither
overflows. Columns are orthonormalised through their Gram matrix, which costs half of a Householder factorization and runs as matrix
products; where they are too close to dependent for that, Householder takes over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamsvd.arrays import (
    HUGE,
    Array,
    blas_routine,
    dtype_name,
    from_numpy,
    namespace,
    one_thread,
    roomy,
    small_eigh,
    small_svd,
    to_numpy,
)
from streamsvd.normals import normals_like

# A Gram matrix of unit columns resolves directions whose share is well above the rounding of its entries.
RESOLVED = {"float32": 1e-3, "float64": 1e-8}


# Up to so many columns the estimates cost less than a pass, and are taken after each instead of every second.
CHECKED = 128

# Passes that new random columns are given before they are taken to have found nothing.
PROBE = 3


@dataclass(frozen=True, eq=False)
class Subspace:
    """Orthonormal columns ``V`` (d, k) that nearly hold the leading right singular vectors, and estimates of what they miss.

    Attributes
    ----------
    V : array (d, k)
    upper, point : float
        Of the energy that the best k columns hold, the share that V misses: from the Ritz residuals (seldom below the truth), and by
        extrapolating the last gains. NaN where there is nothing to estimate from. Neither is a bound.
    passes : int, applications of A'A
    columns : int, of the basis in which V was sought
    """

    V: Array
    upper: float
    point: float
    passes: int
    columns: int


def block_krylov(
    op: Any, k: int, start: Array, /, *, passes: int, tol: float | None, seed: int, widest: int = 0
) -> Subspace:
    """Return the best k columns within ``span(X, A'A X, ..., (A'A)^(passes - 1) X)``, with the blocks widened on the way.

    Parameters
    ----------
    op : operator (n, d)
    k : int
    start : array (d, b), X
    passes : int
        At most so many, and no more than the basis has room for.
    tol : float, optional
        Stop once both estimates are at most this (with blocks narrower than k the Ritz residuals alone would stop too soon).
    seed : int
        For the columns that replace those of an exhausted block, and those that widen one.
    widest : int
        A Krylov space holds no more copies of a singular value than its start has columns, and no estimate sees the others. So where the
        estimates would stop, random columns double the blocks, up to this width, and ``PROBE`` passes show whether they find more.

    Notes
    -----
    One-sided block Lanczos with full orthogonalization (Golub, Luk and Overton 1981) and Rayleigh-Ritz in the whole basis (Musco and
    Musco 2015); widening leaves the projection block tridiagonal (Ye 1996, "An adaptive block Lanczos algorithm").
    Cost: ``passes`` products with A and with A', and ``2 d (b passes)^2`` flops; memory ``d b passes`` numbers.
    """
    d, T, loss = op.shape[1], np.zeros((0, 0)), _Loss(float(np.finfo(op.dtype).eps), seed)
    blocks, work = [orthonormalize(start)], None
    del start
    scale, shelf = power_of_two(op.largest(blocks[0][:, :1]), op.dtype), _Shelf(blocks[0], passes)
    step, held, rest, more = 0, 0.0, 0, 0
    while True:
        Z, work = op.normal(blocks[-1], scale, work)
        near = blocks if loss.again else blocks[-2:]
        Z, H, G, size = project_out(near, Z)
        T, width, more = _bordered(T, H), Z.shape[1], 0
        room = d - T.shape[0]
        last = step + 1 == passes or room <= 0
        if last or _worth_a_look(T, k, step, rest, tol):
            Y, upper, total = _ritz(T, k, *G)
            point = _extrapolated(T, k, [V.shape[1] for V in blocks]) if last or upper <= (tol or 0.0) else math.nan
            done = upper <= (tol or 0.0) and point <= (tol or 0.0)
            if last or (done and (width >= widest or total - held <= (tol or 0.0) * total)):
                break
            if done:
                held, rest, more = total, step + PROBE, min(width, widest - width, max(0, room - width))
        if loss.after(T, width, *G, whole=near is blocks):
            Z, _, G, _ = project_out(blocks, Z)
        V = next_block(blocks, Z, G, size, room, (seed, step), shelf)[0]
        if more > 0:
            V = _widened(blocks, V, more, (seed, step))
            shelf = _Shelf(V, passes - step - 1)
        blocks.append(V)
        step += 1
    del work, Z
    return Subspace(combine(blocks, Y), upper, point, step + 1, T.shape[0])


def _worth_a_look(T: np.ndarray, k: int, step: int, rest: int, tol: float | None) -> bool:
    """Tell whether the estimates should be taken: they cost about a pass where the basis is large."""
    return tol is not None and step >= rest and T.shape[0] >= 2 * k and (step % 2 == 1 or T.shape[0] <= CHECKED)


def _widened(blocks: list[Array], V: Array, count: int, key: tuple[int, int]) -> Array:
    """Return V (d, b) with so many random columns beside it, orthonormal to V and to the blocks."""
    more = normals_like(key[0], V.shape[0], count, like=V, dtype=dtype_name(V), stream=(1 << 20) + key[1])
    for _ in range(2):
        more = namespace(V).linalg.qr(project_out([*blocks, V], more)[0])[0]
    return namespace(V).concat([V, more], axis=1)


class _Loss:
    """How far the newest block is from orthogonal to the older ones, by the recurrence that rounding errors follow.

    In exact arithmetic a remainder only needs to be projected on the last two blocks. Rounding breaks that slowly, and
    ``Omega_(j+1) b_(j+1) = T Omega_j - Omega_j a_j - Omega_(j-1) b_j'`` tells how far (Simon 1984; in blocks Grimes, Lewis and Simon 1994);
    all blocks are projected on, twice in a row, when it passes the square root of the precision.
    """

    def __init__(self, eps: float, seed: int) -> None:
        self.eps, self.again, self.draw = eps, False, np.random.default_rng(seed)
        self.now: np.ndarray | None = None
        self.before = np.zeros((0, 0))

    def after(self, T: np.ndarray, b: int, w: np.ndarray, Q: np.ndarray, *, whole: bool) -> bool:
        """Advance to the block with Gram matrix ``Q diag(w) Q'`` before it is orthonormalised; tell whether it must see all blocks."""
        m = T.shape[0]
        narrowed = self.now is not None and self.now.shape != (m, b)
        now = np.eye(m, b, b - m) if narrowed or self.now is None else self.now
        self.before = np.zeros((0, 0)) if narrowed else self.before
        lost = T @ now - now @ T[m - b :, m - b :]
        p, c = self.before.shape
        lost[:p] -= self.before @ T[p - c : p, m - b :]
        noise = 0.25 * self.eps * float(np.abs(T).max(initial=0.0)) * self.draw.standard_normal((m, b))
        inverse = Q / np.sqrt(np.maximum(w, np.finfo(float).tiny))
        lost[max(0, p - c) :] = 0.0
        lost = (lost + noise) @ inverse
        bad = narrowed or (not whole and float(np.abs(lost).max(initial=0.0)) > math.sqrt(self.eps))
        if bad or whole:
            lost = np.minimum(math.sqrt(self.eps), np.abs(noise @ inverse))
        self.before, self.now = now, np.concatenate([lost, np.eye(lost.shape[1])])
        self.again = bad
        return bad


def subspace_iteration(op: Any, k: int, start: Array, /, *, passes: int, tol: float | None) -> Subspace:
    """Apply A'A to a whole block so many times, orthonormalised each time, and return all its columns, the leading ones first.

    Parameters
    ----------
    op : operator (n, d)
    k : int
        Estimates are those of the leading k columns.
    start : array (d, l), l >= k
    passes : int
        At most so many; with none the orthonormalised start is returned.
    tol : float, optional
        Stop once the estimate ``upper`` is at most this.

    Notes
    -----
    Subspace iteration with Rayleigh-Ritz (Rutishauser 1969; Halko, Martinsson and Tropp 2011, algorithm 4.4).
    Cost of a pass: a product with A, one with A', and ``6 d l^2`` flops; memory ``3 d l`` numbers.
    """
    V, work, upper, done = orthonormalize(start), None, math.nan, 0
    scale = power_of_two(op.largest(V[:, :1]), op.dtype) if passes else 1.0
    while done < passes:
        done += 1
        Z, work = op.normal(V, scale, work)
        T = _product(V, Z)
        theta, Y = small_eigh((T + T.T) / 2)
        R = Z - _times(V, T)
        rest = Y.T @ _product(R, R) @ Y
        upper = _ritz_estimate(theta, np.sqrt(np.maximum(np.diag(rest), 0.0)), k)
        V = orthonormalize(_times(Z, Y))
        if tol is not None and upper <= tol:
            break
    return Subspace(V, upper, math.nan, done, V.shape[1])


def scale_of(W: Array, /) -> float:
    """Return the power of two by which products like W (n, l) should be scaled, 1 for ordinary numbers."""
    return power_of_two(float(namespace(W).max(namespace(W).abs(W))), dtype_name(W))


def power_of_two(largest: float, dtype: str, /) -> float:
    """Return 1, or the power of two that brings numbers so large to about 1 where their squares might overflow or vanish."""
    if largest == 0.0 or not math.isfinite(largest):
        return 1.0
    exponent = math.frexp(largest)[1]
    return 1.0 if abs(exponent) < (20 if dtype == "float32" else 200) else 2.0**-exponent


def orthonormalize(Z: Array, /) -> Array:
    """Return the orthonormal columns nearest to those of Z (d, b), b <= d (Löwdin 1950); where these are dependent, others are added.

    Cost: ``4 d b^2`` flops (``8 d b^2`` where the columns are close to dependent, and by Householder).
    """
    for _ in range(3):
        G = _product(Z, Z)
        size = np.sqrt(np.diag(G))
        if not (np.isfinite(size).all() and size.min(initial=1.0) > 0.0):
            break
        w, Q = small_eigh(G / np.outer(size, size))
        if w[-1] < RESOLVED[dtype_name(Z)] * w[0]:
            break
        Z = _times(Z, (Q / np.sqrt(w)) @ Q.T / size[:, None])
        if w[-1] > 0.1 * w[0]:
            return Z
    return namespace(Z).linalg.qr(Z)[0]


def project_out(blocks: list[Array], Z: Array, /) -> tuple[Array, np.ndarray, tuple[np.ndarray, np.ndarray], float]:
    """Take the part along the orthonormal blocks out of Z (d, b), which may be overwritten.

    Returns the rest, the coefficients of the part (sum of b, b), eigenvalues and eigenvectors of the rest's Gram matrix, and the norm of Z.
    Once is enough unless little is left of some direction ("twice is enough", Giraud, Langou and Rozloznik 2005). The newest block comes
    first: its large coefficients would bring back what older blocks had taken out.
    """
    total, size = np.zeros((sum(V.shape[1] for V in blocks), Z.shape[1])), None
    while True:
        parts, again = [], size is None
        for V in reversed(blocks):
            parts.append(_product(V, Z))
            Z = _minus(Z, V, parts[-1])
        found, G = np.concatenate(parts[::-1]), _product(Z, Z)
        total += found
        size = math.sqrt(max(0.0, float(np.sum(found * found) + np.trace(G)))) if size is None else size
        pair = small_eigh(G)
        if not again or pair[0][-1] > (0.03 * size) ** 2:
            return Z, total, pair, size


def next_block(
    blocks: list[Array],
    Z: Array,
    G: tuple[np.ndarray, np.ndarray],
    size: float,
    room: int,
    key: tuple[int, int],
    shelf: _Shelf | None = None,
    /,
) -> tuple[Array, np.ndarray]:
    """Return orthonormal columns V for a remainder Z (d, b) and ``V'Z``; directions that are rounding are replaced by random ones.

    At most ``room`` columns come back; G is what ``project_out`` says of ``Z'Z``, ``size`` the norm of Z before that, ``key`` places
    the random columns.
    """
    (d, b), name = Z.shape, dtype_name(Z)
    count = min(b, room)
    if count <= 0:
        return Z[:, :0], np.zeros((0, b))
    w, Q = G
    if w[-1] > RESOLVED[name] * w[0] and w[-1] > 1e-6 * size * size and count == b:
        root = np.sqrt(w)
        return _times(Z, Q / root, None if shelf is None else shelf.take()), root[:, None] * Q.T
    basis, R = namespace(Z).linalg.qr(Z)
    X, s, _ = small_svd(to_numpy(R).astype(np.float64))
    held = int(np.count_nonzero(s[:count] > 32 * np.finfo(name).eps * size))
    V = _times(basis, X[:, :held])
    if held < count:
        more = normals_like(key[0], d, count - held, like=Z, dtype=name, stream=key[1] + 1)
        V = namespace(Z).concat([V, more], axis=1)
    for _ in range(2):
        V = namespace(Z).linalg.qr(project_out(blocks, V)[0])[0]
    return V, _product(V, Z)


def combine(blocks: list[Array], Y: np.ndarray, /) -> Array:
    """Return ``[V_1 V_2 ...] Y`` for blocks (d, b) and Y (sum of b, k)."""
    out, at = None, 0
    for V in blocks:
        part = _times(V, Y[at : at + V.shape[1]])
        out, at = part if out is None else out + part, at + V.shape[1]
    return out


class _Shelf:
    """Memory for the blocks of a basis, several at a time where one alone would be too small for huge pages."""

    def __init__(self, like: Array, most: int) -> None:
        self.shape, self.dtype, self.most = like.shape, like.dtype, most if isinstance(like, np.ndarray) else 0
        self.free: list[np.ndarray] = []

    def take(self) -> Array | None:
        """Return an uninitialised block like the first; None where blocks are not NumPy arrays."""
        if not self.most:
            return None
        if not self.free:
            count = max(1, min(self.most, HUGE // max(1, self.dtype.itemsize * math.prod(self.shape))))
            self.free = list(roomy((count, *self.shape), self.dtype))[::-1]
        return self.free.pop()


def _bordered(T: np.ndarray, H: np.ndarray) -> np.ndarray:
    """Return T with the column of a new block, of which H (c, b) are the last rows and the others zero, mirrored into its row."""
    b = H.shape[1]
    m = T.shape[0] + b
    H = np.concatenate([np.zeros((m - H.shape[0], b)), H])
    out = np.empty((m, m))
    out[: m - b, : m - b], out[:, m - b :], out[m - b :, : m - b] = T, H, H[: m - b].T
    out[m - b :, m - b :] = (H[m - b :] + H[m - b :].T) / 2
    return out


def _ritz(T: np.ndarray, k: int, w: np.ndarray, Q: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Return the leading k Ritz vectors in the basis, the estimate of the energy that they miss, and the energy that they hold.

    The last remainder, with Gram matrix ``Q diag(w) Q'``, tells the residuals: its columns combined by the vectors' last rows.
    """
    m = T.shape[0]
    theta, Y = small_eigh(T, top=min(k + 1, m))
    R = np.sqrt(np.maximum(w, 0.0))[:, None] * (Q.T @ Y[m - w.size :, : min(k, m)])
    return Y[:, :k], _ritz_estimate(theta, np.sqrt((R * R).sum(axis=0)), k), float(theta[:k].sum())


def _ritz_estimate(theta: np.ndarray, r: np.ndarray, k: int) -> float:
    """Return ``sum r^2 / max(theta_i - theta_(k+1), r_i)`` over the leading k, as a share of what is held and missed."""
    r = r[:k]
    held, following = float(theta[:k].sum()), float(theta[k]) if theta.size > k else 0.0
    gap = np.maximum(theta[:k] - following, r)
    missed = float(np.sum(np.divide(r * r, gap, out=np.zeros_like(r), where=gap > 0)))
    return missed / (held + missed) if held + missed > 0 else 0.0


def _extrapolated(T: np.ndarray, k: int, widths: list[int]) -> float:
    """Return the share still missing if the gains of the last two blocks go on in a geometric row (of a ratio of at most 0.9)."""
    m = T.shape[0]
    ends = [m - sum(widths[-2:]), m - widths[-1], m]
    if len(widths) < 2 or ends[0] < k:
        return math.nan
    with one_thread():
        sums = [float(np.sort(np.linalg.eigvalsh(T[:i, :i]))[-k:].sum()) for i in ends]
    before, now = sums[1] - sums[0], sums[2] - sums[1]
    if now <= 0:
        return 0.0
    ratio = min(0.9, now / before) if before > 0 else 0.9
    missed = now * ratio / (1.0 - ratio)
    return missed / (sums[2] + missed)


def _product(X: Array, Y: Array) -> np.ndarray:
    """Return ``X'Y`` on the host in float64."""
    return to_numpy(X.T @ Y).astype(np.float64)


def _times(X: Array, C: np.ndarray, out: Array | None = None) -> Array:
    C = from_numpy(C, like=X, dtype=dtype_name(X))
    return X @ C if out is None else np.matmul(X, C, out=out)


def _minus(Z: Array, V: Array, C: np.ndarray) -> Array:
    """Return ``Z - V C``, written into Z where BLAS can."""
    if not isinstance(Z, np.ndarray) or not (Z.flags.c_contiguous and V.flags.c_contiguous and Z.flags.writeable):
        return Z - _times(V, C)
    gemm = blas_routine("sgemm" if Z.dtype == np.float32 else "dgemm")
    return gemm(-1.0, C.astype(Z.dtype).T, V.T, 1.0, Z.T, overwrite_c=True).T
