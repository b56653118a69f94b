"""Random test matrices by counter: an entry depends on the seed and its place alone, so any block of rows can be drawn again."""

from __future__ import annotations

import numpy as np

from streamsvd.arrays import Array, from_numpy

CHUNK = 1 << 14
_MASK = 0xFFFFFFFFFFFFFFFF


def normals(
    seed: int, rows: int, columns: int, /, *, first: int = 0, stream: int = 0, dtype: str = "float64"
) -> np.ndarray:
    """Return rows ``first`` .. ``first + rows`` of an endless standard normal matrix with so many columns, row-major.

    Parameters
    ----------
    seed : int
    rows, columns : int
        A column does not depend on how many there are.
    first : int
        Number of the first row.
    stream : int
        Another number, another matrix of the same seed.
    dtype : "float32" or "float64"

    Returns
    -------
    G : array (rows, columns)

    Notes
    -----
    Philox (Salmon, Moraes, Dror and Shaw 2011) with the place of a chunk of 2^14 entries of a column as its counter.
    Cost: about 5 ns an entry; at the ends of ``first`` and ``rows`` whole chunks are drawn.
    """
    out = np.empty((columns, rows), dtype)
    for j in range(columns):
        for chunk in range(first // CHUNK, -(-(first + rows) // CHUNK)):
            key = np.array([seed & _MASK, (stream << 32 | j) & _MASK], np.uint64)
            bits = np.random.Philox(key=key, counter=np.array([0, 0, 0, chunk], np.uint64))
            start, stop = max(first, chunk * CHUNK), min(first + rows, (chunk + 1) * CHUNK)
            drawn = np.random.Generator(bits).standard_normal(stop - chunk * CHUNK, dtype=np.dtype(dtype).type)
            out[j, start - first : stop - first] = drawn[start - chunk * CHUNK :]
    return np.ascontiguousarray(out.T)


def normals_like(seed: int, rows: int, columns: int, /, *, like: Array, dtype: str, stream: int = 0) -> Array:
    """Return ``normals`` on the device of ``like``: drawn on the host, so that every backend has the same bits."""
    return from_numpy(normals(seed, rows, columns, stream=stream, dtype=dtype), like=like)
