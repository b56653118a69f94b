"""What the estimates are compared with: OMP, Kronecker-OMP, least squares on the true support, and KSBL with one sweep. NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from streamsvd.arrays import to_numpy
from streamsvd.kronecker import multi_product


def omp(
    dictionaries: Sequence[np.ndarray],
    y: np.ndarray,
    /,
    *,
    nonzeros: int | None = None,
    noise_variance: float | None = None,
) -> np.ndarray:
    """Orthogonal matching pursuit on the Kronecker dictionary, which is not formed (Pati, Rezaiifar and Krishnaprasad 1993).

    Parameters
    ----------
    dictionaries : matrices (M_i, N_i)
    y : array (M1, ..., Md)
    nonzeros : int, optional
        Stop after so many.
    noise_variance : float, optional
        Stop where the residual is that of noise, ``||r||^2 <= M sigma^2``.

    Returns
    -------
    x : array (N1, ..., Nd)

    Raises
    ------
    ValueError
        If neither way to stop is given.

    Notes
    -----
    Cost of a step: the mode products ``O(N sum M_i)`` and one Gram-Schmidt column, ``O(M k)``.
    """
    if nonzeros is None and noise_variance is None:
        msg = "omp has no rule to stop; give nonzeros=27, or noise_variance=..."
        raise ValueError(msg)
    y, adjoint = to_numpy(y), [to_numpy(H).conj().T for H in dictionaries]
    shape, widths = y.shape, tuple(H.shape[1] for H in dictionaries)
    size = np.sqrt(prod_outer([np.sum(np.abs(H) ** 2, axis=1) for H in adjoint]))
    limit = min(y.size, nonzeros if nonzeros is not None else y.size)
    least = 0.0 if noise_variance is None else y.size * noise_variance
    places: list[tuple[int, ...]] = []
    columns = np.zeros((y.size, 0), dtype=np.result_type(y, *adjoint))
    residual = y.reshape(-1)
    while len(places) < limit and float(np.sum(np.abs(residual) ** 2)) > least:
        match = np.abs(multi_product(residual.reshape(shape), adjoint)) / size
        for place in places:
            match[place] = 0.0
        place = tuple(int(i) for i in np.unravel_index(int(np.argmax(match)), widths))
        column = prod_outer([H[i].conj() for H, i in zip(adjoint, place, strict=True)]).reshape(-1)
        for _ in range(2):
            column = column - columns @ (columns.conj().T @ column)
        norm = float(np.linalg.norm(column))
        if norm <= 1e-10 * size[place]:
            break
        places.append(place)
        columns = np.column_stack([columns, column / norm])
        residual = residual - columns[:, -1] * np.vdot(columns[:, -1], residual)
    return _fitted(dictionaries, y, places, widths)


def kronecker_omp(
    dictionaries: Sequence[np.ndarray], y: np.ndarray, /, *, sparsity: Sequence[int], tol: float = 1e-12
) -> np.ndarray:
    """Kronecker-OMP: the support is a product of supports, which grow by the best match (Caiafa and Cichocki 2013).

    Parameters
    ----------
    sparsity : int for each mode
        How many columns of each dictionary are used. The true ones are the fairest; larger ones fit noise.
    tol : float
        Also stop where the residual is below this share of y.

    Returns
    -------
    x : array (N1, ..., Nd)
    """
    H = [to_numpy(D) for D in dictionaries]
    y = to_numpy(y)
    chosen: list[list[int]] = [[] for _ in H]
    residual, x = y, np.zeros(tuple(D.shape[1] for D in H), dtype=np.result_type(y, *H))
    sizes = np.sqrt(prod_outer([np.sum(np.abs(D) ** 2, axis=0) for D in H]))
    while any(len(c) < s for c, s in zip(chosen, sparsity, strict=True)) and np.linalg.norm(
        residual
    ) > tol * np.linalg.norm(y):
        match = np.abs(multi_product(residual, [D.conj().T for D in H])) / sizes
        full = [len(c) >= s for c, s in zip(chosen, sparsity, strict=True)]
        # Only where something new is gained: a full mode keeps to its columns.
        for mode, (c, done) in enumerate(zip(chosen, full, strict=True)):
            if done:
                match[_outside(match.shape, mode, c)] = -1.0
        match[np.ix_(*chosen)] = -1.0
        best = np.unravel_index(int(np.argmax(match)), match.shape)
        for c, i, done in zip(chosen, best, full, strict=True):
            if not done and int(i) not in c:
                c.append(int(i))
        parts = [D[:, c] for D, c in zip(H, chosen, strict=True)]
        core = multi_product(y, [np.linalg.pinv(P) for P in parts])
        x = np.zeros_like(x)
        x[np.ix_(*chosen)] = core
        residual = y - multi_product(core, parts)
    return x


def oracle_least_squares(dictionaries: Sequence[np.ndarray], y: np.ndarray, truth: np.ndarray, /) -> np.ndarray:
    """Least squares on the true support (each mode's, for a product of supports): what no estimator without a prior can beat on average."""
    on = [np.unique(index) for index in np.nonzero(to_numpy(truth))]
    parts = [to_numpy(H)[:, index] for H, index in zip(dictionaries, on, strict=True)]
    x = np.zeros(truth.shape, dtype=np.result_type(to_numpy(y), *parts))
    x[np.ix_(*on)] = multi_product(to_numpy(y), [np.linalg.pinv(P) for P in parts])
    return x


def ksbl(dictionaries: Sequence[Any], y: Any, /, *, noise_variance: float, **options: Any) -> np.ndarray:
    """SBL with one sweep over the factors in each step (Chang and Su 2021); the mean as an array (N1, ..., Nd)."""
    from streamsvd.pipelines.channel.model import KronSBL

    found = KronSBL(dictionaries, method="am", bound="sweep", **options).fit(y, noise_variance=noise_variance)
    return to_numpy(found.mean)


def prod_outer(vectors: Sequence[np.ndarray], /) -> np.ndarray:
    """Return the outer product of vectors as a tensor."""
    out = np.ones(())
    for v in vectors:
        out = np.multiply.outer(out, v)
    return out


def _fitted(
    dictionaries: Sequence[np.ndarray], y: np.ndarray, places: list[tuple[int, ...]], widths: tuple[int, ...]
) -> np.ndarray:
    H = [to_numpy(D) for D in dictionaries]
    x = np.zeros(widths, dtype=np.result_type(y, *H))
    if places:
        A = np.column_stack(
            [prod_outer([D[:, i] for D, i in zip(H, place, strict=True)]).reshape(-1) for place in places]
        )
        values = np.linalg.lstsq(A, y.reshape(-1), rcond=None)[0]
        for place, value in zip(places, values, strict=True):
            x[place] = value
    return x


def _outside(shape: tuple[int, ...], mode: int, kept: list[int]) -> tuple[Any, ...]:
    others = np.setdiff1d(np.arange(shape[mode]), kept)
    return (*(slice(None),) * mode, others)
