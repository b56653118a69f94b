"""A batch of edges as it comes, checked: ids, weights, operations and times as arrays of one length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa


COLUMNS = ("user", "item", "weight", "op", "timestamp")
ADD, REMOVE = ("add", "+1", "1"), ("remove", "del", "delete", "-1")


@dataclass(frozen=True, eq=False)
class Batch:
    """Edges to add and to remove.

    Attributes
    ----------
    where : str, how errors call the batch
    users, items : Arrow array (b,), int64 or string
    weight : array (b,), float32, positive
    remove : array (b,), bool
    time : array (b,) or None, by which the operations are ordered
    """

    where: str
    users: Any
    items: Any
    weight: np.ndarray
    remove: np.ndarray
    time: np.ndarray | None = None

    @property
    def size(self) -> int:
        """Rows."""
        return len(self.users)


def as_batch(edges: Any, name: str, store: Any, /) -> Batch:
    """Return a batch from an Arrow table, a record batch, a frame or a dict of columns; see `store.update` for what is refused."""
    where = f"batch {name!r}" if name else f"the batch after {store.operations:,} rows"
    table = as_table(edges, where)
    users, items = (ids_of(table.column(side), side, where) for side in ("user", "item"))
    for side, ids, known in (("user", users, store.users), ("item", items, store.items)):
        if known is not None and len(known) and len(ids) and ids.type != known.type:
            msg = f"{where}: the {side} ids are of type {ids.type}, and those before were {known.type}; cast them"
            raise TypeError(msg)
    names = table.column_names
    remove = _operations(table.column("op"), where) if "op" in names else np.zeros(table.num_rows, bool)
    weight = _weights(table.column("weight"), remove, where) if "weight" in names else None
    time = _times(table.column("timestamp"), where) if "timestamp" in names else None
    return Batch(where, users, items, np.ones(table.num_rows, np.float32) if weight is None else weight, remove, time)


def as_table(edges: Any, where: str = "the edges", /) -> pa.Table:
    """Return an Arrow table of the columns that are known, from whatever holds columns."""
    import pyarrow as pa

    try:
        if isinstance(edges, pa.RecordBatch):
            table = pa.Table.from_batches([edges])
        elif isinstance(edges, dict):
            table = pa.table(edges)
        elif isinstance(edges, pa.Table):
            table = edges
        elif hasattr(edges, "__arrow_c_stream__"):
            table = pa.RecordBatchReader.from_stream(edges).read_all()
        elif hasattr(edges, "read_all"):
            table = edges.read_all()
        else:
            msg = f"{where} is a {type(edges).__name__}; expected an Arrow table, a frame, or a dict with user and item"
            raise TypeError(msg)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        msg = f"{where} cannot be read as columns: {error}; give each column one type and one length"
        raise ValueError(msg) from error
    missing = [name for name in COLUMNS[:2] if name not in table.column_names]
    if missing:
        msg = f"{where} has the columns {', '.join(table.column_names) or '(none)'} and lacks {' and '.join(missing)}; rename them"
        raise ValueError(msg)
    return table.select([name for name in COLUMNS if name in table.column_names])


def ids_of(column: Any, side: str, where: str, /) -> pa.Array:
    """Return ids as int64 or string, without nulls."""
    import pyarrow as pa
    import pyarrow.types as types

    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    if not text and not types.is_integer(kind) and not types.is_null(kind):
        msg = f"{where}: the {side} ids are of type {kind}; expected integers or strings: cast them"
        raise TypeError(msg)
    if column.null_count:
        row = int(np.flatnonzero(np.asarray(column.is_null()))[0])
        msg = f"{where}, row {row}: the {side} id is null; leave the row out, or give it an id"
        raise ValueError(msg)
    try:
        ids = column.cast(pa.string() if text else pa.int64())
    except pa.ArrowInvalid as error:
        msg = f"{where}: a {side} id does not fit into int64 ({error}); give such ids as strings"
        raise ValueError(msg) from error
    return ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids


def _weights(column: Any, remove: np.ndarray, where: str) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.types as types

    if not (types.is_floating(column.type) or types.is_integer(column.type)):
        msg = f"{where}: the weights are of type {column.type}; expected numbers"
        raise TypeError(msg)
    exact = np.asarray(column.cast(pa.float64(), safe=False).fill_null(np.nan))
    weight = np.where(remove, 1.0, exact)
    with np.errstate(over="ignore", invalid="ignore"):
        single = weight.astype(np.float32)
    wrong = np.flatnonzero(~(np.isfinite(single) & (single > 0)))
    if wrong.size:
        row = int(wrong[0])
        cure = "to take an edge out, write op='remove'"
        msg = f"{where}, row {row}: the weight is {exact[row]}; expected a positive finite number ({cure})"
        raise ValueError(msg)
    return single


def _operations(column: Any, where: str) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.compute as pc

    text, is_in = column.cast(pa.string()), pc.is_in  # pyright: ignore[reportAttributeAccessIssue]
    remove = np.asarray(is_in(text, value_set=pa.array(REMOVE)), dtype=bool)
    known = remove | np.asarray(is_in(text, value_set=pa.array(ADD)), dtype=bool)
    if not known.all():
        row = int(np.flatnonzero(~known)[0])
        msg = f"{where}, row {row}: op is {column[row].as_py()!r}; expected 'add' or 'remove' (or 1 or -1)"
        raise ValueError(msg)
    return remove


def _times(column: Any, where: str) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.types as types

    if column.null_count:
        row = int(np.flatnonzero(np.asarray(column.is_null()))[0])
        msg = f"{where}, row {row}: the timestamp is null; leave the column out where the rows are in order"
        raise ValueError(msg)
    if types.is_floating(column.type):
        return np.asarray(column.cast(pa.float64()))
    if types.is_timestamp(column.type) or types.is_date64(column.type) or types.is_integer(column.type):
        return np.asarray(column.cast(pa.int64()))
    msg = f"{where}: the timestamps are of type {column.type}; expected a timestamp or a number"
    raise TypeError(msg)
