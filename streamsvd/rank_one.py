"""The best rank-one approximation of a tensor, and so the nearest Kronecker product.

HOSVD start, then power iteration, which may be warm-started; batched, real and complex.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from streamsvd.arrays import Array, dtype_name, namespace, one_thread

TINY = 1e-300
SQUARINGS = 8


@dataclass(frozen=True, eq=False)
class RankOne:
    """``weight v1 (x) v2 (x) ...``: ``weight`` (...) >= 0, unit vectors (..., n_i), and how many sweeps were made."""

    weight: Array
    vectors: tuple[Array, ...]
    sweeps: int


def outer(vectors: Sequence[Array], /) -> Array:
    """Return the tensor ``v1 (x) v2 (x) ...``: vectors (..., n_i) give (..., n1, n2, ...)."""
    xp = namespace(vectors[0])
    out = vectors[0]
    for i, v in enumerate(vectors[1:], start=1):
        out = out[..., None] * xp.reshape(v, (*v.shape[:-1], *(1,) * i, v.shape[-1]))
    return out


def best_rank_one(
    T: Array, /, *, modes: int, start: Sequence[Array] | None = None, tol: float = 1e-10, max_sweeps: int = 100
) -> RankOne:
    """Rank-one tensor nearest to T in the Frobenius norm (a stationary point; for matrices the global optimum).

    Parameters
    ----------
    T : array (..., n1, ..., nd), real or complex floating point; leading axes are a batch
    modes : int
        The last so many axes are the tensor.
    start : arrays (..., n_i), optional
        Where to begin, for example the vectors of the tensor before; by default the leading vectors of each unfolding (HOSVD).
    tol : float
        Stop where no weight of the batch has grown by more than this share.
    max_sweeps : int
        0 returns the start with its weight.

    Notes
    -----
    Higher-order power method (De Lathauwer, De Moor and Vandewalle 2000): the weight never falls. For a tensor without
    negative entries and such a start the vectors stay without negative entries. Cost of a sweep: two passes over T; of the HOSVD start
    ``sum_i n_i prod(n)``.
    """
    xp = namespace(T)
    if modes == 1:
        norm = _norm(xp, T)
        return RankOne(norm, (T / _safe(norm)[..., None],), 0)
    with one_thread():
        vectors = list(start) if start is not None else hosvd_start(T, modes=modes)
    weight = None
    for sweep in range(1, max_sweeps + 1):
        before = weight
        weight = sweep_once(T, vectors)
        if tol > 0 and before is not None and bool(xp.all(weight - before <= tol * weight)):
            return RankOne(weight, tuple(vectors), sweep)
    if weight is None:
        weight = xp.abs(xp.linalg.vecdot(vectors[0], contract(T, vectors, skip=0)))
    return RankOne(weight, tuple(vectors), max_sweeps)


def nearest_kronecker(A: Array, shapes: Sequence[tuple[int, int]], /) -> tuple[tuple[Array, ...], float]:
    """Best approximation of a matrix by ``A1 (x) A2 (x) ...`` in the Frobenius norm.

    Parameters
    ----------
    A : array (m1 m2 ..., n1 n2 ...)
    shapes : pairs (m_i, n_i), whose products are the shape of A

    Returns
    -------
    factors : arrays (m_i, n_i), all of one norm
    residual : float, ``||A - A1 (x) A2 (x) ...||_F``

    Raises
    ------
    ValueError
        If the shapes do not multiply to that of A.

    Notes
    -----
    The rearranged matrix is a tensor whose best rank-one approximation is sought (Van Loan and Pitsianis 1993): for two
    factors the global optimum, for more a stationary point from the HOSVD start. Cost: that of ``best_rank_one``.
    """
    xp, d = namespace(A), len(shapes)
    rows, columns = [m for m, _ in shapes], [n for _, n in shapes]
    if A.ndim != 2 or (prod(rows), prod(columns)) != tuple(A.shape):
        arrived = (
            f"got a matrix {tuple(A.shape)} and factors {list(shapes)}, which make ({prod(rows)}, {prod(columns)})"
        )
        msg = f"{arrived}; give shapes whose products are the shape of the matrix"
        raise ValueError(msg)
    order = [axis for i in range(d) for axis in (i, d + i)]
    T = xp.permute_dims(xp.reshape(A, (*rows, *columns)), tuple(order))
    T = xp.reshape(T, tuple(m * n for m, n in shapes))
    found = best_rank_one(T, modes=d)
    scale = found.weight ** (1 / d)
    factors = tuple(xp.reshape(v * scale, shape) for v, shape in zip(found.vectors, shapes, strict=True))
    rest = T - found.weight * outer(found.vectors)
    return factors, float(xp.sum(xp.abs(rest) ** 2)) ** 0.5


def sweep_once(T: Array, vectors: list[Array], /) -> Array:
    """Replace each vector in turn by the best one given the others (the list is changed); return the weight after the last."""
    xp = namespace(T)
    weight: Array = None

    def unit(_: int, part: Array) -> Array:
        nonlocal weight
        weight = _norm(xp, part)
        return part / _safe(weight)[..., None]

    alternate(T, vectors, unit)
    return weight


def alternate(T: Array, vectors: list[Array], update: Callable[[int, Array], Array], /) -> None:
    """Set each ``vectors[i]`` in turn to ``update(i, T contracted with all the other vectors, conjugated)``; the list is changed.

    Cost: two passes over T (what the vectors before i contract is kept), whatever the number of modes.
    """
    xp, d = namespace(T), len(vectors)
    for i in range(d):
        part = T
        for v in vectors[:i:-1]:
            part = _last(xp, part, v)
        vectors[i] = update(i, part)
        T = _first(xp, T, vectors[i], d - i) if i < d - 1 else T


def contract(T: Array, vectors: Sequence[Array], /, *, skip: int) -> Array:
    """Contract all modes but ``skip`` with the conjugates of their vectors: array (..., n_skip)."""
    xp = namespace(T)
    for v in vectors[:skip:-1]:
        T = _last(xp, T, v)
    for j in range(skip):
        T = _first(xp, T, vectors[j], skip + 1 - j)
    return T


def truncated_rank_one(T: Array, /, *, modes: int, positive: bool = False) -> tuple[Array, tuple[Array, ...]]:
    """Rank-one tensor from one unfolding after the other (He and Joseph 2024, SVD-KroSBL): leading left vector, then the rest of it.

    Returns the weight (...) and unit vectors (..., n_i), in magnitudes for a real tensor without negative entries. Within a factor
    ``sqrt(modes)`` of the best error, in one pass. Cost: ``sum n_i^2 n_{i+1} .. n_d``.

    ``positive`` promises that no entry is negative: the vectors then come from squaring the Gram matrices, which cancels nothing, needs no
    eigensolver and leaves less than 1e-5 of the second vector where the first is 5 % stronger in power.
    """
    xp = namespace(T)
    vectors, lead = [], T.shape[: T.ndim - modes]
    with one_thread():
        for _ in range(modes - 1):
            rest = T.shape[len(lead) + 1 :]
            A = xp.reshape(T, (*lead, T.shape[len(lead)], prod(rest)))
            v = _perron(xp, A) if positive else _leading(xp, A)
            vectors.append(v)
            T = xp.reshape(_conj(xp, v)[..., None, :] @ A, (*lead, *rest))
    weight = _norm(xp, T)
    return weight, (*vectors, T / _safe(weight)[..., None])


def hosvd_start(T: Array, /, *, modes: int) -> list[Array]:
    """Leading left vectors of the unfoldings, as ``best_rank_one`` starts from them (Gram matrices and their eigenvectors)."""
    xp, lead = namespace(T), T.ndim - modes
    found = []
    for i in range(modes):
        axes = (*range(lead), lead + i, *(lead + j for j in range(modes) if j != i))
        n = T.shape[lead + i]
        A = xp.reshape(xp.permute_dims(T, axes), (*T.shape[:lead], n, prod(T.shape[lead:]) // max(n, 1)))
        found.append(_leading(xp, A))
    return found


def _leading(xp: Any, A: Array) -> Array:
    """Return the leading left singular vector, with a positive sum where A is real."""
    v = xp.linalg.eigh(A @ _conj(xp, A).mT)[1][..., :, -1]
    if _is_complex(v):
        return v
    total = xp.sum(v, axis=-1, keepdims=True)
    return xp.where(total < 0, -v, v)


def _perron(xp: Any, A: Array) -> Array:
    """Return the leading left singular vector of matrices without negative entries."""
    G = A @ A.mT
    for _ in range(2):
        # The largest entry is on the diagonal, where it can only grow: in four squarings to n^15 at most.
        G = G / _safe(xp.max(G, axis=(-2, -1)))[..., None, None]
        for _ in range(SQUARINGS // 2):
            G = G @ G
    v = xp.sum(G, axis=-1)
    return v / _safe(_norm(xp, v))[..., None]


def _last(xp: Any, T: Array, v: Array) -> Array:
    """Contract the last mode with the conjugate of v; leading axes of v are those of T."""
    v = _conj(xp, v)
    between = T.ndim - v.ndim
    shape = (*v.shape[:-1], prod(T.shape[v.ndim - 1 : -1]), v.shape[-1])
    out = xp.reshape(T, shape) @ v[..., :, None]
    return xp.reshape(out, (*v.shape[:-1], *T.shape[v.ndim - 1 : v.ndim - 1 + between]))


def _first(xp: Any, T: Array, v: Array, modes: int) -> Array:
    """Contract the first of the modes with the conjugate of v."""
    lead, rest = T.shape[: T.ndim - modes], T.shape[T.ndim - modes + 1 :]
    A = xp.reshape(T, (*lead, v.shape[-1], prod(rest)))
    return xp.reshape(_conj(xp, v)[..., None, :] @ A, (*lead, *rest))


def _norm(xp: Any, x: Array) -> Array:
    return xp.sqrt(xp.real(xp.linalg.vecdot(x, x)) if _is_complex(x) else xp.linalg.vecdot(x, x))


def _safe(x: Array) -> Array:
    """Make a norm fit to divide by: 0 / 0 becomes 0, and nothing else changes."""
    return x + TINY


def _conj(xp: Any, x: Array) -> Array:
    return xp.conj(x) if _is_complex(x) else x


def _is_complex(x: Array) -> bool:
    return x.dtype.kind == "c" if isinstance(x, np.ndarray) else dtype_name(x).startswith("complex")
