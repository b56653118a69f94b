"""How robust, and how many: the alpha and the rank of a robust SVD, chosen from the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from streamsvd.arrays import to_numpy
from streamsvd.dpd import mdpde_scale
from streamsvd.robust import robust_svd
from streamsvd.rowbatch import dense

if TYPE_CHECKING:
    from collections.abc import Sequence

SHARE = 0.1  # of the entries that are held out


class AlphaChoice(NamedTuple):
    """The alpha of the least score, with all alphas that were tried and their scores."""

    alpha: float
    alphas: np.ndarray
    scores: np.ndarray


class RankChoice(NamedTuple):
    """The rank that was chosen, and the mean loss of held-out entries for the ranks 0 .. max_rank."""

    rank: int
    losses: np.ndarray


def choose_alpha(X: Any, /, alphas: Sequence[float] | None = None, **options: Any) -> AlphaChoice:
    """Return the alpha with the best balance of robustness and efficiency for the first component.

    With ``u_1, v_1`` times the singular value at alpha = 1 taken for the truth, and sigma from the residuals there, the score is
    ``||u_alpha - u_1||^2 + ||v_alpha - v_1||^2 + (n + p) sigma^2 (1 + alpha^2 / (1 + 2 alpha))^(3/2)``: squared bias plus variance. Vectors
    are compared after their signs were aligned, without which the score jumps by the squared length of the vectors.

    Parameters
    ----------
    X : array (n, d), NaN marks what is missing
    alphas : sequence of float, optional
        By default 0, 0.1, ... 1.
    **options
        As for ``robust_svd``.

    Raises
    ------
    TypeError, ValueError
        As ``robust_svd`` does, and for no alphas.

    Notes
    -----
    Cost: one component for each alpha.

    References
    ----------
    Roy, Basu and Ghosh 2023, arXiv 2109.10680, section on the choice of alpha.
    """
    X = dense(X)
    tried = np.arange(11) / 10.0 if alphas is None else np.asarray(alphas, np.float64)
    if tried.size == 0:
        msg = "got no alphas; expected numbers from 0 to 1, for example [0.1, 0.3, 0.5]"
        raise ValueError(msg)
    n, d = X.shape
    u, v, s = _first(X, 1.0, options)
    host = to_numpy(X).astype(np.float64)
    sigma = float(np.nanmedian(np.abs(host - s * np.outer(u, v)))) / 0.6744897501960817
    scores = []
    for alpha in tried:
        a, b, size = _first(X, float(alpha), options)
        turn = -1.0 if (a @ u) + (b @ v) < 0 else 1.0
        bias = np.sum((turn * size * a - s * u) ** 2) + np.sum((turn * size * b - s * v) ** 2)
        scores.append(bias + (n + d) * sigma**2 * (1.0 + alpha * alpha / (1.0 + 2.0 * alpha)) ** 1.5)
    return AlphaChoice(float(tried[int(np.argmin(scores))]), tried, np.asarray(scores))


def choose_rank(
    X: Any, /, *, max_rank: int | None = None, alpha: float = 0.3, repeats: int = 3, seed: int = 0, **options: Any
) -> RankChoice:
    """Return the smallest rank that predicts held-out entries as well as the best one does.

    A tenth of the entries is hidden, ``robust_svd`` is fitted to the rest once, and each rank predicts them; the loss of a residual
    is ``1 - exp(-alpha e^2 / 2 sigma^2)`` with sigma from the residuals of the largest rank, so gross entries cost the same everywhere. The
    choice is the smallest rank whose mean loss exceeds the least one by at most one standard error of their paired difference.

    Parameters
    ----------
    X : array (n, d), NaN marks what is missing
    max_rank : int, optional
        By default 10, or less for a small matrix.
    alpha : float
    repeats : int
        How often a tenth is hidden.
    seed : int
    **options
        As for ``robust_svd``.

    Raises
    ------
    TypeError, ValueError
        As ``robust_svd`` does.

    Notes
    -----
    Cost: ``repeats`` robust decompositions of rank ``max_rank``. When not: rows or columns with fewer than about 10 entries a component.

    References
    ----------
    Wold 1978 (held-out entries); Breiman et al. 1984 (the one-standard-error rule).
    """
    X = to_numpy(dense(X))
    n, d = X.shape
    top = min(10, max(1, min(n, d) // 3)) if max_rank is None else max_rank
    if repeats < 1:
        msg = f"got repeats={repeats}; expected at least 1"
        raise ValueError(msg)
    rng = np.random.default_rng(seed)
    losses = np.concatenate([_losses(X, rng, top, alpha, options) for _ in range(repeats)], axis=1)
    mean = losses.mean(axis=1)
    best = int(np.argmin(mean))
    differ = losses - losses[best]
    error = differ.std(axis=1) / np.sqrt(max(1, losses.shape[1]))
    enough = np.flatnonzero(differ.mean(axis=1) <= error)
    return RankChoice(max(1, int(enough[0])), mean)


def _first(X: Any, alpha: float, options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, float]:
    f = robust_svd(X, 1, alpha=alpha, **options)
    assert f.u is not None
    return to_numpy(f.u)[:, 0].astype(np.float64), to_numpy(f.vt)[0].astype(np.float64), float(f.s[0])


def _losses(X: np.ndarray, rng: np.random.Generator, top: int, alpha: float, options: dict[str, Any]) -> np.ndarray:
    """Hide a tenth of the entries and return their losses for the ranks 0 .. top: array (top + 1, hidden)."""
    hidden = (rng.random(X.shape) < SHARE) & np.isfinite(X)
    f = robust_svd(np.where(hidden, X.dtype.type(np.nan), X), top, alpha=alpha, **options)
    assert f.u is not None
    # What was left out as a whole cannot be predicted and would only blur the comparison.
    hidden[f.info["rejected_rows"], :] = False
    hidden[:, f.info["rejected_columns"]] = False
    rows, columns = np.nonzero(hidden)
    parts = (f.u[rows] * f.s).astype(np.float64) * f.vt[:, columns].T
    fit = np.concatenate([np.zeros((rows.size, 1)), np.cumsum(parts, axis=1)], axis=1)
    E = X[rows, columns].astype(np.float64)[:, None] - fit
    sigma = mdpde_scale(X.astype(np.float64) - (f.u * f.s) @ f.vt, max(alpha, 0.1)) or 1.0
    return 1.0 - np.exp(-max(alpha, 0.1) / 2.0 * (E.T / sigma) ** 2)
