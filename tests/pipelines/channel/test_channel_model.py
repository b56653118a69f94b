"""The estimator: what it must not depend on, what must fall, and that frames, snapshots and growing pilots agree with the plain way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends import BACKENDS
from streamsvd.arrays import to_numpy
from streamsvd.kronecker import kron, multi_product
from streamsvd.pipelines.channel import KronSBL, updates
from streamsvd.pipelines.channel.metrics import channel_nmse, nmse, support_recovery
from streamsvd.pipelines.channel.scenario import Irs, irs, noise_like, synthetic

SMALL = {"measurements": (5, 6, 4), "unknowns": (7, 8, 5), "sparsity": 2}
TINY_IRS = Irs(base_antennas=8, elements=32, grid=8, spread=2)
METHODS = ["svd", "am", "pc", "classical", "decomposed"]


def small(seed=0, snr_db=25.0, **more):
    return synthetic(seed=seed, snr_db=snr_db, **(SMALL | more))


def fitted(case, /, y=None, *, variance=None, **options):
    return KronSBL(case.dictionaries, **options).fit(
        case.y if y is None else y, noise_variance=case.noise_variance if variance is None else variance
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_a_clear_signal(method):
    errors = [nmse(fitted(case, method=method).mean, case.x) for case in (small(s, 35) for s in range(7))]
    assert np.median(errors) < 0.02


@pytest.mark.parametrize("method", ["svd", "am", "pc"])
def test_the_irs_channel_is_found(method):
    cases = [irs(seed=s, snr_db=25, sizes=TINY_IRS) for s in range(5)]
    errors = [channel_nmse(case, fitted(case, method=method, coupling=(0.8, 0.0, 0.8)).mean) for case in cases]
    assert np.median(errors) < 0.02
    assert fitted(cases[0]).mean.dtype == np.complex128


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from(["am", "pc", "em"]), st.floats(0.0, 30.0))
def test_the_cost_of_alternating_minimization_never_rises(seed, is_complex, method, snr):
    case = irs(seed=seed, snr_db=snr, sizes=TINY_IRS) if is_complex else small(seed, snr)
    how = {"method": "am", "bound": "em"} if method == "em" else {"method": method}
    found = fitted(case, prune=0.0, max_iter=40, **how)
    assert np.all(np.diff(found.cost) <= 1e-7 * np.abs(found.cost[:-1]) + 1e-7)


def test_the_cost_is_the_dense_one():
    case = small()
    found = fitted(case, method="am", max_iter=1, prune=0.0)
    A = kron(case.dictionaries)
    gamma = np.sum(case.y**2) / np.sum(A**2)
    C = case.noise_variance * np.eye(A.shape[0]) + gamma * A @ A.T
    y = case.y.reshape(-1)
    assert found.cost[0] == pytest.approx(np.linalg.slogdet(C)[1] + y @ np.linalg.solve(C, y), rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [3.0, 1e-12, 1e12])
def test_scaling_the_observation_scales_the_estimate(method, scale):
    case = small(3)
    found = fitted(case, method=method)
    scaled = fitted(case, scale * case.y, variance=scale**2 * case.noise_variance, method=method)
    assert scaled.iterations == found.iterations
    np.testing.assert_allclose(scaled.mean / scale, found.mean, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(scaled.gammas[-1] / scale**2, found.gammas[-1], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("method", ["svd", "am", "classical", "decomposed"])
def test_permuting_unknowns_and_measurements_permutes_the_estimate(method):
    case, rng = small(4), np.random.default_rng(0)
    columns = [rng.permutation(H.shape[1]) for H in case.dictionaries]
    rows = [rng.permutation(H.shape[0]) for H in case.dictionaries]
    moved = [H[np.ix_(r, c)] for H, r, c in zip(case.dictionaries, rows, columns, strict=True)]
    found = KronSBL(moved, method=method).fit(case.y[np.ix_(*rows)], noise_variance=case.noise_variance)
    np.testing.assert_allclose(found.mean, fitted(case, method=method).mean[np.ix_(*columns)], rtol=1e-5, atol=1e-8)


def test_permuting_the_factors_permutes_the_estimate_of_the_symmetric_steps():
    case = small(5)
    for options in ({"method": "svd", "rank_one": "power"}, {"method": "am"}):
        plain = fitted(case, prune=0.0, tol=1e-12, max_iter=400, **options).mean
        turned = KronSBL(case.dictionaries[::-1], prune=0.0, tol=1e-12, max_iter=400, **options).fit(
            case.y.transpose(2, 1, 0), noise_variance=case.noise_variance
        )
        assert nmse(turned.mean.transpose(2, 1, 0), plain) < 1e-3


@pytest.mark.parametrize("method", ["svd", "am", "pc", "classical"])
def test_snapshots_that_are_all_the_same_give_the_estimate_of_one(method):
    case = small(6)
    one, many = fitted(case, method=method), fitted(case, np.stack([case.y] * 4), method=method)
    assert many.mean.shape == (4, *one.mean.shape)
    np.testing.assert_allclose(many.mean, np.broadcast_to(one.mean, many.mean.shape), rtol=1e-7, atol=1e-9)
    assert many.cost[-1] == pytest.approx(4 * one.cost[-1], rel=1e-9)


def test_snapshots_that_share_their_support_help_each_other():
    together, alone = [], []
    for seed in range(8):
        case = synthetic(seed=seed, snr_db=5, snapshots=6)
        found = fitted(case)
        together.append(support_recovery(np.abs(found.mean).max(0), np.abs(case.x).max(0)))
        alone.append(np.mean([support_recovery(fitted(case, y).mean, x) for y, x in zip(case.y, case.x, strict=True)]))
    assert np.mean(together) > np.mean(alone)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rank_one", ["svd", "power"])
def test_a_batch_of_frames_is_each_by_itself(method, rank_one):
    case = small(7)
    clean = multi_product(case.x, case.dictionaries)
    frames = np.stack([clean * (1 + f) + noise_like(clean, case.noise_variance * 4**f, seed=[f]) for f in range(5)])
    frames[3] = 0.0
    noise = case.noise_variance * 4.0 ** np.arange(5)
    model = KronSBL(case.dictionaries, method=method, rank_one=rank_one)
    found = model.fit_frames(frames, noise_variance=noise)
    for f, estimate in enumerate(found):
        alone = model.fit(frames[f], noise_variance=noise[f])
        assert estimate.iterations == alone.iterations
        loose = 1e-3 if method == "decomposed" else 1e-6  # its power iteration stops for all frames together
        np.testing.assert_allclose(estimate.mean, alone.mean, rtol=loose, atol=1e-7)
        np.testing.assert_allclose(estimate.cost, alone.cost, rtol=1e-3 * loose, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("noise", ["known", "estimate"])
def test_zeros_give_an_estimate_of_zero_with_an_empty_support(method, noise):
    case = small(8)
    found = KronSBL(case.dictionaries, method=method, noise=noise).fit(0 * case.y, noise_variance=1.0)
    assert not found.mean.any()
    assert found.values.size == 0
    assert all(np.isfinite(g).all() for g in found.gammas)


def test_the_noise_variance_is_found():
    ratios = []
    for seed in range(9):
        case = synthetic(seed=seed, snr_db=15)
        ratios.append(KronSBL(case.dictionaries, noise="estimate").fit(case.y).noise_variance / case.noise_variance)
    assert np.median(ratios) == pytest.approx(1.0, abs=0.1)


def test_pure_noise_is_taken_for_noise():
    case, rng = synthetic(seed=0), np.random.default_rng(1)
    found = KronSBL(case.dictionaries, noise="estimate").fit(rng.standard_normal(case.y.shape))
    assert 0.5 < found.noise_variance < 1.2
    explained = multi_product(found.mean, case.dictionaries)
    assert np.sum(explained**2) < 0.5 * case.y.size


@pytest.mark.parametrize("rank_one", ["svd", "power"])
def test_leaping_in_the_first_steps_reaches_the_same_estimate_sooner(rank_one, monkeypatch):
    cases = [irs(seed=s, snr_db=20) for s in range(3)]
    leapt = [fitted(case, rank_one=rank_one) for case in cases]
    monkeypatch.setattr(updates, "LEAP", 1)
    plain = [fitted(case, rank_one=rank_one) for case in cases]
    assert sum(e.iterations for e in leapt) < 0.8 * sum(e.iterations for e in plain)
    for case, a, b in zip(cases, leapt, plain, strict=True):
        assert channel_nmse(case, a.mean) == pytest.approx(channel_nmse(case, b.mean), rel=0.01)


def test_hastening_leaves_alone_what_grows_and_what_is_large():
    old = np.array([[1.0, 1e-3, 1e-3, 1e-250]])
    new = np.array([[1.0, 5e-4, 2e-3, 1e-3]])
    found = updates.hastened([new], [old], [new < 0.03], np.array([[True]]))[0][0]
    assert found[1] < 2e-4
    np.testing.assert_array_equal(found[[0, 2, 3]], new[0, [0, 2, 3]])


def test_not_converging_is_a_flag():
    found = fitted(small(), max_iter=2)
    assert not found.converged
    assert found.iterations == len(found.cost) == 2


def test_support_and_values_are_the_mean():
    one = KronSBL([synthetic(seed=9).dictionaries[0]])
    alone = (fitted(small(9), method="classical"), one.fit(np.ones(8), noise_variance=0.1))
    shared = (fitted(small(9, snapshots=3), method="classical"), one.fit(np.ones((3, 8)), noise_variance=0.1))
    for found in (fitted(small(9)), fitted(small(9, snapshots=3)), *alone, *shared):
        assert len(found.support) == found.modes
        again = np.zeros_like(found.mean)
        again[(..., *found.support)] = found.values
        np.testing.assert_array_equal(again, found.mean)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "options", [{}, {"rank_one": "power"}, {"method": "am"}, {"method": "pc"}, {"noise": "estimate"}], ids=str
)
def test_every_backend_gives_the_same_and_keeps_its_dtype(backend, options):
    case, options = small(10), options | {"max_iter": 12}
    D = [backend(H) for H in case.dictionaries]
    plain = fitted(case, **options)
    found = KronSBL(D, **options).fit(backend(case.y), noise_variance=case.noise_variance)
    assert type(found.mean) is type(D[0])
    np.testing.assert_allclose(to_numpy(found.mean), plain.mean, atol=1e-7)
    frames = KronSBL(D, **options).fit_frames(
        backend(np.stack([case.y, 2 * case.y])), noise_variance=case.noise_variance
    )
    np.testing.assert_allclose(to_numpy(frames[0].mean), plain.mean, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_the_mean_has_the_dtype_of_the_observation(dtype):
    case = small(11)
    y = case.y.astype(dtype)
    found = KronSBL([H.astype(dtype) for H in case.dictionaries]).fit(y, noise_variance=case.noise_variance)
    assert found.mean.dtype == dtype
    assert nmse(found.mean, case.x) < 0.1
    asked = KronSBL(case.dictionaries, dtype="complex64").fit(case.y, noise_variance=case.noise_variance)
    assert asked.mean.dtype == np.complex64


def test_arguments_are_left_alone():
    case = small(12)
    y, D = case.y.copy(), [H.copy() for H in case.dictionaries]
    y.flags.writeable = False
    for H in D:
        H.flags.writeable = False
    KronSBL(D).fit(y, noise_variance=case.noise_variance)
    KronSBL(D, method="am", noise="estimate").update(np.stack([y, y]))
    np.testing.assert_array_equal(y, case.y)
