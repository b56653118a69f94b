"""The public face as users meet it: every call of it, in the order in which it is written down, on one small stream."""

from __future__ import annotations

import numpy as np
import pytest

import streamsvd as ss
from streamsvd import verify


@pytest.fixture
def rows():
    rng = np.random.default_rng(4)
    return (rng.standard_normal((900, 64)) * 0.8 ** np.arange(64) + 2.0).astype(np.float32)


def test_a_sketch_is_folded_merged_read_and_saved(rows, tmp_path):
    X, other_rows, w = rows[:500], rows[500:], np.linspace(0.5, 2.0, 500)

    sketch = ss.sketch(columns=64, rank=8, center=True)
    assert sketch.plan is not None
    assert sketch.plan.reason
    sketch = sketch.update(X)
    weighted = sketch.update(X, weights=w)
    assert weighted.rows == 1000
    other = ss.sketch(columns=64, rank=8, center=True).update(other_rows)
    both = sketch.merge(other)
    assert np.array_equal((sketch + other).factors().vt, both.factors().vt)

    f = both.factors()
    truth = np.linalg.svd(rows.astype(float) - rows.mean(0, dtype=float), compute_uv=False)
    residual = verify.residual(rows, f.vt, mean=f.mean)
    assert f.rows == 900
    assert f.weight == pytest.approx(900)
    assert f.energy == pytest.approx(np.sum(truth**2), rel=1e-5)
    assert f.s == pytest.approx(truth[:8], rel=1e-3)
    assert f.explained_variance == pytest.approx(truth[:8] ** 2 / 899, rel=2e-3)
    assert f.explained_variance_ratio == pytest.approx(truth[:8] ** 2 / np.sum(truth**2), rel=2e-3)
    assert f.noise_variance == pytest.approx(residual / (56 * 899), rel=0.05)

    low, high = f.bound.sigma
    assert np.all(low <= truth[:8])
    assert np.all(truth[:8] <= high)
    assert residual <= f.bound.residual <= 1.05 * residual
    outside = (rows - f.mean) @ (np.eye(64) - f.vt.T @ f.vt)
    assert 0 < np.linalg.norm(outside, 2) ** 2 <= f.bound.spectral
    assert f.bound.optimal[0] <= np.sum(truth[8:] ** 2) <= f.bound.optimal[1]
    assert f.bound.estimate > 0

    Z = f.transform(rows)
    assert f.inverse_transform(Z) == pytest.approx(rows, abs=1.5)
    assert f.residual(rows).sum() == pytest.approx(residual, rel=1e-4)

    ss.save(both, tmp_path / "state.svd")
    again = ss.load(tmp_path / "state.svd")
    assert np.array_equal(again.factors().vt, f.vt)
    ss.save(f, tmp_path / "factors.svd")
    assert np.array_equal(ss.load(tmp_path / "factors.svd").vt, f.vt)


def test_a_stream_of_files_is_fitted_by_a_glob(rows, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for i, part in enumerate(np.array_split(rows, 3)):
        column = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), 64)
        pq.write_table(pa.table({"embedding": column}), tmp_path / f"{i}.parquet")

    f = ss.fit(str(tmp_path / "*.parquet"), rank=8, select="embedding", progress=False)

    direct = ss.fit(rows, rank=8, kind="auto", progress=False)
    assert f.rows == 900
    assert np.array_equal(f.vt, direct.vt)
    assert f.names == ("embedding",) or len(f.names) == 64


def test_a_stream_is_fitted_again_from_its_checkpoint(rows, tmp_path):
    np.save(tmp_path / "rows.npy", rows)
    source, run = tmp_path / "rows.npy", str(tmp_path / "run.svd")

    f = ss.fit(source, rank=8, kind="auto", checkpoint=run, every=200, progress=False)
    again = ss.fit(source, rank=8, kind="auto", checkpoint=run, every="30s", progress=False)

    assert np.array_equal(again.vt, f.vt)
    assert np.array_equal(f.vt, ss.fit(rows, rank=8, progress=False).vt)
    assert ss.load(run).rows == again.rows == 900
    assert ss.transform(f, source).read_all().num_rows == 900
    assert ss.scan_scores(f, source).collect().height == 900


def test_the_commands_of_the_design_run_as_they_are_written(rows, tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from streamsvd.cli import main

    monkeypatch.chdir(tmp_path)
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), 64)
    pq.write_table(pa.table({"embedding": column}), "data.parquet")
    for line in (
        "fit data.parquet --rank 8 --select embedding --checkpoint run.svd --out model.svd",
        "fit data.parquet --rank 8 --select embedding --state --out a.svd",
        "fit data.parquet --rank 8 --select embedding --state --out b.svd",
        "transform model.svd data.parquet --out scores.parquet",
        "merge a.svd b.svd --out ab.svd",
        "inspect model.svd",
        "inspect model.svd --json",
        "report model.svd --out report.html",
    ):
        assert main(line.split()) == 0, line
    assert ss.load("ab.svd").rows == 1800
    assert pq.read_metadata("scores.parquet").num_rows == 900


def test_estimators_are_imported_at_first_use(rows):
    from streamsvd import StreamingPCA, StreamingSVD

    pca = StreamingPCA(n_components=4).partial_fit(rows[:300]).partial_fit(rows[300:])
    merged = StreamingPCA(n_components=4).fit(rows[:300]).merge(StreamingPCA(n_components=4).fit(rows[300:]))
    assert pca.transform(rows).shape == (900, 4)
    assert merged.singular_values_ == pytest.approx(pca.singular_values_, rel=1e-3)
    assert StreamingSVD(n_components=4).fit(rows).singular_values_[0] > 2 * pca.singular_values_[0]


def test_pytorch_rows_stay_pytorch(rows):
    torch = pytest.importorskip("torch")
    f = ss.sketch(columns=64, rank=8).update(torch.from_numpy(rows)).factors()
    assert isinstance(f.vt, torch.Tensor)
    assert isinstance(f.transform(torch.from_numpy(rows)), torch.Tensor)
    assert f.vt.dtype == torch.float32


def test_columns_that_appear_later_widen_a_state(rows):
    wide = ss.widen(ss.sketch(columns=60, rank=8, kind="truncated").update(rows[:500, :60]), 64).update(rows[500:])
    padded = rows.copy()
    padded[:500, 60:] = 0.0
    whole = ss.sketch(columns=64, rank=8, kind="truncated").update(padded)
    assert wide.factors().s == pytest.approx(whole.factors().s, rel=1e-4)
