"""The mathematics of a graph's factors: degrees and scales, connected components, warm-started solves, participation, alignment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.arrays import small_svd

if TYPE_CHECKING:
    from streamsvd.pipelines.graph.store import EdgeStore


@dataclass(frozen=True, eq=False)
class Scaling:
    """``N = diag(left) A diag(right)``, with zeros for users and items without edges.

    Attributes
    ----------
    left, right : array (m,), (n,), float64: ``1 / sqrt(degree + tau)``, or ones
    t : float; tau = t x mean degree of the side's nodes that have edges
    tau : (users, items)
    """

    left: np.ndarray
    right: np.ndarray
    t: float
    tau: tuple[float, float]


def scaling(store: EdgeStore, t: float, /, *, normalise: str = "sym") -> Scaling:
    """Return how edges are scaled: by the roots of regularised degrees (Qin and Rohe 2013: tau of the order of the mean degree)."""
    sides, taus = [], []
    for degree in store.degrees():
        there = degree > 0
        tau = t * float(degree[there].mean()) if there.any() else 0.0
        root = np.sqrt(np.where(there, degree + tau, 1.0))
        sides.append(np.where(there, 1.0 if normalise == "raw" else 1.0 / root, 0.0))
        taus.append(0.0 if normalise == "raw" else tau)
    return Scaling(sides[0], sides[1], t, (taus[0], taus[1]))


@dataclass(frozen=True, eq=False)
class Parts:
    """Connected components: a label for each user and item; ``sizes`` counts the nodes of each label, singletons included."""

    users: np.ndarray
    items: np.ndarray
    sizes: np.ndarray

    @property
    def giant(self) -> int:
        """Label of the largest component."""
        return int(np.argmax(self.sizes))

    @property
    def count(self) -> int:
        """Components that have edges."""
        return int((self.sizes > 1).sum())


def components(store: EdgeStore, /) -> Parts:
    """Return the connected components of the graph. Cost: one traversal of the edges and a copy of them."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    m, n = store.shape
    indptr = np.append(store.indptr, np.full(n, store.indptr[-1]))
    square = csr_array((np.ones(store.edges, np.int8), store.indices + np.int64(m), indptr), shape=(m + n, m + n))
    count, labels = connected_components(square, directed=False)
    return Parts(labels[:m], labels[m:], np.bincount(labels, minlength=count))


class Deflated:
    """``N - P Q'`` for the trivial vectors of an unregularised graph, in closed form and never formed.

    On each component with edges, sqrt(user degree) and sqrt(item degree), normalised, are singular vectors of sigma = 1 (Chung 1997,
    section 1.3); P (m, c) and Q (n, c) are sparse, with disjoint columns.
    """

    def __init__(self, base: Any, P: Any, Q: Any) -> None:
        self.base, self.P, self.Q = base, P, Q
        self.shape, self.dtype = base.shape, base.dtype

    def matmat(self, X: np.ndarray) -> np.ndarray:
        """Return ``(N - P Q') X``."""
        return self.base.matmat(X) - self.P @ (self.Q.T @ X)

    def rmatmat(self, Y: np.ndarray) -> np.ndarray:
        """Return ``(N - P Q')' Y``."""
        return self.base.rmatmat(Y) - self.Q @ (self.P.T @ Y)

    @property
    def T(self) -> Deflated:
        """The transpose."""
        return Deflated(self.base.T, self.Q, self.P)


def deflated(base: Any, scale: Scaling, parts: Parts, /) -> Deflated:
    """Return the operator without its trivial vectors."""
    from scipy.sparse import csr_array

    sides = []
    for inverse, labels in ((scale.left, parts.users), (scale.right, parts.items)):
        root = np.divide(1.0, inverse, out=np.zeros_like(inverse), where=inverse > 0)
        norm = np.sqrt(np.bincount(labels, root * root, minlength=parts.sizes.size))[labels]
        values = np.divide(root, norm, out=np.zeros_like(root), where=norm > 0).astype(base.dtype)
        there = np.flatnonzero(parts.sizes > 1)
        column = np.full(parts.sizes.size, -1)
        column[there] = np.arange(there.size)
        rows = np.flatnonzero(values > 0)
        sides.append(csr_array((values[rows], (rows, column[labels[rows]])), shape=(labels.size, there.size)))
    return Deflated(base, sides[0], sides[1])


def participation(v: np.ndarray, /) -> np.ndarray:
    """Return ``1 / sum v^4`` of each column, how many rows carry a unit vector: array (k,), float64 (0 for a column of zeros)."""
    fourth = np.zeros(v.shape[1])
    for start in range(0, v.shape[0], 8192):
        part = np.square(v[start : start + 8192])
        fourth += np.square(part, out=part).sum(axis=0, dtype=np.float64)
    return np.divide(1.0, fourth, out=np.zeros_like(fourth), where=fourth > 0)


def alignment(v: np.ndarray, before: np.ndarray, /) -> tuple[np.ndarray, float]:
    """Return the rotation R (k, k) that minimises ``||v R - before||_F`` (Schönemann 1966, eq. 1.9), and that norm / sqrt(k).

    Both have orthonormal columns, so the norm is ``sqrt(2 k - 2 tr D)`` with D the singular values of ``v' before``.
    """
    P, d, Qt = small_svd((v.T @ before).astype(np.float64))
    return P @ Qt, float(np.sqrt(max(0.0, 2.0 - 2.0 * d.mean())))


def grown(v: np.ndarray, rows: int, /) -> np.ndarray:
    """Return v with zero rows appended for items that came later."""
    more = rows - v.shape[0]
    return v if more == 0 else np.concatenate([v, np.zeros((more, v.shape[1]), v.dtype)])
