"""The coordinates of rows as a lazy query of Polars, which tells the reader what it needs not do."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from streamsvd.flow.scores import Names, listed_ids, opened, score, scores_schema

if TYPE_CHECKING:
    from collections.abc import Callable

    import polars as pl

    from streamsvd.factors import Factors
    from streamsvd.flow.batches import Piece


def scan_scores(
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
) -> pl.LazyFrame:
    """Return what `transform` gives as a Polars LazyFrame: nothing is computed that the query does not ask for.

    Parameters
    ----------
    factors, source, select, ids, residual, leverage, nulls, nonfinite, rows
        As in `streamsvd.transform`; the source is read again at each ``collect``, so it must be one that can be.

    Returns
    -------
    frame : polars.LazyFrame
        Columns that the query leaves out are neither read nor computed; with a filter on the ids, only the rows that pass it are projected;
        other filters work batch by batch; ``head(n)`` ends the reading.

    Raises
    ------
    TypeError
        A source that gives its rows once (a generator, a RecordBatchReader).
    TypeError, ValueError, OSError
        As `streamsvd.transform`: with ``ids`` for the first rows here, for the others while a query runs (older versions of Polars
        wrap them in a ComputeError).

    Notes
    -----
    Cost: none here; with ``ids``, the first rows are read for their types.

    Examples
    --------
    >>> import polars as pl, streamsvd as ss
    >>> frame = pl.DataFrame({"user": ["a", "b", "c"], "x": [1.0, 2.0, 4.0], "y": [2.0, 4.0, 8.0]})
    >>> factors = ss.fit(frame, rank=1, select=["x", "y"])
    >>> scan_scores(factors, frame, ids="user", residual=True).filter(pl.col("user") != "b").collect().height
    2
    """
    import polars as pl
    from polars.io.plugins import register_io_source

    ids = listed_ids(ids)
    for part in source if isinstance(source, list | tuple) else [source]:
        if hasattr(part, "__next__"):
            cure = "pass a path, a table, a LazyFrame or a list, or take streamsvd.transform, which reads once"
            msg = (
                f"scan_scores reads its source at each collect, and a {type(part).__name__} gives its rows once; {cure}"
            )
            raise TypeError(msg)
    reading = partial(opened, factors, source, select, nulls=nulls, nonfinite=nonfinite)
    first = next(reading(ids, rows=1), None) if ids else None
    whole = scores_schema(factors, source, first, ids, residual=residual, leverage=leverage)
    schema = pl.DataFrame(whole.empty_table()).schema
    return register_io_source(partial(_frames, factors, reading, whole, ids, rows), schema=schema, is_pure=True)


def _frames(
    factors: Factors,
    reading: Callable[..., Iterator[Piece]],
    whole: pa.Schema,
    ids: tuple[str, ...],
    rows: int | None,
    columns: list[str] | None,
    predicate: pl.Expr | None,
    limit: int | None,
    size: int | None,
) -> Iterator[pl.DataFrame]:
    """Yield what a query asks for: of these columns, the first ``limit`` rows, and of them those that pass the predicate."""
    import polars as pl

    tested = [] if predicate is None else predicate.meta.root_names()
    wanted = whole.names if columns is None else columns
    schema = pa.schema([field for field in whole if field.name in {*wanted, *tested}])
    carried = tuple(name for name in ids if name in schema.names)
    early = set(tested) <= set(carried)  # so that rows which the query drops are not projected
    left = limit
    for piece in reading(carried, rows=rows or size):
        part = piece if left is None else _taken(piece, slice(0, left))
        left = None if left is None else left - part.x.shape[0]
        if predicate is not None and early:
            kept = pl.DataFrame(part.carried).with_row_index("__row").filter(predicate)["__row"].to_numpy()
            part = _taken(part, kept)
        frame = pl.DataFrame(pa.table(score(factors, part, schema)))
        yield (frame if predicate is None or early else frame.filter(predicate)).select(wanted)
        if left == 0:
            return


def _taken(piece: Piece, rows: slice | np.ndarray) -> Piece:
    if piece.carried is None:
        return piece._replace(x=piece.x[rows])
    carried = piece.carried[rows] if isinstance(rows, slice) else piece.carried.take(pa.array(rows))
    return piece._replace(x=piece.x[rows], carried=carried)
