"""Symmetric matrices as packed triangles, in loops that let other threads run: a state is packed while the next rows are folded."""

from __future__ import annotations

import numba
from numba import types

_f8 = types.float64

BLOCK = (
    64  # entries of a column-major matrix that are read together, and rows of the triangle that are written together
)


# The signatures are written out (row-major, column-major, any; frozen or not), so that it is compiled once.
@numba.njit(
    [
        types.void(types.Array(_f8, 2, layout, readonly=frozen), types.Array(_f8, 1, "C"))
        for layout in "CFA"
        for frozen in (False, True)
    ],
    nogil=True,
    cache=True,
)
def pack(S, packed):
    """Write the lower triangle of S (d, d) row by row into ``packed`` (d (d + 1) / 2,)."""
    d = S.shape[0]
    for top in range(0, d, BLOCK):
        bottom = min(top + BLOCK, d)
        for left in range(0, bottom, BLOCK):
            for i in range(top, bottom):
                start = i * (i + 1) // 2
                for j in range(left, min(left + BLOCK, i + 1)):
                    packed[start + j] = S[i, j]
