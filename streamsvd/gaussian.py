"""The Gaussian that the factors of a stream stand for: k directions with a variance each, and one variance for all the others."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from streamsvd.arrays import Array, dtype_name, from_numpy, namespace, to_numpy

if TYPE_CHECKING:
    from streamsvd.factors import Factors


def deviations(factors: Factors, /) -> Array:
    """Return the standard deviation along each component, 0 where it is no more than rounding: array (k,), float64.

    Rounding is what is at most ``eps sqrt(d)`` of the largest, with the eps of the dtype of the components.
    """
    s = to_numpy(factors.s).astype(np.float64)
    floor = float(np.finfo(dtype_name(factors.vt)).eps) * math.sqrt(factors.columns) * float(s.max(initial=0.0))
    root = np.where(s > floor, s / math.sqrt(factors.dof), 0.0) if factors.dof > 0 else s * 0.0
    return from_numpy(root, like=factors.mean)


def covariance(factors: Factors, /) -> Array:
    """Covariance ``V' diag(l - n) V + n I`` with variances ``l >= n`` along the components and the noise variance n elsewhere.

    Parameters
    ----------
    factors : Factors
        Of rows that were not scaled.

    Returns
    -------
    C : array (d, d), in the namespace and dtype of the components

    Notes
    -----
    The maximum-likelihood covariance of probabilistic principal components (Tipping and Bishop 1999, eq. 7 and 8), but for the divisor
    of the variances, which is ``factors.dof``. Cost: ``d^2 k`` multiply-adds, ``d^2`` numbers.
    """
    variance, noise = _variances(factors)
    return _spread(factors, variance - noise, noise)


def precision(factors: Factors, /) -> Array:
    """Inverse of ``covariance``, from its known eigenvectors: ``V' diag(1/l - 1/n) V + I / n``, array (d, d).

    Raises
    ------
    ValueError
        If the covariance is singular.

    Notes
    -----
    Cost: ``d^2 k`` multiply-adds. No matrix is inverted.
    """
    variance, noise = _invertible(factors)
    outside = 1.0 / noise if factors.rank < factors.columns else 0.0
    return _spread(factors, 1.0 / variance - outside, outside)


def log_likelihood(factors: Factors, X: Array, /) -> Array:
    """Logarithm of the density of each row under the Gaussian with this mean and covariance: array (b,), float64.

    Parameters
    ----------
    factors : Factors
    X : array (b, d), or sparse

    Raises
    ------
    ValueError
        If the covariance is singular.

    Notes
    -----
    ``-1/2 (d log 2 pi + sum log l + (d - k) log n + sum z^2 / l + residual / n)``. Cost: ``3 b d k`` multiply-adds, and no matrix (d, d).
    """
    variance, noise = _invertible(factors)
    xp, d = namespace(factors.vt), factors.columns
    Z = xp.astype(factors.transform(X), xp.float64)
    size = xp.sum(Z * Z / from_numpy(variance, like=factors.mean)[None, :], axis=1)
    constant = d * math.log(2.0 * math.pi) + float(np.log(variance).sum())
    if factors.rank < factors.columns:
        size = size + factors.residual(X) / noise
        constant += (d - factors.rank) * math.log(noise)
    return -0.5 * (size + constant)


def _variances(factors: Factors) -> tuple[np.ndarray, float]:
    """Return the variances along the components and around them; less than rounding can tell from zero counts as that much."""
    directions = max(factors.columns - factors.rank, 1)
    rounding = 0.0 if factors.bound is None or factors.dof <= 0 else factors.bound.rounding / directions / factors.dof
    noise = max(factors.noise_variance, rounding)
    return np.maximum(to_numpy(deviations(factors)) ** 2, noise), noise


def _invertible(factors: Factors) -> tuple[np.ndarray, float]:
    variance, noise = _variances(factors)
    if noise <= 0.0 and (factors.rank < factors.columns or variance.min() <= 0.0):
        msg = (
            f"the {factors.rows} rows seen do not vary in every direction, so their covariance has no inverse and no density; "
            "fit rows that differ"
        )
        raise ValueError(msg)
    return variance, noise


def _spread(factors: Factors, along: np.ndarray, around: float) -> Array:
    """Return ``V' diag(along) V + around * I``."""
    xp, dtype = namespace(factors.vt), factors.vt.dtype
    vt = xp.astype(factors.vt, xp.float64)
    out = vt.T @ (from_numpy(along, like=factors.mean)[:, None] * vt)
    return xp.astype(out + around * from_numpy(np.eye(factors.columns), like=factors.mean), dtype)
