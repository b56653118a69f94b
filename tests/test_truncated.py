"""The state of merge-and-truncate: what it keeps, what it costs, and how near it comes where nothing is lost or much is."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import BACKENDS, digest
from checks import assert_agrees, assert_bounds
from streams import Truth, chunks, cuts, feed, low_rank, rows_of
from streamsvd.arrays import to_numpy
from streamsvd.planner import sketch, widen
from streamsvd.truncated import FLUSH, Truncated
from streamsvd.verify import orthonormality

D = 48


def empty(**options):
    return sketch(**{"columns": D, "rank": 3, "kept": 8, "kind": "truncated", **options})


def test_rows_wait_until_three_times_as_many_as_are_kept():
    state = empty()
    for n in range(1, FLUSH * 8):
        state = state.update(np.ones((1, D)))
        assert state.core is None
        assert state.rows == state.pending.count == n
    state = state.update(np.ones((1, D)))
    assert state.core is not None
    assert (state.rows, state.pending.count) == (24, 0)
    state = state.update(np.ones((61, D)))
    assert (state.rows, state.pending.count) == (85, 85 % 24)


@given(
    n=st.integers(1, 60),
    rank_of_rows=st.integers(0, 6),
    columns=st.integers(1, 40),
    rank=st.integers(1, 6),
    kept=st.integers(6, 12),
    center=st.booleans(),
    dtype=st.sampled_from(["float64", "float32"]),
    seed=st.integers(0, 99),
)
def test_any_shape_is_answered(n, rank_of_rows, columns, rank, kept, center, dtype, seed):
    """k > rank, k > n, one column, one row, zero rows: orthonormal, finite, in order, and right where nothing was lost."""
    rng = np.random.default_rng(seed)
    rank = min(rank, columns)
    rows = (rng.standard_normal((n, rank_of_rows)) @ rng.standard_normal((rank_of_rows, columns))).astype(dtype)
    state = sketch(columns=columns, rank=rank, kept=kept, kind="truncated", center=center)
    f, truth = feed(state, rows, cuts(rng, n)).factors(), Truth(rows, center=center)
    eps = np.finfo(dtype).eps
    assert f.vt.shape == (rank, columns)
    assert orthonormality(f.vt) <= 20 * eps * 12
    assert np.all(f.s >= 0)
    assert np.all(np.diff(f.s) <= 0)
    assert np.isfinite(f.explained_variance_ratio).all()
    size = max(float(np.linalg.norm(rows.astype(float))), 1e-300)
    assert np.abs(f.s - truth.s[:rank]).max() <= 400 * eps * size
    assert truth.residual(f.vt) <= f.bound.residual + (1e-14 * size) ** 2
    assert f.rows == n


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_small_streams_of_low_rank_are_certified_to_the_last_rounding(dtype):
    """Nothing is left out, so the bound is rounding alone: what V lacks of orthonormal rows must be part of it."""
    # The seeds at the end failed when it was not.
    for seed in [*range(150), 259, 333, 1253, 1898, 2337, 2696]:
        rng = np.random.default_rng(seed)
        n, rank_of_rows, columns = (int(rng.integers(*ends)) for ends in ((1, 20), (0, 6), (2, 40)))
        rank = min(int(rng.integers(1, 6)), columns)
        rows = (rng.standard_normal((n, rank_of_rows)) @ rng.standard_normal((rank_of_rows, columns))).astype(dtype)
        f = feed(sketch(columns=columns, rank=rank, kept=6, kind="truncated"), rows, cuts(rng, n)).factors()
        truth = Truth(rows)
        assert truth.residual(f.vt) <= f.bound.residual + 1e-30 * truth.energy, seed


def test_repeated_rows_and_constant_columns_are_no_trouble():
    rng = np.random.default_rng(0)
    rows = np.repeat(low_rank(rng, 40, D, 3), 5, axis=0)
    rows[:, :10] = 4.0
    f = feed(empty(), rows, 13).factors()
    assert_agrees(f, Truth(rows), units=2)
    assert np.abs(f.vt[:, :10]).max() <= 1e-14


@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_agree_where_rows_are_truncated(backend):
    rows = rows_of("1/j", np.random.default_rng(1), 400, D) + 1.0
    f, g = feed(empty(), backend(rows), 70).factors(), feed(empty(), rows, 70).factors()
    np.testing.assert_allclose(to_numpy(f.s), g.s, rtol=1e-10)
    np.testing.assert_allclose(to_numpy(f.vt), g.vt, rtol=0, atol=1e-8)
    assert f.bound.residual == pytest.approx(g.bound.residual, rel=1e-9)
    assert f.bound.estimate == pytest.approx(g.bound.estimate, rel=1e-6)


def test_twice_the_rank_buys_many_digits():
    """Recipe 0.2: a gap beyond the rank, within what is kept."""
    rng = np.random.default_rng(2)
    rows = rows_of("step", rng, 2000, D)
    truth = Truth(rows)
    errors = [np.abs(feed(empty(kept=kept), rows, 100).factors().s / truth.s[:3] - 1).max() for kept in (3, 6)]
    assert errors[1] < errors[0]
    assert errors[1] < 1e-9


def test_forgetting_follows_a_change_of_subspace():
    rng = np.random.default_rng(3)
    old, new = low_rank(rng, 300, D, 3), low_rank(rng, 300, D, 3)
    f = feed(empty(half_life=20), np.concatenate([old, new]), 50).factors()
    truth = Truth(new)
    assert np.linalg.norm(truth.rest_of_top(f.vt, 3), 2) <= 1e-3
    kept = feed(empty(), np.concatenate([old, new]), 50).factors()
    assert np.linalg.norm(truth.rest_of_top(kept.vt, 3), 2) > 0.1
    assert 28 < f.weight < 30


@pytest.mark.parametrize("shrink", [0.0, 1.0])
def test_widening_in_the_middle_of_a_truncated_stream_keeps_the_certificate(shrink):
    rng = np.random.default_rng(4)
    rows = rows_of("1/sqrt(j)", rng, 300, D + 9) + 1.0
    rows[:130, D:] = 0.0
    state = feed(empty(shrink=shrink), rows[:130, :D], 17)
    f = feed(widen(state, D + 9), rows[130:], 17).factors()
    assert_bounds(f, Truth(rows))


def test_a_stream_may_begin_and_go_on_widening_before_any_row_is_folded():
    rng = np.random.default_rng(5)
    rows = low_rank(rng, 60, D, 3)
    state = widen(empty(columns=10), 20).update(rows[:4, :20])
    state = widen(widen(state, 30).update(rows[4:9, :30]), D)
    f = feed(state, rows[9:]).factors()
    padded = rows.copy()
    padded[:4, 20:] = 0
    padded[4:9, 30:] = 0
    assert_bounds(f, Truth(padded))
    np.testing.assert_allclose(f.s, Truth(padded).s[:3], rtol=1e-3)


def test_columns_of_a_wide_state_that_stay_empty_change_nothing():
    rng = np.random.default_rng(6)
    rows = rows_of("1/j", rng, 200, D)
    f = feed(empty(), rows, 30).factors()
    g = feed(widen(empty(), D + 5), np.pad(rows, ((0, 0), (0, 5))), 30).factors()
    np.testing.assert_allclose(g.s, f.s, rtol=1e-12)
    np.testing.assert_array_equal(g.vt[:, D:], 0)


def states_bytes(state):
    return sum(to_numpy(x).nbytes for x in state.parts()[0].values())


@pytest.mark.parametrize("size", [1, 7, 100])
def test_the_state_does_not_grow(size):
    rng = np.random.default_rng(7)
    rows = rng.standard_normal((4000, D))
    state = feed(empty(decay=0.999), rows[:480], size)
    gc.collect()
    tracemalloc.start()
    state = feed(state, rows[480:960], size)
    gc.collect()
    before, stored = tracemalloc.get_traced_memory()[0], states_bytes(state)
    state = feed(state, rows[960:3840], size)
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert state.rows == 3840
    assert states_bytes(state) == stored
    # Far less than the rows that came; some of it is ctypes' own cache.
    assert after - before <= 0.1 * rows[960:3840].nbytes


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("size", [40, 500])
def test_memory_above_the_batch_stays_below_eight_times_what_is_kept(dtype, size):
    kept, d = 20, 30_000
    state = sketch(columns=d, rank=5, kept=kept, kind="truncated")
    batch = np.random.default_rng(8).standard_normal((size, d)).astype(dtype)
    state = state.update(batch).update(batch)
    tracemalloc.start()
    state = state.update(batch)
    gc.collect()
    # The state that the caller still holds is no cost of the call.
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    state = state.update(batch)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak - before <= 8 * kept * d * batch.itemsize
    assert state.rows == 4 * size


def test_a_one_row_push_does_not_copy_the_rows_that_wait():
    d = 20_000
    state = sketch(columns=d, rank=10, kept=40, kind="truncated")
    rows = np.random.default_rng(9).standard_normal((60, d))
    state = feed(state, rows[:50], 1)
    gc.collect()
    tracemalloc.start()
    for i in range(50, 60):
        state = state.update(rows[i : i + 1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 3 * d * 8
    assert state.rows == 60


def test_a_state_survives_copying_and_pickling_between_processes():
    import copy
    import pickle

    rows = rows_of("1/j", np.random.default_rng(10), 300, D)
    for kind in ("truncated", "gram"):
        state = feed(empty(kind=kind), rows[:130], 9)
        for again in (pickle.loads(pickle.dumps(state)), copy.deepcopy(state)):
            assert digest(again) == digest(state)
            assert digest(feed(again, rows[130:])) == digest(feed(state, rows[130:]))


def test_the_class_says_what_it_keeps():
    for word in ("A'A = V' diag(s^2) V + E", "tr E = discarded", "||E||_2 <= min(top, discarded)"):
        assert word in " ".join((Truncated.__doc__ or "").split())


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 16, 200])
def test_chunks_of_every_size_agree_with_the_svd_of_all_rows(chunk):
    """Recipe D1, for rows of a rank below what is kept: nothing is lost."""
    rows = low_rank(np.random.default_rng(11), 200, D, 6) + 5.0
    assert_agrees(feed(empty(), rows, chunk).factors(), Truth(rows))
    assert len(chunks(200, chunk)) == -(-200 // chunk)
