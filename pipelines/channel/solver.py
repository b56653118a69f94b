"""The iteration: posterior, M-step, pruning, for many frames at once; each frame leaves when it has converged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from streamsvd.arrays import Array, device_of, namespace, one_thread, to_numpy
from streamsvd.kronecker import Posterior, is_complex, kron_form, multi_product, posterior, thin_form
from streamsvd.pipelines.channel import updates
from streamsvd.pipelines.channel.options import Options

# Prior energy over that of y: the rank-one step wants room to grow, the bound is indifferent, EM must start small to tell columns apart.
START = {"svd": 10.0, "power": 10.0, "am": 1.0, "pc": 1.0, "em": 2e-3, "sweep": 2e-3}


# Whatever the noise, a hyperparameter above this share of the largest is no leftover.
HIGHEST = 0.01
# Below this share a hyperparameter is zero for every purpose, and its inverse would overflow.
TINIEST = 1e-25
# From this change on, entries below this share are hastened: measured, a quarter fewer steps at the same error.
SETTLED, SMALL = 0.1, 0.03


@dataclass(frozen=True, eq=False)
class Problem:
    """F frames of L snapshots: ``y`` (F, L, M1, ..., Md), double precision, ``noise`` (F,) its variance or where its estimate starts.

    ``rest`` and ``rest_count`` are the energy and the number of observations that were found to hold noise alone.
    """

    dictionaries: tuple[Array, ...]
    y: Array
    noise: np.ndarray
    rest: np.ndarray
    rest_count: int = 0


@dataclass(frozen=True, eq=False)
class Solved:
    """mean (F, L, N1, ...), gammas (F, N_i), noise (F,), iterations (F,), converged (F,), cost (F, iterations) with NaN after the end."""

    mean: Array
    gammas: tuple[np.ndarray, ...]
    noise: np.ndarray
    iterations: np.ndarray
    converged: np.ndarray
    cost: np.ndarray


class _Frames:
    """The frames that still iterate: compact dictionaries (F, 1, M_i, n_i), hyperparameters and their places in the grids (F, n_i)."""

    def __init__(self, problem: Problem, gammas: list[np.ndarray], early: bool) -> None:
        xp = self.xp = namespace(problem.y)
        self.problem = problem
        self.ids = np.arange(problem.y.shape[0])
        self.y = problem.y
        self.noise = problem.noise
        self.energies = [to_numpy(xp.sum(xp.abs(H) ** 2, axis=0)) for H in problem.dictionaries]
        self.gammas = [self.own(g) for g in gammas]
        self.hidden = self.gammas
        self.places = [np.broadcast_to(np.arange(g.shape[1]), g.shape) for g in gammas]
        self.A = [H[None, None, ...] for H in problem.dictionaries]
        self.columns = [self.own(e[None, :]) for e in self.energies]
        self.early = np.full(self.ids.shape, early)

    def own(self, x: np.ndarray) -> Array:
        return x if self.xp is np else self.xp.asarray(np.array(x, order="C"), device=device_of(self.problem.y))

    def posterior(self) -> Posterior:
        form = thin_form(self.A, [g[:, None, :] for g in self.gammas], exact=False)
        return posterior(form, self.y, self.own(self.noise[:, None]))

    def compact(self) -> None:
        """Drop columns that no frame uses; where frames keep different numbers, the rest is padding with gamma 0."""
        for i, g in enumerate(self.gammas):
            host = to_numpy(g)
            width = max(1, int((host > 0).sum(axis=1).max(initial=1)))
            if width == host.shape[1]:
                continue
            order = np.argsort(host <= 0, axis=1, kind="stable")[:, :width]
            self._take(i, order, width)

    def _take(self, i: int, order: np.ndarray, width: int) -> None:
        xp, H = self.xp, self.problem.dictionaries[i]
        chosen = (np.arange(order.shape[0])[:, None], order)
        self.places[i] = self.places[i][chosen]
        if self.hidden is not self.gammas:
            self.hidden[i] = self.own(to_numpy(self.hidden[i])[chosen])
        self.gammas[i] = self.own(to_numpy(self.gammas[i])[chosen])
        flat = self.places[i].reshape(-1)
        A = xp.reshape(xp.take(H, self.own(flat), axis=1), (H.shape[0], -1, width))
        A = xp.permute_dims(A, (1, 0, 2))[:, None, :, :]
        self.A[i] = np.ascontiguousarray(A) if xp is np else A
        self.columns[i] = self.own(self.energies[i][self.places[i]])

    def leave(self, done: np.ndarray) -> None:
        stay = np.flatnonzero(~done)
        pick = self.own(stay)
        take = lambda x: x if x.shape[0] == 1 and done.size > 1 else self.xp.take(x, pick, axis=0)  # noqa: E731
        separate = self.hidden is not self.gammas
        self.ids, self.noise, self.early = self.ids[stay], self.noise[stay], self.early[stay]
        self.y, self.A, self.columns = take(self.y), [take(A) for A in self.A], [take(c) for c in self.columns]
        self.gammas = [take(g) for g in self.gammas]
        self.hidden = [take(h) for h in self.hidden] if separate else self.gammas
        self.places = [p[stay] for p in self.places]
        self.compact()


def solve(problem: Problem, options: Options, /, *, start: Sequence[np.ndarray] | None = None) -> Solved:
    """Iterate until the hyperparameters of every frame change by less than ``options.tol``, or ``options.max_iter`` times.

    Cost of an iteration: for each frame that of ``kron_form`` and ``posterior`` on the columns still active.
    """
    with one_thread():
        return _solve(problem, options, start)


def _solve(problem: Problem, options: Options, start: Sequence[np.ndarray] | None) -> Solved:
    F = problem.y.shape[0]
    first = _first_gammas(problem, options)
    if start is not None:  # a frame of zeros stays with its zeros
        first = [np.where(first[-1][:, :1] > 0, g, 0.0) for g in start]
    frames = _Frames(problem, first, start is None and options.step in ("svd", "power"))
    gammas = [np.zeros((F, H.shape[1])) for H in problem.dictionaries]
    noise, iterations = problem.noise.copy(), np.zeros(F, dtype=np.int64)
    converged, curve = np.zeros(F, dtype=bool), np.full((F, options.max_iter), np.nan)
    for step in range(options.max_iter):
        p = frames.posterior()
        curve[frames.ids, step] = _cost(frames, p)
        moved = _step(frames, p, options)
        done = moved <= options.tol
        converged[frames.ids] = done
        iterations[frames.ids] = step + 1
        finished = done | (step + 1 == options.max_iter)
        if finished.any():
            noise[frames.ids] = frames.noise
            _store(frames, gammas)
            frames.leave(finished)
            if not frames.ids.size:
                break
        _prune(frames, options)
    mean = _final_mean(problem, gammas, noise)
    return Solved(mean, tuple(gammas), noise, iterations, converged, curve[:, : int(iterations.max(initial=0))])


def _step(frames: _Frames, p: Posterior, options: Options) -> np.ndarray:
    """Replace the hyperparameters; return their relative change (F,)."""
    xp, before = frames.xp, frames.gammas
    energy = _square(xp, p.mean)
    energy = energy[:, 0, ...] if energy.shape[1] == 1 else xp.mean(energy, axis=1)
    step = options.step
    if step in ("am", "pc"):
        frames.gammas, frames.hidden = updates.by_bound(
            energy, p.share[:, 0, ...], before, frames.hidden, _coupling(frames, options)
        )
        if step == "am":
            frames.hidden = frames.gammas
    else:
        moments = p.variance[:, 0, ...] + energy
        sweeps = {"sweeps": 1} if step == "sweep" else {}
        rule = {"svd": updates.by_svd, "power": updates.by_power}.get(step, updates.by_em)
        frames.gammas = frames.hidden = rule(moments, before, **sweeps)
    moved = to_numpy(updates.change(frames.gammas, before))
    frames.early &= moved < SETTLED
    if frames.early.any():
        frames.gammas = frames.hidden = updates.leapt(frames.gammas, before, frames.own(frames.early[:, None]))
    if step in ("svd", "power") and (late := (moved < SETTLED) & ~frames.early).any():
        # Frames that still move keep their step: weak paths must first get the chance to grow.
        small = [g < SMALL * xp.max(g, axis=-1, keepdims=True) for g in frames.gammas]
        if any(bool(xp.any(few)) for few in small):
            frames.gammas = frames.hidden = updates.hastened(frames.gammas, before, small, frames.own(late[:, None]))
    if options.noise == "estimate":
        frames.noise = _noise(frames, p)
    return moved


def _coupling(frames: _Frames, options: Options) -> list[Array | None]:
    if options.step == "am":
        return [None] * len(frames.gammas)
    parts = zip(frames.places, frames.gammas, options.couplings(len(frames.gammas)), strict=True)
    return [updates.coupling_matrix(frames.own(place), g, strength) for place, g, strength in parts]


def _noise(frames: _Frames, p: Posterior) -> np.ndarray:
    """EM for the noise: ``(||y - H mean||^2 + sigma^2 sum(1 - variance / gamma)) / M`` (Tipping 2001)."""
    xp = frames.xp
    misfit = frames.y - multi_product(p.mean, frames.A)
    axes = tuple(range(1, misfit.ndim))
    L = frames.y.shape[1]
    count = prod(frames.y.shape[1:]) + frames.problem.rest_count
    left = to_numpy(xp.sum(_square(xp, misfit), axis=axes)) + frames.problem.rest[frames.ids]
    found = (left + frames.noise * L * to_numpy(p.freedom)[:, 0]) / count
    scale = to_numpy(xp.mean(_square(xp, frames.y), axis=axes))
    return np.maximum(found, 1e-14 * scale + np.finfo(float).tiny)


def _prune(frames: _Frames, options: Options) -> None:
    """Switch off what is small: below ``prune`` of the largest of its factor, or, by default, lost in the noise and below a hundredth.

    The second rule compares the largest prior energy of a slice, ``g1_i |h1_i|^2 max_j(g2_j |h2_j|^2) ..``, with the noise variance.
    """
    xp, shares = (
        frames.xp,
        (HIGHEST,) * len(frames.gammas) if options.prune is None else options.prunes(len(frames.gammas)),
    )
    gone = [g < max(r, TINIEST) * xp.max(g, axis=-1, keepdims=True) for g, r in zip(frames.gammas, shares, strict=True)]
    if not any(bool(xp.any(small)) for small in gone):
        return
    gone = [small & (g > 0) for small, g in zip(gone, frames.gammas, strict=True)]
    if options.prune is None:
        gone = [small & lost for small, lost in zip(gone, _lost(frames, options.significance), strict=True)]
        if not any(bool(xp.any(small)) for small in gone):
            return
    separate = frames.hidden is not frames.gammas
    hidden = [xp.where(lost, xp.zeros_like(g), g) for lost, g in zip(gone, frames.hidden, strict=True)]
    frames.gammas = [xp.where(lost, xp.zeros_like(g), g) for lost, g in zip(gone, frames.gammas, strict=True)]
    frames.hidden = hidden if separate else frames.gammas
    frames.compact()


def _lost(frames: _Frames, significance: float) -> list[Array]:
    """Tell which slices have less prior energy, at their largest coefficient, than so many noise variances."""
    xp = frames.xp
    prior = [g * c for g, c in zip(frames.gammas, frames.columns, strict=True)]
    peaks = [xp.max(e, axis=-1, keepdims=True) for e in prior]
    least = significance * frames.own(frames.noise[:, None])
    return [e * prod(p for j, p in enumerate(peaks) if j != i) < least for i, e in enumerate(prior)]


def _cost(frames: _Frames, p: Posterior) -> np.ndarray:
    rest, count = frames.problem.rest[frames.ids], frames.problem.rest_count
    return to_numpy(frames.xp.sum(p.cost, axis=1)) + count * np.log(frames.noise) + rest / frames.noise


def _first_gammas(problem: Problem, options: Options) -> list[np.ndarray]:
    """Start flat, with a prior energy that is a multiple of the energy of y: so scaling y scales the estimate, and nothing else."""
    xp, F = namespace(problem.y), problem.y.shape[0]
    energy = to_numpy(xp.sum(_square(xp, problem.y), axis=tuple(range(1, problem.y.ndim)))) / problem.y.shape[1]
    norm = prod(float(xp.sum(_square(xp, H))) for H in problem.dictionaries)
    widths = [H.shape[1] for H in problem.dictionaries]
    gammas = [np.full((F, n), n**-0.5) for n in widths[:-1]]
    scale = START[options.step] * energy / norm * prod(widths[:-1]) ** 0.5
    return [*gammas, np.repeat(scale[:, None], widths[-1], axis=1)]


def _store(frames: _Frames, gammas: list[np.ndarray]) -> None:
    for target, g, place in zip(gammas, frames.gammas, frames.places, strict=True):
        values = to_numpy(g)
        rows = np.broadcast_to(frames.ids[:, None], values.shape)
        target[frames.ids] = 0.0
        np.add.at(target, (rows, place), values)


def _final_mean(problem: Problem, gammas: list[np.ndarray], noise: np.ndarray) -> Array:
    xp = namespace(problem.y)
    own = lambda x: x if xp is np else xp.asarray(np.ascontiguousarray(x), device=device_of(problem.y))  # noqa: E731
    form = kron_form([H[None, None, ...] for H in problem.dictionaries], [own(g[:, None, :]) for g in gammas])
    return posterior(form, problem.y, own(noise[:, None])).mean


def _square(xp: Any, x: Array) -> Array:
    return xp.real(x) ** 2 + xp.imag(x) ** 2 if is_complex(x) else x * x
