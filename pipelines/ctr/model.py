"""Atomic feature mimicking of an embedding table: the mathematics of one field, from its moments to a smaller table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from streamsvd.arrays import Array
from streamsvd.gram import Gram


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Principal axes of weighted vectors.

    Attributes
    ----------
    eigenvalues : array (d,), float64, falling, >= 0: of the weighted covariance (of the second moment without centring)
    vt : array (d, d), float64, orthonormal rows
    mean : array (d,), float64, zero without centring
    weight : float, W = sum of the weights
    energy : float, E |e|^2, the weighted mean of the squared norm
    """

    eigenvalues: Array
    vt: Array
    mean: Array
    weight: float
    energy: float

    def dropped(self, rank: int, /) -> float:
        """Expected squared error of the best affine map of this rank: the sum of the dropped eigenvalues."""
        return float(self.eigenvalues[rank:].sum())


def spectrum(moments: Gram, /) -> Spectrum:
    """Diagonalise the moments of one field; O(d^3). Eigenvalues that float64 cannot tell from zero are zero."""
    found = moments.factors(moments.columns)
    values, mean = np.asarray(found.s) ** 2 / found.weight, np.asarray(found.mean)
    return Spectrum(values, np.asarray(found.vt), mean, float(found.weight), float(values.sum() + mean @ mean))


def expected_error(moments: Gram, vt: Array, mean: Array, /) -> float:
    """Expected squared error under moments that the basis was not made of: ``tr (I - P)(C + (mu - m)(mu - m)')``, P = V'V.

    Parameters
    ----------
    moments : Gram, of the same vectors under any weights
    vt : array (r, d), orthonormal rows
    mean : array (d,)
    """
    own = spectrum(moments)
    C = (own.vt.T * own.eigenvalues) @ own.vt
    gap = own.mean - mean
    away = gap - vt.T @ (vt @ gap)
    return max(0.0, float(np.trace(C) - np.einsum("rd,de,re->", vt, C, vt) + away @ away))


def field_bytes(vocabulary: int, columns: int, rank: int | None, itemsize: int, center: bool, /) -> int:
    """Bytes of a field: ``V d`` numbers dense (rank None), ``V r + r d`` and a mean of d otherwise."""
    if rank is None:
        return itemsize * vocabulary * columns
    return itemsize * (vocabulary * rank + rank * columns + (columns if center else 0))


@dataclass(frozen=True, eq=False)
class CompressedField:
    """One field after compression: ``e_i ~ table_i projection + mean``.

    Attributes
    ----------
    name : str
    rank : int or None
        None where the field stays dense; then ``table`` holds the vectors, ``projection`` is the identity and ``mean`` zero.
    reason : str
        Why this rank.
    ids : array (V,)
    table : array (V, r), in the dtype of the vectors
    projection : array (r, d), orthonormal rows
    mean : array (d,)
    eigenvalues : array (d,), float64
    dropped : float
        Expected squared error of a look-up under the weights of the basis: the sum of the dropped eigenvalues.
    energy : float
        Weighted mean of the squared norm of a look-up; ``error = dropped / energy``.
    served_error : float
        Relative squared error under the counts as they are, without smoothing and power.
    weight, served_weight : float
        Sum of the weights, and of the counts.
    bytes_before, bytes_after : int
    source : folder, or None
        Where the rows are, for fields too large for memory; ``ids`` and ``table`` then read them each time.
    """

    name: str
    rank: int | None
    reason: str
    projection: Array
    mean: Array
    eigenvalues: Array
    dropped: float
    energy: float
    served_error: float
    weight: float
    served_weight: float
    vocabulary: int
    bytes_before: int
    bytes_after: int
    rows: tuple[Any, Array] | None = None
    source: Any = None

    @property
    def ids(self) -> Any:
        """Ids (V,), as they came: an Arrow or NumPy array."""
        return self._rows()[0]

    @property
    def table(self) -> Array:
        """Compressed rows (V, r)."""
        return self._rows()[1]

    @property
    def error(self) -> float:
        """Relative weighted squared error: dropped eigenvalues over the energy of the look-ups."""
        return self.dropped / self.energy if self.energy > 0 else 0.0

    def _rows(self) -> tuple[Any, Array]:
        if self.rows is not None:
            return self.rows
        from streamsvd.pipelines.ctr.io import read_rows

        return read_rows(self.source, self.name)

    def encode(self, vectors: Array, /) -> Array:
        """Return the compressed rows (b, r) of vectors (b, d), also of ids that the basis has not seen."""
        return encode(vectors, self.projection, self.mean) if self.rank is not None else vectors

    def reconstruct(self, rows: Any = slice(None), /) -> Array:
        """Return the vectors (b, d) of some rows, by default of all."""
        taken = self.table[rows]
        if self.rank is None:
            return taken
        return (taken.astype(np.float64) @ self.projection + self.mean).astype(taken.dtype)

    def held(self) -> CompressedField:
        """Return the field with its rows in memory."""
        return self if self.rows is not None else replace(self, rows=self._rows())


def encode(vectors: Array, projection: Array, mean: Array, /) -> Array:
    """Return ``(e - mean) projection'`` (b, r) in the dtype of the vectors.

    The mean is subtracted first and in two parts, so that a mean far larger than the spread costs float32 no digits. Cost: r d
    multiply-adds a row.
    """
    dtype = vectors.dtype if vectors.dtype in (np.float32, np.float64) else np.dtype(np.float32)
    near = mean.astype(dtype)
    rest = (near.astype(np.float64) - mean) @ projection.T
    out = np.subtract(vectors, near, dtype=dtype) @ projection.T.astype(dtype)
    out += rest.astype(dtype)
    return out
