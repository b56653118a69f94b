"""Tables that lie in shards, on one machine or many: moments of each shard, one choice of ranks, and each shard's rows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamsvd.pipelines.ctr.choosing import Target
from streamsvd.pipelines.ctr.compress import Compressed, finish
from streamsvd.pipelines.ctr.counts import Lookup, read_counts
from streamsvd.pipelines.ctr.moments import Moments, Weighting
from streamsvd.pipelines.ctr.passes import measure

Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True)
class _Work:
    """What a task needs beside its shard."""

    counts: Mapping[str, Any]
    weighting: Weighting
    model: str

    def measured(self, tables: Any) -> tuple[Moments, dict[str, dict[str, float]]]:
        return measure(tables, self.counts, weighting=self.weighting, model=self.model, ignore_unknown=True, zero=True)


def compress_shards(
    shards: Mapping[str, Any],
    counts: Any,
    /,
    *,
    out: str | Path,
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
    mapper: Mapper = map,
) -> dict[str, Compressed]:
    """Compress tables whose rows are cut into shards, as `compress_tables` does with all of them: the same ranks and projections.

    Parameters
    ----------
    shards : mapping of names to tables
        Each a file or files that `compress_tables` reads, seen by the worker that gets it. An id stands in one shard alone.
    counts
        As in `compress_tables`, with ids, for all shards together.
    out : folder, seen by all workers
        Each shard gets a folder of its name there, which `open_compressed` reads.
    budget_bytes, rank, energy, min_rank, keep_dense, smoothing, power, center, ignore_unknown, model
        As in `compress_tables`; the budget is that of all shards together.
    mapper : function like the builtin ``map``
        ``streamsvd.engines.tasks.ray_map`` or ``spark_map`` run the shards on a cluster; ``functools.partial`` passes their options.

    Returns
    -------
    compressed : dict of Compressed by shard
        Their fields, sizes and errors are those of the whole tables; rows are those of the shard.

    Raises
    ------
    TypeError, ValueError
        As `compress_tables`; also for an id that stands in two shards, and counts without ids.

    Notes
    -----
    Two tasks a shard. Moments, of ``2 d^2`` numbers a field, are merged in the order of the shards.
    """
    target = Target(budget_bytes, rank, energy, min_rank, keep_dense)
    known = read_counts(counts, None)
    plain = [name for name, one in known.items() if not isinstance(one, Lookup)]
    if plain:
        msg = f"counts of {', '.join(plain)} have no ids, and rows of shards have no common numbers; pass a table of field, id, count"
        raise ValueError(msg)
    work = _Work(known, Weighting(smoothing, power, center), model)
    told = list(mapper(work.measured, list(shards.values())))
    unknown = _unknown(known, [lost for _, lost in told], ignore_unknown=ignore_unknown)
    whole = functools.reduce(Moments.merge, [moments for moments, _ in told])
    for name in whole.fields:
        if whole.basis(name).rows == 0:
            msg = f"field {name!r}: all counts are zero, so nothing says which ids matter; give counts, or smoothing=1"
            raise ValueError(msg)
    place = Path(out).absolute()
    write = functools.partial(_written, moments=whole, target=target, unknown=unknown)
    parts = zip(shards.items(), told, strict=True)
    done = mapper(write, [(tables, place / name, sorted(lost)) for (name, tables), (_, lost) in parts])
    return dict(zip(shards, done, strict=True))


def _written(
    shard: tuple[Any, Path, list[str]], *, moments: Moments, target: Target, unknown: Mapping[str, Mapping[str, float]]
) -> Compressed:
    tables, folder, only = shard
    folder.mkdir(parents=True, exist_ok=True)
    return finish(tables, moments, target, folder=folder, unknown=unknown, only=only)


def _unknown(
    known: Mapping[str, Any], lost: list[dict[str, dict[str, float]]], *, ignore_unknown: bool
) -> dict[str, dict[str, float]]:
    """Return what no shard has, from what each does not have."""
    unknown = {}
    for name, lookup in known.items():
        told = [one[name] for one in lost if name in one]
        ids = int((lookup.counts > 0).sum())
        missing = ids - sum(ids - int(one["ids"]) for one in told)
        total = float(lookup.counts.sum())
        if missing < 0:
            msg = (
                f"field {name!r}: {-missing:,} ids that have counts stand in more than one shard; keep one row of each"
            )
            raise ValueError(msg)
        if missing and not ignore_unknown:
            msg = f"field {name!r}: {missing:,} ids that have counts are in no shard; ignore_unknown=True leaves them out and says how many"
            raise ValueError(msg)
        unknown[name] = {"ids": missing, "lookups": total - sum(total - one["lookups"] for one in told)}
    return unknown
