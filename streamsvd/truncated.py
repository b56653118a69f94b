"""Merge-and-truncate with an error ledger: the state ``Truncated``, its update, merge and factors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.arrays import Array, device_of, dtype_name, from_numpy, namespace, signs, to_numpy
from streamsvd.certificate import EPS64, Certificate, Ledger
from streamsvd.factors import Factors, complete_rows
from streamsvd.left import LeftLog
from streamsvd.moments import (
    LARGEST,
    LEAST,
    MAX_EXPONENT,
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
from streamsvd.stack import DenseRows
from streamsvd.testsketch import TEST_ROWS, merge_signs, signs_of
from streamsvd.truncation import Basis, Kept, presentable, truncate
from streamsvd.waiting import Block, Pending, ingest, pad_columns

if TYPE_CHECKING:
    from streamsvd.planner import Plan

FLUSH = 3


@dataclass(frozen=True, eq=False)
class Core:
    """The folded part of a state: ``s`` of the basis is in units of ``2^exponent``, the ledger's energies in units of ``4^exponent``."""

    basis: Basis
    test: Array
    moments: Moments = field(default_factory=Moments)
    ledger: Ledger = field(default_factory=Ledger)
    exponent: int = 0
    left: LeftLog | None = None

    @property
    def vt(self) -> Array:  # noqa: D102
        return self.basis.vt

    @property
    def s(self) -> np.ndarray:  # noqa: D102
        return self.basis.s


@dataclass(frozen=True, eq=False)
class Truncated:
    """The leading part of a stream's second moments, with an account of all that was left out.

    Invariant, with weights, decay and centring applied: ``A'A = V' diag(s^2) V + E`` with ``0 <= E``, ``tr E = discarded`` and
    ``||E||_2 <= min(top, discarded)``. ``discarded`` and ``top`` are added up in float64 as they arise, never as a difference; they decay,
    merge and truncate along with the state, and every ``Bound`` follows from them (see ``Certificate``).

    V (r, d) has orthonormal rows, ``r = kept`` at most. Rows wait in a buffer and are folded in blocks of 3r, so a state is a function
    of the rows and their order, not of the batches they came in. Memory: ``5 r d`` numbers, whatever the number of rows.

    References
    ----------
    Levy and Lindenbaum 2000 (sequential Karhunen-Loeve); Ross, Lim, Lin and Yang 2008 (the mean); Ghashami, Liberty, Phillips and
    Woodruff 2016 (``shrink=1`` is Frequent Directions; Desai, Ghashami and Phillips 2016 for values between 0 and 1).
    """

    options: Options
    core: Core | None = None
    pending: Pending = field(default_factory=Pending)
    like: Array | None = None
    plan: Plan | None = None

    kind = "truncated"

    @property
    def columns(self) -> int:  # noqa: D102
        return self.options.columns

    @property
    def rank(self) -> int:  # noqa: D102
        return self.options.rank

    @property
    def kept(self) -> int:  # noqa: D102
        return self.options.kept

    @property
    def center(self) -> bool:  # noqa: D102
        return self.options.center

    @property
    def rows(self) -> int:
        """Rows seen, those included that wait to be folded."""
        return (self.core.moments.rows if self.core is not None else 0) + self.pending.count

    def update(self, X: Any, /, *, weights: Any = None, timestamps: Any = None) -> Truncated:
        """Return the state with the rows of a batch added: ``A'A <- lambda^b A'A + X' diag(w) X``, centred where asked for.

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
        Cost: about ``4 r d`` multiply-adds a row for ``r = kept``, spent when 3r rows wait; a push of one row copies that row.
        The dtype and the array library of the state are those of the first batch, unless ``dtype`` was given.
        """

        def fold(core: Core | None, block: Block, like: Array) -> Core:
            return _fold(core if core is not None else _empty(self.options, like), block, self.options)

        new = ingest(self, X, weights, timestamps, FLUSH * self.kept, fold)
        return self if new is None else Truncated(self.options, *new, self.plan)

    def merge(self, other: Truncated, /) -> Truncated:
        """Return the state of both streams together. Neither is aged; timestamps age both to the later time.

        Both orders give the same bits unless the two states tie in rows and energy. ``E`` adds: see ``Certificate``.

        Raises
        ------
        TypeError, ValueError
            If the other is no ``Truncated`` state, or was made with other options; the message names the first that differs.

        Notes
        -----
        Cost: about ``4 d r^2`` multiply-adds, in float64 where float32 cannot resolve what is left out. The rows that wait in either
        state are folded first (into copies).
        """
        check_merge(self, other)
        if other.rows == 0:
            return self
        if self.rows == 0:
            return replace(other, plan=self.plan)
        a, b = self._folded(), other._folded()
        if _order(b) < _order(a):
            a, b = b, a
        return Truncated(self.options, _merge(a, b, self.options), Pending(), self.like, self.plan)

    def __add__(self, other: Truncated) -> Truncated:
        """Merge: ``sketch + other``."""
        return self.merge(other) if isinstance(other, Truncated) else NotImplemented

    def factors(self, rank: int | None = None, /) -> Factors:
        """Return the leading ``rank`` components (by default those asked for) with their certificate.

        Rows that wait are folded into a copy: reading changes nothing that later updates do. A stream of lower rank is completed by
        orthonormal rows with singular value 0, so the shapes depend on the options alone.

        Raises
        ------
        ValueError
            Before any row, or for a rank outside 1 .. kept.
        """
        k = self.rank if rank is None else rank
        if not 1 <= k <= min(self.kept, self.columns):
            msg = f"rank={k} is outside 1 .. {min(self.kept, self.columns)}, the rows kept; make the sketch with a larger rank or kept"
            raise ValueError(msg)
        if self.rows == 0:
            msg = "this state has seen no rows, so it has no factors yet; call sketch = sketch.update(X) first"
            raise ValueError(msg)
        return _read(self._folded(), self.options, k)

    def _folded(self) -> Core:
        """Fold a copy of the rows that wait."""
        core = self.core if self.core is not None else _empty(self.options, self.like)
        return _fold(core, self.pending.block(), self.options) if self.pending.count else core

    def parts(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Return the arrays and the JSON-ready rest, waiting rows as they are; ``from_parts`` restores the same bits."""
        from streamsvd.storage import truncated_parts

        return truncated_parts(self)

    def __reduce__(self) -> tuple[Any, ...]:
        # Through the parts: waiting rows alone, without their buffer, and nothing that must be written into.
        return type(self).from_parts, self.parts()

    @classmethod
    def from_parts(cls, arrays: dict[str, Array], meta: dict[str, Any], /) -> Truncated:
        """Restore a state from ``parts``."""
        from streamsvd.storage import truncated_from_parts

        return truncated_from_parts(arrays, meta)


def widen_truncated(state: Truncated, columns: int, /) -> Truncated:
    """Return the state with columns that were zero in all rows so far (see ``streamsvd.widen``)."""
    extra = columns - state.columns
    scale = None if state.options.scale is None else np.concatenate([state.options.scale, np.ones(extra)])
    options = replace(state.options, columns=columns, scale=scale)
    core = state.core
    if core is not None:
        moments = replace(
            core.moments, shift=pad_columns(core.moments.shift, extra), delta=pad_columns(core.moments.delta, extra)
        )
        core = replace(
            core,
            basis=replace(core.basis, vt=pad_columns(core.vt, extra)),
            test=pad_columns(core.test, extra),
            moments=moments,
        )
    return Truncated(options, core, state.pending.widened(extra), state.like, state.plan)


def _empty(options: Options, like: Array | None) -> Core:
    assert like is not None
    xp = namespace(like)
    where = {} if xp is np else {"device": device_of(like)}
    left = None
    if options.keep_left:
        left = LeftLog(options.keep_left if isinstance(options.keep_left, str) else None)
    vt = xp.zeros((0, options.columns), dtype=like.dtype, **where)
    return Core(
        Basis(vt, np.zeros(0), np.zeros((0, 0))),
        xp.zeros((TEST_ROWS, options.columns), dtype=like.dtype, **where),
        left=left,
    )


def _fold(core: Core, block: Block, options: Options) -> Core:
    """Fold a block: age the past, centre the rows, keep the heaviest directions of the stack, account for the rest."""
    step = advance(core.moments, block, options)
    exponent = core.exponent if core.ledger.total > 0 else exponent_for(largest_entry(block, step))
    kept, fade = _folded_at(core, block, step, options, exponent)
    size = max(kept.energy, float((core.s[:1] * fade) @ core.s[:1]) * fade)
    if size > 0 and not LEAST < size < LARGEST:
        exponent = max(exponent_for(largest_entry(block, step)), _exponent(core, step.past))
        kept, fade = _folded_at(core, block, step, options, exponent)
    ledger = core.ledger.scaled(fade * fade) + _entry(kept, kept.energy, core)
    left = None if core.left is None else core.left.push(kept.Q, core.s.size, step, options.center)
    return Core(kept.basis, kept.test, step.moments, ledger, exponent, left)


def _folded_at(core: Core, block: Block, step: Step, options: Options, exponent: int) -> tuple[Kept, float]:
    fade = _fade(core, math.sqrt(step.past), exponent)
    rows = rows_of(block, step, exponent, options)
    drawn = signs_of(options.seed, core.moments.rows, rows.count)
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # such a fold is done again at another exponent, or its batch refused
        return truncate(core.basis.faded(fade), rows, options, (core.test, fade, drawn)), fade


def _merge(a: Core, b: Core, options: Options) -> Core:
    """Join two folded states: the rows of one, ``diag(s) V``, enter the fold of the other, with the row that joins the means."""
    joint = join(a.moments, b.moments, options)
    exponent = max(_exponent(a, joint.fade_a), _exponent(b, joint.fade_b))
    if joint.row is not None:
        exponent = max(exponent, exponent_for(float(namespace(a.vt).max(namespace(a.vt).abs(joint.row)))))
    fades = _fade(a, math.sqrt(joint.fade_a), exponent), _fade(b, math.sqrt(joint.fade_b), exponent)
    turn = from_numpy(merge_signs(options.seed, a.moments.rows, b.moments.rows), like=a.vt, dtype=dtype_name(a.vt))
    sketch = a.test * fades[0] + b.test * turn[:, None] * fades[1]
    rows, factor, joined, gram = b.vt, b.s * fades[1], 0.0, b.basis.C
    if joint.row is not None:
        xp = namespace(a.vt)
        row = xp.astype(joint.row * math.ldexp(1.0, -exponent), a.vt.dtype)
        joined = float(xp.sum(xp.astype(row, xp.float64) ** 2))
        cross = to_numpy(rows @ row).astype(np.float64)[:, None]
        gram = np.block([[gram, cross], [cross.T, np.array([[joined]])]])
        rows, factor = xp.concat([rows, row[None, :]], axis=0), np.append(factor, 1.0)
        slot, sign = signs_of(options.seed, a.moments.rows + b.moments.rows, 1, stream=1)
        sketch[int(slot[0]), :] += row * float(sign[0])
    zeros = a.moments.delta * 0.0
    dense = DenseRows(rows, zeros, zeros, factor, False, gram)
    kept = truncate(a.basis.faded(fades[0]), dense, options, (sketch, 1.0, None))
    past = a.ledger.scaled(fades[0] ** 2) + b.ledger.scaled(fades[1] ** 2)
    return Core(kept.basis, kept.test, joint.moments, past + _entry(kept, joined, a), exponent)


def _entry(kept: Kept, energy: float, core: Core) -> Ledger:
    eps = float(np.finfo(dtype_name(core.vt)).eps)
    noise = 4.0 * EPS64 * (kept.mass + kept.uncentered) + kept.rounding
    return Ledger(energy, kept.discarded, kept.top, noise, eps * eps * kept.mass)


def _exponent(core: Core, past: float) -> int:
    return exponent_for(float(core.s[0]) * math.sqrt(past), core.exponent) if core.s.size else -MAX_EXPONENT


def _fade(core: Core, root: float, exponent: int) -> float:
    """Return the factor that ages amplitudes and brings them to the new exponent (1 where there is nothing to age)."""
    return math.ldexp(root, core.exponent - exponent) if core.ledger.total > 0 else 1.0


def _order(core: Core) -> tuple[float, ...]:
    return (float(core.moments.rows), core.moments.weight, core.exponent, core.ledger.total, float(core.s.sum()))


def _read(core: Core, options: Options, k: int) -> Factors:
    xp, moments = namespace(core.vt), core.moments
    basis, Z = presentable(core.basis)
    held = min(k, basis.s.size)
    turn = signs(basis.vt[:held, :])
    vt = complete_rows(basis.vt[:held, :] * turn[:, None], k)
    s = np.zeros(max(k, basis.s.size))
    s[: basis.s.size] = basis.s
    inner = xp.astype(core.test @ basis.vt[:held, :].T, xp.float64)
    rest = xp.astype(core.test, xp.float64) - inner @ xp.astype(basis.vt[:held, :], xp.float64)
    parts = np.zeros(k)
    parts[:held] = to_numpy(xp.sum(inner * inner, axis=0))
    ledger = core.ledger
    # What V lacks of orthonormal rows is left in A (I - V'V), and in singular values taken for those of diag(s) V.
    stray = basis.s[:, None] * (basis.C - np.eye(basis.s.size))
    certificate = Certificate(
        exponent=core.exponent,
        s=s,
        total=ledger.total,
        tail=ledger.discarded,
        trace=ledger.discarded,
        norm=min(ledger.top, ledger.discarded),
        noise=ledger.noise,
        rows_noise=ledger.rows_noise + float(np.vdot(stray, stray)),
        test_rest=float(xp.sum(rest * rest)),
        test_parts=parts,
    )
    u = None
    if core.left is not None:
        u = np.zeros((moments.rows, k))
        blocks = list(core.left.blocks(Z[:, :held] * to_numpy(turn)))[::-1]
        u[:, :held] = np.concatenate(blocks) if blocks else 0.0
        u = from_numpy(u, like=core.vt, dtype=dtype_name(core.vt))
    scale = None if options.scale is None else from_numpy(options.scale, like=moments.shift)
    mean = moments.mean if options.center else moments.delta * 0.0
    return Factors(
        s=from_numpy(np.ldexp(s[:k], core.exponent), like=core.vt, dtype=dtype_name(core.vt)),
        vt=vt,
        mean=mean if scale is None else mean * scale,
        rows=moments.rows,
        weight=moments.weight,
        weight_sq=moments.weight_sq,
        norm=math.ldexp(math.sqrt(ledger.total), core.exponent),
        certificate=certificate,
        center=options.center,
        scale=scale,
        u=u,
    )
