"""The best entries of each row of a block of scores: one pass, 64 entries at a time against the worst of the best so far."""

from __future__ import annotations

import numba
import numpy as np

_jit = {"cache": True, "nogil": True, "error_model": "numpy"}


@numba.njit(fastmath={"nnan", "nsz", "reassoc"}, **_jit)
def _largest(row, first, stop):
    best = row[first]
    for j in range(first + 1, stop):
        best = row[j] if row[j] > best else best  # max() of Numba minds NaN, and is not vectorised
    return best


@numba.njit(**_jit)
def _before(s, i, t, j):
    """Whether the entry (s, i) is worse than (t, j): a lower score, or the same score and a later column."""
    return s < t or (s == t and i > j)


@numba.njit(**_jit)
def _sift(score, column, size):
    """Move the root of a heap, whose root is the worst, down to its place."""
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            return
        if child + 1 < size and _before(score[child + 1], column[child + 1], score[child], column[child]):
            child += 1
        if not _before(score[child], column[child], score[at], column[at]):
            return
        score[at], score[child] = score[child], score[at]
        column[at], column[child] = column[child], column[at]
        at = child


@numba.njit(**_jit)
def best_of_rows(scores, seen_ptr, seen, barred, out_columns, out_scores):
    """Write the best k columns of each row, best first; -1 and -inf fill up where fewer are left.

    ``scores`` (b, n) is destroyed: seen and barred columns become -inf, which never enters.
    """
    k, low = out_columns.shape[1], scores.dtype.type(-np.inf)
    for r in range(scores.shape[0]):
        row, value, column = scores[r], out_scores[r], out_columns[r]
        for p in range(seen_ptr[r], seen_ptr[r + 1]):
            row[seen[p]] = low
        for j in barred:
            row[j] = low
        value[:], column[:] = low, -1
        for first in range(0, row.size, 64):
            stop = min(first + 64, row.size)
            if _largest(row, first, stop) <= value[0]:
                continue
            for j in range(first, stop):
                if row[j] > value[0]:
                    value[0], column[0] = row[j], j
                    _sift(value, column, k)
        for size in range(k - 1, 0, -1):
            value[0], value[size] = value[size], value[0]
            column[0], column[size] = column[size], column[0]
            _sift(value, column, size)
