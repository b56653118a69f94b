"""The rows of one fold, a panel of columns at a time: their Gram matrix, and their rotation onto the directions that are kept.

A panel is centred in cache when it is needed, so a fold never holds a centred copy of its rows.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.arrays import (
    Array,
    blas_threads,
    dtype_name,
    empty,
    from_numpy,
    is_numpy,
    namespace,
    to_numpy,
)
from streamsvd.kernels.rows import enter_panel, fill_panel, row_energies
from streamsvd.testsketch import TEST_ROWS

if TYPE_CHECKING:
    from collections.abc import Iterator

PANEL_NUMBERS = 1 << 19
CANCELLATION = 1e4
SMALL_OFFSET = 0.25
FEW_ROWS = 96


@dataclass(frozen=True, eq=False)
class Entered:
    """Products of the new rows, on the host in float64: ``P = X V'`` (b, q), ``XX = X X'`` (b, b), and the new test sketch."""

    P: np.ndarray
    XX: np.ndarray
    test: Array


@dataclass(frozen=True, eq=False)
class DenseRows:
    """Row-major rows (b, d), read as ``((rows - shift) - mean) * factor`` in their own dtype; without centring, both are zero.

    ``known`` is ``rows rows'`` (b, b) in float64 where it is known, which spares its products: that of rows that are neither shifted nor
    centred, such as those of another state.
    """

    rows: Array
    shift: Array
    mean: Array
    factor: np.ndarray
    centered: bool
    known: np.ndarray | None = None

    @property
    def count(self) -> int:
        """Number of rows b."""
        return self.factor.size

    @property
    def uncentered(self) -> float:
        """Energy that centring cancels in float64 products: none, since panels are centred before them."""
        return 0.0

    def panels(self, wanted: int, /) -> Iterator[tuple[int, int]]:
        """Yield ranges of columns: panels of ``wanted`` rows that fit a cache on the CPU, all columns at once on other devices."""
        d = self.rows.shape[1]
        width = max(256, PANEL_NUMBERS // max(1, wanted)) if is_numpy(namespace(self.rows)) else d
        count = max(1, round(d / width))
        edges = [d * i // count for i in range(count + 1)]
        yield from itertools.pairwise(edges)

    def enter(self, vt: Array, test: tuple[Array, float, Any], /, *, double: bool = False) -> Entered:
        """Centre the rows and take their products with the old directions and with each other.

        ``test`` is (sketch, fade, (slots, signs) or None); ``double`` widens float32 panels before the products. The diagonal of XX is
        always summed in float64, so energies carry no rounding of float32 products.
        """
        xp, b, q = namespace(self.rows), self.count, vt.shape[0]
        sketch, fade, drawn = test
        fresh = sketch * fade
        if self.known is not None and not double:
            with blas_threads(2.0 * b * q * vt.shape[1]):
                P = to_numpy(self.rows @ vt.T).astype(np.float64) * self.factor[:, None]
            return Entered(P, self.known * np.outer(self.factor, self.factor), fresh)
        P, XX, energies = np.zeros((b, q)), np.zeros((b, b)), np.zeros(b)
        factor = from_numpy(self.factor, like=self.shift)
        # BLAS is slow on few rows: a few old and new ones are multiplied together, and V V' is thrown away.
        together = q if b + q <= FEW_ROWS else 0
        work = None
        for start, stop in self.panels(b):
            work = _panel(work, together + b, stop - start, self.rows)
            X, V = work[together:, :], vt[:, start:stop]
            energies += enter_panel(X, self.rows, start, self.shift, self.mean, factor, (fresh, drawn))
            if together:
                work[:q, :] = V
            M = xp.astype(work, xp.float64) if double and dtype_name(vt) == "float32" else work
            with blas_threads(2.0 * b * (stop - start) * (b / 2 + q)):
                G = to_numpy(M @ M.T)
                XX += G[together:, together:]
                if together:
                    P += G[q:, :q]
                elif q:
                    P += to_numpy(M @ (xp.astype(V, M.dtype) if double else V).T)
        np.fill_diagonal(XX, energies)
        return Entered(P, XX, fresh)

    def dense(self) -> np.ndarray:
        """Return all rows, centred, in float64 on the host (for few columns)."""
        X = empty(self.rows.shape, like=self.rows)
        fill_panel(X, self.rows, 0, self.shift, self.mean, from_numpy(self.factor, like=self.shift))
        return to_numpy(X).astype(np.float64)

    def rotate(self, vt: Array, old: np.ndarray, new: np.ndarray, energy: float, /) -> tuple[Array, np.ndarray]:
        """Return ``B = old V + new X`` (p, d) and its Gram matrix (p, p), panel by panel.

        Where the offset holds no more energy than a quarter of the rows', the raw rows are multiplied and the offset is taken off by a
        rank-one term: the same rounding to within 1.5, without centring a second time.
        """
        offset = self.shift + self.mean if self.centered else None
        raw = offset is None or self._offset_energy(offset) <= SMALL_OFFSET * energy
        p, (b, d) = old.shape[0], self.rows.shape
        dtype = dtype_name(vt)
        C_old = from_numpy(old, like=vt, dtype=dtype)
        C_new = from_numpy(new * self.factor if raw else new, like=vt, dtype=dtype)
        taken = from_numpy(new @ self.factor, like=vt, dtype=dtype)
        offset = None if offset is None or not raw else namespace(vt).astype(offset, vt.dtype)
        B, C = empty((p, d), like=vt), np.zeros((p, p))
        factor, work = from_numpy(self.factor, like=self.shift), None
        for start, stop in self.panels(p if raw else b):
            X = self.rows[:, start:stop]
            if not raw:
                work = _panel(work, b, stop - start, vt)
                X = fill_panel(work, self.rows, start, self.shift, self.mean, factor)
            with blas_threads(2.0 * p * (stop - start) * (b + old.shape[1])):
                part = _product(C_new, X, B[:, start:stop])
                if old.shape[1]:
                    part += C_old @ vt[:, start:stop]
                if offset is not None:
                    part -= taken[:, None] * offset[None, start:stop]
            if not isinstance(part, np.ndarray):
                B[:, start:stop] = part
            C += _products(B, start, stop)
        return B, C

    def _offset_energy(self, offset: Array) -> float:
        # Scaled before it is squared: the offset itself may be 1e160.
        largest = float(self.factor.max(initial=0.0))
        scaled = offset * largest
        return float(namespace(offset).sum(scaled * scaled)) * float(np.sum((self.factor / (largest or 1.0)) ** 2))


@dataclass(frozen=True, eq=False)
class SparseRows:
    """CSR rows (b, d), read as ``(rows - 1 mean') * factor`` without forming them: centring enters as rank-one corrections.

    The corrections cancel ``eps |mean|^2`` (Chan, Golub and LeVeque 1983), so products are float64, what they cancel is accounted for
    as rounding, and rows whose mean is large against their spread are densified instead.
    """

    rows: Any
    mean: np.ndarray
    factor: np.ndarray
    known: None = None

    @property
    def count(self) -> int:
        """Number of rows b."""
        return self.factor.size

    @property
    def uncentered(self) -> float:
        """Energy that the rank-one corrections cancel in the products."""
        squares = self.rows.multiply(self.rows).sum(axis=1) + float(self.mean @ self.mean)
        return float(squares @ self.factor**2)

    @property
    def energy(self) -> float:
        """Energy of the centred rows."""
        cross = (self.rows @ self.mean) * self.factor**2
        return max(0.0, self.uncentered - 2.0 * float(cross.sum()))

    def cancels(self, each: bool = False, /) -> bool:
        """Tell whether the mean is so large against the spread that the rows are better densified and centred first.

        Of all columns together, or of ``each``, where columns are scaled one by one later.
        """
        raw, offset = self.rows.multiply(self.rows).sum(axis=0) / max(1, self.count), self.mean**2
        if not each:
            raw, offset = raw.sum(keepdims=True), offset.sum(keepdims=True)
        return bool(np.any(offset > CANCELLATION * np.maximum(raw - offset, 0.0)))

    def enter(self, vt: Array, test: tuple[Array, float, Any], /, *, double: bool = True) -> Entered:
        """Return what the dense rows do, always from float64 products."""
        X, V, f = self.rows.astype(np.float64), vt.astype(np.float64), self.factor
        cross = X @ self.mean
        P = (X @ np.ascontiguousarray(V.T) - V @ self.mean) * f[:, None]
        XX = (X @ X.T).toarray() - cross[:, None] - cross[None, :] + float(self.mean @ self.mean)
        sketch, fade, drawn = test
        fresh = sketch * fade
        if drawn is not None:
            S = np.zeros((TEST_ROWS, self.count))
            S[drawn[0], np.arange(self.count)] = drawn[1]
            fresh += self._mix(S, vt.dtype)
        return Entered(P, XX * np.outer(f, f), fresh)

    def dense(self) -> np.ndarray:
        """Return all rows, centred, in float64 (for few columns)."""
        return (self.rows.toarray().astype(np.float64) - self.mean) * self.factor[:, None]

    def rotate(self, vt: Array, old: np.ndarray, new: np.ndarray, energy: float, /) -> tuple[Array, np.ndarray]:
        """Return ``B = old V + new X`` (p, d) and its Gram matrix (p, p)."""
        B = self._mix(new, vt.dtype)
        if old.shape[1]:
            B += old.astype(vt.dtype) @ vt
        return B, gram_of(B)

    def _mix(self, coefficients: np.ndarray, dtype: Any) -> np.ndarray:
        """Return ``coefficients @ X`` (p, d) without forming X."""
        C = coefficients * self.factor
        out = np.asarray(self.rows.T.astype(np.float64) @ np.ascontiguousarray(C.T)).T - np.outer(
            C.sum(axis=1), self.mean
        )
        return np.ascontiguousarray(out, dtype=dtype)


def apply_left(K: np.ndarray, B: Array, /) -> None:
    """Overwrite rows ``B`` (p, d), owned by the caller, by ``K @ B``, panel by panel."""
    C = from_numpy(K, like=B, dtype=dtype_name(B))
    width = max(256, PANEL_NUMBERS // max(1, B.shape[0]))
    for start in range(0, B.shape[1], width):
        stop = min(start + width, B.shape[1])
        part = B[:, start:stop]
        with blas_threads(2.0 * K.shape[0] * K.shape[1] * part.shape[1]):
            B[:, start:stop] = C @ part


def gram_of(B: Array, /, *, double: bool = False) -> np.ndarray:
    """Return ``B B'`` (p, p) on the host, panel by panel; the diagonal is always summed in float64, and all of it if ``double``."""
    xp, p = namespace(B), B.shape[0]
    C = np.zeros((p, p))
    width = max(256, PANEL_NUMBERS // max(1, p))
    for start in range(0, B.shape[1], width):
        stop = min(start + width, B.shape[1])
        if double:
            part = xp.astype(B[:, start:stop], xp.float64)
            C += to_numpy(part @ part.T)
        else:
            C += _products(B, start, stop)
    return C


def _products(B: Array, start: int, stop: int) -> np.ndarray:
    part = B[:, start:stop]
    with blas_threads(1.0 * B.shape[0] ** 2 * (stop - start)):
        C = to_numpy(part @ part.T).astype(np.float64)
    if dtype_name(B) == "float32":
        np.fill_diagonal(C, to_numpy(row_energies(B, start, stop)))
    return C


def _panel(work: Array | None, rows: int, columns: int, like: Array) -> Array:
    """Return a row-major panel, in the memory of the last one where it fits: fresh pages cost more than the pass over them."""
    if work is not None and work.shape == (rows, columns):
        return work
    if isinstance(work, np.ndarray) and work.size > rows * columns:
        return work.reshape(-1)[: rows * columns].reshape(rows, columns)
    return empty((rows, columns), like=like)


def _product(C: Array, X: Array, out: Array) -> Array:
    """Return ``C @ X``, written into ``out`` where the library can."""
    return np.matmul(C, X, out=out) if isinstance(out, np.ndarray) else C @ X
