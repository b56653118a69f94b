"""Where rows that are left out go: Parquet, with the columns as they were read, where each row came from, and why it is there.

A name without a suffix is a folder. It fills with parts, ``part-<rows read before it>-<number>.parquet``, and each of them is complete when
it appears. Parts end where checkpoints are taken, so a run that goes on from a checkpoint removes the parts that begin there or later,
and then every rejected row is in the folder once. A name that ends in ``.parquet`` is one file, which appears when the run ends.
"""

from __future__ import annotations

import os
import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from streamsvd.arrays import dtype_name, is_sparse, namespace, to_numpy
from streamsvd.flow.sinks import check_target, table_sink

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa

PART = re.compile(r"part-(\d{12,})-(\d{3,})\.parquet")
DRAFT = re.compile(r"\.part-\d{12,}-\d{3,}\..+\.parquet")
MARK = {"streamsvd.quarantine": "1"}


class Rejected(NamedTuple):
    """Rows that were left out, as they were read."""

    data: Any  # RecordBatch, or array of any namespace
    source: str
    rows: np.ndarray  # their numbers in the source
    reasons: list[str]


class Quarantine:
    """A folder or file for rows that are left out of a stream.

    Parameters
    ----------
    path : path
        A folder (no suffix), which is made, or a file that ends in ``.parquet``.

    Raises
    ------
    ValueError
        Another suffix.
    FileNotFoundError, FileExistsError, PermissionError
        No folder to put it into, or something else is there already.

    Notes
    -----
    The columns are those that were read (of arrays: ``x``, a fixed-size list), then ``source`` (file or type, string), ``row`` (number of
    the row in the file or stream, int64) and ``reason`` ("null" or "nonfinite", string); underscores go in front of names that are taken.
    Memory: a row group or two. To be used by one thread.
    """

    def __init__(self, path: str | os.PathLike[str], /) -> None:
        self.path = Path(path).expanduser()
        suffix = self.path.suffix.lower()
        self.is_folder = self.path.is_dir() or not suffix
        if not self.is_folder and suffix != ".parquet":
            msg = f"quarantine={str(path)!r} arrived; expected a folder (a name without a suffix) or a file that ends in .parquet"
            raise ValueError(msg)
        if not self.path.is_dir():
            check_target(self.path)
        if self.path.is_file() and (self.is_folder or not _ours(self.path)):
            msg = f"{str(path)!r} is there already and holds no rejected rows of streamsvd; choose another name or remove it"
            raise FileExistsError(msg)
        self.rows = 0  # written since it was opened
        self._start = self._part = 0
        self._stack = ExitStack()
        self._put: Callable[[pa.RecordBatch], None] | None = None
        self._schema: pa.Schema | None = None

    def write(self, batch: Any, source: str, rows: np.ndarray, reasons: Sequence[str], /) -> None:
        """Add rejected rows.

        Parameters
        ----------
        batch : RecordBatch, array (b, d) of any namespace, or CSR
        source : str
        rows : array (b,) of int, their numbers in the source
        reasons : sequence of str, length b

        Raises
        ------
        ValueError
            Rows with other columns than those before, where all are to go into one file.
        OSError
            The disk is full, or may not be written.
        """
        table = _with_reasons(batch, source, rows, reasons)
        if self._schema is not None and not table.schema.equals(self._schema):
            if self.is_folder:
                self._finish()
            else:
                table = self._like_before(table)
        if self._put is None:
            self._schema = table.schema
            self._put = self._stack.enter_context(table_sink(self._target(), table.schema))
        self._put(table)
        self.rows += table.num_rows

    def close_part(self, rows_seen: int, /) -> None:
        """End the part at hand, if there is one, after so many rows of the stream: it is on the disk when this returns.

        To be called before the checkpoint of that row is taken.
        """
        if not self.is_folder:
            self._refuse_parts()
        self._finish()
        self._start, self._part = rows_seen, 0

    def resume(self, rows_seen: int, /) -> None:
        """Remove what a run that stopped has written of the stream after so many rows; 0 removes all parts.

        Only files with names of parts are removed.
        """
        if not self.is_folder:
            self._refuse_parts()
        self.path.mkdir(exist_ok=True)
        for file in self.path.iterdir():
            part = PART.fullmatch(file.name)
            if DRAFT.fullmatch(file.name) or (part and int(part[1]) >= rows_seen):
                file.unlink()
        _sync(self.path)
        self._start, self._part = rows_seen, 0

    def close(self) -> None:
        """End the part or the file; where nothing was rejected, there is no file, and one of an earlier run is removed."""
        self._finish()
        if not self.is_folder and not self.rows:
            self.path.unlink(missing_ok=True)

    def _target(self) -> Path:
        if not self.is_folder:
            return self.path
        self.path.mkdir(exist_ok=True)
        return self.path / f"part-{self._start:012d}-{self._part:03d}.parquet"

    def _finish(self) -> None:
        # After an error in it (a full disk) the draft is gone, and the next rows begin a new one.
        stack, self._stack, there = self._stack, ExitStack(), self._put is not None
        self._put = self._schema = None
        stack.close()
        if there:
            self._part += 1
            _sync(self.path if self.is_folder else self.path.absolute().parent)

    def _like_before(self, table: pa.RecordBatch) -> pa.RecordBatch:
        import pyarrow as pa

        assert self._schema is not None
        try:
            return table.select(self._schema.names).cast(self._schema)
        except (KeyError, pa.ArrowException) as error:
            msg = (
                f"rejected rows have the columns {table.schema.names} here and had {self._schema.names} before, of other types maybe, "
                f"and one file has one schema; write quarantine={self.path.stem!r}, a folder, which takes both"
            )
            raise ValueError(msg) from error

    def _refuse_parts(self) -> None:
        msg = (
            f"quarantine={str(self.path)!r} is one file, which appears when the run ends, and a run that can be resumed needs parts; "
            f"write quarantine={str(self.path.with_suffix(''))!r}, a folder"
        )
        raise ValueError(msg)


def _with_reasons(batch: Any, source: str, rows: np.ndarray, reasons: Sequence[str]) -> pa.RecordBatch:
    import pyarrow as pa

    if not hasattr(batch, "schema"):
        batch = pa.record_batch({"x": _lists(batch)})
    said = {
        "source": pa.array([source] * batch.num_rows, pa.string()),
        "row": pa.array(rows, pa.int64()),
        "reason": pa.array(reasons, pa.string()),
    }
    names = list(batch.schema.names)
    for name in said:
        while name in names:
            name = f"_{name}"  # noqa: PLW2901, RUF100
        names.append(name)
    fields = [
        field.with_name(name) for field, name in zip([*batch.schema, *pa.record_batch(said).schema], names, strict=True)
    ]
    return pa.RecordBatch.from_arrays([*batch.columns, *said.values()], schema=pa.schema(fields, metadata=MARK))


def _lists(x: Any) -> Any:
    import pyarrow as pa

    if is_sparse(x):
        x = x.toarray()
    elif dtype_name(x) == "bfloat16":
        xp = namespace(x)
        x = xp.astype(x, xp.float32)
    x = np.ascontiguousarray(to_numpy(x))
    return pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1])


def _ours(path: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return b"streamsvd.quarantine" in (pq.read_schema(path).metadata or {})
    except (pa.ArrowException, OSError):
        return False


def _sync(folder: Path) -> None:
    if os.name == "nt":  # a folder cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
