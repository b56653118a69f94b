"""Ranks under a byte budget: which components of which fields are worth their bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from streamsvd.arrays import Array
from streamsvd.pipelines.ctr.model import field_bytes

FRONT = 4096  # points kept of the trade-off of bytes against error


@dataclass(frozen=True, eq=False)
class Offer:
    """What one field may cost: ``bytes[j]`` for ``error[j]`` with ``ranks[j]`` (None: dense)."""

    ranks: tuple[int | None, ...]
    bytes: Array
    error: Array


def offer(
    vocabulary: int, eigenvalues: Array, weight: float, /, *, itemsize: int = 4, center: bool = True, lowest: int = 0
) -> Offer:
    """Return the choices of one field, least bytes first: ranks ``lowest`` .. d that cost less than the dense table, and dense.

    Parameters
    ----------
    eigenvalues : array (d,)
        Falling.
    weight : float
        Look-ups N of the field: component j is worth ``N lambda_j`` and costs ``itemsize (V + d)`` bytes.
    lowest : int
        Rank 0 keeps the mean alone.
    """
    d = len(eigenvalues)
    dense = field_bytes(vocabulary, d, None, itemsize, center)
    tail = weight * np.append(np.cumsum(eigenvalues[::-1])[::-1], 0.0)
    costs = {r: field_bytes(vocabulary, d, r, itemsize, center) for r in range(lowest, d + 1)}
    ranks = [r for r, cost in costs.items() if cost < dense]
    return Offer(
        (*ranks, None), np.array([*(costs[r] for r in ranks), dense]), np.array([*(float(tail[r]) for r in ranks), 0.0])
    )


def allocate(offers: Sequence[Offer], budget: int, /) -> list[int | None]:
    """Choose a rank for each field so that the summed weighted error is least within the budget.

    Parameters
    ----------
    offers : sequence of Offer, one for each field
    budget : int, bytes

    Returns
    -------
    ranks : list of int or None (dense)

    Raises
    ------
    ValueError
        The budget is below the smallest possible, which the message names.

    Notes
    -----
    The candidates do not depend on the budget, so more bytes never give more error. They are the non-dominated sums of choices field
    after field (the multiple-choice knapsack of Sinha and Zoltners 1979, exact while there are at most ``FRONT`` of them, thinned
    beyond), the greedy path by gain per byte, which is optimal but for its last item, and the uniform ranks, so the choice is never
    worse than any of these. Cost: ``fields x FRONT x d log``.
    """
    floor = sum(int(one.bytes[0]) for one in offers)
    if budget < floor:
        msg = (
            f"budget_bytes={budget:,} is below the smallest possible, {floor:,} "
            f"bytes for {len(offers)} fields; give at least that"
        )
        raise ValueError(msg)
    candidates = np.vstack([_front(offers), _greedy(offers), _uniform(offers)])
    cost = sum(one.bytes[candidates[:, k]] for k, one in enumerate(offers))
    error = sum(one.error[candidates[:, k]] for k, one in enumerate(offers))
    fits = np.flatnonzero(cost <= budget)
    best = fits[np.lexsort((np.asarray(cost)[fits], np.asarray(error)[fits]))[0]]
    return [one.ranks[j] for one, j in zip(offers, candidates[best], strict=True)]


def _front(offers: Sequence[Offer]) -> Array:
    """Return choices (points, fields) on the trade-off curve."""
    cost, error, chosen = np.zeros(1, np.int64), np.zeros(1), np.zeros((1, 0), np.int16)
    for one in offers:
        costs, errors = (cost[:, None] + one.bytes).ravel(), (error[:, None] + one.error).ravel()
        order = np.lexsort((errors, costs))
        best = np.minimum.accumulate(errors[order])
        keep = order[np.append(True, errors[order][1:] < best[:-1])]
        if keep.size > FRONT:
            keep = keep[np.unique(np.linspace(0, keep.size - 1, FRONT).astype(np.int64))]
        before, now = np.divmod(keep, len(one.ranks))
        cost, error = costs[keep], errors[keep]
        chosen = np.column_stack([chosen[before], now.astype(np.int16)])
    return chosen


def _greedy(offers: Sequence[Offer]) -> Array:
    """Return the path of steps by gain per byte, each field along its lower convex hull."""
    steps = []
    for k, one in enumerate(offers):
        at = 0
        while at < len(one.ranks) - 1:
            slopes = (one.error[at] - one.error[at + 1 :]) / (one.bytes[at + 1 :] - one.bytes[at])
            to = at + 1 + int(np.argmax(slopes))
            steps.append((-float(slopes[to - at - 1]), k, to))
            at = to
    chosen = [np.zeros(len(offers), np.int16)]
    for _, k, to in sorted(steps):
        chosen.append(chosen[-1].copy())
        chosen[-1][k] = to
    return np.stack(chosen)


def _uniform(offers: Sequence[Offer]) -> Array:
    """Return for each rank that rank in all fields, or the dense table where that is smaller."""
    top = max((r for one in offers for r in one.ranks if r is not None), default=0)
    rows = [[one.ranks.index(r) if r in one.ranks else len(one.ranks) - 1 for one in offers] for r in range(top + 1)]
    return np.array(rows, dtype=np.int16)
