"""Reading on in one background thread while the rows at hand are worked on."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def ahead(iterator: Iterable[T], /, depth: int = 2) -> Iterator[T]:
    """Give the elements of an iterator in their order, while one background thread makes the next ones.

    Parameters
    ----------
    iterator : iterable
        Read in the background thread, and closed there (``close()``, where it has that).
    depth : int
        At most so many elements are made before they are asked for.

    Yields
    ------
    element
        What the iterator gives.

    Raises
    ------
    Exception
        What the iterator raises, with the traceback of the background thread, after the elements before it.

    Notes
    -----
    The thread starts when the first element is asked for. It has ended when this generator has: at the last element, at an error, or when
    it is closed or dropped; that takes as long as the element being made. Memory: ``depth`` elements, and the one at hand.
    """
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        msg = f"depth={depth!r} arrived; expected a whole number of at least 1"
        raise ValueError(msg)
    return _ahead(iterator, depth)


def _ahead(iterator: Iterable[T], depth: int) -> Iterator[T]:
    made: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    # Tokens in a queue are a semaphore without its Python code, which costs more than making a small element.
    room: queue.SimpleQueue[None] = queue.SimpleQueue()
    left = threading.Event()
    for _ in range(depth):
        room.put(None)
    # A daemon, so that a generator that is never closed does not keep the interpreter from ending.
    thread = threading.Thread(
        target=contextvars.copy_context().run,
        args=(_make, iterator, made, room, left),
        name="streamsvd-readahead",
        daemon=True,
    )
    thread.start()
    try:
        while True:
            what, element = made.get()
            if what == "end":
                return
            if what == "error":
                try:
                    raise element
                finally:
                    del element  # its traceback holds this frame
            room.put(None)
            yield element
            del element  # not held while the next one is waited for
    finally:
        left.set()
        room.put(None)
        if thread is not threading.current_thread():  # which may be the one that finds this generator dropped
            thread.join()


def _make(
    iterator: Iterable[Any], made: queue.SimpleQueue[Any], room: queue.SimpleQueue[None], left: threading.Event
) -> None:
    last: tuple[str, Any] = ("end", None)
    try:
        elements = iter(iterator)
        try:
            while True:
                room.get()
                if left.is_set():
                    break
                try:
                    element = next(elements)
                except StopIteration:
                    break
                made.put(("element", element))
                del element
        finally:
            close = getattr(elements, "close", None)
            if close is not None:
                close()
    except BaseException as error:  # noqa: BLE001, RUF100 - whatever it is, it belongs to the caller
        last = ("error", error)
    made.put(last)
