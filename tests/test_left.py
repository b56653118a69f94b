"""The streamed left factor: U is orthonormal, and ``||A - U diag(s) V||_F^2`` is exactly what was discarded."""

from __future__ import annotations

import numpy as np
import pytest

from backends import BACKENDS, digest
from streams import Truth, feed, low_rank, rows_of
from streamsvd.arrays import to_numpy
from streamsvd.planner import sketch

N, D, KEPT = 200, 60, 8
FORMS = {
    "plain": {"center": False},
    "centred": {},
    "aged": {"center": False, "decay": 0.97},
    "centred and aged": {"decay": 0.97},
}


def empty(**options):
    return sketch(**{"columns": D, "rank": 3, "kept": KEPT, "kind": "truncated", "keep_left": True, **options})


def general(seed=0, n=N):
    rng = np.random.default_rng(seed)
    return rows_of("1/sqrt(j)", rng, n, D) + 2.0 * rng.standard_normal(D)


def assert_left(f, truth, *, rounding=1e-13):
    """Assert that U belongs to A: orthonormal columns, and the error of the product is what the ledger discarded."""
    u, s, vt = (np.asarray(to_numpy(x), dtype=np.float64) for x in (f.u, f.s, f.vt))
    assert u.shape == (f.rows, f.rank)
    there = np.flatnonzero(s)  # a component that the stream lacks has no column in U
    assert np.abs(u[:, there].T @ u[:, there] - np.eye(there.size)).max() <= 1e3 * rounding
    discarded = f.certificate.tail * 4.0**f.certificate.exponent
    discarded += float((np.ldexp(f.certificate.s[f.rank :], f.certificate.exponent) ** 2).sum())
    error = float(np.linalg.norm(truth.A - (u * s) @ vt) ** 2)
    assert error == pytest.approx(discarded, rel=1e-9, abs=100 * rounding * truth.energy)
    return error


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_the_product_misses_exactly_what_was_discarded(form, weighted):
    rows = general()
    weights = np.random.default_rng(1).uniform(0.1, 5, N) if weighted else None
    state = feed(empty(**FORMS[form]), rows, 17, weights=weights)
    truth = Truth(rows, weights=weights, center=state.center, decay=FORMS[form].get("decay", 1.0))
    for rank in (KEPT, 3):
        assert assert_left(state.factors(rank), truth) > 1e-3 * truth.energy


@pytest.mark.parametrize("form", FORMS)
def test_of_a_stream_of_low_rank_nothing_is_missed(form):
    rng = np.random.default_rng(2)
    rows = low_rank(rng, N, D, 5) + 10.0 * rng.standard_normal(D)
    rows[: N // 2] += 30.0 * rng.standard_normal(D)
    state = feed(empty(**FORMS[form]), rows, 23)
    truth = Truth(rows, center=state.center, decay=FORMS[form].get("decay", 1.0))
    error = assert_left(state.factors(KEPT), truth)
    assert error <= 1e-24 * truth.energy
    u = state.factors(3).u
    true = truth.A @ truth.vt[:3].T / truth.s[:3]
    cosines = np.abs(np.sum(u * true, axis=0))
    np.testing.assert_allclose(cosines, 1, rtol=1e-9)


def test_rows_of_u_are_the_scores():
    rows = low_rank(np.random.default_rng(3), N, D, 5) + 3.0
    f = feed(empty(), rows, 50).factors()
    np.testing.assert_allclose(f.u * f.s, f.transform(rows), rtol=0, atol=1e-12 * float(f.s[0]))
    assert float(np.abs(f.u).max()) > 0.1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_u_stays_where_the_data_is(backend, dtype):
    rows = general(4).astype(dtype)
    f = feed(empty(), backend(rows), 50).factors()
    assert type(f.u) is type(f.vt)
    assert f.u.dtype == f.vt.dtype
    assert_left(f, Truth(rows), rounding=1e-13 if dtype == "float64" else 1e-6)


def test_timestamps_age_the_left_factor():
    rows, rng = general(5), np.random.default_rng(6)
    times = np.cumsum(rng.exponential(1.0, N))
    state = empty(half_life="50s")
    for part in (slice(0, 3), slice(3, 90), slice(90, N)):
        state = state.update(rows[part], timestamps=times[part])
    assert_left(state.factors(KEPT), Truth(rows, ages=0.5 ** ((times[-1] - times) / 50.0)))


def test_rows_of_weight_zero_have_no_row_in_u():
    rows = general(7)
    weights = np.random.default_rng(8).integers(0, 2, N).astype(float)
    f = feed(empty(), rows, 31, weights=weights).factors()
    assert f.u.shape[0] == np.count_nonzero(weights) < N
    assert_left(f, Truth(rows, weights=weights))


def test_shrinking_keeps_the_left_factor_orthonormal():
    rows = general(9)
    f = feed(empty(shrink=1.0), rows, 40).factors()
    assert np.abs(f.u.T @ f.u - np.eye(3)).max() <= 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_a_log_spilled_to_a_folder_gives_the_same_bits(form, tmp_path):
    rows = general(10)
    folder = tmp_path / "left" / "log"
    kept, spilled = feed(empty(**FORMS[form]), rows, 19), feed(empty(**FORMS[form], keep_left=folder), rows, 19)
    np.testing.assert_array_equal(kept.factors().u, spilled.factors().u)
    folds = N // (3 * KEPT)
    assert len(list(folder.glob("*.rotation"))) >= folds
    a, b = spilled.update(rows[:60]), spilled.update(rows[60:120])
    np.testing.assert_array_equal(a.factors().u, kept.update(rows[:60]).factors().u)
    np.testing.assert_array_equal(b.factors().u, kept.update(rows[60:120]).factors().u)


@pytest.mark.parametrize("spill", [False, True])
def test_a_restored_log_continues_in_the_same_bits(spill, tmp_path):
    rows = general(11)
    state = feed(empty(keep_left=tmp_path if spill else True), rows[:130], 19)
    again = type(state).from_parts(*state.parts())
    assert digest(again) == digest(state)
    a, b = feed(state, rows[130:], 7).factors(), feed(again, rows[130:], 7).factors()
    np.testing.assert_array_equal(a.u, b.u)
    assert_left(b, Truth(rows))


def test_branches_share_their_past_and_nothing_else():
    rows = general(12)
    trunk = feed(empty(), rows[:100], 9)
    a, b = feed(trunk, rows[100:150], 9), feed(trunk, rows[150:], 9)
    assert_left(a.factors(), Truth(rows[:150]))
    assert_left(b.factors(), Truth(np.concatenate([rows[:100], rows[150:]])))
    assert_left(trunk.factors(), Truth(rows[:100]))


def test_truncated_factors_cut_u_too():
    f = feed(empty(), general(13), 50).factors()
    cut = f.truncate(rank=2)
    np.testing.assert_array_equal(cut.u, f.u[:, :2])


def test_only_those_who_ask_pay():
    state = feed(empty(keep_left=False), general(14), 50)
    assert state.factors().u is None
    assert not [name for name in state.parts()[0] if name.startswith("left")]
    with pytest.raises(ValueError, match=r"keep_left.*kind='truncated'"):
        empty(kind="gram", kept=None)
