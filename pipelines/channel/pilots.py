"""Pilots that arrive in batches along one mode: an exact summary of all of them, no larger than the unknowns of that mode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streamsvd.arrays import Array, namespace, one_thread
from streamsvd.kronecker import is_complex


@dataclass(frozen=True, eq=False)
class Pilots:
    """Rows H of one dictionary and the observations y along it, seen so far, up to a unitary factor.

    ``H = Q triangle`` and ``Q'y = projected``, with all older rows weighted by the root of the decay, so triangle' triangle is the
    sum of H'H and triangle' projected that of H'y, without being squared. What Q leaves over holds no signal; its energy and count
    serve the noise.

    Attributes
    ----------
    mode : int
    triangle : array (r, N), r <= N
    projected : array (r, ...), the other modes behind
    rest : float, energy of what was left over
    rest_count : int, how many observations that is
    rows : int, pilots seen
    """

    mode: int
    triangle: Array
    projected: Array
    rest: float
    rest_count: int
    rows: int


def first_pilots(H: Array, y: Array, /, *, mode: int) -> Pilots:
    """Begin with rows H (b, N) and their observations y (M1, ..., b, ..., Md), b along ``mode``."""
    xp = namespace(y)
    y = xp.moveaxis(y, mode, 0)
    empty = Pilots(mode, H[:0, :], y[:0, ...], 0.0, 0, 0)
    return _joined(empty, H, y, 1.0)


def more_pilots(pilots: Pilots, H: Array, y: Array, /, *, decay: float = 1.0) -> Pilots:
    """Add rows; those before count ``decay`` times as much (their noise variance is that of the new ones over ``decay``).

    Cost: a QR factorization of (r + b, N) and its product with the observations, whatever was seen before.
    """
    return _joined(pilots, H, namespace(y).moveaxis(y, pilots.mode, 0), decay)


def observed(pilots: Pilots, /) -> Array:
    """Return the summary as observations (M1, ..., r, ..., Md) of the dictionary ``triangle``."""
    return namespace(pilots.projected).moveaxis(pilots.projected, 0, pilots.mode)


def _joined(old: Pilots, H: Array, y: Array, decay: float) -> Pilots:
    xp, fade = namespace(y), decay**0.5
    rows = xp.concat([old.triangle * fade, H], axis=0)
    data = xp.concat([old.projected * fade, y], axis=0)
    if rows.shape[0] <= rows.shape[1]:
        return Pilots(old.mode, rows, data, old.rest * decay, old.rest_count, old.rows + H.shape[0])
    flat = xp.reshape(data, (data.shape[0], -1))
    with one_thread():
        Q, R = xp.linalg.qr(rows, mode="complete")
    z = (xp.conj(Q).mT if is_complex(Q) else Q.mT) @ flat
    n = R.shape[1]
    over = z[n:, :]
    energy = float(xp.sum(xp.abs(over) ** 2))
    shape = (n, *data.shape[1:])
    count = old.rest_count + int(np.prod(over.shape))
    return Pilots(
        old.mode, R[:n, :], xp.reshape(z[:n, :], shape), old.rest * decay + energy, count, old.rows + H.shape[0]
    )
