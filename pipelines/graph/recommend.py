"""Training-free recommendation from factors: an ideal low-pass filter of histories, a block of users at a time.

The score of a history a (one row, 0/1 or weights) is ``a (D + tau)^-1/2 V V' (D + tau)^1/2`` (the ideal low-pass filter of GF-CF: Shen
et al. 2021, eq. 9, without its linear term; tau regularises the degrees). It depends on the span of V alone, and no user factor enters:
a user who was never seen is served from the history.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamsvd.pipelines.graph.factors import GraphFactors

BLOCK_BYTES = 1 << 24


@dataclass(frozen=True, eq=False)
class Histories:
    """What users did, by rows of the factors' items: user r has ``items[indptr[r]:indptr[r+1]]``, ascending.

    Attributes
    ----------
    indptr : array (b + 1,), int64
    items : array (h,), int32
    weights : array (h,), float32
    """

    indptr: np.ndarray
    items: np.ndarray
    weights: np.ndarray

    @property
    def users(self) -> int:
        """Number of users."""
        return self.indptr.size - 1

    def matrix(self, items: int) -> Any:
        """Return the histories as a SciPy CSR array (b, items)."""
        from scipy.sparse import csr_array

        return csr_array((self.weights, self.items, self.indptr), shape=(self.users, items))


def histories(indptr: np.ndarray, items: np.ndarray, weights: np.ndarray | None, limit: int, /) -> Histories:
    """Return histories without unknown items (rows outside 0 .. limit - 1) and without repetitions (the last one counts)."""
    from scipy.sparse import coo_array

    rows = np.repeat(np.arange(indptr.size - 1), np.diff(indptr))
    keep = (items >= 0) & (items < limit)
    values = np.ones(items.size, np.float32) if weights is None else weights.astype(np.float32)
    rows, items, values = rows[keep], items[keep].astype(np.int64), values[keep]
    key = rows * limit + items
    order = np.argsort(key, kind="stable")
    last = order[np.append(key[order][1:] != key[order][:-1], True)] if key.size else order
    A = coo_array((values[last], (rows[last], items[last])), shape=(indptr.size - 1, limit)).tocsr()
    A.sort_indices()
    return Histories(A.indptr.astype(np.int64), A.indices.astype(np.int32), A.data)


def from_ids(given: Any, factors: GraphFactors, /) -> tuple[Any, Histories]:
    """Return the users, in their order, and their histories by rows of the factors' items, from user -> items, or columns user and item."""
    import pyarrow as pa

    from streamsvd.pipelines.graph.batch import as_table, ids_of
    from streamsvd.pipelines.graph.store import rows_of

    if isinstance(given, Mapping) and not {"user", "item"} <= given.keys():
        lists = [list(items) for items in given.values()]
        indptr = np.concatenate([[0], np.cumsum([len(items) for items in lists], dtype=np.int64)])
        try:
            users, flat = pa.array(list(given)), pa.array([item for items in lists for item in items])
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            msg = f"histories mix types of ids ({error}); give all users, and all items, as integers or as strings"
            raise TypeError(msg) from error
        return users, histories(indptr, rows_of(factors.items, flat), None, len(factors.items))
    table = as_table(given, "histories")
    ids = ids_of(table.column("user"), "user", "histories")
    users = ids.unique()
    order = np.argsort(rows_of(users, ids), kind="stable")
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows_of(users, ids), minlength=len(users)))])
    weights = np.asarray(table.column("weight"))[order] if "weight" in table.column_names else None
    known = ids_of(table.column("item"), "item", "histories")
    if len(known) and known.type != factors.items.type:
        msg = f"histories: the item ids are of type {known.type}, and those of the graph are {factors.items.type}; cast them"
        raise TypeError(msg)
    items = rows_of(factors.items, known)[order]
    return users, histories(indptr, items, weights, len(factors.items))


def filter_scores(
    factors: GraphFactors, given: Histories, /, *, k: int, exclude_seen: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best k items of each history.

    Returns
    -------
    items : array (b, k), int32, rows of the factors' items, best first; -1 where fewer than k are left, or nothing is known
    scores : array (b, k), float32

    Notes
    -----
    Cost: ``b n r`` multiply-adds at rank r and one look at each of the b n scores, of which a block of 16 MB exists at a time.
    """
    scale = factors.item_scale
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
    into = (factors.v * inverse[:, None]).astype(np.float32)
    out_of = np.ascontiguousarray((factors.v * scale[:, None]).astype(np.float32).T)
    barred = np.flatnonzero(scale == 0).astype(np.int32)
    coordinates = given.matrix(factors.v.shape[0]) @ into
    items, scores = best(coordinates, out_of, given if exclude_seen else None, barred, k)
    # A history without known items has score 0 everywhere, which ranks nothing.
    unknown = (
        np.bincount(np.repeat(np.arange(given.users), np.diff(given.indptr)), scale[given.items] > 0, given.users) == 0
    )
    items[unknown], scores[unknown] = -1, -np.inf
    return items, scores


def best(
    left: np.ndarray, right: np.ndarray, seen: Histories | None, barred: np.ndarray, k: int, /
) -> tuple[np.ndarray, np.ndarray]:
    """Return columns and values of the k largest entries of each row of ``left @ right``, never formed as a whole.

    Parameters
    ----------
    left, right : array (b, r), (r, n), float32
    seen : Histories or None
        Columns of each row that are left out.
    barred : array, int32
        Columns that are left out of all rows.
    """
    from streamsvd.pipelines.graph import topk_numba

    b, n = left.shape[0], right.shape[1]
    columns, values = np.empty((b, k), np.int32), np.empty((b, k), np.float32)
    blocks = list(_blocks(b, n))
    space = np.empty(
        (blocks[0].stop if blocks else 0, n), np.float32
    )  # new pages for each block would cost as much as the product
    for rows in blocks:
        scores = np.matmul(left[rows], right, out=space[: rows.stop - rows.start])
        none = np.zeros(scores.shape[0] + 1, np.int64)
        ptr = none if seen is None else seen.indptr[rows.start : rows.stop + 1]
        topk_numba.best_of_rows(
            scores, ptr, barred if seen is None else seen.items, barred, columns[rows], values[rows]
        )
    return columns, values


def _blocks(b: int, n: int) -> Iterator[slice]:
    step = max(1, min(2048, BLOCK_BYTES // (4 * max(n, 1))))
    return (slice(start, min(start + step, b)) for start in range(0, b, step))


def as_arrow(users: Any, items: Any, found: np.ndarray, scores: np.ndarray, metadata: dict[str, str], /) -> Any:
    """Return recommendations as an Arrow table user, item, score: users in their order, items best first."""
    import pyarrow as pa

    rows, places = np.nonzero(found >= 0)
    columns = [users.take(pa.array(rows)), items.take(pa.array(found[rows, places])), pa.array(scores[rows, places])]
    return pa.table(columns, names=["user", "item", "score"]).replace_schema_metadata(metadata)
