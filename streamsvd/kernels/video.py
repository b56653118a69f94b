"""The sweep of the background model over uint8 frames, and its oracle in float64.

With background u (pixel, channel, component), coefficients c of a frame, prediction p = min(sum_k c_k u_k, 255), error e = x - p and
scale s2 of a pixel:

- mask: max over channels of e^2 > max(tau^2 s2, least) max(1, c_1^2);
- weight: w = (1 - alpha D / 32)_+^16 with D = sum over channels e^2 / s2, which is exp(-alpha D / 2) to second order (the weight of
  the density power divergence: Basu, Harris, Hjort and Jones 1998); 0 where a prediction exceeds 256;
- moments: A += w c c', b_ch += w c x_ch; background u_ch = A^-1 b_ch;
- scale: v = sum w |e|^2 / (d (sum w - n alpha (1 + alpha)^-(d/2 + 1))), the estimating equation of the divergence in d channels, which
  enters s2 with the weight 1 - eta where sum w exceeds a fifth of what is expected.

`look` writes masks only; `learn` writes masks and moves the state at the end of the block. Both decide a mask by the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

LEAST, RIDGE = 0.01, 0.5


@dataclass(frozen=True)
class Rule:
    """What decides masks and weights, in squared gray levels where it has a unit.

    ``tau2`` squared threshold in scales, ``least`` smallest squared threshold, ``alpha`` of the divergence, ``decay`` of the moments
    a block, ``eta`` of the scale a block, ``floor`` of the scale, ``patience`` frames until a further colour is the background,
    ``keep`` its decay a block.
    """

    tau2: float
    least: float
    alpha: float
    decay: float
    eta: float
    floor: float
    patience: float
    keep: float


@dataclass(frozen=True)
class Arrays:
    """State of the pixels, planar float32; m pixels, C channels, r components. A front end owns it: the sweep writes into it.

    ``u`` (r C, m) background, component by component; ``moments`` (r (r + 1) / 2 + r C, m) lower triangle of A, then b;
    ``s2`` (m,) scale in squared gray levels; ``v`` (C, m) and ``n2`` (m,) a further colour and its count (or empty).
    """

    u: np.ndarray
    moments: np.ndarray
    s2: np.ndarray
    v: np.ndarray
    n2: np.ndarray


def correction(alpha: float, channels: int) -> tuple[float, float]:
    """Return what a clean frame lacks of its weight in the scale's equation, and its mean weight."""
    return alpha * (1 + alpha) ** -(channels / 2 + 1), (1 + alpha) ** (-channels / 2)


def look(
    out: np.ndarray, frames: np.ndarray, coef: np.ndarray, state: Arrays, roi: np.ndarray, rule: Rule, /
) -> np.ndarray:
    """Write the masks of frames and return the count of foreground pixels of each.

    Parameters
    ----------
    out : array (b, m), uint8
        0 or 255.
    frames : array (b, m C), uint8
        Channels interleaved.
    coef : array (b, r), float32
    state : Arrays
    roi : array (m,), uint8
        Pixels at 0 are never foreground.
    rule : Rule

    Returns
    -------
    counts : array (b,), int64

    Notes
    -----
    Cost: about 1 ns a pixel at rank 1, colour included.
    """
    from streamsvd.kernels import video_numba

    counts = np.zeros(len(frames), np.int64)
    span = (0, state.s2.size)
    video_numba.look(out, counts, frames, coef, widening(coef), state.u, state.s2, roi, _singles(rule)[0], span)
    return counts


def learn(
    out: np.ndarray | None,
    frames: np.ndarray,
    coef: np.ndarray,
    usable: np.ndarray,
    state: Arrays,
    roi: np.ndarray,
    rule: Rule,
    /,
    *,
    pool: Any = None,
    threads: int = 1,
) -> np.ndarray:
    """Write masks where ``out`` is given, and move the state, in place, by the usable frames of a block.

    Parameters
    ----------
    out : array (b, m), uint8, or None
    frames, coef, state, roi, rule
        As in `look`.
    usable : array (b,), uint8
        Frames at 0 are marked and move nothing; without a usable frame the state stays as it is.
    pool, threads
        An executor that runs so many parts of the picture side by side; the result is the same to the bit.

    Returns
    -------
    counts : array (b,), int64; zero without ``out``

    Notes
    -----
    Cost: 2 ns (gray) to 3 ns (colour) a pixel and frame at rank 1 in blocks of 16 frames; bytes moved a pixel and frame: C read and
    1 written, and 8 (rows of the state) / b for the state, in and out.
    """
    from streamsvd.kernels import video_numba

    target = out if out is not None else np.empty((0, 0), np.uint8)
    channels, m = state.u.shape[0] // coef.shape[1], state.s2.size
    decision, rates, scaling = _singles(rule, channels)

    def part(span: tuple[int, int]) -> np.ndarray:
        counts = np.zeros(len(frames), np.int64)
        head = (target, counts, frames, coef, widening(coef), usable)
        arrays = (state.u, state.moments, state.s2, state.v, state.n2)
        video_numba.learn(*head, *arrays, roi, decision, rates, scaling, span)
        return counts

    if pool is None:
        return part((0, m))
    step = -(-m // threads // video_numba.TILE) * video_numba.TILE
    spans = [(start, min(start + step, m)) for start in range(0, m, step)]
    return np.sum(list(pool.map(part, spans)), axis=0)


def widening(coef: np.ndarray, /) -> np.ndarray:
    """Return max(1, c_1^2) of each frame, by which its thresholds widen."""
    return np.maximum(1.0, coef[:, 0] ** 2).astype(np.float32)


def sweep(
    frames: np.ndarray, coef: np.ndarray, usable: np.ndarray, state: Arrays, roi: np.ndarray, rule: Rule, /
) -> tuple[np.ndarray, Arrays]:
    """Return masks and the next state as `learn` does, in float64 and without its speed; ``v`` and ``n2`` are left as they are."""
    r, m = coef.shape[1], state.s2.size
    C = state.u.shape[0] // r
    x = frames.reshape(len(frames), m, C).astype(np.float64)
    u = state.u.astype(np.float64).reshape(r, C, m).transpose(2, 1, 0)
    c, s2 = coef.astype(np.float64), state.s2.astype(np.float64)
    raw = np.einsum("mcr,br->bmc", u, c)
    e2 = (x - np.clip(raw, 0.0, 255.0)) ** 2
    limit = np.where(roi > 0, np.maximum(rule.tau2 * s2, rule.least), np.inf)
    mask = np.where(e2.max(2) > limit * np.maximum(1.0, c[:, :1] ** 2), 255, 0).astype(np.uint8)
    w = np.maximum(1 - rule.alpha / 32 * e2.sum(2) / s2, 0.0) ** 16 * (raw.max(2) <= 256) * (usable > 0)[:, None]
    if not usable.any():
        return mask, state
    A, b = unpack(state.moments.astype(np.float64), r, C)
    A = A + np.einsum("bm,br,bs->mrs", w, c, c)
    b = b + np.einsum("bm,br,bmc->mcr", w, c, x)
    if r == 1:
        enough = np.maximum(A, LEAST)
        u = np.where(A > LEAST, b / enough, u)
        A, b = enough, u * enough
    else:
        u = np.linalg.solve(A + RIDGE * np.eye(r), (b + RIDGE * u).transpose(0, 2, 1)).transpose(0, 2, 1)
    lacking, share = correction(rule.alpha, C)
    n, sw = float(usable.sum()), w.sum(0)
    found = (w * e2.sum(2)).sum(0) / (C * np.maximum(sw - n * lacking, 0.1 * n * share))
    s2 = np.where(sw > 0.2 * n * share, np.maximum(rule.eta * s2 + (1 - rule.eta) * found, rule.floor), s2)
    return mask, Arrays(u.transpose(2, 1, 0).reshape(r * C, m), rule.decay * pack(A, b), s2, state.v, state.n2)


def pack(A: np.ndarray, b: np.ndarray, /) -> np.ndarray:
    """Return A (m, r, r) and b (m, C, r) as the rows of ``Arrays.moments``."""
    r, C, m = b.shape[2], b.shape[1], b.shape[0]
    rows, columns = np.tril_indices(r)
    return np.concatenate([A[:, rows, columns].T, b.transpose(2, 1, 0).reshape(r * C, m)])


def unpack(moments: np.ndarray, r: int, C: int, /) -> tuple[np.ndarray, np.ndarray]:
    """Undo `pack`."""
    pairs, m = r * (r + 1) // 2, moments.shape[1]
    A = np.zeros((m, r, r))
    rows, columns = np.tril_indices(r)
    A[:, rows, columns] = A[:, columns, rows] = moments[:pairs].T
    return A, moments[pairs:].reshape(r, C, m).transpose(2, 1, 0)


def _singles(rule: Rule, channels: int = 1) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]:
    lacking, share = correction(rule.alpha, channels)
    values = (
        (rule.tau2, rule.least, rule.alpha / 32),
        (rule.decay, rule.patience, rule.keep),
        (rule.eta, lacking, share, rule.floor),
    )
    return tuple(tuple(np.float32(x) for x in part) for part in values)  # type: ignore[return-value]
