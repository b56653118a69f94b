"""What a stream of rows may come from, opened and cut into blocks of bounded size.

Files (one, a glob, a folder, a list), anything with ``__arrow_c_stream__`` or ``__arrow_c_array__``, Polars LazyFrames, pyarrow
Datasets, Scanners and ParquetFiles, arrays, sparse matrices, and iterators of any of these. ``batches.py`` makes matrices of the blocks.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from streamsvd.arrays import is_sparse
from streamsvd.flow import files

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

# Large enough to keep BLAS busy, small enough to hold several of them.
BLOCK_BYTES = 16 << 20
LIST_BYTES = 4096  # a guess for a column whose width only its data knows
ACCEPTED = (
    f"a path, glob or folder of {', '.join(files.READERS)} files, an Arrow, Polars or pandas table, a LazyFrame, a DuckDB relation, "
    "a pyarrow Dataset, Scanner or ParquetFile, a 2-D array, a SciPy sparse matrix, or an iterator or list of these"
)


class Block(NamedTuple):
    """A piece of a source as it was read: an Arrow RecordBatch, a 2-D array or a CSR matrix."""

    data: Any
    file: str = ""  # empty where the rows come from no file
    row: int = 0  # the number of its first row in that file


def read(source: Any, /, *, columns: Sequence[str] | None = None, rows: int | None = None) -> Iterator[Block]:
    """Cut a source into blocks of bounded size.

    Parameters
    ----------
    source : path, table, lazy query, dataset, array, or an iterable of these
        See the module's docstring.
    columns : sequence of str, optional
        Read only these columns of tables; every column otherwise. Arrays have no names to choose by.
    rows : int, optional
        At most so many rows in a block; otherwise as many as fit into 16 MiB.

    Returns
    -------
    blocks : iterator of Block
        One pass over the source in its own order. Paths are looked up at once, all else is opened when the first block is asked for.

    Raises
    ------
    FileNotFoundError
        A path that does not exist, or a glob or folder with no file to read.
    ValueError
        An unknown kind of file, a damaged file, a column that does not exist, an array that is not 2-D.
    TypeError
        Something that holds no rows.

    Notes
    -----
    Memory: one block, and what the readers of Parquet and CSV hold of one row group or text block.
    """
    if isinstance(source, str | os.PathLike):
        return chain.from_iterable(_file(path, columns, rows) for path in files.find(source))
    if hasattr(source, "collect_batches"):
        return _lazy_frame(source, columns, rows)
    if hasattr(source, "__arrow_c_stream__") or hasattr(source, "__arrow_c_array__"):
        return _table(source, columns, rows)
    if hasattr(source, "iter_batches") or hasattr(source, "to_batches"):
        return _dataset(source, columns, rows)
    if is_sparse(source) or (hasattr(source, "shape") and hasattr(source, "ndim")):
        return _array(source, rows)
    if isinstance(source, list | tuple):
        return chain.from_iterable([read(part, columns=columns, rows=rows) for part in source])
    if isinstance(source, Iterable) and not isinstance(source, bytes | bytearray | Mapping):
        return chain.from_iterable(read(part, columns=columns, rows=rows) for part in source)
    cure = "; write numpy.asarray(x) for a list of lists of numbers" if isinstance(source, int | float) else ""
    cure = "; write pyarrow.table(x) for a dict of columns" if isinstance(source, Mapping) else cure
    msg = f"no rows can be read from an object of type {type(source).__name__}; expected {ACCEPTED}{cure}"
    raise TypeError(msg)


def total_rows(source: Any, /) -> int | None:
    """Return how many rows a source has where that is known without reading them, else None."""
    counts: list[int | None]
    if isinstance(source, str | os.PathLike):
        found = files.find(source)
        counts = [files.count_rows(path) for path in found] if len(found) <= 1000 else [None]
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
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def as_reader(table: Any, /) -> pa.RecordBatchReader:
    """Return what speaks the Arrow interface as a RecordBatchReader; a bare column without a name is called ``value``."""
    import pyarrow as pa

    if hasattr(table, "__arrow_c_stream__"):
        try:
            return pa.RecordBatchReader.from_stream(table)
        except pa.ArrowInvalid:  # a stream of values, such as a Polars Series or a ChunkedArray
            return pa.table({"value": pa.chunked_array(table)}).to_reader()
    column = pa.array(table)
    whole = pa.types.is_struct(column.type)
    batch = pa.RecordBatch.from_struct_array(column) if whole else pa.record_batch({"value": column})
    return pa.RecordBatchReader.from_batches(batch.schema, [batch])


def existing(there: Sequence[str], wanted: Sequence[str] | None, where: str = "") -> list[str] | None:
    """Return the wanted columns, or raise where one does not exist or its name does not say which one is meant.

    ``e[0]``, ``e[1]``, ..., which is how the numbers of a list column ``e`` are called, mean that column.
    """
    if wanted is None:
        return None
    count = Counter(there)
    lists = {name: name.rpartition("[")[0] for name in wanted if not count[name] and name.endswith("]")}
    found = list(dict.fromkeys(lists[name] if name in lists and count[lists[name]] else name for name in wanted))
    missing = [name for name in found if not count[name]]
    if missing:
        msg = f"{where}there is no column {listed(missing)}; the columns are {listed(there)}"
        raise ValueError(msg)
    twice = [name for name in found if count[name] > 1]
    if twice:
        msg = f"{where}there are several columns called {listed(twice)}; rename all but one of them"
        raise ValueError(msg)
    return found


def listed(names: Iterable[Any], /) -> str:
    """Return quoted names for a message, the first twenty where there are more."""
    shown = [repr(str(name)) for name in names]
    return ", ".join(shown[:20]) + (f", ... ({len(shown)} in all)" if len(shown) > 20 else "")


def _file(path: Path, columns: Sequence[str] | None, rows: int | None) -> Iterator[Block]:
    if path.suffix.lower() == ".npy":
        yield from _npy(path, rows)
        return
    schema, batches = files.open_file(path)
    names = existing(schema.names, columns, f"{str(path)!r}: ")
    with files.naming(path):
        yield from _cut(batches(names, rows or _block_rows(schema, names)), names, rows, str(path))


def _npy(path: Path, rows: int | None) -> Iterator[Block]:
    start, n = 0, 1
    while start < n:
        # Mapped anew for each block: pages that were read count as memory of this process until their map is gone.
        with files.naming(path):
            mapped = np.load(path, mmap_mode="r")
        step = _step(mapped, rows, f"{str(path)!r}: ")
        n = mapped.shape[0]
        if n:
            yield Block(mapped[start : start + step], str(path), start)
        start += step


def _lazy_frame(frame: Any, columns: Sequence[str] | None, rows: int | None) -> Iterator[Block]:
    schema = as_reader(frame.collect_schema().to_frame()).schema
    names = existing(schema.names, columns)
    query = frame if names is None else frame.select(names)
    chunks = query.collect_batches(chunk_size=rows or _block_rows(schema, names), maintain_order=True)
    # A query that is not read to its end must be stopped: at the exit of its context, or (Polars 2) when the iterator is dropped.
    with chunks if hasattr(chunks, "__exit__") else nullcontext(chunks) as running:
        for chunk in running:
            yield from _table(chunk, names, rows)


def _table(table: Any, columns: Sequence[str] | None, rows: int | None) -> Iterator[Block]:
    reader = as_reader(table)
    names = existing(reader.schema.names, columns)
    yield from _cut(reader, names, rows)


def _dataset(source: Any, columns: Sequence[str] | None, rows: int | None) -> Iterator[Block]:
    if hasattr(source, "projected_schema"):  # a Scanner has its columns and batches decided
        names = existing(source.projected_schema.names, columns)
        yield from _cut(source.to_batches(), names, rows)
        return
    if hasattr(source, "iter_batches"):
        schema, batches = files.parquet_batches(source)
    else:
        schema, batches = (
            source.schema,
            lambda names, rows: source.to_batches(columns=names, batch_size=rows, **_little_ahead(source)),
        )
    names = existing(schema.names, columns)
    yield from _cut(batches(names, rows or _block_rows(schema, names)), names, rows)


def _little_ahead(dataset: Any) -> dict[str, Any]:
    """Return the options that keep a Dataset from reading 16 batches of 4 files ahead, and whole row groups, as it would by itself."""
    options: dict[str, Any] = {"batch_readahead": 1, "fragment_readahead": 1}
    if getattr(getattr(dataset, "format", None), "default_extname", "") == "parquet":
        from pyarrow.dataset import ParquetFragmentScanOptions

        options["fragment_scan_options"] = ParquetFragmentScanOptions(
            pre_buffer=False, use_buffered_stream=True, buffer_size=files.PAGE_BUFFER
        )
    return options


def _array(array: Any, rows: int | None) -> Iterator[Block]:
    step = _step(array, rows)
    if is_sparse(array):
        array = array.tocsr()
    n = array.shape[0]
    for start in range(0, n, step):
        yield Block(array if step >= n else array[start : min(start + step, n), :])


def _step(array: Any, rows: int | None, where: str = "") -> int:
    if array.ndim != 2:
        cure = {0: "", 1: "; write x[None, :] for one row or x[:, None] for one column"}
        msg = (
            f"{where}an array of shape {tuple(array.shape)} arrived, and a 2-D array with one sample a row was expected"
        )
        raise ValueError(msg + cure.get(array.ndim, "; write x.reshape(x.shape[0], -1)"))
    per_row = (
        12 * array.nnz // max(array.shape[0], 1)
        if is_sparse(array)
        else array.shape[1] * getattr(array.dtype, "itemsize", 8)
    )
    return rows or max(1, BLOCK_BYTES // max(per_row, 1))


def _cut(batches: Iterable[Any], names: list[str] | None, rows: int | None, file: str = "") -> Iterator[Block]:
    first = 0
    for whole in batches:
        batch = whole if names is None else whole.select(names)
        n = batch.num_rows
        step = rows or max(1, BLOCK_BYTES * n // max(batch.nbytes, 1))
        for start in range(0, n, step):
            yield Block(batch if step >= n else batch.slice(start, step), file, first + start)
        first += n


def _block_rows(schema: pa.Schema, names: list[str] | None) -> int:
    kinds = schema.types if names is None else [schema.field(name).type for name in names]
    return max(1, int(BLOCK_BYTES / max(sum(map(_type_bytes, kinds)), 1)))


def _type_bytes(kind: pa.DataType) -> float:
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        return _type_bytes(kind.storage_type)
    if pa.types.is_fixed_size_list(kind):
        return kind.list_size * _type_bytes(kind.value_type)
    try:
        return kind.bit_width / 8
    except ValueError:
        return LIST_BYTES
