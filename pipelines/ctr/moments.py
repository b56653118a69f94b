"""The state of a compression: exact weighted moments of each field's vectors, which shards add up and later counts extend."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from streamsvd.arrays import Array, blas_threads
from streamsvd.certificate import EPS64, Ledger
from streamsvd.gram import Gram, GramCore, empty_core, fold_block
from streamsvd.kernels.rows import fill_panel
from streamsvd.moments import LARGEST, LEAST, advance, exponent_for, largest_entry, rows_of
from streamsvd.options import Options
from streamsvd.planner import sketch
from streamsvd.stack import DenseRows
from streamsvd.waiting import Block

BLOCK = 4096  # rows folded together: 1 MB of float64 at 64 columns, which the cache holds


@dataclass(frozen=True)
class Weighting:
    """What a look-up count f is worth: ``w = (f + smoothing)^power``.

    Attributes
    ----------
    smoothing : float, at least 0
        Ids that were never looked up have weight 0 without it, and may be reconstructed arbitrarily badly.
    power : float in (0, 1]
        Less than 1 tempers the most frequent ids.
    center : bool
        Subtract the weighted mean, which is stored as a bias.
    """

    smoothing: float = 0.0
    power: float = 1.0
    center: bool = True

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not 0.0 <= self.smoothing < math.inf:
            msg = (
                f"smoothing={self.smoothing} arrived; expected a number of at least "
                "0 that is added to each count, such as smoothing=1"
            )
            raise ValueError(msg)
        if not 0.0 < self.power <= 1.0:
            msg = f"power={self.power} arrived; expected 0 < power <= 1 (1 weights by frequency), such as power=0.75"
            raise ValueError(msg)

    @property
    def plain(self) -> bool:
        """Whether the weight of an id is its count."""
        return self.smoothing == 0.0 and self.power == 1.0


@dataclass(frozen=True, eq=False)
class FieldMoments:
    """Moments of one field: ``served`` weighted by counts f; ``extra`` by what else the basis counts.

    With power 1 the basis is of ``served + extra``, extra weighted by the smoothing; with another power of ``extra`` alone.
    """

    served: Gram
    extra: Gram | None = None
    vocabulary: int = 0
    itemsize: int = 4

    @property
    def columns(self) -> int:
        """Width d of the vectors."""
        return self.served.columns


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of the fields of one model.

    Invariant: for each field, ``served`` holds ``W = sum f``, ``mu = sum f e / W`` and ``sum f (e - mu)(e - mu)'`` over the ids seen,
    in float64 with a fixed shift (see `streamsvd.gram.Gram`), so a mean far from zero costs no digits. Sums merge in any order.

    Attributes
    ----------
    fields : dict of FieldMoments by field
    weighting : Weighting
    model : str, which model the vectors are of; states of two models do not merge
    """

    weighting: Weighting = Weighting()
    fields: Mapping[str, FieldMoments] = field(default_factory=dict)
    model: str = ""

    def update(self, name: str, vectors: Array, counts: Array, /) -> Moments:
        """Return the moments with rows of one field added.

        Parameters
        ----------
        name : str
        vectors : array (b, d), float, finite
        counts : array (b,), float64, not negative

        Raises
        ------
        ValueError
            The width is not that of the field.

        Notes
        -----
        Cost: ``d^2 / 2`` float64 multiply-adds a row, twice that with smoothing or a power.
        """
        d = vectors.shape[1]
        old = self.fields.get(name) or FieldMoments(_gram(d, self.weighting.center), itemsize=vectors.dtype.itemsize)
        if old.columns != d:
            msg = (
                f"field {name!r} has vectors of {old.columns} and of {d} numbers; "
                "one field has one width: give them two names"
            )
            raise ValueError(msg)
        extra, w = old.extra, self.weighting
        if not w.plain:
            own = np.full(counts.shape, w.smoothing) if w.power == 1.0 else (counts + w.smoothing) ** w.power
            extra = _folded(extra or _gram(d, w.center), vectors, own)
        new = replace(
            old, served=_folded(old.served, vectors, counts), extra=extra, vocabulary=old.vocabulary + len(vectors)
        )
        return replace(self, fields={**self.fields, name: new})

    def merge(self, other: Moments, /) -> Moments:
        """Return the moments of both: of shards of one table, or of one table under counts of two periods (then see `recount`).

        Raises
        ------
        ValueError
            The two are of other models, weights or widths.
        """
        if self.model != other.model:
            msg = (
                f"statistics of model {self.model!r} and of model {other.model!r} "
                "do not add up; measure the tables of one model"
            )
            raise ValueError(msg)
        if self.weighting != other.weighting:
            msg = (
                f"moments under {self.weighting} and under {other.weighting} "
                "do not add up; measure both with the same options"
            )
            raise ValueError(msg)
        fields = dict(self.fields)
        for name, new in other.fields.items():
            fields[name] = _joined(name, fields[name], new) if name in fields else new
        return replace(self, fields=fields)

    def recount(self, added: Moments, /, *, fade: float = 1.0) -> Moments:
        """Return the moments after more look-ups of the same rows: ``f <- fade f + g``, ``added`` holding the rows weighted by g.

        Raises
        ------
        ValueError
            With a power other than 1, for then weights do not add up.
        """
        if self.weighting.power != 1.0:
            msg = (
                f"with power={self.weighting.power} the weights of two periods do not "
                "add up; compress again from all counts, or take power=1"
            )
            raise ValueError(msg)
        aged = {k: replace(m, served=_faded(m.served, fade)) for k, m in self.fields.items()}
        fresh = {k: replace(m, extra=None, vocabulary=0) for k, m in added.fields.items()}
        return replace(self, fields=aged).merge(replace(added, fields=fresh))

    def basis(self, name: str, /) -> Gram:
        """Return the moments of which the basis of a field is made."""
        found = self.fields[name]
        if found.extra is None:
            return found.served
        return found.extra if self.weighting.power != 1.0 else found.served.merge(found.extra)

    def parts(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Return the arrays and the JSON-ready rest; ``from_parts`` restores the same bits."""
        arrays: dict[str, Array] = {}
        kept = []
        for i, (name, found) in enumerate(self.fields.items()):
            grams: dict[str, Any] = {}
            for role, gram in (("served", found.served), ("extra", found.extra)):
                if gram is not None:
                    own, grams[role] = gram.parts()
                    arrays |= {f"{i}.{role}.{key}": value for key, value in own.items()}
            kept.append({"name": name, "vocabulary": found.vocabulary, "itemsize": found.itemsize, **grams})
        return arrays, {"weighting": asdict(self.weighting), "model": self.model, "fields": kept}

    @classmethod
    def from_parts(cls, arrays: dict[str, Array], meta: dict[str, Any], /) -> Moments:
        """Restore moments from ``parts``."""
        fields = {}
        for i, kept in enumerate(meta["fields"]):
            grams = {
                role: Gram.from_parts(
                    {k.removeprefix(f"{i}.{role}."): v for k, v in arrays.items() if k.startswith(f"{i}.{role}.")},
                    kept[role],
                )
                for role in ("served", "extra")
                if role in kept
            }
            fields[kept["name"]] = FieldMoments(
                grams["served"], grams.get("extra"), vocabulary=kept["vocabulary"], itemsize=kept["itemsize"]
            )
        return cls(Weighting(**meta["weighting"]), fields, meta["model"])


# So that streamsvd.save and streamsvd.load know the state once this module is imported.


def _gram(columns: int, center: bool) -> Gram:
    state = sketch(columns=columns, rank=columns, kind="gram", center=center, dtype=np.float64)
    return Gram(state.options, like=np.empty((0, columns)))


def _folded(state: Gram, vectors: Array, weights: Array) -> Gram:
    """Fold rows in larger blocks than ``Gram.update`` cuts, and without its copy: twice as fast at 64 columns."""
    options: Options = state.options
    if not weights.all():
        vectors, weights = vectors[weights > 0], weights[weights > 0]
    if not len(weights):
        return state
    rows, w = np.ascontiguousarray(vectors), np.ascontiguousarray(weights, dtype=np.float64)
    core = empty_core(options, state.like) if state.core is None else state.core
    block = Block(rows, w, np.zeros(len(w)))
    return replace(state, core=_fold_large(core, block, options) or fold_block(core, block, options, False))


def _fold_large(core: GramCore, block: Block, options: Options) -> GramCore | None:
    """Do what `streamsvd.gram` does with a block, the products by parts that the cache holds; None where it must be scaled anew."""
    step = advance(core.moments, block, options)
    exponent = core.exponent if core.ledger.total > 0 else exponent_for(largest_entry(block, step))
    entered = rows_of(block, step, exponent, options)
    assert isinstance(entered, DenseRows)
    added = np.zeros(core.scatter.shape)
    panel = np.empty((min(BLOCK, len(block.weights)), options.columns))
    with blas_threads(float(BLOCK) * options.columns**2):
        for at in range(0, len(block.weights), BLOCK):
            part = panel[: len(block.weights) - at]
            fill_panel(
                part, entered.rows[at : at + BLOCK], 0, entered.shift, entered.mean, entered.factor[at : at + BLOCK]
            )
            added += part.T @ part  # which NumPy sees is symmetric, and lets the reading thread run meanwhile
    energy = float(added.trace())
    if not LEAST < max(energy, core.ledger.total) < LARGEST:
        return None
    ledger = core.ledger + Ledger(total=energy, noise=4.0 * EPS64 * (energy + core.ledger.total))
    return GramCore(np.asfortranarray(core.scatter + added), step.moments, ledger, exponent)


def _joined(name: str, a: FieldMoments, b: FieldMoments) -> FieldMoments:
    if a.columns != b.columns:
        msg = (
            f"field {name!r} has vectors of {a.columns} numbers in one state and "
            f"of {b.columns} in the other; they are of two models"
        )
        raise ValueError(msg)
    extra = a.extra.merge(b.extra) if a.extra is not None and b.extra is not None else a.extra or b.extra
    return replace(a, served=a.served.merge(b.served), extra=extra, vocabulary=a.vocabulary + b.vocabulary)


def _faded(state: Gram, fade: float) -> Gram:
    """Multiply all weights by a number in [0, 1]."""
    if not 0.0 <= fade <= 1.0:
        msg = f"fade={fade} arrived; expected what share of the old counts still counts, 0 to 1"
        raise ValueError(msg)
    core = state.core
    if core is None or fade == 1.0:
        return state
    if fade == 0.0:
        return replace(state, core=None)
    moments = replace(core.moments, weight=core.moments.weight * fade, weight_sq=core.moments.weight_sq * fade**2)
    return replace(state, core=GramCore(core.scatter * fade, moments, core.ledger.scaled(fade), core.exponent))
