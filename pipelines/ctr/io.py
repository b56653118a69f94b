"""Results as files: Parquet parts of compressed rows, bases and moments as state files, a manifest that names the version in force."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from streamsvd.arrays import Array
from streamsvd.flow import statefile
from streamsvd.flow.sinks import draft_of
from streamsvd.pipelines.ctr.model import CompressedField
from streamsvd.pipelines.ctr.tables import TableBatch, batches, resumable

PART_ROWS = 1 << 21
OPTIONS: dict[str, Any] = {"use_dictionary": False, "compression": "none"}  # trained numbers hardly compress
SCALARS = (
    "name rank reason dropped energy served_error weight served_weight vocabulary bytes_before bytes_after".split()  # noqa: SIM905
)


def projected(
    tables: Any, fields: Mapping[str, CompressedField], /, *, start: Any = None
) -> Iterator[tuple[TableBatch, Array]]:
    """Read the tables once more and give each batch with its compressed rows (b, r)."""
    for batch in batches(tables, start=start):
        if batch.field not in fields:
            msg = f"field {batch.field!r} was not there when the moments were measured; measure the tables again"
            raise ValueError(msg)
        one = fields[batch.field]
        if batch.vectors.shape[1] != one.projection.shape[1]:
            msg = (
                f"field {batch.field!r} has vectors of {batch.vectors.shape[1]} numbers and "
                f"a basis of {one.projection.shape[1]}; they are of two models"
            )
            raise ValueError(msg)
        yield batch, one.encode(batch.vectors)


def write_rows(tables: Any, fields: Mapping[str, CompressedField], folder: Path, /, *, version: int = 1) -> None:
    """Write the compressed rows of all fields below a folder, in parts; a run that was stopped goes on after its last parts.

    Notes
    -----
    Memory: four blocks of 16 MiB. Disk: ``V r`` numbers and the ids.
    """
    progress, parts, start = folder / "progress.json", dict.fromkeys(fields, 0), None
    if progress.exists() and resumable(tables):
        parts, start = json.loads(progress.read_text()).values()
    for name in fields:
        (folder / quote(name, safe="")).mkdir(parents=True, exist_ok=True)
        remove_parts(folder, name, parts[name])
    rows, stack, writers = 0, ExitStack(), {}
    with stack:
        for batch, table in projected(tables, fields, start=start):
            if batch.field not in writers:
                record = as_batch(batch.ids, table, _metadata(fields[batch.field], version))
                writers[batch.field] = stack.enter_context(
                    _part(folder, batch.field, parts[batch.field], record.schema)
                )
            writers[batch.field](as_batch(batch.ids, table, _metadata(fields[batch.field], version)))
            rows += len(table)
            if rows >= PART_ROWS and batch.last:
                stack.close()
                parts = {name: n + (name in writers) for name, n in parts.items()}
                statefile.write_atomically(progress, [json.dumps({"parts": parts, "offset": batch.offset}).encode()])
                rows, writers = 0, {}
    progress.unlink(missing_ok=True)


def as_batch(ids: Any, table: Array, metadata: dict[str, str], /) -> Any:
    """Return ids and rows as a RecordBatch ``id, vector``; without the vector at rank 0, which Parquet has no list for."""
    import pyarrow as pa

    columns: dict[str, Any] = {"id": ids if isinstance(ids, pa.Array) else pa.array(ids)}
    if table.shape[1]:
        kind = pa.list_(pa.field("item", pa.from_numpy_dtype(table.dtype), nullable=False), table.shape[1])
        columns["vector"] = pa.FixedSizeListArray.from_arrays(
            pa.array(np.ascontiguousarray(table).reshape(-1)), type=kind
        )
    return pa.record_batch(columns).replace_schema_metadata(metadata)


def append_rows(folder: Path, one: CompressedField, ids: Any, vectors: Array, /, *, version: int) -> None:
    """Add a part with the compressed rows of new ids, under the basis in force."""
    number = len(list((folder / quote(one.name, safe="")).glob("part-*.parquet")))
    record = as_batch(ids, one.encode(vectors), _metadata(one, version))
    with _part(folder, one.name, number, record.schema) as write:
        write(record)


def remove_parts(folder: Path, name: str, first: int, /) -> None:
    """Remove the parts from one number on."""
    for file in sorted((folder / quote(name, safe="")).glob("part-*.parquet"))[first:]:
        file.unlink()


def read_rows(folder: Path, name: str, /) -> tuple[Any, Array]:
    """Return the ids (V,) and the compressed rows (V, r) of one field. Memory: both."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted((Path(folder) / quote(name, safe="")).glob("part-*.parquet"))
    if not files:
        msg = f"there are no rows of field {name!r} in {str(folder)!r}; compress the tables again"
        raise FileNotFoundError(msg)
    found = [pq.read_table(file) for file in files]
    ids = pa.concat_arrays([chunk for one in found for chunk in one["id"].chunks])
    if "vector" not in found[0].column_names:
        return ids, np.zeros((len(ids), 0), np.float32)
    vectors = [chunk.flatten().to_numpy().reshape(len(chunk), -1) for one in found for chunk in one["vector"].chunks]
    return ids, np.concatenate(vectors)


def write_bases(path: Path, fields: Mapping[str, CompressedField], meta: dict[str, Any], /) -> None:
    """Write projections, means and spectra of all fields, and what else is to be known of them, to one state file."""
    arrays = {}
    for i, one in enumerate(fields.values()):
        arrays |= {
            f"{i}.{role}": np.ascontiguousarray(getattr(one, role)) for role in ("projection", "mean", "eigenvalues")
        }
    kept = [{name: getattr(one, name) for name in SCALARS} for one in fields.values()]
    statefile.write(path, "ctr-bases", arrays, {**meta, "fields": kept})


def read_bases(path: Path, /) -> tuple[dict[str, CompressedField], dict[str, Any]]:
    """Return what `write_bases` wrote; the rows of each field are read from beside it when they are asked for."""
    _, arrays, meta = statefile.read(path, kinds=("ctr-bases",))
    fields = {}
    for i, kept in enumerate(meta["fields"]):
        own: dict[str, Any] = {role: arrays[f"{i}.{role}"] for role in ("projection", "mean", "eigenvalues")}
        fields[kept["name"]] = CompressedField(**kept, **own, source=path.parent)
    return fields, meta


def write_manifest(folder: Path, values: Mapping[str, Any], /) -> None:
    """Put a version in force, in one step."""
    text = json.dumps(values, indent=1, allow_nan=False) + "\n"
    statefile.write_atomically(folder / "manifest.json", [text.encode()])


def read_manifest(folder: Path, /) -> dict[str, Any]:
    """Return the manifest of a folder of compressed tables."""
    file = Path(folder) / "manifest.json"
    if not file.exists():
        msg = (
            f"{str(folder)!r} holds no compressed tables (there is no manifest.json); "
            f"make them with compress_tables(..., out={str(folder)!r})"
        )
        raise FileNotFoundError(msg)
    return json.loads(file.read_text())


def located(fields: Mapping[str, CompressedField], folder: Path, /) -> dict[str, CompressedField]:
    """Return the fields with their rows where they were written."""
    return {name: replace(one, source=folder) for name, one in fields.items()}


def _metadata(one: CompressedField, version: int) -> dict[str, str]:
    return {"streamsvd.field": one.name, "streamsvd.basis_version": str(version), "streamsvd.rank": str(one.rank)}


class _part:
    """One Parquet file that appears when it is complete."""

    def __init__(self, folder: Path, name: str, number: int, schema: Any) -> None:
        self._stack = ExitStack()
        self._path, self._schema = folder / quote(name, safe="") / f"part-{number:05}.parquet", schema

    def __enter__(self) -> Any:
        import pyarrow.parquet as pq

        draft = self._stack.enter_context(draft_of(self._path))
        writer = self._stack.enter_context(pq.ParquetWriter(draft, self._schema, **OPTIONS))
        return writer.write_batch

    def __exit__(self, *error: Any) -> bool | None:
        return self._stack.__exit__(*error)
