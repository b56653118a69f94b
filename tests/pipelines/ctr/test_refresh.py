from __future__ import annotations

import numpy as np
import pytest
from ctr_tables import counts_table, table, vectors, write

from streamsvd.pipelines.ctr.compress import compress_tables, open_compressed
from streamsvd.pipelines.ctr.model import spectrum
from streamsvd.pipelines.ctr.refreshing import refresh

X, NEW = vectors(300, 8), vectors(40, 8, 5)
FIRST, LATER = (np.random.default_rng(i).integers(1, 40, 340).astype(float) for i in (1, 2))
FIRST[300:] = 0.0


@pytest.mark.parametrize("smoothing", [0.0, 3.0])
@pytest.mark.parametrize("fade", [1.0, 0.25])
def test_refresh_equals_recompute(smoothing: float, fade: float) -> None:
    old = compress_tables({"a": X}, {"a": FIRST[:300]}, rank=3, smoothing=smoothing)
    new = refresh(
        old, {"a": X}, {"a": LATER}, new_rows={"a": (np.arange(300, 340), NEW)}, fade=fade, max_angle=0.0
    ).result
    again = compress_tables({"a": np.concatenate([X, NEW])}, {"a": fade * FIRST + LATER}, rank=3, smoothing=smoothing)
    np.testing.assert_allclose(new["a"].eigenvalues, again["a"].eigenvalues, rtol=1e-9)
    np.testing.assert_allclose(new["a"].reconstruct(), again["a"].reconstruct(), atol=1e-5)
    assert new["a"].bytes_after == again["a"].bytes_after
    assert new["a"].dropped == pytest.approx(again["a"].dropped, rel=1e-6)
    assert new.version == 2


def test_a_basis_that_is_good_enough_stays_and_takes_new_ids() -> None:
    old = compress_tables({"a": X}, {"a": FIRST[:300]}, rank=3)
    found = refresh(
        old, {"a": X}, {"a": LATER}, new_rows={"a": (np.arange(300, 340), NEW)}, max_angle=90.0, max_lost=1.0
    )
    new = found.result["a"]
    assert (found.renewed, found.result.version, found.new_ids) == (False, 1, {"a": 40})
    assert np.array_equal(new.projection, old["a"].projection)
    assert np.array_equal(new.table[:300], old["a"].table)
    np.testing.assert_allclose(new.table[300:], (NEW - old["a"].mean) @ old["a"].projection.T, atol=1e-5)
    weights = (FIRST + LATER) / (FIRST + LATER).sum()
    error = weights @ ((np.concatenate([X, NEW]) - new.reconstruct()) ** 2).sum(axis=1)
    assert new.dropped == pytest.approx(error, rel=1e-4)


def test_a_shift_of_traffic_renews_the_bases() -> None:
    x = np.concatenate([vectors(200, 8, 1), vectors(200, 8, 2)])
    left, right = np.repeat([1.0, 0.0], 200), np.repeat([0.0, 1.0], 200)
    old = compress_tables({"a": x}, {"a": left}, rank=2)
    same = refresh(old, {"a": x}, {"a": left})
    assert not same.renewed
    assert same.moves["a"].lost < 1e-9
    other = refresh(old, {"a": x}, {"a": 9 * right})
    assert other.renewed
    assert other.result["a"].error < compress_tables({"a": x}, {"a": left}, rank=2)["a"].energy


def test_versions_on_disk_and_new_ids_there(tmp_path) -> None:
    path = write(tmp_path / "t.parquet", table({"a": X}))
    extra = write(tmp_path / "new.parquet", table({"a": NEW}, {"a": np.arange(300, 340)}))
    compress_tables(path, counts_table({"a": FIRST[:300]}), rank=3, out=tmp_path / "out")
    later = counts_table({"a": LATER})
    kept = refresh(open_compressed(tmp_path / "out"), path, later, new_rows=extra, max_angle=90.0, max_lost=1.0)
    found = open_compressed(tmp_path / "out")
    assert not kept.renewed
    assert found["a"].table.shape == (340, 3)
    assert found["a"].vocabulary == 340
    both = [path, extra]
    done = refresh(found, both, later, max_angle=0.0)
    found = open_compressed(tmp_path / "out")
    assert (done.renewed, found.version) == (True, 2)
    assert (tmp_path / "out" / "v1").is_dir()
    own = spectrum(found.moments.basis("a"))
    np.testing.assert_allclose(own.weight, (FIRST + 2 * LATER).sum())


def test_what_cannot_be_refreshed_is_refused() -> None:
    old = compress_tables({"a": X}, {"a": FIRST[:300]}, rank=3, power=0.5)
    with pytest.raises(ValueError, match="do not add up"):
        refresh(old, {"a": X}, {"a": LATER[:300]})
    old = compress_tables({"a": X}, {"a": FIRST[:300]}, rank=3, model="m1")
    with pytest.raises(ValueError, match="model 'm2' and the state is of model 'm1'"):
        refresh(old, {"a": X}, {"a": LATER[:300]}, model="m2")
    with pytest.raises(ValueError, match="fade=2"):
        refresh(old, {"a": X}, {"a": LATER[:300]}, fade=2)
    with pytest.raises(ValueError, match="stands twice"):
        refresh(old, {"a": X}, {"a": LATER}, new_rows={"a": (np.arange(40), NEW)})
