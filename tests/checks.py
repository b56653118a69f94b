"""The laws that every sketch obeys.

Each is a function of ``make``, which returns an empty sketch for given options, and ``backend``, which turns a NumPy array into the array
library under test. ``LAWS`` lists them; ``test_laws.py`` runs all of them on every sketch and every backend.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from backends import Backend, digest
from streams import Truth, chunks, cuts, feed, low_rank, orthonormal, projector, rows_of
from streamsvd.arrays import namespace, to_numpy
from streamsvd.planner import widen
from streamsvd.verify import orthonormality

Make = Callable[..., Any]
ROWS, COLUMNS, RANK, KEPT, EXACT_RANK = 150, 48, 3, 8, 5
EPS = {"float32": float(np.finfo(np.float32).eps), "float64": float(np.finfo(np.float64).eps)}
POLISH = {"float32": 1e-6, "float64": 1e-13}


def _rng(number: int = 0) -> np.random.Generator:
    return np.random.default_rng([20240817, number])


def _general(number: int = 0) -> np.ndarray:
    """Rows of full rank with an offset: every sketch must truncate them."""
    rng = _rng(number)
    return rows_of("1/j", rng, ROWS, COLUMNS) + 3.0 * rng.standard_normal(COLUMNS)


def _exact(number: int = 0, n: int = ROWS) -> np.ndarray:
    """Rows whose centred rank is below what is kept: no sketch may lose anything of them."""
    rng = _rng(number)
    return low_rank(rng, n, COLUMNS, EXACT_RANK) + 2.0 * rng.standard_normal(COLUMNS)


def assert_agrees(factors: Any, truth: Truth, *, dtype: str = "float64", units: float = 1.0) -> None:
    """Assert spectrum, subspace, mean, weight and energy of a stream that is kept whole, to rounding."""
    k, u, m = factors.rank, units * EPS[dtype], 4 * KEPT + 1
    s, top = to_numpy(factors.s).astype(np.float64), truth.s[0]
    assert top > 0
    np.testing.assert_allclose(s, truth.s[:k], rtol=0, atol=50 * m * u * top)
    limit = 100 * u * top / truth.gap(k)
    assert np.linalg.norm(projector(to_numpy(factors.vt)) - truth.projector(k), 2) <= limit
    scale = np.abs(truth.mean).max() + top
    np.testing.assert_allclose(to_numpy(factors.mean), truth.mean, rtol=0, atol=10 * u * scale)
    assert factors.weight == pytest.approx(truth.weight, rel=1e-13)
    assert factors.energy == pytest.approx(truth.energy, rel=max(1e-12, 50 * u))


def check_agrees_with_the_svd_of_all_rows(make: Make, backend: Backend) -> None:
    rows = _exact()
    for dtype in ("float64", "float32"):
        stored = rows.astype(dtype)
        for center in (True, False):
            truth = Truth(stored, center=center)
            state = feed(make(center=center), backend(stored), cuts(_rng(1), ROWS))
            assert state.rows == ROWS
            assert_agrees(state.factors(), truth, dtype=dtype)


def check_any_cut_gives_the_same_bits(make: Make, backend: Backend) -> None:
    rows, weights = backend(_general()), _rng(1).uniform(0, 10, ROWS)
    for options, w in (({}, None), ({"decay": 0.99}, weights)):
        whole = digest(feed(make(**options), rows, weights=w))
        for size in (1, 7, KEPT * 3, 64):
            assert digest(feed(make(**options), rows, size, weights=w)) == whole, size
        assert digest(feed(make(**options), rows, cuts(_rng(2), ROWS), weights=w)) == whole


def check_bounds_hold(make: Make, backend: Backend) -> None:
    for number, kind in enumerate(("1/j", "flat", "geometric .9", "heavy tail", "adversarial")):
        rng = _rng(number)
        rows, weights = rows_of(kind, rng, ROWS, COLUMNS) + 5, rng.uniform(0, 10, ROWS)
        for dtype in ("float64", "float32"):
            stored = rows.astype(dtype)
            f = feed(make(decay=0.99), backend(stored), 40, weights=weights).factors()
            truth = Truth(stored, weights=weights, decay=0.99)
            assert_bounds(f, truth)


def assert_bounds(f: Any, truth: Truth, *, slack: float = 1e-12) -> None:
    """Assert every statement of a bound against the truth; ``slack`` times the energy is the rounding of the truth itself."""
    k, b, tiny = f.rank, f.bound, slack * truth.energy
    low, high = b.sigma
    assert truth.energy > 0
    assert f.energy == pytest.approx(truth.energy, rel=1e-6 if "32" in str(f.vt.dtype) else slack)
    residual, spectral, best = truth.residual(to_numpy(f.vt)), truth.spectral(to_numpy(f.vt)), truth.optimal(k)
    assert residual <= b.residual + tiny
    assert spectral <= b.spectral + tiny
    assert b.spectral <= b.residual
    assert b.optimal[0] - tiny <= best <= b.optimal[1] + tiny
    true = truth.s[:k] ** 2
    assert np.all(low**2 - tiny <= true)
    assert np.all(true <= high**2 + tiny)
    assert np.all(high >= low)
    assert np.all(low >= 0)
    # Not vacuous: no sketch can lose more than there is, and what it says it lost is near what it lost.
    assert b.residual <= truth.energy * (1 + 1e-9) + 2 * b.rounding
    assert b.relative == pytest.approx(b.residual / f.energy, rel=1e-9)
    if b.angle is not None:
        sines = np.linalg.norm(truth.rest_of_top(to_numpy(f.vt), k), 2)
        assert sines <= b.angle + 1e-12 * truth.s[0] / truth.gap(k)


def check_components_are_orthonormal_and_ordered(make: Make, backend: Backend) -> None:
    for dtype in ("float64", "float32"):
        f = feed(make(), backend(_general().astype(dtype)), 11).factors()
        s, vt = to_numpy(f.s), to_numpy(f.vt)
        assert orthonormality(vt) <= max(20 * EPS[dtype] * KEPT**0.5, POLISH[dtype])
        assert np.all(s > 0)
        assert np.all(np.diff(s) <= 0)
        largest = vt[np.arange(RANK), np.abs(vt).argmax(axis=1)]
        assert np.all(largest > 0)


def check_stays_where_the_data_is(make: Make, backend: Backend) -> None:
    for dtype in ("float64", "float32"):
        rows = backend(_general().astype(dtype))
        f = feed(make(), rows, 50).factors()
        for x in (f.s, f.vt):
            assert type(x) is type(rows)
            assert x.dtype == rows.dtype
            assert namespace(x) is namespace(rows)
        if hasattr(rows, "device"):
            assert f.vt.device == rows.device
        Z = f.transform(rows)
        assert type(Z) is type(rows)
        assert Z.shape == (ROWS, RANK)
        assert Z.dtype == rows.dtype


def check_weights_are_repetitions(make: Make, backend: Backend) -> None:
    rows, weights = _exact(), _rng(3).integers(1, 5, ROWS)
    weighted = feed(make(), backend(rows), 31, weights=weights).factors()
    repeated = feed(make(), backend(np.repeat(rows, weights, axis=0)), 31).factors()
    truth = Truth(rows, weights=weights)
    assert_agrees(weighted, truth)
    assert_agrees(repeated, truth)
    assert (weighted.rows, repeated.rows) == (ROWS, weights.sum())
    quadrupled = feed(make(), backend(rows), 31, weights=4.0 * weights).factors()
    np.testing.assert_array_equal(to_numpy(quadrupled.s), 2 * to_numpy(weighted.s))
    np.testing.assert_array_equal(to_numpy(quadrupled.vt), to_numpy(weighted.vt))


def check_rows_of_weight_zero_are_absent(make: Make, backend: Backend) -> None:
    rows, weights = _general(), _rng(4).integers(0, 3, ROWS).astype(float)
    present = np.flatnonzero(weights)
    assert 0 < present.size < ROWS
    for options in ({}, {"decay": 0.97}):
        weighted = feed(make(**options), backend(rows), 13, weights=weights)
        without = feed(make(**options), backend(rows[present]), 13, weights=weights[present])
        assert digest(weighted) == digest(without)
        assert weighted.rows == present.size


def check_decay_weights_each_row_by_its_age(make: Make, backend: Backend) -> None:
    rows, weights = _exact(), _rng(5).uniform(0.1, 10, ROWS)
    for decay in (0.9, 0.99, 0.9999):
        truth = Truth(rows, weights=weights, decay=decay)
        for size in (1, 7, ROWS):
            f = feed(make(decay=decay), backend(rows), size, weights=weights).factors()
            assert_agrees(f, truth)
            np.testing.assert_allclose(to_numpy(f.s), truth.s[:RANK], rtol=1e-12)
        effective = truth.weight**2 / (truth.row_weights**2).sum()
        assert f.effective_rows == pytest.approx(effective, rel=1e-12)
    one = feed(make(decay=1.0), backend(rows), 20).factors()
    none = feed(make(), backend(rows), 20).factors()
    assert digest(one) == digest(none)


def check_half_life_in_seconds_ages_by_timestamps(make: Make, backend: Backend) -> None:
    rows, rng = _exact(), _rng(6)
    times = np.cumsum(rng.exponential(2.0, ROWS))
    truth = Truth(rows, ages=0.5 ** ((times[-1] - times) / 30.0))
    state = make(half_life="30s")
    for part in cuts(rng, ROWS):
        state = state.update(backend(rows[part]), timestamps=times[part])
    assert_agrees(state.factors(), truth)
    before = digest(state)
    for stop in (3, ROWS):
        halfway = make(half_life="30s").update(backend(rows[:stop]), timestamps=times[:stop])
        again = type(halfway).from_parts(*halfway.parts())
        a, b = (x.update(backend(rows), timestamps=times + times[-1]) for x in (halfway, again))
        assert digest(a) == digest(b)
        with pytest.raises(ValueError, match="order"):
            again.update(backend(rows[:2]), timestamps=times[stop - 1] - np.ones(2))
    with pytest.raises(ValueError, match="order"):
        state.update(backend(rows[:2]), timestamps=times[:2])
    assert digest(state) == before


def check_merge_is_the_whole_stream(make: Make, backend: Backend) -> None:
    rows, weights = _exact(), _rng(7).uniform(0.5, 2, ROWS)
    rows[: ROWS // 3] += 40.0 * orthonormal(_rng(8), 1, COLUMNS)[0]
    truth = Truth(rows, weights=weights)
    edges = [0, 1, 50, 50, 97, ROWS]
    states = [feed(make(), backend(rows[a:b]), 9, weights=weights[a:b]) for a, b in itertools.pairwise(edges)]
    left = states[0]
    for state in states[1:]:
        left = left.merge(state)
    right = states[-1]
    for state in states[-2::-1]:
        right = state + right
    for merged in (left, right):
        assert merged.rows == ROWS
        assert_agrees(merged.factors(), truth, units=4)


def check_merge_commutes_and_leaves_its_inputs(make: Make, backend: Backend) -> None:
    rows = _general()
    a, b = feed(make(), backend(rows[:61]), 9), feed(make(), backend(rows[61:]), 9)
    before = digest(a), digest(b)
    ab, ba = a.merge(b), b.merge(a)
    assert (digest(a), digest(b)) == before
    f, g = ab.factors(), ba.factors()
    top = float(f.s[0])
    np.testing.assert_allclose(to_numpy(f.s), to_numpy(g.s), rtol=0, atol=20 * EPS["float64"] * top)
    np.testing.assert_allclose(projector(to_numpy(f.vt)), projector(to_numpy(g.vt)), rtol=0, atol=1e-12)
    assert digest(f) == digest(g)


def check_merge_with_an_empty_state_is_identity(make: Make, backend: Backend) -> None:
    state = feed(make(), backend(_general()), 9)
    assert digest(state.merge(make()).factors()) == digest(state.factors())
    assert digest(make().merge(state).factors()) == digest(state.factors())
    assert make().merge(make()).rows == 0


def check_reading_changes_nothing_later(make: Make, backend: Backend) -> None:
    rows = _general()
    other = feed(make(), backend(_general(1)), 20)
    quiet = read = make()
    for part in chunks(ROWS, 10):
        quiet = quiet.update(backend(rows[part]))
        read = read.update(backend(rows[part]))
        first = digest(read.factors())
        read.merge(other)
        read.parts()
        assert digest(read.factors()) == first
    assert digest(read) == digest(quiet)


def check_branches_do_not_see_each_other(make: Make, backend: Backend) -> None:
    rows, one, two = _general(), _general(1), _general(2)
    trunk = feed(make(), backend(rows[:70]), 7)
    before = digest(trunk)
    a, b = trunk, trunk
    for part in chunks(40, 5):
        a, b = a.update(backend(one[part])), b.update(backend(two[part]))
    assert digest(trunk) == before
    assert digest(a) == digest(feed(make(), backend(np.concatenate([rows[:70], one[:40]]))))
    assert digest(b) == digest(feed(make(), backend(np.concatenate([rows[:70], two[:40]]))))
    assert digest(a) != digest(b)


def check_arguments_are_copied_and_never_written(make: Make, backend: Backend) -> None:
    rows, weights = _general(), _rng(9).uniform(1, 2, ROWS)
    expected = feed(make(), backend(rows), 17, weights=weights)
    batch, w = backend(rows), weights.copy()
    state = feed(make(), batch, 17, weights=w)
    state.factors().transform(batch)
    np.testing.assert_array_equal(to_numpy(batch), rows)
    np.testing.assert_array_equal(w, weights)
    reused = make()
    for part in chunks(ROWS, 17):
        batch = backend(rows[part])
        w = weights[part].copy()
        reused = reused.update(batch, weights=w)
        w[:] = np.nan
        if not isinstance(batch, np.ndarray) or batch.flags.writeable:
            batch[:, :] = float("nan")
    assert digest(reused) == digest(expected)


def check_a_rejected_batch_changes_nothing(make: Make, backend: Backend) -> None:
    rows = _general()
    state = feed(make(), backend(rows[:70]), 7)
    before = digest(state)
    bad = rows[70:90].copy()
    bad[11, 5] = np.nan
    with pytest.raises(ValueError, match="row 11, column 5"):
        state.update(backend(bad))
    bad[11, 5] = np.inf
    with pytest.raises(ValueError, match="NaN or infinity"):
        state.update(backend(bad))
    with pytest.raises(ValueError, match=f"47 columns.*has {COLUMNS}"):
        state.update(backend(rows[:3, :-1].copy()))
    with pytest.raises(ValueError, match="2-D"):
        state.update(backend(rows[0]))
    with pytest.raises(TypeError, match="complex"):
        state.update(backend(rows.astype(complex)))
    for weights in (-np.ones(20), np.full(20, np.nan), np.ones(19)):
        with pytest.raises(ValueError, match="weight"):
            state.update(backend(rows[70:90]), weights=weights)
    assert digest(state) == before
    assert digest(feed(state, backend(rows[70:]), 9)) == digest(feed(make(), backend(rows), 30))


def check_an_empty_batch_changes_nothing(make: Make, backend: Backend) -> None:
    nothing = backend(np.zeros((0, COLUMNS)))
    assert make().update(nothing).rows == 0
    state = feed(make(decay=0.9), backend(_general()), 9)
    assert digest(state.update(nothing)) == digest(state)
    assert digest(state.update(nothing, weights=np.zeros(0))) == digest(state)


def check_restored_parts_continue_in_the_same_bits(make: Make, backend: Backend) -> None:
    rows, weights = _general(), _rng(10).uniform(0.5, 2, ROWS)
    for stop in (1, 70, ROWS):
        state = feed(make(decay=0.999), backend(rows[:stop]), 7, weights=weights[:stop])
        arrays, meta = state.parts()
        arrays = {name: _frozen(x) for name, x in arrays.items()}
        again = type(state).from_parts(arrays, meta)
        assert digest(again) == digest(state)
        assert digest(again.factors()) == digest(state.factors())
        a, b = (feed(x, backend(rows), 13, weights=weights) for x in (state, again))
        assert digest(a) == digest(b)
        assert digest(a.merge(state)) == digest(b.merge(again))


def _frozen(x: Any) -> Any:
    if isinstance(x, np.ndarray):
        x = x.copy()
        x.flags.writeable = False
    return x


def check_powers_of_two_scale_every_bit(make: Make, backend: Backend) -> None:
    rows = _general()
    for center in (True, False):
        base = feed(make(center=center), backend(rows), 40).factors()
        for e in (-900, -500, 500, 900):
            f = feed(make(center=center), backend(np.ldexp(rows, e)), 40).factors()
            np.testing.assert_array_equal(to_numpy(f.vt), to_numpy(base.vt))
            np.testing.assert_array_equal(to_numpy(f.s), np.ldexp(to_numpy(base.s), e))
            np.testing.assert_array_equal(to_numpy(f.mean), np.ldexp(to_numpy(base.mean), e))
            assert f.norm == np.ldexp(base.norm, e)
            assert f.bound.residual_norm == np.ldexp(base.bound.residual_norm, e)
            np.testing.assert_array_equal(f.bound.sigma[1], np.ldexp(base.bound.sigma[1], e))
            np.testing.assert_array_equal(to_numpy(f.explained_variance_ratio), to_numpy(base.explained_variance_ratio))
            assert f.bound.relative == base.bound.relative > 0


def check_widening_adds_columns_that_were_zero(make: Make, backend: Backend) -> None:
    rows = _exact()
    late = np.concatenate([rows, _exact(1, n=ROWS)[:, :6] * 0.5], axis=1)
    late[:80, COLUMNS:] = 0.0
    state = feed(make(), backend(rows[:80]), 9)
    before = digest(state)
    wide = widen(state, COLUMNS + 6)
    assert digest(state) == before
    assert (wide.columns, wide.rows) == (COLUMNS + 6, 80)
    wide = feed(wide, backend(late[80:]), 9)
    whole = feed(make(columns=COLUMNS + 6), backend(late), 9)
    f, g = wide.factors(), whole.factors()
    limit = 1e-11 if f.bound.relative < 1e-9 else 2 * f.bound.relative**0.5
    np.testing.assert_allclose(to_numpy(f.s), to_numpy(g.s), rtol=limit)
    np.testing.assert_allclose(to_numpy(f.mean), to_numpy(g.mean), rtol=0, atol=1e-13)
    assert widen(wide, COLUMNS + 6) is wide
    with pytest.raises(ValueError, match="only be added"):
        widen(wide, COLUMNS)


def check_degenerate_streams_are_answered(make: Make, backend: Backend) -> None:
    rng = _rng(11)
    constant = np.tile(rng.standard_normal(COLUMNS), (ROWS, 1))
    repeated = np.tile(rng.standard_normal((2, COLUMNS)), (ROWS // 2, 1))
    single = rng.standard_normal((1, COLUMNS))
    zero = np.zeros((ROWS, COLUMNS))
    for rows, rank in ((constant, 0), (repeated, 1), (single, 0), (zero, 0)):
        truth, f = Truth(rows), feed(make(), backend(rows), 7).factors()
        size = max(1.0, np.abs(rows).max() * rows.shape[0] ** 0.5)
        s, vt = to_numpy(f.s), to_numpy(f.vt)
        assert vt.shape == (RANK, COLUMNS)
        assert orthonormality(vt) <= 1e-13
        np.testing.assert_allclose(s[:rank], truth.s[:rank], rtol=1e-12)
        assert np.all(np.abs(s[rank:]) <= 1e-13 * size)
        np.testing.assert_allclose(to_numpy(f.mean), truth.mean, rtol=1e-14, atol=1e-15)
        ratio = to_numpy(f.explained_variance_ratio)
        assert np.isfinite(ratio).all()
        assert f.bound.residual <= (1e-12 * size) ** 2 + 1e-12 * truth.energy
        assert truth.residual(vt) <= f.bound.residual + 1e-24 * size**2
        assert np.isfinite([f.noise_variance, f.bound.relative, f.bound.spectral, f.bound.estimate]).all()
    exact = feed(make(center=False), backend(constant), 7).factors()
    assert float(exact.s[0]) == pytest.approx(np.linalg.norm(constant), rel=1e-13)
    assert float(exact.explained_variance_ratio[0]) == pytest.approx(1, rel=1e-13)


def check_two_streams_of_one_seed_are_one(make: Make, backend: Backend) -> None:
    rows = backend(_general())
    one, two, other = (feed(make(seed=seed), rows, 40) for seed in (5, 5, 6))
    assert digest(one) == digest(two)
    np.testing.assert_array_equal(to_numpy(one.factors().vt), to_numpy(other.factors().vt))


LAWS = [
    check_agrees_with_the_svd_of_all_rows,
    check_an_empty_batch_changes_nothing,
    check_any_cut_gives_the_same_bits,
    check_arguments_are_copied_and_never_written,
    check_a_rejected_batch_changes_nothing,
    check_bounds_hold,
    check_branches_do_not_see_each_other,
    check_components_are_orthonormal_and_ordered,
    check_decay_weights_each_row_by_its_age,
    check_degenerate_streams_are_answered,
    check_half_life_in_seconds_ages_by_timestamps,
    check_merge_commutes_and_leaves_its_inputs,
    check_merge_is_the_whole_stream,
    check_merge_with_an_empty_state_is_identity,
    check_powers_of_two_scale_every_bit,
    check_reading_changes_nothing_later,
    check_restored_parts_continue_in_the_same_bits,
    check_rows_of_weight_zero_are_absent,
    check_stays_where_the_data_is,
    check_two_streams_of_one_seed_are_one,
    check_weights_are_repetitions,
    check_widening_adds_columns_that_were_zero,
]
