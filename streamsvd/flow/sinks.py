"""Tables written as they stream: memory for one row group, and a file that appears only when all of it is on the disk."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa

SUFFIXES = (".parquet", ".arrow", ".ipc", ".feather")
GROUP_ROWS = 1 << 16
GROUP_BYTES = 16 << 20


def check_target(path: str | os.PathLike[str], /, *, suffixes: tuple[str, ...] = ()) -> Path:
    """Return the path if a file can be written there, so that hours of work do not end in a message about its folder.

    Raises
    ------
    ValueError
        The suffix is none of ``suffixes``.
    FileNotFoundError, IsADirectoryError, PermissionError
        Its folder does not exist or may not be written, or it is a folder itself.
    """
    target = Path(path).expanduser()
    if suffixes and target.suffix.lower() not in suffixes:
        msg = f"the suffix of {str(path)!r} does not say what to write; expected one of {', '.join(suffixes)}"
        raise ValueError(msg)
    if target.is_dir():
        msg = f"{str(path)!r} is a folder; give the name of a file in it"
        raise IsADirectoryError(msg)
    folder = target.absolute().parent
    if not folder.is_dir():
        msg = f"there is no folder {str(folder)!r} to write {target.name!r} into; create it first"
        raise FileNotFoundError(msg)
    if not os.access(folder, os.W_OK):
        msg = f"the folder {str(folder)!r} may not be written; choose another or change its permissions"
        raise PermissionError(msg)
    return target


def described(source: Any, /) -> str:
    """Return what a source is called in the metadata of what was made of it: its paths, or its type."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, list | tuple) and len(source) > 0:
        names = list(dict.fromkeys(described(part) for part in source))
        return ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "")
    return f"{type(source).__module__.partition('.')[0]}.{type(source).__qualname__}".removeprefix("builtins.")


@contextmanager
def draft_of(path: str | os.PathLike[str], /) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; at the end it takes the place of ``path`` in one step, after an error it is removed."""
    final = Path(os.path.realpath(Path(path).expanduser()))  # a link stays a link
    draft = final.with_name(f".{final.stem}.{os.getpid()}-{os.urandom(4).hex()}{final.suffix}")
    try:
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(final)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def table_sink(
    path: str | os.PathLike[str], schema: pa.Schema, /, *, group_bytes: int = GROUP_BYTES, **options: Any
) -> Iterator[Callable[[pa.RecordBatch], None]]:
    """Write batches to a Parquet or Arrow IPC file (by its suffix) that appears in one step at the end.

    Parameters
    ----------
    path : path
        ``.parquet``, or ``.arrow``, ``.ipc``, ``.feather``.
    schema : pyarrow.Schema
    group_bytes : int
        Small batches are gathered into row groups of so many bytes, or of 65,536 rows.
    **options
        For ``pyarrow.parquet.ParquetWriter``.

    Yields
    ------
    write : function that takes a RecordBatch

    Notes
    -----
    Memory: a few row groups. After an error nothing is left, and a file that was there stays.
    """
    import pyarrow as pa

    waiting: list[pa.RecordBatch] = []
    rows = size = 0

    def flush() -> None:
        nonlocal rows, size
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting, schema).combine_chunks())
            waiting.clear()
            rows = size = 0

    def write(batch: pa.RecordBatch) -> None:
        nonlocal rows, size
        waiting.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if rows >= GROUP_ROWS or size >= group_bytes:
            flush()

    with draft_of(path) as draft, ExitStack() as stack:
        writer = stack.enter_context(_writer(draft, schema, options))
        yield write
        flush()


def _writer(path: Path, schema: pa.Schema, options: dict[str, Any]) -> Any:
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq

        return pq.ParquetWriter(path, schema, **options)
    import pyarrow as pa

    return pa.ipc.new_file(str(path), schema)
