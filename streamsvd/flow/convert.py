"""Tables become matrices at about one memcpy, or none.

The engine takes a 2-D array of any strides, so N columns of numbers become one column-major array (asking Arrow for row-major order
costs 10 to 20 times more), and one column of fixed-size lists is not copied: it is seen as the row-major matrix that it is.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.flow.columns import Layout, is_list, list_width

if TYPE_CHECKING:
    import pyarrow as pa


def convert(batch: pa.RecordBatch, layout: Layout, nulls: str, /) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the matrix (b, d) of a batch and what stands beside it, each (b,); ``nulls="drop"`` leaves rows out.

    Raises
    ------
    ValueError
        Nulls, where ``nulls="error"``, or lists of another length.
    """
    import pyarrow as pa

    beside = {name: batch.column(name) for name in layout.beside.values()}
    if layout.direct and not any(column.null_count for column in beside.values()):
        whole = batch if layout.columns == tuple(layout.schema.names) else batch.select(layout.columns)
        try:  # to look for nulls in each of 1000 columns costs more than to copy them, and Arrow looks anyway
            return whole.to_tensor(row_major=False).to_numpy(), _vectors(beside, layout)
        except pa.ArrowException:
            pass
    widths = dict(zip(layout.columns, layout.widths, strict=True))
    columns = {name: _fixed(batch.column(name), width, name) for name, width in widths.items()}
    with_nulls = {name: _null_rows(column) for name, column in (columns | beside).items() if _has_nulls(column)}
    if with_nulls and nulls == "error":
        counts = ", ".join(f"column {name!r} has {int(bad.sum())}" for name, bad in with_nulls.items())
        msg = f'nulls in {batch.num_rows} rows: {counts}; write nulls="drop" to leave such rows out, or fill them first'
        raise ValueError(msg)
    if with_nulls:
        keep = pa.array(~np.logical_or.reduce(list(with_nulls.values())))
        columns = {name: column.filter(keep) for name, column in columns.items()}
        beside = {name: column.filter(keep) for name, column in beside.items()}
    return _matrix(list(columns.values()), layout), _vectors(beside, layout)


def _vectors(beside: dict[str, Any], layout: Layout) -> dict[str, np.ndarray]:
    import pyarrow as pa

    def vector(column: Any) -> np.ndarray:
        is_time = pa.types.is_temporal(column.type)
        return column.cast(pa.timestamp("us") if is_time else pa.float64(), safe=False).to_numpy()

    return {role: vector(beside[name]) for role, name in layout.beside.items()}


def _matrix(columns: list[Any], layout: Layout) -> np.ndarray:
    import pyarrow as pa

    n, blocks = len(columns[0]), []
    for lists, group in groupby(zip(columns, layout.widths, strict=True), key=lambda pair: pair[1] is not None):
        if lists:
            blocks += [_flat(column).to_numpy().reshape(n, width) for column, width in group]
        else:
            numbers = [c if c.type == layout.kind else c.cast(layout.kind, safe=False) for c, _ in group]
            batch = pa.RecordBatch.from_arrays(numbers, names=[str(i) for i in range(len(numbers))])
            blocks.append(batch.to_tensor(row_major=False).to_numpy())
    if len(blocks) == 1:
        return blocks[0]
    dtype = None if layout.kind is None else layout.kind.to_pandas_dtype()
    return np.concatenate(blocks, axis=1, dtype=dtype)


def _fixed(column: Any, width: int | None, name: str) -> Any:
    """Return a column as plain numbers or fixed-size lists: extension types unwrapped, lists of one length declared so."""
    import pyarrow as pa

    while isinstance(column, pa.ExtensionArray):
        column = column.storage
    if width is None or pa.types.is_fixed_size_list(column.type):
        return column
    lengths = column.value_lengths().drop_null().to_numpy()
    inner = list_width(pa.array([], column.type.value_type)) if is_list(column.type.value_type) else 1
    if (lengths * inner != width).any():
        msg = f"column {name!r} holds lists of {lengths.min()} to {lengths.max()} values; expected {width // inner} in every row"
        raise ValueError(msg)
    return column.cast(pa.list_(column.type.value_type, width // inner))


def _has_nulls(column: Any) -> bool:
    while not column.null_count and is_list(column.type):
        column = _inner(column)
    return bool(column.null_count)


def _null_rows(column: Any) -> np.ndarray:
    """Tell for each row whether it or a number in it is null."""
    bad = column.is_null().to_numpy(zero_copy_only=False).copy()
    if is_list(column.type) and not bad.all():
        rest = column.drop_null()
        bad[~bad] = _null_rows(_inner(rest)).reshape(len(rest), -1).any(axis=1)
    return bad


def _flat(column: Any) -> Any:
    import pyarrow as pa

    while is_list(column.type):
        column = _inner(column)
    # Bits and nothings have no numbers to look at.
    return column.cast(pa.uint8()) if pa.types.is_boolean(column.type) or pa.types.is_null(column.type) else column


def _inner(column: Any) -> Any:
    # flatten() knows where a slice begins; the attribute `values` holds the whole parent.
    import pyarrow as pa

    return column.storage if isinstance(column, pa.ExtensionArray) else column.flatten()
