"""The rows of one fold, a panel of columns at a time: their Gram matrix, and their rotation onto the directions that are kept.

A panel is centred in cache when it is needed, twice a fold, so a fold never holds a centred copy of its rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.arrays import Array, blas_threads, device_of, from_numpy, is_numpy, namespace, to_numpy
from streamsvd.kernels.rows import fill_panel, row_energies, scatter_signs
from streamsvd.testsketch import TEST_ROWS

if TYPE_CHECKING:
    from collections.abc import Iterator

PANEL_NUMBERS = 1 << 19
CANCELLATION = 1e4


@dataclass(frozen=True, eq=False)
class DenseRows:
    """Row-major rows (b, d), read as ``((rows - shift) - mean) * factor``, and one ``extra`` row (d,) after them or None."""

    rows: Array
    shift: Array
    mean: Array
    factor: np.ndarray
    extra: Array | None
    like: Array

    @property
    def count(self) -> int:
        """Number of rows, the extra one included."""
        return self.factor.size + (self.extra is not None)

    def panels(self) -> Iterator[tuple[int, int]]:
        """Yield ranges of columns: panels that fit a cache on the CPU, all columns at once on other devices."""
        d = self.rows.shape[1]
        width = max(256, PANEL_NUMBERS // max(1, self.count)) if is_numpy(namespace(self.rows)) else d
        count = max(1, round(d / width))
        edges = [d * i // count for i in range(count + 1)]
        yield from zip(edges[:-1], edges[1:], strict=True)

    def panel(self, start: int, stop: int, /) -> Array:
        """Return the columns start .. stop of all rows, centred, weighted and scaled, in the dtype of ``like``."""
        xp, b = namespace(self.rows), self.factor.size
        shape = (self.count, stop - start)
        out = (
            xp.empty(shape, dtype=self.like.dtype, device=device_of(self.rows))
            if xp is not np
            else np.empty(shape, self.like.dtype)
        )
        fill_panel(out[:b, :], self.rows, start, self.shift, self.mean, from_numpy(self.factor, like=self.shift))
        if self.extra is not None:
            out[b, :] = xp.astype(self.extra[start:stop], self.like.dtype)
        return out

    @property
    def uncentered(self) -> float:
        """Energy that centring cancels in the products: none, since panels are centred before them."""
        return 0.0

    def gram(self, vt: Array, /, *, double: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return ``P = X V'`` and ``X X'`` in float64 on the host; ``double`` widens the panels before the products.

        The diagonal of ``X X'`` is always summed in float64, so energies carry no rounding of float32 products.
        """
        xp = namespace(vt)
        P, XX, energies = np.zeros((self.count, vt.shape[0])), np.zeros((self.count, self.count)), np.zeros(self.count)
        for start, stop in self.panels():
            X, V = self.panel(start, stop), vt[:, start:stop]
            energies += to_numpy(row_energies(X))
            if double:
                X, V = xp.astype(X, xp.float64), xp.astype(V, xp.float64)
            with blas_threads(2.0 * X.shape[0] * X.shape[1] * (X.shape[0] / 2 + V.shape[0])):
                XX += to_numpy(X @ X.T)
                if vt.shape[0]:
                    P += to_numpy(X @ V.T)
        np.fill_diagonal(XX, energies)
        return P, XX

    def mix(self, coefficients: Array, start: int, stop: int, panel: Array, /) -> Array:
        """Return ``coefficients @ panel``; the sparse twin has no panel and works from its own rows."""
        return coefficients @ panel

    def test_rows(self, slots: np.ndarray, signs: np.ndarray, panel: Array, /) -> Array:
        """Return the test sketch of a panel."""
        return scatter_signs(panel, slots, signs, TEST_ROWS)


@dataclass(frozen=True, eq=False)
class SparseRows:
    """CSR rows (b, d), read as ``(rows - 1 mean') * factor`` without forming them: centring enters as rank-one corrections.

    The corrections cancel ``eps |mean|^2`` (recipe of the Gram blocks: Chan, Golub and LeVeque 1983), so products are float64 and
    the caller densifies rows whose mean is large against their spread.
    """

    rows: Any
    mean: np.ndarray
    factor: np.ndarray
    extra: Array | None
    like: Array

    @property
    def count(self) -> int:
        """Number of rows, the extra one included."""
        return self.factor.size + (self.extra is not None)

    def panels(self) -> Iterator[tuple[int, int]]:
        """Yield all columns at once."""
        yield 0, self.rows.shape[1]

    def panel(self, start: int, stop: int, /) -> Array:
        """Return all rows, densified (asked for only where there are few columns)."""
        return self.mix(np.eye(self.count), start, stop, None)

    @property
    def uncentered(self) -> float:
        """Energy that the rank-one corrections cancel in the products."""
        squares = self.rows.multiply(self.rows).sum(axis=1) + float(self.mean @ self.mean)
        return float(squares @ self.factor**2)

    def cancels(self) -> bool:
        """Tell whether the mean is so large against the spread of the rows that they are better densified and centred first."""
        raw = float(self.rows.data.astype(np.float64) @ self.rows.data) / max(1, self.factor.size)
        offset = float(self.mean @ self.mean)
        return offset > CANCELLATION * max(raw - offset, 0.0)

    def gram(self, vt: Array, /, *, double: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Return ``P`` and ``X X'`` as the dense rows do, always from float64 products."""
        b, n = self.factor.size, self.count
        X, V = self.rows.astype(np.float64), vt.astype(np.float64)
        cross, f = X @ self.mean, self.factor
        P, XX = np.zeros((n, V.shape[0])), np.zeros((n, n))
        P[:b] = (X @ np.ascontiguousarray(V.T) - V @ self.mean) * f[:, None]
        inner = (X @ X.T).toarray() - cross[:, None] - cross[None, :] + float(self.mean @ self.mean)
        XX[:b, :b] = inner * np.outer(f, f)
        if self.extra is not None:
            P[b] = V @ self.extra
            XX[b, :b] = XX[:b, b] = (X @ self.extra - float(self.mean @ self.extra)) * f
            XX[b, b] = float(self.extra @ self.extra)
        return P, XX

    def mix(self, coefficients: Array, start: int, stop: int, panel: Array, /) -> Array:
        """Return ``coefficients @ X`` (p, d) without forming X."""
        b = self.factor.size
        C = coefficients[:, :b].astype(np.float64) * self.factor
        out = np.asarray(self.rows.T.astype(np.float64) @ np.ascontiguousarray(C.T)).T - np.outer(
            C.sum(axis=1), self.mean
        )
        if self.extra is not None:
            out += np.outer(coefficients[:, b], self.extra)
        return out.astype(self.like.dtype)

    def test_rows(self, slots: np.ndarray, signs: np.ndarray, panel: Array, /) -> Array:
        """Return the test sketch of the rows."""
        S = np.zeros((TEST_ROWS, self.count))
        S[slots, np.arange(self.count)] = signs
        return self.mix(S, 0, self.rows.shape[1], panel)


@dataclass(frozen=True, eq=False)
class Rotated:
    """Rows ``B`` (p, d) = coefficients applied to the stack, their Gram matrix ``C`` (p, p), and the new test sketch."""

    B: Array
    C: np.ndarray
    test: Array


def rotate(
    rows: DenseRows | SparseRows, vt: Array, old: np.ndarray, new: np.ndarray, test: tuple[Array, float, Any], /
) -> Rotated:
    """Apply ``old`` (p, q) to V and ``new`` (p, b) to the rows, panel by panel; ``test`` is (sketch, fade, (slots, signs))."""
    xp, (sketch, fade, drawn) = namespace(vt), test
    C_old, C_new = (from_numpy(c, like=vt, dtype=_name(vt)) for c in (old, new))
    p, d = old.shape[0], vt.shape[1]
    B = xp.empty((p, d), dtype=vt.dtype, device=device_of(vt)) if xp is not np else np.empty((p, d), vt.dtype)
    fresh = sketch * fade
    C = np.zeros((p, p))
    for start, stop in rows.panels():
        X = rows.panel(start, stop) if isinstance(rows, DenseRows) else None
        with blas_threads(2.0 * p * (stop - start) * (old.shape[1] + new.shape[1])):
            part = rows.mix(C_new, start, stop, X)
            if old.shape[1]:
                part = part + C_old @ vt[:, start:stop]
            C += to_numpy(part @ part.T)
        B[:, start:stop] = part
        if drawn is not None:
            fresh[:, start:stop] += rows.test_rows(*drawn, X)
    return Rotated(B, C, fresh)


def apply_left(K: np.ndarray, B: Array, /) -> None:
    """Overwrite rows ``B`` (p, d), owned by the caller, by ``K @ B``, panel by panel."""
    C = from_numpy(K, like=B, dtype=_name(B))
    width = max(256, PANEL_NUMBERS // max(1, B.shape[0]))
    for start in range(0, B.shape[1], width):
        part = B[:, start : start + width]
        with blas_threads(2.0 * K.shape[0] * K.shape[1] * part.shape[1]):
            B[:, start : start + width] = C @ part


def _name(x: Array) -> str:
    from streamsvd.arrays import dtype_name

    return dtype_name(x)
