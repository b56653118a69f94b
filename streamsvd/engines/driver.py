"""What every driver does around the work of its engine: the checkpoint before it, the outcome after it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from streamsvd.engines.contract import Part
from streamsvd.engines.job import Job
from streamsvd.flow.checkpoints import Checkpoint, Store
from streamsvd.flow.events import Event
from streamsvd.flow.fold import Outcome
from streamsvd.flow.policies import Intake
from streamsvd.flow.prepare import find_past
from streamsvd.flow.request import Request

SHOWN = 5


class PartitionError(ValueError):
    """Partitions that failed for good; everything else was folded and merged.

    Attributes
    ----------
    failed : dict of str by number of the partition, what was wrong with each
    state : Gram, Truncated, Keyed or None, all other partitions; it can be saved and merged
    """

    def __init__(self, failed: dict[int, str], state: Any, kept: str) -> None:
        self.failed, self.state = failed, state
        shown = "; ".join(f"partition {number}: {text}" for number, text in sorted(failed.items())[:SHOWN])
        more = f"; and {len(failed) - SHOWN} more" if len(failed) > SHOWN else ""
        rows = "no row of the others" if state is None else f"{state.rows:,} rows of the others"
        super().__init__(f"{shown}{more}. {rows[0].upper()}{rows[1:]} {'is' if state is None else 'are'} {kept}")


def drive(
    work: Callable[[Job], Any],
    /,
    *,
    checkpoint: Any = None,
    keep: int = 3,
    on_event: Callable[[Event], Any] | None = None,
    files: bool = False,
    **options: Any,
) -> Outcome:
    """Do the work of an engine between the checkpoint of an earlier run and the outcome of this one.

    Parameters
    ----------
    work : function of a `Job` that returns the bytes of all partitions merged
    checkpoint, keep, on_event
        As in `streamsvd.fit`. While partitions are folded, each is kept in the folder ``CHECKPOINT.parts``.
    files : bool, whether partitions are paths
    options
        Those of `Job.of`.

    Raises
    ------
    PartitionError
        Some partitions were refused. The checkpoint holds all others; the same call tries the missing ones again.
    """
    job = replace(Job.of(**options), files=files)
    with ExitStack() as stack:
        past = find_past(Request(**job.options), checkpoint, keep, stack)
        if past.last is not None and _finished(past.last, checkpoint):
            note = f"{checkpoint} holds this run complete, and nothing was read again; for other data give another checkpoint="
            last = past.last
            return Outcome(last.state, last.names, Intake.from_json(last.intake), last.events, past.rows, (note,))
        if past.store is not None:
            folder = past.store.path.with_name(f"{past.store.path.name}.parts").absolute()
            folder.mkdir(exist_ok=True)
            job = replace(job, folder=str(folder))
        began = time.monotonic()
        try:
            data = work(job)
        except Exception as error:
            if job.folder is not None:
                count = sum(1 for _ in Path(job.folder).glob("*.svd"))
                error.add_note(f"{count} partitions are kept in {job.folder}; the same call goes on from them")
            raise
        sequence = 1 if past.last is None else past.last.sequence + 1
        return _concluded(data, job, past.store, began, on_event, sequence)


def told(outcome: Outcome, /) -> Any:
    """Return what `streamsvd.fit` returns."""
    described = {"names": outcome.names, "info": outcome.info}
    factors = outcome.state.factors()
    if isinstance(factors, dict):
        return {key: replace(one, **described) for key, one in factors.items()}
    return replace(factors, **described)


def _finished(last: Checkpoint, path: Any) -> bool:
    if "partitions" not in (last.offset or {}):
        cure = "give another checkpoint= and merge the two"
        msg = f"the run in {str(path)!r} was made by streamsvd.fit, and an engine cannot go on with it; {cure}"
        raise ValueError(msg)
    return last.finished


def _concluded(
    data: Any,
    job: Job,
    store: Store | None,
    began: float,
    on_event: Callable[[Event], Any] | None,
    sequence: int,
) -> Outcome:
    part = None if data is None else Part.from_bytes(data, "the whole")
    if part is None or (part.state is None and not part.failed):
        lost = part.intake.dropped if part is not None else {}
        why = f" (all were dropped: {lost})" if lost else ""
        count = 0 if part is None else part.count
        msg = f"the {count} partitions gave no rows{why}, and factors need at least one; check the path, or what was filtered out"
        raise ValueError(msg)
    event = _event(part, time.monotonic() - began, store)
    events = () if event is None else (event.to_json(),)
    if store is not None and part.state is not None:
        done = not part.failed
        rest = part.place, part.intake.to_json(), part.settings, part.names
        store.write(Checkpoint(part.state, *rest, sequence=sequence, finished=done, events=events))
        if done and job.folder is not None:
            shutil.rmtree(job.folder)
    if event is not None and on_event is not None:
        on_event(event)
    if part.failed:
        failed = {int(number): text for number, text in part.failed.items()}
        kept = "in the attribute `state` of this error" if store is None else f"in {str(store.path)!r}"
        raise PartitionError(failed, part.state, kept)
    return Outcome(part.state, part.names, part.intake, events)


def _event(part: Part, seconds: float, store: Store | None) -> Event | None:
    if part.state is None:
        return None
    intake, rows, path = part.intake, part.state.rows, None if store is None else str(store.path)
    counts = {"seen": intake.seen, "dropped": dict(intake.dropped), "filled": dict(intake.filled)}
    return Event(rows, seconds, rows / max(seconds, 1e-9), path=path, **counts)
