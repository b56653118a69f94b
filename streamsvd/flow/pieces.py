"""A source as a stream of matrices: each with its place, what stands beside its rows, and the counts so far."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from streamsvd.arrays import is_sparse
from streamsvd.flow.columns import Layout, checked, plan
from streamsvd.flow.convert import convert
from streamsvd.flow.drift import remembered, replan
from streamsvd.flow.numbers import without_views
from streamsvd.flow.policies import Intake, Policies, enforce, not_finite, plus, take_rows
from streamsvd.flow.quarantine import Quarantine, Rejected
from streamsvd.flow.readahead import ahead
from streamsvd.flow.sources import Block, owned, read

if TYPE_CHECKING:
    import os

    import pyarrow as pa

    from streamsvd.arrays import Array

logger = logging.getLogger("streamsvd")


class Piece(NamedTuple):
    """One batch of a stream: its rows as a matrix, and what is known of them."""

    x: Array  # (b, d), or CSR; None where a source that is waited for has nothing yet
    names: tuple[str, ...]  # of the columns; empty for arrays
    beside: dict[str, np.ndarray]  # "weights" and "timestamps", each (b,), where columns were named for them
    where: str  # for messages: "events/a.parquet, rows 0 to 4095"
    offset: dict[str, Any] | None = None  # where reading can go on after it
    intake: Intake = Intake()  # running counts after it  # noqa: RUF009, RUF100
    keys: pa.Array | None = None  # (b,), of the column named by=
    file: str = ""  # empty where the rows come from no file
    row: int = 0  # the number of the first row read for it, in that file or in the stream
    kept: np.ndarray | None = None  # which of the rows from there on x holds; None for all
    carried: pa.RecordBatch | None = None  # (b rows), the columns named carry=, as they were read


class Reading(NamedTuple):
    """How blocks become pieces."""

    select: tuple[str, ...] | None
    beside: dict[str, str]
    carry: tuple[str, ...]
    policies: Policies
    keep_rejected: bool


def pieces(
    source: Any,
    /,
    *,
    select: str | Sequence[str] | None = None,
    rows: int | None = None,
    nulls: str = "error",
    nonfinite: str = "error",
    weights: str | None = None,
    timestamps: str | None = None,
    by: str | None = None,
    carry: Sequence[str] = (),
    quarantine: Quarantine | str | os.PathLike[str] | None = None,
    start: dict[str, Any] | None = None,
    intake: Intake | None = None,
) -> Iterator[Piece]:
    """Read any source as `streamsvd.batches` does, with the place of each batch, what stands beside its rows, and the counts so far.

    Parameters
    ----------
    source, select, rows, nulls, nonfinite
        As in `streamsvd.batches`.
    weights, timestamps, by : str, optional
        Columns with the weight, the time and the key of each row. With ``select=None`` they are no columns of the matrix. A null in them
        raises, unless ``nulls="drop"`` leaves its row out; ``nonfinite="drop"`` leaves out rows whose weight or time is not finite.
    carry : sequence of str
        Columns of any type to hand on as they were read.
    quarantine : Quarantine or path, optional
        Where rows that are left out are written, each before its piece is handed on.
    start : dict, optional
        The ``offset`` of a piece of an earlier run: go on after it.
    intake : Intake, optional
        The ``intake`` of that piece.

    Yields
    ------
    piece : Piece
        A block that lost all its rows gives a piece of 0 rows, for its offset and counts; before the first row is kept, its width
        means nothing. A source that is waited for gives pieces with ``x=None``.

    Notes
    -----
    Files are read and converted by one background thread, two batches ahead; everything else in the thread of the caller.
    """
    columns, rows = checked(select, rows)
    policies = Policies(nulls, nonfinite).checked()
    named = {"weights": weights, "timestamps": timestamps, "by": by}
    beside = {role: name for role, name in named.items() if name is not None}
    for role, name in beside.items():
        if not isinstance(name, str):
            arrays = f" (sketch.update(X, {role}=...) takes arrays)" if role != "by" else ""
            msg = f"{role} of type {type(name).__name__} arrived; expected the name of a column{arrays}"
            raise TypeError(msg)
    wanted = None if columns is None else list(dict.fromkeys([*columns, *beside.values(), *carry]))
    if intake is None:
        intake = Intake(seen=start["rows"] if start else 0)
    blocks = read(source, columns=wanted, rows=rows, start=start)
    reading = Reading(columns, beside, tuple(carry), policies, quarantine is not None)
    stream = _converted(blocks, reading, intake)
    if quarantine is None or isinstance(quarantine, Quarantine):
        return _delivered(ahead(stream) if owned(source) else stream, quarantine)
    sink = Quarantine(quarantine)
    if sink.is_folder or start:
        sink.resume(intake.seen)
    return _delivered(ahead(stream) if owned(source) else stream, sink, close=True)


@contextmanager
def located(place: Piece | str, /) -> Iterator[None]:
    """Put the place of a batch, where it has one, in front of what is wrong with it, and name the first number that is not finite."""
    try:
        yield
    except (TypeError, ValueError) as error:
        where, more = (place, "") if isinstance(place, str) else (place.where, _first_bad(place))
        kind = TypeError if isinstance(error, TypeError) else ValueError
        msg = f"{where}: {error}{more}" if where else str(error) + more
        raise kind(msg) from error


def _delivered(stream: Iterator[tuple[Piece, list[Rejected]]], sink: Any, *, close: bool = False) -> Iterator[Piece]:
    """Hand pieces on, and write what was rejected when it is their turn: not when they are read, which is earlier."""
    last = None
    with closing(stream):  # pyright: ignore[reportArgumentType]
        try:
            for piece, rejected in stream:
                for part in rejected:
                    sink.write(*part)
                last = piece.intake
                yield piece
                del piece
        finally:
            if close:
                sink.close()
    if last is not None and last.dropped:
        reasons = " and ".join(
            {"null": "nulls", "nonfinite": "numbers that are not finite"}[why] for why in last.dropped
        )
        logger.info(f"%d of %d rows were left out because of {reasons}", sum(last.dropped.values()), last.seen)


def _converted(blocks: Iterable[Block], reading: Reading, intake: Intake) -> Iterator[tuple[Piece, list[Rejected]]]:
    layout: Layout | None = None
    for block in blocks:
        if block.data is None:
            yield Piece(None, (), {}, "", block.offset, intake), []
            continue
        if hasattr(block.data, "schema"):  # what is in the matrix is numbers
            block = block._replace(data=without_views(block.data, [*reading.beside.values(), *reading.carry]))
        piece, missing, fresh = _opened(block, intake), None, None
        if hasattr(block.data, "schema"):
            with located(block.file or piece.where):
                fresh = _layout(layout, piece, reading)
            with located(piece.where):
                piece, missing = _from_table(piece, fresh, reading)
        else:
            _no_names(piece.where, reading)
        with located(piece.where):
            piece, rejected = _enforced(piece, block.data, missing, reading)
        if fresh is not None and piece.x.shape[0]:  # a batch that loses all its rows teaches nothing about widths
            layout = fresh
            if piece.intake.first is None:
                piece = piece._replace(intake=replace(piece.intake, first=remembered(fresh)))
        intake = piece.intake
        yield piece, rejected


def _opened(block: Block, intake: Intake) -> Piece:
    n = block.data.num_rows if hasattr(block.data, "schema") else block.data.shape[0]
    first = block.row if block.file else intake.seen
    where = f"{block.file}{', ' if block.file else ''}rows {first} to {first + n - 1}"
    intake = replace(intake, seen=intake.seen + n)
    return Piece(block.data, (), {}, where, block.offset, intake, file=block.file, row=first)


def _layout(layout: Layout | None, piece: Piece, reading: Reading) -> Layout:
    if layout is not None and piece.x.schema.equals(layout.schema):
        return layout
    if piece.intake.first is None:
        return plan(piece.x, reading.select, reading.beside, carry=reading.carry)
    return replan(piece.intake.first, piece.x, reading.select, reading.beside, carry=reading.carry, file=piece.file)


def _from_table(piece: Piece, layout: Layout, reading: Reading) -> tuple[Piece, np.ndarray | None]:
    """Return a piece with a matrix in the place of its table, and where nulls are yet to be filled."""
    table = piece.x
    done = convert(table, layout, reading.policies.nulls, first=piece.row)
    carried = table.select(reading.carry) if reading.carry else None
    if carried is not None and done.kept is not None:
        carried = carried.take(_indices(done.kept))
    lost = plus(piece.intake.dropped, "null", table.num_rows - done.x.shape[0])
    intake = replace(piece.intake, dropped=lost)
    piece = piece._replace(x=done.x, names=layout.names, beside=done.beside, keys=done.keys, kept=done.kept)
    return piece._replace(carried=carried, intake=intake), done.missing


def _enforced(piece: Piece, data: Any, missing: np.ndarray | None, reading: Reading) -> tuple[Piece, list[Rejected]]:
    """Return a piece with the policies applied to its numbers, and the rows that it lost to them or to nulls before."""
    left = enforce(piece.x, reading.policies, piece.intake, missing=missing, beside=piece.beside.values())
    before, piece = piece.kept, piece._replace(x=left.x, intake=left.intake)
    if left.rows is not None:
        rows = left.rows
        piece = piece._replace(
            beside={role: vector[rows] for role, vector in piece.beside.items()},
            keys=None if piece.keys is None else piece.keys.take(_indices(rows)),
            kept=rows if before is None else before[rows],
            carried=None if piece.carried is None else piece.carried.take(_indices(rows)),
        )
    if piece.kept is None or not reading.keep_rejected:
        return piece, []
    n = data.num_rows if hasattr(data, "schema") else data.shape[0]
    reasons = np.full(n, "null", dtype=object)
    reasons[slice(None) if before is None else before] = "nonfinite"
    out = np.setdiff1d(np.arange(n), piece.kept, assume_unique=True)
    lost = data.take(_indices(out)) if hasattr(data, "schema") else take_rows(data, out)
    source = piece.file or ((piece.offset or {}).get("items") or [{}])[-1].get("type", "")
    return piece, [Rejected(lost, source, piece.row + out, list(reasons[out]))]


def _indices(rows: np.ndarray) -> Any:
    import pyarrow as pa

    return pa.array(rows, pa.int64())


def _first_bad(piece: Piece) -> str:
    """Say which number of a piece is the first that is not finite, or nothing where all are."""
    if is_sparse(piece.x):
        bad = np.flatnonzero(~np.isfinite(piece.x.data))[:1]
        places = [(int(np.searchsorted(piece.x.indptr, i, side="right") - 1), int(piece.x.indices[i])) for i in bad]
    elif (mask := not_finite(piece.x)) is not None:
        places = [divmod(int(mask.argmax()), mask.shape[1])]
    else:
        return ""
    for row, column in places:
        number = piece.row + (row if piece.kept is None else int(piece.kept[row]))
        name = f"column {piece.names[column]!r}" if piece.names else f"column {column}"
        there = f"row {number} of {piece.file}" if piece.file else f"row {number} of the stream"
        return f'; the first is {there}, {name}: nonfinite="drop" leaves such rows out, nonfinite="mean" fills them'
    return ""


def _no_names(where: str, reading: Reading) -> None:
    named = [*(["select"] if reading.select is not None else []), *reading.beside, *(["ids"] if reading.carry else [])]
    if named:
        msg = f"{where}: {named[0]}= names a column, and an array has no names; pass a table (pyarrow, polars), or leave {named[0]} out"
        raise TypeError(msg)
