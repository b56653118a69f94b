"""The ``Sketch`` protocol, and ``sketch()``, which chooses between exact moments and merge-and-truncate by a written cost model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, cast

import numpy as np

from streamsvd.gram import Gram, widen_gram
from streamsvd.options import Options
from streamsvd.truncated import Truncated, widen_truncated

if TYPE_CHECKING:
    from datetime import timedelta
    from pathlib import Path

    from streamsvd.factors import Factors

EXACT_BYTES = 2 << 30
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


class Sketch(Protocol):
    """What every state of a stream offers; states are frozen, so each call returns a new one."""

    kind: str
    plan: Plan | None

    @property
    def columns(self) -> int: ...  # noqa: D102
    @property
    def rank(self) -> int: ...  # noqa: D102
    @property
    def rows(self) -> int: ...  # noqa: D102
    @property
    def center(self) -> bool: ...  # noqa: D102
    def update(self, X: Any, /, *, weights: Any = None, timestamps: Any = None) -> Self: ...  # noqa: D102
    def merge(self, other: Any, /) -> Self: ...  # noqa: D102
    def __add__(self, other: Any) -> Self: ...
    def factors(self, rank: int | None = None, /) -> Factors: ...  # noqa: D102
    def parts(self) -> tuple[dict[str, Any], dict[str, Any]]: ...  # noqa: D102


@dataclass(frozen=True)
class Plan:
    """Which state was chosen and why. ``work`` counts float32-equivalent multiply-adds a row, ``memory`` bytes, both by kind."""

    kind: str
    reason: str
    work: dict[str, float]
    memory: dict[str, int]


def sketch(
    *,
    columns: int,
    rank: int,
    kind: Literal["auto", "gram", "truncated"] = "auto",
    center: bool = True,
    kept: int | None = None,
    shrink: float = 0.0,
    decay: float | None = None,
    half_life: float | str | timedelta | None = None,
    dtype: Any = None,
    seed: int = 0,
    keep_left: bool | str | Path = False,
    scale: Any = None,
    exact: bool = False,
) -> Truncated | Gram:
    """Return an empty state for a stream of rows.

    Parameters
    ----------
    columns : int
        Width d of the stream.
    rank : int
        Components k that ``factors()`` reports, 1 .. d.
    kind : {"auto", "gram", "truncated"}
        The state; "auto" chooses by cost (see Notes) and says why in ``sketch.plan``.
    center : bool
        Subtract the running mean (principal components) or not (singular value decomposition).
    kept : int, optional
        Rows r that a truncated state keeps; ``max(2 k, k + 10)`` by default, which costs twice as much as k and buys many digits.
    shrink : float
        0 truncates; 1 is Frequent Directions, whose spectral error is bounded in advance; values between shrink only the last rows.
    decay : float, optional
        Every row ages those before it by this factor, 0 < decay <= 1.
    half_life : float, str or timedelta, optional
        The same as a half-life: a number of rows, or a time such as "30s", which then wants ``timestamps`` in ``update``.
    dtype : "float32" or "float64", optional
        Of the state; that of the first batch by default.
    seed : int
        Of the test sketch.
    keep_left : bool or path
        Keep what rebuilds the left factor ``factors().u`` (truncated states): b r numbers for b rows, in memory, or in the folder given.
    scale : array (d,) or "unit", optional
        Divide columns by a vector, or (exact moments only) by their standard deviation at reading.
    exact : bool
        Ask for exact moments wherever they fit in 2 GiB.

    Returns
    -------
    Gram or Truncated

    Raises
    ------
    ValueError, TypeError
        For options out of range or in conflict.

    Notes
    -----
    Work for a row, in float32 multiply-adds (float64 counts twice): exact moments ``d^2``; merge-and-truncate
    ``4 r d + 110 r^2`` (its products, and the small algebra of a fold shared by its 3r rows). Exact moments are chosen where they need
    no more work, or are asked for and fit.
    """
    decay, seconds = _decay(decay, half_life)
    _check_rank(columns, rank)
    options = Options(
        columns=int(columns),
        rank=int(rank),
        kept=_kept(columns, rank, kept),
        center=bool(center),
        decay=decay,
        half_life=seconds,
        shrink=_share("shrink", shrink),
        dtype=named_dtype(dtype),
        seed=int(seed),
        unit=isinstance(scale, str) and scale == "unit",
        scale=_scale(scale, columns),
        keep_left=keep_left if isinstance(keep_left, bool) else str(keep_left),
    )
    plan = _plan(options, kind, exact, kept is not None)
    return (Gram if plan.kind == "gram" else Truncated)(options, plan=plan)


def widen(state: Any, columns: int, /) -> Any:
    """Return a state with more columns, for features that appear later; the rows so far count as 0 in the new ones.

    Parameters
    ----------
    state : Gram or Truncated
    columns : int, at least the state's own number

    Raises
    ------
    ValueError
        If there would be fewer columns.
    """
    if columns < state.columns:
        msg = f"cannot widen {state.columns} columns to {columns}; columns can only be added"
        raise ValueError(msg)
    if columns == state.columns:
        return state
    return widen_gram(state, columns) if isinstance(state, Gram) else widen_truncated(state, columns)


def _plan(options: Options, kind: str, exact: bool, kept_given: bool) -> Plan:
    d, r = options.columns, options.kept
    work = {"gram": float(d) * d, "truncated": 4.0 * r * d + 110.0 * r * r}
    memory = {"gram": 3 * 8 * d * d, "truncated": 8 * 4 * r * d}
    only = [
        name
        for name, given in (("shrink", options.shrink > 0), ("keep_left", options.keep_left), ("kept", kept_given))
        if given
    ]
    if kind not in ("auto", "gram", "truncated"):
        msg = f"kind={kind!r} is not known; expected 'auto', 'gram' (exact moments) or 'truncated' (merge and truncate)"
        raise ValueError(msg)
    if kind == "gram" and (options.shrink > 0 or options.keep_left):
        names = " and ".join(n for n in only if n != "kept")
        msg = f"{names} belongs to merge-and-truncate; write kind='truncated', or leave it out for exact moments"
        raise ValueError(msg)
    if options.unit and kind == "truncated":
        msg = "scale='unit' needs the standard deviations in advance here: pass a vector, scale=std, use streamsvd.fit, or kind='gram'"
        raise ValueError(msg)
    if kind != "auto":
        return Plan(kind, f"kind={kind!r} was asked for", work, memory)
    if options.unit:
        return Plan("gram", "scale='unit' is exact only from all second moments", work, memory)
    if only:
        return Plan("truncated", f"{only[0]} belongs to merge-and-truncate", work, memory)
    if exact:
        if memory["gram"] <= EXACT_BYTES:
            return Plan("gram", f"exact moments were asked for and fit in {memory['gram']:,} bytes", work, memory)
        return Plan("truncated", f"exact moments were asked for but need {memory['gram']:,} bytes", work, memory)
    costs = f"{work['gram']:,.0f} against {work['truncated']:,.0f} multiply-adds a row"
    if work["gram"] <= work["truncated"]:
        return Plan("gram", f"exact moments cost no more: {costs}", work, memory)
    return Plan("truncated", f"exact moments cost more: {costs}", work, memory)


def _check_rank(columns: int, rank: int) -> None:
    if columns < 1:
        msg = f"columns={columns}; a stream has at least one column"
        raise ValueError(msg)
    if not 1 <= rank <= columns:
        msg = f"rank={rank} is outside 1 .. {columns}, the number of columns"
        raise ValueError(msg)


def _kept(columns: int, rank: int, kept: int | None) -> int:
    if kept is None:
        return min(columns, max(2 * rank, rank + 10))
    if kept < rank:
        msg = f"kept={kept} is less than rank={rank}; keep at least the rows that are reported, by default max(2 * rank, rank + 10)"
        raise ValueError(msg)
    return min(columns, int(kept))


def _decay(decay: float | None, half_life: float | str | timedelta | None) -> tuple[float, float | None]:
    if half_life is None:
        if decay is None:
            return 1.0, None
        if not 0.0 < decay <= 1.0:
            msg = f"decay={decay} is outside 0 < decay <= 1; it is the factor by which each row ages those before it, for example 0.999"
            raise ValueError(msg)
        return float(decay), None
    if decay is not None:
        msg = f"got both decay={decay} and half_life={half_life}; give one of them"
        raise ValueError(msg)
    seconds = in_seconds(half_life)
    value = cast("float", half_life) if seconds is None else seconds
    if not value > 0 or math.isinf(value):
        msg = f"half_life={half_life!r} must be positive: a number of rows, or a time such as '30s'"
        raise ValueError(msg)
    return (0.5 ** (1.0 / value), None) if seconds is None else (1.0, seconds)


def in_seconds(value: Any, name: str = "half_life", /) -> float | None:
    """Return a time such as "30s" or a timedelta in seconds, and None for what is no time."""
    if hasattr(value, "total_seconds"):
        return float(value.total_seconds())
    if not isinstance(value, str):
        return None
    number = value.rstrip("abcdefghijklmnopqrstuvwxyz ")
    unit = value[len(number) :].strip()
    try:
        return float(number) * _UNITS[unit]
    except (KeyError, ValueError):
        msg = f"{name}={value!r} is not a time; expected a number and a unit ({', '.join(_UNITS)}), for example '30s'"
        raise ValueError(msg) from None


def _share(name: str, value: float) -> float:
    if not 0.0 <= value <= 1.0:
        msg = f"{name}={value} is outside 0 .. 1; 0 truncates, 1 is Frequent Directions"
        raise ValueError(msg)
    return float(value)


def named_dtype(dtype: Any, /) -> str | None:
    """Return the name of the dtype of a state; ValueError where a state cannot be of it."""
    if dtype is None:
        return None
    name = str(getattr(dtype, "name", getattr(dtype, "__name__", dtype))).rsplit(".", 1)[-1]
    if name not in ("float32", "float64"):
        msg = f"dtype={dtype!r}; a state is float32 or float64 (half precision and integers are widened in update)"
        raise ValueError(msg)
    return name


def _scale(scale: Any, columns: int) -> np.ndarray | None:
    if scale is None or (isinstance(scale, str) and scale == "unit"):
        return None
    vector = np.asarray(scale)
    if (
        vector.dtype.kind not in "fiu"
        or vector.shape != (columns,)
        or not (np.isfinite(vector).all() and (vector > 0).all())
    ):
        msg = f"scale={scale!r}; expected 'unit' or a vector of {columns} positive numbers, one for each column"
        raise ValueError(msg)
    return vector.astype(np.float64)
