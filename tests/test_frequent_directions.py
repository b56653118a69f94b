"""``shrink=1`` is Frequent Directions: its a-priori bound holds, mid-buffer and after merges too; values between keep a weaker one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streams import STREAMS, Truth, chunks, feed, moments_of, orthonormal, rows_of
from streamsvd.planner import sketch
from streamsvd.truncated import FLUSH

D, KEPT = 50, 10


def empty(shrink=1.0, **options):
    return sketch(columns=D, rank=4, kept=KEPT, kind="truncated", shrink=shrink, center=False, **options)


def assert_frequent_directions(state, truth: Truth, shrink: float) -> None:
    """Assert ``0 <= A'A - B'B <= Delta <= ||A - A_k||_F^2 / (shrink l - k)`` for every k below (Ghashami et al. 2016, theorem 1.1)."""
    f = state.factors(KEPT)
    delta = f.certificate.norm * 4.0**f.certificate.exponent
    w = np.linalg.eigvalsh(truth.moments - moments_of(f))
    tiny = 1e-12 * truth.energy
    assert w[0] >= -tiny
    assert w[-1] <= delta + tiny
    sizes = np.arange(int(shrink * KEPT))
    allowed = min(truth.optimal(k) / (shrink * KEPT - k) for k in sizes)
    assert delta <= allowed + tiny


@pytest.mark.parametrize("kind", [kind for kind in STREAMS if kind != "graded"])
@pytest.mark.parametrize("shrink", [0.5, 1.0])
def test_covariance_error_is_within_the_bound_in_advance(kind, shrink):
    for seed in range(3):
        rng = np.random.default_rng([seed, 7])
        rows = rows_of(kind, rng, 300 + 17 * seed, D)
        assert_frequent_directions(feed(empty(shrink), rows, 23), Truth(rows, center=False), shrink)


def test_the_bound_holds_whenever_it_is_read():
    """The reference implementation returns its sketch without the rows that wait and violates its own theorem by 4 to 9 times."""
    rng = np.random.default_rng(0)
    rows = rows_of("flat", rng, 120, D)
    state = empty()
    for part in chunks(len(rows), 5):
        state = state.update(rows[part])
        assert_frequent_directions(state, Truth(rows[: part.stop], center=False), 1.0)


@pytest.mark.parametrize("shrink", [0.5, 1.0])
def test_merged_sketches_keep_the_bound(shrink):
    rng = np.random.default_rng(1)
    rows = rows_of("1/sqrt(j)", rng, 640, D)
    shards = [feed(empty(shrink), rows[part]) for part in chunks(len(rows), 40)]
    while len(shards) > 1:
        shards = [a + b for a, b in zip(shards[::2], shards[1::2], strict=True)]
    assert_frequent_directions(shards[0], Truth(rows, center=False), shrink)


def test_plain_truncation_loses_a_slow_drift_that_frequent_directions_catches():
    """A direction that comes a little at a time is always the smallest: truncation throws it away each time, shrinking lets it in."""
    rng = np.random.default_rng(2)
    frame = orthonormal(rng, 14, D)
    rows = np.zeros((6000, D))
    for i in range(len(rows)):
        j = i % 20
        rows[i] = 12.0 * frame[j] if j < KEPT and i < 40 else frame[KEPT] * 0.9
    rows += 0.0
    truth = Truth(rows, center=False)
    plain, shrunk = (feed(empty(shrink), rows).factors(1) for shrink in (0.0, 1.0))
    assert truth.s[0] ** 2 > 10 * truth.s[1] ** 2
    for f in (plain, shrunk):
        assert truth.residual(f.vt) <= f.bound.residual
    assert truth.residual(shrunk.vt) <= 1.01 * truth.optimal(1)


@pytest.mark.parametrize("shrink", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["flat", "1/j", "drift"])
def test_a_fold_shrinks_by_the_largest_energy_left_out(kind, shrink):
    """The same as in so many words: stack, take the SVD, subtract ``s_(l+1)^2`` from the last ``shrink l`` of the first l."""
    rows = rows_of(kind, np.random.default_rng(4), 300, D)
    B = np.zeros((0, D))
    for part in chunks(len(rows), FLUSH * KEPT):
        _, s, vt = np.linalg.svd(np.concatenate([B, rows[part]]), full_matrices=False)
        less = s[:KEPT] ** 2
        less[KEPT - math.ceil(shrink * KEPT) :] -= s[KEPT] ** 2
        B = np.sqrt(np.maximum(less, 0))[:, None] * vt[:KEPT]
    f = feed(empty(shrink), rows, 7).factors(KEPT)
    np.testing.assert_allclose(moments_of(f), B.T @ B, rtol=0, atol=1e-11 * float(np.vdot(rows, rows)))
    assert float(np.vdot(B, B)) > 0


def test_what_is_shrunk_away_is_accounted_for():
    rng = np.random.default_rng(3)
    rows = rows_of("flat", rng, 400, D)
    f = feed(empty(), rows).factors(KEPT)
    c = f.certificate
    assert float((c.s**2).sum()) + c.tail == pytest.approx(c.total, rel=1e-12)
    assert c.tail > KEPT * c.norm > 0
    assert f.bound.residual >= Truth(rows, center=False).residual(f.vt)
