"""Robust streaming: the state ``Robust``, its update, its further passes and its factors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from streamsvd.arrays import Array, device_of, dtype_name, from_numpy, namespace, one_thread, to_numpy
from streamsvd.factors import Factors
from streamsvd.kernels import dpd
from streamsvd.recursion import Core, RobustOptions, begin, fit_rows, fold, principal, refreshed
from streamsvd.rowbatch import accepted

BLOCK = 16  # rows that are folded together


@dataclass(frozen=True, eq=False)
class Robust:
    """A robust low-rank model of a stream, by recursive least squares with density power weights for every column.

    Invariant: with the weights that rows and entries had when they came, column i of the model solves
    ``(sum_t h_t W_ti c_t c_t') v_i = sum_t h_t W_ti x_ti c_t`` after each block of 16 rows, where ``h_t`` is the decayed weight of row t (0
    if it was far off as a whole), ``c_t`` its coefficients in the model of that time, and ``W_ti = exp(-alpha e_ti^2 / 2 sigma_i^2)``.
    ``-exp(-x)`` is concave, so a block is a majorise-minimise step of the divergence that ``robust_svd`` minimises: passes over
    one stream with ``decay=1``, each begun by ``again()``, end at its fixed point.

    The first ``start`` rows are held and fitted by ``robust_svd``. The same rows in the same order give the same bits however they
    were cut into batches. Memory: ``r (r + 3) / 2 + 4`` float64 and r numbers of the data's dtype a column, whatever the length.

    References
    ----------
    Roy, Basu and Ghosh 2023, arXiv 2109.10680 (the estimator); Chi, Eldar and Calderbank 2013 (PETRELS: recursive least squares for every
    column); Li 2004 (weights of an M-estimator in a stream); Mairal 2013 (online majorise-minimise).
    """

    options: RobustOptions
    core: Core | None = None
    rows_waiting: Array | None = None
    weights_waiting: np.ndarray | None = None
    like: Array | None = None
    plan: Any = None

    kind = "robust"

    @classmethod
    def empty(cls, **options: Any) -> Robust:
        """Return a state without rows.

        Parameters
        ----------
        columns, rank : int
        alpha : float, default 0.3
            0 is least squares, 1 the most robust (see ``robust_svd``).
        decay : float, default 1.0
            The factor by which each row ages the earlier ones.
        scale : "track" or float, default "track"
            sigma: tracked for every column by its estimating equation, or one number for all.
        reject : float, default 0.6
            A row whose mean weight is below this share of that of recent rows is left out as a whole; 0 for none.
        start : int, default 64
            Rows that are held for the first fit, rounded up to a multiple of 16.

        Raises
        ------
        ValueError
            If an option is out of range.
        """
        return cls(RobustOptions(**options))

    @property
    def columns(self) -> int:  # noqa: D102
        return self.options.columns

    @property
    def rank(self) -> int:  # noqa: D102
        return self.options.rank

    @property
    def center(self) -> bool:
        """A robust state is never centred: a mean is not robust, and a background is its first component."""
        return False

    @property
    def rows(self) -> int:
        """Rows seen in this pass, those included that wait to be folded."""
        return (self.core.rows if self.core is not None else 0) + self._waiting

    @property
    def rejected(self) -> int:
        """Rows of this pass that were left out as a whole."""
        return self.core.rejected if self.core is not None else 0

    @property
    def _waiting(self) -> int:
        return 0 if self.rows_waiting is None else int(self.rows_waiting.shape[0])

    def update(self, X: Any, /, *, weights: Any = None, timestamps: Any = None) -> Robust:
        """Return the state with the rows of a batch added.

        Parameters
        ----------
        X : array (b, d), rows are samples
            NumPy, torch, CuPy, Arrow, ...; NaN marks what is missing. An empty batch changes nothing.
        weights : array (b,), optional
            Not negative. A row of weight 0 is left out: it neither counts nor ages the rest.
        timestamps
            Refused: this state ages by rows.

        Raises
        ------
        TypeError, ValueError
            For a batch that is refused; the state stays valid.

        Notes
        -----
        Cost: for each entry about 5 exponentials and ``4 r (r + 3)`` flops, in matrix products; a row that waits is copied at most 16 times
        (up to ``start`` times before the first fit).
        """
        found = accepted(X, self.options, self.like, weights, timestamps)
        if found is None:
            return self
        batch, w, like = found
        if self.rows_waiting is not None and self.weights_waiting is not None:
            batch = namespace(batch).concat([self.rows_waiting, batch], axis=0)
            w = np.concatenate([self.weights_waiting, w])
        with one_thread():
            core, at, total = self.core, 0, batch.shape[0]
            if core is None and total >= self.options.held:
                core = begin(batch[: self.options.held, :], self.options)
            while core is not None and total - at >= BLOCK:
                core = fold(core, batch[at : at + BLOCK, :], w[at : at + BLOCK], self.options)
                at += BLOCK
        rest = batch[at:, :] * 1  # a copy, since the caller may reuse the array
        return replace(self, core=core, rows_waiting=rest, weights_waiting=w[at:].copy(), like=like)

    def again(self) -> Robust:
        """Return the state for one more pass over the same stream, in which the model stands until the pass ends.

        Raises
        ------
        ValueError
            With decay, for then a pass has no fixed point, or before any row.
        """
        if self.options.decay != 1.0:
            msg = f"decay={self.options.decay} forgets the beginning of a pass, so further passes have no fixed point; use decay=1.0"
            raise ValueError(msg)
        with one_thread():
            core = self._folded().cleared()
        return replace(self, core=core, rows_waiting=None, weights_waiting=None)

    def merge(self, other: Any, /) -> Robust:
        """Refuse, with the reason.

        Raises
        ------
        TypeError
            Always: the weights of a state depend on the model that it had when each row came, so two states hold different problems.
        """
        msg = (
            "robust states cannot be merged: the weights of each depend on the model it had when a row came; pass one stream to one state, "
            "or merge streamsvd.sketch states of rows that were cleaned with streamsvd.robust_svd"
        )
        raise TypeError(msg)

    def __add__(self, other: Any) -> Robust:
        """Refuse as ``merge`` does."""
        return self.merge(other)

    def factors(self, rank: int | None = None, /) -> Factors:
        """Return the leading ``rank`` components; ``bound`` is None, for nothing certifies a robust fit.

        ``norm`` is that of the fit and of the weighted residuals. Reading changes nothing that later updates do.

        Raises
        ------
        ValueError
            Before any row, or for a rank outside 1 .. the rank of the state.
        """
        k = self.rank if rank is None else rank
        if not 1 <= k <= self.rank:
            msg = f"rank={k} is outside 1 .. {self.rank}, the components that this state holds"
            raise ValueError(msg)
        with one_thread():
            core = self._folded()
            vt, s, size = principal(core)
        assert self.like is not None
        sigma = core.unit * float(np.sqrt(np.median(to_numpy(core.s2))))
        info = {"algorithm": "rSVDdpd", "alpha": self.options.alpha, "sigma": sigma, "rejected": core.rejected}
        dtype = dtype_name(self.like)
        return Factors(
            from_numpy(s[:k], like=self.like, dtype=dtype),
            vt[:k, :],
            namespace(vt).zeros((self.columns,), dtype=namespace(vt).float64, device=device_of(vt)),
            self.rows,
            core.weight,
            size,
            center=False,
            weight_sq=core.weight_sq,
            info=info,
        )

    def weights(self, X: Any, /) -> Array:
        """Return the weights (b, d) that rows would have in the model as it stands; their means are the weights of the rows.

        Raises
        ------
        TypeError, ValueError
            For rows that ``update`` would refuse, or before any row.
        """
        with one_thread():
            core = self._folded()
            found = accepted(X, self.options, self.like, None, None, keep=True)
            assert found is not None
            C = fit_rows(core, found[0], self.options)
            fit = namespace(core.vt).astype(from_numpy(C, like=core.vt), core.vt.dtype) @ core.vt
            return dpd.weigh(found[0] / core.unit, fit, core.rate(self.options.alpha))

    def parts(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Return the arrays and the JSON-ready rest; ``from_parts`` restores the same bits."""
        from streamsvd.robust_storage import robust_parts

        return robust_parts(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_parts, self.parts()

    @classmethod
    def from_parts(cls, arrays: dict[str, Array], meta: dict[str, Any], /) -> Robust:
        """Restore a state from ``parts``."""
        from streamsvd.robust_storage import robust_from_parts

        return cls(*robust_from_parts(arrays, meta))

    def _folded(self) -> Core:
        """Return the core with a copy of the waiting rows folded, and its model brought up to date."""
        if self.rows == 0:
            msg = "this state has seen no rows; call state = state.update(X) first"
            raise ValueError(msg)
        core = self.core
        if core is None:
            assert self.rows_waiting is not None
            core = begin(self.rows_waiting, self.options)
        for at in range(0, self._waiting, BLOCK):
            assert self.rows_waiting is not None
            assert self.weights_waiting is not None
            part = slice(at, min(at + BLOCK, self._waiting))
            core = fold(core, self.rows_waiting[part, :], self.weights_waiting[part], self.options)
        return refreshed(core, self.options) if core.held else core
