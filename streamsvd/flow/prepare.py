"""What comes before the first batch of a run and after its last: the checkpoint it goes on from, its stream, its empty state."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from streamsvd.flow.checkpoints import Checkpoint, Store
from streamsvd.flow.lock import locked
from streamsvd.flow.pieces import Piece, pieces
from streamsvd.flow.policies import Intake
from streamsvd.flow.progress import watch
from streamsvd.flow.request import Request, check_settings
from streamsvd.flow.unit import check_reread, check_same, deviations

if TYPE_CHECKING:
    from streamsvd.flow.keeper import Keeper


class Past(NamedTuple):
    """What an earlier run left."""

    store: Store | None = None
    last: Checkpoint | None = None
    rows: int = 0  # that are in it
    notes: tuple[str, ...] = ()


def find_past(asked: Request, checkpoint: Any, keep: int, stack: ExitStack) -> Past:
    """Take the lock of a checkpoint and return its newest whole copy, if there is one."""
    if checkpoint is None:
        return Past()
    store = Store(checkpoint, keep)
    stack.enter_context(locked(store.path))
    store.clean()
    last, notes = store.newest()
    if last is not None:
        check_settings(last.settings, asked.settings(), checkpoint)
    return Past(store, last, 0 if last is None else last.state.rows, tuple(notes))


def open_stream(asked: Request, source: Any, quarantine: Any, past: Past) -> Any:
    """Return the pieces of the source, those after the checkpoint where there is one."""
    options = asked.reading() | {"quarantine": quarantine}
    if past.last is None:
        return pieces(source, **options)
    try:
        return pieces(source, **options, start=past.last.offset, intake=Intake.from_json(past.last.intake))
    except ValueError as error:
        assert past.store is not None
        msg = f"the run in {str(past.store.path)!r} cannot go on: {error}"
        raise ValueError(msg) from error


def begin(asked: Request, source: Any, keeper: Keeper, spill: Path | None, progress: bool | None, first: Piece) -> Any:
    """Return the empty state for rows like those of the first batch."""
    keeper.names, width, scale = first.names, first.x.shape[1], asked.scale
    if asked.unit and asked.sketch(width).kind == "truncated":
        check_reread(source)
        options = asked.sketch(width).options
        again: Any = pieces(source, **asked.reading())
        with closing(again), watch(progress, source, "measuring") as advance:
            scale, keeper.measured = deviations(again, options, advance)
    return asked.keyed(asked.sketch(width, scale=scale), spill)


def check_whole(state: Any, keeper: Keeper, source: Any, /) -> None:
    """Refuse a source without rows, and one that gave other rows when it was read again."""
    if state is None:
        lost = keeper.intake.dropped if keeper.intake else {}
        why = f" (of {keeper.intake.seen} rows, all were dropped: {lost})" if keeper.intake and lost else ""
        msg = f"the source ({_named(source)}) gave no rows{why}, and factors need at least one; check the path, or what was filtered out"
        raise ValueError(msg)
    check_same(keeper.measured, state.rows)


def open_quarantine(asked: Request, past: Past, stack: ExitStack) -> Any:
    """Return where dropped rows are written, as it was when the checkpoint was taken; None where nobody asked for it."""
    if asked.quarantine is None:
        return None
    from streamsvd.flow.quarantine import Quarantine

    quarantine = Quarantine(asked.quarantine)
    stack.callback(quarantine.close)
    if past.store is not None:
        quarantine.resume(0 if past.last is None else int(past.last.intake["seen"]))
    return quarantine


class Scratch:
    """A folder for the states of keys; one without a checkpoint beside it goes when nobody needs it any more."""

    def __init__(self, path: Path | None) -> None:
        if path is None:
            path = Path(tempfile.mkdtemp(prefix="streamsvd-keys-"))
            weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)
        self.path = path


def spill_folder(asked: Request, store: Store | None, /) -> Scratch | None:
    """Return the folder for states of keys that do not fit in memory; None where they are not to be spilled."""
    if asked.by is None or asked.overflow != "spill":
        return None
    return Scratch(None if store is None else store.path.with_name(f"{store.path.name}.keys"))


def _named(source: Any) -> str:
    is_path = isinstance(source, str) or hasattr(source, "__fspath__")
    return repr(str(source)) if is_path else f"of type {type(source).__name__}"
