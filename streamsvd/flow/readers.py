"""Readers of table files, one for each kind: the Arrow schema, and the chosen columns as a stream of RecordBatches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from streamsvd.flow.arrayfiles import array_rows
from streamsvd.flow.blocks import Place
from streamsvd.flow.files import ARRAYS, File, UnsuitedError, kind_of, naming

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

PAGE_BUFFER = 64 << 10  # for each column
TEXT_BLOCK = 4 << 20
IPC_MAGIC = b"ARROW1"  # of files; streams begin otherwise and have no end that is needed


# (names of the columns or None for all, rows in a batch, place in whose group to begin) -> (group, batch)
ReadBatches = Callable[[list[str] | None, int, Place], Iterator[tuple[int, Any]]]


def open_file(file: File, /) -> tuple[pa.Schema, ReadBatches]:
    """Open one table file and return its schema and the function that reads its batches.

    Raises
    ------
    ValueError, OSError
        The file is damaged, is not what its suffix says, or may not be read; the message names it.
    """
    with naming(file):
        return READERS[file.suffix](file)


def column_names(file: File, /) -> list[str] | None:
    """Return the names of the columns of a file; None for an array, which has none."""
    return None if file.suffix in ARRAYS else open_file(file)[0].names


def file_rows(file: File, /) -> int | None:
    """Return the number of rows that a file declares, or None where that takes reading it."""
    with naming(file):
        if file.suffix in ARRAYS:
            return array_rows(file)
        if file.suffix == ".parquet" and file.remote is None:
            import pyarrow.parquet as pq

            return int(pq.read_metadata(file.path).num_rows)
    return None


def has_end(file: File, /) -> bool | None:
    """Whether a local file has the end that its kind gives to whole files, None where its kind has no such end."""
    import pyarrow as pa

    if file.suffix == ".parquet":
        import pyarrow.parquet as pq

        read = pq.read_metadata
    elif file.suffix in (".arrow", ".ipc", ".feather") and _head(file) == IPC_MAGIC:
        read = _trailer
    else:
        return None
    try:
        read(file.path)
    except (pa.ArrowException, OSError):
        return False
    return True


def parquet_batches(file: pq.ParquetFile, /) -> tuple[pa.Schema, ReadBatches]:
    """Return the schema and the batches of an open Parquet file, which is read row group by row group."""

    def batches(names: list[str] | None, rows: int, place: Place) -> Iterator[tuple[int, pa.RecordBatch]]:
        groups, first = file.num_row_groups, place.group
        if first < groups and 0 < file.metadata.row_group(first).num_rows <= place.within:
            first += 1
        for group in range(first, groups):
            with _in_group(group, groups):
                for batch in file.iter_batches(rows, row_groups=[group], columns=names):
                    yield group, batch

    return file.schema_arrow, batches


@contextmanager
def _in_group(group: int, groups: int) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        msg = f"row group {group} of 0 to {groups - 1}: {error}"
        raise kind_of(error)(msg) from error


def _parquet(file: File) -> tuple[pa.Schema, ReadBatches]:
    import pyarrow.parquet as pq

    # Reading ahead (the default) holds every row group of the file in memory in the end.
    if file.remote is None:
        return parquet_batches(pq.ParquetFile(file.path, pre_buffer=False, buffer_size=PAGE_BUFFER))
    # Without a buffer each column of a row group is one request.
    return parquet_batches(pq.ParquetFile(file.open(), pre_buffer=False))


def _ipc(file: File) -> tuple[pa.Schema, ReadBatches]:
    import pyarrow as pa

    def opened() -> Any:
        return pa.memory_map(file.path) if file.remote is None else pa.PythonFile(file.open(), mode="r")

    try:
        reader = pa.ipc.open_file(opened())
    except pa.ArrowInvalid:
        return _ipc_stream(file)
    count = reader.num_record_batches

    def batches(names: list[str] | None, rows: int, place: Place) -> Iterator[tuple[int, Any]]:
        for group in range(place.group, count):
            # Mapped anew for each batch: pages that were read count as memory of this process until their map is gone.
            yield group, (pa.ipc.open_file(opened()) if file.remote is None else reader).get_batch(group)

    return reader.schema, batches


def _head(file: File) -> bytes:
    with file.open() as opened:
        return opened.read(len(IPC_MAGIC))


def _trailer(path: str) -> None:
    import pyarrow as pa

    with pa.OSFile(path) as opened:
        pa.ipc.open_file(opened)


def _ipc_stream(file: File) -> tuple[pa.Schema, ReadBatches]:
    import pyarrow as pa

    stream = pa.ipc.open_stream(
        pa.PythonFile(file.open(), mode="r") if file.remote is not None else pa.OSFile(file.path)
    )

    def batches(names: list[str] | None, rows: int, place: Place) -> Iterator[tuple[int, Any]]:
        return ((group, batch) for group, batch in enumerate(stream) if group >= place.group)

    return stream.schema, batches


def _csv(file: File) -> tuple[pa.Schema, ReadBatches]:
    import pyarrow as pa
    from pyarrow import csv

    block = csv.ReadOptions(block_size=TEXT_BLOCK)
    with csv.open_csv(_text(file), read_options=block) as first:
        schema = first.schema
    if _looks_like_data(schema.names):
        msg = (
            f"its first line is {', '.join(schema.names[:3])}, ...: a row of numbers, which would be lost as names of columns; "
            "write a header line, or pass polars.scan_csv(path, has_header=False)"
        )
        raise UnsuitedError(msg)
    # Types are guessed from the first block, and whole numbers (or nothing) there may be followed by fractions.
    wide = {f.name: pa.float64() for f in schema if pa.types.is_integer(f.type) or pa.types.is_null(f.type)}

    def batches(names: list[str] | None, rows: int, place: Place) -> Iterator[tuple[int, pa.RecordBatch]]:
        convert = csv.ConvertOptions(column_types=wide, include_columns=names)
        for batch in csv.open_csv(_text(file), read_options=block, convert_options=convert):
            yield 0, batch

    return schema, batches


def _looks_like_data(header: list[str]) -> bool:
    try:
        numbers = [float(name) for name in header]
    except ValueError:
        return False
    # Different whole numbers are names that people give: years, 0 to 783.
    return len(set(numbers)) < len(numbers) or not all(name.isdigit() for name in header)


def _ndjson(file: File) -> tuple[pa.Schema, ReadBatches]:
    import pyarrow as pa
    from pyarrow import json

    block = json.ReadOptions(block_size=TEXT_BLOCK)
    with json.open_json(_text(file), read_options=block) as first:
        schema = pa.schema([field.with_type(_widened(field.type)) for field in first.schema])

    def batches(names: list[str] | None, rows: int, place: Place) -> Iterator[tuple[int, pa.RecordBatch]]:
        chosen = schema if names is None else pa.schema([schema.field(name) for name in names])
        others = "infer" if names is None else "ignore"
        options = json.ParseOptions(explicit_schema=chosen, unexpected_field_behavior=others)
        try:
            for batch in json.open_json(_text(file), read_options=block, parse_options=options):
                yield 0, batch
        except pa.ArrowInvalid as error:
            if "unexpected field" not in str(error):
                raise
            msg = f"a line has a field that the first {TEXT_BLOCK >> 20} MiB lack; choose the columns with select=[...]"
            raise ValueError(msg) from error

    return schema, batches


def _widened(kind: pa.DataType) -> pa.DataType:
    """Return the type that later lines fit into too, where the first ones have whole numbers or nothing."""
    import pyarrow as pa

    if pa.types.is_integer(kind) or pa.types.is_null(kind):
        return pa.float64()
    return pa.list_(_widened(kind.value_type)) if pa.types.is_list(kind) else kind


def _text(file: File) -> Any:
    return file.path if file.remote is None else file.open()


READERS: dict[str, Callable[[File], tuple[Any, ReadBatches]]] = {
    ".parquet": _parquet,
    ".arrow": _ipc,
    ".ipc": _ipc,
    ".feather": _ipc,
    ".csv": _csv,
    ".ndjson": _ndjson,
    ".jsonl": _ndjson,
}
