"""Numba loops of the edge store: operations in their order, and a linear merge of changes into rows."""

from __future__ import annotations

import numba
import numpy as np

_jit = {"cache": True, "nogil": True, "error_model": "numpy"}
ERROR, SUM, MAX, IGNORE = 0, 1, 2, 3
UNKNOWN, DUPLICATE = 1, 2


@numba.njit(**_jit)
def find_edges(indptr, indices, users, items, at):
    """Write the position of each edge (users[j], items[j]) to ``at``, -1 where there is none."""
    for j in range(users.size):
        at[j] = -1
        u = users[j]
        if u + 1 >= indptr.size:
            continue
        low, high = indptr[u], indptr[u + 1]
        while low < high:
            mid = (low + high) // 2
            if indices[mid] < items[j]:
                low = mid + 1
            else:
                high = mid
        if low < indptr[u + 1] and indices[low] == items[j]:
            at[j] = low


@numba.njit(**_jit)
def apply_ops(starts, order, remove, weight, policy, there, value):
    """Carry out the operations of each edge (rows ``order[starts[g]:starts[g+1]]``) in their order.

    ``there`` and ``value`` hold each edge's state before, and after. Returns the first row that cannot be carried out (-1: none) and why.
    """
    bad, code = np.int64(-1), 0
    for g in range(starts.size - 1):
        for p in range(starts[g], starts[g + 1]):
            r = order[p]
            wrong = 0
            if remove[r]:
                wrong = 0 if there[g] else UNKNOWN
                there[g] = False
            elif not there[g]:
                there[g], value[g] = True, weight[r]
            elif policy == ERROR:
                wrong = DUPLICATE
            elif policy == SUM:
                value[g] += weight[r]
            elif policy == MAX:
                value[g] = max(value[g], weight[r])
            if wrong and (bad < 0 or r < bad):
                bad, code = r, wrong
    return bad, code


@numba.njit(**_jit)
def merge(indptr, indices, weights, users, items, there, value, out_indptr, out_indices, out_weights):
    """Merge changes, sorted by (user, item), into sorted rows."""
    n, c = 0, 0
    for u in range(out_indptr.size - 1):
        p, stop = (indptr[u], indptr[u + 1]) if u + 1 < indptr.size else (0, 0)
        while c < users.size and users[c] == u:
            while p < stop and indices[p] < items[c]:
                out_indices[n], out_weights[n] = indices[p], weights[p]
                n += 1
                p += 1
            if p < stop and indices[p] == items[c]:
                p += 1
            if there[c]:
                out_indices[n], out_weights[n] = items[c], value[c]
                n += 1
            c += 1
        size = stop - p
        out_indices[n : n + size] = indices[p:stop]
        out_weights[n : n + size] = weights[p:stop]
        n += size
        out_indptr[u + 1] = n


@numba.njit(**_jit)
def scaled(indptr, indices, weights, left, right, out):
    """Write ``diag(left) A diag(right)`` in the order of A, rounded once from float64."""
    for u in range(indptr.size - 1):
        for p in range(indptr[u], indptr[u + 1]):
            out[p] = left[u] * weights[p] * right[indices[p]]
