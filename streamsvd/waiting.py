"""Rows that wait to be folded: checked, copied, and cut into blocks of a fixed number.

The number is fixed so that the result does not depend on how the stream was cut into batches: the same rows in the same order give the
same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from streamsvd.arrays import Array, device_of, from_numpy, is_sparse, namespace
from streamsvd.batch import check_finite
from streamsvd.kernels.rows import SMALL, copy_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streamsvd.options import Options


class Store:
    """Append-only rows. A position is claimed once, so the newest state appends in place and any other copies first."""

    __slots__ = ("claims", "data", "times", "weights")

    def __init__(self, like: Array, capacity: int, columns: int) -> None:
        xp = namespace(like)
        self.data = (
            xp.empty((capacity, columns), dtype=like.dtype, device=device_of(like))
            if xp is not np
            else np.empty((capacity, columns), like.dtype)
        )
        self.weights = np.ones(capacity)
        self.times = np.zeros(capacity)
        self.claims: dict[int, object] = {}


@dataclass(frozen=True, eq=False)
class Block:
    """Rows that are folded together: dense and row-major, or CSR, with a weight and a time each."""

    rows: Array
    weights: np.ndarray
    times: np.ndarray


class Piece(NamedTuple):
    """A run of waiting rows of one storage format: the first ``count`` rows of a store, or CSR rows."""

    rows: Store | Any
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]  (these hide the methods of a tuple)
    weights: np.ndarray | None = None
    times: np.ndarray | None = None

    def block(self) -> Block:
        """Return the run as a block, without a copy."""
        if isinstance(self.rows, Store):
            n = self.count
            return Block(self.rows.data[:n, :], self.rows.weights[:n], self.rows.times[:n])
        assert self.weights is not None and self.times is not None  # noqa: PT018
        return Block(self.rows, self.weights, self.times)


class Pending(NamedTuple):
    """Rows that wait to be folded."""

    pieces: tuple[Piece, ...] = ()
    count: int = 0  # pyright: ignore[reportIncompatibleMethodOverride]

    def last_time(self, before: float, /) -> float:
        """Return the newest time among the rows, or ``before``."""
        return float(self.pieces[-1].block().times[-1]) if self.pieces else before

    def push(self, X: Any, options: Options, size: int, /) -> Pending | None:
        """Append a few plain rows without ceremony, or return None where they need any: one row costs microseconds.

        Plain are NumPy rows of the store's dtype, without weights or times, that fit in the newest store and fill no block.
        """
        last = self.pieces[-1] if self.pieces else None
        if last is None or type(X) is not np.ndarray or type(last.rows) is not Store or X.ndim != 2 or options.special:
            return None
        store, n, (b, d) = last.rows, last.count, X.shape
        data, count = store.data, self.count + b
        if X.dtype != data.dtype or d != options.columns or not 0 < b * d <= SMALL or count >= size:
            return None
        token = object()
        if store.claims.setdefault(n, token) is not token:
            return None
        rows = data[n : n + b]
        rows[:] = X
        flat = rows.reshape(-1)
        with np.errstate(all="ignore"):
            if not math.isfinite(flat.dot(flat)):
                return None
        return Pending((*self.pieces[:-1], Piece(store, n + b)), count)

    def append(self, batch: Array, weights: np.ndarray, times: np.ndarray, capacity: int, /) -> Pending:
        """Return a pending with the rows added; the batch is copied, since the caller may reuse it."""
        b = batch.shape[0]
        if is_sparse(batch):
            piece = Piece(batch.copy(), b, weights.copy(), times.copy())
            return Pending((*self.pieces, piece), self.count + b)
        token = object()
        last = self.pieces[-1] if self.pieces else None
        if (
            last is not None
            and isinstance(last.rows, Store)
            and last.rows.claims.setdefault(last.count, token) is token
        ):
            store, n, kept = last.rows, last.count, self.pieces[:-1]
        else:
            store, n, kept = Store(batch, capacity, batch.shape[1]), 0, self.pieces
            if last is not None and isinstance(last.rows, Store):
                n, kept = last.count, self.pieces[:-1]
                old = last.block()
                store.data[:n, :] = old.rows
                store.weights[:n], store.times[:n] = old.weights, old.times
            store.claims[n] = token
        if not copy_rows(store.data[n : n + b, :], batch):
            raise _NotFinite
        store.weights[n : n + b], store.times[n : n + b] = weights, times
        return Pending((*kept, Piece(store, n + b)), self.count + b)

    def block(self) -> Block:
        """Return all waiting rows as one block: CSR if every piece is, else dense."""
        blocks = [piece.block() for piece in self.pieces]
        if len(blocks) == 1:
            return blocks[0]
        weights, times = np.concatenate([b.weights for b in blocks]), np.concatenate([b.times for b in blocks])
        if all(is_sparse(b.rows) for b in blocks):
            from scipy.sparse import vstack

            return Block(vstack([b.rows for b in blocks], format="csr"), weights, times)
        like = next(b.rows for b in blocks if not is_sparse(b.rows))
        dense = [from_numpy(b.rows.toarray(), like=like) if is_sparse(b.rows) else b.rows for b in blocks]
        return Block(namespace(like).concat(dense, axis=0), weights, times)

    def widened(self, extra: int, /) -> Pending:
        """Return the rows with ``extra`` zero columns at the end."""
        if not self.pieces:
            return self
        block = self.block()
        if is_sparse(block.rows):
            rows = block.rows.copy()
            rows.resize((rows.shape[0], rows.shape[1] + extra))
            return Pending((Piece(rows, self.count, block.weights, block.times),), self.count)
        wide = pad_columns(block.rows, extra)
        return Pending().append(
            wide, block.weights, block.times, max(wide.shape[0], self.pieces[-1].rows.data.shape[0])
        )


class _NotFinite(Exception):
    """Rows that were copied hold NaN or infinity; the batch that holds them is then searched for the message."""


def ingest(
    state: Any, X: Any, weights: Any, timestamps: Any, size: int, fold: Callable[[Any, Block, Array], Any], /
) -> tuple[Any, Pending, Array] | None:
    """Check a batch, fold all full blocks of ``size`` rows, and return the new core, the rows that wait and the prototype.

    None for an empty batch. ``fold(core, block, like)`` takes None for the core of a state without rows.
    """
    core = state.core
    if weights is None and timestamps is None:
        pushed = state.pending.push(X, state.options, size)
        if pushed is not None:
            return core, pushed, state.like
    last = state.pending.last_time(core.moments.time if core is not None else -math.inf)
    batch, w, t = state.options.accept(X, state.like, weights, timestamps, last)
    if batch.shape[0] == 0:
        return None
    like = prototype(batch) if state.like is None else state.like
    try:
        blocks, pending = split(state.pending, batch, w, t, size)
        for block in blocks:
            core = fold(core, block, like)
            if not math.isfinite(core.ledger.total):
                raise _NotFinite
    except _NotFinite:
        check_finite(batch)
        msg = "the energy of this batch is out of the range of float64; the state is unchanged: divide the rows by a constant"
        raise ValueError(msg) from None
    return core, pending, like


def split(
    pending: Pending, batch: Array, weights: np.ndarray, times: np.ndarray, size: int, /
) -> tuple[Iterator[Block], Pending]:
    """Cut waiting rows and a batch into blocks of exactly ``size`` rows and the rest.

    Blocks come lazily and large batches are not copied: a row-major batch is cut into views.
    """
    b = batch.shape[0]
    if pending.count + b < size:
        return iter(()), pending.append(batch, weights, times, size)
    head = size - pending.count if pending.count else 0
    rest = (b - head) % size
    stop = b - rest

    def blocks() -> Iterator[Block]:
        if head:
            yield pending.append(batch[:head, :], weights[:head], times[:head], size).block()
        for i in range(head, stop, size):
            j = i + size
            yield Block(row_major(batch[i:j, :]), weights[i:j], times[i:j])

    left = Pending()
    return blocks(), left.append(batch[stop:, :], weights[stop:], times[stop:], size) if rest else left


def prototype(batch: Array, /) -> Array:
    """Return an empty array that carries namespace, dtype and device."""
    return np.empty((0,), batch.dtype) if is_sparse(batch) or isinstance(batch, np.ndarray) else batch[:0, 0]


def row_major(rows: Array, /) -> Array:
    """Return dense rows in row-major order (a view where they are); CSR is returned as it is."""
    if not isinstance(rows, np.ndarray) or rows.flags.c_contiguous:
        return rows
    out = np.empty(rows.shape, rows.dtype)
    copy_rows(out, rows)
    return out


def pad_columns(X: Array, extra: int, /) -> Array:
    """Return a 2-D or 1-D array with ``extra`` zeros at the end of its last axis."""
    xp = namespace(X)
    zeros = (
        xp.zeros((*X.shape[:-1], extra), dtype=X.dtype, device=device_of(X))
        if xp is not np
        else np.zeros((*X.shape[:-1], extra), X.dtype)
    )
    return xp.concat([X, zeros], axis=-1)
