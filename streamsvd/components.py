"""What ``n_components`` of an estimator means: a number, a share of the energy, or None for all components that there are."""

from __future__ import annotations

import warnings
from functools import cached_property
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.arrays import to_numpy
from streamsvd.gaussian import deviations
from streamsvd.planner import EXACT_BYTES, sketch

if TYPE_CHECKING:
    from streamsvd.factors import Factors
    from streamsvd.gram import Gram
    from streamsvd.truncated import Truncated

# Components among which a share of the energy is sought where all of them would be too many to keep.
SHARE_RANK = 256


def check_components(n: Any, columns: int, /) -> None:
    """Refuse what is no number of 1 .. columns, no share between 0 and 1, and not None.

    Raises
    ------
    TypeError, ValueError
        The message says what to write.
    """
    whole = isinstance(n, (int, np.integer)) and not isinstance(n, bool)
    number = whole or isinstance(n, (float, np.floating))
    if n is None or (whole and 1 <= n <= columns) or (number and 0 < n < 1):
        return
    msg = (
        f"n_components={n!r} with {columns} columns; expected a whole number of 1 .. {columns}, a share of the energy between "
        "0 and 1 such as 0.95, or None for every component"
    )
    raise (ValueError if number else TypeError)(msg)


def start(n: float | None, /, *, columns: int, rows: int | None, **options: Any) -> Gram | Truncated:
    """Return the empty state that keeps enough for ``n_components``.

    Parameters
    ----------
    n : int, float or None
    columns : int
    rows : int, optional
        Of the whole stream, where they are known in advance: there cannot be more components.
    options
        Of ``streamsvd.sketch``.

    Raises
    ------
    TypeError, ValueError
        For ``n_components`` or options out of range, and for all components of too many columns.
    """
    check_components(n, columns)
    if isinstance(n, Integral):
        return sketch(columns=columns, rank=int(n), **options)
    rank = min(columns, options["kept"] or columns, rows or columns)
    if rank > SHARE_RANK and options["kind"] != "gram" and 24 * columns * rank > EXACT_BYTES:
        if n is None:
            msg = (
                f"n_components=None keeps every component, and for {columns} columns these take too much memory; "
                "give a number, for example n_components=64"
            )
            raise ValueError(msg)
        rank = SHARE_RANK
    return sketch(columns=columns, rank=rank, exact=n is not None and rank == columns, **options)


class Reading:
    """The factors of a state, worked out when they are first asked for; the estimator that holds this does not change by that."""

    def __init__(self, state: Gram | Truncated, n: float | None) -> None:
        self.state, self.n = state, n

    @cached_property
    def factors(self) -> Factors:
        """The components that ``n_components`` asks for."""
        if isinstance(self.n, Integral):
            return self.state.factors(int(self.n))
        if self.n is None:
            f = self.state.factors()
            return f.truncate(rank=max(1, int(np.count_nonzero(to_numpy(deviations(f))))))
        f = self.state.factors(min(self.state.columns, getattr(self.state, "kept", self.state.columns)))
        if f.norm == 0:
            return f.truncate(rank=1)
        try:
            return f.truncate(energy=self.n)
        except ValueError as error:
            msg = f"n_components={self.n} is not reached: {error}. All {f.rank} are used; kept={2 * f.rank} would keep more"
        warnings.warn(msg, UserWarning, stacklevel=4)
        return f
