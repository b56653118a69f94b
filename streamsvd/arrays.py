"""Array namespaces, devices, precision and threads: the only module of the engine that names a backend.

Code elsewhere is written once against the Python array API standard and runs where the data is (NumPy, CuPy, torch, array-api-strict).
Small factorizations always run in float64 on the CPU with one BLAS thread: a threaded 288 x 288 ``eigh`` was 5 to 30 times slower.
"""

from __future__ import annotations

import functools
import math
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

Array = Any

# Below this many floating point operations a second BLAS thread costs more than it gives (measured: docs/mathematics.md, "Threads").
PARALLEL_FLOPS = 2e7


def namespace(x: Array, /) -> Any:
    """Return the array API namespace of one array (NumPy is answered without importing ``array_api_compat``)."""
    if isinstance(x, np.ndarray):
        return np
    import array_api_compat

    return array_api_compat.array_namespace(x)


def is_numpy(xp: Any, /) -> bool:
    """Tell whether a namespace is NumPy itself, for which Numba kernels and BLAS calls exist."""
    return xp is np


def device_of(x: Array, /) -> Any:
    """Return the device of an array in the form that creation functions of its namespace take (None for NumPy)."""
    if isinstance(x, np.ndarray):
        return None
    import array_api_compat

    return array_api_compat.device(x)


def float_dtype(xp: Any, name: str, /) -> Any:
    """Return the namespace's own ``float32`` or ``float64``."""
    return getattr(xp, name)


def empty(shape: tuple[int, ...], /, *, like: Array) -> Array:
    """Return an uninitialised array of the namespace, dtype and device of ``like``."""
    if isinstance(like, np.ndarray):
        return np.empty(shape, like.dtype)
    return namespace(like).empty(shape, dtype=like.dtype, device=device_of(like))


# NumPy asks for huge pages from 4 MiB on, and these are aligned; first touching small ones took 15 times as long.
HUGE = 1 << 24


def roomy(shape: tuple[int, ...], dtype: Any, /) -> np.ndarray:
    """Return an uninitialised NumPy array at the start of an allocation large enough for huge pages."""
    size = math.prod(shape)
    return np.empty(max(size, HUGE // np.dtype(dtype).itemsize), dtype)[:size].reshape(shape)


def dtype_name(x: Array, /) -> str:
    """Return the bare name of an array's dtype, the same for every backend: ``"float32"``."""
    if isinstance(x, np.ndarray):
        return "float32" if x.dtype == np.float32 else "float64" if x.dtype == np.float64 else x.dtype.name
    return str(x.dtype).rsplit(".", 1)[-1]


def to_numpy(x: Array, /) -> np.ndarray:
    """Return a host array: a view where the data is on the CPU, a copy where it is on a GPU.

    Cost: nothing on the CPU, one transfer from a GPU.
    """
    if isinstance(x, np.ndarray):
        return x
    module = type(x).__module__.partition(".")[0]
    if module == "cupy":
        return x.get()
    if module == "torch":
        return x.detach().cpu().numpy()
    try:
        return np.asarray(x)
    except RuntimeError:  # array-api-strict on a device that stands for a GPU
        return np.from_dlpack(x)


def from_numpy(x: np.ndarray, /, *, like: Array, dtype: str | None = None) -> Array:
    """Return a host array in the namespace and on the device of ``like``."""
    if isinstance(like, np.ndarray):
        return x if dtype is None else x.astype(dtype, copy=False)
    xp = namespace(like)
    target = float_dtype(xp, dtype) if dtype is not None else None
    x = np.ascontiguousarray(x)
    if (
        min(x.strides, default=0) < 0
    ):  # one row or none counts as contiguous whatever its strides, and torch takes no negative ones
        x = x.copy()
    return xp.asarray(x, dtype=target, device=device_of(like))


def is_sparse(x: Any, /) -> bool:
    """Tell whether ``x`` is a SciPy sparse matrix or array, without importing ``scipy.sparse`` for that."""
    module = sys.modules.get("scipy.sparse")
    return module is not None and bool(module.issparse(x))


class _Blas:
    """The BLAS libraries of this process, found once (a scan costs milliseconds, setting a thread count a microsecond)."""

    def __init__(self) -> None:
        import scipy.linalg.blas  # noqa: F401  (SciPy carries a BLAS of its own, which must be loaded to be found)
        from threadpoolctl import ThreadpoolController

        self.libraries = ThreadpoolController().select(user_api="blas").lib_controllers


_blas: _Blas | None = None


@contextmanager
def one_thread() -> Iterator[None]:
    """Run what is inside with one BLAS thread and restore the thread counts afterwards."""
    global _blas
    if _blas is None:
        _blas = _Blas()
    many = [(library, count) for library in _blas.libraries if (count := library.get_num_threads()) != 1]
    try:
        for library, _ in many:
            library.set_num_threads(1)
        yield
    finally:
        for library, count in many:
            library.set_num_threads(count)


@contextmanager
def blas_threads(flops: float, /) -> Iterator[None]:
    """Leave the user's thread count for a product of many ``flops`` and use one thread for a small one."""
    if flops >= PARALLEL_FLOPS:
        yield
    else:
        with one_thread():
            yield


@functools.cache
def blas_routine(name: str, /) -> Any:
    """Return a BLAS or LAPACK routine of SciPy by its name, for what NumPy does not reach: ``"dsyrk"``, ``"spotrf"``."""
    from scipy.linalg import blas, lapack

    return getattr(blas, name, None) or getattr(lapack, name)


def solve_triangular(L: Array, B: Array, /, *, trans: bool = False) -> Array:
    """Solve ``L X = B`` or ``L' X = B`` for a lower triangular L.

    Parameters
    ----------
    L : array (r, r), lower triangular
    B : array (r, c)
    trans : bool
        Solve with the transpose of L.

    Returns
    -------
    X : array (r, c)

    Notes
    -----
    Cost: ``r^2 c`` multiply-adds. The array API standard has no triangular solve: torch and CuPy have their own, NumPy takes SciPy's,
    and any other namespace solves in NumPy.
    """
    module = type(L).__module__.partition(".")[0]
    if module == "torch":
        import torch

        return torch.linalg.solve_triangular(L.mT if trans else L, B, upper=trans)
    if module == "cupy":
        from cupyx.scipy.linalg import solve_triangular as solve  # pyright: ignore[reportMissingImports]

        return solve(L, B, trans=1 if trans else 0, lower=True)
    from scipy.linalg import solve_triangular as solve

    X = solve(to_numpy(L), to_numpy(B), trans=1 if trans else 0, lower=True, check_finite=False)
    return from_numpy(np.asarray(X), like=L, dtype=dtype_name(B))


def small_eigh(G: np.ndarray, /, *, top: int | None = None, overwrite: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, largest first, and eigenvectors of a small symmetric matrix, in float64 on one CPU thread.

    Parameters
    ----------
    G : array (m, m), symmetric; only its lower triangle is read
    top : int, optional
        Only the so many largest (LAPACK's relatively robust representations; all of them by divide and conquer).
    overwrite : bool
        G may be destroyed.

    Returns
    -------
    w : array (m or top,), descending
    Q : array (m, m or top), orthonormal columns

    Notes
    -----
    Cost: about ``9 m^3`` flops for all, ``(4/3) m^3 + O(m^2 top)`` for the largest.
    """
    m = G.shape[0]
    G = np.asarray(G, dtype=np.float64)
    with one_thread():
        if top is None or 3 * top > m:
            w, Q = np.linalg.eigh(G)
        else:
            from scipy.linalg import eigh

            wanted = (m - top, m - 1)
            kept = None if overwrite else G
            w, Q = eigh(G, driver="evr", subset_by_index=wanted, overwrite_a=overwrite, check_finite=False)
            if w.size < top and kept is not None:  # seen where many eigenvalues coincide
                w, Q = np.linalg.eigh(kept)
    w, Q = w[::-1], Q[:, ::-1]
    return (w, Q) if top is None else (w[:top], Q[:, :top])


def small_svd(A: np.ndarray, /) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thin singular value decomposition of a small finite matrix, in float64 on one CPU thread.

    Divide and conquer, or QR iteration, slower and surer, for the rare matrix on which that does not converge.
    """
    with one_thread():
        try:
            return np.linalg.svd(A, full_matrices=False)
        except np.linalg.LinAlgError:
            from scipy.linalg import svd

            U, s, Vt = svd(A, full_matrices=False, lapack_driver="gesvd")
            return np.asarray(U), np.asarray(s), np.asarray(Vt)


def fix_signs(vt: Array, /) -> Array:
    """Return rows whose entry of largest magnitude is positive (the first such entry where several tie).

    The sign of a singular vector is arbitrary; this choice depends on the vector alone, so the backend, the batch size and the
    order of a merge do not show in it.
    """
    return vt * signs(vt)[:, None]


def signs(vt: Array, /) -> Array:
    """Return +1 or -1 for each row of ``vt``: the sign of its entry of largest magnitude."""
    xp = namespace(vt)
    if vt.shape[0] == 0:
        return xp.ones((0,), dtype=vt.dtype, device=device_of(vt))
    high, low = xp.max(vt, axis=1), xp.min(vt, axis=1)
    first_high, first_low = xp.argmax(vt, axis=1), xp.argmin(vt, axis=1)
    negative = (-low > high) | ((-low == high) & (first_low < first_high))
    one = xp.ones(high.shape, dtype=vt.dtype, device=device_of(vt))
    return xp.where(negative, -one, one)
