"""The one loop: batches of a source are folded into a state."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from streamsvd.arrays import is_sparse, to_numpy
from streamsvd.flow.batches import Piece, located, pieces
from streamsvd.flow.sources import total_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import timedelta

    from streamsvd.factors import Factors

Kind = Literal["auto", "gram", "truncated"]
REREAD = "pass something that can be read twice (a path, a table, a list of arrays), a vector scale=, or kind='gram'"


def fit(
    source: Any,
    /,
    *,
    rank: int,
    kind: Kind = "auto",
    select: str | Sequence[str] | None = None,
    center: bool = True,
    weights: str | None = None,
    timestamps: str | None = None,
    nulls: str = "error",
    kept: int | None = None,
    shrink: float = 0.0,
    decay: float | None = None,
    half_life: float | str | timedelta | None = None,
    dtype: Any = None,
    seed: int = 0,
    scale: Any = None,
    exact: bool = False,
    progress: bool | None = None,
) -> Factors:
    """Fold a source of any size into factors with a certified error.

    Parameters
    ----------
    source : path, glob, folder, table, LazyFrame, dataset, array (n, d), or an iterable of these
        Everything that `streamsvd.batches` reads.
    rank : int
        Components k to report.
    select : str or sequence of str, optional
        Columns to take (numbers, or lists of numbers such as embeddings); all columns otherwise, which must then be numbers.
    weights, timestamps : str, optional
        The column that holds the weight of each row, and the one that holds its time (for a ``half_life`` such as "30s").
    nulls : {"error", "drop"}
        What a null does: raise, naming column and count, or drop its row.
    scale : array (d,) or "unit", optional
        Divide columns by a vector, or by their standard deviation; a truncated state then reads the source twice.
    kind, center, kept, shrink, decay, half_life, dtype, seed, exact
        As in `streamsvd.sketch`.
    progress : bool, optional
        A progress bar on the error stream: yes, no, or (default) if that is a terminal.

    Returns
    -------
    factors : Factors
        With ``names``, where the source has names.

    Raises
    ------
    TypeError, ValueError, OSError
        For a source without rows, data that is refused (the message names file and rows), or options that are out of range.

    Notes
    -----
    Memory: the state and a batch or two, whatever the length of the stream.

    Examples
    --------
    >>> import numpy as np
    >>> rows = np.random.default_rng(0).standard_normal((500, 8)) * np.arange(8, 0, -1)
    >>> factors = fit((rows[i : i + 100] for i in range(0, 500, 100)), rank=2)
    >>> factors.vt.shape, factors.rows
    ((2, 8), 500)
    """
    from streamsvd.planner import sketch

    opened = partial(pieces, source, select=select, nulls=nulls, weights=weights, timestamps=timestamps)
    stream = opened()
    first = next(stream, None)
    if first is None:
        msg = f"the source ({_named(source)}) gave no rows, and factors need at least one; check the path, or what was filtered out"
        raise ValueError(msg)
    make = partial(
        sketch,
        columns=first.x.shape[1],
        rank=rank,
        center=center,
        kept=kept,
        shrink=shrink,
        decay=decay,
        half_life=half_life,
        dtype=dtype,
        seed=seed,
        exact=exact,
    )
    measured = None
    if isinstance(scale, str) and scale == "unit":
        state, measured = _unit_state(make, kind, opened, source, progress)
    else:
        state = make(kind=kind, scale=scale)
    state = _folded(state, chain([first], stream), _watch(progress, source, "folding"))
    if measured not in (None, state.rows):
        msg = f"the source gave {measured} rows when its columns were measured and {state.rows} when they were folded; {REREAD}"
        raise ValueError(msg)
    return replace(state.factors(), names=first.names)


def fold(
    sketch: Any,
    source: Any,
    /,
    *,
    select: str | Sequence[str] | None = None,
    weights: str | None = None,
    timestamps: str | None = None,
    nulls: str = "error",
    progress: bool | None = None,
) -> Any:
    """Return a state with all rows of a source added; the parameters are those of `fit`.

    Raises
    ------
    TypeError, ValueError, OSError
        As `fit`. The state that was passed stays what it was.
    """
    stream = pieces(source, select=select, nulls=nulls, weights=weights, timestamps=timestamps)
    return _folded(sketch, stream, _watch(progress, source, "folding"))


def _folded(state: Any, stream: Iterable[Piece], watch: Any) -> Any:
    with watch as advance:
        for piece in stream:
            with located(piece.where):
                state = state.update(piece.x, **piece.beside)
            advance(piece.x.shape[0])
    return state


def _unit_state(
    make: Callable[..., Any], kind: str, opened: Callable[[], Iterable[Piece]], source: Any, progress: bool | None
) -> tuple[Any, int | None]:
    """Return an empty state with columns of unit variance, and how many rows were measured for that, if any."""
    if make(kind=kind).kind == "gram":
        return make(kind="gram", scale="unit"), None
    for part in source if isinstance(source, list | tuple) else [source]:
        if hasattr(part, "__next__"):
            msg = f"scale='unit' with a truncated state reads the source twice, and a {type(part).__name__} gives its rows once; {REREAD}"
            raise ValueError(msg)
    deviation, rows = _deviations(opened(), make(kind="truncated").options, _watch(progress, source, "measuring"))
    return make(kind="truncated", scale=deviation), rows


def _deviations(stream: Iterable[Piece], options: Any, watch: Any) -> tuple[np.ndarray, int]:
    """Return the standard deviation of each column (root mean square without centring; 1 where it is 0) and the rows that it is of.

    Weights and decay count as in the state; moments of batches are joined in float64 (Chan, Golub and LeVeque 1983).
    """
    if options.half_life is not None:
        msg = "scale='unit' with a half_life in time wants kind='gram', which measures as it goes; or pass a vector scale="
        raise ValueError(msg)
    from streamsvd.batch import as_batch

    rows, total = 0, 0.0
    mean, square = np.zeros(options.columns), np.zeros(options.columns)
    with watch as advance:
        for piece in stream:
            with located(piece.where):
                x = as_batch(piece.x, columns=options.columns)
            w = np.asarray(piece.beside.get("weights", np.ones(x.shape[0])))
            x, w = (x, w) if w.all() else (x[np.flatnonzero(w)], w[w != 0])
            w = w * options.decay ** np.arange(w.size - 1, -1, -1.0)
            past = options.decay**w.size
            here, spread = _moments(x, w, options.center)
            total, before = total * past + w.sum(), total * past
            share = w.sum() / total if total > 0 else 0.0
            square = square * past + spread + before * share * (here - mean) ** 2
            mean = mean + share * (here - mean)
            rows += w.size
            advance(x.shape[0])
    deviation = np.sqrt(square / (total - 1.0 if options.center and total > 1.0 else max(total, 1e-300)))
    return np.where(deviation > 0, deviation, 1.0), rows


def _moments(x: Any, w: np.ndarray, center: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the weighted mean of each column (0 without centring) and the weighted sum of squares about it."""
    if is_sparse(x):
        mean = (x.T.astype(np.float64) @ w) / max(w.sum(), 1e-300) * center
        return mean, np.maximum((x.multiply(x).T.astype(np.float64) @ w) - w.sum() * mean**2, 0.0)
    x = to_numpy(x).astype(np.float64)
    mean = (w @ x) / max(w.sum(), 1e-300) * center
    return mean, w @ (x - mean) ** 2


def _named(source: Any) -> str:
    return (
        repr(str(source))
        if isinstance(source, str) or hasattr(source, "__fspath__")
        else f"of type {type(source).__name__}"
    )


@contextmanager
def _watch(progress: bool | None, source: Any, what: str) -> Iterator[Callable[[int], None]]:
    """Show a progress bar where it is wanted; what is yielded takes the number of rows done since the last call."""
    if not (sys.stderr.isatty() if progress is None else progress):
        yield lambda rows: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    shown = "{task.description} {task.completed:,.0f} rows", "{task.fields[rate]}"
    columns = TextColumn(shown[0]), BarColumn(), TextColumn(shown[1]), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task, began, done = bar.add_task(what, total=total_rows(source), rate=""), time.monotonic(), 0

        def advance(rows: int) -> None:
            nonlocal done
            done += rows
            bar.update(task, completed=done, rate=f"{done / max(time.monotonic() - began, 1e-9):,.0f} rows/s")

        yield advance
        bar.update(task, total=done)
