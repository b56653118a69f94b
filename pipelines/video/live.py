"""Live sources: a thread reads, a bounded queue drops the oldest frame, a lost connection is tried again after a growing pause."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from streamsvd.pipelines.video.read import Frames, Report, _package, decoded, stacked
from streamsvd.pipelines.video.settings import BLOCK

logger = logging.getLogger("streamsvd")
QUEUE, RETRIES, PAUSE, LONGEST = 64, 8, 0.5, 30.0
Grab = Callable[[], Iterator[tuple[np.ndarray, float]]]


def is_live(source: Any, /) -> bool:
    """Tell whether a source is a URL or the number of a camera."""
    return isinstance(source, str) and ("://" in source or source.isdigit())


def live(
    source: str,
    /,
    *,
    color: bool = True,
    report: Report | None = None,
    stop: threading.Event | None = None,
    retries: int = RETRIES,
) -> Iterator[Frames]:
    """Yield batches from a camera (its number) or a URL (rtsp://, http://, ...) until ``stop`` is set or it cannot be reached any more.

    Raises
    ------
    ConnectionError
        Nothing came at first and in ``retries`` further attempts, with pauses from 0.5 s up to 30 s.
    """
    report = report or Report()

    def grab() -> Iterator[tuple[np.ndarray, float]]:
        if source.isdigit():
            return _camera(int(source), color)
        # PyAV's own words for its options: TCP loses no packets, and a dead server is noticed.
        options = {"rtsp_transport": "tcp"} if source.startswith("rtsp") else {"rw_timeout": "10000000"}
        return decoded(source, color, report, options)

    return drained(grab, source, report, stop or threading.Event(), retries=retries)


def drained(
    grab: Grab,
    name: str,
    report: Report,
    stop: threading.Event,
    /,
    *,
    retries: int = RETRIES,
    pause: float = PAUSE,
    queue: int = QUEUE,
) -> Iterator[Frames]:
    """Yield what ``grab`` delivers, read by a thread; see `live`."""
    waiting: deque[tuple[np.ndarray, float, int]] = deque()
    ready = threading.Condition()
    ended: list[BaseException | None] = []

    def push(frame: np.ndarray, pts: float, number: int) -> None:
        with ready:
            if len(waiting) >= queue:
                waiting.popleft()
                report.dropped += 1
            waiting.append((frame.copy(), pts, number))
            ready.notify()

    def work() -> None:
        try:
            _connect(grab, push, name, report, stop, retries, pause)
            ended.append(None)
        except BaseException as error:  # handed to the reader's thread
            ended.append(error)
        with ready:
            ready.notify()

    thread = threading.Thread(target=work, name="video-source", daemon=True)
    thread.start()
    try:
        yield from _batches(waiting, ready, ended)
    finally:
        stop.set()
        thread.join(timeout=2.0)


def _batches(
    waiting: deque[tuple[np.ndarray, float, int]], ready: threading.Condition, ended: list[BaseException | None]
) -> Iterator[Frames]:
    while True:
        with ready:
            while not waiting and not ended:
                ready.wait(0.1)
            taken = []
            while waiting and len(taken) < BLOCK and (not taken or waiting[0][0].shape == taken[0][0].shape):
                taken.append(waiting.popleft())
        if taken:
            yield stacked(taken)
        elif ended:
            if ended[0] is not None:
                raise ended[0]
            return


def _connect(
    grab: Grab, push: Callable[..., None], name: str, report: Report, stop: threading.Event, retries: int, pause: float
) -> None:
    number = failures = 0
    began = time.monotonic()
    while not stop.is_set():
        reason: object = "the source ended"
        try:
            for frame, _ in grab():
                if stop.is_set():
                    return
                push(frame, time.monotonic() - began, number)
                number, failures = number + 1, 0
        except (ValueError, OSError) as error:
            reason = error
        failures += 1
        if failures > retries:
            if number:
                return
            msg = f"nothing came from {name!r} in {failures} attempts ({reason}); check the address, or that the camera is on"
            raise ConnectionError(msg)
        report.reconnects += 1
        wait = min(pause * 2 ** (failures - 1), LONGEST)
        logger.warning("lost %s (%s); trying again in %.1f s", name, reason, wait)
        stop.wait(wait)


def _camera(number: int, color: bool) -> Iterator[tuple[np.ndarray, float]]:
    cv2 = _package("cv2", "opencv-python-headless")
    capture = cv2.VideoCapture(number)
    try:
        while True:
            there, frame = capture.read()
            if not there:
                return
            yield frame if color else cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), float("nan")
    finally:
        capture.release()
