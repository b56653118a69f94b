"""Accuracy on real data with default settings: CDnet's highway, clean and tampered with, and a stream that someone tampered with."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from streamsvd.pipelines.video import BackgroundModel

sys.path.append(str(Path(__file__).parents[3] / "bench"))
peers = import_module("video_peers")
pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif("STREAMSVD_DATA" not in os.environ, reason="STREAMSVD_DATA names no folder"),
]


@pytest.fixture(scope="module")
def highway():
    return peers.highway()


@pytest.mark.slow
@pytest.mark.parametrize(("color", "raw", "cleaned"), [(True, 0.90, 0.95), (False, 0.87, 0.93)])
def test_highway_with_default_settings(highway, color, raw, cleaned):
    frames, truth, region = highway
    table = import_module("video")
    model, numbers = BackgroundModel(color=color), range(peers.KNOWN, len(frames))
    out = [model.update(frames[i : i + 64]) for i in range(0, len(frames), 64)]
    masks = np.concatenate([part.mask for part in out])
    assert not np.concatenate([part.tampered for part in out]).any()
    assert peers.f_measure(masks, truth, region, numbers) >= raw
    assert peers.f_measure(peers.cleaned(masks), truth, region, numbers) >= cleaned
    altered, bad = table._tampered(frames)
    out = BackgroundModel(color=color).update(altered)
    np.testing.assert_array_equal(out.tampered, bad)
    kept = [k for k in numbers if not bad[k]]
    lost = [peers.f_measure(m, truth, region, kept) for m in (masks, out.mask)]
    assert lost[0] - lost[1] <= 0.005


@pytest.mark.parametrize("color", [True, False])
def test_a_real_tampering_is_one_block(color):
    image = pytest.importorskip("PIL.Image")
    sequence = pytest.importorskip("PIL.ImageSequence")
    path = Path(os.environ["STREAMSVD_DATA"]) / "video" / "uhctd_stream1" / "stream1_video.gif"
    with image.open(path) as file:
        frames = np.stack([np.array(f.convert("RGB"))[..., ::-1] for f in sequence.Iterator(file)])
    flagged = np.flatnonzero(BackgroundModel(color=color).update(frames).tampered)
    assert np.array_equal(flagged, np.arange(flagged[0], flagged[-1] + 1))
    assert abs(flagged[0] - 118) <= 1
    assert abs(flagged[-1] - 149) <= 1
