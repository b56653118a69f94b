"""Every source gives what its array gives, names are kept, and what is refused is explained."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from estimator_rows import names, rows
from streamsvd import StreamingPCA, StreamingSVD


def test_any_source_gives_what_its_array_gives(tmp_path):
    X = rows(500, 10)
    table = pa.table(dict(zip(names(10), X.T, strict=True)))
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=100)
    np.save(tmp_path / "rows.npy", X)
    frame = pl.DataFrame(table)
    expected = StreamingPCA(3).fit(X)
    assert expected.components_.any()
    named = [tmp_path / "rows.parquet", str(tmp_path / "*.parquet"), table, table.to_reader(99), frame, frame.lazy()]
    named.append([frame[:200], frame[200:]])
    plain = [
        tmp_path / "rows.npy",
        (batch for batch in np.array_split(X, 7)),
        np.array_split(X, 7),
        X.tolist(),
        np.asfortranarray(X),
    ]
    for source in named + plain:
        got = StreamingPCA(3).fit(source)
        assert np.array_equal(got.components_, expected.components_), type(source)
        assert got.n_samples_seen_ == 500
        assert hasattr(got, "feature_names_in_") == any(source is one for one in named)
    got = StreamingPCA(3).fit(tmp_path / "rows.parquet")
    assert list(got.feature_names_in_) == names(10)
    for source in (tmp_path / "rows.parquet", table, frame, frame.lazy(), [frame[:200], frame[200:]]):
        np.testing.assert_allclose(got.transform(source), expected.transform(X), atol=1e-12)
        assert got.score(source) == pytest.approx(expected.score(X), rel=1e-9)


def test_a_column_of_lists_is_a_matrix():
    X = rows(50, 6).astype(np.float32)
    frame = pl.DataFrame({"embedding": X}, schema={"embedding": pl.Array(pl.Float32, 6)})
    pca = StreamingPCA(2).fit(frame)
    assert pca.n_features_in_ == 6
    assert pca.feature_names_in_[5] == "embedding[5]"
    assert np.array_equal(pca.transform(frame), StreamingPCA(2).fit(X).transform(X))
    assert pca.transform(frame).any()


def test_weights_come_from_a_column_or_an_array(tmp_path):
    X, w = rows(90, 5), np.random.default_rng(0).random(90)
    bare = pl.DataFrame(X, schema=names(5))
    frame = bare.with_columns(w=w)
    frame.write_parquet(tmp_path / "rows.parquet")
    expected = StreamingPCA(2).fit(X, sample_weight=w)
    assert not np.allclose(expected.components_, StreamingPCA(2).fit(X).components_, atol=1e-4)
    for pca in (
        StreamingPCA(2).fit(tmp_path / "rows.parquet", sample_weight="w"),
        StreamingPCA(2).fit(frame, sample_weight="w"),
        StreamingPCA(2).fit(bare, sample_weight=w),
    ):
        np.testing.assert_allclose(pca.components_, expected.components_, atol=1e-12)
        assert list(pca.feature_names_in_) == names(5)


def test_half_precision_and_integers_are_widened():
    torch = pytest.importorskip("torch")
    X = np.round(rows(60, 5))
    expected = StreamingPCA(2).fit(X).singular_values_
    assert expected.all()
    np.testing.assert_allclose(StreamingPCA(2).fit(X.astype(np.int64)).singular_values_, expected)
    half = StreamingPCA(2).fit(torch.asarray(X).to(torch.bfloat16).requires_grad_())
    assert half.components_.dtype == torch.float32
    np.testing.assert_allclose(half.singular_values_.numpy(), expected, rtol=1e-2)


@pytest.mark.parametrize("library", ["polars", "pandas"])
def test_frames_go_in_and_come_out_with_names(library):
    module = pytest.importorskip(library)
    X = rows(40, 5)
    frame = module.DataFrame(dict(zip(names(5), X.T, strict=True)))
    pipe = make_pipeline(StandardScaler(), StreamingPCA(2)).set_output(transform=library)
    Z = pipe.fit_transform(frame)
    assert type(Z) is module.DataFrame
    assert list(Z.columns) == ["streamingpca0", "streamingpca1"] == list(pipe.get_feature_names_out())
    np.testing.assert_allclose(Z.to_numpy(), PCA(2).fit_transform(StandardScaler().fit_transform(X)), atol=1e-8)
    pca = StreamingPCA(2).fit(frame)
    assert list(pca.feature_names_in_) == names(5)
    with pytest.raises(ValueError, match="feature names should match"):
        pca.partial_fit(frame[names(5)[::-1]])
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        assert pca.transform(X).any()
    back = pca.inverse_transform(pca.set_output(transform=library).transform(frame))
    np.testing.assert_allclose(back, PCA(2).fit(X).inverse_transform(PCA(2).fit_transform(X)), atol=1e-8)


def test_torch_coordinates_come_out_as_a_frame():
    torch = pytest.importorskip("torch")
    X = rows(40, 5)
    Z = StreamingSVD(2).set_output(transform="polars").fit_transform(torch.asarray(X))
    np.testing.assert_allclose(Z.to_numpy(), StreamingSVD(2).fit_transform(X), atol=1e-12)
    assert Z.columns == ["streamingsvd0", "streamingsvd1"]


def with_nan(X):
    X = X.copy()
    X[7, 2] = np.nan
    return X


@pytest.mark.parametrize(
    ("bad", "more", "says"),
    [
        (with_nan(rows(20)), {}, "NaN"),
        (rows(20)[0], {}, "Expected 2D array"),
        (rows(20, 29), {}, "29 features, but StreamingPCA is expecting 30"),
        (rows(20) + 1j, {}, "Complex data not supported"),
        (rows(20).astype("timedelta64[s]"), {}, "timedelta64"),
        (np.ma.masked_greater(rows(20), 3.0), {}, "masked entries"),
        (np.full((20, 30), "x"), {}, "could not convert string"),
        (pl.DataFrame(rows(20), schema=names(30)).with_columns(c3=None), {}, "'c3' has 20"),
        (pl.DataFrame(rows(20), schema=names(30)).with_columns(c3=pl.lit("x")), {}, "'c3'"),
        (rows(20), {"sample_weight": -np.ones(20)}, "not negative"),
        (rows(20), {"sample_weight": np.ones(19)}, "shape"),
        (rows(20), {"timestamps": np.arange(20.0)}, "half_life"),
        ([rows(20), with_nan(rows(20))], {}, "rows 20 to 39.*NaN"),
        ({"a": [1.0]}, {}, "dict"),
        ("no/such/file.parquet", {}, "no/such/file.parquet"),
        (17, {}, "int"),
    ],
)
def test_a_rejected_batch_is_explained_and_changes_nothing(bad, more, says):
    fresh, fitted = StreamingPCA(3), StreamingPCA(3).fit(rows())
    another_width = "29 features" in says  # which a fit may bring
    before = dict(vars(fitted))
    for call in (fitted.partial_fit, fitted.fit):
        if another_width and call == fitted.fit:
            continue
        with pytest.raises((ValueError, TypeError, FileNotFoundError), match=f"(?s){says}"):
            call(bad, **more)
        assert vars(fitted) == before
    if not another_width:
        with pytest.raises((ValueError, TypeError, FileNotFoundError)):
            fresh.partial_fit(bad, **more)
        assert vars(fresh) == vars(StreamingPCA(3))
    assert fitted.transform(rows()).any()


def test_a_source_that_can_be_read_once_is_not_read_twice():
    with pytest.raises(TypeError, match="generator gives them once"):
        StreamingPCA(2).fit_transform(batch for batch in [rows()])


def test_a_source_without_rows_is_refused():
    fitted = StreamingPCA(2).fit(rows())
    for call in (StreamingPCA(2).fit, fitted.fit, fitted.transform):
        with pytest.raises(ValueError, match="row"):
            call(iter([]))
    assert fitted.transform(rows()).any()
