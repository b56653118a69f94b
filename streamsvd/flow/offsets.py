"""Where reading can go on: offsets as plain JSON, and whether a source still is what an offset was taken of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from streamsvd.flow.blocks import Place
from streamsvd.flow.files import File

# {"items": [mark, ...], "group", "within", "row": a Place in the last item, "rows": rows in all, "whole": the last item is at its end}
Offset = dict[str, Any]
Mark = dict[str, Any]
ANEW = "put the source back as it was, or begin anew with another checkpoint"


class Begin(NamedTuple):
    """Where a pass over a source begins."""

    marks: list[Mark]  # of the items that are passed over, joined
    place: Place  # in the item after them
    rows: int  # rows before that place in all


def begin(start: Offset | None, /) -> Begin:
    """Return the items that an offset passes over, and the place where reading goes on in the next one."""
    if start is None:
        return Begin([], Place(), 0)
    try:
        marks, place = list(start["items"]), Place(*(int(start[key]) for key in Place._fields))
        rows, whole = int(start["rows"]), bool(start["whole"])
    except (KeyError, TypeError, ValueError) as error:
        msg = f"start={start!r} arrived; expected the offset of a block, which this is not ({error!r})"
        raise ValueError(msg) from error
    if whole or not marks:
        return Begin(marks, Place(), rows)
    last = marks.pop()
    if last.get("count", 1) > 1:
        marks.append({**last, "count": last["count"] - 1})
    return Begin(marks, place, rows)


def offset(marks: list[Mark], place: Place, rows: int, *, whole: bool = False) -> Offset:
    """Return the offset at a place in the last of the items."""
    return {"items": marks, **place._asdict(), "rows": rows, "whole": whole}


def mark(item: Any, /) -> Mark:
    """Return what an item of a source is known by."""
    if isinstance(item, File):
        return item.mark()
    return {"type": f"{type(item).__module__}.{type(item).__qualname__}"}


def joined(marks: list[Mark], last: Mark, /) -> list[Mark]:
    """Return the marks with one more; things of one type in a row are one mark with a count."""
    if marks and "type" in last and marks[-1].get("type") == last["type"]:
        return [*marks[:-1], {**last, "count": marks[-1].get("count", 1) + 1}]
    return [*marks, last]


def each(marks: Iterable[Mark], /) -> Iterator[Mark]:
    """Return the marks one by one, the inverse of `joined`."""
    for one in marks:
        yield from [{key: one[key] for key in one if key != "count"}] * one.get("count", 1)


def verify(items: Sequence[Any], start: Offset | None, /) -> None:
    """Raise ValueError where the items that an offset was taken of are not the first items any more."""
    if start is None:
        return
    for i, before in enumerate(each(start["items"])):
        if i == len(items):
            msg = f"item {i} of the source, {named(before)}, was read before and is missing now; {ANEW}"
            raise ValueError(msg)
        now = mark(items[i])
        if now.get("path") != before.get("path") or now.get("type") != before.get("type"):
            raise ValueError(_other(before, now, items[i:]))
        same(before, now)


def same(before: Mark, now: Mark, /) -> None:
    """Raise ValueError where a file is not what it was when it was read, naming the difference."""
    named = {
        "size": "its size in bytes",
        "head": "the digest of its first bytes",
        "mtime_ns": "the time of its last change",
    }
    for key, what in named.items():
        if key in now and before.get(key) != now[key]:
            msg = f"{before['path']!r} changed after it was read: {what} was {before.get(key)} and is {now.get(key)}; {ANEW}"
            raise ValueError(msg)


def named(one: Mark, /) -> str:
    """Return what a mark is of, for a message."""
    return repr(one["path"]) if "path" in one else f"of type {one['type']}"


def _other(before: Mark, now: Mark, rest: Sequence[Any]) -> str:
    if "path" in before and "path" in now:
        if any(isinstance(item, File) and item.key == before["path"] for item in rest):
            return f"{now['path']!r} is new, and comes before {before['path']!r}, which was read before; {ANEW}"
        return f"{before['path']!r} was read before and is missing now, {now['path']!r} is in its place; {ANEW}"
    return f"{named(before)} was read before, and {named(now)} is in its place now; {ANEW}"
