"""Fixed points of slow contractions: Anderson acceleration, guarded by an objective that must not fall."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

MEMORY = 8
SETTLED = 0.1  # relative steps above this are taken as they are: far from a fixed point an extrapolation may reach another one


class Found(NamedTuple):
    """Where an iteration ended: the point, its steps, whether the last one was below the tolerance, and the objective before it."""

    x: np.ndarray
    steps: int
    converged: bool
    objective: float


def fixed_point(
    step: Callable[[np.ndarray], tuple[np.ndarray, float]],
    x: np.ndarray,
    /,
    *,
    tol: float,
    limit: int,
    plain: bool = False,
) -> Found:
    """Iterate ``x <- step(x)`` to a fixed point.

    Parameters
    ----------
    step : callable
        Takes x (m,) and returns the next point and the objective at x, which plain steps do not lower.
    x : array (m,), float64
    tol : float
        Stop when ``||step(x) - x|| <= tol ||step(x)||``.
    limit : int
        Steps at most.
    plain : bool
        No acceleration.

    Notes
    -----
    Type-II Anderson acceleration (Anderson 1965; Walker and Ni 2011, eq. 4.2) over the last 8 differences. An extrapolated point whose
    objective is lower, or whose step is more than twice as long, is dropped for the plain step before it, and the memory with it.
    Cost: one step and ``O(8 m)`` each.
    """
    points: list[np.ndarray] = []
    rests: list[np.ndarray] = []
    back, best, last, objective = x, -np.inf, np.inf, 0.0
    for count in range(1, limit + 1):
        to, objective = step(x)
        rest, size = to - x, float(np.linalg.norm(to))
        length = float(np.linalg.norm(rest))
        if length <= tol * size or size == 0.0:
            return Found(to, count, True, objective)
        if len(points) > 1 and (objective < best - 1e-9 * abs(best) or length > 2.0 * last):
            x, points, rests, last = back, [], [], np.inf
            continue
        best, last, back = objective, length, to
        points, rests = [*points[-MEMORY:], to], [*rests[-MEMORY:], rest]
        x = to if plain or length > SETTLED * size else _extrapolated(points, rests)
    return Found(back, limit, False, objective)


def _extrapolated(points: list[np.ndarray], rests: list[np.ndarray]) -> np.ndarray:
    """Return the combination of the points whose rests, combined alike, are shortest."""
    if len(points) < 2:
        return points[-1]
    F, G = np.diff(np.stack(rests), axis=0), np.diff(np.stack(points), axis=0)
    gram = F @ F.T
    ridge = 1e-12 * np.trace(gram)
    try:
        share = np.linalg.solve(gram + ridge * np.eye(len(gram)), F @ rests[-1])
    except np.linalg.LinAlgError:
        return points[-1]
    return points[-1] - share @ G
