"""The sweep agrees with its float64 oracle, in every shape; parts of a picture are independent; order statistics and medians are exact."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsvd.kernels import video, video_image_numba
from streamsvd.kernels.video import Arrays, Rule
from streamsvd.pipelines.video import VideoSettings
from streamsvd.pipelines.video.start import FrameBuffer, begin

RULE = VideoSettings().rule(3)


def state_of(m: int, channels: int, rank: int, seed: int = 0, *, rival: bool = True) -> Arrays:
    rng = np.random.default_rng(seed)
    u = rng.uniform(30, 220, (rank * channels, m)).astype(np.float32)
    u[channels:] = rng.uniform(-10, 10, ((rank - 1) * channels, m))
    pairs = rank * (rank + 1) // 2
    moments = np.zeros((pairs + rank * channels, m), np.float32)
    for k in range(rank):
        moments[k * (k + 3) // 2] = 10
    moments[pairs:] = 10 * u
    kept = m if rival else 0
    s2 = rng.uniform(4, 60, m).astype(np.float32)
    return Arrays(u, moments, s2, np.zeros((channels, kept), np.float32), np.zeros(kept, np.float32))


def drawn(state: Arrays, channels: int, rank: int, b: int, seed: int = 1) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    m = state.s2.size
    coef = np.concatenate([rng.uniform(0.8, 1.2, (b, 1)), rng.normal(0, 1, (b, rank - 1))], axis=1).astype(np.float32)
    u = state.u.reshape(rank, channels, m).astype(np.float64)
    x = np.einsum("br,rcm->bmc", coef, u) + rng.normal(0, 1, (b, m, channels)) * np.sqrt(state.s2)[:, None]
    x[rng.random((b, m)) < 0.1] = 240.0
    frames = np.clip(np.rint(x), 0, 255).astype(np.uint8).reshape(b, m * channels)
    return frames, coef, rng.integers(0, 2, b).astype(np.uint8)


def copied(state: Arrays) -> Arrays:
    return Arrays(*(np.array(getattr(state, name)) for name in ("u", "moments", "s2", "v", "n2")))


@settings(max_examples=25)
@given(
    m=st.sampled_from([1, 7, 1000, 2048, 2049, 4500]),
    channels=st.sampled_from([1, 3]),
    rank=st.integers(1, 3),
    b=st.sampled_from([1, 5, 16]),
    seed=st.integers(0, 99),
)
def test_the_sweep_agrees_with_its_oracle(m, channels, rank, b, seed):
    state = state_of(m, channels, rank, seed, rival=False)
    frames, coef, usable = drawn(state, channels, rank, b, seed + 1)
    roi = (np.random.default_rng(seed).random(m) < 0.9).astype(np.uint8)
    mask, after = video.sweep(frames, coef, usable, state, roi, RULE)
    out = np.empty((b, m), np.uint8)
    moved = copied(state)
    counts = video.learn(out, frames, coef, usable, moved, roi, RULE)
    assert (out != mask).mean() <= 1e-3  # of float32 beside float64, at the very threshold
    np.testing.assert_array_equal(counts, (out > 0).sum(1))
    assert not out[:, roi == 0].any()
    for name in ("u", "moments", "s2"):
        got, want = getattr(moved, name), getattr(after, name)
        np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-3 * max(np.abs(want).max(), 1.0), err_msg=name)
    if not usable.any():
        assert np.array_equal(moved.u, state.u)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("rank", [1, 2])
def test_look_marks_the_same_bits_as_learn_and_moves_nothing(channels, rank):
    state = state_of(5000, channels, rank)
    frames, coef, usable = drawn(state, channels, rank, 16)
    frames.flags.writeable = False
    roi, kept = np.ones(5000, np.uint8), copied(state)
    looked, learned = (np.empty((16, 5000), np.uint8) for _ in range(2))
    counts = video.look(looked, frames, coef, state, roi, RULE)
    assert all(np.array_equal(getattr(state, n), getattr(kept, n)) for n in ("u", "moments", "s2"))
    np.testing.assert_array_equal(counts, video.learn(learned, frames, coef, usable, state, roi, RULE))
    np.testing.assert_array_equal(looked, learned)


@pytest.mark.parametrize("rank", [1, 2])
def test_parts_side_by_side_give_the_same_bits(rank):
    one = state_of(9000, 3, rank)
    frames, coef, usable = drawn(one, 3, rank, 16)
    two, roi = copied(one), np.ones(9000, np.uint8)
    masks = [np.empty((16, 9000), np.uint8) for _ in range(2)]
    first = video.learn(masks[0], frames, coef, usable, one, roi, RULE)
    with ThreadPoolExecutor(3) as pool:
        second = video.learn(masks[1], frames, coef, usable, two, roi, RULE, pool=pool, threads=3)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(*masks)
    for name in ("u", "moments", "s2", "v", "n2"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_what_stays_becomes_the_background_and_the_old_background_waits():
    rule = Rule(**{**RULE.__dict__, "patience": 20.0, "keep": 1.0})
    state = begin(np.full((8, 50 * 3), 60, np.uint8), rank=1, channels=3, rival=True)
    frames, coef = np.full((16, 150), 200, np.uint8), np.ones((16, 1), np.float32)
    out, roi, usable = np.empty((16, 50), np.uint8), np.ones(50, np.uint8), np.ones(16, np.uint8)
    seen = []
    for _ in range(3):
        video.learn(out, frames, coef, usable, state, roi, rule)
        seen.append(out.any())
    assert seen == [True, True, False]
    np.testing.assert_allclose(state.u, 200, atol=0.01)
    np.testing.assert_allclose(state.v, 60, atol=0.01)


@given(b=st.integers(1, 33), m=st.integers(1, 60), channels=st.sampled_from([1, 3]), seed=st.integers(0, 999))
def test_a_start_is_the_median_and_a_bounded_spread(b, m, channels, seed):
    frames = np.random.default_rng(seed).integers(0, 256, (b, m * channels)).astype(np.uint8)
    state = begin(frames, rank=1, channels=channels, rival=False)
    x = frames.reshape(b, m, channels).astype(float)
    np.testing.assert_allclose(state.u.T, np.median(x, axis=0), atol=1e-3)
    upper = np.sort(frames, axis=0)[b // 2].reshape(m, channels)
    spread = np.sort(np.abs(x - upper), axis=0)[b // 2] * 1.4826
    dazzled = np.median(x, axis=0).max(1) >= 254
    least = np.where(dazzled, video_image_numba.DAZZLED, 4)
    np.testing.assert_allclose(state.s2, np.clip((spread**2).mean(1), least, 100), rtol=1e-5)


@given(h=st.integers(1, 12), w=st.integers(1, 12), seed=st.integers(0, 999))
def test_the_median_of_a_mask_is_that_of_25_neighbours(h, w, seed):
    mask = np.where(np.random.default_rng(seed).random((h, w)) < 0.5, 255, 0).astype(np.uint8)
    out = np.empty(h * w, np.uint8)
    video_image_numba.median5(out, mask.reshape(-1), (h, w))
    near = np.lib.stride_tricks.sliding_window_view(np.pad(mask, 2, mode="edge"), (5, 5))
    np.testing.assert_array_equal(out.reshape(h, w), np.median(near, axis=(2, 3)))


def test_a_buffer_keeps_few_frames_that_span_all():
    buffer = FrameBuffer(1, 8)
    for i in range(200):
        buffer.add(np.array([i], np.uint8))
    kept = buffer.view()[:, 0].tolist()
    assert len(kept) <= 8
    assert set(np.diff(kept)) == {buffer.stride}
    assert kept[0] == 0
    assert kept[-1] > 200 - 2 * buffer.stride


@settings(max_examples=10)
@given(value=st.integers(0, 255), channels=st.sampled_from([1, 3]))
def test_constant_pictures_stay_finite(value, channels):
    frames = np.full((16, 30 * channels), value, np.uint8)
    state = begin(frames[:8], rank=1, channels=channels, rival=True)
    out, coef = np.empty((16, 30), np.uint8), np.ones((16, 1), np.float32)
    for _ in range(3):
        video.learn(out, frames, coef, np.ones(16, np.uint8), state, np.ones(30, np.uint8), RULE)
    assert not out.any()
    for name in ("u", "moments", "s2", "v", "n2"):
        assert np.isfinite(getattr(state, name)).all()
    np.testing.assert_allclose(state.u, value, atol=1e-3)
    assert (state.s2 >= RULE.floor).all()
