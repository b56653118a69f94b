"""Threads that share the pieces of one loop without the interpreter lock, and wait a moment for the next loop before they sleep.

Waking a thread takes 0.1 to 0.5 ms, and the scheduler may place it on the core of the one that woke it: as long as a loop of a few
milliseconds takes. Solvers run such loops one after another, so a helper looks out for the next one for a while.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

# Pauses of some 25 ns: a helper sleeps after about half a millisecond without work.
PATIENCE = 20_000
_yield_core: Callable[[], Any] = getattr(os, "sched_yield", functools.partial(time.sleep, 0))
_SILENT = np.zeros(0, np.int64)


class _Job:
    def __init__(self, work: Callable[[np.ndarray, np.ndarray], Any], seats: int) -> None:
        self.work, self.seats = work, seats
        self.board = np.zeros(2, np.int64)  # pieces taken, pieces done

    def take_seat(self) -> bool:
        self.seats -= 1
        return self.seats >= 0


class Crew:
    """Helpers for loops whose pieces any thread may take.

    A loop never waits for a helper that has not begun: the caller takes every piece that nobody else has, so a helper that sleeps, or
    that a fork has left behind, costs only its help.
    """

    def __init__(self, size: int, /) -> None:
        self._size, self._job, self._asleep = size, None, []
        self._ticket = np.zeros(1, np.int64)
        for number in range(size):
            bell = threading.Semaphore(0)
            self._asleep.append(bell)
            threading.Thread(target=self._serve, args=(bell,), name=f"streamsvd-{number}", daemon=True).start()

    def run(self, work: Callable[[np.ndarray, np.ndarray], Any], pieces: int, helpers: int, /) -> None:
        """Run ``work(board, ticket)`` here and on up to so many helpers until every piece is done.

        ``work`` runs without the interpreter lock: it raises the ticket, where it has one, then takes piece ``add(board, 0, 1)`` after
        piece while there are any, and counts each one done by ``add(board, 1, 1)``.
        """
        from streamsvd.kernels.crew_numba import reaches

        job = self._job = _Job(work, helpers)
        for _ in range(helpers - (self._size - len(self._asleep))):
            if self._asleep:
                self._asleep.pop().release()
        work(job.board, self._ticket)
        while not reaches(job.board, 1, pieces, 1000):
            _yield_core()
        if self._job is job:
            self._job = None  # or the arrays of the loop would live on

    def _serve(self, bell: threading.Semaphore) -> None:
        from streamsvd.kernels.crew_numba import changes

        while True:
            bell.acquire()
            seen = -1
            while changes(self._ticket, 0, seen, PATIENCE):
                seen, job = int(self._ticket[0]), self._job
                if job is not None and job.take_seat():
                    job.work(job.board, _SILENT)
                del job
            self._asleep.append(bell)


@functools.cache
def crew() -> Crew:
    """Return the helpers of this process: one for each core but one."""
    return Crew(max(1, (os.cpu_count() or 1) - 1))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=crew.cache_clear)
