"""Rows in, coordinates out: a model applied to a stream, written as it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.arrays import to_numpy
from streamsvd.flow.batches import located, pieces
from streamsvd.flow.fold import _watch as watch
from streamsvd.flow.sinks import table_sink

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import pyarrow as pa

    from streamsvd.factors import Factors


def write_scores(
    factors: Factors,
    source: Any,
    path: str | os.PathLike[str],
    /,
    *,
    select: str | Sequence[str] | None = None,
    nulls: str = "error",
    anomaly: bool = False,
    progress: bool | None = None,
) -> int:
    """Write the coordinates of all rows of a source to a Parquet or Arrow IPC file, which appears when it is complete.

    Parameters
    ----------
    factors : Factors
    source : any source that `streamsvd.batches` reads
    path : path, .parquet or .arrow, .ipc, .feather
    select, nulls
        As in `streamsvd.batches`.
    anomaly : bool
        Also write two numbers a row, float64: ``residual``, the squared reconstruction error, and ``leverage``, Hotelling's T-squared.
    progress : bool, optional
        As in `streamsvd.fit`.

    Returns
    -------
    rows : int, written; each holds ``scores``, a fixed-size list of k numbers, in the order of the source

    Raises
    ------
    TypeError, ValueError, OSError
        For rows of another width or with numbers that are not finite (the message names file and rows), or what cannot be read or written.

    Notes
    -----
    Cost: ``d k`` multiply-adds a row, four times that with ``anomaly``. Memory: a batch or two and a row group.
    """
    schema = _schema(factors, anomaly)
    rows = 0
    stream = pieces(source, select=select, nulls=nulls)
    with table_sink(path, schema) as write, watch(progress, source, "projecting") as advance:
        for piece in stream:
            with located(piece.where):
                batch = _batch(factors, piece.x, schema)
            write(batch)
            rows += batch.num_rows
            advance(batch.num_rows)
    return rows


def _schema(factors: Factors, anomaly: bool) -> pa.Schema:
    import pyarrow as pa

    number = pa.from_numpy_dtype(to_numpy(factors.vt).dtype)
    fields = [pa.field("scores", pa.list_(number, factors.rank))]
    fields += [pa.field(name, pa.float64()) for name in ("residual", "leverage") if anomaly]
    return pa.schema(fields, metadata={"streamsvd.rank": str(factors.rank), "streamsvd.columns": str(factors.columns)})


def _batch(factors: Factors, X: Any, schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    scores = np.ascontiguousarray(to_numpy(factors.transform(X)))
    columns: list[Any] = [pa.FixedSizeListArray.from_arrays(pa.array(scores.reshape(-1)), factors.rank)]
    columns += [pa.array(to_numpy(getattr(factors, name)(X))) for name in schema.names[1:]]
    return pa.record_batch(columns, schema=schema)
