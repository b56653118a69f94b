"""Compressed tables kept up to date: new look-ups and new ids enter the moments, and a new basis comes only when it is worth it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from streamsvd.pipelines.ctr import io
from streamsvd.pipelines.ctr.choosing import Target, choose
from streamsvd.pipelines.ctr.compress import Compressed, _published
from streamsvd.pipelines.ctr.counts import read_counts
from streamsvd.pipelines.ctr.model import CompressedField, spectrum
from streamsvd.pipelines.ctr.moments import Moments
from streamsvd.pipelines.ctr.passes import measure
from streamsvd.pipelines.ctr.tables import batches
from streamsvd.verify import angles


@dataclass(frozen=True)
class Move:
    """How far the best basis of a field has moved from the one in force.

    Attributes
    ----------
    angle : float, degrees: the largest principal angle between the two
    lost : float, share of the energy of the look-ups that the old basis drops and a new one would not
    """

    angle: float
    lost: float


@dataclass(frozen=True, eq=False)
class Refreshed:
    """What a refresh came to: ``result``, the move of each field, and whether new bases were made (then all rows were)."""

    result: Compressed
    moves: Mapping[str, Move]
    renewed: bool
    new_ids: Mapping[str, int]


def refresh(
    old: Compressed,
    tables: Any,
    counts: Any,
    /,
    *,
    new_rows: Any = None,
    fade: float = 1.0,
    max_angle: float = 20.0,
    max_lost: float = 0.01,
    ignore_unknown: bool = False,
    model: str | None = None,
) -> Refreshed:
    """Bring compressed tables up to date with look-ups that came since, and with new ids.

    Parameters
    ----------
    old : Compressed
        Written to a folder, or in memory.
    tables : as in `compress_tables`
        The dense tables, without the new rows.
    counts : as in `compress_tables`
        Look-ups since, of old and new ids.
    new_rows : tables of ids that are not in ``tables``, optional
        They are compressed with the basis in force unless that is renewed.
    fade : float in [0, 1]
        What share of the old look-ups still counts.
    max_angle, max_lost : float
        All bases are made anew, at the same ranks, when one field's has moved by more degrees or loses more energy; else they stay, and so
        do all rows. Equal eigenvalues at the cut may turn a basis without any loss: ``max_angle=90`` looks at energy alone.
    model : str, optional
        Which model the vectors are of; refused if it is another than before.

    Returns
    -------
    refreshed : Refreshed
        ``result.version`` grows by one with new bases. In a folder the rows of each version have their own place, and the manifest names
        the one in force in one step.

    Raises
    ------
    ValueError
        With a power other than 1; for new ids that are there already; and as `compress_tables`.
    """
    if model is not None and model != old.moments.model:
        msg = (
            f"these tables are of model {model!r} and the state is of model "
            f"{old.moments.model!r}; compress the new model's tables"
        )
        raise ValueError(msg)
    moments, arrived, unknown = _counted(old, tables, counts, new_rows, fade, ignore_unknown)
    moves = {name: moved(moments, one) for name, one in old.fields.items()}
    renewed = any(m.angle > max_angle or m.lost > max_lost for m in moves.values())
    whole = _both(tables, new_rows)
    target = Target(rank={k: one.rank or 1 for k, one in old.fields.items()}, keep_dense=False)
    fields = {k: _at(moments, target, one, renewed) for k, one in old.fields.items()}
    if renewed:
        result = _rewritten(old, whole, fields, moments, unknown)
    elif old.folder is None:
        rows = {k: one.rows for k, one in old.fields.items()}
        added = {k: _appended(rows[k], fields[k], arrived.get(k, [])) for k in fields}
        result = replace(old, fields=added, moments=moments, unknown=unknown)
    else:
        for name, parts in arrived.items():
            for ids, vectors in parts:
                io.append_rows(old.folder, fields[name], ids, vectors, version=old.version)
        result = _published(replace(old, fields=fields, moments=moments, unknown=unknown), old.folder.parent)
    return Refreshed(result, moves, renewed, {k: sum(len(v) for _, v in parts) for k, parts in arrived.items()})


def moved(moments: Moments, one: CompressedField, /) -> Move:
    """Return how far the best basis under new moments is from that of a field; fields that are dense or a mean alone do not move."""
    if not one.rank or one.rank == one.projection.shape[1]:
        return Move(0.0, 0.0)
    own = spectrum(moments.basis(one.name))
    C = (own.vt.T * own.eigenvalues) @ own.vt
    lost = float(own.eigenvalues[: one.rank].sum() - np.einsum("rd,de,re->", one.projection, C, one.projection))
    angle = math.degrees(float(np.max(angles(own.vt[: one.rank], one.projection))))
    return Move(angle, max(0.0, lost / own.energy) if own.energy > 0 else 0.0)


def _counted(
    old: Compressed, tables: Any, counts: Any, new_rows: Any, fade: float, ignore_unknown: bool
) -> tuple[Moments, dict[str, list[Any]], Any]:
    """Return the moments with the new look-ups, the new rows, and what was counted of ids without a row."""
    weighting = old.moments.weighting
    known = read_counts(counts, list(old.fields))
    empty = Moments(replace(weighting, smoothing=0.0), {}, old.moments.model)
    added, unknown = measure(
        _both(tables, new_rows),
        known,
        weighting=empty.weighting,
        model=empty.model,
        ignore_unknown=ignore_unknown,
        zero=True,
    )
    moments = old.moments.recount(replace(added, weighting=weighting), fade=fade)
    arrived: dict[str, list[Any]] = {}
    for batch in batches(new_rows) if new_rows is not None else ():
        arrived.setdefault(batch.field, []).append((batch.ids, np.array(batch.vectors)))
        if batch.field not in old.fields:
            msg = (
                f"new rows of field {batch.field!r} arrived, which was not compressed before; compress the tables again"
            )
            raise ValueError(msg)
        quiet = Moments(weighting, {}, old.moments.model).update(
            batch.field, batch.vectors, np.zeros(len(batch.vectors))
        )
        moments = moments.merge(quiet)  # its smoothing and its place in the vocabulary
    return moments, arrived, unknown


def _at(moments: Moments, target: Target, one: CompressedField, renewed: bool) -> CompressedField:
    """Return a field under new moments: with the best basis of its rank, or with figures for the one that stays."""
    from streamsvd.pipelines.ctr.model import expected_error, field_bytes

    assert isinstance(target.rank, Mapping)
    alone = replace(moments, fields={one.name: moments.fields[one.name]})
    new = choose(alone, target)[one.name]
    d, m = one.projection.shape[1], moments.fields[one.name]
    after = field_bytes(m.vocabulary, d, one.rank, m.itemsize, moments.weighting.center)
    place = {"source": one.source, "rows": one.rows, "reason": one.reason, "rank": one.rank, "bytes_after": after}
    if renewed and one.rank:
        return replace(new, **place)
    errors = [
        0.0 if one.rank is None else expected_error(g, one.projection, one.mean)
        for g in (moments.basis(one.name), m.served)
    ]
    energy = spectrum(m.served).energy
    return replace(
        new,
        **place,
        projection=one.projection,
        mean=one.mean,
        dropped=errors[0],
        served_error=errors[1] / energy if energy > 0 else 0.0,
    )


def _rewritten(
    old: Compressed, tables: Any, fields: Mapping[str, CompressedField], moments: Moments, unknown: Any
) -> Compressed:
    from streamsvd.pipelines.ctr.compress import _kept

    version = old.version + 1
    if old.folder is None:
        return Compressed(_kept(tables, fields), moments, unknown, version)
    place: Path = old.folder.parent / f"v{version}"
    io.write_rows(tables, fields, place, version=version)
    return _published(Compressed(io.located(fields, place), moments, unknown, version, place), place.parent)


def _appended(rows: Any, one: CompressedField, parts: list[Any]) -> CompressedField:
    if not parts:
        return replace(one, rows=rows)
    ids = [np.asarray(rows[0]), *(np.asarray(found) for found, _ in parts)]
    return replace(one, rows=(np.concatenate(ids), np.concatenate([rows[1], *(one.encode(v) for _, v in parts)])))


def _both(tables: Any, new_rows: Any) -> Any:
    """Return old and new tables as one source of batches."""
    return tables if new_rows is None else Chained((tables, new_rows))


@dataclass(frozen=True)
class Chained:
    """Several sources of tables, read one after the other."""

    sources: tuple[Any, ...]
