"""Operators over what users hold: dense arrays, mapped files, sparse matrices of torch and CuPy, tables of edges, SciPy's operators."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamsvd.arrays import Array, device_of, dtype_name, from_numpy, namespace, to_numpy
from streamsvd.batch import as_batch
from streamsvd.kernels.spmm import spmm
from streamsvd.operators import CHUNK_BYTES, Csr, Known


class Dense(Known):
    """A dense array: NumPy, ``np.memmap`` (read a chunk of rows at a time), torch, CuPy, or another array API library."""

    def __init__(self, array: Array) -> None:
        self.array = as_batch(array)
        self.shape, self.dtype = (int(array.shape[0]), int(array.shape[1])), dtype_name(self.array)
        self.mapped, self.mean = isinstance(array, np.memmap), None

    def minus(self, mean: np.ndarray, /) -> Dense:
        """Return a view whose float64 sums are those of ``A - 1 mean'``, each entry shifted before it is used."""
        out = copy.copy(self)
        out.mean = from_numpy(mean, like=self.array)
        return out

    @property
    def like(self) -> Array:  # noqa: D102
        return self.array[:0, :0]

    def matmat(self, X: Array, /) -> Array:  # noqa: D102
        return self.array @ X

    def rmatmat(self, Y: Array, /) -> Array:  # noqa: D102
        return self.array.T @ Y

    def normal(self, X: Array, /, scale: float = 1.0, work: Any = None) -> Any:
        """Return ``scale^2 A'A X``; of a file the rows are read once, not twice."""
        if not self.mapped:
            return super().normal(X, scale)
        out = np.zeros((self.shape[1], X.shape[1]), self.dtype)
        for rows in self._rows():
            part = self.array[rows, :]
            out += (part.T @ ((part @ X) * out.dtype.type(scale))) * out.dtype.type(scale)
        return out, None

    def energy(self, scale: float, /) -> float | None:  # noqa: D102
        xp = namespace(self.array)
        return sum(float(xp.sum((self._wide(r) * scale) ** 2)) for r in self._rows())

    def project(self, U: Array, /) -> np.ndarray | None:  # noqa: D102
        xp = namespace(self.array)
        out = xp.zeros((self.shape[1], U.shape[1]), dtype=xp.float64, device=device_of(self.array))
        for r in self._rows():
            out = out + self._wide(r).T @ xp.astype(U[r, :], xp.float64)
        return to_numpy(out)

    def coproject(self, V: Array, /) -> np.ndarray | None:  # noqa: D102
        xp = namespace(self.array)
        V64 = xp.astype(V, xp.float64)
        return to_numpy(xp.concat([self._wide(r) @ V64 for r in self._rows()], axis=0))

    def _wide(self, rows: slice) -> Array:
        xp = namespace(self.array)
        x = xp.astype(self.array[rows, :], xp.float64)
        return x if self.mean is None else x - self.mean[None, :]

    def _rows(self) -> list[slice]:
        step = max(1, CHUNK_BYTES // (8 * self.shape[1]))
        return [slice(i, min(i + step, self.shape[0])) for i in range(0, max(self.shape[0], 1), step)]


class Linear(Known):
    """An operator of someone else's with ``shape``, ``matmat`` and ``rmatmat`` (SciPy's LinearOperator, PyLops): nothing is certified."""

    def __init__(self, base: Any) -> None:
        self.base, self.shape = base, (int(base.shape[0]), int(base.shape[1]))
        name = str(getattr(base, "dtype", "float64")).rpartition(".")[2]
        self.dtype = "float32" if name == "float32" else "float64"

    def matmat(self, X: Array, /) -> Array:  # noqa: D102
        return np.asarray(self.base.matmat(X))

    def rmatmat(self, Y: Array, /) -> Array:  # noqa: D102
        return np.asarray(self.base.rmatmat(Y))


class CupyCsr(Known):
    """A sparse matrix of ``cupyx.scipy.sparse``, multiplied by cuSPARSE, with an explicit CSR of the transpose."""

    def __init__(self, matrix: Any) -> None:
        self.matrix = matrix.tocsr()
        self.flipped = self.matrix.T.tocsr()
        self.shape, self.dtype = tuple(matrix.shape), matrix.dtype.name

    @property
    def like(self) -> Array:  # noqa: D102
        return self.matrix.data[:0].reshape(0, 0)

    def matmat(self, X: Array, /) -> Array:  # noqa: D102
        return spmm(self.matrix, X)

    def rmatmat(self, Y: Array, /) -> Array:  # noqa: D102
        return spmm(self.flipped, Y)

    def energy(self, scale: float, /) -> float | None:  # noqa: D102
        x = self.matrix.data.astype("float64") * scale
        return float((x * x).sum())

    def project(self, U: Array, /) -> np.ndarray | None:  # noqa: D102
        return to_numpy(spmm(self.flipped.astype("float64"), U.astype("float64")))

    def coproject(self, V: Array, /) -> np.ndarray | None:  # noqa: D102
        return to_numpy(spmm(self.matrix.astype("float64"), V.astype("float64")))


@dataclass(frozen=True, eq=False)
class Edges:
    """A table of edges as a sparse matrix: ``matrix`` (n, d) in CSR, and the ids of its rows and columns, sorted (Arrow arrays)."""

    matrix: Any
    rows: Any
    columns: Any


def edge_matrix(
    table: Any, /, *, row: str | None = None, column: str | None = None, weight: str | None = None
) -> Edges:
    """Return the matrix of an Arrow table with one edge a row.

    Parameters
    ----------
    table : Arrow table or batch, or anything with ``__arrow_c_stream__``
    row, column : str, optional
        Columns of ids, integers or strings; the first and the second column by default.
    weight : str, optional
        Column of weights; the third column by default, 1 for each edge where there is none. Repeated edges are summed.

    Returns
    -------
    edges : Edges
        float64 weights stay float64, all others become float32.

    Raises
    ------
    ValueError
        For missing columns, null ids and weights that are not finite, with the row.
    """
    import pyarrow as pa
    from scipy.sparse import csr_array

    table = pa.table(table)
    names = table.column_names
    chosen = [row or _name(names, 0), column or _name(names, 1)]
    weight = weight or (names[2] if len(names) > 2 else None)
    missing = [name for name in [*chosen, *([weight] if weight else [])] if name not in names]
    if missing:
        msg = f"got a table with the columns {', '.join(names)}; it has no column {missing[0]!r}"
        raise ValueError(msg)
    (at, rows), (to, columns) = (_codes(table[name], name) for name in chosen)
    values = np.ones(table.num_rows, np.float32) if weight is None else _weights(table[weight], weight)
    matrix = csr_array((values, (at, to)), shape=(len(rows), len(columns)))
    matrix.sum_duplicates()
    return Edges(matrix, rows, columns)


def adapted(A: Any, /) -> Any:
    """Return the operator of anything that is neither an operator nor a SciPy sparse matrix."""
    module = type(A).__module__.partition(".")[0]
    if module == "cupyx":
        return CupyCsr(A)
    if module == "torch" and str(A.layout) != "torch.strided":
        return Csr(_torch_csr(A))
    if type(A) is not np.ndarray and (hasattr(A, "__arrow_c_stream__") or hasattr(A, "__arrow_c_array__")):
        return Csr(edge_matrix(A).matrix)
    if callable(getattr(A, "matmat", None)) and callable(getattr(A, "rmatmat", None)):
        return Linear(A)
    return Dense(A)


def _torch_csr(A: Any) -> Any:
    from scipy.sparse import csr_array

    A = A.detach().cpu().to_sparse_coo().coalesce()
    indices = A.indices().numpy().astype(np.int32 if max(A.shape) < 2**31 else np.int64)
    return csr_array((A.values().numpy(), (indices[0], indices[1])), shape=tuple(A.shape))


def _name(names: list[str], at: int) -> str:
    if len(names) <= at:
        msg = f"got a table with {len(names)} columns; expected one edge a row: row id, column id and, optionally, a weight"
        raise ValueError(msg)
    return names[at]


def _codes(ids: Any, name: str) -> tuple[np.ndarray, Any]:
    """Return the number of each id among the sorted ids, and these."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if ids.null_count:
        first = pc.index(pc.is_null(ids), True).as_py()  # pyright: ignore[reportAttributeAccessIssue]
        msg = f"column {name!r} has {ids.null_count} null ids, the first in row {first}; drop such edges first"
        raise ValueError(msg)
    encoded = pa.chunked_array(ids).combine_chunks().dictionary_encode()
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    order = pc.array_sort_indices(encoded.dictionary)  # pyright: ignore[reportAttributeAccessIssue]
    place = np.empty(len(order), np.int32)
    place[order.to_numpy()] = np.arange(len(order), dtype=np.int32)
    return place[encoded.indices.to_numpy(zero_copy_only=False)], encoded.dictionary.take(order)


def _weights(column: Any, name: str) -> np.ndarray:
    values = column.to_numpy()
    values = values if values.dtype == np.float64 else values.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        msg = f"column {name!r} has {bad.size} weights that are not finite, the first in row {bad[0]}; drop these edges"
        raise ValueError(msg)
    return values
