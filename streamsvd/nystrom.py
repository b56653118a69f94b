"""Nyström sketch: the leading eigenpairs of a positive semidefinite matrix from one pass over it, or over the terms of a sum."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamsvd.arrays import Array, dtype_name, from_numpy, namespace, one_thread, signs, small_svd, to_numpy
from streamsvd.factors import Factors
from streamsvd.normals import normals_like
from streamsvd.operators import as_operator


@dataclass(frozen=True, eq=False)
class Nystrom:
    """The sketch ``Y = A O`` of a positive semidefinite sum ``A = H_1 + H_2 + ...`` (d, d), with O (d, r) random and orthonormal.

    ``A - Y (O'Y)^+ Y'`` is positive semidefinite: what ``factors`` returns never exceeds A (Gittens and Mahoney 2016).

    Attributes
    ----------
    rank : int, components reported
    test : array (d, r), O
    sketch : array (d, r), Y
    trace : float, of A; NaN where a term did not tell it
    """

    rank: int
    test: Array
    sketch: Array
    trace: float = 0.0

    def update(self, H: Any, /) -> Nystrom:
        """Return the sketch of ``A + H`` for a symmetric H (d, d), dense, sparse or an operator. Cost: one product with r columns."""
        op = as_operator(H)
        d = self.test.shape[0]
        if op.shape != (d, d):
            msg = f"got a term of shape {op.shape}; this sketch is of matrices of shape {(d, d)}"
            raise ValueError(msg)
        return dataclasses.replace(self, sketch=self.sketch + op.matmat(self.test), trace=self.trace + _trace(H))

    def merge(self, other: Nystrom, /) -> Nystrom:
        """Return the sketch of the sum of two matrices; both must have the same test matrix."""
        if self.test.shape != other.test.shape or not np.array_equal(to_numpy(self.test), to_numpy(other.test)):
            msg = "cannot merge sketches with different test matrices; start both with the same columns, rank, oversample and seed"
            raise ValueError(msg)
        return dataclasses.replace(self, sketch=self.sketch + other.sketch, trace=self.trace + other.trace)

    def factors(self) -> Factors:
        """Return eigenvalues as ``s`` and eigenvectors as ``vt`` (and ``u``); ``info["residual_trace"]`` is ``tr A`` outside of them.

        The pseudo-inverse is taken after a shift by the rounding of Y, which is taken off the eigenvalues again.

        Notes
        -----
        Tropp, Yurtsever, Udell and Cevher 2017, algorithm 3. Cost: ``6 d r^2`` flops in float64.
        """
        omega, Y = (to_numpy(x).astype(np.float64) for x in (self.test, self.sketch))
        exponent = math.frexp(float(np.abs(Y).max(initial=0.0)))[1]
        Y = np.ldexp(Y, -exponent)
        shift = math.sqrt(omega.shape[0]) * float(np.finfo(dtype_name(self.sketch)).eps) * float(np.linalg.norm(Y, 2))
        Y = Y + shift * omega
        with one_thread():
            core = omega.T @ Y
            w, Q = np.linalg.eigh((core + core.T) / 2)
        keep = w > 1e-3 * shift if shift > 0 else w > 0
        root = Q[:, keep] / np.sqrt(w[keep])
        V, s, _ = small_svd(Y @ root)
        k = min(self.rank, s.size)
        values = np.zeros(self.rank)
        values[:k] = np.maximum(s[:k] ** 2 - shift, 0.0)
        vt = _rows(V[:, :k].T, self.rank)
        vt = vt * to_numpy(signs(vt))[:, None]
        values = np.ldexp(values, exponent)
        name, d = dtype_name(self.sketch), omega.shape[0]
        out = from_numpy(np.ascontiguousarray(vt), like=self.sketch, dtype=name)
        return Factors(
            s=from_numpy(values, like=self.sketch, dtype=name),
            vt=out,
            mean=from_numpy(np.zeros(d), like=self.sketch),
            rows=d,
            weight=float(d),
            norm=math.nan,
            center=False,
            weight_sq=float(d),
            u=out.T,
            info={"method": "nystrom", "residual_trace": self.trace - float(values.sum())},
        )


def nystrom(A: Any, rank: int, *, oversample: int | None = None, seed: int = 0) -> Factors:
    """Leading eigenpairs of a positive semidefinite matrix from one product with it.

    Parameters
    ----------
    A : array (d, d), sparse or operator, symmetric positive semidefinite (not checked)
    rank : int
    oversample : int, optional
        Further columns of the sketch (default: rank + 10).
    seed : int

    Returns
    -------
    factors : Factors, without a certificate: ``A ~ V' diag(s) V``

    Notes
    -----
    Use it where A is read once; ``svd`` is more accurate with several passes. Cost: one product with rank + oversample columns.
    """
    op = as_operator(A)
    if op.shape[0] != op.shape[1]:
        msg = f"got a matrix of shape {op.shape}; expected a symmetric positive semidefinite one (for A'A of another, use streamsvd.svd)"
        raise ValueError(msg)
    return start(op.shape[0], rank, oversample=oversample, seed=seed, like=op.like, dtype=op.dtype).update(A).factors()


def start(
    columns: int,
    rank: int,
    /,
    *,
    oversample: int | None = None,
    seed: int = 0,
    like: Array | None = None,
    dtype: str = "float64",
) -> Nystrom:
    """Return the sketch of the zero matrix (columns, columns), to be updated by terms of a sum."""
    if not 1 <= rank <= columns:
        msg = f"got rank={rank} for {columns} columns; expected 1 .. {columns}"
        raise ValueError(msg)
    r = min(columns, 2 * rank + 10 if oversample is None else rank + oversample)
    G = normals_like(seed, columns, r, like=np.empty(0) if like is None else like, dtype=dtype)
    xp = namespace(G)
    test = xp.linalg.qr(G)[0]
    return Nystrom(rank, test, xp.zeros_like(test))


def _trace(H: Any) -> float:
    diagonal = getattr(H, "diagonal", None)
    if not callable(diagonal):
        return math.nan
    return float(to_numpy(diagonal()).astype(np.float64).sum())


def _rows(vt: np.ndarray, k: int) -> np.ndarray:
    from streamsvd.factors import complete_rows

    return to_numpy(complete_rows(vt, k))
