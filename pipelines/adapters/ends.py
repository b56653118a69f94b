"""Either end of the spectrum of an oriented weight ``M = W C``, without the other end: randomized for the top, an inverse for the bottom.

All return left singular vectors U; ``U U'M C^-1 = U U'W`` is why no inverse of C is needed for what follows from them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from streamsvd.arrays import (
    Array,
    blas_routine,
    dtype_name,
    from_numpy,
    namespace,
    one_thread,
    small_eigh,
    small_svd,
    to_numpy,
)
from streamsvd.krylov import next_block, orthonormalize, project_out
from streamsvd.normals import normals_like
from streamsvd.operators import Known
from streamsvd.randomized import svd

# Below this size, or for more than a quarter of all components, a full decomposition is as quick.
SMALL = 128
CONVERGED = 1e-14
# Vectors are held to this angle where the relative gap behind them is at least GAP.
ANGLE, GAP = 1e-6, 5e-4


class Oriented(Known):
    """``W C`` as an operator: two products in place of one, and nothing formed."""

    def __init__(self, W: Array, metric: Any) -> None:
        self.W, self.metric = W, metric
        self.shape, self.dtype = (int(W.shape[0]), int(W.shape[1])), dtype_name(W)

    @property
    def like(self) -> Array:  # noqa: D102
        return self.W[:0, :0]

    def matmat(self, X: Array, /) -> Array:  # noqa: D102
        return self.W @ self.metric.apply(X)

    def rmatmat(self, Y: Array, /) -> Array:  # noqa: D102
        return self.metric.apply(self.W.T @ Y)


def quick_top(op: Any, rank: int, passes: int, seed: int) -> Array:
    """Return orthonormal columns U (n, rank) that nearly span the leading left singular vectors, from ``2 passes - 1`` products.

    Rayleigh-Ritz in ``span(A K)``, K the block Krylov space of ``A'A`` of so many blocks. As many products as subspace iteration takes,
    whose last block alone is used, and far more accurate (Musco and Musco 2015).
    """
    d, b = op.shape[1], min(op.shape[1], max(8, rank))
    X = normals_like(seed, d, b, like=op.like, dtype=op.dtype)
    blocks, images = [orthonormalize(X)], []
    for step in range(passes):
        images.append(op.matmat(blocks[-1]))
        room = d - sum(V.shape[1] for V in blocks)
        if step == passes - 1 or room <= 0:
            break
        Z, _, gram, size = project_out(blocks, op.rmatmat(images[-1]))
        blocks.append(next_block(blocks, Z, gram, size, room, (seed, step))[0])
    L = namespace(X).concat(images, axis=1)
    _, Y = small_eigh(to_numpy(L.T @ L), top=rank)
    return orthonormalize(L @ from_numpy(np.ascontiguousarray(Y), like=L, dtype=op.dtype))


def top(W: Array, metric: Any, rank: int, seed: int) -> tuple[Array, str]:
    """Return the leading left singular vectors (n, rank) of ``W C`` (float64) to working precision, and how they were found.

    Block Krylov as long as it converges quickly, which Ritz residuals tell (Davis and Kahan 1970: the angle is at most the residual over
    the gap); where the spectrum is too flat for that, the leading eigenvectors of the smaller Gram matrix.
    """
    n, d = W.shape
    if min(n, d) <= SMALL or 4 * rank > min(n, d):
        return full(metric.orient(W))[0][:, :rank], "full"
    op = Oriented(W, metric)
    f = svd(op, rank + 1, tol=CONVERGED, method="krylov", seed=seed)
    assert f.u is not None
    U, s = f.u[:, :rank], to_numpy(f.s).astype(np.float64)
    R = op.matmat(op.rmatmat(U)) - U * from_numpy(s[:rank] ** 2, like=U)[None, :]
    off = float(np.linalg.norm(to_numpy(R)))
    between = float(s[rank - 1] ** 2 - s[rank] ** 2)
    clear = between >= 2.0 * GAP * float(s[rank - 1] ** 2)
    if (off <= ANGLE * between) if clear else ((f.info or {})["missing_energy_upper_estimate"] <= 1e-10):
        return U, "krylov"
    return gram_top(metric.orient(W), rank)


def gram_top(M: Array, rank: int) -> tuple[Array, str]:
    """Return the leading left singular vectors of M from its Gram matrix on the smaller side, in float64.

    Cost: ``min(n, d) n d + (4/3) min(n, d)^3`` flops. Squares lose the digits of values below 1e-5 of the largest: then a full one.
    """
    wide = M.shape[0] <= M.shape[1]
    if not isinstance(M, np.ndarray):
        return full(M)[0][:, :rank], "full"
    G = M @ M.T if wide else M.T @ M
    w, Q = small_eigh(G, top=rank, overwrite=True)
    if not w[-1] > 1e-10 * w[0]:
        return full(M)[0][:, :rank], "full"
    return (Q if wide else orthonormalize(M @ np.ascontiguousarray(Q))), "gram"


def bottom(M: Array, rank: int) -> tuple[Array, np.ndarray, Array, str]:
    """Return U (n, rank), s (rank,), descending, and V (d, rank) of the smallest of the min(n, d) singular values of M (float64).

    ``M' = Q R`` (or ``M = Q R`` for a tall M) leaves a triangle; the leading eigenvectors of ``R^-1 R^-T`` are the smallest of R, to an
    accuracy relative to these, which ``M M'`` would lose. A singular R is left to a full decomposition.

    Notes
    -----
    Cost: ``2 max(n, d) m^2 + m^3`` flops for ``m = min(n, d)``, about half of it in matrix products.
    """
    n, d = M.shape
    m = min(n, d)
    if isinstance(M, np.ndarray) and m > SMALL and 4 * rank <= m:
        found = _bottom_by_inverse(M.T if n <= d else M, rank)
        if found is not None:
            outer, s, inner = found
            return (inner, s, outer, "inverse") if n <= d else (outer, s, inner, "inverse")
    U, s, Vt = full(M)
    return U[:, m - rank :], s[m - rank :], Vt.T[:, m - rank :], "full"


def full(M: Array) -> tuple[Array, np.ndarray, Array]:
    """Return the thin SVD of M in float64: LAPACK on one thread, or the device's own where M lies on one."""
    if isinstance(M, np.ndarray):
        return small_svd(M)
    U, s, Vt = namespace(M).linalg.svd(M, full_matrices=False)
    return U, to_numpy(s), Vt


def _bottom_by_inverse(T: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return left vectors, values and right vectors of the smallest singular values of a tall T (p, m); None if it is singular."""
    m = T.shape[1]
    with one_thread():
        packed, tau, _, _ = blas_routine("dgeqrf")(np.asfortranarray(T), lwork=64 * m)
        R = np.triu(packed[:m])
        size = np.abs(np.diag(R))
        if not size.min() > 1e-14 * m * size.max():
            return None
        K, info = blas_routine("dtrtri")(R)
        if info != 0 or not np.isfinite(K).all():
            return None
        scale = 1.0 / np.abs(K).max()
        K *= scale
        w, Y = small_eigh(K.T @ K, top=rank, overwrite=True)
        if not w[-1] > 1e-10 * w[0]:
            return None
        # R^-1 = X diag(1 / s) Y' for R = Y diag(s) X'.
        w, Y = w[::-1], np.ascontiguousarray(Y[:, ::-1])
        root = np.sqrt(w)
        X = (K @ Y) / root
        left = np.zeros((T.shape[0], rank), order="F")
        left[:m] = Y
        left = blas_routine("dormqr")("L", "N", packed, tau, left, 64 * max(rank, 1))[0]
    return left, scale / root, X
