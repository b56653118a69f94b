"""`KronSBL`: sparse Bayesian learning with Kronecker-structured dictionaries, for frames, streams of frames and growing pilots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from math import prod
from typing import Any

import numpy as np

from streamsvd.arrays import Array, to_numpy
from streamsvd.pipelines.channel.checks import (
    Observation,
    checked_dictionaries,
    double,
    noise_variances,
    observation,
)
from streamsvd.pipelines.channel.estimate import Estimate, State, estimate_of, noise_start, warmed
from streamsvd.pipelines.channel.options import Options
from streamsvd.pipelines.channel.pilots import Pilots, first_pilots, more_pilots, observed
from streamsvd.pipelines.channel.solver import Problem, Solved, solve


class KronSBL:
    """Estimate sparse x from ``y = (H1 (x) H2 (x) ...) x + n`` with prior variances ``g1 (x) g2 (x) ...``.

    Parameters
    ----------
    dictionaries : matrices (M_i, N_i), one for each factor, real or complex, NumPy, torch or CuPy; the first varies slowest in y
    options
        See `Options`: method, noise, prune, tol, max_iter, floor, and further ones.

    Notes
    -----
    An iteration costs ``O(N sum M_i)`` for N unknowns, where the dense posterior takes ``O(N^2 M)``. Reference: He and Joseph, "Bayesian
    algorithms for Kronecker-structured sparse vector recovery with application to IRS-MIMO channel estimation", IEEE TSP 2024.

    Examples
    --------
    >>> from streamsvd.pipelines.channel.scenario import synthetic
    >>> case = synthetic(seed=0, snr_db=30)
    >>> found = KronSBL(case.dictionaries, method="svd").fit(case.y, noise_variance=case.noise_variance)
    >>> found.converged, [int((g > 0).sum()) for g in found.gammas]
    (True, [3, 3, 3])
    """

    def __init__(self, dictionaries: Sequence[Array], /, **options: Any) -> None:
        self.options = Options(**options)
        self.dictionaries = checked_dictionaries(dictionaries, self.options)
        self.state_ = State()

    def fit(self, y: Array, /, *, noise_variance: float | None = None) -> Estimate:
        """Estimate from one observation, or from several snapshots that share their support (multiple measurement vectors).

        Parameters
        ----------
        y : array (M,) or (M1, ..., Md); with one more axis in front: L snapshots with one support, and x of their own
        noise_variance : float, > 0
            Of each entry of y; where noise is estimated, where that starts.

        Raises
        ------
        ValueError, TypeError
            If y does not fit the dictionaries or holds NaN, or the noise variance is missing or not positive. Not converging is a flag.
        """
        seen = observation(y, self.dictionaries, self.options)
        single = seen.y.shape[1] == 1 and (y.ndim in (1, len(self.dictionaries)) and _is_single(y, self.dictionaries))
        found = self._run(seen, noise_variance, self.dictionaries, None)[0]
        self.state_ = State(found.gammas, found.noise_variance)
        return _first_snapshot(found) if single else found

    def fit_frames(self, frames: Array, /, *, noise_variance: Any = None) -> list[Estimate]:
        """Estimate each of many frames by itself, all at once: the same as ``fit`` one by one, several times faster for short frames.

        Parameters
        ----------
        frames : array (F, M) or (F, M1, ..., Md)
        noise_variance : float or array (F,)
        """
        seen = observation(frames, self.dictionaries, self.options, many=True)
        return [_first_snapshot(e) for e in self._run(seen, noise_variance, self.dictionaries, None)]

    def update(
        self,
        y: Array,
        /,
        *,
        noise_variance: Any = None,
        pilots: Array | None = None,
        mode: int = 0,
        decay: float = 1.0,
    ) -> Any:
        """Take the next frame or frames of a stream, starting from the hyperparameters of the one before; or further pilots of one frame.

        Parameters
        ----------
        y : array (M,) or (M1, ..., Md), one frame; with one more axis in front: frames in order
            With ``pilots``: the observations that belong to them, (M1, ..., b, ..., Md) with b along ``mode``.
        noise_variance : float or array (F,)
        pilots : array (b, N_mode), optional
            Rows that the dictionary ``mode`` grows by. The given dictionary of that mode then only fixes the grid: its rows do not count.
        decay : float in (0, 1]
            With ``pilots``: how much all earlier pilots still count, for channels that drift.

        Returns
        -------
        Estimate, or a list of them for several frames

        Raises
        ------
        ValueError, TypeError
            As ``fit``; nothing has changed then.
        """
        if pilots is not None:
            return self._grow(y, pilots, mode, decay, noise_variance)
        seen = observation(y, self.dictionaries, self.options, many=True)
        noise = noise_variances(noise_variance, seen.y.shape[0], self.options)
        state, found = self.state_, []
        for f in range(seen.y.shape[0]):
            one = Observation(seen.y[f : f + 1, ...], seen.scale[f : f + 1], seen.dtype)
            estimate = self._run(one, None if noise is None else noise[f], self.dictionaries, state)[0]
            found.append(_first_snapshot(estimate))
            if all(g.any() for g in estimate.gammas):  # a frame of zeros says nothing about the next one
                state = State(estimate.gammas, estimate.noise_variance)
        self.state_ = state
        return found[0] if _is_single(y, self.dictionaries) else found

    def warm(self, gammas: Sequence[Any], /, *, noise_variance: float | None = None) -> KronSBL:
        """Start the stream from kept hyperparameters, ``estimate.gammas`` of the same grids; returns self."""
        given = tuple(np.asarray(to_numpy(g), dtype=np.float64) for g in gammas)
        widths = tuple(int(H.shape[1]) for H in self.dictionaries)
        if self.options.method in ("classical", "decomposed"):
            msg = f'method="{self.options.method}" has no warm start; use method="svd", "am" or "pc"'
            raise ValueError(msg)
        if tuple(g.size for g in given) != widths:
            arrived = f"the hyperparameters have lengths {tuple(g.size for g in given)} and the grids {widths}"
            msg = f"{arrived}; they are of another grid, begin without them"
            raise ValueError(msg)
        if not all(np.isfinite(g).all() and (g >= 0).all() and g.any() for g in given):
            msg = (
                "hyperparameters must be finite and >= 0, and not all zero; give estimate.gammas as they were returned"
            )
            raise ValueError(msg)
        self.state_ = State(given, noise_variance)
        return self

    def _grow(self, y: Array, rows: Array, mode: int, decay: float, noise_variance: Any) -> Estimate:
        d, old = len(self.dictionaries), self.state_.pilots
        if not 0 <= mode < d or (old is not None and old.mode != mode):
            msg = f"pilots arrive along mode {mode}; expected {old.mode if old else f'0 .. {d - 1}'}: pilots grow along one mode"
            raise ValueError(msg)
        if not 0 < decay <= 1:
            msg = f"decay={decay} is out of range; expected 0 < decay <= 1, where 1 forgets nothing"
            raise ValueError(msg)
        H = self.dictionaries[mode]
        if rows.ndim != 2 or rows.shape[1] != H.shape[1]:
            msg = f"pilots have the shape {tuple(rows.shape)}; expected (rows, {H.shape[1]}), the columns of dictionary {mode}"
            raise ValueError(msg)
        rows = double(rows, "pilots")
        grown = tuple(rows if i == mode else D for i, D in enumerate(self.dictionaries))
        seen = observation(y, grown, self.options)
        if seen.y.shape[1] != 1:
            msg = f"y has the shape {tuple(y.shape)}: several snapshots; growing pilots take one observation at a time"
            raise ValueError(msg)
        data = seen.y[0, 0, ...] * float(seen.scale[0])
        kept = first_pilots(rows, data, mode=mode) if old is None else more_pilots(old, rows, data, decay=decay)
        grown = tuple(kept.triangle if i == mode else D for i, D in enumerate(self.dictionaries))
        whole = replace(observation(observed(kept), grown, self.options), dtype=seen.dtype)
        found = self._run(whole, noise_variance, grown, None, kept)[0]
        self.state_ = State(found.gammas, found.noise_variance, kept)
        return _first_snapshot(found)

    def _run(
        self,
        seen: Observation,
        noise_variance: Any,
        dictionaries: tuple[Array, ...],
        state: State | None,
        pilots: Pilots | None = None,
    ) -> list[Estimate]:
        """Solve with each frame divided by its scale, and undo that."""
        F = seen.y.shape[0]
        noise = noise_variances(noise_variance, F, self.options)
        square = seen.scale**2
        rest = np.zeros(F) if pilots is None else np.full(F, pilots.rest) / square
        if noise is None and state is not None and state.noise_variance is not None:
            noise = np.full(F, state.noise_variance)
        started = noise_start(seen.y) if noise is None else noise / square
        problem = Problem(dictionaries, seen.y, started, rest, pilots.rest_count if pilots else 0)
        found = self._solve(problem, warmed(state, square, self.options))
        count = seen.y.shape[1] * prod(seen.y.shape[2:]) + problem.rest_count
        return [estimate_of(found, f, seen, float(square[f]), count) for f in range(F)]

    def _solve(self, problem: Problem, start: list[np.ndarray] | None) -> Solved:
        if self.options.method == "classical":
            from streamsvd.pipelines.channel.classical import solve_classical

            return solve_classical(problem, self.options)
        if self.options.method == "decomposed":
            from streamsvd.pipelines.channel.classical import solve_decomposed

            return solve_decomposed(problem, self.options)
        return solve(problem, self.options, start=start)

    def settings(self) -> dict[str, Any]:
        """Return the options, ready for JSON."""
        return asdict(self.options)


def _is_single(y: Array, dictionaries: Sequence[Array]) -> bool:
    rows = tuple(int(H.shape[0]) for H in dictionaries)
    return tuple(y.shape) == rows or (y.ndim == 1 and int(y.shape[0]) == prod(rows))


def _first_snapshot(estimate: Estimate) -> Estimate:
    return replace(estimate, mean=estimate.mean[0, ...])
