"""The simulator of ``bench/scale.py`` against real merges, and its costs against what they must be."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from streamsvd.engines.contract import packed
from streamsvd.engines.tree import groups

FILE = Path(__file__).parents[2] / "bench" / "scale.py"


@pytest.fixture(scope="module")
def scale():
    import sys

    spec = importlib.util.spec_from_file_location("bench_scale", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_scale"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("count", "fan_in"), [(64, 2), (64, 8)])
def test_the_error_along_the_tree_is_that_of_real_merges(scale, count, fan_in):
    lines = scale.checked(count, fan_in)
    assert len(lines) == groups(count, fan_in)
    assert all(0.95 < line["ratio"] < 1.1 for line in lines)


def test_the_size_of_a_state_is_that_of_its_bytes(scale):
    state = scale.leaves32(1, 512, 16, 32)[0]
    assert scale.state_bytes(512, 32) == pytest.approx(len(packed(state)), rel=0.1)


def test_a_tree_moves_every_state_but_one_and_a_flat_one_is_slow(scale):
    rates = scale.Rates(fold=1e10, merge=1e10)
    narrow, flat = (scale.cost(scale.Size(1e9, 1000, 32, 256, fan), rates) for fan in (4, 256))
    assert narrow.moved_bytes == flat.moved_bytes == 255 * narrow.state_bytes
    assert (narrow.depth, flat.depth) == (4, 1)
    assert flat.tree_seconds > 10 * narrow.tree_seconds
    assert narrow.bottleneck == "folding"
