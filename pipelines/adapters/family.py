"""Adapters from a weight's own decomposition: each method a few lines on ``split``, with the formula of its paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from streamsvd.arrays import Array, dtype_name, from_numpy, namespace, to_numpy
from streamsvd.pipelines.adapters.ends import full
from streamsvd.pipelines.adapters.split import Split, returned, split, weight_of

PASSES = 5


def pissa(W: Any, rank: int, /, *, passes: int | None = None, tol: float | None = None, seed: int = 0) -> Split:
    """Principal singular values and vectors: train the leading part, freeze the rest.

    ``B = U_r S_r^(1/2)``, ``A = S_r^(1/2) V_r'``, ``W_res = W - B A`` (Meng, Wang and Zhang 2024).

    With neither ``passes`` nor ``tol``, ten products with blocks of ``rank`` columns: as many as PEFT's ``pissa_niter_4`` takes, and far
    closer to the exact components. ``tol=1e-4`` captures 0.9999 of the best energy on any spectrum.
    """
    return split(W, rank, passes=PASSES if passes is None and tol is None else passes, tol=tol, seed=seed)


def milora(W: Any, rank: int, /) -> Split:
    """Minor components: train the part that pre-training used least, keep the principal part.

    ``B = U_m S_m^(1/2)``, ``A = S_m^(1/2) V_m'`` of the ``rank`` smallest singular values, ``W_p = W - B A`` (Wang et al. 2024, MiLoRA).
    """
    return split(W, rank, end="bottom")


def sorsa(W: Any, rank: int, /, *, tol: float = 1e-4, seed: int = 0) -> Split:
    """Singular values and orthonormal singular vectors apart: ``W = U_r diag(S_r) V_r' + W_res`` (Cao 2024, SORSA).

    All three are trained, held near orthonormality by ``modules.SorsaLinear.penalty``.
    """
    return split(W, rank, form="usv", tol=tol, seed=seed)


def svfit(W: Any, rank: int | None = None, /, *, energy: float = 0.99) -> Split:
    """Train the ``rank`` leading singular values alone, with frozen vectors: ``W = U_r diag(S_r) V_r' + W_e`` (Sun et al. 2024, SVFit).

    Without ``rank``, as many values as hold the share ``energy`` of ``sum s^2``; cost then: all singular values.
    """
    if rank is None:
        if not 0.0 < energy <= 1.0:
            msg = f"got energy={energy}; expected a share of 0 .. 1, for example 0.99, or a rank"
            raise ValueError(msg)
        W64 = weight_of(W)
        xp = namespace(W64)
        s = full(xp.astype(W64, xp.float64))[1]
        total = np.cumsum(s * s)
        rank = min(s.size, int(np.searchsorted(total, energy * total[-1])) + 1)
    return split(W, rank, form="usv")


def kasa(W: Any, rank: int, /) -> Split:
    """Knowledge-based truncation: the base becomes ``W - U_m S_m V_m'``, without its ``rank`` smallest components (Wang et al. 2024, KaSA).

    ``residual`` is that base. The update ``B diag(d) A`` is trained from ``B = 0`` (``modules.KasaLinear``); what was cut is given up.

    Raises
    ------
    ValueError
        If ``rank`` leaves nothing of the weight.
    """
    if rank >= min(weight_of(W).shape):
        msg = f"got rank={rank} for a weight of shape {tuple(W.shape)}; expected less than {min(W.shape)}: KaSA removes so many components"
        raise ValueError(msg)
    return split(W, rank, end="bottom", form="usv")


def effort(W: Any, rank: int, /) -> Split:
    """Orthogonal subspaces: ``W - U_m S_m V_m'`` is frozen, the ``rank`` smallest components are trained (Yan et al. 2025, Effort).

    ``residual`` is the frozen principal part, of rank min(out, in) - rank; ``modules.EffortLinear`` has the two losses.
    """
    return split(W, rank, end="bottom", form="usv")


@dataclass(frozen=True, eq=False)
class Pair:
    """Two factors and what they leave: ``W = B A + residual`` (``B N A`` where there is a core)."""

    B: Array
    A: Array
    residual: Array
    core: Array | None = None


def olora(W: Any, rank: int, /) -> Pair:
    """Leading columns of a QR factorization: ``B = Q[:, :r]``, ``A = R[:r]``, ``W_res = W - B A`` (Büyükakyüz 2024, OLoRA).

    The columns are those that come first, not those of most energy. ``Q[:, :r]`` depends on the first r columns alone, and
    ``R[:r] = Q[:, :r]'W``: so this costs ``4 out in r`` flops and not a whole factorization.
    """
    given, W = W, _ranked(W, rank)
    xp = namespace(W)
    Q, R = xp.linalg.qr(xp.astype(W[:, :rank], xp.float64))
    # The order of PEFT's signs does not matter to B A; a positive diagonal of R makes the pair unique.
    turn = xp.where(xp.linalg.diagonal(R) < 0, -xp.ones_like(R[0, :]), xp.ones_like(R[0, :]))
    B = xp.astype(Q * turn[None, :], W.dtype)
    A = B.T @ W
    return _pair(given, B, A, W - B @ A)


def nlora(W: Any, rank: int, /, *, sampling: str = "first", core: str = "copy", seed: int = 0) -> Pair:
    """Nyström initialisation from rows and columns of the weight itself: ``Delta = B N A`` (Guo et al. 2025, NLoRA).

    Parameters
    ----------
    W : array (out, in)
    rank : int
    sampling : "first" or "leverage"
        Rows and columns: the first ones, as published, or drawn without replacement by their leverage for the leading ``rank`` singular
        vectors (Drineas, Mahoney and Muthukrishnan 2008), which makes ``B N A`` an approximation of W.
    core : "copy" or "pinv"
        N: the block where they cross, as the published code has it, or its pseudo-inverse, with which ``B N A`` is Nyström's
        approximation and exact for a W of that rank.
    seed : int, for the draw

    Returns
    -------
    pair : Pair
        B (out, r) columns of W, N = ``core`` (r, r), A (r, in) rows of W. ``residual`` is ``W - B N A``.
    """
    given, W = W, _ranked(W, rank)
    if sampling not in ("first", "leverage") or core not in ("copy", "pinv"):
        msg = f"got sampling={sampling!r}, core={core!r}; expected sampling 'first' or 'leverage' and core 'copy' or 'pinv'"
        raise ValueError(msg)
    rows = columns = np.arange(rank)
    if sampling == "leverage":
        parts = split(W, rank, tol=1e-2, form="usv", seed=seed)
        draw = np.random.default_rng(seed)
        rows, columns = (_drawn(to_numpy(x), rank, draw) for x in (parts.u, parts.vt.T))
    xp = namespace(W)
    take = (from_numpy(rows, like=W), from_numpy(columns, like=W))
    A, B = xp.take(W, take[0], axis=0), xp.take(W, take[1], axis=1)
    N = xp.take(A, take[1], axis=1)
    if core == "pinv":
        N = xp.astype(xp.linalg.pinv(xp.astype(N, xp.float64)), W.dtype)
    return _pair(given, B, A, W - B @ (N @ A), N)


def _pair(given: Any, *parts: Array) -> Pair:
    return Pair(*(returned(x, given, dtype_name(x)) for x in parts))


def _drawn(vectors: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    share = (vectors.astype(np.float64) ** 2).sum(axis=1) + 1e-12
    return np.sort(draw.choice(share.size, count, replace=False, p=share / share.sum()))


def _ranked(W: Any, rank: int) -> Array:
    W = weight_of(W)
    if not 1 <= rank <= min(W.shape):
        msg = f"got rank={rank} for a weight of shape {tuple(W.shape)}; expected 1 .. {min(W.shape)}"
        raise ValueError(msg)
    return W
