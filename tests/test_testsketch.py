"""The test sketch estimates the residual without bias, also across folds and merges, and costs the result nothing."""

from __future__ import annotations

import numpy as np
import pytest

from backends import digest
from streams import Truth, chunks, feed, rows_of
from streamsvd.planner import sketch
from streamsvd.testsketch import TEST_ROWS, merge_signs, signs_of

N, D, SEEDS = 72, 30, 200


def estimates(rows, truth, *, shards=1, **options):
    """Estimate over truth of many seeds."""
    out = np.zeros(SEEDS)
    for seed in range(SEEDS):
        empty = sketch(columns=D, rank=2, kept=6, kind="truncated", seed=seed, **options)
        states = [feed(empty, rows[part]) for part in chunks(len(rows), -(-len(rows) // shards))]
        while len(states) > 1:
            states = [states[0] + states[1], *states[2:]] if shards == 3 else _pairs(states)
        f = states[0].factors()
        out[seed] = f.bound.estimate / truth.residual(f.vt)
    return out


def _pairs(states):
    return [a + b for a, b in zip(states[::2], states[1::2], strict=True)]


def assert_unbiased(ratios):
    """Assert that the mean is 1 within four standard errors, which are small, and that the seeds differ."""
    error = ratios.std() / np.sqrt(ratios.size)
    assert 0 < error < 0.05
    assert abs(ratios.mean() - 1) <= 4 * error
    assert np.all(ratios > 0)


@pytest.mark.parametrize("shards", [1, 3, 4])
@pytest.mark.parametrize("center", [True, False])
def test_the_estimate_is_unbiased(center, shards):
    rng = np.random.default_rng(0)
    rows = rows_of("1/sqrt(j)", rng, N, D)
    if center:
        rows[: N // 3] += 3.0 * rng.standard_normal(D)
    assert_unbiased(estimates(rows, Truth(rows, center=center), shards=shards, center=center))


def test_the_estimate_is_unbiased_for_equal_shards():
    """The same rows in each shard: if rows of one number had one sign, the shards would add up coherently."""
    rows = np.tile(rows_of("flat", np.random.default_rng(1), N // 4, D), (4, 1))
    ratios = estimates(rows, Truth(rows, center=False), shards=4, center=False)
    assert abs(ratios.mean() - 1) <= 4 * ratios.std() / np.sqrt(ratios.size)
    assert ratios.mean() > 0.5


def test_the_estimate_is_unbiased_where_blocks_begin_with_the_step_of_the_mean():
    """Block after block jumps in one direction: whatever carries the step must not share a sign with the rows that follow."""
    rng = np.random.default_rng(2)
    rows = 0.1 * rng.standard_normal((90, D))
    rows += 5.0 * np.repeat(np.arange(5), 18)[:, None] * np.eye(D)[0]
    rows[::18, 0] += 20.0
    f = sketch(columns=D, rank=2, kept=6, kind="truncated").update(rows).factors()
    truth = Truth(rows)
    ratios = np.zeros(SEEDS)
    for seed in range(SEEDS):
        g = sketch(columns=D, rank=1, kept=6, kind="truncated", seed=seed).update(rows).factors()
        ratios[seed] = g.bound.estimate / truth.residual(g.vt)
    assert_unbiased(ratios)
    assert f.rows == 90


def test_the_estimate_ages_with_the_stream():
    rng = np.random.default_rng(3)
    rows = rows_of("1/sqrt(j)", rng, N, D)
    weights = rng.uniform(0, 3, N)
    truth = Truth(rows, weights=weights, decay=0.97)
    ratios = np.zeros(SEEDS)
    for seed in range(SEEDS):
        empty = sketch(columns=D, rank=2, kept=6, kind="truncated", seed=seed, decay=0.97)
        f = feed(empty, rows, 10, weights=weights).factors()
        ratios[seed] = f.bound.estimate / truth.residual(f.vt)
    assert_unbiased(ratios)


def test_the_estimate_of_a_truncated_reading_adds_what_was_dropped():
    rows = rows_of("1/j", np.random.default_rng(4), N, D)
    state = sketch(columns=D, rank=5, kept=10, kind="truncated").update(rows)
    f = state.factors()
    for k in (1, 3, 5):
        direct, cut = state.factors(k).bound.estimate, f.truncate(rank=k).bound.estimate
        assert cut == pytest.approx(direct, rel=1e-10)
    assert f.truncate(rank=1).bound.estimate > f.bound.estimate > 0


def test_seed_changes_the_estimate_and_nothing_else():
    rows = rows_of("1/j", np.random.default_rng(5), N, D)
    f, g = (sketch(columns=D, rank=3, kind="truncated", kept=6, seed=seed).update(rows).factors() for seed in (0, 1))
    np.testing.assert_array_equal(f.vt, g.vt)
    np.testing.assert_array_equal(f.s, g.s)
    assert f.bound.residual == g.bound.residual
    assert f.bound.estimate != g.bound.estimate
    assert digest(f) != digest(g)


def test_exact_moments_know_the_residual_instead_of_estimating_it():
    rows = rows_of("1/j", np.random.default_rng(6), N, D)
    f = sketch(columns=D, rank=3, kind="gram").update(rows).factors()
    assert f.bound.estimate == pytest.approx(Truth(rows).residual(f.vt), rel=1e-10)


def test_signs_depend_on_seed_and_row_number_alone():
    slots, signs = signs_of(3, 0, 1000)
    for start, stop in ((0, 10), (10, 500), (500, 1000)):
        part = signs_of(3, start, stop - start)
        np.testing.assert_array_equal(part[0], slots[start:stop])
        np.testing.assert_array_equal(part[1], signs[start:stop])
    assert set(np.unique(slots)) == set(range(TEST_ROWS))
    assert set(np.unique(signs)) == {-1.0, 1.0}
    for other in (signs_of(4, 0, 1000), signs_of(3, 0, 1000, stream=1)):
        assert abs(float((other[1] * signs).mean())) < 0.15
        assert 0.05 < float((other[0] == slots).mean()) < 0.2


@pytest.mark.parametrize("seed", [0, -1, 2**63, 2**64 + 5])
def test_any_integer_is_a_seed(seed):
    slots, signs = signs_of(seed, 0, 500)
    counts = np.bincount(slots, minlength=TEST_ROWS)
    assert counts.min() > 20
    assert abs(signs.sum()) < 120
    assert set(np.unique(merge_signs(seed, 3, 4))) <= {-1.0, 1.0}
