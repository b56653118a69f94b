"""Rows in, coordinates out: a model applied to a stream, as a stream or as a file (``scan.py``: as a lazy query)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from streamsvd.arrays import to_numpy
from streamsvd.flow.batches import Piece, located, pieces
from streamsvd.flow.progress import watch
from streamsvd.flow.sinks import described, table_sink
from streamsvd.tables import provenance

if TYPE_CHECKING:
    import os

    import pyarrow as pa

    from streamsvd.factors import Factors

Names = str | Sequence[str] | None


class Written(NamedTuple):
    """What `write_scores` did."""

    rows: int  # written
    intake: Any  # the counts of its reading: rows seen, dropped and why, numbers filled in and why


def transform(
    factors: Factors,
    source: Any,
    /,
    *,
    select: Names = None,
    ids: Names = None,
    residual: bool = False,
    leverage: bool = False,
    nulls: str = "error",
    nonfinite: str = "error",
    rows: int | None = None,
) -> pa.RecordBatchReader:
    """Return the coordinates of all rows of a source in the components, as a stream of Arrow batches.

    Parameters
    ----------
    factors : Factors
    source : any source that `streamsvd.batches` reads
    select : str or sequence of str, optional
        The columns to take; of a table, by default, those that the factors came from, in any order.
    ids : str or sequence of str, optional
        Columns of the source that are carried through as they are, in front of the scores: keys, times, labels.
    residual : bool
        Also the squared reconstruction error of each row (the Q statistic), float64: large where a row leaves the components.
    leverage : bool
        Also Hotelling's T-squared of each row, float64: large where a row is far out within them.
    nulls, nonfinite, rows
        As in `streamsvd.batches`.

    Returns
    -------
    reader : pyarrow.RecordBatchReader
        The ids, ``scores`` (a fixed-size list of k numbers), and what was asked for; in the order of the source. The schema metadata
        says which factors of which version made it, and of what (keys ``streamsvd.*``). Rows are read as the reader is.

    Raises
    ------
    TypeError, ValueError, OSError
        For rows of another width or with numbers that are not finite (the message names file and rows), or what cannot be read: the first
        batch at once, the others when they are reached.

    Notes
    -----
    Cost: ``d k`` multiply-adds a row; 2 more of these for the residual, 1 for the leverage. Memory: a batch or two.

    Examples
    --------
    >>> import pyarrow as pa, streamsvd as ss
    >>> table = pa.table({"user": ["a", "b", "c"], "x": [1.0, 2.0, 4.0], "y": [2.0, 4.0, 8.0]})
    >>> factors = ss.fit(table, rank=1, select=["x", "y"])
    >>> transform(factors, table, ids="user").read_all().column_names
    ['user', 'scores']
    """
    import pyarrow as pa

    ids = listed_ids(ids)
    first, stream = ahead(opened(factors, source, select, ids, nulls=nulls, nonfinite=nonfinite, rows=rows))
    schema = scores_schema(factors, source, first, ids, residual=residual, leverage=leverage)
    return pa.RecordBatchReader.from_batches(schema, (score(factors, piece, schema) for piece in stream))


def write_scores(
    factors: Factors,
    source: Any,
    path: str | os.PathLike[str],
    /,
    *,
    select: Names = None,
    ids: Names = None,
    residual: bool = False,
    leverage: bool = False,
    nulls: str = "error",
    nonfinite: str = "error",
    progress: bool | None = None,
) -> Written:
    """Write what `transform` returns to a Parquet or Arrow IPC file, which appears when it is complete.

    Parameters
    ----------
    factors, source, select, ids, residual, leverage, nulls, nonfinite
        As in `transform`.
    path : path, .parquet or .arrow, .ipc, .feather
    progress : bool, optional
        As in `streamsvd.fit`.

    Returns
    -------
    written : Written
        ``rows`` and ``intake``, the counts of the reading.

    Raises
    ------
    TypeError, ValueError, OSError
        As `transform`, and for what cannot be written. A file that was there before is then unchanged.

    Notes
    -----
    Cost: that of `transform`. Memory: a batch or two and a row group.
    """
    ids = listed_ids(ids)
    first, stream = ahead(opened(factors, source, select, ids, nulls=nulls, nonfinite=nonfinite))
    schema = scores_schema(factors, source, first, ids, residual=residual, leverage=leverage)
    rows, intake = 0, None
    # A dictionary of numbers that are all different makes writing three times slower, and the file larger.
    sink = table_sink(path, schema, use_dictionary=list(ids))
    with sink as write, watch(progress, source, "projecting") as advance:
        for piece in stream:
            batch = score(factors, piece, schema)
            write(batch)
            rows, intake = rows + batch.num_rows, piece.intake
            advance(batch.num_rows)
    return Written(rows, intake)


def opened(
    factors: Factors,
    source: Any,
    select: Names,
    ids: tuple[str, ...],
    /,
    *,
    nulls: str,
    nonfinite: str,
    rows: int | None = None,
) -> Iterator[Piece]:
    """Return the pieces of a source with the columns of the factors, unless others are selected, and the ids carried beside them."""
    source, tabular = _tabular(source)
    if ids and not tabular:
        msg = f"ids={list(ids)} names columns, and an array has no names; pass a table (pyarrow, polars), or leave ids out"
        raise TypeError(msg)
    if select is None and tabular and factors.names:
        select = factors.names
    options: dict[str, Any] = {"carry": ids} if ids else {}
    return pieces(source, select=select, nulls=nulls, nonfinite=nonfinite, rows=rows, **options)


def ahead(stream: Iterator[Piece], /) -> tuple[Piece | None, Iterator[Piece]]:
    """Return the first piece of a stream, and all of them."""
    first = next(stream, None)
    return first, iter(()) if first is None else chain([first], stream)


def listed_ids(ids: Names, /) -> tuple[str, ...]:
    """Return the columns to carry through, once their names are known not to be those of the scores."""
    listed = () if ids is None else (ids,) if isinstance(ids, str) else tuple(ids)
    taken = {"scores", "residual", "leverage"}.intersection(listed)
    if taken or len(set(listed)) < len(listed):
        what = f"the name {min(taken)!r}, which the result gives to its own column" if taken else "a column twice"
        msg = f"ids={list(listed)} has {what}; {'rename that column first' if taken else 'name each once'}"
        raise ValueError(msg)
    return listed


def scores_schema(
    factors: Factors, source: Any, first: Piece | None, ids: tuple[str, ...], /, *, residual: bool, leverage: bool
) -> pa.Schema:
    """Return the columns of the result; those of the ids as the first piece has them."""
    import pyarrow as pa

    carried = None if first is None else first.carried
    fields = [pa.field(name, pa.null()) if carried is None else carried.schema.field(name) for name in ids]
    number = pa.from_numpy_dtype(to_numpy(factors.vt).dtype)
    fields.append(pa.field("scores", pa.list_(number, factors.rank)))
    fields += [pa.field("residual", pa.float64())] if residual else []
    fields += [pa.field("leverage", pa.float64())] if leverage else []
    return pa.schema(fields, metadata=provenance(factors) | {"streamsvd.source": described(source)})


def score(factors: Factors, piece: Piece, schema: pa.Schema, /) -> pa.RecordBatch:
    """Return the columns of a schema for one piece."""
    import pyarrow as pa

    def column(name: str) -> Any:
        if name == "scores":
            values = np.ascontiguousarray(to_numpy(factors.transform(piece.x)))
            return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), factors.rank)
        if name in ("residual", "leverage"):
            return pa.array(to_numpy(getattr(factors, name)(piece.x)))
        assert piece.carried is not None
        return piece.carried.column(name)

    with located(piece):
        return pa.record_batch([column(name) for name in schema.names], schema=schema)


def _tabular(source: Any) -> tuple[Any, bool]:
    """Tell whether the rows of a source come with names; a source that gives its rows once is replaced by one that still has them all."""
    from streamsvd.flow import files

    if isinstance(source, str | Path):
        return source, files.find(source)[0].suffix.lower() not in (".npy", ".npz")
    if hasattr(source, "__arrow_c_stream__") or hasattr(source, "__arrow_c_array__"):
        return source, True
    if isinstance(source, list | tuple):
        return source, bool(source) and _tabular(source[0])[1]
    if hasattr(source, "__next__"):
        first = next(source, None)
        return ([], False) if first is None else (chain([first], source), _tabular(first)[1])
    return source, any(hasattr(source, name) for name in ("collect_batches", "iter_batches", "to_batches"))
