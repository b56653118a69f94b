"""Matrices that are multiplied and never formed: sparse with scaled rows and columns, centred, a product of factors, transposed.

An operator has a ``shape`` (n, d), a ``dtype``, ``matmat`` and ``rmatmat``, and ``T``. The subclasses here also know their energy and can
multiply in float64, which is what a certificate needs; ``as_operator`` makes one of whatever a user holds.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

import numpy as np

from streamsvd.arrays import (
    Array,
    dtype_name,
    from_numpy,
    is_sparse,
    namespace,
    one_thread,
    roomy,
    signs,
    small_svd,
    to_numpy,
)
from streamsvd.batch import as_batch
from streamsvd.kernels.spmm import spmm, transposed

CHUNK_BYTES = 1 << 22


class Operator(Protocol):
    """What ``svd`` needs of a matrix A (n, d)."""

    @property
    def shape(self) -> tuple[int, int]: ...  # noqa: D102
    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def T(self) -> Operator: ...  # noqa: D102
    def matmat(self, X: Array, /) -> Array: ...  # noqa: D102
    def rmatmat(self, Y: Array, /) -> Array: ...  # noqa: D102


class Known:
    """An operator whose energy and whose float64 products are known; also the base of every operator here.

    ``energy`` and ``project`` return None where nothing can be certified.
    """

    shape: tuple[int, int]
    dtype: str

    @property
    def like(self) -> Array:
        """An array of the namespace and device on which the products run."""
        return np.empty((0, 0), self.dtype)

    @property
    def T(self) -> Any:
        """The transposed view; it shares everything."""
        return Transposed(self)

    def matmat(self, X: Array, /) -> Array:
        """Return ``A X``, (n, l)."""
        raise NotImplementedError

    def rmatmat(self, Y: Array, /) -> Array:
        """Return ``A' Y``, (d, l)."""
        raise NotImplementedError

    def largest(self, X: Array, /) -> float:
        """Return the largest magnitude in ``A X``."""
        W = self.matmat(X)
        return float(namespace(W).max(namespace(W).abs(W)))

    def normal(
        self, X: Array, /, scale: float = 1.0, work: tuple[Array, Array] | None = None
    ) -> tuple[Array, tuple[Array, Array] | None]:
        """Return ``scale^2 A' A X``, (d, l), and arrays to pass as ``work`` next time, which may then be written, the result included."""
        if scale == 1.0:
            return self.rmatmat(self.matmat(X)), None
        return self.rmatmat(self.matmat(X) * scale) * scale, None

    def energy(self, scale: float, /) -> float | None:
        """Return ``||scale A||_F^2``, summed in float64."""
        return None

    def magnitude(self, scale: float, /) -> float:
        """Return the energy of all that is added up, to which rounding is relative."""
        return self.energy(scale) or 0.0

    def project(self, U: Array, /) -> np.ndarray | None:
        """Return ``A' U`` (d, l) as it is for the stored numbers of A and U, accumulated in float64."""
        return None

    def coproject(self, V: Array, /) -> np.ndarray | None:
        """Return ``A V`` (n, l), accumulated in float64."""
        return None


class Transposed(Known):
    """A' of an operator A."""

    def __init__(self, base: Any) -> None:
        self.base, self.shape, self.dtype = base, (base.shape[1], base.shape[0]), base.dtype

    @property
    def like(self) -> Array:  # noqa: D102
        return self.base.like

    @property
    def T(self) -> Any:  # noqa: D102
        return self.base

    def matmat(self, X: Array, /) -> Array:  # noqa: D102
        return self.base.rmatmat(X)

    def rmatmat(self, Y: Array, /) -> Array:  # noqa: D102
        return self.base.matmat(Y)

    def energy(self, scale: float, /) -> float | None:  # noqa: D102
        return self.base.energy(scale)

    def project(self, U: Array, /) -> np.ndarray | None:  # noqa: D102
        return self.base.coproject(U)

    def coproject(self, V: Array, /) -> np.ndarray | None:  # noqa: D102
        return self.base.project(V)


class Csr(Known):
    """``diag(left) A diag(right)`` for a sparse A, without forming it, with an explicit CSR of the transpose.

    Parameters
    ----------
    matrix : SciPy sparse (n, d)
        float32 and float64 are kept, CSR is not copied; other numbers are widened.
    left : array (n,), optional
    right : array (d,), optional

    Raises
    ------
    TypeError, ValueError
        For a matrix that is not numeric, entries or scales that are not finite, and scales of another length.

    Notes
    -----
    Memory: that of A once more, built at the first product with A'.
    """

    def __init__(self, matrix: Any, left: Array | None = None, right: Array | None = None) -> None:
        self.matrix = as_batch(matrix)
        self.shape, self.dtype = tuple(self.matrix.shape), self.matrix.dtype.name
        self.left = _scale(left, "left", self.shape[0], self.dtype)
        self.right = _scale(right, "right", self.shape[1], self.dtype)

    @cached_property
    def flipped(self) -> Any:
        """The CSR of A'."""
        return transposed(self.matrix)

    @property
    def T(self) -> Csr:  # noqa: D102
        out = object.__new__(Csr)
        out.matrix, out.flipped = self.flipped, self.matrix
        out.shape, out.dtype = (self.shape[1], self.shape[0]), self.dtype
        out.left, out.right = self.right, self.left
        return out

    def matmat(self, X: Array, /) -> Array:  # noqa: D102
        return spmm(self.matrix, _times(X, self.right), scale=self.left)

    def rmatmat(self, Y: Array, /) -> Array:  # noqa: D102
        return spmm(self.flipped, _times(Y, self.left), scale=self.right)

    def normal(self, X: Array, /, scale: float = 1.0, work: tuple[Array, Array] | None = None) -> Any:  # noqa: D102
        if not isinstance(X, np.ndarray) or X.dtype.name != self.dtype:
            return super().normal(X, scale)
        n, d = self.shape
        if work is None or work[0].shape[1] != X.shape[1]:
            both = roomy((n + d, X.shape[1]), X.dtype)
            work = (both[:n], both[n:])
        W, Z = work
        spmm(self.matrix, _times(X, self.right), W, scale=self.left)
        if scale != 1.0:
            W *= X.dtype.type(scale)
        spmm(self.flipped, _times(W, self.left), Z, scale=self.right)
        if scale != 1.0:
            Z *= X.dtype.type(scale)
        return Z, (W, Z)

    def energy(self, scale: float, /) -> float | None:  # noqa: D102
        ones_r = np.ones(self.shape[0]) if self.left is None else self.left.astype(np.float64) ** 2
        right = None if self.right is None else self.right.astype(np.float64)
        total, (indptr, indices, data) = 0.0, (self.matrix.indptr, self.matrix.indices, self.matrix.data)
        step = max(1, CHUNK_BYTES // 64)
        for a in range(0, data.size, step):
            x = data[a : a + step].astype(np.float64) * scale
            x = x if right is None else x * right[indices[a : a + step]]
            if self.left is None:
                total += float(x @ x)
                continue
            first = int(np.searchsorted(indptr, a, side="right")) - 1
            last = int(np.searchsorted(indptr, a + x.size, side="left"))
            counts = np.diff(np.clip(indptr[first : last + 1], a, a + x.size))
            total += float(np.sum(x * x * np.repeat(ones_r[first:last], counts)))
        return total

    def project(self, U: Array, /) -> np.ndarray | None:  # noqa: D102
        return _exact(self.flipped, U, self.left, self.right)

    def coproject(self, V: Array, /) -> np.ndarray | None:  # noqa: D102
        return _exact(self.matrix, V, self.right, self.left)


class Centered(Known):
    """``A - 1 mean'`` without forming it.

    Parameters
    ----------
    base : operator (n, d)
    mean : array (d,), optional
        The mean of the rows by default, found with one product.
    """

    def __init__(self, base: Any, mean: Array | None = None) -> None:
        self.base, self.shape, self.dtype = base, base.shape, base.dtype
        if mean is None:
            ones = from_numpy(np.ones((self.shape[0], 1), self.dtype), like=base.like)
            sums = base.project(ones)
            mean = (to_numpy(base.rmatmat(ones)).astype(np.float64) if sums is None else sums)[:, 0] / self.shape[0]
        self.mean = to_numpy(mean).astype(np.float64)
        self.exact = base.minus(self.mean) if hasattr(base, "minus") else None

    @property
    def like(self) -> Array:  # noqa: D102
        return self.base.like

    def matmat(self, X: Array, /) -> Array:  # noqa: D102
        return self.base.matmat(X) - self._mean[None, :] @ X

    def rmatmat(self, Y: Array, /) -> Array:  # noqa: D102
        return self.base.rmatmat(Y) - self._mean[:, None] * namespace(Y).sum(Y, axis=0)[None, :]

    def energy(self, scale: float, /) -> float | None:  # noqa: D102
        if self.exact is not None:
            return self.exact.energy(scale)
        whole, ones = self.base.energy(scale), from_numpy(np.ones((self.shape[0], 1), self.dtype), like=self.like)
        sums = self.base.project(ones)
        if whole is None or sums is None:
            return None
        mean = self.mean * scale
        return max(0.0, whole - 2.0 * float(mean @ (sums[:, 0] * scale)) + self.shape[0] * float(mean @ mean))

    def magnitude(self, scale: float, /) -> float:  # noqa: D102
        if self.exact is not None:
            return self.energy(scale) or 0.0
        return self.base.magnitude(scale) + self.shape[0] * float(np.sum((self.mean * scale) ** 2))

    def project(self, U: Array, /) -> np.ndarray | None:  # noqa: D102
        if self.exact is not None:
            return self.exact.project(U)
        whole = self.base.project(U)
        return None if whole is None else whole - np.outer(self.mean, to_numpy(U).sum(axis=0, dtype=np.float64))

    def coproject(self, V: Array, /) -> np.ndarray | None:  # noqa: D102
        if self.exact is not None:
            return self.exact.coproject(V)
        whole = self.base.coproject(V)
        return None if whole is None else whole - self.mean[None, :] @ to_numpy(V).astype(np.float64)

    @cached_property
    def _mean(self) -> Array:
        return from_numpy(self.mean, like=self.like, dtype=self.dtype)


class Product(Known):
    """``U diag(s) Vt`` from its factors, which need not be orthonormal; cost of a product with l columns: ``(n + d) k l``."""

    def __init__(self, U: Array, s: Array, Vt: Array) -> None:
        self.U, self.s, self.Vt = U, s, Vt
        self.shape, self.dtype = (int(U.shape[0]), int(Vt.shape[1])), dtype_name(U)

    @property
    def like(self) -> Array:  # noqa: D102
        return self.U[:0, :0]

    def matmat(self, X: Array, /) -> Array:  # noqa: D102
        return self.U @ (self.s[:, None] * (self.Vt @ X))

    def rmatmat(self, Y: Array, /) -> Array:  # noqa: D102
        return self.Vt.T @ (self.s[:, None] * (self.U.T @ Y))

    def energy(self, scale: float, /) -> float | None:  # noqa: D102
        U, s, Vt = (to_numpy(x).astype(np.float64) for x in (self.U, self.s, self.Vt))
        left = (U.T @ U) * np.outer(s * scale, s * scale)
        return max(0.0, float(np.sum(left * (Vt @ Vt.T))))

    def project(self, U: Array, /) -> np.ndarray | None:  # noqa: D102
        L, s, Vt, Y = (to_numpy(x).astype(np.float64) for x in (self.U, self.s, self.Vt, U))
        return Vt.T @ (s[:, None] * (L.T @ Y))

    def coproject(self, V: Array, /) -> np.ndarray | None:  # noqa: D102
        L, s, Vt, X = (to_numpy(x).astype(np.float64) for x in (self.U, self.s, self.Vt, V))
        return L @ (s[:, None] * (Vt @ X))


def as_operator(A: Any, /) -> Any:
    """Return an operator for a dense array, a sparse matrix, an Arrow table of edges, an operator of any library, or an operator.

    Raises
    ------
    TypeError
        If A is none of these.
    ValueError
        If A is not 2-D or has entries that are not finite.
    """
    if isinstance(A, Known):
        return A
    if is_sparse(A):
        return Csr(A)
    from streamsvd import adaptors

    return adaptors.adapted(A)


def centered(A: Any, mean: Array | None = None, /) -> Centered:
    """Return ``A - 1 mean'`` (by default the mean of the rows) without forming it."""
    return Centered(as_operator(A), mean)


def product(U: Array, s: Array, Vt: Array, /) -> Product:
    """Return ``U diag(s) Vt`` without forming it."""
    return Product(U, s, Vt)


def svd_of_product(U: Array, s: Array, Vt: Array, /, *, rank: int | None = None) -> tuple[Array, Array, Array]:
    """Exact thin SVD of ``U diag(s) Vt``, whose factors need not be orthonormal, by two QR factorizations and a k x k SVD in float64.

    Parameters
    ----------
    U : array (n, k)
    s : array (k,)
    Vt : array (k, d)
    rank : int, optional
        Keep so many components; all min(n, k, d) by default.

    Returns
    -------
    u : array (n, r), s : array (r,), descending, vt : array (r, d)
        In the namespace and dtype of U; the entry of largest magnitude of each row of ``vt`` is positive.

    Notes
    -----
    Cost: ``2 (n + d) k^2`` flops and no matrix (n, d).
    """
    left, middle, right = (to_numpy(x).astype(np.float64) for x in (U, s, Vt))
    with one_thread():
        (Ql, Rl), (Qr, Rr) = np.linalg.qr(left), np.linalg.qr(right.T)
    X, found, Yt = small_svd((Rl * middle) @ Rr.T)
    u, vt = (Ql @ X)[:, :rank], (Yt @ Qr.T)[:rank]
    turn = signs(vt)
    name = dtype_name(U)
    return tuple(from_numpy(x, like=U, dtype=name) for x in (u * turn, found[:rank], vt * turn[:, None]))  # type: ignore[return-value]


def _scale(x: Any, name: str, size: int, dtype: str) -> np.ndarray | None:
    if x is None:
        return None
    out = np.ascontiguousarray(to_numpy(x), dtype=dtype)
    if out.shape != (size,):
        msg = f"got {name} of shape {out.shape}; expected ({size},), one factor for each {'row' if name == 'left' else 'column'}"
        raise ValueError(msg)
    if not np.isfinite(out).all():
        at = int(np.flatnonzero(~np.isfinite(out))[0])
        msg = f"{name}[{at}] is {out[at]}; expected finite factors: give an empty row or column the factor 0, not 1 / 0"
        raise ValueError(msg)
    return out


def _times(X: Array, factors: np.ndarray | None) -> Array:
    return X if factors is None else X * factors[:, None]


def _exact(csr: Any, X: Array, inner: np.ndarray | None, outer: np.ndarray | None) -> np.ndarray:
    """Return ``diag(outer) A diag(inner) X`` accumulated in float64, a few columns at a time where X must be scaled."""
    if inner is None:
        return spmm(csr, X, np.empty((csr.shape[0], X.shape[1])), scale=outer)
    factors = inner.astype(np.float64)[:, None]
    parts = [spmm(csr, X[:, j : j + 16] * factors, scale=outer) for j in range(0, X.shape[1], 16)]
    return np.concatenate(parts, axis=1)
