"""Compress embedding tables after training: moments under the look-up counts, ranks under a budget, smaller tables."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from streamsvd.arrays import Array
from streamsvd.flow.checkpoint import load, save
from streamsvd.pipelines.ctr import io
from streamsvd.pipelines.ctr.choosing import Target, choose
from streamsvd.pipelines.ctr.counts import read_counts
from streamsvd.pipelines.ctr.model import CompressedField
from streamsvd.pipelines.ctr.moments import Moments, Weighting
from streamsvd.pipelines.ctr.passes import measure


@dataclass(frozen=True, eq=False)
class Compressed(Mapping[str, CompressedField]):
    """Compressed tables by field: ``c["item"].table``, ``.projection``, ``.mean``, ``.error``, ``.reconstruct()``.

    Attributes
    ----------
    fields : dict of CompressedField
    moments : Moments, from which `refresh` goes on
    unknown : dict by field of ``ids`` and ``lookups`` that were counted and are in no table
    version : int, of the bases
    folder : Path or None, where rows are that are too many for memory
    """

    fields: Mapping[str, CompressedField]
    moments: Moments
    unknown: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    version: int = 1
    folder: Path | None = None

    def __getitem__(self, name: str, /) -> CompressedField:
        return self.fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    @property
    def bytes_before(self) -> int:
        """Bytes of the tables as they came."""
        return sum(one.bytes_before for one in self.fields.values())

    @property
    def bytes_after(self) -> int:
        """Bytes of the compressed rows, projections and means."""
        return sum(one.bytes_after for one in self.fields.values())

    @property
    def error(self) -> float:
        """Relative weighted squared error of all fields together: ``sum N dropped / sum N energy``."""
        found = self.fields.values()
        energy = sum(one.weight * one.energy for one in found)
        return sum(one.weight * one.dropped for one in found) / energy if energy > 0 else 0.0

    def report(self) -> dict[str, Any]:
        """Return all figures as plain values: per field rank, bytes, errors and eigenvalues; of the whole, their sums."""
        names = (
            "rank",
            "reason",
            "vocabulary",
            "bytes_before",
            "bytes_after",
            "error",
            "served_error",
            "weight",
            "served_weight",
        )
        fields = {
            name: {key: getattr(one, key) for key in names}
            | {"columns": one.projection.shape[1], "eigenvalues": one.eigenvalues.tolist()}
            for name, one in self.fields.items()
        }
        whole = {key: getattr(self, key) for key in ("bytes_before", "bytes_after", "error", "version")}
        return {**whole, "model": self.moments.model, "unknown": dict(self.unknown), "fields": fields}

    def save(self, folder: str | Path, /) -> Compressed:
        """Write rows, bases, moments and manifest to a folder; returns the result with its rows there."""
        folder = Path(folder)
        if self.folder is not None and self.folder == folder / f"v{self.version}":
            return self
        place = folder / f"v{self.version}"
        for one in self.fields.values():
            ids, table = one.ids, one.table
            io.remove_parts(place, one.name, 0)
            (place / io.quote(one.name, safe="")).mkdir(parents=True, exist_ok=True)
            record = io.as_batch(ids, table, io._metadata(one, self.version))
            with io._part(place, one.name, 0, record.schema) as write:
                write(record)
        return _published(replace(self, folder=place, fields=io.located(self.fields, place)), folder)


def compress_tables(
    tables: Any,
    counts: Any,
    /,
    *,
    budget_bytes: int | None = None,
    rank: int | Mapping[str, int] | None = None,
    energy: float | None = None,
    smoothing: float = 0.0,
    power: float = 1.0,
    center: bool = True,
    min_rank: int = 0,
    keep_dense: bool = True,
    ignore_unknown: bool = False,
    model: str = "",
    out: str | Path | None = None,
) -> Compressed:
    """Compress embedding tables so that the look-ups that are really made lose least.

    Each field becomes ``e ~ U_r'(e - mu)`` rows of r numbers, a projection (r, d) and a bias mu (d,), where U_r are the leading
    eigenvectors of the covariance weighted by how often each id is looked up. Nothing is trained.

    Parameters
    ----------
    tables : mapping of field to array (V, d), or table, Parquet, Arrow IPC or safetensors file; see `tables.batches`
    counts : mapping of field to array (V,) or table of ``id, count``, or one table or file of ``field, id, count``
        `count_ids` makes them of a click log.
    budget_bytes, rank, energy, min_rank, keep_dense
        How small; see `Target`.
    smoothing, power, center
        What a count is worth; see `Weighting`.
    ignore_unknown : bool
        Leave out counts of ids that no table has; ``unknown`` says how many.
    model : str
        Which model the vectors are of; moments of two models refuse to merge.
    out : folder, optional
        Rows are written there as they are made, for tables larger than memory; a run that was stopped goes on where it was.

    Returns
    -------
    compressed : Compressed, by field

    Raises
    ------
    TypeError, ValueError
        For what is refused; the message names field and id, and what to write instead.

    Notes
    -----
    Cost: two passes over the tables, ``d^2 / 2 + r d`` multiply-adds a row. Memory: with ``out`` a few blocks of 16 MiB and 17 bytes for
    each id that has a count; without it the compressed rows too. The expected squared error is exactly the sum of the dropped eigenvalues.

    References
    ----------
    Yu et al. 2024 (atomic feature mimicking, arXiv 2405.18146); Eckart and Young 1936.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> table = rng.standard_normal((1000, 16)) * 0.7 ** np.arange(16)
    >>> c = compress_tables({"item": table}, {"item": 1000 / np.arange(1, 1001)}, rank=4)
    >>> c["item"].table.shape, c["item"].projection.shape, c.bytes_after / c.bytes_before < 0.26
    ((1000, 4), (4, 16), True)
    """
    target = Target(budget_bytes, rank, energy, min_rank, keep_dense)
    weighting = Weighting(smoothing, power, center)
    tables = {k: v for k, v in tables.items()} if isinstance(tables, Mapping) else tables
    known = read_counts(counts, list(tables) if isinstance(tables, dict) else None)
    folder = None if out is None else Path(out)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    checkpoint = None if folder is None else folder / "measuring.svd"
    try:
        moments, unknown = measure(
            tables, known, weighting=weighting, model=model, ignore_unknown=ignore_unknown, checkpoint=checkpoint
        )
        del known  # as large as the ids are many, and the second pass needs none of it
        done = finish(tables, moments, target, folder=folder, unknown=unknown)
    except BaseException:
        if folder is not None and not any(folder.iterdir()):  # what was refused leaves nothing behind
            folder.rmdir()
        raise
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return done


def finish(
    tables: Any,
    moments: Moments,
    target: Target,
    /,
    *,
    folder: Path | None = None,
    unknown: Mapping[str, Mapping[str, float]] | None = None,
    version: int = 1,
    only: Collection[str] | None = None,
) -> Compressed:
    """Choose ranks, read the tables once more and write or keep the compressed rows; ``only`` names the fields that a shard has."""
    fields = {name: one for name, one in choose(moments, target).items() if only is None or name in only}
    if folder is None:
        return Compressed(_kept(tables, fields), moments, unknown or {}, version)
    place = folder / f"v{version}"
    io.write_rows(tables, fields, place, version=version)
    return _published(Compressed(io.located(fields, place), moments, unknown or {}, version, place), folder)


def open_compressed(folder: str | Path, /) -> Compressed:
    """Open what ``compress_tables(..., out=folder)`` or ``save`` wrote; rows are read when they are asked for."""
    folder = Path(folder)
    manifest = io.read_manifest(folder)
    place = folder / f"v{manifest['version']}"
    fields, meta = io.read_bases(place / "bases.svd")
    return Compressed(fields, load(place / "moments.svd"), meta["unknown"], meta["version"], place)


def _published(done: Compressed, folder: Path) -> Compressed:
    assert done.folder is not None
    io.write_bases(done.folder / "bases.svd", done.fields, {"unknown": done.unknown, "version": done.version})
    save(done.moments, done.folder / "moments.svd")
    io.write_manifest(folder, done.report())
    return done


def _kept(tables: Any, fields: Mapping[str, CompressedField]) -> dict[str, CompressedField]:
    parts: dict[str, list[tuple[Any, Array]]] = {name: [] for name in fields}
    for batch, table in io.projected(tables, fields):
        parts[batch.field].append((batch.ids, np.array(table)))
    joined = {}
    for name, found in parts.items():
        ids = [one for one, _ in found]
        if hasattr(ids[0], "type"):
            import pyarrow as pa

            together = pa.concat_arrays([x for one in ids for x in getattr(one, "chunks", [one])])
        else:
            together = np.concatenate([np.asarray(one) for one in ids])
        joined[name] = replace(fields[name], rows=(together, np.concatenate([table for _, table in found])))
    return joined
