"""Edges in, factors out: Arrow and Parquet files, the manifest, and LightGCL's four tensors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.pipelines.graph.factors import GraphFactors

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from streamsvd.arrays import Array
    from streamsvd.flow.files import File

SIDES = {"users": ("user", "u"), "items": ("item", "v")}
FORMAT = 1
FORMATS = {".parquet": "parquet", ".csv": "csv", ".arrow": "ipc", ".ipc": "ipc", ".feather": "ipc"}


def edge_files(paths: list[str], /) -> list[File]:
    """Return the files that paths, patterns and folders stand for, those of a folder in the order of their names.

    Raises
    ------
    FileNotFoundError
        There is no such file or folder, or a folder without one of these files.
    ValueError
        A file of another kind, or a URL.
    """
    from streamsvd.flow.files import find

    found = [file for path in paths for file in find(path)]
    for file in found:
        if file.suffix not in FORMATS or file.remote is not None:
            msg = f"{str(file)!r} cannot be read as edges; expected {', '.join(FORMATS)} on this machine: convert or copy it"
            raise ValueError(msg)
    return found


def edge_batches(paths: list[str], /, *, rows: int = 1 << 20) -> Iterator[tuple[str, pa.Table]]:
    """Yield batch ids and tables of edges from Parquet, Arrow IPC or CSV files and folders of them.

    A batch id is the file's name and the number of its first row, so a run that is repeated leaves out what it had.
    """
    import pyarrow as pa
    import pyarrow.dataset as ds

    from streamsvd.flow.files import naming
    from streamsvd.pipelines.graph.batch import COLUMNS

    for file in edge_files(paths):
        with naming(file):
            data = ds.dataset(file.path, format=FORMATS[file.suffix])
        names, at = [name for name in COLUMNS if name in data.schema.names], 0
        for batch in data.to_batches(columns=names or None, batch_size=rows):
            if batch.num_rows:
                yield f"{Path(file.path).name}:{at}", pa.Table.from_batches([batch])
            at += batch.num_rows


def write_factors(factors: GraphFactors, folder: str | os.PathLike[str], /) -> Path:
    """Write ``user_factors.parquet``, ``item_factors.parquet``, ``singular_values.parquet`` and ``manifest.json`` to a folder.

    The columns are user, row, u, us; item, row, v, vs, scale; component, s, rotation. Vectors are FixedSizeList columns of float32. Each
    file appears in one step, the manifest last, and all carry the version.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    version = {"version": str(factors.version)}
    tables = {}
    for side, (name, letter) in SIDES.items():
        x, xs = (factors.u, factors.u_mul_s) if letter == "u" else (factors.v, factors.v_mul_s)
        ids = getattr(factors, side)
        columns = {name: ids, "row": pa.array(np.arange(len(ids), dtype=np.int32))}
        columns |= {letter: _vectors(x), f"{letter}s": _vectors(xs)}
        if letter == "v":
            columns["scale"] = pa.array(factors.item_scale)
        tables[f"{name}_factors"] = pa.table(columns).replace_schema_metadata(version)
    rotation = pa.FixedSizeListArray.from_arrays(pa.array(factors.rotation.ravel()), factors.rank)
    order = pa.array(np.arange(factors.rank, dtype=np.int32))
    columns = {"component": order, "s": pa.array(factors.s), "rotation": rotation}
    tables["singular_values"] = pa.table(columns).replace_schema_metadata(version)
    for name, table in tables.items():
        with _replacing(target / f"{name}.parquet") as draft:
            pq.write_table(table, draft)
    with _replacing(target / "manifest.json") as draft:
        said = {"format": FORMAT, **factors.info, "rank": factors.rank, "version": factors.version}
        Path(draft).write_text(json.dumps(said, indent=1, allow_nan=False) + "\n")
    return target


def read_factors(folder: str | os.PathLike[str], /) -> GraphFactors:
    """Read what `write_factors` wrote.

    Raises
    ------
    FileNotFoundError
        The folder holds no factors.
    ValueError
        Its files are of different versions (they were being replaced: read again), or of a newer format.
    """
    import pyarrow.parquet as pq

    source = Path(folder)
    if not (source / "manifest.json").exists():
        cure = "name the folder that write_factors or `streamsvd graph svd` wrote"
        msg = f"{str(folder)!r} holds no manifest.json (looked from {Path.cwd()}); {cure}"
        raise FileNotFoundError(msg)
    info = json.loads((source / "manifest.json").read_text())
    if info.pop("format", 0) != FORMAT:
        msg = f"{str(folder)!r} was written in another format than {FORMAT}; upgrade streamsvd, or write the factors again"
        raise ValueError(msg)
    names = ("user_factors", "item_factors", "singular_values")
    users, items, values = (pq.read_table(source / f"{name}.parquet") for name in names)
    versions = [table.schema.metadata.get(b"version", b"?").decode() for table in (users, items, values)]
    if set(versions) != {str(info["version"])}:
        msg = f"{str(folder)!r} holds files of versions {', '.join(versions)} and a manifest of {info['version']}; read again"
        raise ValueError(msg)
    return GraphFactors(
        users.column("user").combine_chunks(),
        items.column("item").combine_chunks(),
        values.column("s").to_numpy(),
        as_matrix(users.column("u")),
        as_matrix(items.column("v")),
        as_matrix(values.column("rotation")),
        items.column("scale").to_numpy(),
        info["version"],
        info,
    )


def load_tensors(folder: str | os.PathLike[str], /, *, device: Any = "cpu") -> tuple[Array, Array, Array, Array]:
    """Return LightGCL's ``(u_mul_s, v_mul_s, ut, vt)`` as torch tensors from a folder of factors; rows are in the order of ``row``."""
    return read_factors(folder).tensors(device)


def need_torch(what: str, /) -> Any:
    """Return torch, or say how to install it."""
    try:
        import torch
    except ImportError as error:
        msg = f"{what} needs torch, which is not installed; run: pip install 'streamsvd[torch]'"
        raise ImportError(msg) from error
    return torch


def vectors_table(name: str, ids: pa.Array, vectors: np.ndarray, /) -> pa.Table:
    """Return an Arrow table of ids, rows and vectors: name, row, embedding (FixedSizeList of float32)."""
    import pyarrow as pa

    columns = {name: ids, "row": pa.array(np.arange(len(ids), dtype=np.int32)), "embedding": _vectors(vectors)}
    return pa.table(columns)


def as_matrix(column: Any, /) -> np.ndarray:
    """Return a FixedSizeList column (b, k) as a NumPy array."""
    chunk = column.combine_chunks()
    return chunk.flatten().to_numpy(zero_copy_only=False).reshape(len(chunk), -1)


def write_table(table: pa.Table, path: str | os.PathLike[str], /) -> None:
    """Write a Parquet file that appears in one step."""
    import pyarrow.parquet as pq

    with _replacing(Path(path)) as draft:
        pq.write_table(table, draft)


class _replacing:
    """A draft beside a file, which takes its place when all went well."""

    def __init__(self, final: Path) -> None:
        self.final, self.draft = final, final.with_name(f".{final.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")

    def __enter__(self) -> str:
        return str(self.draft)

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is None:
            self.draft.replace(self.final)
        self.draft.unlink(missing_ok=True)


def _vectors(x: np.ndarray) -> pa.Array:
    import pyarrow as pa

    flat = np.ascontiguousarray(x, dtype=np.float32).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), x.shape[1])
