"""Any source as a stream of matrices of bounded size, and one table as one matrix."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from streamsvd.flow.columns import plan, replan
from streamsvd.flow.convert import convert
from streamsvd.flow.sources import Block, as_reader, read

if TYPE_CHECKING:
    from streamsvd.arrays import Array

logger = logging.getLogger("streamsvd")


class Piece(NamedTuple):
    """One batch of a stream: its rows as a matrix, and what is known of them."""

    x: Array  # (b, d), or CSR
    names: tuple[str, ...]  # of the columns; empty for arrays
    beside: dict[str, np.ndarray]  # "weights" and "timestamps", each (b,), where columns were named for them
    where: str  # for messages: "events/a.parquet, rows 0 to 4095"


def batches(
    source: Any, /, *, select: str | Sequence[str] | None = None, rows: int | None = None, nulls: str = "error"
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
    nulls : {"error", "drop"}
        What a null in a selected column does: raise, naming column and count, or drop its row.

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
    return (piece.x for piece in pieces(source, select=select, rows=rows, nulls=nulls))


def matrix(
    batch: Any, /, *, select: str | Sequence[str] | None = None, nulls: str = "error"
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Convert one table (Arrow, Polars, pandas, or anything with the Arrow interface) to a 2-D array and the names of its columns.

    Parameters
    ----------
    batch : table with n rows
    select, nulls
        As in `batches`.

    Returns
    -------
    X : array (n, d); fewer rows where ``nulls="drop"`` drops some
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

    columns, _ = _checked(select, nulls, None)
    reader = as_reader(batch)
    parts = [part for part in reader if part.num_rows] or [pa.RecordBatch.from_pylist([], schema=reader.schema)]
    layout = plan(parts[0], columns, {})
    converted = [convert(part, layout, nulls)[0] for part in parts]
    return (converted[0] if len(converted) == 1 else np.concatenate(converted)), layout.names


def pieces(
    source: Any,
    /,
    *,
    select: str | Sequence[str] | None = None,
    rows: int | None = None,
    nulls: str = "error",
    weights: str | None = None,
    timestamps: str | None = None,
) -> Iterator[Piece]:
    """Read any source as `batches` does, with the names of columns, the place of each batch, and the columns named beside them."""
    columns, rows = _checked(select, nulls, rows)
    beside = {role: name for role, name in (("weights", weights), ("timestamps", timestamps)) if name is not None}
    for role, name in beside.items():
        if not isinstance(name, str):
            msg = f"{role} of type {type(name).__name__} arrived; expected the name of a column (sketch.update(X, {role}=...) takes arrays)"
            raise TypeError(msg)
    wanted = None if columns is None else list(dict.fromkeys([*columns, *beside.values()]))
    return _pieces(read(source, columns=wanted, rows=rows), columns, nulls, beside)


@contextmanager
def located(where: str, /) -> Iterator[None]:
    """Put the place of a batch, where it has one, in front of what is wrong with it."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        msg = f"{where}: {error}" if where else str(error)
        raise kind(msg) from error


def _checked(
    select: str | Sequence[str] | None, nulls: str, rows: int | None
) -> tuple[tuple[str, ...] | None, int | None]:
    if nulls not in ("error", "drop"):
        msg = f'nulls={nulls!r} arrived; expected "error" (a null raises) or "drop" (its row is left out)'
        raise ValueError(msg)
    if rows is not None and (isinstance(rows, bool) or not hasattr(rows, "__index__") or int(rows) < 1):
        msg = f"rows={rows!r} arrived; expected a whole number of at least 1, or None for as many as fit into 16 MiB"
        raise ValueError(msg)
    columns = (select,) if isinstance(select, str) else select
    if columns is None:
        return None, rows
    if not isinstance(columns, Sequence) or not all(isinstance(name, str) for name in columns) or not columns:
        msg = f"select={select!r} arrived; expected the name of a column or a list of names, or None for all columns"
        raise TypeError(msg)
    if len(set(columns)) < len(columns):
        msg = f"select={list(columns)} names a column twice; name each column once"
        raise ValueError(msg)
    return tuple(columns), rows


def _pieces(
    blocks: Iterator[Block], select: tuple[str, ...] | None, nulls: str, beside: dict[str, str]
) -> Iterator[Piece]:
    layout, seen, lost = None, 0, 0
    for block in blocks:
        data, first = block.data, block.row if block.file else seen
        tabular = hasattr(data, "schema")
        n = data.num_rows if tabular else data.shape[0]
        where = f"{block.file}{', ' if block.file else ''}rows {first} to {first + n - 1}"
        seen += n
        if not tabular:
            _no_names(where, select, beside)
            yield Piece(data, (), {}, where)
            continue
        with located(block.file):
            if layout is None:
                fresh = plan(data, select, beside)
            else:
                fresh = layout if data.schema.equals(layout.schema) else replan(layout, data, select)
        with located(where):
            x, vectors = convert(data, fresh, nulls)
        lost += n - x.shape[0]
        if x.shape[0]:  # a batch that loses all its rows teaches nothing about widths
            layout = fresh
            yield Piece(x, layout.names, vectors, where)
    if lost:
        logger.info("%d of %d rows were left out because of nulls", lost, seen)


def _no_names(where: str, select: Any, beside: dict[str, str]) -> None:
    if select is not None or beside:
        option = "select" if select is not None else next(iter(beside))
        msg = f"{where}: {option}= names a column, and an array has no names; pass a table (pyarrow, polars), or leave {option} out"
        raise TypeError(msg)
