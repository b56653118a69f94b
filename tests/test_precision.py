"""Scale, offset and precision: results follow the data from 1e-300 to 1e300, under offsets of 1e12 deviations, and in float32."""

from __future__ import annotations

import numpy as np
import pytest

from backends import digest
from checks import EPS
from streams import Truth, chunks, feed, low_rank, projector, rows_of, with_spectrum
from streamsvd.planner import sketch
from streamsvd.verify import orthonormality

KINDS = ["gram", "truncated"]
D = 48


def empty(kind, **options):
    return sketch(**{"columns": D, "rank": 3, "kept": 8, "kind": kind, **options})


def general(seed=0, n=150):
    return rows_of("1/j", np.random.default_rng(seed), n, D)


@pytest.mark.parametrize("power", [-160, -150, 150, 160])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_powers_of_ten_change_nothing_but_the_scale(kind, center, power):
    rows = general()
    if center:
        rows += 3.0
    f = feed(empty(kind, center=center), rows * 10.0**power, 40).factors()
    base = feed(empty(kind, center=center), rows, 40).factors()
    unit = 10.0**power
    np.testing.assert_allclose(f.s / unit, base.s, rtol=1e-13)
    np.testing.assert_allclose(projector(f.vt), projector(base.vt), rtol=0, atol=1e-12)
    np.testing.assert_allclose(f.explained_variance_ratio, base.explained_variance_ratio, rtol=1e-12)
    assert f.bound.relative == pytest.approx(base.bound.relative, rel=1e-12)
    assert f.norm / unit == pytest.approx(base.norm, rel=1e-13)
    for mine, theirs in zip(f.bound.sigma, base.bound.sigma, strict=True):
        np.testing.assert_allclose(mine / unit, theirs, rtol=1e-12)
    assert f.bound.residual_norm / unit == pytest.approx(base.bound.residual_norm, rel=1e-12)
    if abs(power) == 150:
        assert f.energy / unit / unit == pytest.approx(base.energy, rel=1e-12)
        assert f.bound.residual / unit / unit == pytest.approx(base.bound.residual, rel=1e-12)
        assert f.bound.estimate / unit / unit == pytest.approx(base.bound.estimate, rel=1e-11)
        assert f.noise_variance / unit / unit == pytest.approx(base.noise_variance, rel=1e-11)
        np.testing.assert_allclose(f.explained_variance / unit / unit, base.explained_variance, rtol=1e-12)


@pytest.mark.parametrize("power", [-30, 30])
@pytest.mark.parametrize("kind", KINDS)
def test_float32_keeps_its_scale(kind, power):
    rows = general()
    f = feed(empty(kind), (rows * 10.0**power).astype("float32"), 40).factors()
    base = feed(empty(kind, dtype="float64"), rows, 40).factors()
    assert f.s.dtype == np.float32
    np.testing.assert_allclose(f.s.astype(float) / 10.0**power, base.s, rtol=0, atol=50 * EPS["float32"] * base.s[0])
    np.testing.assert_allclose(f.explained_variance_ratio, base.explained_variance_ratio, rtol=1e-4)
    assert f.bound.relative == pytest.approx(base.bound.relative, rel=1e-3)
    e = 100 if power > 0 else -100
    exact = feed(empty(kind), np.ldexp(rows.astype("float32"), e), 40).factors()
    plain = feed(empty(kind), rows.astype("float32"), 40).factors()
    np.testing.assert_array_equal(exact.vt, plain.vt)
    np.testing.assert_array_equal(exact.s, np.ldexp(plain.s, e))


@pytest.mark.parametrize("kind", KINDS)
def test_huge_and_tiny_columns_together_stay_finite(kind):
    rows = general()
    rows[:, ::2] *= 1e150
    rows[:, 1::2] *= 1e-150
    f = feed(empty(kind), rows, 40).factors()
    big = Truth(rows[:, ::2] * 1e-150)
    np.testing.assert_allclose(f.s / 1e150, big.s[:3], rtol=1e-3 if kind == "truncated" else 1e-12)
    for value in (f.norm, f.energy, f.bound.relative, f.bound.residual, f.bound.spectral, *f.bound.optimal):
        assert np.isfinite(value)
        assert value > 0
    assert np.isfinite(f.explained_variance_ratio).all()
    assert np.isfinite(f.transform(rows)).all()
    assert orthonormality(f.vt) <= 1e-13


@pytest.mark.parametrize("jump", [(1e-150, 1e150), (1e150, 1e-150), (1e-300, 1e300), (1e300, 1e-300)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_may_jump_from_one_end_of_the_range_to_the_other(kind, jump):
    first, second = general(0), general(1)
    f = feed(empty(kind, center=False), np.concatenate([first * jump[0], second * jump[1]]), 40).factors()
    loud = first if jump[0] > jump[1] else second
    truth = Truth(loud, center=False)
    np.testing.assert_allclose(f.s / max(jump), truth.s[:3], rtol=1e-3 if kind == "truncated" else 1e-12)
    assert 0 < f.bound.relative < 1
    assert orthonormality(f.vt) <= 1e-13


@pytest.mark.parametrize("kind", KINDS)
def test_the_exponent_follows_a_stream_that_fades(kind):
    """Decay lets old rows sink by many orders of magnitude; new small ones must then be seen at full precision."""
    loud, quiet = general(0) * 1e200, general(1, 600)
    options = {"center": False, "decay": 0.1}
    f = feed(empty(kind, **options), np.concatenate([loud, quiet])).factors()
    alone = feed(empty(kind, **options), quiet).factors()
    np.testing.assert_allclose(f.s, alone.s, rtol=1e-12)
    np.testing.assert_allclose(projector(f.vt), projector(alone.vt), rtol=0, atol=1e-11)
    assert f.norm == pytest.approx(alone.norm, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_shards_may_be_of_any_scale(kind):
    small, large = general(0), general(1)
    a, b = feed(empty(kind), small * 1e-160, 40), feed(empty(kind), large * 1e160, 40)
    alone = feed(empty(kind), large, 40).factors()
    for merged in (a + b, b + a):
        f = merged.factors()
        np.testing.assert_allclose(f.s / 1e160, alone.s, rtol=0.05)
        assert f.rows == 300
        assert np.isfinite(f.bound.relative)
    both = (feed(empty(kind), small * 1e160, 40) + b).factors()
    np.testing.assert_allclose(
        both.s / 1e160, Truth(np.concatenate([small, large])).s[:3], rtol=1e-2 if kind == "truncated" else 1e-12
    )


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6, 1e8, 1e12])
@pytest.mark.parametrize("kind", KINDS)
def test_an_offset_costs_nothing(kind, offset):
    """Recipe D7 allows ``10 u |c| / std``; centring at a fixed shift first makes it a few roundings of the spread itself."""
    rng = np.random.default_rng(3)
    rows = low_rank(rng, 300, D, 5) + offset * np.where(rng.random(D) < 0.5, -1.0, 1.0)
    truth = Truth(rows)
    state = empty(kind)
    f = feed(state, rows, 40).factors()
    std = truth.s[0] / np.sqrt(len(rows))
    allowed = 300 * EPS["float64"] * max(1.0, 10 * offset * 1e-9 / std)
    assert np.abs(f.s / truth.s[:3] - 1).max() <= allowed
    assert np.abs(f.mean - truth.mean).max() <= 2 * EPS["float64"] * max(offset, 10.0)
    assert truth.residual(f.vt) <= f.bound.residual + 1e-12 * truth.energy


@pytest.mark.parametrize("kind", KINDS)
def test_float32_rows_far_from_zero_are_centred_in_float64(kind):
    rng = np.random.default_rng(4)
    rows = (low_rank(rng, 300, D, 3) + 1e6 * rng.standard_normal(D)).astype("float32")
    truth = Truth(rows)
    f = feed(empty(kind), rows, 40).factors()
    np.testing.assert_allclose(f.s, truth.s[:3], rtol=50 * EPS["float32"])
    np.testing.assert_allclose(f.mean, truth.mean, rtol=1e-14)
    assert f.mean.dtype == np.float64


@pytest.mark.parametrize("kind", KINDS)
def test_shards_far_apart_and_a_huge_column_among_small_ones_join_exactly(kind):
    rng = np.random.default_rng(5)
    rows = low_rank(rng, 240, D, 3)
    rows[:120] += 1e6
    rows[:, 7] += 1e12
    truth = Truth(rows)
    whole = feed(empty(kind, rank=4), rows, 40).factors()
    merged = (feed(empty(kind, rank=4), rows[:120], 40) + feed(empty(kind, rank=4), rows[120:], 40)).factors()
    for f in (whole, merged):
        # A Gram matrix holds squares, so of values far below the largest it knows less.
        squares, power = (1e-14, 2) if kind == "gram" else (1e-14, 1)
        assert np.abs(f.s**power - truth.s[:4] ** power).max() <= squares * truth.s[0] ** power
        np.testing.assert_allclose(f.mean, truth.mean, rtol=1e-15, atol=1e-9)
        assert truth.s[3] > 1e-7 * truth.s[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_mean_that_drifts_by_a_million_deviations_is_followed(kind):
    rng = np.random.default_rng(6)
    rows = rng.standard_normal((400, D)) * 1e-3 + np.linspace(0, 1e3, 400)[:, None] * rng.standard_normal(D)
    f, truth = feed(empty(kind), rows, 40).factors(), Truth(rows)
    assert f.s[0] == pytest.approx(truth.s[0], rel=1e-12)
    np.testing.assert_allclose(f.mean, truth.mean, rtol=1e-12, atol=1e-9)
    assert truth.residual(f.vt) <= f.bound.residual


@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_kept_and_accurate_on_every_singular_value(kind):
    """Recipe D13: 50 eps s_1 absolutely on each, orthonormal to 5e-6 up to a condition of 1e4."""
    rng = np.random.default_rng(7)
    rows = with_spectrum(rng, 300, D, np.geomspace(1, 1e-4, 8)).astype("float32")
    state = sketch(columns=D, rank=8, kept=8, kind=kind, center=False)
    f, truth = feed(state, rows, 33).factors(), Truth(rows, center=False)
    assert f.s.dtype == f.vt.dtype == np.float32
    assert np.abs(f.s - truth.s[:8]).max() <= 50 * EPS["float32"] * truth.s[0]
    assert orthonormality(f.vt) <= 5e-6
    assert np.all(f.s > 0)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_and_float64_agree_in_sign(kind):
    rng = np.random.default_rng(8)
    rows = rows_of("geometric .5", rng, 300, D)
    f, g = (feed(empty(kind), rows.astype(dtype), 40).factors() for dtype in ("float32", "float64"))
    assert np.all(np.sum(f.vt * g.vt, axis=1) > 0.999)


@pytest.mark.parametrize("kind", KINDS)
def test_the_energy_of_float32_rows_is_summed_in_float64(kind):
    rows = general().astype("float32")
    f = feed(empty(kind, center=False), rows, 40).factors()
    assert f.energy == pytest.approx(float(np.vdot(rows.astype(float), rows.astype(float))), rel=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_uint8_pixels_are_exact(kind):
    rng = np.random.default_rng(9)
    rows = rng.integers(0, 256, (200, D), dtype=np.uint8)
    f = feed(empty(kind), rows, 40).factors()
    np.testing.assert_allclose(f.mean, rows.mean(axis=0), rtol=1e-14)
    truth = Truth(rows)
    assert f.energy == pytest.approx(truth.energy, rel=1e-6)
    assert digest(f) == digest(feed(empty(kind), rows.astype("float32"), 7).factors())


def test_gram_reads_float32_rows_with_float64_accuracy():
    rng = np.random.default_rng(10)
    rows = rows_of("1/j", rng, 500, D).astype("float32") + np.float32(100)
    f, truth = empty("gram", rank=20, kept=None).update(rows).factors(), Truth(rows)
    np.testing.assert_allclose(f.s, truth.s[:20], rtol=2 * EPS["float32"])
    assert f.norm == pytest.approx(np.sqrt(truth.energy), rel=1e-13)
    assert truth.residual(f.vt) <= f.bound.residual
    assert f.bound.residual == pytest.approx(truth.residual(f.vt), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_is_the_same_whatever_is_read_from_it(kind):
    state = empty(kind)
    for part in chunks(150, 10):
        state = state.update(general()[part])
        f = state.factors()
        assert np.isfinite(f.s).all()
        assert f.rows == state.rows == part.stop
