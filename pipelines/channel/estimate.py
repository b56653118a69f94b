"""What `KronSBL` returns for a frame and carries to the next one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from streamsvd.arrays import Array, namespace, to_numpy
from streamsvd.pipelines.channel.checks import DOUBLE, Observation
from streamsvd.pipelines.channel.options import Options
from streamsvd.pipelines.channel.pilots import Pilots
from streamsvd.pipelines.channel.solver import Solved


@dataclass(frozen=True, eq=False)
class Estimate:
    """What was found for one frame.

    Attributes
    ----------
    mean : array (N1, ..., Nd), or (L, N1, ..., Nd) for L snapshots, the posterior mean, in the array library of y
    gammas : arrays (N_i,), prior variances, 0 where switched off: all but the last have norm 1 (one array (N,) for method "classical")
    noise_variance : float, given or estimated
    iterations : int
    converged : bool
    cost : array (iterations,), ``log det C + y' C^-1 y`` before each step, C the covariance of y
    modes : int, d: the last so many axes of the mean are the coefficients
    """

    mean: Array
    gammas: tuple[np.ndarray, ...]
    noise_variance: float
    iterations: int
    converged: bool
    cost: np.ndarray
    modes: int

    @cached_property
    def support(self) -> tuple[np.ndarray, ...]:
        """Indices of the coefficients that are not zero, one integer array for each mode, as from ``numpy.nonzero`` (any snapshot)."""
        on = to_numpy(self.mean) != 0
        return np.nonzero(on.any(axis=0) if on.ndim > self.modes else on)

    @cached_property
    def values(self) -> np.ndarray:
        """The coefficients on the support: array (K,), or (L, K) for L snapshots."""
        return to_numpy(self.mean)[(..., *self.support)]


@dataclass(frozen=True, eq=False)
class State:
    """What a stream carries from frame to frame: hyperparameters (N_i,) in the units of y, the noise variance, and pilots seen."""

    gammas: tuple[np.ndarray, ...] | None = None
    noise_variance: float | None = None
    pilots: Pilots | None = None


def noise_start(y: Array, /) -> np.ndarray:
    """Return a tenth of the mean power of each frame (F,), where an estimate of the noise starts."""
    xp = namespace(y)
    power = to_numpy(xp.mean(xp.abs(y) ** 2, axis=tuple(range(1, y.ndim))))
    return 0.1 * np.where(power > 0, power, 1.0)


def warmed(state: State | None, square: np.ndarray, options: Options) -> list[np.ndarray] | None:
    """Raise the hyperparameters before to the floor, since what is zero never comes back."""
    if state is None or state.gammas is None or options.method in ("classical", "decomposed"):
        return None
    raised = [np.maximum(g, options.floor * g.max()) for g in state.gammas]
    return [*(g[None, :] for g in raised[:-1]), raised[-1][None, :] / square[0]]


def estimate_of(found: Solved, f: int, seen: Observation, square: float, count: int) -> Estimate:
    """Return frame f in the units of y: hyperparameters by the square of its scale, the cost by the density that this changes."""
    xp = namespace(found.mean)
    mean = found.mean[f, ...] * float(seen.scale[f])
    if seen.dtype in DOUBLE and not (DOUBLE[seen.dtype] == "float64" and "complex" in str(mean.dtype)):
        mean = xp.astype(mean, getattr(xp, seen.dtype))
    gammas = tuple(g[f] * (square if i == len(found.gammas) - 1 else 1.0) for i, g in enumerate(found.gammas))
    steps = int(found.iterations[f])
    cost = found.cost[f, :steps] + count * np.log(square)
    return Estimate(
        mean, gammas, float(found.noise[f] * square), steps, bool(found.converged[f]), cost, found.mean.ndim - 2
    )
