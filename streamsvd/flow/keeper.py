"""When a run takes a checkpoint, and what it does then: quarantine closed, drift measured, file handed to the writer, event told."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from streamsvd.flow.checkpoints import Checkpoint, Store, Writer
from streamsvd.flow.events import Drift, Event
from streamsvd.flow.policies import Intake
from streamsvd.planner import in_seconds

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta
    from pathlib import Path

    from streamsvd.flow.pieces import Piece

logger = logging.getLogger("streamsvd")
EVENTS = 1000


class Keeper:
    """Follows a run from batch to batch, and takes a checkpoint and tells an event when they are due.

    Parameters
    ----------
    store : Store or None, where checkpoints go
    every : int or str or timedelta, rows or time between two events
    on_event : function that takes an `Event`, called in the thread that folds
    settings : dict, stored with the state
    quarantine : object with ``close_part(rows_seen)``, or None
    last : Checkpoint or None, the one that the run goes on from
    spill : folder of the states of keys that are not in memory, or None
    """

    def __init__(
        self,
        store: Store | None,
        *,
        every: int | str | timedelta = "30s",
        on_event: Callable[[Event], Any] | None = None,
        settings: dict[str, Any] | None = None,
        quarantine: Any = None,
        last: Checkpoint | None = None,
        spill: Path | None = None,
    ) -> None:
        self._seconds, self._rows = interval(every)
        self._on_event, self._settings, self._quarantine, self._spill = on_event, settings or {}, quarantine, spill
        self._store = store
        self._writer = None if store is None else Writer(store.write, None if last is None else last.state.rows)
        self._active = store is not None or on_event is not None or spill is not None
        self._drift = Drift(always=on_event is not None)
        self.state: Any = None
        self.offset: dict[str, Any] | None = None
        self.intake: Intake | None = None
        self.at: Piece | None = None  # the batch that is being folded
        self._marked: bool | None = None  # whether the newest checkpoint says that the source had come to its end
        self.names: tuple[str, ...] = ()
        self.measured: int | None = None
        self.events: tuple[dict[str, Any], ...] = ()
        self._sequence, self._taken_rows, self._lasted = 0, 0, 0.0
        self._live: deque[frozenset[str]] = deque(maxlen=1 if store is None else store.keep + 1)
        if last is not None:
            self._go_on(last)
        self._began = self._taken_at = time.monotonic()

    def _go_on(self, last: Checkpoint) -> None:
        self.state, self.offset, self.names, self.measured = last.state, last.offset, last.names, last.measured
        self.events, self._sequence = last.events, last.sequence
        self.intake, self._marked = Intake.from_json(last.intake), last.finished
        self._taken_rows = self.intake.seen
        self._lasted = self.events[-1]["seconds"] if self.events else 0.0
        self._drift.measure(last.state)

    def begun(self) -> bool:
        """Tell whether any row was folded, by this run or the one that it goes on from."""
        return self.state is not None

    def after(self, state: Any, piece: Piece) -> None:
        """Take note of a state and the batch that led to it."""
        if piece.x is not None:  # not while waiting for more
            self.state, self.offset, self.intake, self.at = state, piece.offset, piece.intake, None
        if not self._active:
            return
        if self._writer is not None:
            self._writer.check()
        if self._due():
            self.take()

    def take(self, *, finished: bool = False) -> None:
        """Tell an event, where rows came since the last, and begin to write a checkpoint, where there is a store."""
        assert self.intake is not None
        if self._quarantine is not None and self._store is not None:
            self._quarantine.close_part(self.intake.seen)
        event = None
        if self.intake.seen > self._taken_rows:
            event = self._event(self.intake)
            self.events = (*self.events, event.to_json())[-EVENTS:]
        self._taken_rows, self._taken_at = self.intake.seen, time.monotonic()
        if self._writer is not None:
            self._sequence, self._marked = self._sequence + 1, finished
            self._writer.submit(self._checkpoint(finished))
        self._prune()
        if event is not None and self._on_event is not None:
            self._on_event(event)

    def finish(self, *, finished: bool) -> None:
        """Take the last checkpoint, where it says anything new, and wait until it is on the disk."""
        if self._writer is not None:
            self._writer.wait()
        if not self._active or self.intake is None or self.state is None:
            return
        if self.intake.seen > self._taken_rows or self._marked != finished:
            self.take(finished=finished)
        if self._writer is not None:
            self._writer.wait()

    def rescue(self) -> None:
        """After an error: keep what was folded before it, as far as it can be kept."""
        if self._writer is None or self.state is None or self.intake is None or self._writer.failed:
            return
        # The quarantine holds rows of the batch that was not folded, which come again when the run goes on.
        safe = self._quarantine is None or self.at is None
        try:
            self._writer.wait()
            if safe and self.intake.seen > self._taken_rows:
                self._on_event = None
                self.take()
                self._writer.wait()
            if self._writer.good is not None:
                logger.warning("%d rows before the error are kept in %s", self._writer.good, self._path)
        except OSError as error:
            logger.warning("%s", error)

    def close(self) -> None:
        """End the thread of the writer."""
        if self._writer is not None:
            self._writer.close()

    @property
    def _path(self) -> str | None:
        return None if self._store is None else str(self._store.path)

    def _due(self) -> bool:
        if self.state is None or self.intake is None or self.intake.seen <= self._taken_rows:
            return False
        if self.intake.seen - self._taken_rows >= self._rows:
            return True  # and waits for the writer: no more rows than that are ever lost
        if time.monotonic() - self._taken_at < self._seconds:
            return False
        return self._writer is None or not self._writer.busy

    def _event(self, intake: Intake) -> Event:
        now = time.monotonic()
        before = self.events[-1]["rows"] if self.events else 0
        return Event(
            rows=self.state.rows,
            seconds=self._lasted + now - self._began,
            rows_per_second=(self.state.rows - before) / max(now - self._taken_at, 1e-9),
            path=self._path,
            seen=intake.seen,
            dropped=dict(intake.dropped),
            filled=dict(intake.filled),
            **self._drift.measure(self.state),
        )

    def _checkpoint(self, finished: bool) -> Checkpoint:
        assert self.intake is not None
        return Checkpoint(
            state=self.state,
            offset=self.offset,
            intake=self.intake.to_json(),
            settings=self._settings,
            names=self.names,
            sequence=self._sequence,
            finished=finished,
            measured=self.measured,
            events=self.events,
        )

    def _prune(self) -> None:
        """Remove spilled states that no kept checkpoint names; those before this run are known once it has written as many."""
        if self._spill is None:
            return
        self._live.append(self.state.live_files())
        if len(self._live) == self._live.maxlen:
            from streamsvd.flow.spill import prune

            prune(self._spill, frozenset().union(*self._live))


def interval(every: Any, /) -> tuple[float, float]:
    """Return seconds and rows, one of them infinite."""
    if hasattr(every, "__index__") and not isinstance(every, bool) and int(every) >= 1:
        return math.inf, float(every)
    seconds = in_seconds(every, "every")
    if seconds is None or not seconds > 0:
        msg = (
            f"every={every!r} arrived; expected a number of rows, such as every=100_000, or a time, such as every='30s'"
        )
        raise ValueError(msg)
    return seconds, math.inf
