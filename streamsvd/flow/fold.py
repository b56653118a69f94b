"""The one loop: batches of a source are folded into a state, which a checkpoint keeps together with the place in the source."""

from __future__ import annotations

import logging
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from streamsvd.flow.keeper import Keeper, interval
from streamsvd.flow.pieces import Piece, located, pieces
from streamsvd.flow.policies import Intake
from streamsvd.flow.prepare import begin, check_whole, find_past, open_quarantine, open_stream, spill_folder
from streamsvd.flow.progress import watch
from streamsvd.flow.request import Kind, Request
from streamsvd.flow.signals import Deferred, act

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Sequence
    from datetime import timedelta

    from streamsvd.flow.events import Event

logger = logging.getLogger("streamsvd")


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
    nonfinite: str = "error",
    quarantine: str | os.PathLike[str] | None = None,
    kept: int | None = None,
    shrink: float = 0.0,
    decay: float | None = None,
    half_life: float | str | timedelta | None = None,
    dtype: Any = None,
    seed: int = 0,
    scale: Any = None,
    exact: bool = False,
    by: str | None = None,
    keys: int = 1000,
    overflow: Literal["error", "spill"] = "error",
    checkpoint: str | os.PathLike[str] | None = None,
    every: int | str | timedelta = "30s",
    keep: int = 3,
    on_event: Callable[[Event], Any] | None = None,
    progress: bool | None = None,
) -> Any:
    """Fold a source of any size into factors with a certified error; with a checkpoint, go on where an earlier run was stopped.

    Parameters
    ----------
    source : path, glob, folder, table, LazyFrame, dataset, array (n, d), `Follow`, or an iterable of these
        Everything that `streamsvd.batches` reads.
    rank : int
        Components k to report.
    select : str or sequence of str, optional
        Columns to take (numbers, or lists of numbers such as embeddings); all columns otherwise, which must then be numbers.
    weights, timestamps : str, optional
        The column that holds the weight of each row, and the one that holds its time (for a ``half_life`` such as "30s").
    nulls, nonfinite : {"error", "drop", "mean"}
        What a null, and what NaN or infinity does: raise, naming the column; drop its row; or be replaced by its column's mean so far.
    quarantine : path, optional
        Where rows that are dropped are written with file, row and reason: a folder, or without checkpoint a ``.parquet`` file.
    scale : array (d,) or "unit", optional
        Divide columns by a vector, or by their standard deviation; a truncated state then reads the source twice.
    kind, center, kept, shrink, decay, half_life, dtype, seed, exact
        As in `streamsvd.sketch`.
    by : str, optional
        One state for each value of this column; the result is a dict of factors by value.
    keys : int
        Most states in memory at a time.
    overflow : {"error", "spill"}
        What one value more does: raise, or send the state that was not seen for longest to the disk.
    checkpoint : path, optional
        A file that keeps the state together with the place in the source. If it exists, the run goes on from there: every row counts
        once, and the result has the same bits as if nothing had happened. SIGINT and SIGTERM then wait for the end of a batch.
    every : int, str or timedelta
        So many rows, or so much time ("30s", "5m"), lie between two checkpoints; with rows, a run waits until the one before is on the
        disk. ``every``, ``keep``, ``on_event`` and ``progress`` may change from run to run, other options may not.
    keep : int
        So many checkpoints are kept: ``PATH`` is the newest, ``PATH.1`` the one before. A damaged one is passed over.
    on_event : function, optional
        Called with an `Event` at each checkpoint (without one too), which says how fast rows come and how far they have drifted.
    progress : bool, optional
        A progress bar on the error stream: yes, no, or (default) if that is a terminal.

    Returns
    -------
    factors : Factors, or dict of Factors with ``by``
        With ``names``, where the source has names; ``info`` says what was dropped, filled, or passed over.

    Raises
    ------
    TypeError, ValueError, OSError
        For a source without rows, data that is refused (the message names file and rows), options that are out of range, and a checkpoint
        of other options, of another source or without a whole copy (the message names the difference).
    BlockingIOError
        Another run is writing this checkpoint.

    Notes
    -----
    Memory: the state and a batch or two, whatever the length of the stream; a second state while a checkpoint is written.
    Iterators and queries cannot be entered in the middle: to go on, they are read again and the rows that were folded are passed over.

    Examples
    --------
    >>> import numpy as np
    >>> rows = np.random.default_rng(0).standard_normal((500, 8)) * np.arange(8, 0, -1)
    >>> factors = fit((rows[i : i + 100] for i in range(0, 500, 100)), rank=2)
    >>> factors.vt.shape, factors.rows
    ((2, 8), 500)
    """
    options = {name: value for name, value in locals().items() if name != "source"}
    outcome = run(source, **options)
    described = {"names": outcome.names, "info": outcome.info}
    if by is None:
        return replace(outcome.state.factors(), **described)
    return {key: replace(factors, **described) for key, factors in outcome.state.factors().items()}


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a run came to.

    Attributes
    ----------
    state : Gram, Truncated or Keyed
    names : tuple of str, the columns
    intake : Intake, rows seen, dropped and filled, those before the run was resumed included
    events : tuple of dict, the last 1000
    resumed_rows : int, rows that were in the checkpoint that the run went on from
    notes : tuple of str, what else there is to say, such as damaged checkpoints that were passed over
    """

    state: Any
    names: tuple[str, ...]
    intake: Intake
    events: tuple[dict[str, Any], ...] = ()
    resumed_rows: int = 0
    notes: tuple[str, ...] = ()
    scratch: Any = field(default=None, repr=False)  # keeps the states of keys on the disk as long as the state

    @property
    def info(self) -> dict[str, Any]:
        """What is worth telling, as plain values; empty where there is nothing."""
        intake = self.intake
        told = {"dropped": dict(intake.dropped), "filled": dict(intake.filled), "notes": list(self.notes)}
        return {name: value for name, value in told.items() if value}


def run(
    source: Any,
    /,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    every: int | str | timedelta = "30s",
    keep: int = 3,
    on_event: Callable[[Event], Any] | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Outcome:
    """Fold a source as `fit` does, under the same options, and return the state and all that is known of the run.

    Raises
    ------
    TypeError, ValueError, OSError
        As `fit`.
    KeyboardInterrupt, or what the handler of the signal raises
        A signal came, and the checkpoint was written.
    """
    asked = Request(**options)
    interval(every)
    with ExitStack() as stack:
        past = find_past(asked, checkpoint, keep, stack)
        quarantine = open_quarantine(asked, past, stack)
        spill = spill_folder(asked, past.store)
        keeper = Keeper(
            past.store,
            every=every,
            on_event=on_event,
            settings=asked.settings(),
            quarantine=quarantine,
            last=past.last,
            spill=spill and spill.path,
        )
        stack.callback(keeper.close)
        empty = partial(begin, asked, source, keeper, spill and spill.path, progress)
        stopped = stack.enter_context(Deferred(keeper.begun, source) if past.store else nullcontext())
        stream = stack.enter_context(closing(open_stream(asked, source, quarantine, past)))
        past = past._replace(last=None)  # its state need not be held any longer
        try:
            with watch(progress, source, "folding", done=past.rows) as advance:
                state = _loop(keeper.state, stream, empty, keeper, advance, stopped)
            arrived = stopped and stopped.arrived
            if not arrived:
                check_whole(state, keeper, source)
        except Exception:
            keeper.rescue()
            raise
        keeper.finish(finished=not arrived)
    if arrived:
        logger.warning("stopped after %d rows, which are in %s", state.rows, checkpoint)
        act(arrived)
    return Outcome(state, keeper.names, keeper.intake or Intake(), keeper.events, past.rows, past.notes, spill)


def fold(
    sketch: Any,
    source: Any,
    /,
    *,
    select: str | Sequence[str] | None = None,
    weights: str | None = None,
    timestamps: str | None = None,
    nulls: str = "error",
    nonfinite: str = "error",
    progress: bool | None = None,
) -> Any:
    """Return a state with all rows of a source added; the parameters are those of `fit`.

    Raises
    ------
    TypeError, ValueError, OSError
        As `fit`. The state that was passed stays what it was.
    """
    options = {"nulls": nulls, "nonfinite": nonfinite, "weights": weights, "timestamps": timestamps}
    stream: Any = pieces(source, select=select, **options)
    with closing(stream), watch(progress, source, "folding") as advance:
        return _loop(sketch, stream, None, Keeper(None), advance, None)


def _loop(
    state: Any, stream: Iterable[Piece], empty: Any, keeper: Keeper, advance: Callable[[int], None], signals: Any
) -> Any:
    for piece in stream:
        if piece.x is not None and piece.x.shape[0]:
            keeper.at = piece
            if state is None:
                state = empty(piece)
            keys = {} if piece.keys is None else {"keys": piece.keys}
            with located(piece):
                state = state.update(piece.x, **piece.beside, **keys)
            advance(piece.x.shape[0])
        keeper.after(state, piece)
        if signals is not None and signals.arrived is not None:
            break
    return state
