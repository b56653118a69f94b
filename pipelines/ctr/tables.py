"""Embedding tables, whatever they are kept in, as a stream of batches: one field, its ids and its vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from streamsvd.arrays import Array, to_numpy
from streamsvd.flow.files import ARRAYS
from streamsvd.flow.readahead import ahead
from streamsvd.flow.sources import read
from streamsvd.kernels.rows import all_finite
from streamsvd.pipelines.ctr.counts import _arrow

STEP = 1 << 16  # rows of an array in a batch
ACCEPTED = (
    "a mapping of field to array (V, d), to (ids, array) or to a file; a table or Parquet, Arrow IPC files of field, id, vector; "
    "or a .safetensors file with one 2-D tensor for each field"
)


class TableBatch(NamedTuple):
    """Some rows of one field."""

    field: str
    ids: Any  # (b,), Arrow or NumPy
    vectors: Array  # (b, d), float
    start: int  # number of the first row, in its table or file
    offset: Any = None  # where reading goes on after it, where the source is made of files
    last: bool = True  # whether the offset belongs to this batch: a block of several fields has it on its last part


def batches(tables: Any, /, *, start: Any = None) -> Iterator[TableBatch]:
    """Read embedding tables in pieces of bounded size; files are read ahead by one background thread.

    Parameters
    ----------
    tables : see ``ACCEPTED``
        Without a column ``field`` the name of a file, or the key of a mapping, is the field. Vectors are fixed-size lists (or lists of one
        length) of floats; integer vectors need a column ``scale`` beside them (tensor ``<name>.scale``).
    start : offset of a batch, optional
        Go on after it; for files of field, id, vector.

    Raises
    ------
    TypeError, ValueError, OSError
        For what cannot be read; for ragged, null or non-finite vectors the message names field and id.

    Notes
    -----
    Memory: three blocks of 16 MiB.
    """
    if hasattr(tables, "sources"):  # several, one after the other
        for one in tables.sources:
            yield from batches(one)
        return
    if isinstance(tables, Mapping):
        if start is not None:
            msg = (
                "a pass over a mapping of tables cannot be resumed; give one table or Parquet file of field, id, vector"
            )
            raise ValueError(msg)
        for name, value in tables.items():
            yield from _field(str(name), value)
        return
    if isinstance(tables, str | Path) and str(tables).endswith(".safetensors"):
        yield from _tensors(Path(tables))
        return
    if isinstance(tables, str | Path) and str(tables).endswith(ARRAYS):
        msg = f"{str(tables)!r} is an array without the name of a field; give a mapping of field to array, or Parquet of field, id, vector"
        raise ValueError(msg)
    yield from _rows(tables, None, start)


def resumable(tables: Any, /) -> bool:
    """Whether reading can go on in the middle."""
    return isinstance(tables, str | Path | list) and not str(tables).endswith(".safetensors")


def _field(name: str, value: Any) -> Iterator[TableBatch]:
    ids = None
    if isinstance(value, tuple) and len(value) == 2:
        ids, value = value
        ids = np.load(ids) if isinstance(ids, str | Path) else ids
    if isinstance(value, str | Path) and Path(value).suffix == ".npy":
        value = np.load(value, mmap_mode="r")
    elif (
        isinstance(value, str | Path)
        or hasattr(value, "column_names")
        or hasattr(value, "collect_schema")
        or hasattr(value, "iter_batches")
    ):
        yield from _rows(value, name, None)
        return
    yield from _array(name, ids, value, None)


def _array(name: str, ids: Any, value: Any, scale: Any) -> Iterator[TableBatch]:
    if hasattr(value, "detach"):
        value = value.detach()
    sliced = hasattr(value, "get_shape")  # of a safetensors file: read a part at a time
    if not (sliced or isinstance(value, np.ndarray)):
        value = to_numpy(value) if hasattr(value, "shape") else np.asarray(value)
    shape = tuple(getattr(value, "get_shape")() if sliced else value.shape)  # noqa: B009
    if len(shape) != 2 or shape[1] == 0:
        msg = f"field {name!r}: an array of shape {shape} arrived; expected (V, d), one row for each id"
        raise ValueError(msg)
    ids = np.arange(shape[0]) if ids is None else ids
    if len(ids) != shape[0]:
        msg = f"field {name!r}: {len(ids)} ids arrived for {shape[0]} vectors; expected one for each"
        raise ValueError(msg)
    for at in range(0, shape[0], STEP):
        part = ids[at : at + STEP]
        scales = None if scale is None else scale[at : at + STEP]
        yield TableBatch(name, part, _floats(name, part, value[at : min(at + STEP, shape[0])], scales), at)


def _tensors(path: Path) -> Iterator[TableBatch]:
    from safetensors import SafetensorError, safe_open

    try:
        opened = safe_open(path, framework="np")
    except SafetensorError as error:
        msg = f"{str(path)!r} cannot be read: it is damaged, or no safetensors file ({error}); write it again"
        raise ValueError(msg) from error
    with opened as file:
        names = list(file.keys())
        for name in names:
            if name.endswith((".ids", ".scale")):
                continue
            if len(file.get_slice(name).get_shape()) != 2:
                continue
            beside = [
                file.get_tensor(f"{name}.{role}") if f"{name}.{role}" in names else None for role in ("ids", "scale")
            ]
            yield from _array(name, beside[0], file.get_slice(name), beside[1])


def _rows(source: Any, name: str | None, start: Any) -> Iterator[TableBatch]:
    blocks = read(source, columns=_wanted(source, name), start=start)
    with closing(ahead(_converted(blocks, name))) as stream:  # pyright: ignore[reportArgumentType]
        yield from stream


def _converted(blocks: Iterator[Any], name: str | None) -> Iterator[TableBatch]:
    for block in blocks:
        parts = list(_split(block.data, name or (Path(block.file).stem if block.file else "table")))
        for i, (field, batch) in enumerate(parts):
            yield TableBatch(field, batch["id"], _vectors(field, batch), block.row, block.offset, i == len(parts) - 1)


def _wanted(source: Any, name: str | None) -> list[str] | None:
    """Return the columns to read, once those that are needed are known to be there."""
    names = _names(source)
    if names is None:
        return None
    missing = [one for one in ("id", "vector") if one not in names]
    if missing:
        msg = (
            f"{_called(source)} has the columns {', '.join(names)}; expected id, vector "
            f"and, for several fields, field: {', '.join(missing)} is missing"
        )
        raise ValueError(msg)
    return [one for one in ("field", "id", "vector", "scale") if one in names and (one != "field" or name is None)]


def _names(source: Any) -> list[str] | None:
    from streamsvd.flow.files import find
    from streamsvd.flow.readers import column_names

    if isinstance(source, str | Path):
        return column_names(find(source)[0])
    if isinstance(source, list):
        return _names(source[0] if source else None)
    if hasattr(source, "collect_schema"):
        return source.collect_schema().names()
    if hasattr(source, "schema") and hasattr(source.schema, "names"):
        return list(source.schema.names)
    msg = f"embedding tables of type {type(source).__name__} arrived; expected {ACCEPTED}"
    raise TypeError(msg)


def _called(source: Any) -> str:
    return repr(str(source)) if isinstance(source, str | Path) else f"a {type(source).__name__}"


def _split(batch: Any, own: str) -> Iterator[tuple[str, Any]]:
    pc = _arrow()
    if "field" not in batch.schema.names:
        yield own, batch
        return
    column = batch["field"]
    if column.null_count:
        msg = "a row has no field; name the field of each row, or leave the column out where there is one field alone"
        raise ValueError(msg)
    values = pc.unique(column).to_pylist()
    for value in values:
        yield str(value), batch if len(values) == 1 else batch.filter(pc.equal(column, value))


def _vectors(field: str, batch: Any) -> Array:
    """Return the vectors of a batch as a matrix, without a copy where they are fixed-size lists."""
    import pyarrow as pa

    pc = _arrow()
    column, ids = batch["vector"], batch["id"]
    if column.null_count:
        msg = (
            f"field {field!r}, id {ids[pc.index(pc.is_null(column), True).as_py()]}: "
            "the vector is null; leave the row out, or give it one"
        )
        raise ValueError(msg)
    if pa.types.is_fixed_size_list(column.type):
        width = column.type.list_size
    elif pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        lengths = pc.list_value_length(column)
        width = lengths[0].as_py()
        if pc.count_distinct(lengths).as_py() > 1:
            i = pc.index(pc.not_equal(lengths, width), True).as_py()
            msg = (
                f"field {field!r}, id {ids[i]}: a vector of {lengths[i]} numbers among "
                f"vectors of {width}; all vectors of a field have one width"
            )
            raise ValueError(msg)
    else:
        msg = (
            f"field {field!r}: vectors of type {column.type} arrived; expected "
            "a list of floats, such as fixed_size_list<float>[16]"
        )
        raise TypeError(msg)
    flat = column.flatten()
    if flat.null_count:
        i = pc.index(pc.is_null(flat), True).as_py() // width
        msg = f"field {field!r}, id {ids[i]}: a number of the vector is null"
        raise ValueError(msg)
    values = flat.to_numpy(zero_copy_only=False).reshape(len(column), width)
    scale = batch["scale"].to_numpy(zero_copy_only=False) if "scale" in batch.schema.names else None
    return _floats(field, ids, values, scale)


def _floats(field: str, ids: Sequence[Any] | Any, values: Array, scale: Array | None) -> Array:
    if values.dtype.kind in "iub":
        if scale is None:
            msg = (
                f"field {field!r}: vectors of {values.dtype} arrived, a quantized table without scales; give the scale of each row "
                f"(a column scale, or a tensor {field}.scale), or the table in float32"
            )
            raise ValueError(msg)
        values = values.astype(np.float32) * np.asarray(scale, np.float32).reshape(-1, 1)
    elif values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float32)
    values = np.ascontiguousarray(values)
    if not all_finite(values):
        i = int((~np.isfinite(values)).any(axis=1).argmax())
        msg = f"field {field!r}, id {ids[i]}: the vector has NaN or infinity; leave the row out, or mend it"
        raise ValueError(msg)
    return values
