"""One thread reads on: the same elements in the same order, never far ahead, and gone when the reader is."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsvd.flow.readahead import ahead


def running():
    return [thread for thread in threading.enumerate() if thread.name == "streamsvd-readahead"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert running() == []


def soon(condition):
    """Wait until another thread has done something."""
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


@given(st.lists(st.integers(), max_size=30), st.integers(1, 5))
def test_the_elements_come_in_their_order(elements, depth):
    assert list(ahead(iter(elements), depth)) == elements
    assert list(ahead(elements, depth)) == elements


def test_elements_are_made_in_another_thread():
    makers = set(ahead(threading.get_ident() for _ in range(30)))
    assert len(makers) == 1
    assert threading.get_ident() not in makers


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_at_most_depth_elements_are_made_before_they_are_asked_for(depth):
    made = []
    stream = ahead((made.append(i) or i for i in range(100)), depth)
    assert made == []
    for asked in range(1, 20):
        assert next(stream) == asked - 1
        soon(lambda asked=asked: len(made) == asked + depth)
        time.sleep(0.002)
        assert len(made) == asked + depth
    stream.close()


def test_an_error_arrives_after_the_elements_before_it_with_its_traceback():
    def broken():
        yield 1
        yield 2
        the_line_that_fails = {}
        the_line_that_fails["key"]

    stream = ahead(broken())
    assert [next(stream), next(stream)] == [1, 2]
    with pytest.raises(KeyError) as caught:
        next(stream)
    assert "in broken" in "".join(traceback.format_exception(caught.value))
    assert running() == []
    assert list(stream) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_no_kind_of_error_is_lost(error):
    def broken():
        raise error
        yield

    with pytest.raises(error):
        list(ahead(broken()))


def test_what_cannot_be_iterated_is_an_error_in_the_caller():
    with pytest.raises(TypeError, match="not iterable"):
        list(ahead(3))


@pytest.mark.parametrize("taken", [1, 2, 5])
def test_closing_ends_the_thread_and_closes_the_iterator_in_it(taken):
    closed = []

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.append(threading.current_thread().name)

    stream = ahead(endless())
    for _ in range(taken):
        next(stream)
    stream.close()
    assert running() == []
    assert closed == ["streamsvd-readahead"]


def test_an_error_of_the_consumer_ends_the_thread():
    def consume():
        for _ in ahead(iter(int, 1)):
            msg = "mine"
            raise RuntimeError(msg)

    with pytest.raises(RuntimeError, match="mine"):
        consume()
    gc.collect()
    assert running() == []


def test_a_generator_that_is_dropped_ends_its_thread():
    stream = ahead(iter(int, 1))
    next(stream)
    del stream
    gc.collect()
    assert running() == []


def test_nothing_starts_before_the_first_element_is_asked_for():
    stream = ahead(iter(int, 1))
    assert running() == []
    stream.close()


def test_a_full_queue_does_not_hang_at_the_end():
    for _ in range(50):
        stream = ahead(iter(range(10)), 1)
        assert next(stream) == 0
        stream.close()


@pytest.mark.parametrize("depth", [0, -1, 1.5, True, None])
def test_a_depth_out_of_range_is_refused_at_once(depth):
    with pytest.raises(ValueError, match="depth="):
        ahead([], depth)


def test_elements_that_were_handed_over_are_not_held():
    alive = []

    class Element:
        def __init__(self):
            alive.append(id(self))

        def __del__(self):
            alive.remove(id(self))

    stream = ahead(Element() for _ in range(20))
    for _ in range(10):
        element = next(stream)
        assert len(alive) <= 4  # the queue, the one at hand, and the one before it while `next` runs
        del element
    stream.close()
    assert alive == []


def test_an_interpreter_that_ends_does_not_wait_for_an_open_generator():
    code = "from streamsvd.flow.readahead import ahead; s = ahead(iter(int, 1)); next(s); import builtins; builtins.kept = s"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_signal_arrives_while_the_consumer_waits():
    release = threading.Event()

    def slow():
        yield 1
        release.wait()

    def interrupt(*_):
        release.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        stream = ahead(slow())
        next(stream)
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        with pytest.raises(KeyboardInterrupt):
            next(stream)
    finally:
        signal.signal(signal.SIGUSR1, before)
