"""The SVD of one matrix whose rows lie on the ranks of torch.distributed: products are reduced, rows stay where they are."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from streamsvd import __version__
from streamsvd.arrays import Array, from_numpy, one_thread, signs, small_svd, to_numpy
from streamsvd.engines.link import Link, linked
from streamsvd.factors import Factors
from streamsvd.operators import Csr, Known, as_operator
from streamsvd.randomized import basis_of, certificate_of, check, gram


def svd_across_ranks(
    A: Any,
    rank: int,
    group: Any = None,
    /,
    *,
    passes: int | None = None,
    tol: float | None = None,
    seed: int = 0,
) -> Factors:
    """Return the leading factors of the matrix whose rows all ranks hold together; call it on every rank of the group.

    Parameters
    ----------
    A : matrix (n_p, d), the rows of this rank, perhaps none
        Whatever `streamsvd.svd` takes: users x items with its users cut into one part for each rank.
    rank : int
    group : torch.distributed.ProcessGroup, optional
        All ranks by default.
    passes, tol, seed
        As in `streamsvd.svd`, ``method="krylov"``.

    Returns
    -------
    factors : Factors
        The same bits on every rank (on one kind of machine), but for ``u`` (n_p, rank), the rows of this rank.

    Raises
    ------
    ValueError
        On all ranks alike: rows that `streamsvd.svd` refuses, other columns, another dtype or kind of matrix, other options or another
        version on one of them; the message names the rank.
    RuntimeError
        There is no process group.

    Notes
    -----
    One-sided block Lanczos on the columns, ``A'A X = sum_p A_p' (A_p X)``: each pass sends (d x block) numbers, and every rank keeps
    the basis. The end is a QR factorization of the tall ``A V`` by parts (TSQR; Demmel, Grigori, Hoemmen and Langou 2012), so small
    singular values keep their digits, and ``||A||_F^2 - ||A V||_F^2`` certifies the residual. For more rows than columns.
    """
    link = linked(group)
    op = Shared(_agreed(link, A, {"rank": str(rank), "passes": passes, "tol": tol, "seed": seed}), link)
    check(op, rank, None, passes, tol, "krylov")
    found, info = basis_of(op, rank, passes, tol, seed)
    V = np.frombuffer(link.broadcast(to_numpy(found).tobytes()), op.dtype).reshape(found.shape).copy()
    return _closed(op, from_numpy(V, like=found), rank, info)


def normalised_across_ranks(A: Any, group: Any = None, /, *, t: float = 0.5) -> Csr:
    """Return ``(D_u + tau_u)^-1/2 A (D_i + tau_i)^-1/2`` of a graph whose users are cut over the ranks, ready for `svd_across_ranks`.

    Parameters
    ----------
    A : sparse (users of this rank, items), weights of edges; a user lies on one rank alone
    group : torch.distributed.ProcessGroup, optional
    t : float
        ``tau = t x mean degree`` of the nodes of a side that have edges, in the whole graph (Qin and Rohe 2013), as in ``GraphSVD``.
    """
    import scipy.sparse as sp

    link, csr = linked(group), sp.csr_array(A)
    users = np.asarray(csr.sum(axis=1), np.float64).ravel()
    items = link.sum(np.asarray(csr.sum(axis=0), np.float64).ravel())
    seen = link.sum(np.array([users.sum(), np.count_nonzero(users)]))
    sides = (users, seen), (items, np.array([items.sum(), np.count_nonzero(items)]))
    return Csr(
        csr.astype(np.float32), *(_scales(degree, t * total / max(count, 1)) for degree, (total, count) in sides)
    )


class Shared(Known):
    """The rows of all ranks as one operator; what lies on the side of the rows is this rank's part."""

    def __init__(self, local: Any, link: Link, /) -> None:
        self.local, self.link, self.dtype = local, link, local.dtype
        rows = int(link.sum(np.array([float(local.shape[0])]))[0])
        self.shape = (rows, local.shape[1])

    @property
    def like(self) -> Array:  # noqa: D102
        return self.local.like

    def largest(self, X: Array, /) -> float:  # noqa: D102
        return self.link.largest(self.local.largest(X) if self.local.shape[0] else 0.0)

    def normal(self, X: Array, /, scale: float = 1.0, work: Any = None) -> tuple[Array, Any]:  # noqa: D102
        Z, work = self.local.normal(X, scale, work)
        return from_numpy(self.link.sum(to_numpy(Z).astype(np.float64)), like=Z, dtype=self.dtype), work

    def energy(self, scale: float, /) -> float | None:  # noqa: D102
        mine = self.local.energy(scale)
        return None if mine is None else float(self.link.sum(np.array([mine]))[0])

    def magnitude(self, scale: float, /) -> float:  # noqa: D102
        return float(self.link.sum(np.array([self.local.magnitude(scale)]))[0])


def _closed(op: Shared, V: Array, rank: int, info: dict[str, Any]) -> Factors:
    """Return the factors of ``A V V'``: R of all parts stacked is small, and its SVD is everybody's."""
    W, exact = op.local.coproject(V), True
    if W is None:
        W, exact = to_numpy(op.local.matmat(V)).astype(np.float64), False
    exponent = math.frexp(op.link.largest(float(np.abs(W).max(initial=0.0))))[1]
    with one_thread():
        inverse = np.linalg.inv(np.linalg.cholesky(gram(V)))
        Q, R = np.linalg.qr(np.ldexp(W, -exponent) @ inverse.T)
        parts = [np.frombuffer(data).reshape(-1, R.shape[1]) for data in op.link.gather(R.tobytes())]
        stack, turned = np.linalg.qr(np.concatenate(parts))
        Y, s, Xt = small_svd(turned)
    first = sum(part.shape[0] for part in parts[: op.link.rank])
    vt = to_numpy(V).astype(np.float64) @ (inverse.T @ Xt[:rank].T)
    turn = signs(vt.T)
    u = (Q @ (stack[first : first + R.shape[0]] @ Y[:, :rank])) * turn
    total = op.energy(2.0**-exponent) if exact else None
    return Factors(
        s=from_numpy(np.ldexp(s[:rank], exponent), like=V, dtype=op.dtype),
        vt=from_numpy(np.ascontiguousarray((vt * turn).T), like=V, dtype=op.dtype),
        mean=from_numpy(np.zeros(op.shape[1]), like=V),
        rows=op.shape[0],
        weight=float(op.shape[0]),
        norm=math.nan if total is None else math.ldexp(math.sqrt(total), exponent),
        certificate=None if total is None else certificate_of(op, total, s, exponent, op.dtype),
        center=False,
        weight_sq=float(op.shape[0]),
        u=from_numpy(u, like=V, dtype=op.dtype),
        info=info,
    )


def _scales(degree: np.ndarray, tau: float) -> np.ndarray:
    return np.where(degree > 0, 1.0 / np.sqrt(np.where(degree > 0, degree + tau, 1.0)), 0.0)


def _agreed(link: Link, A: Any, asked: dict[str, Any]) -> Any:
    """Return the operator of this rank's rows; what is wrong on one rank is raised on all, or the others would wait."""
    try:
        local = as_operator(A)
        mine = {"columns": local.shape[1], "dtype": local.dtype, "operator": type(local).__name__, **asked}
    except (TypeError, ValueError) as error:
        local, mine = None, {"wrong": str(error)}
    told = [json.loads(text) for text in link.gather(json.dumps({"version": __version__, **mine}).encode())]
    for rank, theirs in enumerate(told):
        if "wrong" in theirs:
            msg = f"rank {rank}: {theirs['wrong']}"
            raise ValueError(msg)
    for rank, theirs in enumerate(told):
        for what, first in told[0].items():
            if theirs[what] != first:
                cure = "pass the same on all ranks (each has all columns)"
                msg = f"rank {rank} has {what} {theirs[what]}, and rank 0 has {first}; {cure}"
                raise ValueError(msg)
    return local
