"""Files as sources: which files a path, glob or folder stands for, and a reader for each kind.

A reader opens a file and returns its Arrow schema with a function that reads the chosen columns as a stream of RecordBatches.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

# (names of the columns or None for all, rows in a batch) -> batches
ReadBatches = Callable[[list[str] | None, int], Iterable[Any]]
PAGE_BUFFER = 64 << 10  # for each column
CSV_BLOCK = 4 << 20


def find(source: str | os.PathLike[str], /) -> list[Path]:
    """Return the files that a path, a glob or a folder stands for, sorted by name.

    A folder is searched at any depth. What starts with a dot or an underscore there, and files of another kind, are passed over.

    Raises
    ------
    FileNotFoundError
        Nothing is there: no such path, no match for the glob, no readable file in the folder.
    ValueError
        A URL, or a file whose suffix does not say how to read it.
    """
    text = os.fspath(source)
    if "://" in text:
        msg = (
            f"{text!r} is a URL, and only local paths are read here; "
            "open it with pyarrow.dataset.dataset(...) or polars.scan_parquet(...) and pass what that returns"
        )
        raise ValueError(msg)
    path = Path(text).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.exists():
        return [_known(path)]
    if any(sign in text for sign in "*?["):
        root = Path(path.anchor)
        found = sorted(p for p in root.glob(str(path.relative_to(root))) if not p.name.startswith("."))
        if not found:
            msg = f"no file matches the pattern {text!r} (looked from {Path.cwd()}); check the folder and the suffix"
            raise FileNotFoundError(msg)
        return [file for p in found for file in (_folder(p) if p.is_dir() else [_known(p)])]
    parent = path.absolute().parent
    reason = f"the folder {parent} has no {path.name!r}" if parent.is_dir() else f"there is no folder {parent}"
    msg = f"{text!r} does not exist: {reason}; check the path"
    raise FileNotFoundError(msg)


def open_file(path: Path, /) -> tuple[pa.Schema, ReadBatches]:
    """Open one file and return its schema and the function that reads its batches (not for .npy, which is one array).

    Raises
    ------
    ValueError, OSError
        The file is damaged, is not what its suffix says, or may not be read; the message names it.
    """
    with naming(path):
        return READERS[path.suffix.lower()](path)


def count_rows(path: Path, /) -> int | None:
    """Return the number of rows that a file declares, or None where that takes reading it."""
    suffix = path.suffix.lower()
    with naming(path):
        if suffix == ".npy":
            shape = np.load(path, mmap_mode="r").shape
            return int(shape[0]) if shape else None
        if suffix == ".parquet":
            import pyarrow.parquet as pq

            return int(pq.read_metadata(path).num_rows)
    return None


@contextmanager
def naming(path: Path, /) -> Iterator[None]:
    """Put the name of the file into what goes wrong while it is read."""
    try:
        yield
    except (OSError, ValueError, EOFError, NotImplementedError) as error:
        kind = type(error) if isinstance(error, OSError) else ValueError
        msg = f"{str(path)!r} cannot be read: it is damaged, or not what its suffix says ({error})"
        raise kind(msg) from error


def _folder(path: Path) -> list[Path]:
    def wanted(file: Path) -> bool:
        hidden = any(part.startswith((".", "_")) for part in file.relative_to(path).parts)
        return not hidden and file.suffix.lower() in READERS and file.is_file()

    found = sorted(file for file in path.rglob("*") if wanted(file))
    if not found:
        msg = f"the folder {str(path)!r} holds no file to read; expected at least one of {', '.join(READERS)}"
        raise FileNotFoundError(msg)
    return found


def _known(path: Path) -> Path:
    if path.suffix.lower() not in READERS:
        msg = (
            f"the suffix of {str(path)!r} does not say how to read it; expected one of {', '.join(READERS)}: "
            "rename the file, or open it yourself and pass the table"
        )
        raise ValueError(msg)
    return path


def _parquet(path: Path) -> tuple[pa.Schema, ReadBatches]:
    import pyarrow.parquet as pq

    # Reading ahead (the default) holds every row group of the file in memory in the end.
    return parquet_batches(pq.ParquetFile(path, pre_buffer=False, buffer_size=PAGE_BUFFER))


def parquet_batches(file: pq.ParquetFile, /) -> tuple[pa.Schema, ReadBatches]:
    """Return the schema and the batches of an open Parquet file, which is read row group by row group."""

    def batches(names: list[str] | None, rows: int) -> Iterator[pa.RecordBatch]:
        for group in range(file.num_row_groups):
            yield from file.iter_batches(rows, row_groups=[group], columns=names)

    return file.schema_arrow, batches


def _ipc(path: Path) -> tuple[pa.Schema, ReadBatches]:
    import pyarrow as pa

    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
    except pa.ArrowInvalid:
        stream = pa.ipc.open_stream(pa.OSFile(str(path)))
        return stream.schema, lambda names, rows: stream
    count = reader.num_record_batches
    # Mapped anew for each batch: pages that were read count as memory of this process until their map is gone.
    return reader.schema, lambda names, rows: (
        pa.ipc.open_file(pa.memory_map(str(path))).get_batch(i) for i in range(count)
    )


def _csv(path: Path) -> tuple[pa.Schema, ReadBatches]:
    import pyarrow as pa
    from pyarrow import csv

    block = csv.ReadOptions(block_size=CSV_BLOCK)
    with csv.open_csv(path, read_options=block) as first:
        schema = first.schema
    if _looks_like_data(schema.names):
        msg = (
            f"its first line is {', '.join(schema.names[:3])}, ...: a row of numbers, which would be lost as names of columns; "
            "write a header line, or pass polars.scan_csv(path, has_header=False)"
        )
        raise ValueError(msg)
    # Types are guessed from the first block, and whole numbers (or nothing) there may be followed by fractions.
    wide = {f.name: pa.float64() for f in schema if pa.types.is_integer(f.type) or pa.types.is_null(f.type)}

    def batches(names: list[str] | None, rows: int) -> Iterable[pa.RecordBatch]:
        convert = csv.ConvertOptions(column_types=wide, include_columns=names)
        return csv.open_csv(path, read_options=block, convert_options=convert)

    return schema, batches


def _looks_like_data(header: list[str]) -> bool:
    try:
        numbers = [float(name) for name in header]
    except ValueError:
        return False
    # Different whole numbers are names that people give: years, 0 to 783.
    return len(set(numbers)) < len(numbers) or not all(name.isdigit() for name in header)


# .npy is read by sources.py, as the array it is.
READERS: dict[str, Any] = {
    ".parquet": _parquet,
    ".arrow": _ipc,
    ".ipc": _ipc,
    ".feather": _ipc,
    ".csv": _csv,
    ".npy": None,
}
