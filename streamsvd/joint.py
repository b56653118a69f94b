"""All robust components at once: weighted regressions of every row and every column on all of them, after they were found singly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from streamsvd.arrays import Array, from_numpy, namespace
from streamsvd.dpd import mdpde_scale
from streamsvd.fixedpoint import Found, fixed_point
from streamsvd.kernels import dpd
from streamsvd.packed import pairs, regress

ROUNDS = 20  # of sigma and components in turn
LIMIT = 1e-5  # relative change of sigma at which it stands


class Joint(NamedTuple):
    """Left vectors (n, k), singular values, right vectors (k, p), the residuals, sigma, and how the iteration ended."""

    u: np.ndarray
    s: np.ndarray
    vt: np.ndarray
    rest: Array
    sigma: float
    steps: int
    converged: bool


@dataclass(frozen=True, eq=False)
class _Fit:
    """A matrix (n, p) with its missing entries set to zero beside it, and the number k of components."""

    X: Array
    filled: Array
    k: int

    def split(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the coefficients (n, k) and the components (k, p) of a point."""
        n, p = self.X.shape
        return x[: n * self.k].reshape(n, self.k), x[n * self.k :].reshape(self.k, p)

    def half(self, C: np.ndarray, V: np.ndarray, rate: float) -> tuple[Array, Array, float]:
        """Return the weights, V where the data is, and the sum of the weights."""
        xp = namespace(self.X)
        left, right = (xp.astype(from_numpy(np.ascontiguousarray(part), like=self.X), self.X.dtype) for part in (C, V))
        W = dpd.weigh(self.X, left @ right, xp.full_like(self.X[0, :], rate))
        return W, right, float(xp.sum(xp.astype(W, xp.float64)))

    def step(self, x: np.ndarray, rate: float) -> tuple[np.ndarray, float]:
        """Regress all rows on the components, then all columns on the coefficients; return the new point and the objective before."""
        xp = namespace(self.X)
        C, V = self.split(x)
        W, right, mass = self.half(C, V, rate)
        C = regress(W, self.filled, right, pairs(right), C)
        # Unit coefficient columns keep both systems of one size, so that the ridge of `regress` means the same in both.
        size = np.linalg.norm(C, axis=0)
        size = np.where(size > 0, size, 1.0)
        W, _, _ = self.half(C, V, rate)
        left = xp.astype(from_numpy(np.ascontiguousarray((C / size).T), like=self.X), self.X.dtype)
        turned = xp.matrix_transpose(self.filled)
        V = regress(xp.matrix_transpose(W), turned, left, pairs(left), V.T * size).T / size[:, None]
        return np.concatenate([C.ravel(), V.ravel()]), mass


def together(
    X: Array,
    u: np.ndarray,
    s: np.ndarray,
    vt: np.ndarray,
    /,
    *,
    alpha: float,
    sigma: float | None,
    tol: float,
    limit: int,
) -> Joint:
    """Raise ``sum_ij exp(-alpha e_ij^2 / 2 sigma^2)`` with ``e = X - C V`` in all components at once, from those given.

    Parameters
    ----------
    X : array (n, p); NaN marks what is missing
    u, s, vt : array (n, k), (k,), (k, p), float64
        The start.
    alpha : float
    sigma : float, optional
        None for the scale of the residuals by its estimating equation, in turn with the components.
    tol, limit
        As for ``fixed_point``.

    Notes
    -----
    Each half is a majorise-minimise step of the divergence (Gabriel and Zamir 1979 for given weights). Cost: an iteration takes 2
    exponentials and ``2 k (k + 3)`` flops an entry, in matrix products. Memory: about six matrices of the size of X.
    """
    xp = namespace(X)
    fit = _Fit(X, xp.where(xp.isfinite(X), X, xp.zeros_like(X)), s.size)
    x = np.concatenate([(u * s).ravel(), vt.ravel()])
    steps, last, found = 0, 0.0, Found(x, 0, True, 0.0)
    for _ in range(1 if sigma is not None or alpha == 0 else ROUNDS):
        new = sigma or max(mdpde_scale(_rest(fit, x), alpha), 1e-8)
        if abs(new - last) <= LIMIT * new:
            break
        last, rate = new, alpha / (2.0 * new * new)
        found = fixed_point(lambda x, rate=rate: fit.step(x, rate), x, tol=tol, limit=max(1, limit - steps))
        x, steps = found.x, steps + found.steps
    C, V = fit.split(x)
    Q, R = np.linalg.qr(C)
    P, T = np.linalg.qr(V.T)
    left, size, right = np.linalg.svd(R @ T.T)
    return Joint(Q @ left, size, right @ P.T, _rest(fit, x), last, steps, found.converged)


def _rest(fit: _Fit, x: np.ndarray) -> Array:
    C, V = fit.split(x)
    xp = namespace(fit.X)
    return fit.X - xp.astype(from_numpy(np.ascontiguousarray(C @ V), like=fit.X), fit.X.dtype)
