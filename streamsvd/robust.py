"""Robust SVD of a matrix that you hold: rSVDdpd, one component after another, by regressions with density power weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, Literal

import numpy as np

from streamsvd.arrays import Array, dtype_name, from_numpy, namespace, one_thread, signs, to_numpy
from streamsvd.deflation import Decomposition, Rule, count, decompose, in_units, norm
from streamsvd.factors import Factors, complete_rows
from streamsvd.kernels import dpd
from streamsvd.regression import without
from streamsvd.robust_stream import Robust as Robust
from streamsvd.rowbatch import dense


class RobustFactors(Factors):
    """What ``robust_svd`` returns: ``Factors`` with the left factor ``u``, and how they were found in ``info``.

    ``info`` holds ``alpha`` and ``scale`` as they were asked for; ``sigma``, ``iterations`` and ``converged`` of each component;
    ``joint_iterations`` of all at once;
    ``last_sigma``, that of the component found last, which the weights use; ``objective``, the mean weight of the entries that count; and
    ``rejected_rows`` and ``rejected_columns``, which were left out as a whole: their entries in u and vt are zero.
    """

    def weights(self, X: Any, /) -> Array:
        """Return the weight of every entry of the matrix that was fitted, ``exp(-alpha e^2 / 2 sigma^2)`` with ``e = X - U S V``.

        Parameters
        ----------
        X : array (n, d), the matrix that was fitted; NaN marks what is missing

        Returns
        -------
        W : array (n, d), between 0 (gross, missing, or rejected as a whole) and 1

        Raises
        ------
        ValueError
            If X has another shape than the matrix that was fitted.

        Notes
        -----
        Cost: ``n d k`` multiply-adds and one exponential an entry.
        """
        X = _checked(X)
        assert self.u is not None
        if X.shape != (self.u.shape[0], self.columns):
            have = (self.u.shape[0], self.columns)
            msg = (
                f"got a matrix of shape {tuple(X.shape)}, and the one that was fitted has {have}; pass the same matrix"
            )
            raise ValueError(msg)
        xp = namespace(X)
        X = without(X, np.asarray(self.info["rejected_rows"], int), np.asarray(self.info["rejected_columns"], int))
        sigma = self.info["last_sigma"]
        sizes = to_numpy(self.s).astype(np.float64) / sigma
        u, s, vt = (
            xp.astype(from_numpy(part, like=X), X.dtype) for part in (to_numpy(self.u), sizes, to_numpy(self.vt))
        )
        rate = xp.full_like(X[0, :], self.info["alpha"] / 2.0)
        return dpd.weigh(in_units(X, sigma), (u * s[None, :]) @ vt, rate)


def robust_svd(
    X: Any,
    /,
    rank: int,
    *,
    alpha: float = 0.3,
    scale: Literal["iqr", "mdpde"] | float = "iqr",
    init: Literal["best", "svd", "median"] = "best",
    reject: bool = True,
    joint: bool = False,
    tol: float = 1e-7,
    max_iter: int = 1000,
    threads: int = 1,
) -> RobustFactors:
    """Robust singular value decomposition of a matrix with gross or missing entries, rows or columns (rSVDdpd).

    Component after component, ``sum_ij exp(-alpha (x_ij - c_i b_j)^2 / 2 sigma^2)`` is raised by weighted regressions of all rows and all
    columns in turn, and the component is taken off; its vectors are kept orthogonal to those before.

    Parameters
    ----------
    X : array (n, d)
        NumPy, torch, CuPy, Arrow, Polars, ...; NaN marks what is missing. It is not centred.
    rank : int
        Components, at most min(n, d).
    alpha : float
        0 is the ordinary SVD; 0.3 keeps 92 % efficiency under normal noise; 1 is the most robust and keeps 65 %.
    scale : "iqr", "mdpde" or float
        What sigma is: the interquartile range of all entries; or the scale of the residuals by its own estimating equation, which resists
        smaller outliers (with ``joint`` one for all components; else one for each, which wants it to stand out of the rest); or a number.
    init : "best", "svd" or "median"
        Where the first component starts: the leading singular vector of the clipped matrix, the medians of columns and rows, or whichever
        of these ends highest.
    reject : bool
        Leave out rows and columns that are far off as a whole, such as a covered frame. Without it they are fitted too, and those that
        cannot be are weighted by their nearest entry; nothing becomes NaN either way.
    joint : bool
        When the components have been found, regress every row and column on all of them at once until that stands still too. What was taken
        off first is then no longer outvoted by what comes after it, and missing entries bias nothing: with more than one component this is
        nearer to the truth, and no longer the published algorithm.
    tol : float
        Relative step at which a component stands still.
    max_iter : int
        Iterations for a component at most.
    threads : int
        The result does not depend on it.

    Returns
    -------
    factors : RobustFactors
        ``u`` (n, k), ``s`` (k,) descending, ``vt`` (k, d) whose largest entries are positive; float32 for float32 data. No bound:
        nothing certifies a robust fit.

    Raises
    ------
    TypeError, ValueError
        For sparse, complex, infinite or empty data and for options out of range.

    Notes
    -----
    Cost: an iteration takes 2 exponentials and about 25 flops an entry, and there are 5 to 50 for a component. Memory: two copies of X.
    When: outliers are entries, rows or columns of unknown place. When not: clean data (``ss.svd`` is faster and certified), or rows that
    do not fit in memory (``Robust`` streams them).

    References
    ----------
    Roy, Basu and Ghosh 2023, arXiv 2109.10680 (rSVDdpd); Basu, Harris, Hjort and Jones 1998 (the divergence).
    """
    X = _checked(X)
    _check_options(X.shape, rank, alpha, scale, init, tol, max_iter, threads)
    rule = Rule(float(alpha), scale, init, reject, joint, tol, max_iter)
    with ThreadPoolExecutor(threads) if threads > 1 else nullcontext() as pool, one_thread():
        return _result(X, decompose(X, rank, rule, pool), rank, rule)


def _result(X: Array, found: Decomposition, rank: int, rule: Rule) -> RobustFactors:
    (n, d), missing = X.shape, rank - len(found.components)
    parts = sorted(found.components, key=lambda part: -part.size)
    s = np.array([part.size for part in parts] + [0.0] * missing)
    u = complete_rows(np.array([part.a for part in parts]).reshape(-1, n), rank)
    vt = complete_rows(np.array([part.b for part in parts]).reshape(-1, d), rank)
    turn = signs(vt)[:, None]
    sigma = [part.sigma for part in parts] + [found.unit] * missing
    last = found.components[-1].sigma if parts else found.unit
    xp = namespace(X)
    rate = xp.full_like(found.rest[0, :], rule.alpha / 2.0 * (found.unit / last) ** 2)
    weights = dpd.weigh(found.rest, xp.zeros_like(found.rest), rate)
    info = {
        "algorithm": "rSVDdpd",
        "alpha": rule.alpha,
        "scale": rule.scale,
        "sigma": sigma,
        "last_sigma": last,
        "iterations": [part.steps for part in parts],
        "converged": [part.converged for part in parts],
        "joint_iterations": found.joint_steps,
        "objective": float(xp.sum(xp.astype(weights, xp.float64))) / max(1, count(found.rest)),
        "rejected_rows": found.rows.tolist(),
        "rejected_columns": found.columns.tolist(),
    }
    out = (from_numpy(np.ascontiguousarray(x), like=X, dtype=dtype_name(X)) for x in (s, turn * vt, (turn * u).T))
    s, vt, u = out
    mean = from_numpy(np.zeros(d), like=X)
    return RobustFactors(s, vt, mean, n, float(n), norm(X), center=False, weight_sq=float(n), u=u, info=info)


def _checked(X: Any) -> Array:
    X = dense(X)
    if X.shape[0] == 0:
        msg = f"got a matrix of shape {tuple(X.shape)}, without rows; expected at least one"
        raise ValueError(msg)
    return X


def _check_options(
    shape: tuple[int, int], rank: int, alpha: float, scale: Any, init: str, tol: float, max_iter: int, threads: int
) -> None:
    least = min(shape)
    fine = {
        f"rank={rank!r}; expected a whole number from 1 to {least}, for a matrix of shape {tuple(shape)}": (
            isinstance(rank, int | np.integer) and 1 <= rank <= least
        ),
        f"alpha={alpha!r}; expected a number from 0 (least squares) to 1 (most robust), for example 0.3": 0
        <= alpha
        <= 1,
        f"scale={scale!r}; expected 'iqr', 'mdpde' or a positive number": (
            scale in ("iqr", "mdpde") if isinstance(scale, str) else 0 < scale < float("inf")
        ),
        f"init={init!r}; expected 'best', 'svd' or 'median'": init in ("best", "svd", "median"),
        f"tol={tol!r}; expected a number above 0 and below 1, for example 1e-7": 0 < tol < 1,
        f"max_iter={max_iter!r}; expected at least 1": max_iter >= 1,
        f"threads={threads!r}; expected at least 1": threads >= 1,
    }
    for said, good in fine.items():
        if not good:
            msg = f"got {said}"
            raise ValueError(msg)
