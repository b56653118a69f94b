"""A folder whose files are a stream: each one is read when it is whole, until somebody says stop."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from streamsvd.flow.files import File, inside
from streamsvd.flow.offsets import ANEW, Offset, begin, each, named, same
from streamsvd.flow.readers import has_end

STEP = 0.05  # seconds between two looks at the stop flag
BEAT = 1.0  # seconds between two heartbeats, at most


class Follow:
    """A source without an end: the files of a folder, each from the moment that it is whole.

    Parameters
    ----------
    folder : path
        Searched at any depth. Names that start with a dot or an underscore, and suffixes that are not data (such as .tmp and .part), are
        passed over.
    poll : float
        Seconds between two looks at the folder.
    settle : float
        Seconds for which a file stays as it is before it is taken. Parquet and Arrow IPC files are taken as soon as they have their end
        (footer, trailer), and not before.

    Raises
    ------
    FileNotFoundError
        There is no such folder.
    ValueError
        ``poll`` or ``settle`` is out of range; while reading: a file that changed after it was read.

    Notes
    -----
    Files are read in the order in which they appear: those that one look finds by time of change, then by name. While there is nothing to
    read, a block without data is given about once per ``poll``, and at least once per second. After a restart (``start=``) the files that
    were read are compared with what they were and passed over; those that are gone since are no error, except one that was read in part.
    Cost of a look: one stat for each file in the folder.

    Examples
    --------
    >>> import tempfile
    >>> Follow(tempfile.gettempdir(), poll=0.5).poll
    0.5
    """

    def __init__(self, folder: str | os.PathLike[str], *, poll: float = 1.0, settle: float = 2.0) -> None:
        for name, value, least in (("poll", poll, "more than 0"), ("settle", settle, "0 or more")):
            if not 0 <= value < float("inf") or (name == "poll" and value == 0):
                msg = f"{name}={value!r} arrived; expected seconds, {least}"
                raise ValueError(msg)
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            reason = "is no folder" if self.folder.exists() else "does not exist"
            msg = f"the folder to follow, {str(self.folder)!r}, {reason}; make it first, or check the path (URLs cannot be followed)"
            raise FileNotFoundError(msg)
        self.poll, self.settle = float(poll), float(settle)
        self._stopped = False

    def __repr__(self) -> str:
        return f"Follow({str(self.folder)!r}, poll={self.poll}, settle={self.settle})"

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called; then this source gives nothing more."""
        return self._stopped

    def stop(self) -> None:
        """End the stream after the block at hand; safe in a signal handler and from any thread."""
        # A plain flag: the locks of threading.Event may be held by the very thread that a signal interrupts.
        self._stopped = True

    def files(self, start: Offset | None = None, /) -> Iterator[File | None]:
        """Give the files as they become whole, None when there is nothing to read; after ``start`` those that were not read before.

        The first one is then the file that was read in part, if there is one.
        """
        read, last = _verified(start)
        return self._files(read, last)

    def _files(self, read: dict[str, State], last: File | None) -> Iterator[File | None]:
        if last is not None and not self._stopped:
            yield last
        waiting: dict[str, Waiting] = {}
        while not self._stopped:
            waiting = self._look(read, waiting)
            now = time.monotonic()
            ready = [one for one in waiting.values() if one.taken(now, self.settle)]
            for one in sorted(ready, key=lambda one: (one.state.mtime_ns, one.file.path)):
                if self._stopped:
                    return
                if _state(one.file) == one.state:  # else it changed while others were read, and waits again
                    read[one.file.key] = one.state
                    yield one.file
            if not ready:
                yield None
                self._rest()

    def _look(self, read: dict[str, State], waiting: dict[str, Waiting]) -> dict[str, Waiting]:
        """Return the files that were not read, each with the time from which on it has looked as it does now."""
        found = {}
        for file in (File(str(path)) for path in inside(self.folder)):
            state = _state(file)
            if state is None:
                continue
            if file.key in read:
                same({"path": file.key, **read[file.key]._asdict()}, state._asdict())
                continue
            before = waiting.get(file.key)
            found[file.key] = before if before and before.state == state else Waiting(file, state, time.monotonic())
        return found

    def _rest(self) -> None:
        until = time.monotonic() + min(self.poll, BEAT)
        while not self._stopped and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, STEP))


class State(NamedTuple):
    """What a look at a folder shows of a file."""

    size: int
    mtime_ns: int


class Waiting(NamedTuple):
    """A file that was not read yet."""

    file: File
    state: State
    since: float  # on the monotonic clock; times of change may come from another machine

    def taken(self, now: float, settle: float) -> bool:
        """Whether it is whole: by its end where its kind has one, else by having stayed as it is."""
        ended = has_end(self.file)
        return now - self.since >= settle if ended is None else ended


def _state(file: File) -> State | None:
    """Return what a file looks like, None where it was renamed or removed since the look."""
    try:
        return State(*file.stat())
    except FileNotFoundError:
        return None


def _verified(start: Offset | None) -> tuple[dict[str, State], File | None]:
    """Return what was read before, each file compared with what it was, and the one that was read in part."""
    if start is None:
        return {}, None
    begin(start)
    read: dict[str, State] = {}
    marks, file = list(each(start["items"])), None
    for i, one in enumerate(marks):
        if "path" not in one:
            msg = f"{named(one)} was read before, and a followed folder is here now; {ANEW}"
            raise ValueError(msg)
        file, in_part = File(one["path"]), i == len(marks) - 1 and not start["whole"]
        if in_part or Path(file.path).exists():
            same(one, file.mark())
        read[file.key] = State(one["size"], one["mtime_ns"])
    return read, None if start["whole"] else file
