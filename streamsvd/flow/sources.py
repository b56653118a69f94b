"""What a stream of rows may come from, opened and cut into blocks of bounded size, each with the offset to go on from.

Files (one, a glob, a folder, a URL, a list), a followed folder, anything with ``__arrow_c_stream__`` or ``__arrow_c_array__``, Polars
LazyFrames, pyarrow Datasets, Scanners and ParquetFiles, Flight readers, torch DataLoaders, arrays, sparse matrices, and iterators of any
of these. ``batches.py`` makes matrices of the blocks.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from streamsvd.arrays import is_sparse
from streamsvd.flow.arrayfiles import array_parts
from streamsvd.flow.blocks import (
    START,
    Part,
    Place,
    as_reader,
    count,
    cut,
    cut_array,
    existing,
    listed,
    table_step,
    without,
)
from streamsvd.flow.files import ARRAYS, SUFFIXES, File, find, naming
from streamsvd.flow.follow import Follow
from streamsvd.flow.objects import dataset, first_matrix, is_loader, lazy_frame, table
from streamsvd.flow.offsets import Offset, begin, each, joined, mark, offset, verify
from streamsvd.flow.readers import file_rows, open_file

__all__ = ["Block", "Offset", "as_reader", "existing", "listed", "owned", "read", "total_rows"]

ACCEPTED = (
    f"a path, glob or folder of {', '.join(SUFFIXES)} files or its URL, an Arrow, Polars or pandas table, a LazyFrame, a DuckDB relation, "
    "a pyarrow Dataset, Scanner or ParquetFile, a torch DataLoader, a 2-D array, a SciPy sparse matrix, or an iterator or list of these"
)

UNUSED = "pass one that was not used yet and gives the same rows again"


class Block(NamedTuple):
    """A piece of a source as it was read."""

    data: Any  # an Arrow RecordBatch, a 2-D array or a CSR matrix; None where a followed folder has nothing to read
    file: str = ""  # empty where the rows come from no file
    row: int = 0  # the number of its first row in that file, or in the stream
    offset: Offset | None = None  # where reading can go on after this block; plain JSON


# (columns, rows in a part) -> parts, from the first row on
Opener = Callable[[Any, Sequence[str] | None, int | None], Iterator[Part]]


def read(
    source: Any, /, *, columns: Sequence[str] | None = None, rows: int | None = None, start: Offset | None = None
) -> Iterator[Block]:
    """Cut a source into blocks of bounded size.

    Parameters
    ----------
    source : path, URL, Follow, table, lazy query, dataset, array, or an iterable of these
        See the module's docstring. A DataLoader gives tensors, or tuples, lists or dicts, of which the first 2-D tensor is taken.
    columns : sequence of str, optional
        Read only these columns of tables; every column otherwise. Arrays have no names to choose by.
    rows : int, optional
        At most so many rows in a block; otherwise as many as fit into 16 MiB.
    start : dict, optional
        The offset of a block: reading goes on after it, with blocks cut where they would be without the interruption.

    Returns
    -------
    blocks : iterator of Block
        One pass over the source in its own order. Paths are looked up and compared with ``start`` at once, all else is opened when the
        first block is asked for.

    Raises
    ------
    FileNotFoundError
        A path that does not exist, or a glob or folder with no file to read.
    ValueError
        An unknown kind of file, a damaged file, a column that does not exist, an array that is not 2-D; a source that is not what it was
        when ``start`` was taken of it, naming the difference.
    TypeError
        Something that holds no rows.

    Notes
    -----
    Memory: one block, and what the readers of Parquet and CSV hold of one row group or text block.

    After ``start``, files that were read are passed over unopened but for their first bytes. In the file at hand Parquet, IPC and array
    files go on at the row group, record batch or row; text is read again and its rows passed over, and so is everything that is no file:
    a query, a reader or an iterator must give the same rows again, in the same order.
    """
    if isinstance(source, Follow):
        return _blocks(source.files(start), columns, rows, start, lambda: source.stopped)
    passed, place, _ = begin(start)
    items = list(_items(source))
    verify(items, start)
    rest = items[sum(1 for _ in each(passed)) :]
    if place.row and inspect.isgenerator(rest[0]) and inspect.getgeneratorstate(rest[0]) != inspect.GEN_CREATED:
        msg = f"{place.row} rows of a generator were read before, and this one was already used; {UNUSED}"
        raise ValueError(msg)
    return _blocks(iter(rest), columns, rows, start, lambda: False)


def owned(source: Any, /) -> bool:
    """Whether a source is made of files only, so that a thread of ours may read it."""
    if isinstance(source, list | tuple):
        return bool(source) and all(map(owned, source))
    return isinstance(source, str | os.PathLike | Follow)


def total_rows(source: Any, /) -> int | None:
    """Return how many rows a source has where that is known without reading them, else None."""
    counts: list[int | None]
    if isinstance(source, str | os.PathLike):
        found = find(source)
        counts = [file_rows(file) for file in found] if len(found) <= 1000 else [None]
    elif isinstance(source, list | tuple):
        counts = [total_rows(part) for part in source]
    elif hasattr(source, "num_rows"):
        counts = [int(source.num_rows)]
    elif hasattr(getattr(source, "metadata", None), "num_rows"):
        counts = [int(source.metadata.num_rows)]
    elif is_sparse(source) or hasattr(source, "ndim") or type(source).__module__.startswith("polars.dataframe"):
        counts = [int(source.shape[0]) if source.shape else None]
    else:
        counts = [None]
    known = [one for one in counts if one is not None]
    return sum(known) if len(known) == len(counts) else None


def _blocks(
    items: Iterator[Any],
    columns: Sequence[str] | None,
    rows: int | None,
    start: Offset | None,
    stopped: Callable[[], bool],
) -> Iterator[Block]:
    marks, place, total = begin(start)
    for item in items:
        if item is None:
            yield Block(None, "", total, offset(marks, place, total, whole=True))
            continue
        marks, at = joined(marks, mark(item)), START
        for part, at in _after(item, _parts(item, columns, rows, place), place):
            n = count(part.data)
            total += n
            yield Block(part.data, part.file, part.row if part.file else total - n, offset(marks, at, total))
            if stopped():
                return
        place = START


def _after(item: Any, parts: Iterator[Part], place: Place) -> Iterator[tuple[Part, Place]]:
    """Pass over the parts before a place, and give the others with the place after each."""
    group, first, end = place.group, place.row - place.within, 0
    for part in parts:
        if part.group != group:
            group, first = part.group, part.at
        end = part.at + count(part.data)
        gone = max(place.row - part.at, 0)
        if part.at + gone < end:
            kept = part._replace(data=without(part.data, gone), row=part.row + gone) if gone else part
            yield kept, Place(group, end - first, end)
    if end < place.row and not isinstance(item, File):
        msg = (
            f"{place.row} rows of a {type(item).__name__} were read before, and it gives only {end} rows now; {UNUSED}"
        )
        raise ValueError(msg)


def _items(source: Any) -> Iterator[Any]:
    if isinstance(source, str | os.PathLike):
        yield from find(source)
    elif isinstance(source, list | tuple):
        for part in source:
            yield from _items(part)
    else:
        _opener(source)
        yield source


def _parts(item: Any, columns: Sequence[str] | None, rows: int | None, place: Place) -> Iterator[Part]:
    if not isinstance(item, File):
        return _opener(item)(item, columns, rows)
    return array_parts(item, rows, place.row) if item.suffix in ARRAYS else _table_file(item, columns, rows, place)


def _table_file(file: File, columns: Sequence[str] | None, rows: int | None, place: Place) -> Iterator[Part]:
    schema, batches = open_file(file)
    names = existing(schema.names, columns, f"{str(file)!r}: ")
    with naming(file):
        read = batches(names, rows or table_step(schema, names), place)
        yield from cut(read, names, rows, str(file), place)


def _opener(source: Any) -> Opener:
    """Return what reads an object that is no file, or raise where nothing does."""
    if hasattr(source, "collect_batches"):
        return lazy_frame
    if any(hasattr(source, name) for name in ("__arrow_c_stream__", "__arrow_c_array__", "to_reader")):
        return table
    if hasattr(source, "iter_batches") or hasattr(source, "to_batches"):
        return dataset
    if is_sparse(source) or (hasattr(source, "shape") and hasattr(source, "ndim")):
        return lambda array, columns, rows: cut_array(array, rows)
    if isinstance(source, Follow):
        msg = "a followed folder has no end, so nothing comes after it: pass it alone, not in a list"
        raise TypeError(msg)
    if isinstance(source, Iterable) and not isinstance(source, bytes | bytearray | Mapping):
        return _loader if is_loader(source) else _iterator
    cure = "; write numpy.asarray(x) for a list of lists of numbers" if isinstance(source, int | float) else ""
    cure = "; write pyarrow.table(x) for a dict of columns" if isinstance(source, Mapping) else cure
    msg = f"no rows can be read from an object of type {type(source).__name__}; expected {ACCEPTED}{cure}"
    raise TypeError(msg)


def _iterator(source: Iterable[Any], columns: Sequence[str] | None, rows: int | None) -> Iterator[Part]:
    at = 0
    for thing in source:
        for item in _items(thing):
            for part in _parts(item, columns, rows, START):
                yield part._replace(at=at, group=0)
                at += count(part.data)


def _loader(source: Iterable[Any], columns: Sequence[str] | None, rows: int | None) -> Iterator[Part]:
    return _iterator(map(first_matrix, source), columns, rows)
