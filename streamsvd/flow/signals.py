"""SIGINT and SIGTERM wait for the end of a batch, so that a run which is stopped can go on where it was."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Deferred:
    """Within its context the first SIGINT or SIGTERM is only noted, in ``arrived``; a second one acts at once, as it would outside.

    Parameters
    ----------
    ready : function that tells whether there is anything to wait for; where not, the first signal acts at once too
    source : the source of the run
        Where it has a method ``stop``, as one without an end has, the first signal calls it.

    Notes
    -----
    Only in the main thread, where alone Python handles signals; elsewhere nothing changes. Signals that are ignored stay ignored.
    """

    def __init__(self, ready: Callable[[], bool], source: Any = None) -> None:
        self.arrived: int | None = None
        self._ready, self._stop = ready, getattr(source, "stop", None)
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Deferred:
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in STOPPING}
            # None: installed by something that is not Python, and cannot be put back.
            self._before = {n: handler for n, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
            for number in self._before:
                signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        before, self._before = self._before, {}
        for number, handler in before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if self.arrived is not None or not self._ready():
            self.__exit__()
            signal.raise_signal(number)
            return
        self.arrived = number
        if callable(self._stop):
            self._stop()


def act(number: int, /) -> None:
    """Do what the signal would have done: KeyboardInterrupt, the handler that was there, or the end of the process."""
    signal.raise_signal(number)
    msg = f"stopped by {signal.Signals(number).name}"  # only where the handler took it and went on
    raise KeyboardInterrupt(msg)
