"""Which columns of a table become which columns of the matrix, and of what type.

Types, a rule without exceptions: one column of lists keeps its own type; columns that are all float32 or all float64 keep theirs; a
mixture becomes float32 where that holds all of its numbers exactly (bool, 8 and 16-bit integers, float16, float32), else float64.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from streamsvd.flow.sources import existing, listed

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa


class Layout(NamedTuple):
    """How the batches of one schema become matrices."""

    schema: pa.Schema
    columns: tuple[str, ...]
    widths: tuple[int | None, ...]  # how many numbers a row of each column holds; None where a row is one number
    kind: pa.DataType | None  # what all numbers are cast to; None where the lists are of one type already
    direct: bool  # whether Arrow itself makes this matrix in one call
    beside: dict[str, str]  # columns that are no part of the matrix, by what they are for: "weights", "timestamps"
    names: tuple[str, ...]  # one for each column of the matrix


def plan(batch: pa.RecordBatch, select: Sequence[str] | None, beside: dict[str, str], /) -> Layout:
    """Decide how batches like this one become matrices.

    Raises
    ------
    TypeError
        A column (of those selected, or of all) is not numbers.
    ValueError
        A column does not exist, or not once.
    """
    schema = batch.schema
    existing(schema.names, list(beside.values()))
    other = {*beside.values(), *_index_columns(schema)}
    chosen = (
        existing(schema.names, [name for name in schema.names if name not in other] if select is None else select) or []
    )
    if select is None and "" in chosen:
        rest = listed(name for name in chosen if name)
        msg = f"a column has no name (an index that pandas wrote?); write select=[{rest}] to leave it out, or give it a name"
        raise ValueError(msg)
    types = dict(zip(schema.names, schema.types, strict=True))
    kinds = {name: _number_kind(types[name]) for name in chosen}
    _all_numbers(types, kinds, chosen_by_user=select is not None)
    for role, name in beside.items():
        _one_a_row(role, name, types[name])
    widths = [list_width(batch.column(name)) if is_list(types[name]) else None for name in chosen]
    kind = _common(set(kinds.values()), lists_only=None not in widths)
    direct = kind is not None and _arrow_kind(batch.slice(0, 0).select(chosen)) == kind
    names: list[str] = []
    for name, width in zip(chosen, widths, strict=True):
        names += [name] if width is None else [f"{name}[{i}]" for i in range(width)]
    if select is not None and not set(select) <= set(chosen) and names != list(select):
        msg = f"select takes lists whole and in order, which gives {listed(names)}; got {listed(select)}: name the column itself"
        raise ValueError(msg)
    return Layout(schema, tuple(chosen), tuple(widths), kind, direct, beside, tuple(names))


def replan(old: Layout, batch: pa.RecordBatch, select: Sequence[str] | None, /) -> Layout:
    """Decide anew for another schema, which must hold the same columns (in any order) with as many numbers in each."""
    new = plan(batch, select, old.beside)
    before, now = set(old.columns), set(new.columns)
    if before != now:
        lacks = [f"lack {listed(name for name in old.columns if name not in now)}"] if before - now else []
        adds = [f"have {listed(name for name in new.columns if name not in before)} besides"] if now - before else []
        msg = f"the columns {' and '.join(lacks + adds)}, compared with the first batch; write select=[...] to take the same everywhere"
        raise ValueError(msg)
    new = plan(batch, old.columns, old.beside)
    for name, width, here in zip(old.columns, old.widths, new.widths, strict=True):
        if width != here:
            msg = f"column {name!r} holds {here or 1} numbers a row here and held {width or 1} in the first batch; the width must stay"
            raise ValueError(msg)
    return new


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


def _index_columns(schema: pa.Schema) -> list[str]:
    # pandas hands its index over as a column, which is no feature that anybody meant.
    meta = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
    return [name for name in meta.get("index_columns", []) if isinstance(name, str)]


def _number_kind(kind: pa.DataType) -> pa.DataType | None:
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


def _all_numbers(types: dict[str, pa.DataType], kinds: dict[str, Any], *, chosen_by_user: bool) -> None:
    bad = [f"{name!r} ({types[name]})" for name, kind in kinds.items() if kind is None]
    if not bad and kinds:
        return
    good = [name for name, kind in kinds.items() if kind is not None]
    what = f"not numbers: {', '.join(bad[:20])}" if bad else f"no column is left of {listed(types)}"
    if chosen_by_user:
        cure = "; leave it out of select, or cast it to numbers or to lists of one length first"
    else:
        cure = f"; write select=[{listed(good)}] to take the others" if good else "; cast a column to numbers first"
    msg = f"columns are {what}{cure}" if bad else what + cure
    raise TypeError(msg)


def _one_a_row(role: str, name: str, kind: pa.DataType) -> None:
    import pyarrow as pa

    is_time = role == "timestamps" and (pa.types.is_timestamp(kind) or pa.types.is_date(kind))
    if not is_time and (is_list(kind) or _number_kind(kind) is None):
        msg = f"{role}={name!r} is a column of type {kind}; expected one number{' or time' * (role == 'timestamps')} a row"
        raise TypeError(msg)


def _common(kinds: set[Any], *, lists_only: bool) -> pa.DataType | None:
    import pyarrow as pa

    if lists_only and len(kinds) == 1 and not (kinds & {pa.null(), pa.bool_()}):
        return None
    exact = {pa.bool_(), pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.float16(), pa.float32(), pa.null()}
    return pa.float32() if kinds <= exact else pa.float64()


def _arrow_kind(batch: pa.RecordBatch) -> pa.DataType | None:
    """Return the type of the matrix that Arrow makes of these columns in one call, or None where it cannot."""
    import pyarrow as pa

    try:
        return batch.to_tensor(row_major=False).type
    except (pa.ArrowException, TypeError):
        return None
