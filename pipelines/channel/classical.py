"""Two relatives on the host: classical SBL, one hyperparameter for each unknown, and the observation decomposed into its factors first."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from streamsvd.arrays import from_numpy, to_numpy
from streamsvd.kronecker import kron, outer
from streamsvd.pipelines.channel.options import Options
from streamsvd.pipelines.channel.solver import Problem, Solved, solve
from streamsvd.rank_one import best_rank_one


def solve_classical(problem: Problem, options: Options, /) -> Solved:
    """Classical SBL (Tipping 2001; Wipf and Rao 2004): ``gamma = variance + |mean|^2`` for each of the N unknowns.

    The posterior has no Kronecker form here: a step costs ``O(min(M, n)^2 max(M, n))`` for n unknowns still active, and the
    dictionary of M N numbers is formed.
    """
    H = kron([to_numpy(D) for D in problem.dictionaries])
    y = to_numpy(problem.y)
    found = [_classical(H, y[f].reshape(y.shape[1], -1), problem, f, options) for f in range(y.shape[0])]
    shape = (*y.shape[:2], *(D.shape[1] for D in problem.dictionaries))
    mean = np.stack([entry[0] for entry in found]).reshape(shape)
    steps = np.array([entry[3] for entry in found])
    curve = np.full((len(found), int(steps.max())), np.nan)
    for row, entry in zip(curve, found, strict=True):
        row[: len(entry[5])] = entry[5]
    return Solved(
        from_numpy(mean, like=problem.y),
        (np.stack([entry[1] for entry in found]),),
        np.array([entry[2] for entry in found]),
        steps,
        np.array([entry[4] for entry in found]),
        curve,
    )


def _classical(H: np.ndarray, y: np.ndarray, problem: Problem, f: int, options: Options) -> tuple[Any, ...]:
    """Iterate one frame: mean (L, N), gamma (N,), noise, steps, converged, costs."""
    M, N = H.shape
    L = y.shape[0]
    energy = float(np.sum(np.abs(y) ** 2)) / L
    if energy == 0:
        return np.zeros((L, N), dtype=np.result_type(H, y)), np.zeros(N), float(problem.noise[f]), 1, True, [0.0]
    active, A, noise = np.arange(N), H, float(problem.noise[f])
    gamma = np.full(N, 10.0 * energy / np.sum(np.abs(H) ** 2))
    prune = 1e-3 if options.prune is None else options.prunes(1)[0]
    costs: list[float] = []
    converged = False
    for _ in range(options.max_iter):
        mean, left, cost = _dense(A, gamma, y, noise)
        costs.append(cost)
        new = gamma * left + np.mean(np.abs(mean) ** 2, axis=0)
        if options.noise == "estimate":
            fit = float(np.sum(np.abs(y - mean @ A.T) ** 2)) + problem.rest[f]
            noise = (fit + noise * L * float(np.sum(1 - left))) / (L * M + problem.rest_count)
        moved = float(np.linalg.norm(new - gamma))
        converged, gamma = moved <= options.tol * float(np.linalg.norm(gamma)), new
        if converged:
            break
        keep = gamma >= prune * gamma.max(initial=0.0)
        if not keep.all():
            active, gamma, A = active[keep], gamma[keep], A[:, keep]
    x, whole = np.zeros((L, N), dtype=np.result_type(H, y)), np.zeros(N)
    x[:, active], whole[active] = _dense(A, gamma, y, noise)[0], gamma
    return x, whole, noise, len(costs), converged, costs


def _dense(A: np.ndarray, gamma: np.ndarray, y: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the mean (L, n), variance / gamma (n,) and the cost, by the smaller of the two systems."""
    from scipy.linalg import cho_factor, cho_solve, solve_triangular

    B = A * np.sqrt(gamma)
    M, n = B.shape
    if n < M:
        K = B.conj().T @ B
        K[np.diag_indices(n)] += noise
        factor = cho_factor(K, lower=True)
        z = cho_solve(factor, B.conj().T @ y.T)
        left = noise * np.sum(np.abs(solve_triangular(factor[0], np.eye(n), lower=True)) ** 2, axis=0)
        misfit = np.sum(np.abs(y) ** 2) - np.real(np.vdot(B.conj().T @ y.T, z))
        cost, rest = float(max(misfit, 0.0)) / noise, (M - n) * np.log(noise)
    else:
        K = B @ B.conj().T
        K[np.diag_indices(M)] += noise
        factor = cho_factor(K, lower=True)
        solved = cho_solve(factor, y.T)
        z = B.conj().T @ solved
        share = np.sum(np.abs(solve_triangular(factor[0], B, lower=True)) ** 2, axis=0)
        left = np.clip(1 - share, 0.0, 1.0)
        cost, rest = float(np.real(np.vdot(y.T, solved))), 0.0
    determinant = 2 * float(np.sum(np.log(np.real(np.diag(factor[0]))))) + rest
    return (np.sqrt(gamma)[:, None] * z).T, left, cost + y.shape[0] * determinant


def solve_decomposed(problem: Problem, options: Options, /) -> Solved:
    """Best rank-one approximation of the observation, then SBL for each factor by itself (He and Joseph, arXiv 2412.00310).

    For coefficients that are themselves ``x1 (x) x2 (x) ...``: the approximation removes most of the noise, and d problems of M_i
    observations take the place of one of their product. One snapshot for a frame.
    """
    if problem.y.shape[1] != 1:
        msg = f'method="decomposed" takes one observation at a time, and {problem.y.shape[1]} snapshots arrived; use method="svd"'
        raise ValueError(msg)
    F, d = problem.y.shape[0], len(problem.dictionaries)
    parts = best_rank_one(problem.y[:, 0, ...], modes=d)
    weight = to_numpy(parts.weight)
    total = prod(problem.y.shape[2:])
    noise = problem.noise.copy()
    if options.noise == "estimate":
        spent = sum(problem.y.shape[2:]) - d + 1
        left = np.sum(np.abs(to_numpy(problem.y)) ** 2, axis=tuple(range(1, d + 2))) - weight**2
        noise = np.maximum(left / max(total - spent, 1), 1e-14 * weight**2 / total + np.finfo(float).tiny)
    single = replace(
        options, method="svd", noise="known", prune=options.prunes(d)[0] if options.prune is not None else None
    )
    # A unit factor carries noise / weight^2 in each of its entries (first order perturbation of a singular vector).
    each = noise / np.where(weight > 0, weight, 1.0) ** 2
    found = []
    for H, v in zip(problem.dictionaries, parts.vectors, strict=True):
        found.append(solve(Problem((H,), v[:, None, :], each, np.zeros(F)), single))
    gammas = [entry.gammas[0] for entry in found]
    scaled = [g / np.where((n := np.linalg.norm(g, axis=1, keepdims=True)) > 0, n, 1.0) for g in gammas[:-1]]
    last = (
        gammas[-1] * np.prod([np.linalg.norm(g, axis=1) for g in gammas[:-1]], axis=0)[:, None] * (weight**2)[:, None]
    )
    means = outer([entry.mean[:, 0, ...] for entry in found])
    mean = means * from_numpy(weight, like=problem.y).reshape((-1, *(1,) * d)) if F else means
    steps = np.max([entry.iterations for entry in found], axis=0)
    converged = np.all([entry.converged for entry in found], axis=0)
    costs = found[int(np.argmax([entry.cost.shape[1] for entry in found]))].cost
    return Solved(mean[:, None, ...], (*scaled, last), noise, steps, converged, costs)
