"""Exact moments: nothing is lost to truncation, so every statement can be checked to rounding."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from backends import BACKENDS, digest
from checks import EPS, assert_bounds
from streams import STREAMS, Truth, cuts, feed, projector, rows_of
from streamsvd.arrays import to_numpy
from streamsvd.planner import sketch

D = 40


def empty(**options):
    return sketch(**{"columns": D, "rank": 4, "kind": "gram", **options})


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", STREAMS)
def test_every_stream_is_known_to_rounding(kind, dtype):
    for seed in range(3):
        rng = np.random.default_rng([seed, 3])
        n = int(rng.integers(50, 300))
        rows = (rows_of(kind, rng, n, D, dtype) + float(rng.choice([0, 1e3]))).astype(dtype)
        weights = rng.uniform(0, 10, n)
        state = feed(empty(decay=0.999), rows, cuts(rng, n), weights=weights)
        truth = Truth(rows, weights=weights, decay=0.999)
        f = state.factors()
        assert_bounds(f, truth)
        assert np.abs(f.s.astype(float) ** 2 - truth.s[:4] ** 2).max() <= 50 * EPS[dtype] * truth.s[0] ** 2
        tiny = (4 * EPS[dtype]) ** 2 * truth.energy + 1e-15 * truth.energy
        assert truth.residual(f.vt) == pytest.approx(truth.optimal(4), rel=1e-9, abs=tiny)


def test_the_bound_is_the_truth_to_rounding():
    rng = np.random.default_rng(0)
    rows = rows_of("1/sqrt(j)", rng, 500, D)
    f, truth = feed(empty(), rows, 60).factors(), Truth(rows)
    assert f.bound.residual == pytest.approx(truth.optimal(4), rel=1e-10)
    assert f.bound.spectral == pytest.approx(truth.s[4] ** 2, rel=1e-10)
    np.testing.assert_allclose(f.bound.sigma[0], truth.s[:4], rtol=1e-10)
    np.testing.assert_allclose(f.bound.sigma[1], truth.s[:4], rtol=1e-10)
    np.testing.assert_allclose(f.bound.optimal, truth.optimal(4), rtol=1e-10)
    assert f.bound.angle is not None
    assert f.bound.angle <= 1e-9
    assert 0 < f.bound.rounding <= 1e-10 * f.energy


def test_every_component_can_be_read():
    rng = np.random.default_rng(1)
    rows = rows_of("geometric .9", rng, 300, D)
    state, truth = feed(empty(rank=1), rows), Truth(rows)
    for rank in (1, 7, D):
        f = state.factors(rank)
        np.testing.assert_allclose(f.s, truth.s[:rank], rtol=1e-12)
        np.testing.assert_allclose(projector(f.vt), truth.projector(rank), rtol=0, atol=1e-10)
    whole = state.factors(D)
    np.testing.assert_allclose((whole.vt.T * whole.s**2) @ whole.vt, truth.moments, rtol=0, atol=1e-12 * truth.energy)
    assert float(whole.explained_variance_ratio.sum()) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("center", [True, False])
def test_unit_scale_is_the_svd_of_standardised_columns(center, backend):
    rng = np.random.default_rng(2)
    rows = rows_of("1/j", rng, 400, D) * np.logspace(-3, 3, D) + 5 * rng.standard_normal(D)
    weights = rng.uniform(0.5, 2, 400)
    f = feed(empty(scale="unit", center=center), backend(rows), 37, weights=weights).factors()
    mean = weights @ rows / weights.sum() if center else np.zeros(D)
    spread = np.sqrt(weights @ (rows - mean) ** 2 / (weights.sum() - center))
    truth = Truth((rows - mean) / spread, center=False, weights=weights)
    np.testing.assert_allclose(to_numpy(f.scale), spread, rtol=1e-12)
    np.testing.assert_allclose(to_numpy(f.s), truth.s[:4], rtol=1e-11)
    np.testing.assert_allclose(projector(to_numpy(f.vt)), truth.projector(4), rtol=0, atol=1e-9)
    np.testing.assert_allclose(to_numpy(f.mean), mean, rtol=1e-12, atol=1e-14)
    assert f.energy == pytest.approx(D * (weights.sum() - center), rel=1e-12)
    assert_bounds(f, truth)
    Z = to_numpy(f.transform(backend(rows)))
    np.testing.assert_allclose(Z, (rows - mean) / spread @ to_numpy(f.vt).T, rtol=0, atol=1e-11)


def test_unit_scale_leaves_constant_columns_at_zero():
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((100, D))
    rows[:, 3] = 7.5
    f = feed(empty(scale="unit", rank=D - 1), rows, 30).factors()
    assert np.isfinite(f.vt).all()
    assert np.abs(f.vt[:, 3]).max() <= 1e-12
    assert np.all(f.scale > 0)
    assert float((f.s**2).sum()) == pytest.approx(99 * (D - 1), rel=1e-12)


def test_unit_scale_survives_extreme_units():
    rng = np.random.default_rng(4)
    rows = rows_of("1/j", rng, 200, D)
    base = feed(empty(scale="unit"), rows, 30).factors()
    for unit in (1e-160, 1e160):
        f = feed(empty(scale="unit"), rows * unit, 30).factors()
        np.testing.assert_allclose(f.s, base.s, rtol=1e-11)
        assert f.bound.relative == pytest.approx(base.bound.relative, rel=1e-11)
        np.testing.assert_allclose(f.scale / unit, base.scale, rtol=1e-12)


def test_the_triangle_is_stored_packed():
    state = feed(empty(), np.random.default_rng(5).standard_normal((900, D)))
    arrays, _ = state.parts()
    assert arrays["scatter"].shape == (D * (D + 1) // 2,)
    again = type(state).from_parts(*state.parts())
    assert digest(again.factors(D)) == digest(state.factors(D))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_memory_stays_below_three_squares(dtype):
    d = 600
    rng = np.random.default_rng(6)
    state = sketch(columns=d, rank=5, kind="gram").update(rng.standard_normal((800, d)).astype(dtype))
    batch = rng.standard_normal((500, d)).astype(dtype)
    tracemalloc.start()
    state = state.update(batch)
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(6):
        state = state.update(batch)
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # What the call itself must hold: the state before it, which its caller still has, is not counted twice.
    assert peak <= 3 * d * d * 8
    assert now <= before + 0.1 * d * d * 8
