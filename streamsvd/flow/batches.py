"""Any source as a stream of matrices of bounded size, and one table as one matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.flow.columns import checked, plan
from streamsvd.flow.convert import convert
from streamsvd.flow.pieces import Piece, located, pieces
from streamsvd.flow.policies import Intake, Policies, enforce
from streamsvd.flow.sources import as_reader

if TYPE_CHECKING:
    from collections.abc import Iterable

    from streamsvd.arrays import Array

__all__ = ["Intake", "Piece", "batches", "located", "matrix", "pieces", "with_rows"]


def batches(
    source: Any,
    /,
    *,
    select: str | Sequence[str] | None = None,
    rows: int | None = None,
    nulls: str = "error",
    nonfinite: str = "error",
) -> Iterator[Array]:
    """Read any source as a stream of 2-D arrays of bounded size.

    Parameters
    ----------
    source : path, glob, folder, table, LazyFrame, dataset, array (n, d), or an iterable of these
        Parquet, Arrow IPC, CSV and npy files; anything with ``__arrow_c_stream__`` (Arrow, Polars, pandas, DuckDB); pyarrow Datasets,
        Scanners and ParquetFiles; Polars LazyFrames, streamed; NumPy, torch, CuPy arrays and memory maps; SciPy sparse matrices.
    select : str or sequence of str, optional
        The columns to read, in this order: numbers, or lists of numbers of one length (such as embeddings). All columns otherwise,
        which must then be numbers.
    rows : int, optional
        At most so many rows in a batch; otherwise as many as fit into 16 MiB.
    nulls : {"error", "drop", "mean"}
        What a null in a selected column does: raise, naming column and count, leave its row out, or become the mean of its column: that
        of all valid numbers (finite, not null) in the rows kept so far, this batch included, 0 where there are none.
    nonfinite : {"error", "drop", "mean"}
        The same for NaN and infinity, also in arrays; but with "error" they come as they are, and it is the engine that refuses them.

    Yields
    ------
    X : array (b, d), b >= 1
        NumPy, of any strides, for files and tables; arrays and sparse matrices stay what and where they are (sparse: CSR).

    Raises
    ------
    FileNotFoundError
        No such file, or a glob or folder without one to read.
    TypeError
        A column that is not numbers, or a source that holds no rows.
    ValueError
        A column that does not exist, nulls, a damaged file, columns that change within the stream.

    Notes
    -----
    Cost: about one memcpy of the data; nothing for arrays and for one column of fixed-size lists. Memory: a batch or two.

    The dtype of a table's rows: one column of lists keeps its own; columns that are all float32, or all float64, keep theirs; a mixture
    becomes float32 where that holds all of its numbers exactly (bool, 8 and 16-bit integers, float16, float32), else float64.

    Examples
    --------
    >>> import pyarrow as pa
    >>> table = pa.table({"x": [1.0, 2.0, 3.0], "y": [4, 5, 6], "label": ["a", "b", "c"]})
    >>> for X in batches(table, select=["x", "y"], rows=2):
    ...     print(X.tolist())
    [[1.0, 4.0], [2.0, 5.0]]
    [[3.0, 6.0]]
    """
    return (piece.x for piece in with_rows(pieces(source, select=select, rows=rows, nulls=nulls, nonfinite=nonfinite)))


def with_rows(stream: Iterable[Piece], /) -> Iterator[Piece]:
    """Pass over the pieces that lost all their rows, and those of a source that is waited for."""
    return (piece for piece in stream if piece.x is not None and piece.x.shape[0])


def matrix(
    batch: Any,
    /,
    *,
    select: str | Sequence[str] | None = None,
    nulls: str = "error",
    nonfinite: str = "error",
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Convert one table (Arrow, Polars, pandas, or anything with the Arrow interface) to a 2-D array and the names of its columns.

    Parameters
    ----------
    batch : table with n rows
    select, nulls, nonfinite
        As in `batches`; the mean is that of the whole table.

    Returns
    -------
    X : array (n, d); fewer rows where a policy "drop" leaves some out
    names : tuple of str, length d; the i-th number of a list column ``e`` is called ``e[i]``

    Raises
    ------
    TypeError, ValueError
        As in `batches`.

    Notes
    -----
    Cost: one memcpy, none for one column of fixed-size lists; twice that for a table of several chunks.
    """
    import pyarrow as pa

    columns, _ = checked(select, None)
    policies = Policies(nulls, nonfinite).checked()
    reader = as_reader(batch)
    parts = [part for part in reader if part.num_rows] or [pa.RecordBatch.from_pylist([], schema=reader.schema)]
    layout = plan(parts[0], columns, {})
    done = [convert(part, layout, nulls) for part in parts]
    x = done[0].x if len(done) == 1 else np.concatenate([part.x for part in done])
    missing = None
    if any(part.missing is not None for part in done):
        missing = np.concatenate(
            [np.zeros(part.x.shape, bool) if part.missing is None else part.missing for part in done]
        )
    return enforce(x, policies, Intake(), missing=missing).x, layout.names
