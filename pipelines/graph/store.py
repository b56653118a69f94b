"""The edge store: the truth about a bipartite graph, from which factors are made. Batches go in whole or not at all.

Edges are kept as rows of users with sorted items (CSR): 8 bytes an edge and 8 a user. Ids get their row when they first come, and keep it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.pipelines.graph.batch import Batch, as_batch
from streamsvd.pipelines.graph.settings import DUPLICATES

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_LIMIT = np.iinfo(np.int32).max


@dataclass(frozen=True, eq=False)
class EdgeStore:
    """A bipartite graph: user u has the items ``indices[indptr[u]:indptr[u+1]]``, ascending, each with its positive weight.

    Attributes
    ----------
    users, items : Arrow array (m,), (n,), int64 or string; the id of each row
    indptr : array (m + 1,), int64
    indices : array (edges,), int32
    weights : array (edges,), float32
    batches : dict, digest of each batch id that went in
    operations : int, rows of all batches
    """

    users: Any = None
    items: Any = None
    indptr: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    indices: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    weights: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    batches: dict[str, str] = field(default_factory=dict)
    operations: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Users and items that ever came."""
        return self.indptr.size - 1, 0 if self.items is None else len(self.items)

    @property
    def edges(self) -> int:
        """Edges that are there."""
        return self.indices.size

    @property
    def nbytes(self) -> int:
        """Bytes of the edges and the ids."""
        ids = sum(0 if side is None else side.nbytes for side in (self.users, self.items))
        return self.indptr.nbytes + self.indices.nbytes + self.weights.nbytes + ids

    @cached_property
    def _degrees(self) -> tuple[np.ndarray, np.ndarray]:
        running = np.concatenate([[0.0], np.cumsum(self.weights, dtype=np.float64)])
        sums = np.where(np.diff(self.indptr) > 0, np.diff(running[self.indptr]), 0.0)
        return sums, np.bincount(self.indices, self.weights, minlength=self.shape[1])

    def degrees(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the sums of the weights of each user (m,) and each item (n,), float64."""
        return self._degrees

    def matrix(self) -> Any:
        """Return the weights as a SciPy CSR array (m, n), float32, which shares memory with the store."""
        from scipy.sparse import csr_array

        A = csr_array(self.shape, dtype=np.float32)
        A.indptr, A.indices, A.data = _small(self.indptr), self.indices, self.weights
        A.has_sorted_indices = A.has_canonical_format = True
        return A

    def user_rows(self, ids: Any, /) -> np.ndarray:
        """Return the row of each user id, -1 where it never came: array of int64."""
        return rows_of(self.users, ids)

    def item_rows(self, ids: Any, /) -> np.ndarray:
        """Return the row of each item id, -1 where it never came: array of int64."""
        return rows_of(self.items, ids)


def update(store: EdgeStore, edges: Any, /, *, duplicates: str = "error", batch_id: str | None = None) -> EdgeStore:
    """Return the store after a batch; the old store is unchanged, also where the batch is refused.

    Parameters
    ----------
    edges : Arrow table, record batch, Polars or pandas frame, or a dict of columns
        ``user``, ``item`` (integers or strings), and optionally ``weight`` (> 0), ``op`` ("add" or "remove", 1 or -1) and
        ``timestamp``, by which the operations of the batch are ordered (ties: as they came).
    duplicates : str
        An edge that is there already: "error", "sum" of both weights, their "max", or "ignore" the new one.
        A removal takes the whole edge out, whatever its weight.
    batch_id : str, optional
        A batch whose id went in before is left out (the same store is returned); another content under that id is refused.

    Raises
    ------
    ValueError, TypeError
        Null ids, weights that are not positive and finite, an unknown op, a removal of an edge that is not there, a duplicate
        edge under "error", other types of ids than before. The message names the batch and its first such row.

    Notes
    -----
    Cost: ``O(b log b)`` for a batch of b rows, one copy of the edges, and one hash of all ids.
    """
    batch = as_batch(edges, "" if batch_id is None else batch_id, store)
    digest = _digest(batch) if batch_id is not None else ""
    if batch_id is not None and batch_id in store.batches:
        if store.batches[batch_id] == digest:
            return store
        cure = "give each batch an id of its own (of a file: its name and the number of a row, so rename the file, or cut it as before)"
        msg = f"{batch.where} went in before with other rows; {cure}"
        raise ValueError(msg)
    users, u = _grown(store.users, batch.users, batch)
    items, i = _grown(store.items, batch.items, batch)
    seen = {**store.batches, batch_id: digest} if batch_id is not None else store.batches
    grown = replace(store, users=users, items=items, batches=seen, operations=store.operations + batch.size)
    return _merged(grown, store, u, i, batch, DUPLICATES.index(duplicates))


def rows_of(known: Any, ids: Any, /) -> np.ndarray:
    """Return the position of each id among the known ones, -1 where there is none; ids of the other kind are in no graph."""
    import pyarrow as pa
    import pyarrow.compute as pc

    ids = ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(ids)
    if known is None or len(ids) == 0:
        return np.full(len(ids), -1, np.int64)
    if ids.type != known.type:
        integers = pa.types.is_integer(ids.type) and pa.types.is_integer(known.type)
        strings = pa.types.is_large_string(ids.type) and pa.types.is_string(known.type)
        if not integers and not strings:
            return np.full(len(ids), -1, np.int64)
        ids = ids.cast(known.type)
    found = pc.index_in(ids, value_set=known)  # pyright: ignore[reportAttributeAccessIssue]
    return np.asarray(pc.fill_null(found, -1)).astype(np.int64)


def _grown(known: Any, ids: pa.Array, batch: Batch) -> tuple[Any, np.ndarray]:
    """Return the ids with those that are new appended in the order in which they came, and the row of each."""
    import pyarrow as pa

    rows = rows_of(known, ids)
    new = np.flatnonzero((rows < 0) & ~batch.remove)
    if new.size:
        fresh = ids.take(pa.array(new)).unique()
        known = fresh if known is None else pa.concat_arrays([known, fresh])
        rows = rows_of(known, ids)
    if known is not None and len(known) > ROWS_LIMIT:
        msg = f"{batch.where} brings the graph to {len(known)} ids on one side; at most {ROWS_LIMIT} are possible"
        raise ValueError(msg)
    return known if known is not None else ids.slice(0, 0), rows


def _merged(store: EdgeStore, old: EdgeStore, u: np.ndarray, i: np.ndarray, batch: Batch, policy: int) -> EdgeStore:
    from streamsvd.pipelines.graph import store_numba as loops

    stray = np.flatnonzero((u < 0) | (i < 0))
    if stray.size:
        raise _refusal(batch, int(stray[0]), loops.UNKNOWN)
    key = (u << 32) | i
    order = np.argsort(key, kind="stable") if batch.time is None else np.lexsort((batch.time, key))
    starts = np.flatnonzero(np.concatenate([[True], key[order][1:] != key[order][:-1]])) if key.size else key
    changed = key[order][starts]
    users, items = changed >> 32, (changed & 0xFFFFFFFF).astype(np.int32)
    at = np.empty(users.size, np.int64)
    loops.find_edges(old.indptr, old.indices, users, items, at)
    before = at >= 0
    there, value = before.copy(), np.zeros(at.size, np.float32)
    value[before] = old.weights[at[before]]
    ends = np.append(starts, key.size)
    bad, code = loops.apply_ops(ends, order, batch.remove, batch.weight, policy, there, value)
    if bad >= 0:
        raise _refusal(batch, int(bad), code)
    if not np.isfinite(value).all():
        msg = f"{batch.where}: the summed weight of an edge exceeds float32; scale the weights down"
        raise ValueError(msg)
    size = old.edges + int(there.sum()) - int(before.sum())
    indptr = np.zeros(0 if store.users is None else len(store.users) + 1, np.int64)
    indices, weights = np.empty(size, np.int32), np.empty(size, np.float32)
    loops.merge(old.indptr, old.indices, old.weights, users, items, there, value, indptr, indices, weights)
    return replace(store, indptr=indptr, indices=indices, weights=weights)


def _refusal(batch: Batch, row: int, code: int) -> ValueError:
    edge = f"the edge ({batch.users[row].as_py()!r}, {batch.items[row].as_py()!r})"
    if code == 1:
        return ValueError(f"{batch.where}, row {row}: removes {edge}, which is not there; leave the row out")
    cure = "take it out, or write duplicates='sum', duplicates='max' or duplicates='ignore'"
    return ValueError(f"{batch.where}, row {row}: adds {edge}, which is there already; {cure}")


def _digest(batch: Batch) -> str:
    found = hashlib.blake2b(digest_size=8)
    for ids in (batch.users, batch.items):
        for buffer in ids.filter(np.ones(len(ids), bool)).buffers():  # a slice would show the whole of its parent
            found.update(b"" if buffer is None else buffer)
    found.update(batch.remove.tobytes())
    found.update(batch.weight.tobytes())
    return found.hexdigest()


def _small(indptr: np.ndarray) -> np.ndarray:
    return indptr.astype(np.int32) if indptr[-1] <= ROWS_LIMIT else indptr
