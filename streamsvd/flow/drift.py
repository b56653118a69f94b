"""Columns that change within a stream: which changes are taken, and what is said about the others.

The columns of the first batch are the measure. Their order may change, and numbers may become wider (int32 to int64 or double, float to
double; a column without any number has no type to keep). Where types are only guessed, which is so for CSV, NDJSON and frames of
pandas, any type of number may follow any other. Everything else is an error that names the column and both types.
Rows of a narrower type are converted to the type of the first batch; rows of a wider one, which that may not hold, keep theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamsvd.flow.columns import Layout, chosen_columns, plan
from streamsvd.flow.numbers import how_to_cast, number_type, widens
from streamsvd.flow.sources import listed

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

GUESSED = (".csv", ".tsv", ".ndjson", ".jsonl")


def remembered(layout: Layout, /) -> dict[str, Any]:
    """Return, as plain JSON, what later batches of the stream have to fit, in this process or in one that goes on after it."""
    return {
        "columns": list(layout.columns),
        "widths": list(layout.widths),
        "types": [str(kind) for kind in layout.types],
        "kind": None if layout.kind is None else str(layout.kind),
    }


def replan(
    first: dict[str, Any],
    batch: pa.RecordBatch,
    select: Sequence[str] | None,
    beside: dict[str, str],
    /,
    *,
    carry: Sequence[str] = (),
    file: str = "",
) -> Layout:
    """Decide how batches of another schema become matrices like those of the first batch.

    Parameters
    ----------
    first : dict, of `remembered`
    batch : RecordBatch
    select, beside, carry
        As in `streamsvd.flow.columns.plan`.
    file : str
        Where the batch comes from; its suffix says whether types are guessed.

    Raises
    ------
    TypeError, ValueError
        Columns come or go, hold another number of numbers a row, or change their type in another way than by widening.
    """
    import pyarrow as pa

    old, now = first["columns"], chosen_columns(batch.schema, select, [*beside.values(), *carry])
    if set(old) != set(now):
        lacks = [f"lack {listed(name for name in old if name not in now)}"] if set(old) - set(now) else []
        adds = [f"have {listed(name for name in now if name not in old)} besides"] if set(now) - set(old) else []
        msg = f"the columns {' and '.join(lacks + adds)}, compared with the first batch; write select=[...] to take the same everywhere"
        raise ValueError(msg)
    guessed = file.lower().endswith(GUESSED) or b"pandas" in (batch.schema.metadata or {})
    for name, kind in zip(old, first["types"], strict=True):
        _fits(name, batch.schema.field(name).type, pa.type_for_alias(kind), guessed=guessed)
    kind = None if first["kind"] is None else pa.type_for_alias(first["kind"])
    new = plan(batch, old, beside, carry=carry, at_least=kind)
    for name, width, here in zip(old, first["widths"], new.widths, strict=True):
        if width != here:
            msg = f"column {name!r} holds {here or 1} numbers a row here and held {width or 1} in the first batch; the width must stay"
            raise ValueError(msg)
    return new


def _fits(name: str, kind: pa.DataType, old: pa.DataType, *, guessed: bool) -> None:
    new = number_type(kind)
    if new is not None and (guessed or widens(old, new)):
        return
    what = f"column {name!r} is of type {kind} here and was of type {old} in the first batch"
    if new is None:
        msg = f"{what}; {how_to_cast(name, kind)}"
        raise TypeError(msg)
    cure = f"cast it to {old}, or read the files with the wider type first"
    msg = f"{what}, and numbers may only become wider; {cure}"
    raise ValueError(msg)
