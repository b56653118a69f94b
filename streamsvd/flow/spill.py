"""States that wait on the disk: one file for each, named by its content and never changed.

The name is the beginning of the digest that every state file carries, so a state written twice is one file, two histories of one stream
cannot write different things under one name, and a checkpoint that keeps the name keeps the bits.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from streamsvd.flow import checkpoint, statefile

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

DIGITS = 32
NAME = re.compile(rf"[0-9a-f]{{{DIGITS}}}\.svd")
DRAFT = re.compile(rf"\.{NAME.pattern}\.\d+-[0-9a-f]{{8}}\.tmp")


class Spilled(NamedTuple):
    """A state on the disk: the first 32 hexadecimal digits of its file's digest, and the rows that it has seen."""

    digest: str
    rows: int

    @property
    def name(self) -> str:
        """Name of the file in its folder."""
        return f"{self.digest}.svd"


@dataclass(frozen=True, eq=False)
class Folder:
    """Where states are spilled to. ``synced`` are the names known to be on the disk and not only in the system's memory."""

    path: Path
    synced: set[str] = field(default_factory=set)

    def write(self, state: Any, /) -> Spilled:
        """Write a state, not yet synced: that is done for all files together when a checkpoint names them."""
        self.path.mkdir(parents=True, exist_ok=True)
        digest, chunks = statefile.encode(*checkpoint.contents(state))
        spilled = Spilled(digest[:DIGITS], state.rows)
        if not self._holds(spilled):
            statefile.write_atomically(self.path / spilled.name, chunks, sync=False)
        return spilled

    def read(self, spilled: Spilled, /, *, like: Any = None) -> Any:
        """Return a state from its file, which must be the one that was written.

        Raises
        ------
        FileNotFoundError, ValueError
            The file is gone, damaged, or another state.
        """
        file = self.path / spilled.name
        if not file.exists():
            msg = f"{str(file)!r}, to which its state was spilled, is gone; put the folder back where it was, or fit again"
            raise FileNotFoundError(msg)
        state = checkpoint.load(file, like=like)
        if not statefile.digest(file).startswith(spilled.digest) or state.rows != spilled.rows:
            msg = f"{str(file)!r} is another state than the one that was spilled there; put the folder back as it was, or fit again"
            raise ValueError(msg)
        return state

    def sync(self, names: Iterable[str], /) -> None:
        """Bring files to the disk that are not known to be there."""
        new = [name for name in names if name not in self.synced]
        for name in new:
            handle = os.open(self.path / name, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        if new:
            statefile.sync_folder(self.path)
        self.synced.update(new)

    def _holds(self, spilled: Spilled) -> bool:
        # A file of that name may be the rest of a run that lost its power, so the name alone proves nothing.
        if not (self.path / spilled.name).exists():
            return False
        try:
            self.read(spilled)
        except (OSError, ValueError):
            return False
        return True


def prune(folder: str | os.PathLike[str], keep: Collection[str], /) -> int:
    """Remove the spilled states of a folder, and drafts of them, that nothing needs any more, and return how many.

    Parameters
    ----------
    folder : path
        As in `Keyed.make`; one that does not exist holds nothing. Files of other names are left alone.
    keep : collection of str
        Names of files: the union of ``live_files()`` over the newest state, the one that is being written, and every checkpoint kept.
    """
    path, kept = Path(folder), frozenset(keep)
    if not path.is_dir():
        return 0
    old = [
        file
        for file in path.iterdir()
        if (NAME.fullmatch(file.name) and file.name not in kept) or DRAFT.fullmatch(file.name)
    ]
    for file in old:
        file.unlink(missing_ok=True)
    return len(old)
