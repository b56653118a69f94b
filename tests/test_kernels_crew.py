"""Pieces of a loop are each done once, whoever takes them: helpers that sleep, are late, are shared, or were left behind by a fork."""

from __future__ import annotations

import functools
import gc
import os
import sys
import threading
import time
import weakref

import numba
import numpy as np
import pytest

from streamsvd.kernels.crew import Crew
from streamsvd.kernels.crew_numba import add, reaches


@numba.njit(nogil=True)
def count(done, board, ticket):
    if ticket.size:
        add(ticket, 0, 1)
    while True:
        k = add(board, 0, 1)
        if k >= done.size:
            break
        add(done, k, 1)
        add(board, 1, 1)


@pytest.mark.parametrize("helpers", [1, 3])
@pytest.mark.parametrize("pieces", [1, 2, 16, 1000])
def test_each_piece_is_done_once(helpers, pieces):
    crew = Crew(3)
    for wait in (0.0, 0.0, 0.003, 0.0):  # awake, asleep, awake again
        time.sleep(wait)
        done = np.zeros(pieces, np.int64)
        crew.run(functools.partial(count, done), pieces, helpers)
        assert np.all(done == 1)


def test_threads_that_call_at_once_get_their_own_pieces():
    crew, wrong = Crew(2), []

    def caller():
        for _ in range(200):
            done = np.zeros(50, np.int64)
            crew.run(functools.partial(count, done), 50, 2)
            if not np.all(done == 1):
                wrong.append(done)

    threads = [threading.Thread(target=caller) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_loop_waits_for_the_piece_that_a_helper_is_at():
    crew, done = Crew(1), []

    def work(board, ticket):
        ticket[:] += 1
        while (k := add_one(board, 0)) < 2:
            done.append((k, threading.current_thread().name))
            reached = time.monotonic() + 5
            while len(done) < 2 and time.monotonic() < reached:
                time.sleep(0.001)
            add_one(board, 1)

    crew.run(work, 2, 1)
    assert sorted(k for k, _ in done) == [0, 1]
    assert len({name for _, name in done}) == 2


def test_no_helper_comes_and_the_loop_is_done_all_the_same():
    crew = Crew(1)
    crew._asleep.clear()  # nobody can be woken
    done = np.zeros(8, np.int64)
    crew.run(functools.partial(count, done), 8, 1)
    assert np.all(done == 1)


def test_the_arrays_of_a_loop_are_let_go():
    crew, done = Crew(1), np.zeros(4, np.int64)
    crew.run(functools.partial(count, done), 4, 1)
    gone = weakref.ref(done)
    del done
    limit = time.monotonic() + 5
    while gone() is not None and time.monotonic() < limit:
        gc.collect()
        time.sleep(0.01)
    assert gone() is None


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_process_works_without_the_helpers_of_its_parent():
    crew, done = Crew(1), np.zeros(8, np.int64)
    crew.run(functools.partial(count, done), 8, 1)
    child = os.fork()
    if child == 0:
        again = np.zeros(8, np.int64)
        crew.run(functools.partial(count, again), 8, 1)
        os._exit(0 if np.all(again == 1) else 1)
    limit = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < limit:
        time.sleep(0.01)
    assert ended == (child, 0)


def test_waiting_ends_by_itself():
    assert not reaches(np.zeros(2, np.int64), 1, 1, 100)


@numba.njit
def add_one(board, k):
    return add(board, k, 1)
