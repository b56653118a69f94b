"""A lock on a path that its process cannot leave behind: the kernel drops it with the process, however that dies."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def locked(path: Path, /) -> Iterator[None]:
    """Hold the lock of a file, ``PATH.lock`` beside it, which names the process that holds it.

    Raises
    ------
    BlockingIOError
        Another run holds it; the message names its process.

    Notes
    -----
    Where there is no ``flock`` (Windows), the file itself is the lock, and one that a killed run left must be removed by hand.
    """
    lock = path.with_name(f"{path.name}.lock")
    handle = _taken(lock, path)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
        yield
    finally:
        lock.unlink(missing_ok=True)  # while it is still held: see _taken
        os.close(handle)


def _taken(lock: Path, path: Path) -> int:
    while True:
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | (0 if fcntl else os.O_EXCL), 0o666)
        except FileExistsError:
            msg = f"{str(lock)!r} says that another run is writing {str(path)!r}; remove it if that run was killed"
            raise BlockingIOError(msg) from None
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before may have removed the name between the two calls, and then this is a lock on nothing.
            if os.path.samestat(os.fstat(handle), lock.stat()):
                return handle
        except FileNotFoundError:
            pass
        except BlockingIOError:
            _refuse(handle, path)
        os.close(handle)


def _refuse(handle: int, path: Path) -> NoReturn:
    holder = os.read(handle, 20).decode(errors="replace") or "another process"
    os.close(handle)
    msg = (
        f"another run (process {holder}) is writing {str(path)!r}, and two would count its rows twice; "
        "wait for it to end, stop it, or give another checkpoint="
    )
    raise BlockingIOError(msg) from None
