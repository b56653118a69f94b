"""What every sketch does with rows before it folds them: rows that wait, and the running mean, weights and decay of a block that is folded.

Rows wait in a buffer and are folded in blocks of a fixed number, so that the result does not depend on how the stream was cut into
batches: the same rows in the same order give the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from streamsvd.arrays import Array, device_of, dtype_name, from_numpy, is_sparse, namespace, to_numpy
from streamsvd.batch import check_finite
from streamsvd.kernels.rows import SMALL, column_sums, copy_rows, largest
from streamsvd.stack import DenseRows, SparseRows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streamsvd.options import Options

MAX_EXPONENT = 1000
# Scaled energies between these leave float32 squares far from both ends of their range.
LEAST, LARGEST = 2.0**-60, 2.0**60


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


def check_merge(a: Any, b: Any, /) -> None:
    """Refuse to merge states of different kind, options, dtype or array library; the message names what differs."""
    if type(a) is not type(b):
        kind = getattr(b, "kind", type(b).__name__)
        cure = f"make both with the same kind=, for example streamsvd.sketch(..., kind={a.kind!r})"
        msg = f"cannot merge a {a.kind} state with {kind!r}; {cure}"
        raise TypeError(msg)
    difference = a.options.difference(b.options)
    if difference:
        cure = "make both with the same options (streamsvd.widen adds columns)"
        msg = f"cannot merge states made with different options: {difference}; {cure}"
        raise ValueError(msg)
    if a.options.keep_left or b.options.keep_left:
        msg = "states that keep the left factor cannot be merged: its rows belong to one stream in order; make them with keep_left=False"
        raise ValueError(msg)
    if a.like is not None and b.like is not None and _backend(a.like) != _backend(b.like):
        msg = f"cannot merge states of {_backend(a.like)} and {_backend(b.like)}; make both with the same dtype= and the same array library"
        raise ValueError(msg)


def _backend(like: Array) -> str:
    return f"{dtype_name(like)} ({namespace(like).__name__})"


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


@dataclass(frozen=True, eq=False)
class Moments:
    """Counts, weights and the mean of what was folded; ``mean = shift + delta`` with a fixed shift, the mean of the first block."""

    rows: int = 0
    weight: float = 0.0
    weight_sq: float = 0.0
    shift: Array = None
    delta: Array = None
    time: float = -math.inf

    @property
    def mean(self) -> Array:
        """Running mean in float64."""
        return self.shift + self.delta


@dataclass(frozen=True, eq=False)
class Step:
    """What folding one block needs: how much the past fades, each row's weight, what is subtracted, and the moments afterwards.

    With ``W`` the faded weight of the past, ``W_b`` of the block, ``f = W_b / (W + W_b)`` and m the difference of the means, the scatter
    of both is the sum of theirs and ``W f m m'`` (Chan, Golub and LeVeque 1983). Rows that are centred at ``mean_old + theta m`` with
    ``theta = 1 - sqrt(1 - f)`` carry exactly that term, so no further row is needed (Ross et al. 2008 append one).
    """

    past: float
    weights: np.ndarray
    mean: Array
    share: float
    moments: Moments


def advance(old: Moments, block: Block, options: Options, /) -> Step:
    """Work out the step from the moments ``old`` over one block."""
    past, ages = _ages(old, block, options)
    weights = block.weights * ages
    W, W_b = old.weight * past, float(weights.sum())
    share = W_b / (W + W_b) if W + W_b > 0 else 0.0
    shift, delta = old.shift, old.delta
    if shift is None:
        shift, delta = _first_shift(block, weights, options)
    mean = delta
    if options.center and W_b > 0:
        apart = _block_sums(block, shift, weights) / W_b - delta
        theta = share / (1.0 + math.sqrt(1.0 - share)) if W > 0 else 1.0
        mean, delta = delta + theta * apart, delta + share * apart
    moments = Moments(
        rows=old.rows + block.weights.shape[0],
        weight=W + W_b,
        weight_sq=old.weight_sq * past * past + float(weights @ weights),
        shift=shift,
        delta=delta,
        time=float(block.times[-1]),
    )
    return Step(past, weights, mean, share, moments)


@dataclass(frozen=True, eq=False)
class Joint:
    """How two folded streams join: what each fades, the moments of both, and the row (d,) that joins their means, or None."""

    fade_a: float
    fade_b: float
    moments: Moments
    row: Array | None


def join(a: Moments, b: Moments, options: Options, /) -> Joint:
    """Return how two folded streams join; timestamps age both to the later time."""
    later = max(a.time, b.time)
    fade_a, fade_b = (_fade(later - m.time, options) if options.half_life else 1.0 for m in (a, b))
    W_a, W_b = a.weight * fade_a, b.weight * fade_b
    share = W_b / (W_a + W_b) if W_a + W_b > 0 else 0.0
    apart = b.delta + (b.shift - a.shift) - a.delta
    moments = replace(
        a,
        rows=a.rows + b.rows,
        weight=W_a + W_b,
        weight_sq=a.weight_sq * fade_a**2 + b.weight_sq * fade_b**2,
        delta=a.delta + share * apart if options.center else a.delta,
        time=later,
    )
    return Joint(fade_a, fade_b, moments, math.sqrt(W_a * share) * apart if options.center else None)


def largest_entry(block: Block, step: Step, /) -> float:
    """Return the largest magnitude among the rows of a block, shifted and weighted (an upper bound for sparse rows)."""
    root, shift = math.sqrt(float(step.weights.max(initial=0.0))), step.moments.shift
    if is_sparse(block.rows):
        return root * (float(np.abs(block.rows.data).max(initial=0.0)) + float(np.abs(to_numpy(shift)).max()))
    return root * largest(block.rows, shift)


def _fade(seconds: float, options: Options) -> float:
    return 0.5 ** (seconds / options.half_life) if options.half_life and math.isfinite(seconds) else 1.0


def _ages(old: Moments, block: Block, options: Options) -> tuple[float, np.ndarray]:
    b = block.weights.shape[0]
    if options.half_life is not None:
        last = float(block.times[-1])
        return _fade(last - old.time, options), np.exp2((block.times - last) / options.half_life)
    if options.decay == 1.0:
        return 1.0, np.ones(b)
    return options.decay**b, options.decay ** np.arange(b - 1, -1, -1.0)


def _first_shift(block: Block, weights: np.ndarray, options: Options) -> tuple[Array, Array]:
    xp = np if is_sparse(block.rows) else namespace(block.rows)
    zeros = (
        xp.zeros((options.columns,), dtype=xp.float64, device=device_of(block.rows))
        if xp is not np
        else np.zeros(options.columns)
    )
    if not options.center or weights.sum() == 0:
        return zeros, zeros
    return _block_sums(block, zeros, weights) / float(weights.sum()), zeros


def _block_sums(block: Block, shift: Array, weights: np.ndarray) -> Array:
    if is_sparse(block.rows):
        # Entry by entry, for the sum of a large mean would carry its rounding; what is not stored counts as -shift.
        rows, offset = block.rows, to_numpy(shift)
        entries = np.ones(rows.data.size), rows.data - offset[rows.indices]
        stored, near = (type(rows)((x, rows.indices, rows.indptr), rows.shape) for x in entries)
        return from_numpy(near.T @ weights - (float(weights.sum()) - stored.T @ weights) * offset, like=shift)
    return column_sums(block.rows, shift, from_numpy(weights, like=shift))


def exponent_for(size: float, exponent: int = 0, /) -> int:
    """Return the power of two above ``size * 2^exponent``, by which rows are scaled to about 1, within what float64 can represent."""
    if not size > 0:
        return -MAX_EXPONENT
    return max(-MAX_EXPONENT, min(MAX_EXPONENT, math.frexp(size)[1] + exponent))


def rows_of(block: Block, step: Step, exponent: int, options: Options, /) -> DenseRows | SparseRows:
    """Return the rows of a block as a fold reads them: centred, weighted, and scaled by ``2^-exponent``."""
    roots, shift, rows = np.sqrt(step.weights), step.moments.shift, block.rows
    if is_sparse(rows):
        # Scaled before any product, since the square of an entry may be out of range.
        data, mean = (
            np.ldexp(x, -exponent) for x in (rows.data.astype(np.float64), to_numpy(shift) + to_numpy(step.mean))
        )
        sparse = SparseRows(type(rows)((data, rows.indices, rows.indptr), rows.shape), mean, roots)
        if not options.center or not sparse.cancels(options.unit):
            return sparse
        rows = rows.toarray()
    return DenseRows(rows, shift, step.mean, np.ldexp(roots, -exponent), options.center)
