"""The symmetric matrix that orients a weight: nothing, a diagonal, a covariance, or a covariance known by its leading part and a tail.

Each has ``apply`` (``C X``), ``orient`` (``W C``, formed) and ``solve`` (``C^-1 X``, by Cholesky or Woodbury: no inverse is formed).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from streamsvd.arrays import Array, from_numpy, one_thread, to_numpy


@dataclass(frozen=True, eq=False)
class Plain:
    """No metric: the identity."""

    def apply(self, X: Array, /) -> Array:
        """Return X."""
        return X

    def orient(self, W: Array, /) -> Array:
        """Return W."""
        return W

    def solve(self, X: Array, /) -> Array:
        """Return X."""
        return X


@dataclass(frozen=True, eq=False)
class Diagonal:
    """``diag(d)``, d (columns,) positive: a scale for each input channel (ASVD, SmoothQuant)."""

    d: Array

    def apply(self, X: Array, /) -> Array:
        """Return ``diag(d) X``."""
        return self.d[:, None] * X

    def orient(self, W: Array, /) -> Array:
        """Return ``W diag(d)``."""
        return W * self.d[None, :]

    def solve(self, X: Array, /) -> Array:
        """Return ``diag(d)^-1 X``."""
        return X / self.d[:, None]


@dataclass(frozen=True, eq=False)
class Covariance:
    """A symmetric positive definite C (columns, columns), float64."""

    C: Array

    def apply(self, X: Array, /) -> Array:
        """Return ``C X``."""
        return self.C @ X

    def orient(self, W: Array, /) -> Array:
        """Return ``W C``."""
        return W @ self.C

    def solve(self, X: Array, /) -> Array:
        """Return ``C^-1 X`` by Cholesky.

        Raises
        ------
        ValueError
            If C is not positive definite.
        """
        from scipy.linalg import cho_factor, cho_solve

        try:
            with one_thread():
                found = cho_solve(cho_factor(to_numpy(self.C), lower=True), to_numpy(X))
        except np.linalg.LinAlgError as error:
            msg = "the covariance is not positive definite, and the weight is rank deficient; expected damping > 0: write damping=0.01"
            raise ValueError(msg) from error
        return from_numpy(np.asarray(found), like=X)


@dataclass(frozen=True, eq=False)
class LowRank:
    """``V diag(w) V' + tail I``, V (columns, k) with orthonormal columns: the leading part of a covariance and the mean of the rest.

    Memory: ``k columns`` numbers in place of ``columns^2``.
    """

    V: Array
    w: Array
    tail: float

    def apply(self, X: Array, /) -> Array:
        """Return ``C X``; cost ``4 k columns`` flops for each column of X."""
        return self.V @ (self.w[:, None] * (self.V.T @ X)) + self.tail * X

    def orient(self, W: Array, /) -> Array:
        """Return ``W C``."""
        return ((W @ self.V) * self.w[None, :]) @ self.V.T + self.tail * W

    def solve(self, X: Array, /) -> Array:
        """Return ``C^-1 X = (X - V diag(w / (w + tail)) V' X) / tail`` (Woodbury)."""
        if not self.tail > 0.0:
            msg = f"got a low-rank covariance with tail {self.tail}, which is singular; expected damping > 0: write damping=0.01"
            raise ValueError(msg)
        share = self.w / (self.w + self.tail)
        return (X - self.V @ (share[:, None] * (self.V.T @ X))) / self.tail


Metric = Plain | Diagonal | Covariance | LowRank


def metric_of(given: Any, columns: int, /, *, like: Array) -> Metric:
    """Return the metric that a user means: None, a diagonal (columns,), a covariance (columns, columns), or a ``Metric``.

    Raises
    ------
    ValueError
        For another shape, entries that are not finite, a diagonal that is not positive, or a covariance that is not symmetric.
    """
    if given is None:
        return Plain()
    if isinstance(given, (Plain, Diagonal, Covariance, LowRank)):
        return given
    host = to_numpy(given).astype(np.float64)
    if host.shape not in {(columns,), (columns, columns)}:
        msg = (
            f"got a metric of shape {host.shape} for a weight with {columns} columns; expected ({columns},) for a diagonal "
            f"or ({columns}, {columns}) for a covariance of the layer's input"
        )
        raise ValueError(msg)
    if not np.isfinite(host).all():
        msg = "got a metric with NaN or infinity; expected finite numbers: leave the rows of calibration data out that made them"
        raise ValueError(msg)
    if host.ndim == 1:
        if not host.min(initial=1.0) > 0.0:
            msg = f"got a diagonal metric whose least entry is {host.min()}; expected positive scales: add a small constant"
            raise ValueError(msg)
        return Diagonal(from_numpy(host, like=like))
    if not np.abs(host - host.T).max(initial=0.0) <= 1e-4 * np.abs(host).max(initial=0.0):
        msg = "got a covariance that is not symmetric; expected X'X of the layer's input: write (C + C.T) / 2 if you mean that"
        raise ValueError(msg)
    return Covariance(from_numpy((host + host.T) / 2, like=like))
