"""Scores of rows: as a stream, as a file and as a lazy query they are what the factors give, with the ids that belong to them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

import streamsvd as ss
from streamsvd.flow.scan import scan_scores
from streamsvd.flow.scores import transform, write_scores
from streamsvd.tables import digest

D, N = 6, 500
X = (np.random.default_rng(3).standard_normal((N, D)) * 0.6 ** np.arange(D) + 1.0).astype(np.float32)
LISTS = pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), D)
WORDS = pa.array([f"row {i}" if i % 7 else None for i in range(N)])
TABLE = pa.table({"id": np.arange(N), "e": LISTS, "word": WORDS})
WIDE = pa.table({"id": np.arange(N), **{f"c{j}": X[:, j] for j in range(D)}})


@pytest.fixture(scope="module")
def factors():
    return ss.fit(TABLE, rank=3, select="e")


def scores_of(table) -> np.ndarray:
    return np.stack(table["scores"].to_pylist()) if len(table) else np.empty((0, 3))


def sources(tmp_path):
    pq.write_table(TABLE, tmp_path / "t.parquet", row_group_size=90)
    return {
        "table": TABLE,
        "path": tmp_path / "t.parquet",
        "glob": str(tmp_path / "*.parquet"),
        "list": [TABLE.slice(0, 123), TABLE.slice(123)],
        "reader": TABLE.to_reader(max_chunksize=77),
        "generator": (TABLE.slice(i, 60) for i in range(0, N, 60)),
        "polars": pl.DataFrame(TABLE),
        "lazy": pl.DataFrame(TABLE).lazy(),
    }


@pytest.mark.parametrize("name", ["table", "path", "glob", "list", "reader", "generator", "polars", "lazy"])
def test_every_source_gives_the_same_scores_with_its_ids(tmp_path, factors, name):
    reader = transform(factors, sources(tmp_path)[name], ids=["word", "id"], residual=True, leverage=True, rows=50)
    table = reader.read_all()
    assert table.column_names == ["word", "id", "scores", "residual", "leverage"]
    assert table["id"].to_pylist() == list(range(N))
    assert table["word"].to_pylist() == WORDS.to_pylist()
    np.testing.assert_allclose(scores_of(table), factors.transform(X), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(table["residual"].to_numpy(), factors.residual(X), rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(table["leverage"].to_numpy(), factors.leverage(X), rtol=1e-4)


@pytest.mark.parametrize("source", [X, [X[:100], X[100:]], sp.csr_array(X), (X[i : i + 9] for i in range(0, N, 9))])
def test_arrays_need_no_names(factors, source):
    np.testing.assert_allclose(scores_of(transform(factors, source).read_all()), factors.transform(X), atol=1e-5)


def test_columns_are_found_by_the_names_of_the_factors():
    factors = ss.fit(WIDE, rank=2, select=["c5", "c0", "c1"])
    shuffled = WIDE.select(["c1", "c2", "id", "c0", "c5"])
    one, other = transform(factors, WIDE), transform(factors, shuffled, ids="id")
    assert scores_of(one.read_all()).tolist() == scores_of(other.read_all()).tolist()


@settings(max_examples=25)
@given(st.lists(st.integers(0, N), max_size=6), st.integers(1, 200))
def test_any_cut_of_the_rows_gives_each_row_its_own_id(factors, cuts, rows):
    edges = sorted({0, *cuts, N})
    parts = [TABLE.slice(a, b - a) for a, b in pairwise(edges)]
    table = transform(factors, parts, ids="id", rows=rows).read_all()
    assert table["id"].to_pylist() == list(range(N))
    np.testing.assert_allclose(scores_of(table), factors.transform(X), rtol=1e-5, atol=1e-5)


def test_rows_are_read_as_the_reader_is(factors):
    taken = []

    def source():
        for i in range(0, N, 50):
            taken.append(i)
            yield TABLE.slice(i, 50)

    reader = transform(factors, source(), ids="id")
    assert len(taken) == 1
    assert reader.read_next_batch()["id"].to_pylist() == list(range(50))
    assert len(taken) <= 2
    assert reader.read_all().num_rows == N - 50


def test_dropped_rows_take_their_ids_along(tmp_path):
    x, y = [1.0, None, 3.0, float("nan"), 5.0], [0.0, 1.0, 4.0, 1.0, 9.0]
    table = pa.table({"id": list("abcde"), "x": x, "y": y})
    factors = ss.fit(table, rank=1, select=["x", "y"], nulls="drop", nonfinite="drop")
    options = {"ids": "id", "nulls": "drop", "nonfinite": "drop"}
    assert transform(factors, table, **options).read_all()["id"].to_pylist() == ["a", "c", "e"]
    written = write_scores(factors, table, tmp_path / "z.parquet", **options)
    assert written.rows == 3
    assert written.intake.dropped == {"null": 1, "nonfinite": 1}
    assert pq.read_table(tmp_path / "z.parquet")["id"].to_pylist() == ["a", "c", "e"]
    lazy = scan_scores(factors, table, **options)
    assert lazy.filter(pl.col("id") != "a").collect()["id"].to_list() == ["c", "e"]


@pytest.mark.parametrize(
    "kind", [pl.String, pl.Categorical, pl.Binary, pl.List(pl.String), pl.Struct({"a": pl.String})]
)
def test_text_of_polars_goes_along_with_rows_that_are_dropped_and_filtered(kind, tmp_path):
    text = ["a", "bb", "a row with a text that is longer than a view"]
    whole = pl.DataFrame({"id": [0, 1, 2], "x": [1.0, None, 3.0], "y": [0.0, 1.0, 4.0]})
    if kind in (pl.String, pl.Categorical):
        ids = pl.Series(text, dtype=kind)
    elif kind == pl.Binary:
        ids = pl.Series([one.encode() for one in text])
    elif kind == pl.List(pl.String):
        ids = pl.Series([[one] for one in text], dtype=kind)
    else:
        ids = pl.Series([{"a": one} for one in text], dtype=kind)
    frame = whole.with_columns(tag=ids)
    factors = ss.fit(frame, rank=1, select=["x", "y"], nulls="drop")
    table = transform(factors, frame, ids="tag", nulls="drop").read_all()
    assert pl.Series(table["tag"]).to_list() == [ids.to_list()[i] for i in (0, 2)]
    write_scores(factors, frame, tmp_path / "z.parquet", ids="tag", nulls="drop")
    assert pl.read_parquet(tmp_path / "z.parquet")["tag"].to_list() == [ids.to_list()[i] for i in (0, 2)]
    lazy = scan_scores(factors, frame, ids=["id", "tag"], nulls="drop")
    assert lazy.filter(pl.col("id") > 0).collect()["tag"].to_list() == ids.to_list()[2:]


def test_keys_and_rejected_rows_of_polars_are_text_too(tmp_path):
    frame = pl.DataFrame({"tenant": ["a", "b", "a", "b"], "x": [1.0, None, 3.0, 5.0], "y": [0.0, 1.0, 4.0, 1.0]})
    options = {"rank": 1, "select": ["x", "y"], "by": "tenant", "nulls": "drop"}
    found = ss.fit(frame, **options, quarantine=tmp_path / "q.parquet")
    assert {key: factors.rows for key, factors in found.items()} == {"a": 2, "b": 1}
    assert pq.read_table(tmp_path / "q.parquet")["tenant"].to_pylist() == ["b"]


def test_a_source_whose_first_rows_are_all_dropped_keeps_the_type_of_its_ids():
    table = pa.table({"id": list("ab"), "x": [None, 2.0], "y": [1.0, 2.0]})
    factors = ss.fit(pa.table({"x": [1.0, 2.0, 5.0], "y": [0.0, 1.0, 1.0]}), rank=1)
    reader = transform(factors, [table.slice(0, 1), table], ids="id", nulls="drop")
    assert reader.schema.field("id").type == pa.string()
    assert reader.read_all()["id"].to_pylist() == ["b"]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_files_say_what_they_were_made_of(tmp_path, factors, suffix):
    pq.write_table(TABLE, tmp_path / "t.parquet")
    write_scores(factors, tmp_path / "t.parquet", tmp_path / f"z.{suffix}", ids="id")
    out = str(tmp_path / f"z.{suffix}")
    schema = pq.read_schema(out) if suffix == "parquet" else pa.ipc.open_file(out).schema
    said = {key.decode(): value.decode() for key, value in schema.metadata.items()}
    assert said["streamsvd.version"] == ss.__version__
    assert (said["streamsvd.rank"], said["streamsvd.columns"], said["streamsvd.rows"]) == ("3", "6", "500")
    assert said["streamsvd.source"] == str(tmp_path / "t.parquet")
    assert said["streamsvd.digest"] == digest(factors)
    ss.save(factors, tmp_path / "f.svd")
    assert digest(ss.load(tmp_path / "f.svd")) == digest(factors)
    assert digest(factors.truncate(rank=2)) != digest(factors)
    assert factors.to_arrow().schema.metadata[b"streamsvd.digest"].decode() == digest(factors)


def test_an_empty_source_gives_no_rows_and_the_right_columns(tmp_path, factors):
    assert transform(factors, TABLE.slice(0, 0), residual=True).read_all().schema.names == ["scores", "residual"]
    assert write_scores(factors, [], tmp_path / "z.parquet").rows == 0
    assert pq.read_table(tmp_path / "z.parquet").num_rows == 0


@pytest.mark.parametrize(
    ("source", "options", "error", "words"),
    [
        (TABLE, {"ids": "nobody"}, ValueError, r"'nobody'.*'id', 'e', 'word'"),
        (X, {"ids": "id"}, TypeError, r"ids=\['id'\].*no names.*table"),
        (TABLE, {"ids": ["id", "id"]}, ValueError, r"twice"),
        (TABLE.rename_columns(["scores", "e", "word"]), {"ids": "scores"}, ValueError, r"'scores'.*rename"),
        (X[:, :4], {}, ValueError, r"6"),
        (TABLE.select(["id"]), {}, ValueError, r"'e\[0\]'|'e'"),
        (42, {}, TypeError, r"int"),
        ("nowhere/*.parquet", {}, FileNotFoundError, r"nowhere"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_refused(factors, source, options, error, words):
    with pytest.raises(error, match=words):
        transform(factors, source, **options).read_all()


def test_an_error_in_a_later_batch_names_its_rows(factors, tmp_path):
    bad = X.copy()
    bad[300, 2] = np.inf
    table = pa.table({"e": pa.FixedSizeListArray.from_arrays(pa.array(bad.reshape(-1)), D)})
    pq.write_table(table, tmp_path / "bad.parquet")
    reader = transform(factors, tmp_path / "bad.parquet", rows=100)
    assert reader.read_next_batch().num_rows == 100
    with pytest.raises(ValueError, match=r"bad\.parquet, rows 300 to 399"):
        reader.read_all()


# --- the lazy query


class Counting:
    """Factors that count the rows they project."""

    def __init__(self, factors):
        self._factors, self.projected, self.measured = factors, 0, 0

    def __getattr__(self, name):
        return getattr(self._factors, name)

    def transform(self, x):
        self.projected += x.shape[0]
        return self._factors.transform(x)

    def residual(self, x):
        self.measured += x.shape[0]
        return self._factors.residual(x)


@pytest.fixture
def counting(factors):
    return Counting(factors)


def test_a_scan_collects_what_transform_gives(factors, tmp_path):
    pq.write_table(TABLE, tmp_path / "t.parquet")
    lazy = scan_scores(factors, tmp_path / "t.parquet", ids=["id", "word"], residual=True, leverage=True, rows=64)
    assert isinstance(lazy, pl.LazyFrame)
    assert lazy.collect_schema()["scores"] == pl.Array(pl.Float32, 3)
    whole = pl.DataFrame(transform(factors, TABLE, ids=["id", "word"], residual=True, leverage=True).read_all())
    for engine in ("in-memory", "streaming"):
        frame = lazy.collect(engine=engine)
        assert frame.schema == whole.schema
        assert frame["id"].to_list() == whole["id"].to_list()
        assert frame["word"].to_list() == whole["word"].to_list()
        np.testing.assert_allclose(frame["residual"].to_numpy(), whole["residual"].to_numpy(), rtol=1e-6)
        np.testing.assert_allclose(frame["scores"].to_numpy(), whole["scores"].to_numpy(), rtol=1e-5, atol=1e-6)


def test_columns_that_are_not_asked_for_are_not_computed(counting):
    lazy = scan_scores(counting, TABLE, ids=["id", "word"], residual=True)
    assert lazy.select("word").collect()["word"].to_list() == WORDS.to_pylist()
    assert (counting.projected, counting.measured) == (0, 0)
    assert lazy.select("residual").collect().height == N
    assert (counting.projected, counting.measured) == (0, N)
    assert lazy.select(pl.len()).collect().item() == N


def test_a_filter_on_ids_projects_only_the_rows_that_pass(counting, factors):
    lazy = scan_scores(counting, TABLE, ids="id", rows=100)
    found = lazy.filter(pl.col("id").is_between(150, 269)).select("scores").collect()
    assert (found.height, counting.projected) == (120, 120)
    np.testing.assert_allclose(np.stack(found["scores"].to_list()), factors.transform(X)[150:270], atol=1e-5)


def test_a_filter_on_the_residual_is_exact(factors):
    cut = float(np.median(factors.residual(X)))
    found = scan_scores(factors, TABLE, ids="id", residual=True).filter(pl.col("residual") > cut).select("id").collect()
    assert found["id"].to_list() == np.flatnonzero(factors.residual(X) > cut).tolist()


def test_head_ends_the_reading(counting):
    lazy = scan_scores(counting, [TABLE] * 50, rows=100)
    assert lazy.head(130).collect().height == 130
    assert counting.projected <= 500


@settings(max_examples=25)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 25))
def test_filter_and_head_in_either_order_are_those_of_a_frame(factors, limit, cut, rows):
    table = TABLE.slice(0, 40)
    lazy = scan_scores(factors, table, ids="id", residual=True, rows=rows)
    frame = lazy.collect()
    for query in (
        lambda f: f.head(limit).filter(pl.col("id") >= cut),
        lambda f: f.filter(pl.col("id") >= cut).head(limit),
        lambda f: f.filter((pl.col("id") >= cut) & (pl.col("residual") > 1e-3)).head(limit),
    ):
        assert query(lazy).collect()["id"].to_list() == query(frame)["id"].to_list()


def test_a_lazy_frame_can_be_scored_lazily(factors):
    lazy = scan_scores(factors, pl.DataFrame(TABLE).lazy().filter(pl.col("id") < 100), ids="id")
    assert lazy.collect().height == lazy.collect(engine="streaming").height == 100


def test_a_source_that_gives_its_rows_once_cannot_be_scanned(factors):
    for source in (TABLE.to_reader(), (X for _ in range(2)), [iter([X])]):
        with pytest.raises(TypeError, match=r"at each collect.*pass a path"):
            scan_scores(factors, source)


def test_an_error_in_a_scan_names_the_rows(factors, tmp_path):
    bad = X.copy()
    bad[300, 2] = np.nan
    np.save(tmp_path / "bad.npy", bad)
    with pytest.raises((ValueError, pl.exceptions.ComputeError), match=r"bad\.npy, rows 300 to 399"):
        scan_scores(factors, tmp_path / "bad.npy", rows=100).collect()
