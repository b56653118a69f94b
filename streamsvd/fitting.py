"""What ``streamsvd fit`` does around the loop: which source, whether the options fit it, and what is told of the run."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

from streamsvd.terminal import UsageError, usage

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamsvd.flow.fold import Outcome
    from streamsvd.flow.follow import Follow
    from streamsvd.settings import Settings


def source_of(
    data: list[str] | None, follow: str | None, checkpoint: str | None, out: str | None
) -> list[str] | Follow:
    """Return what to read: the data, or a folder that is followed."""
    if bool(data) == (follow is not None):
        had = "both DATA and --follow arrived" if data else "neither DATA nor --follow arrived"
        msg = f"{had}; give files, folders or patterns to read once, or --follow FOLDER to fold files as they appear"
        raise UsageError(msg)
    if follow is None:
        if "" in (data or []):
            msg = "an empty name arrived as DATA (an unset variable?); give files, folders or patterns"
            raise UsageError(msg)
        return list(data or [])
    if checkpoint is None:
        msg = "--follow goes on until it is stopped, and all would be lost then; add --checkpoint run.svd"
        raise UsageError(msg)
    if out is not None:
        msg = f"--follow goes on until it is stopped, so --out {out} would never be written; leave it out, {checkpoint} is a model too"
        raise UsageError(msg)
    from streamsvd.flow.follow import Follow

    with usage():
        return Follow(follow)


def checked(source: Any, settings: Settings, select: list[str] | None) -> list[str] | None:
    """Return the columns to read, once the options are known to go together and with the width of the rows."""
    from streamsvd.flow.batches import pieces

    if isinstance(source, list):
        with closing(cast("Any", pieces(source, **settings.reading(select)))) as stream:
            first = next(stream, None)
        if first is None:
            msg = f"there are no rows in {', '.join(source)}; check the path"
            raise ValueError(msg)
        with usage():
            settings.check(first.x.shape[1])
    return select


def measured(outcome: Outcome, seconds: float, settings: Settings) -> dict[str, Any]:
    """Return what is told of a run besides the model."""
    intake, fresh = outcome.intake, outcome.state.rows - outcome.resumed_rows
    return {
        "seconds": seconds,
        "rows_per_second": fresh / seconds,
        "seen": intake.seen,
        "dropped": dict(intake.dropped),
        "filled": dict(intake.filled),
        "resumed_rows": outcome.resumed_rows,
        "checkpoint": settings.checkpoint,
        "notes": list(outcome.notes),
    }


def model_of(outcome: Outcome, *, state: bool) -> Any:
    """Return what a run writes: its factors, or the state where that is asked for or there is one for each key."""
    from streamsvd.report import origin

    if state or hasattr(outcome.state, "keys"):
        return outcome.state
    return replace(outcome.state.factors(), names=outcome.names, info=origin(outcome.state) | outcome.info)


def engine_of(engine: Literal["ray", "spark"] | None, address: str | None, follow: str | None) -> Callable[..., Any]:
    """Return what folds a source: the loop of this process, or a cluster's workers."""
    if engine is None:
        if address is not None:
            msg = f"--address {address} says where an engine is, and --engine is missing; add --engine ray or --engine spark"
            raise UsageError(msg)
        from streamsvd.flow.fold import run

        return run
    if follow is not None:
        msg = "--follow reads one folder as it grows, in one process; leave --engine out (actors: streamsvd.engines.ray_streams)"
        raise UsageError(msg)
    from streamsvd.engines.command import run_files

    return partial(run_files, engine=engine, address=address)
