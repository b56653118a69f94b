"""Robust SVD of a matrix: the reference's numbers, plain SVD at alpha = 0, and gross entries, rows and columns that change nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends import BACKENDS
from streamsvd.arrays import to_numpy
from streamsvd.dpd import efficiency, mdpde_scale, medians, spread
from streamsvd.fixedpoint import fixed_point
from streamsvd.flow.checkpoint import load, save
from streamsvd.robust import robust_svd
from streamsvd.robust_choice import choose_alpha, choose_rank
from streamsvd.verify import angles, orthonormality

ORACLE = Path(__file__).parent / "oracles" / "rsvddpd.npz"
ALPHAS = ["0", "0.1", "0.3", "0.5", "1"]
WELL_POSED = {"clean_30x20": 3, "gross5_60x40": 3, "noise_100x80": 5, "videolike_200x100": 1}


@pytest.fixture(scope="module")
def oracle():
    with np.load(ORACLE) as held:
        return {name: held[name].astype(np.float64) for name in held.files}


def low_rank(n=60, d=40, sizes=(100.0, 50.0, 25.0), noise=0.05, seed=0):
    rng = np.random.default_rng(seed)
    U = np.linalg.qr(rng.standard_normal((n, len(sizes))))[0]
    V = np.linalg.qr(rng.standard_normal((d, len(sizes))))[0]
    L = (U * sizes) @ V.T
    return L, L + noise * rng.standard_normal((n, d)), rng


def fitted(f):
    return to_numpy(f.u * f.s[None, :] @ f.vt)


def error(P, L):
    return np.linalg.norm(P - L) / np.linalg.norm(L)


def assert_is_the_reference(f, d, u, v, *, rtol):
    u, v, d = u.reshape(-1, f.rank), v.reshape(-1, f.rank), np.atleast_1d(d)
    turn = np.sign(np.sum(v * f.vt.T, axis=0))
    np.testing.assert_allclose(f.s, d, rtol=rtol)
    np.testing.assert_allclose(f.u, u * turn, rtol=0, atol=1e-3)
    np.testing.assert_allclose(f.vt, (v * turn).T, rtol=0, atol=1e-3)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("case", ["clean_30x20", "gross5_60x40"])
def test_well_posed_cases_are_those_of_the_reference(oracle, case, alpha, rank):
    f = robust_svd(oracle[f"{case}/X"], rank, alpha=float(alpha))
    assert f.info["rejected_rows"] == f.info["rejected_columns"] == []
    assert all(f.info["converged"])
    assert_is_the_reference(f, *(oracle[f"{case}/{alpha}/{rank}/{part}"] for part in "duv"), rtol=1e-5)


@pytest.mark.data
@pytest.mark.parametrize("start", ["runif", "svd"])
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("case", WELL_POSED)
def test_every_well_posed_run_of_the_reference_is_met(data_dir, case, alpha, start):
    folder = data_dir / "rsvddpd_oracle"
    X = np.loadtxt(folder / f"{case}_X.csv", delimiter=",")
    for rank in (k for k in (1, 3, 5) if k <= WELL_POSED[case]):
        f = robust_svd(X, rank, alpha=float(alpha))
        parts = (np.loadtxt(folder / f"{case}_a{alpha}_nd{rank}_{start}_{part}.csv", delimiter=",") for part in "duv")
        # The reference stops at absolute steps of 1e-4: its noisy vectors at alpha = 1 are 3e-4 from the fixed point, its d then 1.2e-5.
        assert_is_the_reference(f, *parts, rtol=1.3e-5 if (case, alpha) == ("noise_100x80", "1") else 1e-5)


@pytest.mark.parametrize("alpha", ALPHAS[1:])
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize(("case", "bad"), [("badrow_50x30", ([6], [])), ("badcol_50x30", ([], [3]))])
def test_a_bad_row_or_column_is_left_out_and_the_rest_is_right(oracle, case, bad, rank, alpha):
    X, L = oracle[f"{case}/X"], oracle[f"{case}/truth"]
    f = robust_svd(X, rank, alpha=float(alpha))
    assert (f.info["rejected_rows"], f.info["rejected_columns"]) == bad
    U, s, Vt = np.linalg.svd(X, full_matrices=False)
    d, u, v = (oracle[f"{case}/{alpha}/{rank}/{part}"] for part in "duv")
    theirs = (u.reshape(-1, rank) * d) @ v.reshape(-1, rank).T
    assert error(fitted(f), L) < error((U[:, :rank] * s[:rank]) @ Vt[:rank], L)
    assert error(fitted(f), L) < error(theirs, L)
    # The objective of the entries that count, where the reference has its own fit of them.
    counts = np.ix_(np.setdiff1d(range(50), bad[0]), np.setdiff1d(range(30), bad[1]))
    rate = float(alpha) / 2 / f.info["sigma"][0] ** 2
    assert np.mean(np.exp(-rate * (X - fitted(f))[counts] ** 2)) >= np.mean(np.exp(-rate * (X - theirs)[counts] ** 2))


@pytest.mark.parametrize("alpha", ALPHAS[1:])
@pytest.mark.parametrize("case", ["badrow_50x30", "badcol_50x30"])
def test_with_every_row_fitted_the_objective_is_no_worse_than_the_reference(oracle, case, alpha):
    X = oracle[f"{case}/X"]
    f = robust_svd(X, 1, alpha=float(alpha), reject=False)
    d, u, v = (oracle[f"{case}/{alpha}/1/{part}"] for part in "duv")
    rate = float(alpha) / 2 / f.info["sigma"][0] ** 2
    assert f.info["objective"] >= np.mean(np.exp(-rate * (X - d * np.outer(u, v)) ** 2)) - 1e-4


def test_numbers_of_the_reference_manual():
    X = np.arange(1.0, 21.0).reshape(5, 4).T.copy()
    X[1, 2] = 100
    np.testing.assert_allclose(robust_svd(X, 3).s, [53.55988, 2.35892, 0.149117], rtol=3e-4)
    np.testing.assert_allclose(robust_svd(X, 2).s, [53.55988, 2.35892], rtol=1e-6)
    Y = np.arange(1.0, 13.0).reshape(4, 3)
    Y[1, 1] = 100
    np.testing.assert_allclose(robust_svd(Y, 3).s, [25.47298, 1.290131, 0.0281], rtol=1e-3)


def test_alpha_zero_is_the_svd():
    _, X, _ = low_rank(sizes=(50.0, 30.0, 20.0, 10.0))
    f = robust_svd(X, 4, alpha=0)
    _, s, Vt = np.linalg.svd(X)
    np.testing.assert_allclose(f.s, s[:4], rtol=1e-12)
    assert angles(f.vt, Vt[:4]).max() < 1e-5
    assert f.bound is None
    assert (f.center, f.rows, f.rank, f.columns) == (False, 60, 4, 40)


@pytest.mark.parametrize("scale", ["iqr", "mdpde", 1.0])
def test_the_regressions_hold_at_the_solution(scale):
    L, X, rng = low_rank(sizes=(100.0,))
    X[rng.random(X.shape) < 0.05] += 30
    f = robust_svd(X, 1, scale=scale, tol=1e-10)
    e = X - fitted(f)
    W = f.weights(X)
    np.testing.assert_allclose(W, np.exp(-0.15 * (e / f.info["sigma"][0]) ** 2), rtol=1e-9, atol=1e-300)
    size = np.linalg.norm(X)
    assert np.abs((W * e) @ f.vt[0]).max() < 1e-8 * size
    assert np.abs((W * e).T @ f.u[:, 0]).max() < 1e-8 * size
    assert error(fitted(f), L) < 0.02


@pytest.mark.parametrize(
    "kind", ["row 200", "row 1e4", "column 1e4", "entry 1e6", "entry 1e300", "a fifth of the rows", "row of inf size"]
)
@pytest.mark.parametrize("reject", [True, False])
def test_gross_data_never_gives_nan(kind, reject):
    L, X, _ = low_rank(50, 30, (50.0,))
    rows, columns = {"row": (slice(6, 7), slice(None)), "column": (slice(None), slice(6, 7))}.get(
        kind.split()[0], (3, 4)
    )
    if kind.startswith("a fifth"):
        rows, columns = slice(0, 10), slice(None)
    value = {"200": 200, "1e4": 1e4, "1e6": 1e6, "1e300": 1e300, "rows": 80, "size": 1e200}[kind.split()[-1]]
    X[rows, columns] = value
    f = robust_svd(X, 2, reject=reject)
    assert np.isfinite(fitted(f)).all()
    assert np.isfinite(f.info["objective"])
    assert f.weights(X)[rows, columns].max() < (1e-3 if reject else 1.1)
    if reject:
        there = np.ones(X.shape, bool)
        there[rows, columns] = False
        assert error(robust_f := fitted(f.truncate(rank=1))[there], L[there]) < 0.03, robust_f


@pytest.mark.parametrize(
    ("X", "s"),
    [
        (np.full((9, 7), 5.0), [5 * 63**0.5, 0]),
        (np.zeros((9, 7)), [0, 0]),
        (np.full((9, 7), np.nan), [0, 0]),
        (np.diag([4.0, 0, 0, 0]), [4, 0]),
    ],
)
def test_degenerate_matrices_are_answered(X, s):
    f = robust_svd(X, 2)
    np.testing.assert_allclose(f.s, s, atol=1e-12)
    assert orthonormality(f.vt) < 1e-12
    assert orthonormality(f.u.T) < 1e-12


def test_constant_majority_has_a_scale():
    X = np.full((50, 30), 5.0)
    X[3, 3], X[10, :20] = 1000.0, 77.0
    f = robust_svd(X, 1)
    np.testing.assert_allclose(np.delete(fitted(f), 10, axis=0), 5.0, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_missing_entries_are_filled_by_the_model(dtype):
    L, X, rng = low_rank()
    X[rng.random(X.shape) < 0.03] = 40.0
    X[rng.random(X.shape) < 0.2] = np.nan
    f = robust_svd(X.astype(dtype), 3, alpha=0.5)
    assert f.s.dtype == f.vt.dtype == f.u.dtype == dtype
    assert error(fitted(f), L) < 0.1
    f = robust_svd(X.astype(dtype), 3, alpha=0.5, joint=True)
    assert f.s.dtype == f.vt.dtype == f.u.dtype == dtype
    # The least error that noise allows is about 0.009.
    assert error(fitted(f), L) < 0.012
    assert (f.weights(X.astype(dtype))[np.isnan(X)] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_stays_where_the_data_is(backend):
    _, X, rng = low_rank()
    X[rng.random(X.shape) < 0.05], X[4] = 30.0, 90.0
    X[7, 7] = np.nan
    f, g = robust_svd(X, 2), robust_svd(backend(X), 2)
    assert type(g.vt) is type(g.u) is type(backend(X))
    assert g.info["rejected_rows"] == [4]
    np.testing.assert_allclose(to_numpy(g.s), f.s, rtol=1e-9)
    np.testing.assert_allclose(to_numpy(g.vt), f.vt, rtol=0, atol=1e-7)
    np.testing.assert_allclose(to_numpy(g.weights(backend(X))), f.weights(X), rtol=0, atol=1e-7)


@pytest.mark.parametrize("power", [-400, -3, 5, 400])
def test_a_scale_changes_nothing_else(power):
    _, X, rng = low_rank()
    X[rng.random(X.shape) < 0.05] = 30.0
    f, g = robust_svd(X, 2), robust_svd(np.ldexp(X, power), 2)
    np.testing.assert_array_equal(g.vt, f.vt)
    np.testing.assert_array_equal(g.s, np.ldexp(f.s, power))


def test_float32_and_float64_agree_and_any_layout_does():
    _, X, rng = low_rank(300, 200, (300.0, 200.0))
    X[rng.random(X.shape) < 0.05] += 20
    f = robust_svd(X, 2)
    g = robust_svd(X.astype(np.float32), 2)
    np.testing.assert_allclose(g.s, f.s, rtol=2e-5)
    assert angles(g.vt, f.vt).max() < 1e-4
    for layout in (np.asfortranarray(X), np.repeat(X, 2, axis=1)[:, ::2], [*map(list, X)]):
        np.testing.assert_array_equal(robust_svd(layout, 2).vt, f.vt)
    np.testing.assert_array_equal(
        robust_svd(np.repeat(X, 20, axis=0), 1, threads=3).vt, robust_svd(np.repeat(X, 20, axis=0), 1).vt
    )


def test_components_are_orthonormal_sorted_and_signed():
    _, X, rng = low_rank(sizes=(50.0, 49.0, 48.0, 5.0))
    X[rng.random(X.shape) < 0.1] += 25
    f = robust_svd(X, 4)
    assert orthonormality(f.vt) < 1e-12
    assert orthonormality(f.u.T) < 1e-12
    assert (np.diff(f.s) <= 0).all()
    assert (f.vt[np.arange(4), np.abs(f.vt).argmax(axis=1)] > 0).all()
    turned = robust_svd(-X, 4)
    np.testing.assert_array_equal(turned.vt, f.vt)
    np.testing.assert_array_equal(turned.u, -f.u)


def test_factors_are_saved_and_loaded_bit_for_bit(tmp_path):
    _, X, _ = low_rank()
    f = robust_svd(X, 2)
    save(f, tmp_path / "f.svd")
    g = load(tmp_path / "f.svd")
    assert type(g) is type(f)
    assert g.info == f.info
    np.testing.assert_array_equal(g.weights(X), f.weights(X))


@pytest.mark.parametrize(
    ("X", "options", "message"),
    [
        (np.ones((4, 3)), {"rank": 4}, "rank=4.*1 to 3"),
        (np.ones((4, 3)), {"rank": 0}, "rank=0"),
        (np.ones((4, 3)), {"rank": 1, "alpha": 2.0}, "alpha=2"),
        (np.ones((4, 3)), {"rank": 1, "alpha": np.nan}, "alpha=nan"),
        (np.ones((4, 3)), {"rank": 1, "scale": "mad"}, "scale='mad'.*'iqr', 'mdpde'"),
        (np.ones((4, 3)), {"rank": 1, "scale": 0}, "scale=0"),
        (np.ones((4, 3)), {"rank": 1, "init": "random"}, "init='random'"),
        (np.ones((4, 3)), {"rank": 1, "tol": 0}, "tol=0"),
        (np.ones((4, 3)), {"rank": 1, "max_iter": 0}, "max_iter=0"),
        (np.ones((4, 3)), {"rank": 1, "threads": 0}, "threads=0"),
        (np.array([[1.0, np.inf]]), {"rank": 1}, "infinity in 1 of 2.*numpy.isinf"),
        (np.ones((0, 3)), {"rank": 1}, "without rows"),
        (np.ones(3), {"rank": 1}, "2-D"),
    ],
)
def test_bad_input_is_named_with_its_cure(X, options, message):
    with pytest.raises(ValueError, match=message):
        robust_svd(X, **options)


def test_sparse_and_other_matrices_are_refused():
    from scipy.sparse import csr_array

    with pytest.raises(TypeError, match="toarray"):
        robust_svd(csr_array(np.eye(3)), 1)
    with pytest.raises(ValueError, match="same matrix"):
        robust_svd(np.eye(3), 1).weights(np.eye(4))


@pytest.mark.parametrize("scale", ["iqr", "mdpde", 0.5])
@pytest.mark.parametrize("backend", BACKENDS)
def test_joint_regressions_hold_for_all_components_at_once(backend, scale):
    L, X, rng = low_rank()
    X[rng.random(X.shape) < 0.05] += 30
    X[rng.random(X.shape) < 0.1] = np.nan
    X[5] = 500.0
    f = robust_svd(backend(X), 3, scale=scale, joint=True, tol=1e-10)
    assert f.info["rejected_rows"] == [5]
    assert f.info["joint_iterations"] > 0
    W = to_numpy(f.weights(backend(X)))
    e = np.where(W > 0, X - fitted(f), 0.0)
    assert np.abs((W * e) @ to_numpy(f.vt).T).max() < 1e-7 * 100
    assert np.abs((W * e).T @ to_numpy(f.u)).max() < 1e-7 * 100
    keep = np.arange(60) != 5
    assert error(fitted(f)[keep], L[keep]) < 0.012
    assert orthonormality(f.vt) < 1e-12
    if scale == "mdpde":
        assert f.info["sigma"][0] == pytest.approx(0.05, rel=0.1)


def test_a_column_of_a_later_component_is_not_left_out_and_a_covered_one_is():
    L, X, _ = low_rank(80, 50, (120.0, 0.0))
    u = np.linalg.qr(np.column_stack([L[:, 0], np.random.default_rng(1).standard_normal(80)]))[0][:, 1]
    v = np.where(np.arange(50) == 8, 1.0, 0.05)
    X += 80 * np.outer(u, v / np.linalg.norm(v))
    assert robust_svd(X, 2).info["rejected_columns"] == []
    X[:, 8] = 300.0
    assert robust_svd(X, 2).info["rejected_columns"] == [8]


def test_joint_raises_the_objective():
    _, X, rng = low_rank()
    X[rng.random(X.shape) < 0.1] += 20
    assert robust_svd(X, 3, joint=True).info["objective"] > robust_svd(X, 3).info["objective"]


def test_a_joint_fit_without_robustness_is_the_svd():
    _, X, _ = low_rank()
    np.testing.assert_allclose(robust_svd(X, 3, alpha=0, joint=True).s, np.linalg.svd(X)[1][:3], rtol=1e-12)


def test_the_argument_is_not_written():
    _, X, _ = low_rank()
    X[3] = 100.0
    X.flags.writeable = False
    robust_svd(X, 2, scale="mdpde").weights(X)


@given(seed=st.integers(0, 10**6), share=st.floats(0, 0.15), size=st.floats(15, 1e6))
@settings(max_examples=25)
def test_gross_entries_of_any_size_leave_the_truth(seed, share, size):
    L, X, rng = low_rank(80, 50, (120.0, 80.0), seed=seed)
    gross = rng.random(X.shape) < share
    X[gross] += size * rng.choice([-1, 1], int(gross.sum()))
    f = robust_svd(X, 2, joint=True)
    assert f.info["rejected_rows"] == f.info["rejected_columns"] == []
    assert error(fitted(f), L) < 0.02
    assert error(fitted(robust_svd(X, 2)), L) < 0.15


def test_the_estimated_scale_is_that_of_the_noise():
    _, X, rng = low_rank(200, 100, (900.0,), noise=0.5)
    X[rng.random(X.shape) < 0.1] += 40
    f = robust_svd(X, 1, scale="mdpde", alpha=0.5)
    assert f.info["sigma"][0] == pytest.approx(0.5, rel=0.05)


@given(alpha=st.floats(0, 1), sigma=st.floats(1e-100, 1e100))
@settings(max_examples=20)
def test_the_scale_equation_is_unbiased_under_the_normal(alpha, sigma):
    from scipy.special import ndtri

    e = sigma * ndtri((np.arange(20_000) + 0.5) / 20_000)
    assert mdpde_scale(e, alpha) == pytest.approx(sigma, rel=2e-3)
    if alpha > 0.2:
        assert mdpde_scale(np.concatenate([e, np.full(1000, 50 * sigma)]), alpha) == pytest.approx(sigma, rel=0.05)


def test_efficiency_is_that_of_the_paper():
    assert [round(efficiency(a), 3) for a in (0, 0.1, 0.3, 0.5, 1)] == [1, 0.988, 0.921, 0.838, 0.65]


@pytest.mark.parametrize("backend", BACKENDS)
def test_quartiles_and_medians_leave_out_what_is_missing(backend):
    X = np.random.default_rng(0).standard_normal((41, 22))
    low, high = np.quantile(X, [0.25, 0.75], method="hazen")
    np.testing.assert_allclose(spread(backend(X)), [low, high, high - low], rtol=1e-14)
    X[3, :4], X[:, 5] = np.nan, np.nan
    present = X[np.isfinite(X)]
    low, high = np.quantile(present, [0.25, 0.75], method="hazen")
    np.testing.assert_allclose(spread(backend(X)), [low, high, high - low], rtol=1e-14)
    found = medians(backend(X), 0)
    expected = [np.median(c) if (c := column[np.isfinite(column)]).size else 0 for column in X.T]
    np.testing.assert_allclose(found, expected, rtol=1e-15)
    full = np.nan_to_num(X)
    np.testing.assert_allclose(medians(backend(full), 1), np.median(full, axis=1), rtol=1e-15)


def test_acceleration_reaches_the_same_point_in_fewer_steps():
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    M = (Q * np.linspace(0, 0.98, 40)) @ Q.T
    x0 = rng.standard_normal(40)

    def step(x):
        return M @ (x - x0) + x0, -float((x - x0) @ (x - x0))

    start = x0 + 0.05 * rng.standard_normal(40)
    slow = fixed_point(step, start, tol=1e-9, limit=5000, plain=True)
    fast = fixed_point(step, start, tol=1e-9, limit=5000)
    assert fast.converged
    assert slow.converged
    np.testing.assert_allclose(fast.x, x0, atol=1e-6)
    assert fast.steps < slow.steps / 4
    assert not fixed_point(step, start, tol=1e-15, limit=3).converged


def test_alpha_is_chosen_with_aligned_signs(oracle):
    X = oracle["gross5_60x40/X"]
    choice = choose_alpha(X)
    assert choice.alpha == pytest.approx(0.3)
    # Neighbouring scores differ by little; without alignment they jump by the squared length of the vectors, about 1e5.
    assert np.abs(np.diff(choice.scores[1:])).max() < 20
    assert choice.scores[0] > 10 * choice.scores[3]
    with pytest.raises(ValueError, match="no alphas"):
        choose_alpha(X, [])


@pytest.mark.parametrize("case", ["clean_30x20", "gross5_60x40", "badrow_50x30", "badcol_50x30"])
def test_the_rank_is_found(oracle, case):
    choice = choose_rank(oracle[f"{case}/X"], max_rank=6)
    assert choice.rank == 3
    assert choice.losses.shape == (7,)
    assert choice.losses[3] < choice.losses[2]
