"""Streams: warm starts save iterations and follow a path that appears; pilots that arrive in batches are all pilots at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsvd.kronecker import multi_product
from streamsvd.pipelines.channel import KronSBL
from streamsvd.pipelines.channel.metrics import nmse
from streamsvd.pipelines.channel.pilots import first_pilots, more_pilots, observed
from streamsvd.pipelines.channel.scenario import noise_like, synthetic


def stream(seed, frames=20, change=10, snr_db=20.0):
    """Frames of one support, gains drawn anew in each; from ``change`` on one index of the first mode is another one."""
    rng = np.random.default_rng([seed, 9])
    case = synthetic(seed=seed)
    on = [rng.permutation(15)[:3] for _ in range(3)]
    xs, ys, noises = [], [], []
    for f in range(frames):
        if f == change:
            on[0][0] = np.setdiff1d(np.arange(15), on[0])[0]
        vectors = []
        for index in on:
            v = np.zeros(15)
            v[index] = rng.standard_normal(3)
            vectors.append(v)
        x = np.einsum("i,j,k->ijk", *vectors)
        clean = multi_product(x, case.dictionaries)
        noises.append(np.mean(clean**2) / 10 ** (snr_db / 10))
        ys.append(clean + noise_like(clean, noises[-1], seed=[seed, f]))
        xs.append(x)
    return case.dictionaries, np.stack(xs), np.stack(ys), np.array(noises)


def test_a_warm_stream_takes_fewer_iterations_at_no_worse_error():
    cold, warm, errors = [], [], []
    for seed in range(3):
        D, xs, ys, noises = stream(seed)
        apart = KronSBL(D).fit_frames(ys, noise_variance=noises)
        followed = KronSBL(D).update(ys, noise_variance=noises)
        cold += [e.iterations for e in apart]
        warm += [e.iterations for e in followed[1:]]
        errors.append([[nmse(e.mean, x) for e, x in zip(found, xs, strict=True)] for found in (apart, followed)])
    medians = np.median(np.asarray(errors), axis=(0, 2))
    assert np.mean(warm) <= 0.5 * np.mean(cold)
    assert medians[1] <= 1.02 * medians[0]


def test_a_path_that_appears_is_found_in_its_frame():
    D, xs, ys, noises = stream(1)
    followed = KronSBL(D).update(ys, noise_variance=noises)
    apart = KronSBL(D).fit(ys[10], noise_variance=noises[10])
    assert nmse(followed[10].mean, xs[10]) <= 1.5 * nmse(apart.mean, xs[10]) + 1e-4


def test_frames_one_by_one_are_the_frames_at_once():
    D, _, ys, noises = stream(2, frames=4)
    model = KronSBL(D)
    one = [model.update(y, noise_variance=n) for y, n in zip(ys, noises, strict=True)]
    for a, b in zip(one, KronSBL(D).update(ys, noise_variance=noises), strict=True):
        np.testing.assert_array_equal(a.mean, b.mean)


def test_a_kept_state_continues_the_stream():
    D, _, ys, noises = stream(3, frames=3)
    whole = KronSBL(D).update(ys, noise_variance=noises)
    resumed = KronSBL(D).warm(whole[1].gammas).update(ys[2], noise_variance=noises[2])
    np.testing.assert_array_equal(resumed.mean, whole[2].mean)


def test_a_frame_of_zeros_is_passed_over():
    D, _, ys, noises = stream(4, frames=3)
    ys[1] = 0
    found = KronSBL(D).update(ys, noise_variance=noises)
    assert not found[1].mean.any()
    np.testing.assert_array_equal(found[2].mean, KronSBL(D).update(ys[[0, 2]], noise_variance=noises[[0, 2]])[1].mean)


def test_a_rejected_frame_changes_nothing():
    D, _, ys, noises = stream(5, frames=2)
    model = KronSBL(D)
    model.update(ys[0], noise_variance=noises[0])
    before, bad = model.state_, ys.copy()
    bad[1, 2, 3, 4] = np.nan
    with pytest.raises(ValueError, match=r"first at snapshot 1, axis 0 2, axis 1 3, axis 2 4"):
        model.update(bad, noise_variance=noises)
    assert model.state_ is before


@settings(max_examples=15)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 2), st.integers(0, 1000))
def test_growing_pilots_are_all_pilots_at_once(cuts, mode, seed):
    rows, sizes = sum(cuts), [5, 4, 6]
    sizes[mode] = rows
    case = synthetic(seed=seed, measurements=sizes, unknowns=(7, 6, 8), sparsity=2, snr_db=20)
    whole = KronSBL(case.dictionaries, method="am").fit(case.y, noise_variance=case.noise_variance)
    model, start = KronSBL(case.dictionaries, method="am"), 0
    for size in cuts:
        part = slice(start, start + size)
        y = np.take(case.y, np.arange(rows)[part], axis=mode)
        found = model.update(y, pilots=case.dictionaries[mode][part], mode=mode, noise_variance=case.noise_variance)
        start += size
    assert model.state_.pilots.triangle.shape[0] <= case.dictionaries[mode].shape[1]
    assert model.state_.pilots.rows == rows
    np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-3, atol=1e-4 * np.abs(whole.mean).max() + 1e-12)
    assert found.cost[-1] == pytest.approx(whole.cost[-1], rel=1e-5, abs=1e-4)


def test_the_noise_is_estimated_from_all_pilots():
    case = synthetic(seed=0, measurements=(40, 12, 15), snr_db=10)
    model = KronSBL(case.dictionaries, noise="estimate")
    for start in range(0, 40, 8):
        part = slice(start, start + 8)
        found = model.update(case.y[part], pilots=case.dictionaries[0][part])
    assert found.noise_variance == pytest.approx(
        KronSBL(case.dictionaries, noise="estimate").fit(case.y).noise_variance, rel=1e-4
    )
    assert found.noise_variance == pytest.approx(case.noise_variance, rel=0.1)


def test_decay_weights_older_pilots_as_noisier_ones():
    rng = np.random.default_rng(0)
    H, y = rng.standard_normal((9, 4)), rng.standard_normal((9, 3))
    kept = first_pilots(H[:6], y[:6], mode=0)
    kept = more_pilots(kept, H[6:], y[6:], decay=0.5)
    w = np.repeat([0.5, 1.0], [6, 3])[:, None]
    np.testing.assert_allclose(kept.triangle.T @ kept.triangle, H.T @ (w * H), atol=1e-12)
    np.testing.assert_allclose(kept.triangle.T @ observed(kept), H.T @ (w * y), atol=1e-12)
    assert kept.rest + np.sum(kept.projected**2) == pytest.approx(np.sum(w * y**2))


def test_decay_follows_a_channel_that_moved():
    case, other = synthetic(seed=1), synthetic(seed=2)
    H = np.random.default_rng(3).standard_normal((40, 15))
    D = (H, *case.dictionaries[1:])
    errors = {}
    for decay in (1.0, 0.1):
        model = KronSBL(D)
        for start in range(0, 40, 8):
            x = case.x if start < 24 else other.x
            y = multi_product(x, (H[start : start + 8], *D[1:]))
            noise = float(np.mean(y**2)) / 100
            found = model.update(
                y + noise_like(y, noise, seed=[start]), pilots=H[start : start + 8], decay=decay, noise_variance=noise
            )
        errors[decay] = nmse(found.mean, other.x)
    assert errors[0.1] < 0.3 * errors[1.0]
