"""Runs that can be resumed: state and position in one file, the last few of them kept, written by one background thread."""

from __future__ import annotations

import logging
import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamsvd.flow import statefile
from streamsvd.flow.checkpoint import KINDS, class_of, contents, kind_of, restored
from streamsvd.flow.sinks import check_target

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("streamsvd")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Everything that a run needs to go on, as it was between two batches.

    Invariant: ``state`` holds each row of the source before ``offset`` once, less the rows that ``intake`` counts as dropped.

    Attributes
    ----------
    state : Gram, Truncated or Keyed
    offset : dict, where reading goes on; plain JSON, made and read by ``sources.read``
    intake : dict, ``Intake.to_json()``: rows seen, dropped and filled
    settings : dict, the options of the run that decide its result
    names : tuple of str, the columns
    sequence : int, grows by one from checkpoint to checkpoint
    finished : bool, whether the source had come to its end
    measured : int or None, rows that were read before to measure the scale of the columns
    events : tuple of dict, the last 1000 (see ``events.Event``)
    """

    state: Any
    offset: dict[str, Any] | None
    intake: dict[str, Any]
    settings: dict[str, Any]
    names: tuple[str, ...] = ()
    sequence: int = 0
    finished: bool = False
    measured: int | None = None
    events: tuple[dict[str, Any], ...] = ()

    def parts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the arrays of the state, and the JSON-ready rest with that of the state under "state"."""
        arrays, meta = self.state.parts()
        rest = {name: getattr(self, name) for name in FIELDS}
        return arrays, {"state": {"kind": kind_of(self.state), "meta": meta}, **rest}

    @classmethod
    def from_parts(cls, arrays: dict[str, Any], meta: dict[str, Any], /) -> Checkpoint:
        """Restore a checkpoint from ``parts``."""
        state = class_of(meta["state"]["kind"]).from_parts(arrays, meta["state"]["meta"])
        rest: dict[str, Any] = {name: meta[name] for name in FIELDS}
        rest |= {name: tuple(rest[name]) for name in ("names", "events")}
        return cls(state, **rest)


FIELDS = ("offset", "intake", "settings", "names", "sequence", "finished", "measured", "events")


def read_run(path: str | os.PathLike[str], /) -> Checkpoint:
    """Read one checkpoint file, after checking every bit of it.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError
        There is no such file, or it cannot be opened.
    ValueError
        The file is damaged, of a newer version, or holds something else than a run; the message says which.
    """
    kind, arrays, meta = statefile.read(path, kinds=KINDS)
    if kind != "run":
        raise NotARun(path, kind)
    return Checkpoint.from_parts(arrays, restored(meta))


class NotARun(ValueError):
    """A whole file that holds something else than a run."""

    def __init__(self, path: str | os.PathLike[str], kind: str) -> None:
        super().__init__(
            f"{str(path)!r} holds {'factors' if kind == 'factors' else f'a {kind} state'} and no run that could go on; "
            "give another name as checkpoint=, or remove the file"
        )


class Store:
    """The checkpoint files of one run: ``PATH`` is the newest, ``PATH.1``, ``PATH.2``, ... are older."""

    def __init__(self, path: str | os.PathLike[str], /, keep: int = 3) -> None:
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            msg = f"keep={keep!r} arrived; expected how many checkpoints to keep, 1 or more"
            raise ValueError(msg)
        self.path = Path(os.path.realpath(check_target(path)))
        self.keep = keep

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """Return the newest whole checkpoint, or None where there is no file at all, and what is wrong with those passed over.

        Raises
        ------
        ValueError
            There are files, but none is whole: to begin anew by itself would hide the loss. Or one holds something else.
        """
        best, wrong = None, []
        for file in self.files():
            try:
                found = read_run(file)
            except NotARun:
                raise
            except (ValueError, OSError) as error:
                wrong.append(str(error))
                continue
            if best is None or found.sequence > best.sequence:
                best = found
        if wrong and best is None:
            msg = f"no checkpoint of this run can be read: {'; '.join(wrong)}. To begin anew, remove {str(self.path)!r} and its copies"
            raise ValueError(msg)
        notes = [f"{text}; passed over for an older checkpoint (number {best.sequence})" for text in wrong if best]
        for note in notes:
            logger.warning("%s", note)
        return best, notes

    def write(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint; those before it move on by one, and those past ``keep`` are removed. PATH itself never vanishes between.

        Raises
        ------
        OSError
            The disk is full, or the folder is gone; all older files are what they were.
        """
        chunks = statefile.encode(*contents(checkpoint))[1]
        statefile.write_atomically(self.path, chunks, before=self._move_on)

    def clean(self) -> None:
        """Remove what a killed process left half written. Only for the holder of the lock."""
        for draft in self.path.parent.glob(f".{_literal(self.path.name)}.*.tmp"):
            draft.unlink(missing_ok=True)

    def files(self) -> list[Path]:
        """Return the files that are there, newest first."""
        older = self._older()
        return [file for file in (self.path, *(older[number] for number in sorted(older))) if file.exists()]

    def _older(self) -> dict[int, Path]:
        found = self.path.parent.glob(f"{_literal(self.path.name)}.*")
        return {int(file.suffix[1:]): file for file in found if file.suffix[1:].isdigit()}

    def _move_on(self) -> None:
        older = self._older()
        if self.path.exists():
            for number in sorted(older, reverse=True):
                older[number].replace(self._numbered(number + 1))
            if self.keep > 1:
                try:
                    os.link(self.path, self._numbered(1))  # so that PATH exists at any moment
                except OSError:  # a file system without links
                    self.path.replace(self._numbered(1))
        for number, file in self._older().items():
            if number >= self.keep:
                file.unlink()

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")


class Writer:
    """Writes checkpoints in one background thread, one at a time; the states are frozen, so nothing is copied for it."""

    def __init__(self, write: Callable[[Checkpoint], None], good: int | None = None) -> None:
        self._write = write
        self.good, self.failed = (
            good,
            False,
        )  # rows in the newest checkpoint on the disk; whether one could not be written
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="streamsvd-checkpoint")
        self._flight: tuple[Future[None], int] | None = None

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._flight is not None and not self._flight[0].done()

    def submit(self, checkpoint: Checkpoint) -> None:
        """Begin to write; waits for the one before where that is not done."""
        self.wait()
        self._flight = self._thread.submit(self._write, checkpoint), checkpoint.state.rows

    def check(self) -> None:
        """Raise what went wrong with the last one, if it did."""
        if self._flight is not None and self._flight[0].done():
            self.wait()

    def wait(self) -> None:
        """Wait for the last one, and raise what went wrong with it."""
        if self._flight is None:
            return
        (future, rows), self._flight = self._flight, None
        try:
            future.result()
        except OSError as error:
            self.failed = True
            stays = f"the checkpoint of row {self.good:,} stays good" if self.good is not None else "there is none yet"
            msg = f"the checkpoint of row {rows:,} was not written, {stays}: {error.strerror or error}"
            raise type(error)(error.errno, msg) from error
        self.good = rows

    def close(self) -> None:
        """End the thread; what is being written is written to its end."""
        self._thread.shutdown(wait=True)


def _literal(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
