"""The engine without a cluster: partitions folded one after another in this process, in the order that a schedule asks for."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from streamsvd.engines.contract import Part
from streamsvd.engines.driver import drive, told
from streamsvd.engines.job import Job
from streamsvd.engines.tree import Tree
from streamsvd.flow.fold import Outcome
from streamsvd.flow.policies import Intake
from streamsvd.flow.request import Request

logger = logging.getLogger("streamsvd")
ATTEMPTS = 4


def fit_local(partitions: Sequence[Any], /, *, rank: int, **options: Any) -> Any:
    """Fold partitions into factors as the engines do, with the same bits, in this process.

    Parameters
    ----------
    partitions : sequence of sources, each anything that `streamsvd.batches` reads
    rank, options
        As in `run_local` and `streamsvd.fit`.

    Returns
    -------
    factors : Factors, or dict of Factors with ``by``

    Raises
    ------
    PartitionError
        A partition was refused, or failed ``attempts`` times.

    Examples
    --------
    >>> import numpy as np
    >>> rows = np.random.default_rng(0).standard_normal((300, 6)) * [6, 5, 4, 3, 2, 1]
    >>> whole = fit_local([rows], rank=2)
    >>> parts = fit_local(np.array_split(rows, 5), rank=2)
    >>> bool(abs(parts.s - whole.s).max() < 1e-9), parts.rows
    (True, 300)
    """
    return told(run_local(partitions, rank=rank, **options))


def run_local(
    partitions: Sequence[Any],
    /,
    *,
    schedule: Iterable[int] | None = None,
    attempts: int = ATTEMPTS,
    fold: Callable[[Job, Any, int], bytes] = Job.fold,
    **options: Any,
) -> Outcome:
    """Fold partitions and return the state with all that is known of the run.

    Parameters
    ----------
    partitions : sequence of sources
    schedule : iterable of int, optional
        In which order partitions are folded; numbers may come twice, as a speculative copy of a task would. All, in order, by default.
    attempts : int, how often a partition that raises is tried
    fold : function of (job, partition, number), what a task does
    options
        Those of `streamsvd.fit`, and ``checkpoint``, ``keep``, ``on_event``, ``device``, ``fan_in``.
    """

    def work(job: Job) -> bytes | None:
        desk = Desk(job)
        for number in range(len(partitions)) if schedule is None else schedule:
            desk.take(tried(job, partitions[number], number, fold, attempts), number)
        return desk.whole(len(partitions))

    return drive(work, **options)


class Desk:
    """Takes the bytes of partitions in any order, any number of times, and merges each once, in the order of their numbers."""

    def __init__(self, job: Job, /) -> None:
        self._tree = Tree(job.merge, job.fan_in)
        self._early: dict[int, bytes] = {}
        self._next = 0
        self._digests: dict[int, str] = {}

    def take(self, data: bytes, number: int, /) -> bool:
        """Take the bytes of a partition; False, and nothing changes, where they are here already.

        Raises
        ------
        ValueError
            A second copy with other bytes: the rows of the partition have changed in between.
        """
        mark = _digest(data)
        if number in self._digests:
            if self._digests[number] != mark:
                cure = "read what does not change, or order its rows (sort within partitions)"
                msg = f"partition {number} came twice with different rows; {cure}"
                raise ValueError(msg)
            logger.info("partition %d came again and was ignored", number)
            return False
        self._digests[number] = mark
        self._early[number] = data
        while self._next in self._early:
            self._tree.add(self._early.pop(self._next))
            self._next += 1
        return True

    def whole(self, count: int, /) -> bytes | None:
        """Return all partitions merged; None where there are none.

        Raises
        ------
        RuntimeError
            Some never came.
        """
        missing = [number for number in range(count) if number not in self._digests]
        if missing:
            msg = f"partitions {missing[:10]} of {count} never came"
            raise RuntimeError(msg)
        return self._tree.root()


def tried(
    job: Job,
    partition: Any,
    number: int,
    fold: Callable[[Job, Any, int], bytes] = Job.fold,
    attempts: int = ATTEMPTS,
) -> bytes:
    """Fold a partition that can be read again; what fails every time becomes a part that says so."""
    for attempt in range(1, attempts + 1):
        try:
            return fold(job, partition, number)
        except Exception as error:
            if attempt == attempts:
                return failed(job, number, f"failed {attempts} times: {type(error).__name__}: {error}")
            logger.info("partition %d, attempt %d: %s", number, attempt, error)
    raise AssertionError(number)


def failed(job: Job, number: int, why: str, /) -> bytes:
    """Return the bytes of a partition that could not be folded."""
    return Part(number, 1, None, Intake(), Request(**job.options).settings(), failed={str(number): why}).to_bytes()


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
