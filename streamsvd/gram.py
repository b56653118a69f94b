"""Exact second moments with the interface of a sketch: the state ``Gram``, its update, merge and factors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.arrays import (
    Array,
    blas_routine,
    blas_threads,
    device_of,
    dtype_name,
    from_numpy,
    namespace,
    signs,
    small_eigh,
    to_numpy,
)
from streamsvd.certificate import EPS64, Certificate, Ledger
from streamsvd.factors import Factors, complete_rows
from streamsvd.kernels.rows import fill_panel, row_energies
from streamsvd.moments import (
    LARGEST,
    LEAST,
    Moments,
    Step,
    advance,
    check_merge,
    exponent_for,
    join,
    largest_entry,
    rows_of,
)
from streamsvd.options import Options
from streamsvd.stack import SparseRows
from streamsvd.waiting import Block, Pending, ingest, pad_columns

if TYPE_CHECKING:
    from streamsvd.planner import Plan


@dataclass(frozen=True, eq=False)
class GramCore:
    """The folded part: ``scatter`` (d, d) float64, of which only the lower triangle is meant, in units of ``4^exponent``."""

    scatter: Array
    moments: Moments = field(default_factory=Moments)
    ledger: Ledger = field(default_factory=Ledger)
    exponent: int = 0


@dataclass(frozen=True, eq=False)
class Gram:
    """The exact second moments of a stream.

    Invariant, with weights, decay and centring applied: ``A'A = S + rounding``, S (d, d) in float64 whatever the dtype of the rows.
    Rows are centred at a fixed shift (the mean of the first block) and then so that no further term is needed (see ``moments.Step``), so a
    large offset costs nothing; ``X'X - n mu mu'`` would lose ``eps |mu|^2``. Nothing is truncated: ``bound.residual`` is the
    residual itself up to rounding.

    When: few columns (memory ``3 d^2`` float64 while it works), or every component is wanted. When not: singular values below about
    ``3e-8 sqrt(d)`` of the largest, which read as 0 (their squares are lost: take ``kind="truncated"``).

    References
    ----------
    Chan, Golub and LeVeque 1983 (updating and merging of sums of squares).
    """

    options: Options
    core: GramCore | None = None
    pending: Pending = field(default_factory=Pending)
    like: Array | None = None
    plan: Plan | None = None

    kind = "gram"

    @property
    def columns(self) -> int:  # noqa: D102
        return self.options.columns

    @property
    def rank(self) -> int:  # noqa: D102
        return self.options.rank

    @property
    def center(self) -> bool:  # noqa: D102
        return self.options.center

    @property
    def rows(self) -> int:
        """Rows seen, those included that wait to be folded."""
        return (self.core.moments.rows if self.core is not None else 0) + self.pending.count

    def update(self, X: Any, /, *, weights: Any = None, timestamps: Any = None) -> Gram:
        """Return the state with the rows of a batch added: ``S <- lambda^b S + X' diag(w) X``, centred where asked for.

        Parameters
        ----------
        X : array (b, d), rows are samples
            NumPy, torch, CuPy, SciPy sparse, Arrow, Polars or DLPack. An empty batch changes nothing.
        weights : array (b,), optional
            Not negative. A row of weight 0 is left out: it neither counts nor ages the rest.
        timestamps : array (b,), optional
            Seconds or datetime64, in order; wanted if ``half_life`` is a time.

        Raises
        ------
        TypeError, ValueError
            For a batch that is refused; the message says what arrived, what was expected and what to write. The state stays valid.

        Notes
        -----
        Cost: ``d^2 / 2`` float64 multiply-adds a row.
        """
        owned = False

        def fold(core: GramCore | None, block: Block, like: Array) -> GramCore:
            # The first fold of an update copies the scatter, which an older state holds; the others write into that copy.
            nonlocal owned
            core, first = core if core is not None else empty_core(self.options, like), not owned
            owned = True
            return fold_block(core, block, self.options, not first)

        new = ingest(self, X, weights, timestamps, block_rows(self.columns), fold)
        return self if new is None else Gram(self.options, *new, self.plan)

    def merge(self, other: Gram, /) -> Gram:
        """Return the state of both streams together. Neither is aged; timestamps age both to the later time.

        Raises
        ------
        TypeError, ValueError
            If the other is no ``Gram`` state, or was made with other options; the message names the first that differs.

        Notes
        -----
        Cost: ``2 d^2`` additions.
        """
        check_merge(self, other)
        if other.rows == 0:
            return self
        if self.rows == 0:
            return replace(other, plan=self.plan)
        a, b = self._folded(), other._folded()
        if _order(b) < _order(a):
            a, b = b, a
        return Gram(self.options, _merge(a, b, self.options), Pending(), self.like, self.plan)

    def __add__(self, other: Gram) -> Gram:
        """Merge: ``sketch + other``."""
        return self.merge(other) if isinstance(other, Gram) else NotImplemented

    def factors(self, rank: int | None = None, /) -> Factors:
        """Return the leading ``rank`` components (by default those asked for) with their certificate.

        Raises
        ------
        ValueError
            Before any row, or for a rank outside 1 .. columns.

        Notes
        -----
        Cost: ``(4/3) d^3`` flops. Reading changes nothing that later updates do.
        """
        k = self.rank if rank is None else rank
        if not 1 <= k <= self.columns:
            msg = f"rank={k} is outside 1 .. {self.columns}, the number of columns"
            raise ValueError(msg)
        if self.rows == 0:
            msg = "this state has seen no rows, so it has no factors yet; call sketch = sketch.update(X) first"
            raise ValueError(msg)
        assert self.like is not None
        return _read(self._folded(), self.options, k, self.like, self.pending.count > 0)

    def _folded(self) -> GramCore:
        """Fold a copy of the rows that wait."""
        core = self.core if self.core is not None else empty_core(self.options, self.like)
        return fold_block(core, self.pending.block(), self.options, False) if self.pending.count else core

    def parts(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Return the arrays (the triangle packed) and the JSON-ready rest; ``from_parts`` restores the same bits."""
        from streamsvd.storage import gram_parts

        return gram_parts(self)

    def __reduce__(self) -> tuple[Any, ...]:
        # Through the parts: waiting rows alone, without their buffer, and nothing that must be written into.
        return type(self).from_parts, self.parts()

    @classmethod
    def from_parts(cls, arrays: dict[str, Array], meta: dict[str, Any], /) -> Gram:
        """Restore a state from ``parts``."""
        from streamsvd.storage import gram_from_parts

        return gram_from_parts(arrays, meta)


def block_rows(columns: int, /) -> int:
    """Return how many rows wait before they are folded: few enough that buffer and work stay below ``d^2`` numbers."""
    return min(max(5 * columns // 16, min(512, 32768 // columns), 32), 768)


def widen_gram(state: Gram, columns: int, /) -> Gram:
    """Return the state with columns that were zero in all rows so far (see ``streamsvd.widen``)."""
    extra = columns - state.columns
    scale = None if state.options.scale is None else np.concatenate([state.options.scale, np.ones(extra)])
    core = state.core
    if core is not None:
        moments = replace(
            core.moments, shift=pad_columns(core.moments.shift, extra), delta=pad_columns(core.moments.delta, extra)
        )
        scatter = pad_columns(pad_columns(core.scatter, extra).T, extra).T
        core = replace(core, scatter=_owned(scatter), moments=moments)
    return Gram(
        replace(state.options, columns=columns, scale=scale), core, state.pending.widened(extra), state.like, state.plan
    )


def empty_core(options: Options, like: Array | None) -> GramCore:
    """Return the moments of no rows, on the device of ``like``."""
    assert like is not None
    xp = namespace(like)
    shape = (options.columns, options.columns)
    return GramCore(
        np.zeros(shape, order="F") if xp is np else xp.zeros(shape, dtype=xp.float64, device=device_of(like))
    )


def _owned(scatter: Array) -> Array:
    """Return a copy that may be written: column-major for NumPy, as BLAS wants it."""
    return scatter.copy(order="F") if isinstance(scatter, np.ndarray) else scatter * 1.0


def fold_block(core: GramCore, block: Block, options: Options, owned: bool) -> GramCore:
    """Fold a block: age the past, add the products of the centred rows; ``owned`` scatter is written in place."""
    step = advance(core.moments, block, options)
    past = core.ledger.total * step.past
    exponent = core.exponent if past > 0 else exponent_for(largest_entry(block, step))
    rows, energy = _entered(block, step, exponent, options)
    if not LEAST < max(energy, past) < LARGEST and max(energy, past) > 0:
        exponent = max(exponent_for(largest_entry(block, step)), exponent_for(math.sqrt(past), core.exponent))
        rows, energy = _entered(block, step, exponent, options)
    fade = math.ldexp(step.past, 2 * (core.exponent - exponent)) if core.ledger.total > 0 else 1.0
    scatter = core.scatter if owned else _owned(core.scatter)
    if fade != 1.0:
        scatter *= fade
    cancelled = 0.0
    if isinstance(rows, SparseRows):
        _add_sparse(scatter, rows)
        cancelled = rows.uncentered
    else:
        _add_dense(scatter, rows)
    old = core.ledger.scaled(fade)
    entry = Ledger(total=energy, noise=4.0 * EPS64 * (energy + cancelled + old.total))
    return GramCore(scatter, step.moments, old + entry, exponent)


def _entered(block: Block, step: Step, exponent: int, options: Options) -> tuple[Array | SparseRows, float]:
    """Return the rows as they enter, float64 and centred (or sparse), and their energy."""
    rows = rows_of(block, step, exponent, options)
    if isinstance(rows, SparseRows):
        with np.errstate(over="ignore", invalid="ignore"):  # then this is done again at another exponent
            return rows, rows.energy
    xp = namespace(rows.rows)
    R = (
        np.empty(rows.rows.shape)
        if xp is np
        else xp.empty(rows.rows.shape, dtype=xp.float64, device=device_of(rows.rows))
    )
    fill_panel(R, rows.rows, 0, rows.shift, rows.mean, from_numpy(rows.factor, like=rows.shift))
    return R, float(xp.sum(row_energies(R)))


def _add_dense(scatter: Array, R: Array) -> None:
    """Add ``R'R`` to the scatter, in place; BLAS's symmetric update touches the lower triangle alone."""
    with blas_threads(float(R.shape[0]) * R.shape[1] ** 2):
        if isinstance(R, np.ndarray):
            blas_routine("dsyrk")(1.0, R.T, beta=1.0, c=scatter, lower=1, overwrite_c=1)
        else:
            scatter += R.T @ R


def _add_sparse(scatter: np.ndarray, rows: SparseRows) -> None:
    """Add the centred sparse rows: ``X'X`` stays sparse, centring is of rank two."""
    X = rows.rows.astype(np.float64).multiply(rows.factor[:, None]).tocsr()
    scatter += (X.T @ X).toarray()
    half = X.T @ rows.factor - (0.5 * float(rows.factor @ rows.factor)) * rows.mean
    cross = np.outer(half, rows.mean)
    scatter -= cross + cross.T


def _merge(a: GramCore, b: GramCore, options: Options) -> GramCore:
    joint = join(a.moments, b.moments, options)
    exponent = max(a.exponent, b.exponent)
    with np.errstate(over="ignore"):
        # States without energy have the least exponent, far below that of the row that joins them.
        row = None if joint.row is None else joint.row * math.ldexp(1.0, -exponent)
        joined = 0.0 if row is None else float(namespace(row).sum(row * row))
    if joint.row is not None and not joined < LARGEST:
        exponent = exponent_for(float(namespace(joint.row).max(namespace(joint.row).abs(joint.row))))
        row = joint.row * math.ldexp(1.0, -exponent)
        joined = float(namespace(row).sum(row * row))
    to_a, to_b = (math.ldexp(f, 2 * (c.exponent - exponent)) for f, c in ((joint.fade_a, a), (joint.fade_b, b)))
    scatter = _owned(a.scatter * to_a + b.scatter * to_b)
    if row is not None:
        scatter += row[:, None] * row[None, :]
    past = a.ledger.scaled(to_a) + b.ledger.scaled(to_b)
    ledger = past + Ledger(total=joined, noise=4.0 * EPS64 * (past.total + joined))
    return GramCore(scatter, joint.moments, ledger, exponent)


def _order(core: GramCore) -> tuple[float, ...]:
    return (float(core.moments.rows), core.moments.weight, core.exponent, core.ledger.total)


def _read(core: GramCore, options: Options, k: int, like: Array, owned: bool) -> Factors:
    """Diagonalise; an ``owned`` scatter is overwritten."""
    S, moments, total = to_numpy(core.scatter), core.moments, core.ledger.total
    scale, noise = options.scale, core.ledger.noise
    if options.unit:
        deviation = np.sqrt(np.maximum(np.diag(S), 0.0))
        scale = np.where(deviation > 0, deviation, 1.0)
        S = S / scale[:, None] / scale[None, :]
        noise, total = noise / total * np.trace(S) if total > 0 else 0.0, float(np.trace(S))
    w, Q = small_eigh(S, top=min(k + 1, options.columns), overwrite=owned)
    w = np.maximum(w, 0.0)
    # What float64 cannot tell from zero is read as zero, and accounted for as left out.
    nothing = w <= 4.0 * options.columns * EPS64 * w[0]
    unresolved, w = w[nothing], np.where(nothing, 0.0, w)
    held = int(np.count_nonzero(w[:k]))
    xp, dtype = namespace(like), dtype_name(like)
    vt = from_numpy(np.ascontiguousarray(Q[:, :held].T), like=like, dtype=dtype)
    vt = complete_rows(vt * signs(vt)[:, None], k)
    s = np.sqrt(w) if w.size > k else np.concatenate([np.sqrt(w), np.zeros(k + 1 - w.size)])
    lost = float(unresolved.sum())
    tail = max(lost, total - float(w.sum())) if w.size < options.columns else lost
    eps = float(np.finfo(dtype).eps)
    certificate = Certificate(
        exponent=0 if options.unit else core.exponent,
        s=s,
        total=total,
        tail=tail,
        trace=lost,
        norm=float(unresolved.max(initial=0.0)),
        noise=noise + 64.0 * EPS64 * total,
        rows_noise=eps * eps * total,
        test_rest=tail + float(w[k:].sum()),
        test_parts=s[:k] ** 2,
    )
    amplitude = certificate.exponent
    mean = moments.mean if options.center else moments.delta * 0.0
    mean = mean if options.scale is None else mean * from_numpy(options.scale, like=mean)
    weight = moments.weight
    if options.unit:
        root = math.sqrt(weight - 1.0 if options.center and weight > 1.0 else weight)
        scale = np.ldexp(np.asarray(scale), core.exponent) / root
        certificate = replace(
            certificate,
            s=s * root,
            **{f: getattr(certificate, f) * root**2 for f in _ENERGIES},
            test_parts=s[:k] ** 2 * root**2,
        )
    return Factors(
        s=from_numpy(np.ldexp(certificate.s[:k], amplitude), like=like, dtype=dtype),
        vt=vt,
        mean=mean,
        rows=moments.rows,
        weight=weight,
        weight_sq=moments.weight_sq,
        norm=math.ldexp(math.sqrt(certificate.total), amplitude),
        certificate=certificate,
        center=options.center,
        scale=None
        if scale is None
        else from_numpy(np.asarray(scale), like=moments.shift if xp is not np else np.zeros(0)),
    )


_ENERGIES = ("total", "tail", "trace", "norm", "noise", "rows_noise", "test_rest")
