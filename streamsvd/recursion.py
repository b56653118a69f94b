"""The mathematics of ``Robust``: coefficients of rows, weighted moments of columns, and the model that follows from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from streamsvd.arrays import Array, from_numpy, namespace, signs, small_eigh, to_numpy
from streamsvd.dpd import mdpde_scale, medians
from streamsvd.factors import complete_rows
from streamsvd.kernels import dpd
from streamsvd.packed import pair_turn, pairs, regress, solved

RIDGE = 1e-10  # of the mean moment: it holds a column that is always covered where it was, and moves no fixed point
MEMORY = 0.98  # of the mean weight that rows are compared with
COVERED = 0.2  # a column whose mean weight is below this share of the expected one keeps its scale
POOR = 0.8  # of the usual weight: rows below it are fitted again from further off, in ...
BRINGS = 8  # ... so many steps
FLOOR = 0.05  # of the pooled scale at the start: no column is believed to be more exact


@dataclass(frozen=True)
class RobustOptions:
    """What a robust state was asked for (see ``Robust.empty``)."""

    columns: int
    rank: int
    alpha: float = 0.3
    decay: float = 1.0
    scale: str | float = "track"
    reject: float = 0.6
    start: int = 64

    def __post_init__(self) -> None:
        """Refuse options that are out of range."""
        number = not isinstance(self.scale, str)
        for name, expected, good in (
            ("columns", "at least 1", self.columns >= 1),
            ("rank", f"from 1 to {self.columns}, the number of columns", 1 <= self.rank <= self.columns),
            ("alpha", "from 0 (least squares) to 1 (most robust), for example 0.3", 0 <= self.alpha <= 1),
            ("decay", "above 0 and at most 1, for example 0.999", 0 < self.decay <= 1),
            ("scale", "'track' or a positive number", 0 < self.scale < np.inf if number else self.scale == "track"),  # type: ignore[operator]
            ("reject", "from 0 (keep every row) to below 1", 0 <= self.reject < 1),
            ("start", f"at least the rank, {self.rank}", self.start >= self.rank),
        ):
            if not good:
                msg = f"got {name}={getattr(self, name)!r}; expected {expected}"
                raise ValueError(msg)

    @property
    def held(self) -> int:
        """Rows that are held for the first fit: ``start``, in whole blocks."""
        return 16 * -(-self.start // 16)


@dataclass(frozen=True, eq=False)
class Core:
    """The folded part, in units of ``unit`` (a power of two): model, moments of the columns, scales, and what rows are compared with.

    ``moments`` (r (r + 1) / 2, d) are ``sum h W c_k c_l`` for k >= l, ``cross`` (r, d) ``sum h W x c_k``; ``sums`` (3, d) hold ``sum h W``,
    ``sum h W e^2`` and ``sum h`` over present entries; all float64. ``held``: the model stands until the pass ends.
    """

    vt: Array
    moments: Array
    cross: Array
    s2: Array
    sums: Array
    gram: np.ndarray
    last: np.ndarray
    floor: float
    usual: float
    unit: float
    rest: float = 0.0
    rows: int = 0
    rejected: int = 0
    weight: float = 0.0
    weight_sq: float = 0.0
    held: bool = False

    @cached_property
    def products(self) -> Array:
        """Products of rows of the model, as ``moments`` are ordered."""
        return pairs(self.vt)

    def rate(self, alpha: float, /) -> Array:
        """Return ``alpha / (2 sigma^2)`` of every column, in the dtype of the model, for rows in this state's units."""
        xp = namespace(self.vt)
        return xp.astype(alpha / 2.0 / self.s2, self.vt.dtype)

    def cleared(self) -> Core:
        """Return the core for another pass: the model and scales stay, and stand; all sums are zero."""
        zero = {name: getattr(self, name) * 0.0 for name in ("moments", "cross", "sums", "gram")}
        return replace(self, **zero, rest=0.0, rows=0, rejected=0, weight=0.0, weight_sq=0.0, held=True)


def begin(rows: Array, options: RobustOptions, /) -> Core:
    """Return a core whose model is a robust SVD of the first rows; nothing is folded yet."""
    from streamsvd.robust import robust_svd

    r, d, xp = options.rank, options.columns, namespace(rows)
    given = None if isinstance(options.scale, str) else float(options.scale)
    f = robust_svd(rows, min(r, *rows.shape), alpha=options.alpha, scale="iqr" if given is None else given, joint=True)
    E = rows - (f.u * f.s[None, :]) @ f.vt
    pooled = given or mdpde_scale(E, options.alpha)
    unit = _power_of_two(pooled or float(f.s[0]) / rows.shape[0] ** 0.5 or 1.0)
    if given is None:
        spread = medians(xp.abs(E), 0) / 0.6744897501960817 / unit
        floor = max((FLOOR * pooled / unit) ** 2, 1e-12)
    else:
        spread, floor = np.full(d, given / unit), 0.0
    vt = complete_rows(f.vt, r)
    zeros = from_numpy(np.zeros((r * (r + 1) // 2, d)), like=rows)
    s2 = from_numpy(np.maximum(spread**2, floor), like=rows)
    core = Core(
        vt, zeros, zeros[:r, :], s2, zeros[:1, :] + zeros[:1, :], np.zeros((r, r)), np.zeros(r), floor, 1.0, unit
    )
    core = replace(core, cross=from_numpy(np.zeros((r, d)), like=rows), sums=from_numpy(np.zeros((3, d)), like=rows))
    q = _row_weights(core, rows, fit_rows(core, rows, options), options)[1]
    return replace(core, usual=float(np.median(q)))


def fit_rows(core: Core, X: Array, options: RobustOptions, /) -> np.ndarray:
    """Return the robust coefficients (b, r) of rows in the model, in this state's units.

    Reweighted least squares from the better of two starts: plain least squares, or the coefficients of the row before; for rows that lie
    badly in both, from a third, in which sigma comes down from the scale of the row's own residuals.
    """
    xp, r = namespace(X), options.rank
    X = X / core.unit
    present = xp.isfinite(X)
    filled = xp.where(present, X, xp.zeros_like(X))
    rate, products = core.rate(options.alpha), core.products
    old = np.broadcast_to(core.last, (X.shape[0], r))
    C = regress(xp.astype(present, X.dtype), filled, core.vt, products, old)
    C, score = _better(core, X, C, old, options.alpha)
    seen = to_numpy(xp.sum(xp.astype(present, xp.float64), axis=1))
    poor = np.flatnonzero(score < POOR * core.usual * seen) if options.alpha > 0 else np.empty(0, np.intp)
    if poor.size:
        C = C.copy()
        some = [xp.take(part, from_numpy(poor, like=X), axis=0) for part in (X, filled)]
        C[poor] = _brought_in(core, some[0], some[1], C[poor], options.alpha)
    steps, tol = (100, 1e-11) if core.held else (4, 1e-4)
    for _ in range(steps if options.alpha > 0 else 0):
        before = C
        C = regress(dpd.weigh(X, _fit(C, core.vt), rate), filled, core.vt, products, C)
        if np.abs(C - before).max(initial=0.0) <= tol * np.abs(C).max(initial=0.0):
            break
    return C


def fold(core: Core, X: Array, w: np.ndarray, options: RobustOptions, /) -> Core:
    """Fold a block of rows: coefficients, weights, which rows are far off, and the moments; then the model, unless it is held."""
    xp, X = namespace(X), X * 1
    C = fit_rows(core, X, options)
    W, q, E, present = _row_weights(core, X, C, options)
    good, usual = _judged(q, core.usual, options.reject)
    # Rows that are left out age nothing, so a covered lens does not wear the model away.
    ages = np.cumsum(good[::-1])[::-1] - good
    h = np.where(good, w * options.decay**ages, 0.0)
    past = options.decay ** int(good.sum())
    f64 = xp.float64

    def summed(left: np.ndarray, right: Array) -> Array:
        return xp.astype(xp.astype(from_numpy(np.ascontiguousarray(left), like=right), right.dtype) @ right, f64)

    filled = xp.where(present, X / core.unit, xp.zeros_like(X))
    moments = past * core.moments + summed(pairs(C.T) * h, W)
    cross = past * core.cross + summed(C.T * h, W * filled)
    H = h[None, :]
    sums = past * core.sums + xp.concat(
        [summed(H, W), summed(H, W * E * E), summed(H, xp.astype(present, X.dtype))], axis=0
    )
    total = to_numpy(xp.sum(xp.astype(W, f64), axis=1))
    squares = to_numpy(xp.sum(xp.astype(W * E * E, f64), axis=1))
    rest = h @ (squares / np.maximum(total, 1e-300)) * options.columns
    core = replace(
        core,
        moments=moments,
        cross=cross,
        sums=sums,
        gram=past * core.gram + (C.T * h) @ C,
        last=C[np.flatnonzero(good)[-1]] if good.any() else core.last,
        usual=usual,
        rest=past * core.rest + float(rest),
        rows=core.rows + len(w),
        rejected=core.rejected + int((~good).sum()),
        weight=past * core.weight + float(h.sum()),
        weight_sq=past * past * core.weight_sq + float(h @ h),
    )
    return core if core.held else refreshed(core, options)


def refreshed(core: Core, options: RobustOptions, /) -> Core:
    """Solve for the model and the scales, and turn the model to orthonormal principal axes with all coefficients and moments."""
    xp, r = namespace(core.vt), options.rank
    diagonal = [k * (k + 3) // 2 for k in range(r)]
    mean = float(sum(float(xp.mean(core.moments[k, :])) for k in diagonal)) / r
    U = solved(core.moments, core.cross, xp.astype(core.vt, xp.float64), RIDGE * mean + 1e-290)
    K = to_numpy(U @ U.T)
    w, Y = small_eigh(K)
    root = np.sqrt(np.maximum(w, 1e-12 * w[0]))
    L, inverse = Y * root, Y.T / root[:, None]
    _, Z = small_eigh(L.T @ core.gram @ L)
    turn, back = Z.T @ L.T, Z.T @ inverse
    vt = from_numpy(np.ascontiguousarray(back), like=U) @ U
    moments = from_numpy(pair_turn(turn), like=U) @ core.moments
    return replace(
        core,
        vt=xp.astype(vt, core.vt.dtype),
        moments=moments,
        cross=from_numpy(np.ascontiguousarray(turn), like=U) @ core.cross,
        s2=core.s2 if not isinstance(options.scale, str) else _scales(core, options.alpha),
        gram=turn @ core.gram @ turn.T,
        last=turn @ core.last,
    )


def principal(core: Core, /) -> tuple[Array, np.ndarray, float]:
    """Return the model with fixed signs, its singular values, and the norm of fit and weighted residuals."""
    xp = namespace(core.vt)
    s = np.sqrt(np.maximum(np.diag(core.gram), 0.0))
    order = np.argsort(-s, kind="stable")
    vt = xp.stack([core.vt[int(k), :] for k in order])
    return vt * signs(vt)[:, None], core.unit * s[order], core.unit * float(np.sqrt(s @ s + core.rest))


def _better(core: Core, X: Array, one: np.ndarray, other: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each row, the coefficients of larger total weight, and that weight."""
    xp, rate = namespace(X), core.rate(alpha)
    a, b = (to_numpy(xp.sum(xp.astype(dpd.weigh(X, _fit(C, core.vt), rate), xp.float64), axis=1)) for C in (one, other))
    return np.where((b > a)[:, None], other, one), np.maximum(a, b)


def _brought_in(core: Core, X: Array, filled: Array, C: np.ndarray, alpha: float) -> np.ndarray:
    """Return better coefficients of rows whose weights all but vanish at those given.

    Where gross entries pull least squares away by many sigma, no weight is left from which to start.
    """
    xp, rate = namespace(X), core.rate(alpha)
    root = xp.sqrt(xp.astype(1.0 / core.s2, X.dtype))
    new = regress(xp.astype(xp.isfinite(X), X.dtype), filled, core.vt, core.products, C)
    for _ in range(BRINGS):
        fit = _fit(new, core.vt)
        own = np.maximum(medians(xp.abs(X - fit) * root, 1) / 0.6744897501960817, 1.0)
        by = xp.astype(from_numpy(1.0 / own, like=X), X.dtype)[:, None]
        new = regress(dpd.weigh(X * by, fit * by, rate), filled, core.vt, core.products, new)
    return _better(core, X, C, new, alpha)[0]


def _row_weights(core: Core, X: Array, C: np.ndarray, options: RobustOptions) -> tuple[Array, np.ndarray, Array, Array]:
    """Return the weights, their mean over the present entries of each row, the residuals and what is present."""
    xp = namespace(X)
    X = X / core.unit
    present, fit = xp.isfinite(X), _fit(C, core.vt)
    W = dpd.weigh(X, fit, core.rate(options.alpha))
    seen = to_numpy(xp.sum(xp.astype(present, xp.float64), axis=1))
    q = to_numpy(xp.sum(xp.astype(W, xp.float64), axis=1)) / np.maximum(seen, 1.0)
    return W, q, xp.where(W > 0, X - fit, xp.zeros_like(X)), present


def _judged(q: np.ndarray, usual: float, reject: float) -> tuple[np.ndarray, float]:
    """Tell which rows are not far off, one after the other, against a running mean of their weights."""
    good = np.ones(q.size, bool)
    for t, weight in enumerate(q):
        good[t] = weight >= reject * usual
        if good[t]:
            usual = MEMORY * usual + (1.0 - MEMORY) * float(weight)
    return good, usual


def _fit(C: np.ndarray, vt: Array) -> Array:
    return namespace(vt).astype(from_numpy(np.ascontiguousarray(C), like=vt), vt.dtype) @ vt


def _scales(core: Core, alpha: float) -> Array:
    """Return sigma^2 of every column by its estimating equation; a column that is mostly covered keeps what it had."""
    xp = namespace(core.s2)
    sw, swe, number = (core.sums[k, :] for k in range(3))
    least = 0.1 * number * (1.0 + alpha) ** -1.5
    share = sw - number * alpha / (1.0 + alpha) ** 1.5
    enough = sw > COVERED * number * (1.0 + alpha) ** -0.5
    found = swe / xp.where(enough, xp.where(share > least, share, least), xp.ones_like(share))
    found = xp.where(enough, found, core.s2)
    return xp.where(found > core.floor, found, xp.full_like(found, core.floor))


def _power_of_two(x: float) -> float:
    return 2.0 ** int(np.frexp(x)[1])
