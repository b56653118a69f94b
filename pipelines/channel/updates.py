"""The M-steps: from the posterior of x to hyperparameters ``gamma = g1 (x) g2 (x) ...``, which minimize or lower the SBL cost.

Tensors are (F, n1, ..., nd), vectors (F, n_i), F frames at once; an entry 0 is switched off and stays so. ``moments`` is
``variance + |mean|^2``, ``energy`` is ``|mean|^2``, ``freedom`` is ``1 - variance / gamma``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streamsvd.arrays import Array, namespace
from streamsvd.kronecker import outer
from streamsvd.rank_one import TINY, alternate, best_rank_one, contract, truncated_rank_one

SWEEPS, TOL = 10, 1e-4
EM_SWEEPS = 50
HASTE = 2
# Measured on 20 channels at 4, 12 and 20 dB: 6 takes 40 % of the steps away at the same errors; 8 gains no more.
LEAP, LIMIT = 6, 1.5
# The outer iteration converges along with it, so no more are needed.
POWER_SWEEPS = 1


def by_svd(moments: Array, gammas: Sequence[Array], /) -> list[Array]:
    """Rank-one approximation of the moments, one unfolding after the other: SVD-KroSBL (He and Joseph 2024).

    Not EM, so the cost may rise, but it finds the support in few steps. Cost: ``sum n_i^2 n_{i+1} .. n_d`` for a frame.
    """
    weight, vectors = truncated_rank_one(moments, modes=len(gammas), positive=True)
    return _scaled(weight, list(vectors))


def by_power(moments: Array, gammas: Sequence[Array], /) -> list[Array]:
    """The best rank-one approximation, by power iteration from the hyperparameters before: as ``by_svd``, cheaper for many frames."""
    start = [g / _positive(_norm(g))[..., None] for g in gammas]
    found = best_rank_one(moments, modes=len(gammas), start=start, tol=0.0, max_sweeps=POWER_SWEEPS)
    return _scaled(found.weight, list(found.vectors))


def hastened(gammas: Sequence[Array], before: Sequence[Array], small: Sequence[Array], late: Array, /) -> list[Array]:
    """Let ``small`` entries (F, n_i) that shrink relative to their factor shrink further, in frames that are ``late`` (F, 1).

    EM takes 1 / t to switch an entry off. One that has settled has the ratio 1 and stays, so the estimate that is reached is the same.
    """
    xp = namespace(late)
    out = []
    for g, old, few in zip(gammas, before, small, strict=True):
        scale = xp.sum(old, axis=-1, keepdims=True) / _positive(xp.sum(g, axis=-1, keepdims=True))
        ratio = g * scale / _positive(old)
        # Cut off at 1, also where an entry that the scale made tiny would overflow.
        out.append(xp.where(few & late, g * xp.where(ratio < 1, ratio, xp.ones_like(ratio)) ** HASTE, g))
    return out


def leapt(gammas: Sequence[Array], before: Sequence[Array], early: Array, /) -> list[Array]:
    """Go ``LEAP`` times as far, in ratios, in frames that are ``early`` (F, 1).

    Where there are many unknowns for each observation, the data say little about each, and EM drifts from its flat start by about M / N in
    a step. Fixed points are the same, and zeros stay.
    """
    xp, out = namespace(early), []
    for g, old in zip(gammas, before, strict=True):
        ratio = g / _positive(old)
        ratio = xp.where(ratio < LIMIT, ratio, LIMIT * xp.ones_like(ratio))
        out.append(xp.where(early, old * ratio**LEAP, g))
    return balanced(out)


def by_em(moments: Array, start: Sequence[Array], /, *, sweeps: int = EM_SWEEPS) -> list[Array]:
    """Each factor in turn ``g1_i = mean_jk Lambda_ijk / (g2_j g3_k)``: AM-KroSBL as published (He and Joseph 2024).

    EM, so the cost never rises; slow, because unobserved entries hold their factor where it was. ``sweeps = 1`` is the KSBL of Chang and
    Su (2021).
    """
    xp = namespace(moments)
    gammas = list(start)
    counts = [xp.sum(xp.astype(g > 0, g.dtype), axis=-1) for g in gammas]
    total = _product(counts)
    inverse = [_inverse(g) for g in gammas]

    def update(i: int, part: Array) -> Array:
        gammas[i] = part * (counts[i] / _safe(total))[..., None]
        return _inverse(gammas[i])

    still: Array = None
    for _ in range(sweeps):
        before = list(gammas)
        alternate(moments, inverse, update)
        gammas, still = _frozen(gammas, before, still)
        if not bool(xp.any(still)):
            break
    return balanced(gammas)


def by_bound(
    energy: Array,
    freedom: Array,
    gammas: Sequence[Array],
    hidden: Sequence[Array],
    coupling: Sequence[Array | None],
    /,
) -> tuple[list[Array], list[Array]]:
    """Alternate over the factors of the convex bound ``sum freedom / gamma_old * gamma + energy / gamma``, with ``g_i = C_i h_i``.

    ``log det C`` is concave in gamma, so its tangent bounds it, and ``min_x`` bounds the rest (Wipf and Nagarajan 2010): the cost never
    rises, and entries that should vanish do so much faster than by EM. For one factor with all others fixed the bound is
    ``sum_i a_i g_i + b_i / g_i``, lowered by ``h <- h sqrt(C'(b / g^2) / C'a)``, which for C = 1 is its minimum ``sqrt(b / a)``.

    Parameters
    ----------
    hidden : arrays (F, n_i), the h_i >= 0
    coupling : arrays (F, n_i, n_i) or None, the symmetric C_i; None is the identity

    Returns
    -------
    gammas, hidden : the new ones, balanced
    """
    xp = namespace(energy)
    slope = freedom * outer([_inverse(g) for g in gammas])
    gammas, hidden = list(gammas), list(hidden)
    still: Array = None
    for _ in range(SWEEPS):
        before, first = list(gammas), list(hidden)
        for i, C in enumerate(coupling):
            a = contract(slope, gammas, skip=i)
            b = contract(energy, [_inverse(g) for g in gammas], skip=i)
            if C is None:
                hidden[i] = gammas[i] = _root_ratio(b, a)
            else:
                pull = (C @ (b * _inverse(gammas[i]) ** 2)[..., None])[..., 0]
                hidden[i] = hidden[i] * _root_ratio(pull, (C @ a[..., None])[..., 0])
                gammas[i] = (C @ hidden[i][..., None])[..., 0]
        if still is not None:
            hidden = [xp.where(still[:, None], new, old) for new, old in zip(hidden, first, strict=True)]
        gammas, still = _frozen(gammas, before, still)
        if not bool(xp.any(still)):
            break
    return _balanced_pair(gammas, hidden)


def _frozen(gammas: list[Array], before: list[Array], still: Array | None) -> tuple[list[Array], Array]:
    """Keep frames that had converged before this sweep as they were, so that a frame does not depend on its batch."""
    xp = namespace(gammas[0])
    moving = change(gammas, before) > TOL
    if still is None:
        return gammas, moving
    return [xp.where(still[:, None], new, old) for new, old in zip(gammas, before, strict=True)], moving & still


def coupling_matrix(places: Array, active: Array, strength: float, /) -> Array | None:
    """Return C (F, n, n): 1 on the diagonal and ``strength`` between neighbours of the grid, places (F, n); None for strength 0."""
    if not strength:
        return None
    xp = namespace(active)
    distance = xp.abs(places[..., :, None] - places[..., None, :])
    on = xp.astype(active > 0, active.dtype)
    C = xp.astype(distance == 0, active.dtype) + strength * xp.astype(distance == 1, active.dtype)
    return C * on[..., :, None] * on[..., None, :]


def change(gammas: Sequence[Array], before: Sequence[Array], /) -> Array:
    """Relative change ``||g - g0|| / ||g0||`` of the Kronecker products, from the factors alone: array (F,), down to about 1e-8."""
    xp = namespace(gammas[0])

    def inner(a: Sequence[Array], b: Sequence[Array]) -> Array:
        return _product([xp.linalg.vecdot(v, w) for v, w in zip(a, b, strict=True)])

    old = inner(before, before)
    moved = inner(gammas, gammas) - 2 * inner(gammas, before) + old
    return xp.sqrt(xp.abs(moved) / _positive(old))


def balanced(gammas: Sequence[Array], /) -> list[Array]:
    """Return the same Kronecker product with unit norms for all factors but the last, which carries the scale."""
    return _balanced_pair(gammas, gammas)[0]


def _balanced_pair(gammas: Sequence[Array], hidden: Sequence[Array]) -> tuple[list[Array], list[Array]]:
    if len(gammas) == 1:
        return list(gammas), list(hidden)
    sizes = [_positive(_norm(g)) for g in gammas[:-1]]
    scales = [1 / n for n in sizes] + [_product(sizes)]
    both = ([v * c[..., None] for v, c in zip(vectors, scales, strict=True)] for vectors in (gammas, hidden))
    return next(both), next(both)


def _scaled(weight: Array, vectors: list[Array]) -> list[Array]:
    return [*vectors[:-1], vectors[-1] * weight[..., None]]


def _norm(g: Array) -> Array:
    xp = namespace(g)
    return xp.sqrt(xp.linalg.vecdot(g, g))


def _positive(x: Array) -> Array:
    return x + TINY


def _safe(x: Array) -> Array:
    xp = namespace(x)
    return xp.where(x > 0, x, xp.ones_like(x))


def _inverse(g: Array) -> Array:
    xp = namespace(g)
    return xp.where(g > 0, 1 / _safe(g), xp.zeros_like(g))


def _root_ratio(b: Array, a: Array) -> Array:
    xp = namespace(b)
    ratio = b / _safe(a)
    return xp.sqrt(xp.where((b > 0) & (a > 0), ratio, xp.zeros_like(b)))


def _product(parts: Sequence[Any]) -> Any:
    out = parts[0]
    for part in parts[1:]:
        out = out * part
    return out
