"""The passes over tables that may be larger than memory: moments, with a checkpoint to go on from, and who was looked up."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from streamsvd.arrays import Array
from streamsvd.flow.checkpoint import load, save
from streamsvd.pipelines.ctr.counts import Lookup, keys_of
from streamsvd.pipelines.ctr.moments import Moments, Weighting
from streamsvd.pipelines.ctr.tables import TableBatch, batches, resumable


@dataclass(eq=False)
class Roster:
    """Which ids of one field a pass has met; finds ids that stand twice, and counts of ids that no table has.

    Attributes
    ----------
    counts : Lookup or array (V,), float64
    rows : int, met so far
    seen : array (n,), bool: which ids of the lookup
    fresh : list of arrays: keys of the others
    """

    name: str
    counts: Lookup | Array
    rows: int = 0
    seen: Array = field(default_factory=lambda: np.zeros(0, bool))
    fresh: list[Array] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin with nobody seen."""
        if isinstance(self.counts, Lookup) and not len(self.seen):
            self.seen = np.zeros(len(self.counts.keys), bool)

    def weigh(self, batch: TableBatch, /) -> Array:
        """Return the count of each row: array (b,), float64; 0 for ids without one."""
        b = len(batch.vectors)
        first, self.rows = self.rows, self.rows + b
        if not isinstance(self.counts, Lookup):
            if self.rows > len(self.counts):
                msg = (
                    f"field {self.name!r}: {len(self.counts)} counts arrived for "
                    "a table of more rows; expected one for each row"
                )
                raise ValueError(msg)
            self.fresh.append(keys_of(batch.ids)[0])
            return self.counts[first : self.rows]
        at = self.counts.find(batch.ids)
        known = at >= 0
        if known.all():
            self._mark(at, batch)
            return self.counts.counts[at]
        self.fresh.append(keys_of(batch.ids)[0][~known])
        self._mark(at[known], batch)
        return np.where(known, self.counts.counts[at], 0.0)

    def _mark(self, at: Array, batch: TableBatch) -> None:
        twice = self.seen[at]
        if not (at[1:] > at[:-1]).all():
            _, first = np.unique(at, return_index=True)
            again = np.ones(len(at), bool)
            again[first] = False
            twice = twice | again
        if twice.any():
            assert isinstance(self.counts, Lookup)
            where = int(at[int(twice.argmax())])
            which = self.counts.keys[where] if self.counts.names is None else self.counts.names[where]
            msg = (
                f"field {self.name!r}: id {which} stands twice in the tables "
                f"(again near row {batch.start}); keep one of its rows"
            )
            raise ValueError(msg)
        self.seen[at] = True

    def finish(self, *, ignore_unknown: bool) -> dict[str, float]:
        """Return how many counted ids no table has, and their look-ups.

        Raises
        ------
        ValueError
            There are some and they are not to be ignored; an id stands twice; there are more counts than rows.
        """
        keys = np.sort(np.concatenate(self.fresh)) if self.fresh else np.zeros(0, np.int64)
        if (keys[1:] == keys[:-1]).any():
            which = keys[1:][keys[1:] == keys[:-1]][0]
            msg = f"field {self.name!r}: id {which} stands twice in the tables; keep one of its rows"
            raise ValueError(msg)
        if not isinstance(self.counts, Lookup):
            if len(self.counts) != self.rows:
                msg = (
                    f"field {self.name!r}: {len(self.counts)} counts arrived "
                    f"for {self.rows} rows; expected one for each"
                )
                raise ValueError(msg)
            return {"ids": 0, "lookups": 0.0}
        lost = np.flatnonzero(~self.seen & (self.counts.counts > 0))
        lookups = float(self.counts.counts[lost].sum())
        if lost.size and not ignore_unknown:
            names = self.counts.keys if self.counts.names is None else self.counts.names
            some = ", ".join(str(names[int(i)]) for i in lost[:3])
            msg = (
                f"field {self.name!r}: {lost.size:,} ids that have counts are not in the table (such as {some}; "
                f"{lookups / self.counts.counts.sum():.2%} of the look-ups); ignore_unknown=True leaves them out and says how many"
            )
            raise ValueError(msg)
        return {"ids": int(lost.size), "lookups": lookups}


@dataclass(frozen=True, eq=False)
class Pass:
    """A pass over tables, as it was after the batch at ``offset``: what a checkpoint holds."""

    moments: Moments
    offset: Any
    rosters: Mapping[str, Roster]

    def parts(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Return the arrays and the JSON-ready rest."""
        arrays, meta = self.moments.parts()
        names = list(self.rosters)
        for i, one in enumerate(self.rosters.values()):
            arrays[f"seen{i}"] = np.packbits(one.seen)
            arrays[f"fresh{i}"] = np.concatenate([np.zeros(0, np.int64), *(x.view(np.int64) for x in one.fresh)])
        rows = [one.rows for one in self.rosters.values()]
        return arrays, {"moments": meta, "offset": self.offset, "names": names, "rows": rows}

    @classmethod
    def from_parts(cls, arrays: dict[str, Array], meta: dict[str, Any], /) -> Pass:
        """Restore a pass; its rosters have no counts yet."""
        rosters = {}
        for i, (name, rows) in enumerate(zip(meta["names"], meta["rows"], strict=True)):
            seen = np.unpackbits(arrays[f"seen{i}"]).astype(bool)
            rosters[name] = Roster(name, np.zeros(0), rows, seen, [arrays[f"fresh{i}"]])
        return cls(Moments.from_parts(arrays, meta["moments"]), meta["offset"], rosters)


def measure(
    tables: Any,
    counts: Mapping[str, Lookup | Array],
    /,
    *,
    weighting: Weighting = Weighting(),  # noqa: B008
    model: str = "",
    ignore_unknown: bool = False,
    checkpoint: Path | None = None,
    every: float = 30.0,
    zero: bool = False,
) -> tuple[Moments, dict[str, dict[str, float]]]:
    """Read the tables once and return their moments, and how many counted ids each field does not have.

    Parameters
    ----------
    tables : as `tables.batches` reads
    counts : dict of Lookup or array by field, of `counts.read_counts`
    checkpoint : path, optional
        Written each ``every`` seconds where the tables can be read from the middle; a pass that finds it goes on from there and ends in
        the same bits.
    zero : bool
        A field may have no look-ups, as happens between two refreshes.

    Raises
    ------
    TypeError, ValueError, OSError
        For tables and counts that are refused; the message names field and id.

    Notes
    -----
    Memory: three blocks of 16 MiB, ``2 d^2`` float64 a field, 17 bytes for each id that has a count. Cost: reading, and ``d^2 / 2``
    multiply-adds a row beside it.
    """
    counts = {str(name): value for name, value in counts.items()}
    state, rosters, start = Moments(weighting, {}, model), {}, None
    keep = checkpoint if checkpoint is not None and resumable(tables) else None
    if keep is not None and keep.exists():
        state, rosters, start = _resumed(keep, state, counts)
    saved = time.monotonic()
    for batch in batches(tables, start=start):
        roster = rosters.get(batch.field) or _roster(batch.field, counts, weighting, zero)
        rosters[batch.field] = roster
        state = state.update(batch.field, batch.vectors, roster.weigh(batch))
        if keep is not None and batch.last and time.monotonic() - saved >= every:
            save(Pass(state, batch.offset, rosters), keep)
            saved = time.monotonic()
    return state, _finished(state, rosters, counts, ignore_unknown, zero)


def _resumed(
    keep: Path, empty: Moments, counts: Mapping[str, Lookup | Array]
) -> tuple[Moments, dict[str, Roster], Any]:
    found = load(keep)
    if (found.moments.weighting, found.moments.model) != (empty.weighting, empty.model):
        msg = (
            f"{str(keep)!r} is of a pass with other options ({found.moments.weighting}, "
            f"model {found.moments.model!r}); remove it to begin anew"
        )
        raise ValueError(msg)
    rosters = {}
    for name, old in found.rosters.items():
        one = _roster(name, counts, empty.weighting, False)
        seen = old.seen[: len(one.seen)]
        if len(seen) < len(one.seen):
            msg = f"{str(keep)!r} is of a pass with other counts for field {name!r}; remove it to begin anew"
            raise ValueError(msg)
        fresh = [x.view(keys_dtype(one.counts)) for x in old.fresh]
        rosters[name] = Roster(name, one.counts, old.rows, seen, fresh)
    return found.moments, rosters, found.offset


def keys_dtype(counts: Lookup | Array, /) -> Any:
    """Return the dtype of the keys of a field."""
    return getattr(counts.keys, "dtype", np.int64) if isinstance(counts, Lookup) else np.int64


def _roster(name: str, counts: Mapping[str, Lookup | Array], weighting: Weighting, zero: bool) -> Roster:
    if name in counts:
        return Roster(name, counts[name])
    if weighting.smoothing > 0 or zero:
        return Roster(name, Lookup(np.zeros(0, np.int64), np.zeros(0)))
    msg = (
        f"there are no counts for field {name!r} (there are for {', '.join(counts) or 'none'}); "
        "give them, or smoothing=1 to weight its ids alike"
    )
    raise ValueError(msg)


def _finished(
    state: Moments,
    rosters: Mapping[str, Roster],
    counts: Mapping[str, Lookup | Array],
    ignore_unknown: bool,
    zero: bool,
) -> dict[str, dict[str, float]]:
    if not rosters:
        msg = "the tables have no rows; expected at least one vector"
        raise ValueError(msg)
    idle = [name for name in counts if name not in rosters]
    if idle and not ignore_unknown:
        msg = (
            f"there are counts for {', '.join(idle)} and no such table (there are "
            f"{', '.join(rosters)}); ignore_unknown=True leaves them out"
        )
        raise ValueError(msg)
    unknown = {name: one.finish(ignore_unknown=ignore_unknown) for name, one in rosters.items()}
    for name in rosters:
        if state.basis(name).rows == 0 and not zero:
            msg = (
                f"field {name!r}: all counts are zero, so nothing says which ids matter; "
                "give counts, or smoothing=1 to weight all ids alike"
            )
            raise ValueError(msg)
    return unknown
