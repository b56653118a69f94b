"""The model: any split gives the same bits, a saved one goes on exactly, objects are found, what stays is absorbed, nothing gives NaN."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from video_scenes import equal, f_measure, still, view, walking

from streamsvd.pipelines.video import BackgroundModel, VideoSettings

FRAMES, TRUTH = walking(300)
GRAY = walking(300, color=False)[0]


def fed(model: BackgroundModel, frames: np.ndarray, cuts: list[int]) -> np.ndarray:
    edges = [0, *sorted(cuts), len(frames)]
    return np.concatenate([model.update(frames[i:j]).mask for i, j in itertools.pairwise(edges)])


@settings(max_examples=8)
@given(cuts=st.lists(st.integers(0, 70), max_size=8), rank=st.sampled_from([1, 2]), color=st.booleans())
def test_any_split_gives_the_same_bits(cuts, rank, color):
    frames = (FRAMES if color else GRAY)[:70]
    whole, parts = (BackgroundModel(rank=rank, color=color) for _ in range(2))
    # The frames of the last block are marked against the background before it, whether or not it is full.
    np.testing.assert_array_equal(whole.update(frames).mask, fed(parts, frames, cuts))
    assert equal(whole, parts)


def test_one_by_one_gives_the_same_bits_as_a_batch():
    batch, single = BackgroundModel(), BackgroundModel()
    masks = batch.update(FRAMES[:150]).mask
    np.testing.assert_array_equal(masks, np.stack([single.apply(frame) for frame in FRAMES[:150]]))
    assert equal(batch, single)


@pytest.mark.parametrize("at", [0, 3, 8, 100, 137, 256])
@pytest.mark.parametrize("rank", [1, 3])
def test_a_saved_model_goes_on_to_the_bit(tmp_path, at, rank):
    frames = FRAMES.copy()
    frames[130:150] = 9  # saved at 137: in the middle of a covered view
    roi = np.ones(frames.shape[1:3])
    roi[:10] = 0
    model = BackgroundModel(rank=rank, roi=roi)
    model.update(frames[:at])
    model.save(tmp_path / "m.svd")
    other = BackgroundModel.load(tmp_path / "m.svd")
    assert equal(model, other)
    one, two = model.update(frames[at:]), other.update(frames[at:])
    for name in ("mask", "weight", "tampered", "fraction", "coef", "background"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)
    assert one.event == two.event
    assert equal(model, other)


def test_a_damaged_file_is_refused(tmp_path):
    model = BackgroundModel()
    model.update(FRAMES[:20])
    path = tmp_path / "m.svd"
    model.save(path)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"m\.svd"):
        BackgroundModel.load(path)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_give_the_same_bits(threads):
    frames, _ = walking(64, h=72, w=96)
    one, two = BackgroundModel(), BackgroundModel(threads=threads)
    np.testing.assert_array_equal(one.update(frames).mask, two.update(frames).mask)


@pytest.mark.parametrize("color", [True, False])
@pytest.mark.parametrize("rank", [1, 3])
def test_a_walking_block_is_found_and_the_background_is_the_view(rank, color):
    out = BackgroundModel(rank=rank, color=color).update(FRAMES if color else GRAY)
    assert f_measure(out.mask[64:], TRUTH[64:]) > 0.98
    # What is lit as the last frame is: a rank above 1 may follow more of it.
    assert np.abs(out.background - view(color=color)).mean() < 1.5
    assert not out.tampered.any()
    assert set(out.event) == {"none"}
    assert out.mask.dtype == np.uint8
    np.testing.assert_allclose(out.fraction[8:], (out.mask[8:] > 0).mean((1, 2)))
    assert 1.0 < out.sigma < 4.0


def test_colour_frames_are_read_as_luma_where_gray_is_asked_for():
    import cv2

    luma = np.stack([cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in FRAMES[:80]])
    one, two = BackgroundModel(color=False), BackgroundModel(color=False)
    a, b = one.update(FRAMES[:80]), two.update(luma)
    assert np.abs(a.background.astype(int) - b.background).max() <= 1
    assert (a.mask != b.mask).mean() < 1e-3


def test_it_replaces_an_opencv_subtractor():
    model = BackgroundModel()
    assert model.getBackgroundImage().size == 0
    first = model.apply(FRAMES[0])
    assert first.shape == (72, 96)
    assert not first.any()  # all background from the first frame on, until there is a start
    kept = np.empty((72, 96), np.uint8)
    for frame in FRAMES[1:150]:
        assert model.apply(frame, kept) is kept
    assert set(np.unique(kept)) == {0, 255}
    assert model.getBackgroundImage().shape == (72, 96, 3)
    with pytest.raises(ValueError, match="memory='30s'"):
        model.apply(FRAMES[0], learningRate=0.01)


@pytest.mark.parametrize("color", [True, False])
@pytest.mark.parametrize(
    ("first", "last", "after"), [(0, 40, 40), (0, 300, 300), (280, 600, 280)], ids=["ghost", "long ghost", "stopped"]
)
def test_what_stays_is_absorbed_within_twice_the_set_time(first, last, after, color):
    frames = still(600, color=color)
    frames[first:last, 20:40, 30:54] = 230
    out = BackgroundModel(color=color, absorb="4s").update(frames)
    share = (out.mask[:, 22:38, 32:52] > 0).mean((1, 2))
    assert share[after + 8] > 0.9  # seen at first
    assert share[after + 200 :].max() < 0.1
    assert not out.tampered.any()


def test_nothing_is_absorbed_where_that_is_switched_off():
    frames = still(600)
    frames[280:, 20:50, 30:70] = 230
    out = BackgroundModel(absorb="0s").update(frames)
    assert (out.mask[-1, 22:48, 32:68] > 0).all()


KINDS = {
    "covered": lambda x: np.full_like(x, 14),
    "noise": lambda x: np.random.default_rng(3).integers(0, 256, x.shape).astype(np.uint8),
    "shifted": lambda x: np.roll(x, 13, axis=1),
    "half covered": lambda x: np.concatenate([x[:, :48], np.full_like(x[:, 48:], 90)], axis=1),
    "flash": lambda x: np.clip(x.astype(float) * 3.3 + 60, 0, 255).astype(np.uint8),
}


@pytest.mark.parametrize("color", [True, False])
@pytest.mark.parametrize("kind", [*KINDS, "defocused"])
def test_tampered_frames_are_flagged_and_leave_no_trace(kind, color):
    import cv2

    alter = KINDS.get(kind, lambda x: cv2.GaussianBlur(x, (0, 0), 3))
    frames = FRAMES.copy() if color else GRAY.copy()
    bad = np.zeros(300, bool)
    bad[[200, 201, 202, 203, 260]] = True
    for i in np.flatnonzero(bad):
        frames[i] = alter(frames[i])
    out, clean = (BackgroundModel(color=color).update(part) for part in (frames, FRAMES if color else GRAY))
    np.testing.assert_array_equal(out.tampered, bad)
    assert {out.event[i] for i in np.flatnonzero(bad)} == {"tampered"}
    assert f_measure(out.mask[100:][~bad[100:]], TRUTH[100:][~bad[100:]]) > 0.97
    assert np.abs(out.background.astype(int) - clean.background).max() <= 3


@pytest.mark.parametrize("color", [True, False])
@pytest.mark.parametrize("gain", [0.6, 1.25])
def test_an_exposure_jump_is_an_event_and_no_tampering(gain, color):
    frames, truth = (FRAMES.copy(), TRUTH) if color else (GRAY.copy(), TRUTH)
    frames[200:] = np.clip(frames[200:] * gain, 0, 255).astype(np.uint8)
    out = BackgroundModel(color=color).update(frames)
    assert not out.tampered.any()
    assert [i for i, event in enumerate(out.event) if event != "none"] == [200]
    assert out.event[200] == "exposure"
    assert f_measure(out.mask[201:], truth[201:]) > 0.95
    np.testing.assert_allclose(out.coef[-1, 0] / out.coef[190, 0], gain, rtol=0.03)


def test_a_new_view_becomes_the_scene_after_the_set_time_and_a_cover_does_not():
    old, new = still(150), still(250, seed=1)[:, ::-1, ::-1]
    out = BackgroundModel(reset="4s").update(np.concatenate([old, new]))
    resets = [i for i, event in enumerate(out.event) if event == "scene_reset"]
    assert len(resets) == 1
    assert 250 <= resets[0] <= 300
    assert out.tampered[150 : resets[0]].all()
    assert not out.tampered[resets[0] + 1 :].any()
    assert out.mask[resets[0] + 60 :].mean() < 2.0
    covered = np.concatenate([old, np.full_like(new, 11), still(50, seed=2)])
    out = BackgroundModel(reset="4s").update(covered)
    assert "scene_reset" not in out.event
    assert out.tampered[150:400].all()
    assert not out.tampered[400:].any()


def test_a_second_component_follows_a_light_that_changes_apart():
    frames = still(600, noise=2.0).astype(float)
    lamp = np.exp(-((np.arange(96) - 70.0) ** 2) / 400)[None, :, None] * 60
    frames += np.sin(np.arange(600) / 12.0)[:, None, None, None] * lamp
    frames = np.clip(frames, 0, 255).astype(np.uint8)
    false = [(BackgroundModel(rank=rank, absorb="0s").update(frames).mask[300:] > 0).mean() for rank in (1, 2)]
    assert false[1] < 0.02 < false[0]


@pytest.mark.parametrize("color", [True, False])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_constant_video_stays_finite_and_is_background(value, color):
    frames = np.full((300, 20, 30, 3)[: 4 if color else 3], value, np.uint8)
    out = BackgroundModel(color=color).update(frames)
    assert not out.mask.any()
    assert not out.tampered.any()
    assert np.isfinite(out.weight).all()
    assert np.isfinite(out.coef).all()
    np.testing.assert_allclose(out.background, value, atol=1)


def test_a_sky_that_was_saturated_is_background_in_less_light():
    light = np.interp(np.arange(300), [0, 100, 300], [1.1, 1.1, 0.8])[:, None, None, None]
    picture = view()
    picture[:30] = 246.0
    noise = np.random.default_rng(0).normal(0, 3, (300, *picture.shape))
    out = BackgroundModel().update(np.clip(light * picture + noise, 0, 255).astype(np.uint8))
    assert (out.mask[8:, :30] > 0).mean() < 0.02
    assert not out.tampered.any()


def test_a_region_of_interest_is_all_that_counts():
    frames = FRAMES.copy()
    frames[150:, :36] = np.random.default_rng(0).integers(0, 256, frames[150:, :36].shape)
    roi = np.zeros((72, 96))
    roi[36:] = 1
    out = BackgroundModel(roi=roi).update(frames)
    assert not out.mask[:, :36].any()
    assert not out.tampered.any()
    assert f_measure(out.mask[64:, 36:], TRUTH[64:, 36:]) > 0.98


def test_the_median_cleans_specks():
    frames = still(80)
    frames[60:, 10, 10] = 250
    frames[60:, 30:50, 30:50] = 250
    raw, clean = (BackgroundModel(median=median).update(frames) for median in (False, True))
    assert raw.mask[-1, 10, 10]
    assert not clean.mask[-1, 10, 10]
    assert clean.mask[-1, 31:49, 31:49].all()
    np.testing.assert_allclose(clean.fraction, (clean.mask > 0).mean((1, 2)))


def test_another_size_begins_a_scene_or_is_an_error():
    small = still(20, h=40, w=50)
    model = BackgroundModel()
    model.update(FRAMES[:40])
    out = model.update(small)
    assert out.event[0] == "scene_reset"
    assert out.background.shape == (40, 50, 3)
    strict = BackgroundModel(resize="error")
    strict.update(FRAMES[:40])
    before = strict.parts()[1]
    with pytest.raises(ValueError, match=r"72 x 96 .* 40 x 50 .*resize='reset'"):
        strict.update(small)
    assert strict.parts()[1] == before


def test_an_empty_batch_and_a_single_frame_are_fine():
    model = BackgroundModel()
    out = model.update(FRAMES[:0])
    assert out.mask.shape == (0, 72, 96)
    assert out.event == ()
    out = model.update(FRAMES[:1])
    assert not out.mask.any()
    assert out.background.shape == (72, 96, 3)


@pytest.mark.parametrize(
    ("frames", "error", "words"),
    [
        (np.zeros((4, 8, 8)), TypeError, "float64"),
        (np.zeros((4, 8, 8, 4), np.uint8), ValueError, "8, 4"),
        (np.zeros((8,), np.uint8), ValueError, "at least 2 x 2"),
        (np.zeros((4, 1, 8), np.uint8), ValueError, "at least 2 x 2"),
    ],
)
def test_what_is_no_batch_of_frames_is_refused(frames, error, words):
    with pytest.raises(error, match=words):
        BackgroundModel().update(frames)


def test_a_roi_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"roi is \(9, 9\)"):
        BackgroundModel(roi=np.ones((9, 9))).update(FRAMES[:2])
    with pytest.raises(ValueError, match="without a pixel"):
        BackgroundModel(roi=np.zeros((9, 9)))


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 0},
        {"rank": True},
        {"alpha": -1},
        {"fps": 0},
        {"memory": "soon"},
        {"memory": "0s"},
        {"absorb": "-1s"},
        {"tau": 0},
        {"least": -3},
        {"resize": "no"},
        {"threads": 0},
        {"reset": "0s"},
    ],
)
def test_settings_without_a_meaning_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        BackgroundModel(**options)


def test_settings_come_as_one_object_or_by_name_and_not_both():
    with pytest.raises(TypeError, match="both settings and alpha"):
        BackgroundModel(settings=VideoSettings(), alpha=0.1)
