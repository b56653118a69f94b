"""Which rank each field gets: asked for, enough for a share of the variance, or the best use of a budget of bytes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamsvd.pipelines.ctr.budget import allocate, offer
from streamsvd.pipelines.ctr.model import CompressedField, Spectrum, expected_error, field_bytes, spectrum
from streamsvd.pipelines.ctr.moments import Moments

logger = logging.getLogger("streamsvd")


@dataclass(frozen=True)
class Target:
    """How small: exactly one of the three.

    Attributes
    ----------
    budget_bytes : int
        Ranks go across fields so that the weighted error is least within it.
    rank : int or dict of int by field
    energy : float in (0, 1]
        The least rank of each field that captures this share of its weighted variance.
    min_rank : int
        Least rank under a budget; 0 may reduce a field to its mean.
    keep_dense : bool
        Leave fields alone whose compressed form would be no smaller.
    """

    budget_bytes: int | None = None
    rank: int | Mapping[str, int] | None = None
    energy: float | None = None
    min_rank: int = 0
    keep_dense: bool = True

    def __post_init__(self) -> None:
        """Refuse none or several."""
        given = [f"{k}={v}" for k in ("budget_bytes", "rank", "energy") if (v := getattr(self, k)) is not None]
        if len(given) != 1:
            msg = (
                f"{', '.join(given) or 'no size'} arrived; expected exactly one "
                "of budget_bytes=, rank= and energy=, such as rank=8"
            )
            raise ValueError(msg)
        if self.energy is not None and not 0.0 < self.energy <= 1.0:
            msg = (
                f"energy={self.energy} arrived; expected a share of the weighted "
                "variance, 0 < energy <= 1, such as energy=0.99"
            )
            raise ValueError(msg)
        if self.min_rank < 0:
            msg = f"min_rank={self.min_rank} arrived; expected at least 0"
            raise ValueError(msg)


def choose(moments: Moments, target: Target, /) -> dict[str, CompressedField]:
    """Return the bases of all fields at the ranks that a target asks for; their rows are yet to be made."""
    spectra = {name: spectrum(moments.basis(name)) for name in moments.fields}
    ranks = _ranks(moments, spectra, target)
    return {name: _basis(moments, name, spectra[name], *ranks[name]) for name in moments.fields}


def _ranks(moments: Moments, spectra: Mapping[str, Spectrum], target: Target) -> dict[str, tuple[int | None, str]]:
    center = moments.weighting.center
    if target.budget_bytes is not None:
        offers = [
            offer(
                m.vocabulary,
                spectra[k].eigenvalues,
                spectra[k].weight,
                itemsize=m.itemsize,
                center=center,
                lowest=min(target.min_rank, m.columns),
            )
            for k, m in moments.fields.items()
        ]
        chosen = allocate(offers, int(target.budget_bytes))
        return {k: (r, _said(r, "of the budget")) for k, r in zip(moments.fields, chosen, strict=True)}
    found: dict[str, tuple[int | None, str]] = {}
    for name, m in moments.fields.items():
        if target.energy is not None:
            share = np.cumsum(spectra[name].eigenvalues) / max(spectra[name].eigenvalues.sum(), 1e-300)
            r, why = (
                max(1, min(m.columns, 1 + int(np.searchsorted(share, target.energy * (1 - 1e-12))))),
                f"captures {target.energy:g} of the variance",
            )
        else:
            r, why = _asked(name, m.columns, target.rank), "as asked"
        dense, small = (field_bytes(m.vocabulary, m.columns, x, m.itemsize, center) for x in (None, r))
        if target.keep_dense and small >= dense:
            found[name] = None, f"dense: rank {r} would take {small:,} bytes instead of {dense:,}"
        else:
            found[name] = r, why
            if r == m.columns:
                logger.warning("field %s: rank %d is the width of its vectors, so nothing becomes smaller", name, r)
    return found


def _said(r: int | None, why: str) -> str:
    return (
        f"dense: its last bytes are worth it {why}"
        if r is None
        else "mean alone: other fields need the bytes more"
        if r == 0
        else f"best use {why}"
    )


def _asked(name: str, columns: int, rank: Any) -> int:
    if isinstance(rank, Mapping):
        if name not in rank:
            msg = (
                f"rank= has no field {name!r} (it has {', '.join(map(str, rank))}); "
                "give the rank of each field, or one number for all"
            )
            raise ValueError(msg)
        rank = rank[name]
    if isinstance(rank, bool) or not isinstance(rank, int | np.integer) or not 1 <= rank <= columns:
        msg = (
            f"rank={rank} arrived for field {name!r}; expected a whole number "
            f"from 1 to {columns}, the width of its vectors"
        )
        raise ValueError(msg)
    return int(rank)


def _basis(moments: Moments, name: str, own: Spectrum, r: int | None, reason: str) -> CompressedField:
    m, center = moments.fields[name], moments.weighting.center
    d = m.columns
    vt, mean = (np.eye(d), np.zeros(d)) if r is None else (own.vt[:r], own.mean)
    dropped = 0.0 if r is None else own.dropped(r)
    served, served_weight = 0.0, 0.0
    if m.served.rows:
        raw = spectrum(m.served)
        served_weight = raw.weight
        lost = 0.0 if r is None else dropped if moments.weighting.plain else expected_error(m.served, vt, mean)
        served = lost / raw.energy if raw.energy > 0 else 0.0
    return CompressedField(
        name, r, reason, vt, mean, own.eigenvalues, dropped, own.energy, served, own.weight, served_weight, m.vocabulary,
        field_bytes(m.vocabulary, d, None, m.itemsize, center), field_bytes(m.vocabulary, d, r, m.itemsize, center),
    )  # fmt: skip
