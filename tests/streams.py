"""Streams with a prescribed spectrum, and the truth about a stream: a dense float64 SVD of all its rows at once."""

from __future__ import annotations

import itertools
from functools import cached_property
from typing import Any

import numpy as np

SPECTRA = {
    "flat": lambda j: np.ones_like(j),
    "1/j": lambda j: 1.0 / j,
    "1/sqrt(j)": lambda j: 1.0 / np.sqrt(j),
    "geometric .5": lambda j: 0.5 ** (j - 1),
    "geometric .9": lambda j: 0.9 ** (j - 1),
    "geometric .97": lambda j: 0.97 ** (j - 1),
    "step": lambda j: np.where(j <= 3, 1.0, 1e-3),
    "zipf 1.5": lambda j: j**-1.5,
}
OTHER_STREAMS = ("drift", "adversarial", "heavy tail", "graded")
STREAMS = (*SPECTRA, *OTHER_STREAMS)


def orthonormal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Orthonormal rows (rows, columns) with a random direction."""
    return np.linalg.qr(rng.standard_normal((columns, rows)))[0].T


def with_spectrum(rng: np.random.Generator, n: int, d: int, s: np.ndarray) -> np.ndarray:
    """Rows (n, d) whose uncentred singular values are ``s``."""
    s = np.asarray(s, dtype=np.float64)
    return (orthonormal(rng, s.size, n).T * s) @ orthonormal(rng, s.size, d)


def low_rank(rng: np.random.Generator, n: int, d: int, rank: int) -> np.ndarray:
    """Rows (n, d) of exactly this rank (up to rounding), singular values of one size."""
    return rng.standard_normal((n, rank)) @ (orthonormal(rng, rank, d) * np.linspace(3, 1, rank)[:, None])


def rows_of(kind: str, rng: np.random.Generator, n: int, d: int, dtype: str = "float64") -> np.ndarray:
    """Rows (n, d) of one of the STREAMS, in float64."""
    if kind in SPECTRA:
        return (rng.standard_normal((n, d)) * SPECTRA[kind](np.arange(1.0, d + 1))) @ orthonormal(rng, d, d)
    if kind == "drift":
        frame = orthonormal(rng, 2, d)
        angle = np.linspace(0, 3 * np.pi, n)
        rows = np.cos(angle)[:, None] * frame[0] + np.sin(angle)[:, None] * frame[1]
        return rows * rng.standard_normal((n, 1)) * 3 + 0.1 * rng.standard_normal((n, d))
    if kind == "adversarial":
        # Each new direction comes a little at a time and is always the smallest, so plain truncation keeps throwing it away.
        strong = rng.standard_normal((n, 3)) * [9.0, 8.0, 7.0]
        rows = np.zeros((n, d))
        rows[:, :3] = strong
        rows[np.arange(n), 3 + np.arange(n) * (d - 3) // n] = 1.0
        return rows
    if kind == "heavy tail":
        return rng.standard_t(1.5, (n, 1)) * (rng.standard_normal((n, d)) / np.sqrt(np.arange(1, d + 1)))
    if kind == "graded":
        low = -12.0 if dtype == "float64" else -5.0
        return (rng.standard_normal((n, d)) * np.logspace(0, low, d)) @ orthonormal(rng, d, d)
    raise KeyError(kind)


def cuts(rng: np.random.Generator, n: int) -> list[slice]:
    """A random partition of n rows, with some empty pieces."""
    ends = np.sort(rng.integers(0, n + 1, rng.integers(1, 12)))
    edges = [0, *ends.tolist(), n]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def chunks(n: int, size: int) -> list[slice]:
    """Pieces of ``size`` rows, the last one shorter."""
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def feed(state: Any, rows: Any, pieces: list[slice] | int | None = None, *, weights: Any = None) -> Any:
    """Update a state by rows cut into pieces (a list of slices, or a size; all at once by default)."""
    n = rows.shape[0]
    if pieces is None:
        pieces = max(n, 1)
    for part in chunks(n, pieces) if isinstance(pieces, int) else pieces:
        state = state.update(rows[part, :], weights=None if weights is None else weights[part])
    return state


class Truth:
    """The weighted, aged, centred stream as one float64 matrix ``A`` and its SVD."""

    def __init__(
        self,
        rows: Any,
        *,
        center: bool = True,
        weights: Any = None,
        decay: float = 1.0,
        ages: Any = None,
    ) -> None:
        X = np.asarray(rows, dtype=np.float64)
        w = np.ones(X.shape[0]) if weights is None else np.asarray(weights, dtype=np.float64)
        X, w = X[w > 0], w[w > 0]
        faded = decay ** np.arange(X.shape[0] - 1, -1, -1.0) if ages is None else np.asarray(ages)
        self.row_weights = w = w * faded
        self.weight = float(w.sum())
        # Subtracting one row first keeps the digits that a large offset would take from the mean.
        base = X[0] if center else np.zeros(X.shape[1])
        Y = X - base
        offset = w @ Y / self.weight if center else np.zeros(X.shape[1])
        self.mean = base + offset
        self.A = np.sqrt(w)[:, None] * (Y - offset)
        self.moments = self.A.T @ self.A
        self.energy = float(np.vdot(self.A, self.A))

    @cached_property
    def _svd(self) -> tuple[np.ndarray, np.ndarray]:
        _, s, vt = np.linalg.svd(self.A, full_matrices=False)
        d = self.A.shape[1]
        return np.concatenate([s, np.zeros(d - s.size)]), vt

    @property
    def s(self) -> np.ndarray:
        """Singular values, filled up with zeros to d."""
        return self._svd[0]

    @property
    def vt(self) -> np.ndarray:
        return self._svd[1]

    def rest(self, vt: Any) -> np.ndarray:
        """``A (I - V'V)``."""
        V = np.asarray(vt, dtype=np.float64)
        return self.A - (self.A @ V.T) @ V

    def rest_of_top(self, vt: Any, k: int) -> np.ndarray:
        """The true top-k directions outside V; the norm is the sine of the largest angle."""
        V = np.asarray(vt, dtype=np.float64)
        return self.vt[:k] - (self.vt[:k] @ V.T) @ V

    def residual(self, vt: Any) -> float:
        rest = self.rest(vt)
        return float(np.vdot(rest, rest))

    def spectral(self, vt: Any) -> float:
        return float(np.linalg.norm(self.rest(vt), 2) ** 2)

    def optimal(self, k: int) -> float:
        return float((self.s[k:] ** 2).sum())

    def projector(self, k: int) -> np.ndarray:
        return self.vt[:k].T @ self.vt[:k]

    def gap(self, k: int) -> float:
        return float(self.s[k - 1] - self.s[k])


def projector(vt: Any) -> np.ndarray:
    """``V'V`` in float64."""
    V = np.asarray(vt, dtype=np.float64)
    return V.T @ V


def moments_of(factors: Any) -> np.ndarray:
    """``V' diag(s^2) V`` in float64: what the factors say ``A'A`` is."""
    from streamsvd.arrays import to_numpy

    B = to_numpy(factors.s).astype(np.float64)[:, None] * to_numpy(factors.vt).astype(np.float64)
    return B.T @ B
