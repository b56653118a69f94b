"""The robust streaming state: passes end at the batch fixed point, cuts change no bit, covered rows change nothing."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends import BACKENDS
from streamsvd.arrays import to_numpy
from streamsvd.flow.checkpoint import load, save
from streamsvd.robust import Robust, robust_svd
from streamsvd.verify import angles, orthonormality
from test_robust import error, low_rank


def stream(n=400, d=30, sizes=(200.0, 100.0), gross=0.05, seed=0, noise=0.05):
    L, X, rng = low_rank(n, d, sizes, noise=noise, seed=seed)
    there = rng.random(X.shape) < gross
    X[there] += 20 * rng.choice([-1, 1], int(there.sum()))
    return L, X, rng


def reconstructed(f, L):
    """The truth in the subspace of the model: how much of it is missed."""
    vt = to_numpy(f.vt)
    return np.linalg.norm(L - L @ vt.T @ vt) / np.linalg.norm(L)


def assert_same_bits(a, b):
    (one, meta), (two, other) = a.parts(), b.parts()
    assert meta == other
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(to_numpy(one[name]), to_numpy(two[name]))


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_passes_end_at_the_batch_fixed_point(rank, alpha):
    _, X, _ = stream(n=100, d=20, sizes=(400.0, 200.0)[:rank])
    sigma = float(np.subtract(*np.quantile(X, [0.75, 0.25], method="hazen")))
    f = robust_svd(X, rank, alpha=alpha, scale=sigma, joint=True, reject=False, tol=1e-12)
    state = Robust.empty(columns=20, rank=rank, alpha=alpha, scale=sigma, reject=0).update(X)
    for _ in range(15):
        state = state.again().update(X)
    g = state.factors()
    np.testing.assert_allclose(g.s, f.s, rtol=1e-7)
    assert angles(g.vt, f.vt).max() < 1e-6


def test_one_pass_finds_the_subspace_and_the_scale():
    L, X, _ = stream(n=2000)
    f = Robust.empty(columns=30, rank=2).update(X).factors()
    assert reconstructed(f, L) < 0.005
    assert reconstructed(f, L) < reconstructed(Robust.empty(columns=30, rank=2, alpha=0).update(X).factors(), L) / 5
    assert f.info["sigma"] == pytest.approx(0.05, rel=0.15)
    assert orthonormality(f.vt) < 1e-10
    assert f.s == pytest.approx([200.0, 100.0], rel=0.02)
    assert (f.rows, f.columns, f.bound) == (2000, 30, None)


@given(cuts=st.lists(st.integers(0, 150), max_size=8), start=st.sampled_from([4, 32, 64]))
@settings(max_examples=8, deadline=None)
def test_the_bits_do_not_depend_on_the_cuts(cuts, start):
    _, X, _ = stream(n=150)
    X[3, 4] = np.nan
    whole = Robust.empty(columns=30, rank=2, start=start).update(X)
    parts = Robust.empty(columns=30, rank=2, start=start)
    for part in np.split(X, sorted(cuts)):
        parts = parts.update(part)
    assert_same_bits(parts, whole)


@pytest.mark.parametrize("rows", [1, 5, 40, 150])
def test_a_state_is_saved_and_goes_on_in_the_same_bits(tmp_path, rows):
    _, X, _ = stream(n=300)
    state = Robust.empty(columns=30, rank=2, decay=0.99).update(X[:rows])
    save(state, tmp_path / "r.svd")
    back = load(tmp_path / "r.svd")
    assert type(back) is Robust
    assert_same_bits(back, state)
    assert_same_bits(back.update(X[rows:]), state.update(X[rows:]))
    assert_same_bits(pickle.loads(pickle.dumps(state)), state)
    save(Robust.empty(columns=3, rank=2), tmp_path / "empty.svd")
    assert load(tmp_path / "empty.svd").rows == 0


def test_covered_rows_are_left_out_and_change_nothing():
    L, X, rng = stream(n=600, sizes=(300.0,))
    Y = X.copy()
    covered = np.zeros(600, bool)
    covered[200:300] = True
    Y[covered] = rng.uniform(0, 100, (100, 1))
    a = Robust.empty(columns=30, rank=1).update(Y)
    assert a.rejected == 100
    b = Robust.empty(columns=30, rank=1).update(X[~covered])
    assert angles(a.factors().vt, b.factors().vt).max() < 2e-3
    assert reconstructed(a.factors(), L) < 0.005
    assert to_numpy(a.weights(Y[covered])).mean() < 0.3
    assert to_numpy(a.weights(X[:200])).mean() > 0.8
    # Without rejection nothing becomes NaN.
    assert np.isfinite(Robust.empty(columns=30, rank=1, reject=0).update(Y).factors().vt).all()


def test_decay_forgets_an_older_model():
    _, X, _ = stream(n=600, sizes=(300.0,), seed=1)
    L, Y, _ = stream(n=2000, sizes=(600.0,), seed=2)
    state = Robust.empty(columns=30, rank=1, decay=0.98, reject=0).update(X).update(Y)
    assert reconstructed(state.factors(), L) < 0.02
    assert state.factors().weight == pytest.approx(1 / (1 - 0.98), rel=0.01)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_stays_where_the_data_is(backend, dtype):
    _, X, _ = stream(n=200)
    X[7, 7] = np.nan
    X = X.astype(dtype)
    f = Robust.empty(columns=30, rank=2).update(X).factors()
    state = Robust.empty(columns=30, rank=2).update(backend(X))
    g = state.factors()
    assert type(g.vt) is type(backend(X))
    assert str(to_numpy(g.vt).dtype) == dtype
    tolerance = 1e-8 if dtype == "float64" else 2e-3
    np.testing.assert_allclose(to_numpy(g.s), f.s, rtol=tolerance)
    np.testing.assert_allclose(to_numpy(g.vt), f.vt, rtol=0, atol=tolerance)


def test_reading_changes_nothing_and_older_states_stay():
    _, X, _ = stream(n=200)
    state = Robust.empty(columns=30, rank=2).update(X[:101])
    before = state.parts()
    one = state.update(X[101:])
    state.factors()
    state.weights(X[:3])
    state.update(X[:50])
    assert_same_bits(state, Robust.from_parts(*before))
    assert_same_bits(state.update(X[101:]), one)


def test_rows_of_weight_zero_and_empty_rows_are_left_out():
    _, X, _ = stream(n=150)
    w = np.ones(150)
    w[::3] = 0
    a = Robust.empty(columns=30, rank=2).update(X, weights=w)
    assert_same_bits(a, Robust.empty(columns=30, rank=2).update(X[w > 0]))
    Y = np.insert(X, 5, np.nan, axis=0)
    assert_same_bits(Robust.empty(columns=30, rank=2).update(Y), Robust.empty(columns=30, rank=2).update(X))
    assert Robust.empty(columns=30, rank=2).update(X[:0]).rows == 0


@pytest.mark.parametrize(
    "X", [np.zeros((80, 5)), np.full((80, 5), 7.0), np.eye(5)[np.arange(80) % 5], np.full((3, 5), 1e8)]
)
def test_degenerate_streams_are_answered(X):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        f = Robust.empty(columns=5, rank=2).update(X).factors()
    assert np.isfinite(f.vt).all()
    assert np.isfinite(f.s).all()
    assert orthonormality(f.vt) < 1e-8
    if np.ptp(X) == 0:
        assert error((X @ f.vt[:1].T) @ f.vt[:1], X) < 1e-6 if X.any() else not f.s.any()


@pytest.mark.parametrize("power", [-300, 300])
def test_a_scale_changes_nothing_else(power):
    _, X, _ = stream(n=200)
    f = Robust.empty(columns=30, rank=2).update(X).factors()
    g = Robust.empty(columns=30, rank=2).update(np.ldexp(X, power)).factors()
    np.testing.assert_allclose(np.ldexp(g.s, -power), f.s, rtol=1e-9)
    assert angles(g.vt, f.vt).max() < 1e-7


def test_states_do_not_merge_and_say_why():
    state = Robust.empty(columns=3, rank=1)
    for call in (lambda: state.merge(state), lambda: state + state):
        with pytest.raises(TypeError, match=r"cannot be merged.*one stream to one state"):
            call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": 0, "rank": 1}, "columns=0"),
        ({"columns": 3, "rank": 4}, "rank=4.*1 to 3"),
        ({"columns": 3, "rank": 1, "alpha": -1}, "alpha=-1"),
        ({"columns": 3, "rank": 1, "decay": 0}, "decay=0"),
        ({"columns": 3, "rank": 1, "scale": "iqr"}, "scale='iqr'.*'track'"),
        ({"columns": 3, "rank": 1, "scale": -1.0}, "scale=-1"),
        ({"columns": 3, "rank": 1, "reject": 1}, "reject=1"),
        ({"columns": 3, "rank": 2, "start": 1}, "start=1"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Robust.empty(**options)


@pytest.mark.parametrize(
    ("X", "options", "message"),
    [
        (np.ones((4, 3)), {}, "4 columns|3 columns|width"),
        (np.full((4, 5), np.inf), {}, "infinity in 20 of 20"),
        (np.ones((4, 5)), {"weights": [1, 1, -1, 1]}, "weight"),
        (np.ones((4, 5)), {"timestamps": [1, 2, 3, 4]}, "timestamps.*decay"),
    ],
)
def test_a_refused_batch_changes_nothing(X, options, message):
    state = Robust.empty(columns=5, rank=1).update(np.ones((7, 5)))
    before = state.parts()
    with pytest.raises(ValueError, match=message):
        state.update(X, **options)
    assert_same_bits(state, Robust.from_parts(*before))


def test_what_cannot_be_answered_is_said():
    state = Robust.empty(columns=5, rank=2, decay=0.9)
    with pytest.raises(ValueError, match="no rows"):
        state.factors()
    with pytest.raises(ValueError, match="no rows"):
        Robust.empty(columns=5, rank=2).again()
    with pytest.raises(ValueError, match=r"decay=0.9.*decay=1.0"):
        state.update(np.ones((3, 5))).again()
    with pytest.raises(ValueError, match=r"rank=3.*1 \.\. 2"):
        state.update(np.ones((3, 5))).factors(3)
