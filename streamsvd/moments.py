"""What a fold knows of a block beside its rows: running mean, weights and decay; how two streams join; the scale of numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.arrays import Array, device_of, dtype_name, from_numpy, is_sparse, namespace, to_numpy
from streamsvd.kernels.rows import column_sums, largest
from streamsvd.stack import DenseRows, SparseRows

if TYPE_CHECKING:
    from streamsvd.options import Options
    from streamsvd.waiting import Block

MAX_EXPONENT = 1000
# Scaled energies between these leave float32 squares far from both ends of their range.
LEAST, LARGEST = 2.0**-60, 2.0**60


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
