"""Robust components of a matrix one after another: choose a start, solve, estimate sigma, take the component off."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from streamsvd.arrays import Array, dtype_name, namespace, to_numpy
from streamsvd.dpd import mdpde_scale, spread
from streamsvd.joint import together
from streamsvd.regression import FAR, Problem, deflate, far_off, first_start, next_start, without

if TYPE_CHECKING:
    from concurrent.futures import Executor

Whole = tuple[np.ndarray, np.ndarray]  # rows and columns that are left out, or taken in, as a whole
NOTHING: Whole = (np.empty(0, np.intp), np.empty(0, np.intp))
EPS = 2.0**-50
ROUNDS = 20  # of sigma and component in turn
REJECTIONS = 4
CLIP = 3.0  # interquartile ranges about the quartiles, to which entries are clipped for a start
FARTHEST = {"float32": 1e15, "float64": 1e75}  # units: what is farther counts as this far, so that no square overflows


@dataclass(frozen=True)
class Rule:
    """What ``robust_svd`` was asked for."""

    alpha: float
    scale: str | float
    init: str
    reject: bool
    joint: bool
    tol: float
    limit: int


class Component(NamedTuple):
    """A singular value with its unit vectors, sigma of the weights, and how the iteration ended."""

    size: float
    a: np.ndarray
    b: np.ndarray
    sigma: float
    steps: int
    converged: bool


@dataclass(frozen=True, eq=False)
class Decomposition:
    """Components in the order in which they were found, what is left in units of ``unit``, and what was left out as a whole."""

    components: list[Component]
    rest: Array
    unit: float
    rows: np.ndarray
    columns: np.ndarray
    joint_steps: int = 0


def decompose(X: Array, rank: int, rule: Rule, pool: Executor | None, /) -> Decomposition:
    """Return at most ``rank`` components; fewer where nothing is left after them.

    The matrix is divided by the interquartile range of its entries (or by the number that ``scale`` is), which is sigma from then on, as
    in the reference; with ``scale="mdpde"`` sigma is estimated from residuals. Rows and columns are left out for being far from the first
    component; those that all components together explain are taken in again, for which all is done once more.
    """
    low, high, width = spread(X)
    unit = width if isinstance(rule.scale, str) else float(rule.scale)
    n, p = X.shape
    problem = Problem(
        _tamed(in_units(X, unit)), rule.alpha / 2.0, np.zeros((n, 0)), np.zeros((p, 0)), rule.tol, rule.limit, pool
    )
    between = ((low - CLIP * width) / unit, (high + CLIP * width) / unit)
    found = _all_components(problem, rank, rule, unit, between, NOTHING)
    back = _explained(found, problem.X)
    return found if not (back[0].size or back[1].size) else _all_components(problem, rank, rule, unit, between, back)


def _all_components(
    problem: Problem, rank: int, rule: Rule, unit: float, between: tuple[float, float], spared: Whole
) -> Decomposition:
    whole, left_out, given = norm(problem.X), NOTHING, problem.X
    found: list[Component] = []
    for number in range(rank):
        if norm(problem.X) <= EPS * whole * float(np.sqrt(min(problem.X.shape))):
            break
        if number == 0:
            problem, x, left_out = _first(problem, *between, rule, spared)
            given = problem.X
        else:
            x = next_start(problem)
        problem, x, steps, done = _settled(problem, x, rule)
        size, a, b = problem.vectors(x)
        if size <= EPS * (found[0].size / unit if found else 0.0) or not a.any():
            break
        sigma = float(np.sqrt(rule.alpha / 2.0 / problem.k)) if rule.alpha else 1.0
        found.append(Component(size * unit, a, b, sigma * unit, steps, done))
        A, B = np.column_stack([problem.A, a]), np.column_stack([problem.B, b])
        problem = replace(problem, X=deflate(problem.X, size, a, b), A=A, B=B, k=rule.alpha / 2.0, limit=rule.limit)
    if rule.joint and found:
        return _joined(found, given, unit, rule, left_out)
    return Decomposition(found, problem.X, unit, *left_out)


def _explained(found: Decomposition, X: Array) -> Whole:
    """Return those of the rows and columns left out whose entries the components fit about as well as those of the others.

    A row may lie far from the first component because it consists of a later one.
    """
    if not (found.rows.size or found.columns.size) or not found.components:
        return NOTHING
    host, rest = to_numpy(X).astype(np.float64), np.abs(to_numpy(found.rest))
    limit = FAR * float(np.median(rest[np.isfinite(rest)]))
    A, B = (np.column_stack([getattr(part, side) for part in found.components]) for side in "ab")
    there = [np.setdiff1d(np.arange(size), out) for size, out in zip(X.shape, (found.rows, found.columns), strict=True)]
    rows = [i for i in found.rows if _misfit(host[i, there[1]], B[there[1]]) <= limit]
    columns = [j for j in found.columns if _misfit(host[there[0], j], A[there[0]]) <= limit]
    return np.asarray(rows, np.intp), np.asarray(columns, np.intp)


def _misfit(y: np.ndarray, basis: np.ndarray) -> float:
    """Return the median magnitude of the residuals of y after regression on a basis, reweighted by their own scale."""
    there = np.isfinite(y)
    y, basis = y[there], basis[there]
    if y.size <= 2 * basis.shape[1]:
        return np.inf
    w, middle = np.ones(y.size), 0.0
    for _ in range(10):
        e = np.abs(y - basis @ np.linalg.lstsq(w[:, None] * basis, w * y)[0])
        middle = float(np.median(e))
        if middle == 0:
            break
        w = np.exp(-0.25 * np.minimum(0.6744897501960817 * e / middle, 30.0) ** 2)
    return middle


def _joined(found: list[Component], X: Array, unit: float, rule: Rule, left_out: Whole) -> Decomposition:
    """Improve all components at once; each then has the sigma that they share."""
    u, vt = np.column_stack([part.a for part in found]), np.stack([part.b for part in found])
    s = np.array([part.size / unit for part in found])
    least = max(rule.tol, 1e-6 if dtype_name(X) == "float32" else 1e-13)
    sigma = None if rule.scale == "mdpde" else 1.0
    fit = together(X, u, s, vt, alpha=rule.alpha, sigma=sigma, tol=least, limit=rule.limit)
    parts = [
        Component(float(size) * unit, a, b, fit.sigma * unit, part.steps, fit.converged)
        for size, a, b, part in zip(fit.s, fit.u.T, fit.vt, found, strict=True)
    ]
    return Decomposition(parts, fit.rest, unit, *left_out, joint_steps=fit.steps)


def _tamed(X: Array) -> Array:
    far = FARTHEST[dtype_name(X)]
    xp = namespace(X)
    top = float(xp.max(xp.abs(xp.where(xp.isnan(X), xp.zeros_like(X), X))))
    return X if top <= far else xp.clip(X, -far, far)


def in_units(X: Array, unit: float, /) -> Array:
    """Return ``X / unit``, row-major; a unit that the dtype cannot hold is divided by in two steps."""
    if isinstance(X, np.ndarray):
        root = X.dtype.type(np.sqrt(unit))
        direct = X.dtype.type(unit)
        good = direct > np.finfo(X.dtype).tiny and np.isfinite(direct)
        return np.ascontiguousarray(X / direct if good else X / root / root)
    return X / unit


def norm(X: Array, /) -> float:
    """Return the Frobenius norm of the entries that are not NaN."""
    xp = namespace(X)
    x = xp.where(xp.isfinite(X), X, xp.zeros_like(X))
    top = float(xp.max(xp.abs(x)))
    return 0.0 if top == 0 else top * float(xp.sqrt(xp.sum(xp.astype(x / top, xp.float64) ** 2)))


def _first(problem: Problem, low: float, high: float, rule: Rule, spared: Whole) -> tuple[Problem, np.ndarray, Whole]:
    """Choose the start of the first component, and leave out what is far off until nothing more is."""
    left_out = NOTHING
    x = first_start(problem, low, high, rule.init)
    for _ in range(REJECTIONS if rule.reject and rule.alpha > 0 else 0):
        rows, columns = (np.setdiff1d(*both) for both in zip(far_off(problem, x), spared, strict=True))
        if not (rows.size or columns.size):
            break
        left_out = (np.union1d(left_out[0], rows), np.union1d(left_out[1], columns))
        problem = replace(problem, X=without(problem.X, rows, columns))
        x = first_start(problem, low, high, rule.init)
    return problem, x, left_out


def _settled(problem: Problem, x: np.ndarray, rule: Rule) -> tuple[Problem, np.ndarray, int, bool]:
    """Solve for one component, with sigma re-estimated from its residuals until it stands where that was asked for."""
    if rule.scale != "mdpde" or rule.alpha == 0 or rule.joint:
        found = problem.solve(x)
        return problem, found.x, found.steps, found.converged
    steps, done, last = 0, False, 0.0
    for _ in range(ROUNDS):
        if steps >= rule.limit:
            done = False
            break
        sigma = max(mdpde_scale(deflate(problem.X, *problem.vectors(x)), rule.alpha), 1e-8)
        if abs(sigma - last) <= 1e-5 * sigma:
            break
        last = sigma
        problem = replace(problem, k=rule.alpha / (2.0 * sigma * sigma), limit=max(1, rule.limit - steps))
        found = problem.solve(x)
        x, steps, done = found.x, steps + found.steps, found.converged
    return problem, x, steps, done


def count(X: Any, /) -> int:
    """Return how many entries are not NaN."""
    xp = namespace(X)
    return int(xp.sum(xp.astype(xp.isfinite(X), xp.int64)))
