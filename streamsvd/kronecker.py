"""Kronecker products that are never formed: mode products, the posterior of ``y = (H1 (x) H2 (x) ...) x + n``, nearest Kronecker products.

A vector of length ``n1 n2 ...`` is a tensor ``(n1, n2, ...)`` in C order, so the first factor varies slowest, as in ``numpy.kron``. Leading
axes are a batch. Everything runs where the arrays are (NumPy, torch, CuPy), real or complex, in double precision inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any

import numpy as np

from streamsvd.arrays import Array, dtype_name, namespace, one_thread
from streamsvd.rank_one import RankOne as RankOne
from streamsvd.rank_one import best_rank_one as best_rank_one
from streamsvd.rank_one import nearest_kronecker as nearest_kronecker
from streamsvd.rank_one import outer as outer

# A Gram matrix squares the condition; above this ratio of its eigenvalues ten digits of a double are still there.
GRAM_FLOOR = 1e-6
ROUNDING = float(np.finfo(np.float64).eps)


def kron(factors: Sequence[Array], /) -> Array:
    """Return the Kronecker product itself, for tests and small cases; memory ``prod(m_i n_i)``."""
    xp = namespace(factors[0])

    def pair(A: Array, B: Array) -> Array:
        out = A[..., :, None, :, None] * B[..., None, :, None, :]
        return xp.reshape(out, (*out.shape[:-4], A.shape[-2] * B.shape[-2], A.shape[-1] * B.shape[-1]))

    return reduce(pair, factors)


def multi_product(T: Array, factors: Sequence[Array], /) -> Array:
    """Multiply every mode of a tensor by its matrix: ``(A1 (x) A2 (x) ...) vec(T)``.

    Parameters
    ----------
    T : array (..., n1, ..., nd)
    factors : arrays (..., m_i, n_i), one for each mode; leading axes broadcast with those of T

    Returns
    -------
    array (..., m1, ..., md)

    Notes
    -----
    Cost: ``sum_i m_1 .. m_i n_i .. n_d`` multiply-adds. Each product moves its mode to the end, so after d of them the modes are in
    order again and nothing was transposed in memory (the "shuffle" of Fernandes, Plateau and Stewart 1998).
    """
    xp = namespace(T)
    d = len(factors)
    dims = list(T.shape[-d:])
    for i, A in enumerate(factors):
        lead = T.shape[: T.ndim - (d if i == 0 else 2)]
        T = xp.reshape(T, (*lead, dims[i], prod(dims[:i]) * prod(dims[i + 1 :])))
        T = T.mT @ A.mT
        dims[i] = A.shape[-2]
    return xp.reshape(T, (*T.shape[:-2], *dims))


def mode_product(T: Array, A: Array, /, *, mode: int) -> Array:
    """Multiply one mode of a tensor (n_0, ..., n_{d-1}) by a matrix (m, n_mode); Kolda and Bader (2009)."""
    xp = namespace(T)
    return xp.moveaxis(xp.tensordot(A, T, axes=((1,), (mode,))), 0, mode)


@dataclass(frozen=True, eq=False)
class KronForm:
    """Mode-wise factors of ``H1 G1 H1' (x) H2 G2 H2' (x) ...``: ``A_i = H_i sqrt(G_i) = u_i diag(s_i) v_i'``, each thin.

    ``sigma^2 I + prod H_i G_i H_i'`` has the eigenvalues ``sigma^2 + s1^2 (x) s2^2 (x) ...`` on the columns of ``u1 (x) u2 (x) ...``
    and ``sigma^2`` on all others. Held are ``u``, ``powers = s^2``, ``back = A'u = v s``, ``roots = sqrt(G)``, and ``v`` where the form
    is exact.
    """

    u: tuple[Array, ...]
    powers: tuple[Array, ...]
    back: tuple[Array, ...]
    roots: tuple[Array, ...]
    v: tuple[Array, ...] | None = None


@dataclass(frozen=True, eq=False)
class Posterior:
    """Mean (..., n1, ..., nd) and variances (the diagonal of the covariance) of x given y, and what else falls out.

    ``share`` is ``1 - variance / gamma``, how far the data determine each entry; ``cost`` (...) is ``log det C + y' C^-1 y``, C the
    covariance of y; ``freedom`` (...) is the sum of ``share``, the effective number of parameters.
    """

    mean: Array
    variance: Array
    share: Array
    cost: Array
    freedom: Array


def kron_form(dictionaries: Sequence[Array], gammas: Sequence[Array], /, *, exact: bool = True) -> KronForm:
    """Factor each mode of the covariance of y.

    Parameters
    ----------
    dictionaries : arrays (..., M_i, N_i), float64 or complex128
    gammas : arrays (..., N_i), prior variances >= 0
    exact : bool
        Singular value decompositions. Otherwise by the eigenvectors of the smaller Gram matrix, 2 to 5 times faster, for the steps of an
        iteration: variances then have the absolute error of a difference, means about 10 digits.

    Notes
    -----
    Cost: ``O(M_i N_i min(M_i, N_i))`` for each mode. Singular values below the rounding of the largest are taken for zero.
    """
    with one_thread():
        return thin_form(dictionaries, gammas, exact=exact)


def thin_form(dictionaries: Sequence[Array], gammas: Sequence[Array], /, *, exact: bool) -> KronForm:
    """Do as ``kron_form`` does, for a caller that has already seen to the BLAS threads."""
    roots = tuple(namespace(g).sqrt(g) for g in gammas)
    scaled = [H * r[..., None, :] for H, r in zip(dictionaries, roots, strict=True)]
    parts = [_by_svd(A) if exact else _by_gram(A) for A in scaled]
    u, powers, back = (tuple(part[i] for part in parts) for i in range(3))
    return KronForm(u, powers, back, roots, tuple(part[3] for part in parts) if exact else None)


def posterior(form: KronForm, y: Array, noise_variance: Any, /) -> Posterior:
    """Mean and variances of x given ``y = (H1 (x) H2 (x) ...) x + n`` without forming a Kronecker product.

    ``mean = sqrt(G) V [s / (sigma^2 + s^2)] U'y`` and ``variance = G [|V|^2 (sigma^2 / (sigma^2 + s^2)) + (1 - |V|^2 1)]``, where U, s
    and V are Kronecker products of those of each mode.

    Parameters
    ----------
    form : KronForm, from ``kron_form``
    y : array (..., M1, ..., Md)
        Leading axes broadcast with those of the form (a form of lead (F, 1) and y of lead (F, L): L snapshots for each of F frames).
    noise_variance : float or array, > 0
        An array has the leading axes of the form.

    Notes
    -----
    Cost: one pair of mode products for the mean and one for the variances, ``O(N sum M_i)``; the dense formula takes ``O(N^2 M)``. With an
    exact form neither formula subtracts large numbers, so both stay exact for ``sigma^2 -> 0``, where ``sigma^-2 Sigma H'y`` loses all
    digits. He and Joseph (2024) give the eigenvalue form.
    """
    xp, d = namespace(y), len(form.u)
    axes = tuple(range(-d, 0))
    noise = _trailing(xp, noise_variance, d)
    powers = outer(form.powers)
    total = noise + powers
    inverse = 1 / total
    z = multi_product(y, [_adjoint(xp, u) for u in form.u])
    mean = multi_product(z * inverse, [b * r[..., :, None] for b, r in zip(form.back, form.roots, strict=True)])
    if form.v is None:
        share = multi_product(inverse, [_square(xp, b) for b in form.back])
        left = 1 - share
    else:
        left = _left(xp, form.v, noise * inverse)
        share = xp.abs(1 - left)
    gamma = outer([r * r for r in form.roots])
    cost = _cost(xp, y, _square(xp, z), total, inverse, noise, axes)
    return Posterior(mean, gamma * left, share, cost, xp.sum(powers * inverse, axis=axes))


def _by_svd(A: Array) -> tuple[Array, Array, Array, Array]:
    xp = namespace(A)
    u, s, vh = xp.linalg.svd(A, full_matrices=False)
    # Rounding is no signal: at tiny noise s / (noise + s^2) would raise it above everything.
    s = xp.where(s > s[..., :1] * (max(A.shape[-2:]) * ROUNDING), s, xp.zeros_like(s))
    v = _adjoint(xp, vh)
    return u, s * s, v * s[..., None, :], v


def _by_gram(A: Array) -> tuple[Array, ...]:
    xp, At = namespace(A), _adjoint(namespace(A), A)
    if A.shape[-2] <= A.shape[-1]:
        w, u = xp.linalg.eigh(A @ At)
        return u, xp.where(w > 0, w, xp.zeros_like(w)), At @ u
    w, v = xp.linalg.eigh(At @ A)
    if bool(xp.any(w[..., 0] <= GRAM_FLOOR * w[..., -1])):
        return _by_svd(A)
    s = xp.sqrt(w)[..., None, :]
    return (A @ v) / s, w, v * s


def _left(xp: Any, vs: Sequence[Array], held_back: Array) -> Array:
    """Return variance / gamma: ``|V|^2 held_back``, and all of it where V has no column."""
    weights = [_square(xp, v) for v in vs]
    left = multi_product(held_back, weights)
    if all(v.shape[-2] == v.shape[-1] for v in vs):
        return left  # V is square: its complement is empty, and no difference is formed
    held = outer([xp.sum(w, axis=-1) for w in weights])
    return left + xp.where(held < 1, 1 - held, xp.zeros_like(held))


def _cost(xp: Any, y: Array, power: Array, total: Array, inverse: Array, noise: Array, axes: tuple[int, ...]) -> Array:
    found = xp.sum(xp.log(total), axis=axes) + xp.sum(power * inverse, axis=axes)
    missing = prod(y.shape[-len(axes) :]) - prod(total.shape[-len(axes) :])
    if not missing:
        return found
    outside = xp.sum(_square(xp, y), axis=axes) - xp.sum(power, axis=axes)
    flat = xp.reshape(noise, noise.shape[: noise.ndim - len(axes)])
    return found + missing * xp.log(flat) + xp.where(outside > 0, outside, xp.zeros_like(outside)) / flat


def _trailing(xp: Any, noise: Any, d: int) -> Array:
    noise = (
        noise
        if hasattr(noise, "shape")
        else np.asarray(noise, dtype=np.float64)
        if xp is np
        else xp.asarray(noise, dtype=xp.float64)
    )
    return xp.reshape(noise, (*noise.shape, *(1,) * d))


def _adjoint(xp: Any, A: Array) -> Array:
    return xp.conj(A).mT if is_complex(A) else A.mT


def _square(xp: Any, x: Array) -> Array:
    return xp.real(x) ** 2 + xp.imag(x) ** 2 if is_complex(x) else x * x


def is_complex(x: Array, /) -> bool:
    """Tell whether an array is complex."""
    return x.dtype.kind == "c" if isinstance(x, np.ndarray) else dtype_name(x).startswith("complex")
