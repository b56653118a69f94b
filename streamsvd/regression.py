"""One robust component of a matrix: where to start, alternating weighted regression, and the rows and columns that are left out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.arrays import Array, dtype_name, from_numpy, namespace, to_numpy
from streamsvd.dpd import medians
from streamsvd.fixedpoint import Found, fixed_point
from streamsvd.kernels import dpd

if TYPE_CHECKING:
    from concurrent.futures import Executor

ROUGH, SHORT = 1e-4, 40  # tolerance and steps after which starts are compared
SINGLE = 1 << 15  # entries from which float64 data is first fitted in float32
FAR = 7.0  # a row is far off if its median residual is so many times the typical one, and ...
FAINT = 0.7  # ... its mean weight is below this share of the typical one


@dataclass(frozen=True, eq=False)
class Problem:
    """A matrix (n, p) in units of its scale, the components found before, and the rate ``k = alpha / (2 sigma^2)``."""

    X: Array
    k: float
    A: np.ndarray
    B: np.ndarray
    tol: float
    limit: int
    pool: Executor | None = None

    def step(self, x: np.ndarray, /) -> tuple[np.ndarray, float]:
        """Regress all rows, then all columns: x = (c, d) holds the coefficients before; return the new ones and the sum of the weights.

        Both are warm: c belongs to the unit vector of d, and d to that of c. At a fixed point both regressions hold at once.
        """
        n = self.X.shape[0]
        c, mass = dpd.left(self.X, self.right(x), x[:n], self.k, pool=self.pool)
        d, _ = dpd.right(self.X, _unit(_orthogonal(c, self.A)), x[n:], self.k, pool=self.pool)
        return np.concatenate([c, d]), float(mass.sum())

    @property
    def large(self) -> bool:
        """Tell whether a copy in float32 pays."""
        return dtype_name(self.X) == "float64" and self.X.shape[0] * self.X.shape[1] >= SINGLE

    def single(self) -> Problem:
        """Return the problem in float32; entries beyond its range become infinite and have no weight."""
        with np.errstate(over="ignore", under="ignore"):
            X = self.X.astype(np.float32) if isinstance(self.X, np.ndarray) else None
        xp = namespace(self.X)
        return replace(self, X=xp.astype(self.X, xp.float32) if X is None else X)

    def right(self, x: np.ndarray, /) -> np.ndarray:
        """Return the unit right vector of a point."""
        return _unit(_orthogonal(x[self.X.shape[0] :], self.B))

    def start(self, b: np.ndarray, tamed: Array, /) -> np.ndarray:
        """Return the point of a right vector: the least-squares coefficients of the rows of X with its gross entries tamed."""
        b = _unit(_orthogonal(b, self.B))
        c = _product(tamed, b)
        return np.concatenate([c, b * float(np.linalg.norm(c))])

    def solve(self, x: np.ndarray, /) -> Found:
        """Iterate from x to a fixed point; float64 data in float32 first, which is nearly three times faster."""
        steps = 0
        if self.large:
            found = fixed_point(self.single().step, x, tol=max(self.tol, 3e-6), limit=self.limit)
            x, steps = found.x, found.steps
        least = 1e-6 if dtype_name(self.X) == "float32" else 1e-14
        found = fixed_point(self.step, x, tol=max(self.tol, least), limit=max(1, self.limit - steps))
        return found._replace(steps=steps + found.steps)

    def vectors(self, x: np.ndarray, /) -> tuple[float, np.ndarray, np.ndarray]:
        """Return the singular value and the unit vectors of a point."""
        n = self.X.shape[0]
        d = _orthogonal(x[n:], self.B)
        return float(np.linalg.norm(d)), _unit(_orthogonal(x[:n], self.A)), _unit(d)


def first_start(problem: Problem, low: float, high: float, init: str, /) -> np.ndarray:
    """Return the point from which the first component starts, with all entries clipped to low .. high.

    "svd": the leading singular vector; "median": the medians of the columns, or those of the rows as a left vector, whichever is better
    in the end; "best": the best of all three.
    """
    tamed = _clipped(problem.X, low, high)
    found = []
    if init in ("svd", "best"):
        found.append(_leading(tamed))
    if init in ("median", "best"):
        found += [medians(problem.X, 0), _product(tamed.T, medians(problem.X, 1))]
    return _best(problem, [b for b in found if b.any()] or [np.ones(problem.X.shape[1])], tamed)


def next_start(problem: Problem, /) -> np.ndarray:
    """Return the point from which a later component starts: the leading vector of ``W * X``, along which the objective rises fastest.

    Gross entries have no weight there, so a component does not begin, and stay, at one of them.
    """
    xp = namespace(problem.X)
    filled = _filled(problem.X)
    with np.errstate(over="ignore"):
        weight = xp.exp(-problem.k * filled * filled)
    tamed = xp.where(weight > 0, filled * weight, xp.zeros_like(filled))
    return _best(problem, [_leading(tamed)], tamed)


def _best(problem: Problem, starts: list[np.ndarray], tamed: Array) -> np.ndarray:
    """Return the point of largest objective that is reached, roughly, from the right vectors; the first of equals."""
    rough = problem.single() if problem.large else problem
    found = [fixed_point(rough.step, rough.start(b, tamed), tol=ROUGH, limit=SHORT) for b in starts]
    best = found[0]
    for other in found[1:]:
        if other.objective > best.objective * (1 + 1e-9):
            best = other
    return best.x


def far_off(problem: Problem, x: np.ndarray, /) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and the columns that lie far from the fit as a whole, such as a covered frame or a broken sensor.

    Those of a faint mean weight are looked at: one is far off if the median of its residuals is seven times that of all.
    """
    X, n = problem.X, problem.X.shape[0]
    a, b = x[:n], problem.right(x)
    xp = namespace(X)
    present = xp.astype(xp.isfinite(X), xp.float64)
    _, rows = dpd.left(X, b, a, problem.k, pool=problem.pool)
    _, columns = dpd.right(X, _unit(a), b * float(np.linalg.norm(a)), problem.k, pool=problem.pool)
    seen = [to_numpy(xp.sum(present, axis=axis)) for axis in (1, 0)]
    faint = [_faint(mass, count) for mass, count in zip((rows, columns), seen, strict=True)]
    if not any(found.size for found in faint):
        return faint[0], faint[1]
    host = to_numpy(X)
    stride = max(1, n // max(1, (1 << 18) // X.shape[1]))
    sample = host[::stride].astype(np.float64) - np.outer(a[::stride], b)
    typical = float(np.nanmedian(np.abs(sample)))
    worse = [
        [i for i in faint[0] if _median(host[i] - a[i] * b) > FAR * typical],
        [j for j in faint[1] if _median(host[:, j] - a * b[j]) > FAR * typical],
    ]
    return np.asarray(worse[0], np.intp), np.asarray(worse[1], np.intp)


def without(X: Array, rows: np.ndarray, columns: np.ndarray, /) -> Array:
    """Return the matrix with rows and columns missing."""
    keep = [np.ones(size, bool) for size in X.shape]
    keep[0][rows], keep[1][columns] = False, False
    xp = namespace(X)
    left, right = (from_numpy(mask.astype(np.int8), like=X) > 0 for mask in keep)
    return xp.where(left[:, None] & right[None, :], X, xp.full_like(X, np.nan))


def deflate(X: Array, size: float, a: np.ndarray, b: np.ndarray, /) -> Array:
    """Return ``X - size a b'``."""
    if isinstance(X, np.ndarray):
        return X - np.outer((size * a).astype(X.dtype), b.astype(X.dtype))
    xp = namespace(X)
    left, right = (xp.astype(from_numpy(v, like=X), X.dtype) for v in (size * a, b))
    return X - left[:, None] * right[None, :]


def _faint(mass: np.ndarray, count: np.ndarray) -> np.ndarray:
    mean = np.divide(mass, count, out=np.ones_like(mass), where=count > 0)
    return (
        np.flatnonzero((mean < FAINT * np.median(mean[count > 0])) & (count > 0))
        if (count > 0).any()
        else np.empty(0, np.intp)
    )


def _median(e: np.ndarray) -> float:
    e = np.abs(e[np.isfinite(e)])
    return float(np.median(e)) if e.size else 0.0


def _leading(X: Any, steps: int = 8) -> np.ndarray:
    """Return the leading right singular vector: block power iteration with four vectors (Halko, Martinsson and Tropp 2011, 4.4)."""
    p = X.shape[1]
    width = min(4, *X.shape)
    V = np.random.default_rng(0).standard_normal((p, width))
    V[:, 0] = 1.0
    for _ in range(steps):
        V = np.linalg.qr(_product(X.T, _product(X, V)))[0]
    _, _, W = np.linalg.svd(_product(X, V), full_matrices=False)
    return V @ W[0]


def _product(X: Any, V: np.ndarray) -> np.ndarray:
    return to_numpy(X @ namespace(X).astype(from_numpy(V, like=X), X.dtype)).astype(np.float64)


def _clipped(X: Any, low: float, high: float) -> Any:
    xp = namespace(X)
    return xp.clip(_filled(X), low, high)


def _filled(X: Any) -> Any:
    xp = namespace(X)
    return xp.where(xp.isfinite(X), X, xp.zeros_like(X))


def _orthogonal(v: np.ndarray, Q: np.ndarray) -> np.ndarray:
    for _ in range(2 if Q.shape[1] else 0):
        v = v - Q @ (Q.T @ v)
    return v


def _unit(v: np.ndarray) -> np.ndarray:
    size = float(np.linalg.norm(v))
    return v / size if size > 0 else v
