"""Factors: coordinates and back, anomaly scores, variances, fewer components, and their way into Arrow and parts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from backends import BACKENDS, digest
from checks import assert_bounds
from streams import Truth, feed, low_rank, orthonormal, rows_of
from streamsvd.arrays import to_numpy
from streamsvd.certificate import Certificate
from streamsvd.factors import Factors, complete_rows
from streamsvd.planner import sketch
from streamsvd.verify import orthonormality

N, D, K = 120, 20, 4
KINDS = ["gram", "truncated"]


def general(seed=0):
    rng = np.random.default_rng(seed)
    return rows_of("1/j", rng, N, D) + 3.0 * rng.standard_normal(D)


def factors(kind="gram", *, rows=None, weights=None, backend=np.asarray, **options):
    rows = general() if rows is None else rows
    state = sketch(**{"columns": rows.shape[1], "rank": K, "kind": kind, **options})
    return feed(state, backend(rows), weights=weights).factors()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_coordinates_and_back(backend, dtype):
    rows = general().astype(dtype)
    f = factors(backend=backend, rows=rows)
    Z = f.transform(backend(rows))
    back = f.inverse_transform(Z)
    V, mean = to_numpy(f.vt).astype(float), to_numpy(f.mean)
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    np.testing.assert_allclose(to_numpy(Z), (rows - mean) @ V.T, rtol=0, atol=tolerance)
    np.testing.assert_allclose(to_numpy(back), (rows - mean) @ V.T @ V + mean, rtol=0, atol=tolerance)
    assert type(Z) is type(back) is type(f.vt)
    assert Z.dtype == back.dtype == f.vt.dtype


def test_uncentred_factors_subtract_nothing():
    rows = general()
    f = factors(rows=rows, center=False)
    np.testing.assert_array_equal(f.mean, np.zeros(D))
    np.testing.assert_allclose(f.transform(rows), rows @ f.vt.T, rtol=0, atol=1e-13)
    np.testing.assert_allclose(f.inverse_transform(f.transform(rows)), rows @ f.vt.T @ f.vt, rtol=0, atol=1e-13)


def test_a_stream_of_low_rank_comes_back_whole():
    rows = low_rank(np.random.default_rng(1), N, D, K) + 7.0
    f = factors(rows=rows)
    np.testing.assert_allclose(f.inverse_transform(f.transform(rows)), rows, rtol=1e-12)
    assert float(to_numpy(f.residual(rows)).max()) <= 1e-24 * float(f.energy)
    assert float(np.abs(f.transform(rows)).min(axis=1).max()) > 0


@pytest.mark.parametrize("scale", [None, np.linspace(0.5, 4, D), "unit"])
def test_the_residual_of_each_row_is_what_reconstruction_misses(scale):
    rows = general()
    f = factors(rows=rows, scale=scale)
    unit = 1.0 if f.scale is None else f.scale
    missed = (rows - f.inverse_transform(f.transform(rows))) / unit
    np.testing.assert_allclose(f.residual(rows), (missed**2).sum(axis=1), rtol=1e-10)
    assert float(f.residual(rows).sum()) == pytest.approx(f.bound.residual, rel=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_leverage_is_the_mahalanobis_distance_within_the_components(backend):
    rows = general()
    f = factors(backend=backend)
    scores = to_numpy(f.transform(backend(rows)))
    expected = (scores**2 / (to_numpy(f.s) ** 2 / (N - 1))).sum(axis=1)
    np.testing.assert_allclose(to_numpy(f.leverage(backend(rows))), expected, rtol=1e-11)
    assert float(expected.sum()) == pytest.approx(K * (N - 1), rel=1e-10)
    np.testing.assert_allclose(to_numpy(f.residual(backend(rows))), to_numpy(factors().residual(rows)), rtol=1e-9)


def test_an_outlier_stands_out_in_one_of_the_two_scores():
    rows = general()
    f = factors()
    inside, outside = rows[:1] + 50 * f.vt[:1], rows[:1] + 5 * orthonormal(np.random.default_rng(2), 1, D)
    assert float(f.leverage(inside)[0]) > 10 * float(f.leverage(rows).max())
    assert float(f.residual(inside)[0]) == pytest.approx(float(f.residual(rows[:1])[0]), rel=1e-6)
    assert float(f.residual(outside)[0]) > 2 * float(f.residual(rows).max())


def test_components_without_variance_have_no_leverage():
    rows = low_rank(np.random.default_rng(3), N, D, 2)
    f = factors(rows=rows)
    np.testing.assert_allclose(float(f.leverage(rows).sum()), 2 * (N - 1), rtol=1e-9)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("scale", [None, np.linspace(0.5, 4, D)])
def test_sparse_rows_are_transformed_like_dense_ones(scale, dtype):
    dense = general() * (np.random.default_rng(4).random((N, D)) < 0.3)
    rows = sparse.csr_array(dense.astype(dtype))
    f = factors(rows=rows.toarray(), scale=scale)
    tolerance = 1e-12 if dtype == "float64" else 1e-4
    np.testing.assert_allclose(f.transform(rows), f.transform(rows.toarray()), rtol=0, atol=tolerance)
    np.testing.assert_allclose(f.residual(rows), f.residual(rows.toarray()), rtol=1e-4, atol=tolerance)
    assert f.transform(rows).dtype == f.vt.dtype


@pytest.mark.parametrize(
    "layout", [np.asfortranarray, lambda x: x[::-1][::-1], lambda x: np.repeat(x, 2, axis=1)[:, ::2]]
)
def test_rows_in_any_layout_are_transformed_alike(layout):
    rows = general()
    f = factors()
    np.testing.assert_array_equal(f.transform(layout(rows)), f.transform(rows))
    read_only = rows.copy()
    read_only.flags.writeable = False
    np.testing.assert_array_equal(f.residual(read_only), f.residual(rows))


def test_many_rows_are_transformed_in_chunks():
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((70_000, D)).astype("float32")
    f = factors(rows=rows[:1000])
    Z = f.transform(rows)
    assert Z.shape == (70_000, K)
    np.testing.assert_allclose(Z[-5:], f.transform(rows[-5:]), rtol=1e-5, atol=1e-6)
    assert f.residual(rows).shape == (70_000,)
    assert f.transform(rows[:0]).shape == (0, K)
    assert f.residual(rows[:0]).shape == (0,)


def test_rows_of_another_width_or_not_finite_are_refused():
    f = factors()
    for method in (f.transform, f.residual, f.leverage):
        with pytest.raises(ValueError, match=f"19 columns.*{D}"):
            method(general()[:, :19])
        with pytest.raises(ValueError, match="NaN"):
            method(np.full((2, D), np.nan))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("center", [True, False])
def test_variances_are_those_of_the_whole_stream(kind, center):
    """Also the noise, which others average over the tail of the last merge only."""
    rows = general()
    weights = np.random.default_rng(6).integers(1, 4, N)
    f = factors(kind, rows=rows, weights=weights, center=center, kept=K if kind == "truncated" else None)
    truth = Truth(rows, weights=weights, center=center)
    dof = weights.sum() - center
    assert f.dof == dof
    assert f.weight == weights.sum()
    np.testing.assert_allclose(f.explained_variance, f.s**2 / dof, rtol=1e-13)
    np.testing.assert_allclose(f.explained_variance_ratio, f.s**2 / truth.energy, rtol=1e-12)
    assert f.noise_variance == pytest.approx((truth.energy - float((f.s**2).sum())) / (D - K) / dof, rel=1e-9)
    if kind == "gram":
        np.testing.assert_allclose(f.explained_variance, truth.s[:K] ** 2 / dof, rtol=1e-11)
        assert f.noise_variance == pytest.approx(truth.optimal(K) / (D - K) / dof, rel=1e-9)


def test_the_noise_is_right_where_it_is_a_rounding_of_the_energy():
    rng = np.random.default_rng(7)
    rows = low_rank(rng, 400, D, K) + 1e-6 * rng.standard_normal((400, D))
    for kind in KINDS:
        f, truth = factors(kind, rows=rows), Truth(rows)
        assert f.noise_variance == pytest.approx(truth.optimal(K) / (D - K) / 399, rel=1e-2)


def test_all_components_leave_no_noise():
    f = factors(rank=D)
    assert f.noise_variance == 0
    assert float(f.explained_variance_ratio.sum()) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_components_are_the_first_ones_and_stay_certified(kind):
    rows = general()
    f, truth = factors(kind, rows=rows, kept=None), Truth(rows)
    for k in range(1, K + 1):
        cut = f.truncate(rank=k)
        np.testing.assert_array_equal(cut.s, f.s[:k])
        np.testing.assert_array_equal(cut.vt, f.vt[:k])
        assert cut.rank == k
        assert_bounds(cut, truth)
        assert cut.energy == f.energy
    residuals = [f.truncate(rank=k).bound.residual for k in range(1, K + 1)]
    assert np.all(np.diff(residuals) < 0)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_share_of_the_energy_takes_the_fewest_components(share):
    f = factors(rank=D)
    held = np.cumsum(f.explained_variance_ratio)
    cut = f.truncate(energy=share)
    assert held[cut.rank - 1] >= share
    assert cut.rank == 1 or held[cut.rank - 2] < share
    assert f.truncate(energy=1.0).rank == D


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "exactly one"),
        ({"rank": 2, "energy": 0.5}, "exactly one"),
        ({"rank": 0}, "outside 1 .. 4"),
        ({"rank": 5}, "outside 1 .. 4.*larger rank"),
        ({"energy": 0.0}, "not a share"),
        ({"energy": 1.5}, "not a share"),
        ({"energy": 0.9999}, "hold 0.*larger rank"),
    ],
)
def test_what_cannot_be_kept_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        factors().truncate(**options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("options", [{}, {"center": False}, {"scale": np.linspace(1, 2, D)}])
def test_arrow_and_back_are_the_same_bits(kind, dtype, options):
    pa = pytest.importorskip("pyarrow")
    f = factors(kind, rows=general().astype(dtype), **options)
    table = f.to_arrow()
    assert table.column_names == ["component", "s", "vt"]
    assert table.num_rows == K
    assert table.schema.field("vt").type == pa.list_(pa.float32() if dtype == "float32" else pa.float64(), D)
    np.testing.assert_array_equal(table["s"].to_numpy(), f.s.astype(float))
    again = Factors.from_arrow(table)
    assert digest(again) == digest(f)
    assert again.bound.residual == f.bound.residual
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    assert digest(Factors.from_arrow(pa.ipc.open_file(sink.getvalue()).read_all())) == digest(f)


def test_a_foreign_table_is_no_factors():
    pa = pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match=r"no streamsvd metadata.*to_arrow"):
        Factors.from_arrow(pa.table({"s": [1.0]}))


@pytest.mark.parametrize("backend", BACKENDS)
def test_parts_and_back_are_the_same_bits(backend):
    f = factors("truncated", backend=backend, keep_left=True, kept=8)
    again = Factors.from_parts(*f.parts())
    assert digest(again) == digest(f)
    assert type(again.vt) is type(f.vt)
    assert again.bound.residual == f.bound.residual
    assert again.u.shape == (N, K)
    np.testing.assert_array_equal(
        to_numpy(again.transform(backend(general()))), to_numpy(f.transform(backend(general())))
    )


def test_factors_without_a_certificate_have_no_bound():
    f = Factors(s=np.array([3.0, 2.0]), vt=np.eye(5)[:2], mean=np.zeros(5), rows=10, weight=10.0, norm=4.0)
    assert f.bound is None
    np.testing.assert_allclose(f.explained_variance_ratio, [9 / 16, 4 / 16])
    assert f.noise_variance == pytest.approx(3 / 3 / 9)
    assert f.effective_rows == 10
    assert digest(Factors.from_parts(*f.parts())) == digest(f)


def test_effective_rows_are_kishs():
    weights = np.array([1.0, 2.0, 3.0] * 40)
    f = factors(weights=weights)
    assert f.effective_rows == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    assert factors().effective_rows == N


def test_a_certificate_survives_json():
    f = factors("truncated", kept=8)
    arrays, meta = f.parts()
    import json

    again = Factors.from_parts(arrays, json.loads(json.dumps(meta)))
    assert isinstance(again.certificate, Certificate)
    assert digest(again) == digest(f)


@pytest.mark.parametrize("given", [0, 1, 3])
def test_completed_rows_are_orthonormal(given):
    rows = orthonormal(np.random.default_rng(8), max(given, 1), 6)[:given]
    full = complete_rows(rows, 6)
    assert full.shape == (6, 6)
    assert orthonormality(full) <= 1e-14
    np.testing.assert_array_equal(full[:given], rows)
    assert complete_rows(full, 2).shape == (2, 6)
