"""How often each id is looked up: given, or counted from a click log by a streaming query; found again by id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamsvd.arrays import Array


@dataclass(frozen=True, eq=False)
class Lookup:
    """Counts of one field by id.

    Attributes
    ----------
    keys : array (n,), int64 or uint64, rising, or range
        The ids (a range where they have no gaps), or a hash of each where they are text.
    counts : array (n,), float64, in the same order
    names : Arrow array (n,) or None: the ids that the hashes stand for
    """

    keys: Array | range
    counts: Array
    names: Any = None

    def find(self, ids: Any, /) -> Array:
        """Return where each id stands, -1 where it does not: array (b,), int64. O(1) an id where ids have no gaps, else O(log n)."""
        keys, names = keys_of(ids)
        if (names is None) != (self.names is None) and len(self.keys):
            kinds = ["integers" if one is None else "text" for one in (names, self.names)]
            msg = f"the ids of the table are {kinds[0]} and those of the counts are {kinds[1]}; cast one of them"
            raise ValueError(msg)
        n = len(self.keys)
        if n == 0:
            return np.full(len(keys), -1)
        if names is None and int(self.keys[-1]) - int(self.keys[0]) == n - 1:
            at = keys - self.keys[0]
            return np.where((at >= 0) & (at < n), at, -1) if len(at) and (at.min() < 0 or at.max() >= n) else at
        at = np.minimum(np.searchsorted(self.keys, keys), n - 1)
        there = self.keys[at] == keys
        if names is not None:  # two texts may have one hash
            there &= _arrow().equal(self.names.take(_int64(at)), names).to_numpy(zero_copy_only=False)
        return np.where(there, at, -1)


def keys_of(ids: Any, /) -> tuple[Array, Any]:
    """Return ids as numbers that can be sorted: themselves, or hashes and the texts that they stand for.

    Raises
    ------
    TypeError
        Ids that are neither integers nor text.
    ValueError
        Null ids.
    """
    import polars as pl
    import pyarrow as pa

    if isinstance(ids, np.ndarray) and ids.dtype.kind in "iu":
        return ids.astype(np.int64, copy=False), None
    column: Any = ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(ids)
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if column.null_count:
        msg = f"{column.null_count} ids are null; give each row an id"
        raise ValueError(msg)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_integer(column.type):
        return column.to_numpy(zero_copy_only=False).astype(np.int64, copy=False), None
    if not (
        pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or column.type == pa.string_view()
    ):
        msg = f"ids are of type {column.type}; expected integers or text"
        raise TypeError(msg)
    column = column.cast(pa.large_string())
    return pl.Series(column).hash(seed=0).to_numpy(), column  # pyright: ignore[reportArgumentType]


def lookup(ids: Any, counts: Any, /, *, field: str = "") -> Lookup:
    """Return counts by id, once they are known to make sense.

    Parameters
    ----------
    ids : array (n,), integers or text
    counts : array (n,), numbers
    field : str, for messages

    Raises
    ------
    ValueError
        A count is negative or no number (the id is named), or an id stands twice.
    """
    weights = np.asarray(counts.to_numpy() if hasattr(counts, "to_numpy") else counts, dtype=np.float64)
    keys, names = keys_of(ids)
    check_counts(weights, field, names if names is not None else keys)
    rising = bool((keys[1:] > keys[:-1]).all())
    order = slice(None) if rising else np.argsort(keys, kind="stable")
    keys = keys[order]
    twice = np.flatnonzero(keys[1:] == keys[:-1])
    if twice.size:
        which = keys[twice[0]] if names is None else names[int(np.arange(len(names))[order][twice[0]])]
        msg = f"field {field!r}: the counts have id {which} twice; add its counts up first"
        raise ValueError(msg)
    if names is None and len(keys) and int(keys[-1]) - int(keys[0]) == len(keys) - 1:
        return Lookup(range(int(keys[0]), int(keys[-1]) + 1), weights if rising else weights[order])
    if names is not None:
        names = names.take(_int64(np.arange(len(names))[order]))
    return Lookup(keys, weights[order], names)


def check_counts(weights: Array, field: str, ids: Any, /) -> None:
    """Refuse counts that are negative or no numbers; the message names field and id."""
    wrong = ~(np.isfinite(weights) & (weights >= 0))
    if wrong.any():
        i = int(wrong.argmax())
        msg = f"field {field!r}, id {ids[i]}: count {weights[i]} arrived; counts are finite and not negative"
        raise ValueError(msg)


def read_counts(counts: Any, fields: Sequence[str] | None = None, /) -> dict[str, Lookup | Array]:
    """Return counts by field in the form that a pass over the tables uses.

    Parameters
    ----------
    counts : mapping, table, path or frame
        By field an array (V,) in the order of the rows, or a table of ``id, count``; or one table or file of ``field, id, count``.

    Raises
    ------
    TypeError, ValueError
        Something else, a column that is missing, or counts that make no sense.
    """
    if isinstance(counts, Mapping):
        return {str(name): _one_field(str(name), value) for name, value in counts.items()}
    if isinstance(counts, str | Path):
        return _of_file(counts, fields[0] if fields is not None and len(fields) == 1 else None)
    table = _table(counts)
    _columns(
        table,
        ("id", "count")
        if fields is not None and len(fields) == 1 and "field" not in table.column_names
        else ("field", "id", "count"),
    )
    if "field" not in table.column_names:
        assert fields is not None
        return {fields[0]: lookup(table["id"], table["count"], field=fields[0])}
    pc = _arrow()
    names = [str(one) for one in pc.unique(table["field"]).to_pylist()]
    if len(names) == 1:
        return {names[0]: lookup(table["id"], table["count"], field=names[0])}
    parts = {name: table.filter(pc.equal(table["field"], name)) for name in names}
    return {name: lookup(part["id"], part["count"], field=name) for name, part in parts.items()}


def count_ids(
    log: Any,
    fields: Sequence[str] | Mapping[str, str],
    /,
    *,
    timestamps: str | None = None,
    half_life: str | None = None,
    now: Any = None,
) -> dict[str, Any]:
    """Count the ids of a click log in one streaming query.

    Parameters
    ----------
    log : path, glob, folder, LazyFrame, DataFrame or Arrow table
    fields : names of columns, or mapping of field to column
    timestamps : str, optional
        Column with the time of each row; with ``half_life`` such as "7d", a look-up that much older counts half.
    now : datetime, optional
        The time at which a look-up counts 1; by default the latest in the log.

    Returns
    -------
    counts : dict of Arrow tables ``id, count`` (float64) by field; nulls are not counted

    Notes
    -----
    Memory: the ids that occur. Vectors are never joined into the log.
    """
    import polars as pl

    columns = dict(fields) if isinstance(fields, Mapping) else {name: name for name in fields}
    frame = _lazy(log)
    there = frame.collect_schema().names()
    missing = [name for name in [*columns.values(), *([timestamps] if timestamps else [])] if name not in there]
    if missing:
        msg = f"the log has no column {', '.join(missing)}; it has {', '.join(there)}"
        raise ValueError(msg)
    if (timestamps is None) != (half_life is None):
        msg = "counts decay by half_life= and the column timestamps= together; give both, or neither"
        raise ValueError(msg)
    weight = pl.len().cast(pl.Float64)
    if timestamps is not None and half_life is not None:
        from streamsvd.planner import in_seconds

        seconds = in_seconds(half_life, "half_life")
        assert seconds is not None
        at = frame.select(pl.col(timestamps).max()).collect(engine="streaming").item() if now is None else now
        age = (pl.lit(at) - pl.col(timestamps)).dt.total_milliseconds() / 1000.0
        frame = frame.with_columns(_w=(-(age / seconds) * np.log(2.0)).exp())
        weight = pl.col("_w").sum()
    queries = [
        frame.filter(pl.col(column).is_not_null())
        .group_by(pl.col(column).alias("id"))
        .agg(weight.alias("count"))
        .sort("id")
        for column in columns.values()
    ]
    found = pl.collect_all(queries, engine="streaming")
    return {name: table.to_arrow() for name, table in zip(columns, found, strict=True)}


def _one_field(name: str, value: Any) -> Lookup | Array:
    if hasattr(value, "keys") and callable(value.keys) and isinstance(value, Mapping):
        return lookup(list(value.keys()), list(value.values()), field=name)
    if isinstance(value, Lookup):
        return value
    if isinstance(value, str | Path):
        return _of_file(value, name)[name]
    if hasattr(value, "column_names") or hasattr(value, "collect_schema"):
        table = _table(value)
        _columns(table, ("id", "count"))
        return lookup(table["id"], table["count"], field=name)
    weights = np.asarray(value, dtype=np.float64)
    if weights.ndim != 1:
        msg = (
            f"field {name!r}: counts of shape {weights.shape} arrived; expected (V,), "
            "one for each row of the table, or a table of id, count"
        )
        raise ValueError(msg)
    check_counts(weights, name, range(len(weights)))
    return weights


def _of_file(path: str | Path, single: str | None) -> dict[str, Lookup]:
    """Read counts from a file in blocks: a table of them all would be held twice."""
    import pyarrow as pa

    from streamsvd.flow.files import find
    from streamsvd.flow.readers import column_names
    from streamsvd.flow.sources import read
    from streamsvd.pipelines.ctr.tables import _split

    there = column_names(find(path)[0]) or []
    wanted = ["id", "count"] if single is not None and "field" not in there else ["field", "id", "count"]
    _missing(there, wanted)
    parts: dict[str, tuple[list[Any], list[Array]]] = {}
    for block in read(path, columns=wanted):
        for field, batch in _split(block.data, single or ""):
            ids, weights = parts.setdefault(field, ([], []))
            ids.append(batch["id"])
            weights.append(batch["count"].to_numpy(zero_copy_only=False).astype(np.float64, copy=False))
    found = {}
    for field in list(parts):
        ids, weights = parts.pop(field)
        joined = np.concatenate(weights)
        weights.clear()
        found[field] = lookup(pa.chunked_array(ids), joined, field=field)
        del ids, weights, joined
    pa.default_memory_pool().release_unused()  # what reading took, before vectors need as much
    if single is not None and single not in found:
        msg = f"{str(path)!r} has no counts for field {single!r} (it has {', '.join(found) or 'none'})"
        raise ValueError(msg)
    return found


def _table(value: Any) -> Any:
    import pyarrow as pa

    if isinstance(value, pa.Table):
        return value
    return _lazy(value).collect(engine="streaming").to_arrow()


def _lazy(value: Any) -> Any:
    import polars as pl

    if isinstance(value, pl.LazyFrame | pl.DataFrame):
        return value.lazy()
    if isinstance(value, str | Path):
        from streamsvd.flow.files import find

        files = find(value)
        paths = [one.path for one in files]
        readers = {
            ".csv": pl.scan_csv,
            ".arrow": pl.scan_ipc,
            ".ipc": pl.scan_ipc,
            ".feather": pl.scan_ipc,
            ".ndjson": pl.scan_ndjson,
        }
        frame = readers.get(files[0].suffix, pl.scan_parquet)(paths)
        try:
            frame.collect_schema()
        except pl.exceptions.PolarsError as error:
            msg = f"{str(files[0])!r} cannot be read: it is damaged, or not what its suffix says ({error})"
            raise ValueError(msg) from error
        return frame
    frame = pl.from_arrow(value)
    assert isinstance(frame, pl.DataFrame)
    return frame.lazy()


def _columns(table: Any, wanted: Sequence[str]) -> None:
    _missing(table.column_names, wanted)


def _missing(there: Sequence[str], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in there]
    if missing:
        msg = (
            f"counts have the columns {', '.join(there)}; expected {', '.join(wanted)}, "
            f"and {', '.join(missing)} is missing"
        )
        raise ValueError(msg)


def _arrow() -> Any:
    """Return Arrow's functions, which it makes when it is imported and no type checker knows."""
    import pyarrow.compute

    return pyarrow.compute


def _int64(indices: Array) -> Any:
    import pyarrow as pa

    return pa.array(indices, pa.int64())


def as_table(counts: dict[str, Any], /) -> Any:
    """Return what `count_ids` made as one table ``field, id, count``; ids become text where the fields have several types."""
    import pyarrow as pa

    kinds = {table["id"].type for table in counts.values()}
    integers = all(pa.types.is_integer(kind) for kind in kinds)
    kind = pa.int64() if integers else pa.large_string()
    parts = [
        pa.table(
            {
                "field": pa.array([name] * len(table), pa.string()),
                "id": table["id"].cast(kind),
                "count": table["count"].cast(pa.float64()),
            }
        )
        for name, table in counts.items()
    ]
    return pa.concat_tables(parts)
