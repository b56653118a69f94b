"""What is asked of Arrow types: whether they are numbers, how many in a row, which are wider, and how others become numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pyarrow as pa


def is_list(kind: pa.DataType) -> bool:
    """Tell whether a row of a column of this type is a list."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        return is_list(kind.storage_type)
    return pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)


def list_width(column: Any) -> int:
    """Return how many numbers a row of a list column holds, which for lists of no fixed length its first row decides."""
    import pyarrow as pa

    kind, width = column.type, 1
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        rows = column.drop_null()
        width, kind = (len(rows[0]) if len(rows) else 0), kind.value_type
    while isinstance(kind, pa.BaseExtensionType) or pa.types.is_fixed_size_list(kind):
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        else:
            width, kind = width * kind.list_size, kind.value_type
    return width


def number_type(kind: pa.DataType) -> pa.DataType | None:
    """Return the type of the numbers in a column, or None where they are not numbers. Only the outermost list may vary in length."""
    import pyarrow as pa

    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    while isinstance(kind, pa.BaseExtensionType) or pa.types.is_fixed_size_list(kind):
        kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind.value_type
    is_number = (
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)
    )
    return kind if is_number else None


def widens(old: pa.DataType, new: pa.DataType, /) -> bool:
    """Tell whether every number of the type ``old`` has its place among those of the type ``new``, which is at least as wide."""
    from pyarrow import types

    if old == new or types.is_null(old) or types.is_null(new):
        return True
    if types.is_boolean(old) or types.is_boolean(new):
        return False
    if types.is_floating(old):
        return types.is_floating(new) and new.bit_width > old.bit_width
    if types.is_floating(new):
        return new.bit_width >= old.bit_width
    room = new.bit_width - old.bit_width
    return room > 0 and (types.is_signed_integer(new) or types.is_unsigned_integer(old))


def how_to_cast(name: str, kind: pa.DataType, /) -> str:
    """Say, in a clause, how a column that is not numbers becomes numbers before it is passed."""
    import pyarrow as pa

    column, types = f"pl.col({name!r})", pa.types
    inside, depth = kind, 0
    while is_list(inside):
        inside, depth = inside.value_type, depth + 1
    if depth and (number_type(inside) is not None or (depth == 1 and _is_text(inside))):
        flat = f"{column}.cast(pl.List(pl.Float64))" if depth == 1 else f"{column}.list.eval(pl.element().explode())"
        return f"make lists of numbers, n in each, of it first (polars: {flat}.list.to_array(n))"
    if types.is_dictionary(kind) and number_type(kind.value_type) is None:
        return f"encode it first (polars: frame.to_dummies({name!r}) makes one column of 0 and 1 of each value)"
    if types.is_struct(kind):
        return f"take it apart first (polars: frame.unnest({name!r}), pyarrow: table.flatten())"
    if types.is_duration(kind) or types.is_time(kind):
        polars, arrow = "cast(pl.Int64)", "cast('int64')"
    elif types.is_temporal(kind):
        polars, arrow = "dt.epoch('s')", "cast('timestamp[s]').cast('int64')"
    elif types.is_dictionary(kind) or types.is_decimal(kind) or _is_text(kind):
        polars, arrow = "cast(pl.Float64)", "cast('float64')"
    else:
        return "make numbers of it first, each in a column of its own or in lists of one length"
    arrow = f"table.set_column(table.column_names.index({name!r}), {name!r}, table[{name!r}].{arrow})"
    return f"cast it first (polars: {column}.{polars}, pyarrow: {arrow})"


def _is_text(kind: pa.DataType) -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def without_views(batch: pa.RecordBatch, names: Iterable[str], /) -> pa.RecordBatch:
    """Return the batch with these columns, where they are or hold Polars' views of text, as plain text: Arrow cannot take rows of views."""
    import polars as pl

    for name in names:
        i = batch.schema.get_field_index(name)
        if i >= 0 and "_view" in str(batch.schema.field(i).type):
            plain: Any = pl.Series(batch.column(i)).to_arrow(compat_level=pl.CompatLevel.oldest())
            batch = batch.set_column(i, batch.schema.field(i).with_type(plain.type), plain)
    return batch
