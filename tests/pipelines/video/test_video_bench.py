"""The benchmark and the example run, and the peers are what they say. Nothing here judges speed."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from video_scenes import f_measure, walking

pytest.importorskip("cv2")
ROOT = Path(__file__).parents[3]
sys.path.append(str(ROOT / "bench"))
peers = import_module("video_peers")
table = import_module("video")


def ran(*words: str) -> str:
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("method", "least"), [(peers.median_masks, 0.9), (peers.svd_masks, 0.4), (peers.pcp_masks, 0.8)]
)
def test_the_batch_peers_find_a_walking_block(method, least):
    frames, truth = walking(60, color=False)
    assert f_measure(method(frames), truth) > least


def test_principal_component_pursuit_splits_low_rank_from_sparse():
    rng = np.random.default_rng(0)
    low = np.outer(rng.uniform(0.8, 1.2, 40), rng.uniform(80, 160, 600))
    spots = rng.random(low.shape) < 0.05
    frames = np.clip(low + 70 * spots, 0, 255).astype(np.uint8).reshape(40, 20, 30)
    masks = peers.pcp_masks(frames, steps=60).reshape(40, 600) > 0
    assert (masks == spots).mean() > 0.995


def test_a_figure_that_misses_its_target_is_marked():
    assert table._marked(3.0, 4.0, above=True) == "3.000 (>= 4, MISSED)"
    assert table._marked(3.0, 4.0, above=False) == "3.000 (<= 4)"
    assert table._marked(3.0, None, above=True) == "3.000"


@pytest.mark.slow
def test_the_speed_table_has_everyone(tmp_path):
    pytest.importorskip("sklearn")
    shown = ran("bench/video.py", "speed", "--quick", "--json", str(tmp_path / "rows.json"))
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["frames"] for row in rows] == [f"{s} {k}" for s in ("320x240", "1280x720") for k in ("gray", "colour")]
    assert "update 16 / MOG2" in shown
    assert all(row["of bandwidth"] > 0 for row in rows)


@pytest.mark.slow
def test_the_example_runs():
    pytest.importorskip("sklearn")
    assert "BackgroundModel" in ran("examples/11_background.py", "--quick")
