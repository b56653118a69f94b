"""Sparse rows give what the same rows give when they are dense, without being made dense."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import sparse

from backends import digest
from checks import assert_bounds
from streams import Truth, cuts, feed, projector
from streamsvd.planner import sketch, widen

N, D = 200, 70
KINDS = ["gram", "truncated"]


def empty(kind, **options):
    return sketch(**{"columns": D, "rank": 3, "kept": 8, "kind": kind, **options})


def sparse_rows(seed=0, n=N, d=D, density=0.15, rank=None, offset=0.0):
    """CSR rows (n, d) with values of that mean, falling off to the right; or of a given rank."""
    rng = np.random.default_rng(seed)
    rows = sparse.random_array((n, d), density=density, format="csr", rng=rng, data_sampler=rng.standard_normal)
    rows.data += offset
    if rank is None:
        return sparse.csr_array(rows @ sparse.diags_array(1.0 / np.arange(1, d + 1)))
    basis = sparse.random_array((rank, d), density=0.3, format="csr", rng=rng, data_sampler=rng.standard_normal)
    return sparse.csr_array(rows[:, :rank] @ basis)


@pytest.mark.parametrize("options", [{}, {"center": False}, {"decay": 0.99}], ids=["centred", "plain", "aged"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_sparse_equals_dense(kind, dtype, options):
    rows = sparse_rows(rank=5, offset=0.5).astype(dtype)
    weights = np.random.default_rng(1).uniform(0, 3, N)
    f = feed(empty(kind, **options), rows, cuts(np.random.default_rng(2), N), weights=weights).factors()
    g = feed(empty(kind, **options), rows.toarray(), 31, weights=weights).factors()
    truth = Truth(rows.toarray(), weights=weights, **options)
    eps = np.finfo(dtype).eps
    for x in (f, g):
        assert np.abs(x.s - truth.s[:3]).max() <= 100 * eps * truth.s[0]
        assert np.abs(projector(x.vt) - truth.projector(3)).max() <= 1000 * eps * truth.s[0] / truth.gap(3)
        assert_bounds(x, truth)
    np.testing.assert_allclose(f.mean, g.mean, rtol=0, atol=1e-14 if dtype == "float64" else 1e-13)
    assert f.vt.dtype == dtype


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_bounds_hold_for_sparse_streams_that_are_truncated(kind, dtype):
    for seed in range(6):
        rows = sparse_rows(seed, density=0.3, offset=0.3 * seed).astype(dtype)
        f = feed(empty(kind, decay=0.999), rows, 40).factors()
        assert_bounds(f, Truth(rows.toarray(), decay=0.999))


@pytest.mark.parametrize("offset", [1e3, 1e6])
@pytest.mark.parametrize("kind", KINDS)
def test_a_large_mean_of_sparse_rows_does_not_cancel(kind, offset):
    """Rank-one centring loses ``eps |mean|^2``; rows whose mean is large are centred first, or what was lost is accounted for."""
    rows = sparse_rows(3, density=1.0, rank=4, offset=offset)
    truth = Truth(rows.toarray())
    f = feed(empty(kind), rows, 50).factors()
    assert_bounds(f, truth)
    assert np.abs(f.s / truth.s[:3] - 1).max() <= 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_sparse_and_dense_batches_mix(kind):
    rows = sparse_rows(4, rank=5, offset=0.2)
    state = empty(kind)
    for i, part in enumerate(cuts(np.random.default_rng(5), N)):
        state = state.update(rows[part] if i % 2 else rows[part].toarray())
    truth, f = Truth(rows.toarray()), state.factors()
    assert state.rows == N
    np.testing.assert_allclose(f.s, truth.s[:3], rtol=1e-12)
    assert_bounds(f, truth)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sparse_state_is_widened_merged_and_restored(kind):
    rows = sparse_rows(6, rank=4, offset=0.2)
    state = feed(empty(kind), rows[:90], 20)
    wide = feed(widen(state, D + 5), sparse.hstack([rows[90:], sparse.csr_array((N - 90, 5))]).tocsr(), 20)
    np.testing.assert_allclose(wide.factors().s, Truth(rows.toarray()).s[:3], rtol=1e-12)
    assert wide.factors().vt.shape == (3, D + 5)
    again = type(state).from_parts(*state.parts())
    assert digest(again.factors()) == digest(state.factors())
    assert digest(feed(again, rows[90:]).factors()) == digest(feed(state, rows[90:]).factors())
    merged = (state + feed(empty(kind), rows[90:], 11)).factors()
    np.testing.assert_allclose(merged.s, Truth(rows.toarray()).s[:3], rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_callers_sparse_rows_are_copied_and_never_written(kind):
    rows = sparse_rows(7)
    untidy = rows.copy()
    for i in range(N):
        untidy.indices[untidy.indptr[i] : untidy.indptr[i + 1]] = rows.indices[rows.indptr[i] : rows.indptr[i + 1]][
            ::-1
        ]
        untidy.data[untidy.indptr[i] : untidy.indptr[i + 1]] = rows.data[rows.indptr[i] : rows.indptr[i + 1]][::-1]
    untidy = sparse.csr_array((untidy.data, untidy.indices, untidy.indptr), shape=rows.shape)
    indices, data = untidy.indices.copy(), untidy.data.copy()
    state = empty(kind).update(untidy[:15]).update(untidy[15:18])
    expected = digest(empty(kind).update(rows[:15]).update(rows[15:18]).factors())
    np.testing.assert_array_equal(untidy.indices, indices)
    np.testing.assert_array_equal(untidy.data, data)
    assert digest(state.factors()) == expected
    batch = rows[:15].copy()
    state = empty(kind).update(batch)
    batch.data[:] = np.nan
    assert digest(state.factors()) == digest(empty(kind).update(rows[:15]).factors())


@pytest.mark.parametrize("power", [-160, 160])
@pytest.mark.parametrize("kind", KINDS)
def test_sparse_rows_may_be_of_any_scale(kind, power):
    rows = sparse_rows(9, rank=5, offset=0.5)
    base = feed(empty(kind), rows, 30).factors()
    f = feed(empty(kind), rows * 10.0**power, 30).factors()
    np.testing.assert_allclose(f.s / 10.0**power, base.s, rtol=1e-12)
    assert f.bound.relative == pytest.approx(base.bound.relative, rel=1e-9)


def test_entries_stored_twice_add_up():
    doubled = sparse.coo_array(([1.0, 2.0, 4.0], ([0, 0, 1], [3, 3, 5])), shape=(2, D))
    f = empty("truncated", center=False).update(doubled).factors()
    np.testing.assert_allclose(f.s[:2], [4, 3], rtol=1e-14)


def test_wide_sparse_rows_are_never_densified():
    rng = np.random.default_rng(8)
    d, n = 60_000, 240
    rows = sparse.random_array((n, d), density=1e-3, format="csr", rng=rng)
    state = sketch(columns=d, rank=2, kept=6, kind="truncated").update(rows[:40])
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    f = state.update(rows[40:]).factors()
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert f.rows == n
    assert float(f.s[0]) > 0
    assert peak < 0.5 * n * d * 8
    X = rows.toarray()
    X -= X.mean(axis=0)
    assert float(np.linalg.norm(X @ f.vt.T) ** 2) >= 0.5 * float((f.s**2).sum())
