"""Randomized SVD of a matrix that you hold: a subspace by ``krylov``, ended by one product that certifies it.

The subspace gives orthonormal left vectors U of A (n, d). ``B = U'A`` is then accumulated in float64 and corrected for the rounding of U;
its small SVD is the answer. ``A'A = B'B + E`` with ``0 <= E`` and ``tr E = ||A||_F^2 - ||B||_F^2`` holds for any U, however it was found:
``tr E`` bounds the residual, and by Weyl's inequality every singular value (Halko, Martinsson and Tropp 2011, section 5, for the form).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from streamsvd.arrays import (
    Array,
    blas_threads,
    dtype_name,
    from_numpy,
    namespace,
    one_thread,
    signs,
    small_eigh,
    small_svd,
    to_numpy,
)
from streamsvd.certificate import EPS64, Certificate
from streamsvd.factors import Factors
from streamsvd.krylov import Subspace, block_krylov, orthonormalize, power_of_two, scale_of, subspace_iteration
from streamsvd.normals import normals_like
from streamsvd.operators import Centered, as_operator

METHODS = ("auto", "subspace", "krylov")
EXACT_SIZE = 1 << 16
TOLERANCE = 0.01
MOST_PASSES = 40
CHUNK = 1 << 16  # numbers that are widened to float64 at a time


def svd(
    A: Any,
    rank: int,
    *,
    oversample: int | None = None,
    passes: int | None = None,
    tol: float | None = None,
    method: str = "auto",
    seed: int = 0,
    warm_start: Any = None,
) -> Factors:
    """Leading singular values and vectors of a matrix that you hold, with a certified residual.

    Parameters
    ----------
    A : array (n, d), or operator
        NumPy, ``np.memmap``, torch, CuPy, SciPy sparse, an Arrow table of edges (row, column, optional weight), an operator of
        ``streamsvd.operators``, or anything with ``shape``, ``matmat`` and ``rmatmat`` (SciPy's LinearOperator). float32 stays float32.
    rank : int
        1 .. min(n, d).
    oversample : int, optional
        Further columns in each block of subspace iteration (default: the larger of 8 and an eighth of the rank).
    passes : int, optional
        At most so many applications of ``A'A``, the certifying one included (one more where the rank needs it). Default: as ``tol`` asks,
        at most 40; with a warm start, 1.
    tol : float, optional
        Stop once the estimated share of the best energy that is missed is at most this. Default 0.01 where ``passes`` is not given.
    method : "auto", "krylov" or "subspace"
        "auto" is exact for small matrices, "subspace" with a warm start, and block Krylov otherwise, which takes the fewest passes.
    seed : int
        The same seed gives the same test matrix on every backend.
    warm_start : Factors or array (j, d), optional
        Right singular vectors of a matrix much like A, for example of the same graph before some edges came.

    Returns
    -------
    factors : Factors, with ``u`` (n, rank)
        ``bound`` is certified (None where the energy of A is unknown). ``info`` has ``method``, ``passes``, ``columns`` (of the basis),
        ``seed`` and two estimates of the share of the best energy that is missed: ``missing_energy_estimate`` (extrapolated; NaN where that
        cannot be done) and ``missing_energy_upper_estimate`` (Ritz residuals; seldom below the truth, but no bound: what a start does
        not touch, no estimate sees).

    Raises
    ------
    TypeError, ValueError
        For what is no matrix, entries that are not finite, and options out of range; the message says what to write.

    Notes
    -----
    Cost: ``passes`` products with A and with A' of 8 to 32 columns; at most ``2 min(n, d) columns^2`` flops for the basis, and
    ``min(n, d) columns`` numbers of memory beside A and, for sparse A, an explicit transpose. A block holds no more copies of a singular
    value than it has columns, so "krylov" widens its blocks before it stops, until that finds nothing more; where ``passes`` is given
    and ``tol`` is not, blocks have about 9/8 rank columns from the start.
    Use it for a matrix that can be read several times; rows that come once belong in ``streamsvd.sketch``.

    Examples
    --------
    >>> import numpy as np
    >>> import streamsvd as ss
    >>> A = np.random.default_rng(0).standard_normal((500, 80)) / np.arange(1, 81)
    >>> from streamsvd.randomized import svd
    >>> f = svd(A, 5)
    >>> f.u.shape, f.vt.shape
    ((500, 5), (5, 80))
    >>> bool(ss.verify.residual(A, f.vt) <= f.bound.residual)
    True
    """
    op = as_operator(A)
    check(op, rank, oversample, passes, tol, method)
    warm = _warm(warm_start, op)
    if method == "auto" and warm is None and op.shape[0] * op.shape[1] <= EXACT_SIZE:
        used, (U, info) = "exact", (_exact(op, rank), _about(Subspace(None, 0.0, 0.0, 0, min(op.shape))))
    elif method == "subspace" or (method == "auto" and warm is not None):
        used, (U, info) = "subspace", _by_subspace(op, rank, warm, oversample, passes, tol, seed)
    else:
        used, (U, info) = "krylov", _by_krylov(op, rank, warm, passes, tol, seed)
    return certify(op, U, rank, {"method": used, "seed": int(seed), **info})


def certify(op: Any, U: Array, rank: int, info: dict[str, Any] | None = None, /) -> Factors:
    """Return the factors that orthonormal left vectors U (n, l), l >= rank, stand for, with their certificate.

    Cost: one product with A' of l columns and ``(n + 2 d) l^2`` flops, in float64.
    """
    B, exact = op.project(U), True
    if B is None:
        B, exact = to_numpy(op.rmatmat(U)).astype(np.float64), False
    with one_thread():
        inverse = np.linalg.inv(np.linalg.cholesky(gram(U)))
        exponent = math.frexp(max(float(B.max(initial=0.0)), -float(B.min(initial=0.0))))[1]
        np.ldexp(B, -exponent, out=B)
        vt, s, X = _thin_svd(B, inverse, rank, dtype_name(U))
    del B
    turn = signs(vt)
    vt *= turn[:, None]
    u = U @ from_numpy(np.ascontiguousarray((inverse.T @ X[:, :rank]) * turn), like=U, dtype=dtype_name(U))
    total = op.energy(2.0**-exponent) if exact else None
    certificate = None if total is None else certificate_of(op, total, s, exponent, dtype_name(U))
    norm = math.nan if total is None else math.ldexp(math.sqrt(total), exponent)
    n, centered = op.shape[0], isinstance(op, Centered)
    return Factors(
        s=from_numpy(np.ldexp(s[:rank], exponent), like=U, dtype=dtype_name(U)),
        vt=from_numpy(vt, like=U),
        mean=from_numpy(op.mean if centered else np.zeros(op.shape[1]), like=U),
        rows=n,
        weight=float(n),
        norm=norm,
        certificate=certificate,
        center=centered,
        weight_sq=float(n),
        u=u,
        info=info or {},
    )


def _by_krylov(op: Any, rank: int, warm: Array | None, passes: int | None, tol: float | None, seed: int) -> Any:
    """Return left vectors and the subspace; the basis is built on the smaller side."""
    wide = op.shape[1] > op.shape[0]
    if warm is not None and wide:
        warm = _left(op, warm)
    V, about = basis_of(op.T if wide else op, rank, passes, tol, seed, warm)
    return (V if wide else _left(op, V)), about


def basis_of(
    side: Any, rank: int, passes: int | None, tol: float | None, seed: int, warm: Array | None = None, /
) -> tuple[Array, dict[str, Any]]:
    """Return right vectors V (d, rank) of an operator (n, d) by block Lanczos, and what is known of them."""
    d = side.shape[1]
    tol = TOLERANCE if passes is None and tol is None else tol
    widest = min(d, _widest(rank))
    b = widest if tol is None else min(widest, _block(rank))
    if warm is not None:
        b = max(b, warm.shape[1])
    passes = max((passes or MOST_PASSES) - 1, -(-rank // b))
    with blas_threads(2.0 * d * b * b):
        start = _start(warm, d, b, side, seed)
        found = block_krylov(side, rank, start, passes=passes, tol=tol, seed=seed, widest=widest)
    return found.V, _about(found)


def _by_subspace(
    op: Any, rank: int, warm: Array | None, oversample: int | None, passes: int | None, tol: float | None, seed: int
) -> Any:
    extra = max(8, rank // 8) if oversample is None else oversample
    columns = min(*op.shape, rank + extra)
    passes = 1 if passes is None and tol is None and warm is not None else passes or MOST_PASSES
    tol = TOLERANCE if passes == MOST_PASSES and tol is None else tol
    with blas_threads(2.0 * op.shape[1] * columns**2):
        found = subspace_iteration(op, rank, _start(warm, op.shape[1], columns, op, seed), passes=passes - 1, tol=tol)
    return _left(op, found.V), _about(found)


def _about(found: Subspace) -> dict[str, Any]:
    estimates = {"missing_energy_estimate": found.point, "missing_energy_upper_estimate": found.upper}
    return {"passes": found.passes + 1, "columns": found.columns, **estimates}


def _left(op: Any, V: Array) -> Array:
    W = op.matmat(V)
    scale = scale_of(W)
    return orthonormalize(W if scale == 1.0 else W * scale)


def _start(warm: Array | None, d: int, columns: int, op: Any, seed: int) -> Array:
    held = 0 if warm is None else min(columns, warm.shape[1])
    G = normals_like(seed, d, columns - held, like=op.like, dtype=op.dtype)
    return G if warm is None else namespace(G).concat([warm[:, :held], G], axis=1)


def _widest(rank: int) -> int:
    """Return the columns of a block that finds all copies of a singular value in the leading ``rank``, with some to spare."""
    return max(8, rank + max(3, rank // 8))


def _block(rank: int) -> int:
    """Return the columns of the first block where the estimates may widen it: narrow ones take the fewest products."""
    return 16 if rank <= 128 else 32


def _exact(op: Any, rank: int) -> Array:
    """Left vectors from a float64 SVD of the matrix, formed by products with unit vectors."""
    eye = from_numpy(np.eye(op.shape[1], dtype=op.dtype), like=op.like)
    A = op.coproject(eye)
    A = to_numpy(op.matmat(eye)).astype(np.float64) if A is None else A
    largest = float(np.abs(A).max(initial=0.0))
    U = small_svd(A * power_of_two(largest, "float32"))[0]
    return from_numpy(np.ascontiguousarray(U[:, :rank]), like=op.like, dtype=op.dtype)


def _thin_svd(B: np.ndarray, inverse: np.ndarray, k: int, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the leading k rows of V', s and X (l, l) with ``B inverse' = V diag(s) X'``, in ``dtype`` but for s and X.

    The Gram matrix is used where it keeps the digits of ``dtype``: it needs no second array like B, and half the time.
    """
    w, X = small_eigh(inverse @ (B.T @ B) @ inverse.T)
    if dtype == "float32" and w[-1] > 1e-4 * w[0]:
        s = np.sqrt(w)
        turn, vt = inverse.T @ (X[:, :k] / s[:k]), np.empty((k, B.shape[0]), np.float32)
        step = max(1, CHUNK // B.shape[1])
        for i in range(0, B.shape[0], step):
            vt[:, i : i + step] = (B[i : i + step] @ turn).T
        return vt, s, X
    Q, R = np.linalg.qr(B @ inverse.T)
    Y, s, Xt = small_svd(R)
    return np.ascontiguousarray((Q @ Y[:, :k]).T, dtype=dtype), s, Xt.T


def gram(U: Array) -> np.ndarray:
    """``U'U`` in float64, a chunk of rows at a time."""
    xp, out, step = namespace(U), 0.0, max(1, CHUNK // U.shape[1])
    for i in range(0, U.shape[0], step):
        part = xp.astype(U[i : min(i + step, U.shape[0]), :], xp.float64)
        out = out + to_numpy(part.T @ part)
    return np.asarray(out)


def certificate_of(op: Any, total: float, s: np.ndarray, exponent: int, dtype: str) -> Certificate:
    """Close the account of ``B = U'A``; sums of m terms are taken to err by ``8 sqrt(m) eps`` (Higham and Mary 2019, theorem 2.4)."""
    n, d = op.shape
    tail = max(0.0, total - float(s @ s))
    noise = 8.0 * EPS64 * (math.sqrt(n * d) + 2.0 * math.sqrt(s.size * n)) * max(total, op.magnitude(2.0**-exponent))
    spread = float(np.finfo(dtype).eps) * math.sqrt(s.size) * float(np.linalg.norm(s))
    return Certificate(exponent, s, total, tail, trace=tail, norm=tail, noise=noise, rows_noise=spread * spread)


def _warm(given: Any, op: Any) -> Array | None:
    if given is None:
        return None
    vt = given.vt if isinstance(given, Factors) else given
    if vt.ndim != 2 or vt.shape[1] != op.shape[1]:
        msg = (
            f"got warm_start of shape {tuple(vt.shape)} for a matrix with {op.shape[1]} columns; expected (j, {op.shape[1]}) right "
            "vectors: append zeros for columns that are new"
        )
        raise ValueError(msg)
    host = np.ascontiguousarray(to_numpy(vt).T).astype(op.dtype, copy=False)
    if not np.isfinite(host).all():
        msg = "got a warm_start with NaN or infinity; expected finite right vectors: leave it out to start afresh"
        raise ValueError(msg)
    return from_numpy(host, like=op.like)


def check(op: Any, rank: Any, oversample: Any, passes: Any, tol: Any, method: str) -> None:
    """Refuse a rank that the matrix does not allow, and options out of range."""
    n, d = op.shape
    if isinstance(rank, bool) or not isinstance(rank, (int, np.integer)):
        msg = f"got rank={rank!r}; expected a whole number of 1 .. {min(n, d)}"
        raise TypeError(msg)
    if not 1 <= rank <= min(n, d):
        msg = f"got rank={rank} for a matrix of shape {(n, d)}; expected 1 .. {min(n, d)}"
        raise ValueError(msg)
    if method not in METHODS:
        msg = f"got method={method!r}; expected one of {', '.join(map(repr, METHODS))}"
        raise ValueError(msg)
    if oversample is not None and oversample < 0:
        msg = f"got oversample={oversample}; expected 0 or more columns beyond the rank"
        raise ValueError(msg)
    if passes is not None and passes < 1:
        msg = f"got passes={passes}; expected at least 1 application of A'A, or None to go on until tol is met"
        raise ValueError(msg)
    if tol is not None and not 0.0 < tol < 1.0:
        msg = f"got tol={tol}; expected the share of the best energy that may be missed, for example tol=0.01"
        raise ValueError(msg)
