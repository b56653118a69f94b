"""Tables become matrices at about one memcpy, or none.

The engine takes a 2-D array of any strides, so N columns of numbers become one column-major array (asking Arrow for row-major order
costs 10 to 20 times more), and one column of fixed-size lists is not copied: it is seen as the row-major matrix that it is.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from streamsvd.flow.numbers import is_list, list_width
from streamsvd.flow.policies import take_rows

if TYPE_CHECKING:
    import pyarrow as pa

    from streamsvd.flow.columns import Layout


class Converted(NamedTuple):
    """A batch as a matrix, and what is known of its rows."""

    x: np.ndarray  # (b, d)
    missing: np.ndarray | None  # (b, d), where x holds 0 in the place of a null
    beside: dict[str, np.ndarray]  # "weights" and "timestamps", each (b,)
    keys: Any = None  # pyarrow array (b,)
    kept: np.ndarray | None = None  # which rows of the batch these are; None for all


def convert(batch: pa.RecordBatch, layout: Layout, nulls: str, /, *, first: int = 0) -> Converted:
    """Return the matrix (b, d) of a batch and what stands beside it.

    Parameters
    ----------
    batch : RecordBatch
    layout : Layout
    nulls : {"error", "drop", "mean"}
        Raise, leave such rows out, or write 0 and say where.
    first : int
        The number of its first row, for messages.

    Raises
    ------
    ValueError
        Nulls, where they may not be, or lists of another length.
    """
    import pyarrow as pa

    beside = {name: batch.column(name) for name in layout.beside.values()}
    if layout.direct and not any(column.null_count for column in beside.values()):
        whole = batch if layout.columns == tuple(layout.schema.names) else batch.select(layout.columns)
        try:  # to look for nulls in each of 1000 columns costs more than to copy them, and Arrow looks anyway
            return Converted(whole.to_tensor(row_major=False).to_numpy(), None, *_besides(beside, layout))
        except pa.ArrowException:
            pass
    widths = dict(zip(layout.columns, layout.widths, strict=True))
    columns = {name: _fixed(batch.column(name), width, name) for name, width in widths.items()}
    holes = {name: _null_rows(column) for name, column in (columns | beside).items() if _has_nulls(column)}
    if holes and nulls != "drop":
        _refuse(holes, beside, nulls, first)
    if not holes:
        return Converted(_matrix(list(columns.values()), layout), None, *_besides(beside, layout))
    if nulls == "mean":
        return Converted(*_filled(batch, columns, holes, layout), *_besides(beside, layout))
    kept = np.flatnonzero(~np.logical_or.reduce(list(holes.values())))
    beside = {name: column.take(pa.array(kept)) for name, column in beside.items()}
    whole = _with_nans(batch, layout)
    columns = {} if whole is not None else {name: column.take(pa.array(kept)) for name, column in columns.items()}
    x = _matrix(list(columns.values()), layout) if whole is None else take_rows(whole, kept)
    return Converted(x, None, *_besides(beside, layout), kept)


def _with_nans(batch: pa.RecordBatch, layout: Layout) -> np.ndarray | None:
    """Return the matrix with NaN in the place of nulls, where Arrow makes it in one call, or None."""
    if not layout.direct:
        return None
    tensor = batch.select(layout.columns).to_tensor(null_to_nan=True, row_major=False)
    return tensor.to_numpy() if tensor.type == layout.kind else None


def _filled(
    batch: pa.RecordBatch, columns: dict[str, Any], holes: dict[str, np.ndarray], layout: Layout
) -> tuple[np.ndarray, np.ndarray]:
    """Return the matrix with 0 in the place of nulls, and where they were."""
    x, at = _with_nans(batch, layout), 0
    shape = batch.num_rows, sum(1 if width is None else width for width in layout.widths)
    missing = np.zeros(shape, dtype=bool, order="C" if None not in layout.widths else "F")  # as the matrix is
    for (name, column), width in zip(list(columns.items()), layout.widths, strict=True):
        if name in holes and width is not None:
            columns[name], missing[:, at : at + width] = _without_nulls(column, width, name)
        elif name in holes:
            missing[:, at] = holes[name]
            columns[name] = _flat(column).fill_null(0) if x is None else column
        at += 1 if width is None else width
    if x is None:
        return _matrix(list(columns.values()), layout), missing
    x = x if x.flags.writeable else x.copy(order="K")
    np.copyto(x, 0, where=missing)
    return x, missing


def _refuse(holes: dict[str, np.ndarray], beside: dict[str, Any], nulls: str, first: int) -> None:
    """Raise for nulls that are to be neither dropped nor filled."""
    bad = {name: rows for name, rows in holes.items() if nulls == "error" or name in beside}
    if not bad:
        return
    counts = ", ".join(f"column {name!r} has {int(rows.sum())}" for name, rows in bad.items())
    row = first + min(int(rows.argmax()) for rows in bad.values())
    fill = "to fill them with a mean" if nulls == "error" and not set(bad) & set(beside) else ""
    cure = 'write nulls="drop" to leave such rows out' + (f', nulls="mean" {fill}' if fill else "")
    n = next(iter(bad.values())).size
    msg = f"nulls in {n} rows: {counts}; {cure}, or fill them first (the first is in row {row})"
    raise ValueError(msg)


def _without_nulls(column: Any, width: int, name: str) -> tuple[Any, np.ndarray]:
    """Return a column of lists with 0 in the place of nulls, and where (b, width) they were."""
    import pyarrow as pa

    n = len(column)
    if width == 0:
        msg = (
            f"column {name!r} begins with nulls, which do not say how many numbers a row of it holds; "
            'write nulls="drop", or cast it to lists of a fixed size'
        )
        raise ValueError(msg)
    there = np.flatnonzero(~column.is_null().to_numpy(zero_copy_only=False))
    flat = _flat(column.drop_null())
    values, mask = np.zeros((n, width), flat.type.to_pandas_dtype()), np.ones((n, width), dtype=bool)
    values[there] = flat.fill_null(0).to_numpy().reshape(-1, width)
    mask[there] = flat.is_null().to_numpy(zero_copy_only=False).reshape(-1, width)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), width), mask


def _besides(beside: dict[str, Any], layout: Layout) -> tuple[dict[str, np.ndarray], Any]:
    return _vectors(beside, layout), beside[layout.beside["by"]] if "by" in layout.beside else None


def _vectors(beside: dict[str, Any], layout: Layout) -> dict[str, np.ndarray]:
    import pyarrow as pa

    def vector(column: Any) -> np.ndarray:
        is_time = pa.types.is_temporal(column.type)
        return column.cast(pa.timestamp("us") if is_time else pa.float64(), safe=False).to_numpy()

    return {role: vector(beside[name]) for role, name in layout.beside.items() if role != "by"}


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
