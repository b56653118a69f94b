"""Which columns of a table become which columns of the matrix, and of what type.

Types, a rule without exceptions: one column of lists keeps its own type; columns that are all float32 or all float64 keep theirs; a
mixture becomes float32 where that holds all of its numbers exactly (bool, 8 and 16-bit integers, float16, float32), else float64.
Later batches must have the columns of the first one (`streamsvd.flow.drift`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from streamsvd.flow.numbers import how_to_cast, is_list, list_width, number_type
from streamsvd.flow.sources import existing, listed

if TYPE_CHECKING:
    import pyarrow as pa


class Layout(NamedTuple):
    """How the batches of one schema become matrices."""

    schema: pa.Schema
    columns: tuple[str, ...]
    widths: tuple[int | None, ...]  # how many numbers a row of each column holds; None where a row is one number
    types: tuple[pa.DataType, ...]  # of the numbers in each column
    kind: pa.DataType | None  # what all numbers are cast to; None where the lists are of one type already
    direct: bool  # whether Arrow itself makes this matrix in one call
    beside: dict[
        str, str
    ]  # columns that are no part of the matrix, by what they are for: "weights", "timestamps", "by"
    names: tuple[str, ...]  # one for each column of the matrix


def plan(
    batch: pa.RecordBatch,
    select: Sequence[str] | None,
    beside: dict[str, str],
    /,
    *,
    carry: Sequence[str] = (),
    at_least: pa.DataType | None = None,
) -> Layout:
    """Decide how batches like this one become matrices, of the type ``at_least`` where that is the wider one.

    What stands in ``beside`` or in ``carry`` is no part of the matrix unless it is selected.

    Raises
    ------
    TypeError
        A column (of those selected, or of all) is not numbers.
    ValueError
        A column does not exist, or not once.
    """
    schema = batch.schema
    chosen = chosen_columns(schema, select, [*beside.values(), *carry])
    types = dict(zip(schema.names, schema.types, strict=True))
    kinds = {name: number_type(types[name]) for name in chosen}
    _all_numbers(types, kinds, chosen_by_user=select is not None)
    for role, name in beside.items():
        _one_a_row(role, name, types[name])
    widths = [list_width(batch.column(name)) if is_list(types[name]) else None for name in chosen]
    kind = _common(set(kinds.values()), lists_only=None not in widths)
    kind = at_least if None not in (kind, at_least) and str(at_least) == "double" else kind
    direct = kind is not None and _arrow_kind(batch.slice(0, 0).select(chosen)) == kind
    names: list[str] = []
    for name, width in zip(chosen, widths, strict=True):
        names += [name] if width is None else [f"{name}[{i}]" for i in range(width)]
    if select is not None and not set(select) <= set(chosen) and names != list(select):
        msg = f"select takes lists whole and in order, which gives {listed(names)}; got {listed(select)}: name the column itself"
        raise ValueError(msg)
    numbers = tuple(kind for kind in kinds.values() if kind is not None)
    return Layout(schema, tuple(chosen), tuple(widths), numbers, kind, direct, beside, tuple(names))


def chosen_columns(schema: pa.Schema, select: Sequence[str] | None, beside: Sequence[str], /) -> list[str]:
    """Return the names of the columns of the matrix: those selected, or all but what stands beside it and the index of pandas."""
    existing(schema.names, beside)
    other = {*beside, *_index_columns(schema)}
    chosen = existing(schema.names, [name for name in schema.names if name not in other] if select is None else select)
    if select is None and chosen and "" in chosen:
        rest = listed(name for name in chosen if name)
        msg = f"a column has no name (an index that pandas wrote?); write select=[{rest}] to leave it out, or give it a name"
        raise ValueError(msg)
    return chosen or []


def checked(select: str | Sequence[str] | None, rows: int | None, /) -> tuple[tuple[str, ...] | None, int | None]:
    """Return the names of columns as a tuple, and the rows, or raise where they are no such thing."""
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


def _index_columns(schema: pa.Schema) -> list[str]:
    # pandas hands its index over as a column, which is no feature that anybody meant.
    meta = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
    return [name for name in meta.get("index_columns", []) if isinstance(name, str)]


def _all_numbers(types: dict[str, pa.DataType], kinds: dict[str, Any], *, chosen_by_user: bool) -> None:
    bad = [name for name, kind in kinds.items() if kind is None]
    if not bad and kinds:
        return
    good = [name for name, kind in kinds.items() if kind is not None]
    shown = ", ".join(f"{name!r} ({types[name]})" for name in bad[:20])
    what = f"columns are not numbers: {shown}" if bad else f"no column is left of {listed(types)}"
    cure = f"; write select=[{listed(good)}] to take the others" if good else ""
    cure = "; leave it out of select" if chosen_by_user else cure
    cast = (
        f"{', or' if cure else ';'} {how_to_cast(bad[0], types[bad[0]])}" if bad else "; cast a column to numbers first"
    )
    raise TypeError(what + cure + cast)


def _one_a_row(role: str, name: str, kind: pa.DataType) -> None:
    import pyarrow as pa

    if role == "by":
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        checks = "string", "large_string", "string_view", "integer", "boolean", "date"
        good, expected = (
            any(getattr(pa.types, f"is_{check}")(plain) for check in checks),
            "text, whole numbers, bool or dates",
        )
    else:
        is_time = role == "timestamps" and (pa.types.is_timestamp(kind) or pa.types.is_date(kind))
        good = is_time or not (is_list(kind) or number_type(kind) is None)
        expected = f"one number{' or time' * (role == 'timestamps')} a row"
    if not good:
        msg = f"{role}={name!r} is a column of type {kind}; expected {expected}"
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
