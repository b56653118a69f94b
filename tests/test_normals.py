"""Test matrices by counter: any part of them can be drawn again, and they are standard normal."""

from __future__ import annotations

import numpy as np
import pytest

from backends import BACKENDS
from streamsvd.arrays import to_numpy
from streamsvd.normals import CHUNK, normals, normals_like


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("first", [0, 1, 1000, CHUNK - 1, CHUNK, 2 * CHUNK + 5])
def test_any_rows_are_those_of_the_whole(first, dtype):
    whole = normals(7, 4 * CHUNK, 3, dtype=dtype)
    for rows in (0, 1, 17, CHUNK - 3):
        assert np.array_equal(normals(7, rows, 3, first=first, dtype=dtype), whole[first : first + rows])


def test_columns_do_not_depend_on_how_many_there_are():
    assert np.array_equal(normals(7, 100, 9)[:, :4], normals(7, 100, 4))


def test_seeds_and_streams_differ():
    drawn = [normals(seed, 50, 2, stream=stream) for seed, stream in ((0, 0), (1, 0), (0, 1), (-1, 0), (2**70, 3))]
    for i, a in enumerate(drawn):
        assert not any(np.array_equal(a, b) for b in drawn[:i])


def test_entries_are_standard_normal_and_independent():
    G = normals(3, 50_000, 6)
    assert np.abs(G.mean(axis=0)).max() < 5 / np.sqrt(50_000)
    assert np.abs(np.cov(G.T) - np.eye(6)).max() < 0.03
    assert np.mean(G**4) == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_has_the_same_bits(backend):
    like = backend(np.zeros((1, 1), np.float32))
    drawn = normals_like(5, 30, 4, like=like, dtype="float32")
    assert type(drawn) is type(like)
    assert np.array_equal(to_numpy(drawn), normals(5, 30, 4, dtype="float32"))
