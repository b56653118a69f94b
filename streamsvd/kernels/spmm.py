"""Sparse times dense, ``diag(scale) A X`` for A in CSR: the loop that graphs spend their time in.

NumPy data runs a Numba loop with vector accumulators, on threads that share the rows by their number of entries; CuPy data runs
cuSPARSE; anything else runs SciPy, which is also the oracle of the loop.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np

from streamsvd.arrays import Array
from streamsvd.kernels.crew import crew

# Below this many multiply-adds waking a second thread costs more than it gives.
PARALLEL = 2_000_000
# Pieces for each thread.
PIECES = 8
WIDTHS = (1, 4, 8, 16, 32, 64)
_FLOATS = ("float32", "float64")


def spmm(
    csr: Any, X: Array, /, out: Array | None = None, *, scale: Array | None = None, threads: int | None = None
) -> Array:
    """Return ``diag(scale) A X`` for a CSR matrix A and a dense X.

    Parameters
    ----------
    csr : CSR matrix (n, d), SciPy or cupyx, float32 or float64; columns may be unsorted or repeated (repeated entries are summed)
    X : array (d, l), float32 or float64; row-major is fastest
    out : array (n, l), row-major, optional
        Written and returned. With float32 operands, a float64 ``out`` also accumulates in float64.
    scale : array (n,), optional
        Multiplies the rows of the product, in the pass that writes them.
    threads : int, optional
        Default: ``NUMBA_NUM_THREADS`` or the cores of this process, and 1 for small products. The bits do not depend on it.

    Returns
    -------
    out : array (n, l)

    Raises
    ------
    ValueError
        If the shapes do not fit.

    Notes
    -----
    Cost: ``nnz l`` multiply-adds; each entry gathers l numbers of X. The transposed product is fastest through an explicit CSR of
    the transpose, which costs about two products to build; scattering into the result is slower on one thread and needs a private result
    for each of several.
    """
    _check(csr, X, out)
    if type(X).__module__.partition(".")[0] == "cupy":
        return _cupy(csr, X, out, scale)
    if not _fits(csr, X, out):
        return _scipy(csr, X, out, scale)
    from streamsvd.kernels import spmm_numba

    X = np.ascontiguousarray(X)
    if out is None:
        out = np.empty((csr.shape[0], X.shape[1]), np.result_type(csr.data, X))
    if X.shape[1] == 0 or out.shape[0] == 0:
        return out
    if csr.indices.size == 0:
        out[:, :] = 0
        return out
    factors = np.empty(0, out.dtype) if scale is None else np.ascontiguousarray(scale, dtype=out.dtype)
    columns = csr.indices if csr.indices.dtype == csr.indptr.dtype else csr.indices.astype(csr.indptr.dtype)
    count = _threads(threads, csr.indices.size * X.shape[1])
    loop = csr.indptr, columns, csr.data, factors, X, out, _panels(X.shape[1])
    if count == 1:
        spmm_numba.rows(*loop, 0, out.shape[0])
    else:
        cuts = spmm_numba.cuts(csr.indptr, PIECES * count)
        crew().run(functools.partial(spmm_numba.shared_rows, *loop, cuts), cuts.size - 1, count - 1)
    return out


def transposed(csr: Any, /) -> Any:
    """Return an explicit CSR of A' with sorted columns. Cost: about two products with 16 columns, and the memory of A."""
    return csr.T.tocsr()


def default_threads() -> int:
    """Return how many threads a large product takes: ``NUMBA_NUM_THREADS`` where it is set, the cores of this process elsewhere."""
    named = os.environ.get("NUMBA_NUM_THREADS", "")
    if named.isdigit() and int(named) > 0:
        return int(named)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads(asked: int | None, work: int) -> int:
    if asked is not None:
        return max(1, asked)
    return 1 if work < PARALLEL else default_threads()


@functools.cache
def _panels(width: int) -> np.ndarray:
    """Cut a row into panels (start, width) of the widths there are; the last may overlap, for equal bits written twice do no harm."""
    panels, c = [], 0
    while c < width:
        rest = width - c
        enough = [w for w in WIDTHS if rest <= w <= width]
        w = enough[0] if enough else max(w for w in WIDTHS if w <= rest)
        panels.append((min(c, width - w), w))
        c += w
    return np.array(panels, np.int64).reshape(-1, 2)


def _fits(csr: Any, X: Any, out: Any) -> bool:
    """Tell whether the loop can run: NumPy floats, and a result no narrower than its operands."""
    if not (isinstance(X, np.ndarray) and isinstance(csr.data, np.ndarray)):
        return False
    if csr.data.dtype.name not in _FLOATS or X.dtype.name not in _FLOATS:
        return False
    return out is None or (
        out.flags.c_contiguous and out.dtype == np.promote_types(out.dtype, np.result_type(csr.data, X))
    )


def _scipy(csr: Any, X: Any, out: Any, scale: Any) -> Any:
    product = csr @ np.asarray(X)
    product = product if scale is None else product * np.asarray(scale)[:, None]
    if out is None:
        return product
    out[:, :] = product
    return out


def _cupy(csr: Any, X: Any, out: Any, scale: Any) -> Any:
    product = csr @ X
    product = product if scale is None else product * scale[:, None]
    if out is None:
        return product
    out[...] = product
    return out


def _check(csr: Any, X: Any, out: Any) -> None:
    if X.ndim != 2 or X.shape[0] != csr.shape[1]:
        msg = (
            f"got a matrix of shape {tuple(csr.shape)} and X of shape {tuple(X.shape)}; expected X of shape ({csr.shape[1]}, l): "
            "one row for each column of the matrix (X.reshape(-1, 1) makes one column of a vector)"
        )
        raise ValueError(msg)
    if out is not None and tuple(out.shape) != (csr.shape[0], X.shape[1]):
        msg = f"got out of shape {tuple(out.shape)}; expected {(csr.shape[0], X.shape[1])}"
        raise ValueError(msg)
