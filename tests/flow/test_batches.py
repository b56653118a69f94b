"""Sources become matrices: the same rows from every source, no needless copies, bounded pieces, and refusals that say what to write."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset as ds
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsvd.flow.batches import batches, matrix, pieces
from streamsvd.flow.sources import total_rows

N, D = 1000, 5
X = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)
NAMES = tuple(f"c{j}" for j in range(D))
TABLE = pa.table({name: X[:, j] for j, name in enumerate(NAMES)})


def stacked(source, **options) -> np.ndarray:
    return np.concatenate([np.asarray(x) for x in batches(source, **options)])


def write_files(folder) -> None:
    pq.write_table(TABLE, folder / "t.parquet", row_group_size=300)
    pyarrow.feather.write_feather(TABLE, folder / "t.feather", compression="zstd", chunksize=300)
    pyarrow.feather.write_feather(TABLE, folder / "t.arrow", compression="uncompressed", chunksize=400)
    with pa.ipc.new_stream(folder / "t.ipc", TABLE.schema) as stream:
        stream.write_table(TABLE, max_chunksize=128)
    pyarrow.csv.write_csv(TABLE, folder / "t.csv")
    np.save(folder / "t.npy", X)
    np.save(folder / "f.npy", np.asfortranarray(X))
    (folder / "parts" / "deep").mkdir(parents=True)
    pq.write_table(TABLE[:600], folder / "parts" / "a.parquet")
    pyarrow.feather.write_feather(TABLE[600:], folder / "parts" / "deep" / "b.arrow")
    (folder / "parts" / "README.md").write_text("not data")
    (folder / "parts" / ".a.parquet.tmp").write_text("not data yet")
    (folder / "parts" / "_SUCCESS").write_text("")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("files")
    write_files(path)
    return path


class OnlyStream:
    """A table of an unknown library that speaks the Arrow stream interface."""

    def __arrow_c_stream__(self, requested_schema=None):
        return TABLE.__arrow_c_stream__(requested_schema)


class OnlyArray:
    def __arrow_c_array__(self, requested_schema=None):
        return TABLE.combine_chunks().to_batches()[0].__arrow_c_array__(requested_schema)


def duckdb_relation():
    duckdb = pytest.importorskip("duckdb")
    return duckdb.from_arrow(TABLE)


def pandas_frame():
    pytest.importorskip("pandas")
    return TABLE.to_pandas()


TABLES = {
    "Table": lambda: TABLE,
    "RecordBatch": lambda: TABLE.combine_chunks().to_batches()[0],
    "RecordBatchReader": lambda: TABLE.to_reader(max_chunksize=300),
    "stream interface": OnlyStream,
    "array interface": OnlyArray,
    "struct array": lambda: TABLE.to_struct_array().combine_chunks(),
    "Dataset": lambda: ds.dataset(TABLE),
    "Scanner": lambda: ds.dataset(TABLE).scanner(),
    "polars DataFrame": lambda: pl.from_arrow(TABLE),
    "polars LazyFrame": lambda: pl.from_arrow(TABLE).lazy(),
    "duckdb": duckdb_relation,
    "pandas": pandas_frame,
    "list": lambda: [TABLE[:300], TABLE[300:].to_reader()],
    "generator": lambda: (TABLE[i : i + 250] for i in range(0, N, 250)),
    "generator of generators": lambda: (iter(TABLE[i : i + 500].to_batches()) for i in range(0, N, 500)),
}
ARRAYS = {
    "array": lambda: X,
    "column-major": lambda: np.asfortranarray(X),
    "reversed view": lambda: X[::-1][::-1],
    "list of arrays": lambda: [X[:10], X[10:]],
    "generator of arrays": lambda: (rows for rows in np.array_split(X, 7)),
}
FILES = [
    "t.parquet",
    "t.feather",
    "t.arrow",
    "t.ipc",
    "t.csv",
    "t.npy",
    "f.npy",
    "t.p*t",
    "parts",
    "par*s",
    "parts/*.parquet",
]


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("rows", [None, 7, 10**9])
def test_every_table_gives_the_same_rows_in_order(name, rows):
    got = list(batches(TABLES[name](), rows=rows))
    assert all(1 <= len(x) <= (rows or N) for x in got)
    np.testing.assert_array_equal(np.concatenate(got), X)
    assert all(x.dtype == np.float32 for x in got)


@pytest.mark.parametrize("name", TABLES)
def test_selection_takes_the_columns_in_the_order_asked_for(name):
    np.testing.assert_array_equal(stacked(TABLES[name](), select=["c4", "c1"]), X[:, [4, 1]])


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("rows", [None, 7])
def test_every_array_gives_the_same_rows_in_order(name, rows):
    got = list(batches(ARRAYS[name](), rows=rows))
    assert all(1 <= len(x) <= (rows or N) for x in got)
    np.testing.assert_array_equal(np.concatenate(got), X)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("rows", [None, 7])
def test_every_file_gives_the_same_rows_in_order(folder, name, rows):
    got = list(batches(folder / name if "*" not in name else str(folder / name), rows=rows))
    assert all(1 <= len(x) <= (rows or N) for x in got)
    expected = X[:600] if name == "parts/*.parquet" else X
    np.testing.assert_array_equal(np.concatenate(got).astype(np.float32), expected)


@pytest.mark.parametrize("name", ["t.parquet", "t.feather", "t.arrow", "t.ipc", "t.csv"])
def test_files_read_selected_columns_only(folder, name):
    np.testing.assert_array_equal(stacked(folder / name, select=["c3", "c0"]).astype(np.float32), X[:, [3, 0]])


def test_a_list_of_paths_tables_and_arrays_is_one_stream(folder):
    source = [
        str(folder / "t.parquet"),
        TABLE,
        folder / "t.npy",
        pl.scan_parquet(folder / "t.parquet"),
        pq.ParquetFile(folder / "t.parquet"),
    ]
    np.testing.assert_array_equal(stacked(source), np.concatenate([X] * 5))


def test_relative_and_home_paths_are_found(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    for path in ("t.parquet", "./t.p*", "~/t.parquet"):
        np.testing.assert_array_equal(stacked(path), X)


def test_a_path_with_glob_signs_in_its_name_is_that_file(tmp_path):
    np.save(tmp_path / "run[1].npy", X)
    np.testing.assert_array_equal(stacked(tmp_path / "run[1].npy"), X)


def test_sparse_rows_stay_sparse():
    from scipy import sparse

    S = sparse.random_array((200, 30), density=0.1, rng=np.random.default_rng(0))
    for matrix_format in (sparse.coo_array, sparse.csc_array, sparse.csr_matrix):
        got = list(batches(matrix_format(S), rows=64))
        assert [x.shape[0] for x in got] == [64, 64, 64, 8]
        assert all(x.format == "csr" for x in got)
        np.testing.assert_array_equal(sparse.vstack(got).toarray(), S.toarray())


def test_torch_rows_stay_in_torch():
    torch = pytest.importorskip("torch")
    got = list(batches(torch.from_numpy(X), rows=300))
    assert all(isinstance(x, torch.Tensor) for x in got)
    np.testing.assert_array_equal(torch.cat(got).numpy(), X)


def test_strict_array_api_rows_are_cut_by_standard_indexing():
    xp = pytest.importorskip("array_api_strict")
    got = list(batches(xp.asarray(X), rows=300))
    assert [x.shape for x in got] == [(300, D)] * 3 + [(100, D)]


def test_iterators_are_read_one_element_at_a_time():
    taken = []

    def rows():
        for i in range(5):
            taken.append(i)
            yield X[:10]

    stream = batches(rows())
    assert taken == []
    for expected in range(1, 6):
        next(stream)
        assert len(taken) == expected


def test_a_lazy_query_left_in_the_middle_can_be_run_again(folder):
    frame = pl.scan_parquet(folder / "t.parquet")
    for _ in range(20):
        stream = batches(frame, rows=10)
        assert next(stream).shape == (10, D)
        stream.close()
    np.testing.assert_array_equal(stacked(frame), X)


def test_a_lazy_query_computes_selected_columns_only():
    def fails(_):
        msg = "this column was not asked for"
        raise AssertionError(msg)

    frame = (
        pl.from_arrow(TABLE).lazy().with_columns(pl.col("c0").map_batches(fails, return_dtype=pl.Float32).alias("bad"))
    )
    np.testing.assert_array_equal(stacked(frame, select=["c1", "c2"]), X[:, 1:3])


# How much is held and copied


def test_number_columns_become_one_column_major_array():
    x, names = matrix(TABLE)
    assert x.flags.f_contiguous
    assert names == NAMES


def test_one_huge_batch_is_cut_into_bounded_pieces():
    wide = np.arange(6_000_000, dtype=np.float32).reshape(6000, 1000)
    frame = pl.DataFrame({"e": wide}, schema={"e": pl.Array(pl.Float32, 1000)})
    got = list(batches(frame))
    assert max(x.nbytes for x in got) <= 16 << 20
    assert len(got) > 1
    np.testing.assert_array_equal(np.concatenate(got), wide)
    assert max(x.nbytes for x in batches(wide)) <= 16 << 20


def test_reading_parquet_holds_a_small_part_of_the_file(tmp_path):
    rng = np.random.default_rng(1)
    with pq.ParquetWriter(tmp_path / "big.parquet", TABLE.schema) as writer:
        for _ in range(20):
            writer.write_table(pa.table({name: rng.standard_normal(100_000).astype(np.float32) for name in NAMES}))
    size = (tmp_path / "big.parquet").stat().st_size
    for source in (
        tmp_path / "big.parquet",
        ds.dataset(tmp_path / "big.parquet"),
        pq.ParquetFile(tmp_path / "big.parquet"),
    ):
        before, held, rows = pa.total_allocated_bytes(), 0, 0
        for x in batches(source, rows=10_000):
            rows += len(x)
            held = max(held, pa.total_allocated_bytes() - before)
        assert rows == 2_000_000
        assert 0 < held < size / 2


def fixed_lists(values: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def memory_of(column) -> np.ndarray:
    while not pa.types.is_primitive(column.type):
        column = column.storage if isinstance(column, pa.ExtensionArray) else column.values
    return column.to_numpy()


def tensors(values: np.ndarray) -> pa.ExtensionArray:
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(values.dtype), (2, values.shape[1] // 2))
    return pa.ExtensionArray.from_storage(kind, fixed_lists(values))


@pytest.mark.parametrize("make", [fixed_lists, tensors])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.uint8, np.int32])
def test_a_list_column_is_seen_not_copied(make, dtype):
    values = np.arange(40).reshape(10, 4).astype(dtype)
    column = make(values)
    for start, stop in ((0, 10), (3, 9)):
        batch = pa.record_batch({"e": column.slice(start, stop - start)})
        x, names = matrix(batch, select="e")
        np.testing.assert_array_equal(x, values[start:stop])
        assert x.dtype == dtype
        assert np.shares_memory(x, memory_of(column))
        assert x.flags.c_contiguous
        assert names == ("e[0]", "e[1]", "e[2]", "e[3]")


def test_nested_lists_are_flattened_row_by_row():
    frames = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    x, names = matrix(pl.DataFrame({"frame": frames})[1:])
    np.testing.assert_array_equal(x, frames[1:].reshape(3, 6))
    assert len(names) == 6


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list])
def test_lists_without_a_fixed_length_are_read_where_all_are_equally_long(kind):
    values = np.arange(12.0).reshape(4, 3)
    column = pa.array(values.tolist(), kind(pa.float64()))
    np.testing.assert_array_equal(matrix(pa.record_batch({"e": column[1:]}))[0], values[1:])
    ragged = pa.array([[1.0, 2.0], [3.0]], kind(pa.float64()))
    with pytest.raises(ValueError, match=r"'e' holds lists of 1 to 2 values; expected 2"):
        matrix(pa.record_batch({"e": ragged}))


def test_a_bare_column_is_a_source():
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    for source in (fixed_lists(values), pa.chunked_array([fixed_lists(values)]), pl.Series("e", values)):
        np.testing.assert_array_equal(stacked(source), values)


# Types


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["float32", "float32"], "float32"),
        (["float64", "float64"], "float64"),
        (["float32", "float64"], "float64"),
        (["float16", "float32"], "float32"),
        (["float16", "float16"], "float32"),
        (["int8", "float32"], "float32"),
        (["uint16", "bool"], "float32"),
        (["int32", "float32"], "float64"),
        (["int64", "int64"], "float64"),
        (["bool", "bool"], "float32"),
    ],
)
def test_a_mixture_of_types_becomes_the_smallest_float_that_holds_it(kinds, expected):
    columns = [np.array([1, 0, 1]).astype(kind) for kind in kinds]
    x, _ = matrix(pa.record_batch({str(j): pa.array(column) for j, column in enumerate(columns)}))
    assert x.dtype == expected
    np.testing.assert_array_equal(x, np.stack(columns, axis=1).astype(np.float64))


KINDS = ["float16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool"]


@st.composite
def tables(draw):
    n = draw(st.integers(1, 9))
    columns, reference, kinds = {}, [], []
    for j in range(draw(st.integers(1, 5))):
        kind, width = draw(st.sampled_from(KINDS)), draw(st.sampled_from([0, 0, 1, 3]))
        values = (
            np.random.default_rng(draw(st.integers(0, 99)))
            .integers(0, 2 if kind == "bool" else 100, (n, width or 1))
            .astype(kind)
        )
        columns[f"k{j}"] = fixed_lists(values) if width else pa.array(values[:, 0])
        reference.append(values.astype(np.float64))
        kinds.append((kind, width))
    start = draw(st.integers(0, n - 1))
    stop = draw(st.integers(start + 1, n))
    return pa.record_batch(columns).slice(start, stop - start), np.concatenate(reference, axis=1)[start:stop], kinds


@given(tables())
def test_any_columns_of_any_slice_give_the_stacked_values(case):
    batch, expected, kinds = case
    x, names = matrix(batch)
    np.testing.assert_array_equal(x, expected)
    assert len(names) == expected.shape[1]
    if len(kinds) > 1 and len(set(kinds)) > 1 and any(width == 0 for _, width in kinds):
        exact = all(kind in ("float16", "float32", "int8", "uint8", "int16", "bool") for kind, _ in kinds)
        assert x.dtype == (np.float32 if exact else np.float64)


@given(tables())
def test_the_names_of_a_matrix_select_the_same_columns_again(case):
    batch, expected, _ = case
    _, names = matrix(batch)
    x, again = matrix(batch, select=names)
    assert again == names
    np.testing.assert_array_equal(x, expected)


# Nulls


@st.composite
def tables_with_nulls(draw):
    n = draw(st.integers(1, 8))
    gap = st.lists(st.booleans(), min_size=n, max_size=n)
    a, b, e = draw(gap), draw(gap), draw(gap)
    inner = draw(gap)
    columns = {
        "a": pa.array([None if gone else float(i) for i, gone in enumerate(a)]),
        "b": pa.array([None if gone else i for i, gone in enumerate(b)], pa.int8()),
        "e": pa.array(
            [
                None if gone else [float(i), None if hole else 2.0]
                for i, (gone, hole) in enumerate(zip(e, inner, strict=True))
            ],
            pa.list_(pa.float64(), 2),
        ),
    }
    bad = {"a": np.array(a), "b": np.array(b), "e": np.array(e) | np.array(inner)}
    return pa.record_batch(columns), bad


@given(tables_with_nulls())
def test_dropping_nulls_keeps_exactly_the_whole_rows(case):
    batch, bad = case
    keep = ~(bad["a"] | bad["b"] | bad["e"])
    i = np.flatnonzero(keep).astype(np.float64)
    x, _ = matrix(batch, nulls="drop")
    np.testing.assert_array_equal(x, np.stack([i, i, i, np.full(i.size, 2.0)], axis=1))
    np.testing.assert_array_equal(stacked([batch, X[:1, :4]], nulls="drop")[:-1], x)


@given(tables_with_nulls())
def test_nulls_are_refused_by_column_and_count(case):
    batch, bad = case
    counts = {name: int(mask.sum()) for name, mask in bad.items() if mask.any()}
    if not counts:
        assert matrix(batch)[0].shape == (batch.num_rows, 4)
        return
    with pytest.raises(ValueError, match='write nulls="drop"') as caught:
        matrix(batch)
    for name in ("a", "b", "e"):
        assert (f"column {name!r} has {counts.get(name)}" in str(caught.value)) == (name in counts)


def test_nulls_in_float_columns_are_never_read_as_nan():
    table = pa.table({"a": pa.array([1.0, None, 3.0]), "b": [1.0, 2.0, 3.0]})
    for source in (table, pl.from_arrow(table), pl.from_arrow(table).lazy()):
        with pytest.raises(ValueError, match=r"rows 0 to 2: nulls in 3 rows: column 'a' has 1;"):
            list(batches(source))
        np.testing.assert_array_equal(stacked(source, nulls="drop"), [[1.0, 1.0], [3.0, 3.0]])


def test_a_null_in_an_inner_list_is_found():
    column = pa.array([[[1.0, 2.0], None], [[3.0, 4.0], [5.0, 6.0]]], pa.list_(pa.list_(pa.float64(), 2), 2))
    with pytest.raises(ValueError, match="column 'e' has 1"):
        matrix(pa.record_batch({"e": column}))
    np.testing.assert_array_equal(matrix(pa.record_batch({"e": column}), nulls="drop")[0], [[3.0, 4.0, 5.0, 6.0]])


def test_batches_that_lose_all_rows_are_passed_over():
    empty = pa.record_batch({"e": pa.array([None, None], pa.list_(pa.float64()))})
    full = pa.record_batch({"e": pa.array([[1.0, 2.0]], pa.list_(pa.float64()))})
    got = list(batches([empty, full], nulls="drop"))
    assert len(got) == 1
    np.testing.assert_array_equal(got[0], [[1.0, 2.0]])


# What stands beside the rows


def test_weights_and_timestamps_come_along_and_are_no_features():
    import datetime

    times = [datetime.datetime(2024, 1, 1) + datetime.timedelta(seconds=i) for i in range(4)]
    table = pa.table({"x": [1.0, 2.0, 3.0, 4.0], "w": pa.array([1, 0, None, 3]), "t": times})
    got = list(pieces(table, weights="w", timestamps="t", nulls="drop", rows=2))
    assert [piece.names for piece in got] == [("x",)] * 2
    np.testing.assert_array_equal(np.concatenate([piece.x for piece in got]), [[1.0], [2.0], [4.0]])
    np.testing.assert_array_equal(np.concatenate([piece.beside["weights"] for piece in got]), [1.0, 0.0, 3.0])
    seconds = np.concatenate([piece.beside["timestamps"] for piece in got]).astype("datetime64[s]").astype(np.int64)
    np.testing.assert_array_equal(np.diff(seconds), [1, 2])
    chosen = next(pieces(table[:2], select=["w", "x"], weights="w"))
    np.testing.assert_array_equal(chosen.x, [[1.0, 1.0], [0.0, 2.0]])


def test_the_index_that_pandas_adds_is_no_feature():
    table = pa.table({"x": [1.0, 2.0], "__index_level_0__": [5, 7]})
    table = table.replace_schema_metadata({b"pandas": json.dumps({"index_columns": ["__index_level_0__"]}).encode()})
    x, names = matrix(table)
    assert names == ("x",)
    np.testing.assert_array_equal(x, [[1.0], [2.0]])
    assert matrix(table, select=["__index_level_0__"])[0].tolist() == [[5.0], [7.0]]


def test_filtered_pandas_frames_keep_their_columns():
    frame = pandas_frame()
    x, names = matrix(frame[frame.c0 > 0])
    assert names == NAMES
    np.testing.assert_array_equal(x, X[X[:, 0] > 0])


def test_pieces_say_where_their_rows_are(folder):
    where = [piece.where for piece in pieces([folder / "t.parquet", TABLE], rows=400)]
    assert where[:2] == [f"{folder / 't.parquet'}, rows 0 to 299", f"{folder / 't.parquet'}, rows 300 to 599"]
    assert where[-1] == f"rows {N + 800} to {N + 999}"


def test_the_number_of_rows_is_known_where_it_costs_nothing(folder):
    known = [
        TABLE,
        X,
        pl.from_arrow(TABLE),
        folder / "t.parquet",
        folder / "t.npy",
        pq.ParquetFile(folder / "t.parquet"),
    ]
    assert [total_rows(source) for source in known] == [N] * len(known)
    assert total_rows([X, TABLE]) == 2 * N
    for unknown in (iter([X]), pl.from_arrow(TABLE).lazy(), folder / "t.csv", [X, iter([X])], OnlyStream()):
        assert total_rows(unknown) is None


# Files whose columns change


def test_columns_in_another_order_are_taken_by_name(tmp_path):
    pq.write_table(TABLE, tmp_path / "a.parquet")
    pq.write_table(TABLE.select(NAMES[::-1]), tmp_path / "b.parquet")
    np.testing.assert_array_equal(stacked(tmp_path), np.concatenate([X, X]))


def test_columns_that_come_or_go_are_refused_by_file_and_name(tmp_path):
    pq.write_table(TABLE, tmp_path / "a.parquet")
    pq.write_table(TABLE.rename_columns(["c0", "c1", "c2", "c3", "z"]), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet: .*lack 'c4' and have 'z' besides.*write select=") as caught:
        list(batches(tmp_path))
    assert "a.parquet" not in str(caught.value)
    np.testing.assert_array_equal(stacked(tmp_path, select=["c1", "c0"]), np.concatenate([X[:, [1, 0]]] * 2))


def test_lists_of_another_width_are_refused():
    source = [pa.record_batch({"e": fixed_lists(np.ones((2, width)))}) for width in (3, 4)]
    with pytest.raises(ValueError, match=r"'e' holds 4 numbers a row here and held 3"):
        list(batches(source))


def test_a_csv_column_of_whole_numbers_may_go_on_with_fractions(tmp_path):
    n = 1_500_000
    with (tmp_path / "x.csv").open("w") as file:
        file.write("a,b,empty\n" + "1,2,\n" * n + "0.5,2,3.5\n")
    rows, last = 0, None
    for x in batches(tmp_path / "x.csv", select=["a", "b"]):
        rows, last = rows + len(x), x[-1]
    assert rows == n + 1
    np.testing.assert_array_equal(last, [0.5, 2.0])
    np.testing.assert_array_equal(stacked(tmp_path / "x.csv", nulls="drop"), [[0.5, 2.0, 3.5]])


# Refusals


def refused(kind, pattern, source, **options):
    with pytest.raises(kind, match=pattern):
        list(batches(source, **options))


@pytest.mark.parametrize(
    ("column", "named"),
    [
        (pa.array(["a", "b"]), "string"),
        (pa.array([1, 2], pa.timestamp("s")), r"timestamp\[s\]"),
        (pa.array([1, 2], pa.duration("s")), r"duration\[s\]"),
        (pa.array(["a", "b"]).dictionary_encode(), "dictionary"),
        (pa.array([1, 2], pa.decimal128(5, 2)), "decimal"),
        (pa.array([{"x": 1}, {"x": 2}]), "struct"),
        (pa.array([["a"], ["b"]]), "list"),
        (pa.array([[[1.0]], [[2.0]]]), "list"),
        (pa.array([b"a", b"b"]), "binary"),
    ],
)
def test_columns_that_are_not_numbers_are_refused_by_name_and_type(column, named):
    table = pa.table({"x": [1.0, 2.0], "bad": column, "y": [1, 2]})
    refused(TypeError, rf"not numbers: 'bad' \(.*{named}.*write select=\['x', 'y'\]", table)
    refused(TypeError, rf"not numbers: 'bad' \(.*{named}.*leave it out of select", table, select=["x", "bad"])
    np.testing.assert_array_equal(stacked(table, select=["x", "y"]), [[1.0, 1.0], [2.0, 2.0]])


@pytest.mark.parametrize("name", [*TABLES, "t.parquet", "t.feather", "t.csv", "t.ipc"])
def test_a_missing_column_is_answered_with_those_that_exist(folder, name):
    source = folder / name if name.startswith("t.") else TABLES[name]()
    with pytest.raises(ValueError, match=r"no column 'nope'; the columns are 'c0', 'c1', 'c2', 'c3', 'c4'") as caught:
        list(batches(source, select=["c0", "nope"]))
    assert name in str(caught.value) or not name.startswith("t.")


def test_paths_that_lead_nowhere_are_refused_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no 'gone\.parquet'"):
        batches(tmp_path / "gone.parquet")
    with pytest.raises(FileNotFoundError, match=r"there is no folder"):
        batches([X, tmp_path / "gone" / "x.parquet"])
    with pytest.raises(FileNotFoundError, match=r"no file matches the pattern"):
        batches(str(tmp_path / "*.parquet"))
    with pytest.raises(FileNotFoundError, match=r"holds no file to read; expected at least one of \.parquet"):
        batches(tmp_path)
    (tmp_path / "x.xlsx").write_text("?")
    with pytest.raises(ValueError, match=r"suffix of .*x\.xlsx.* expected one of \.parquet, \.arrow"):
        batches(tmp_path / "x.xlsx")
    with pytest.raises(ValueError, match=r"nowhere:// is no scheme.*streamsvd\[objects\].*pyarrow\.dataset"):
        batches("nowhere://bucket/x.parquet")


@pytest.mark.parametrize("name", ["t.parquet", "t.feather", "t.arrow", "t.ipc", "t.npy"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.98])
def test_a_file_cut_short_is_refused_by_name(folder, tmp_path, name, share):
    whole = (folder / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises((ValueError, OSError), match=rf"{name}' cannot be read"):
        list(batches(tmp_path / name))


def test_a_damaged_page_keeps_the_rows_before_it(folder, tmp_path):
    data = bytearray((folder / "t.parquet").read_bytes())
    meta = pq.ParquetFile(folder / "t.parquet").metadata
    start = meta.row_group(2).column(0).data_page_offset
    data[start : start + 200] = bytes(200)
    (tmp_path / "t.parquet").write_bytes(data)
    stream = batches(tmp_path / "t.parquet")
    np.testing.assert_array_equal(next(stream), X[:300])
    np.testing.assert_array_equal(next(stream), X[300:600])
    with pytest.raises((ValueError, OSError), match=r"t\.parquet' cannot be read"):
        next(stream)


def test_a_csv_without_names_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("0.5,1.5\n2.5,3.5\n")
    refused(ValueError, r"x\.csv.*first line is 0\.5, 1\.5.*has_header=False", tmp_path / "x.csv")
    (tmp_path / "x.csv").write_text("7,0,0,0\n2,0,1,0\n")
    refused(ValueError, r"x\.csv.*first line is 7, 0, 0.*has_header=False", tmp_path / "x.csv")
    for names in ("0,1", "2019,2020"):
        (tmp_path / "x.csv").write_text(f"{names}\n2.5,3.5\n")
        np.testing.assert_array_equal(stacked(tmp_path / "x.csv"), [[2.5, 3.5]])


def test_a_column_without_a_name_is_no_feature(tmp_path):
    (tmp_path / "x.csv").write_text(",a,b\n0,2.5,3.5\n")
    refused(ValueError, r"x\.csv: a column has no name .*write select=\['a', 'b'\]", tmp_path / "x.csv")
    np.testing.assert_array_equal(stacked(tmp_path / "x.csv", select=["a", "b"]), [[2.5, 3.5]])
    refused(ValueError, r"no column 'c'; the columns are '', 'a', 'b'", tmp_path / "x.csv", select="c")


def test_columns_of_one_name_are_refused():
    table = pa.table([[1.0], [2.0], [3.0]], names=["x", "x", "y"])
    refused(ValueError, "several columns called 'x'", table)
    refused(ValueError, "several columns called 'x'", table, select="x")
    np.testing.assert_array_equal(stacked(table, select="y"), [[3.0]])


@pytest.mark.parametrize(
    ("source", "kind", "pattern"),
    [
        (X[0], ValueError, r"shape \(5,\).*write x\[None, :\] for one row"),
        (X[None], ValueError, r"shape \(1, 1000, 5\).*write x\.reshape"),
        ([[1.0, 2.0], [3.0, 4.0]], TypeError, r"type float.*numpy\.asarray"),
        ({"a": [1.0]}, TypeError, r"type dict.*pyarrow\.table"),
        (3.0, TypeError, "type float"),
        (None, TypeError, r"type NoneType; expected a path, glob or folder"),
        (b"x.parquet", TypeError, "type bytes"),
        (object(), TypeError, "type object"),
    ],
)
def test_what_holds_no_rows_is_refused_with_what_to_write(source, kind, pattern):
    refused(kind, pattern, source)


@pytest.mark.parametrize(
    ("options", "kind", "pattern"),
    [
        ({"nulls": "ignore"}, ValueError, "nulls='ignore'"),
        ({"rows": 0}, ValueError, "rows=0"),
        ({"rows": 2.5}, ValueError, r"rows=2\.5"),
        ({"rows": True}, ValueError, "rows=True"),
        ({"select": []}, TypeError, r"select=\[\]"),
        ({"select": 3}, TypeError, "select=3"),
        ({"select": [0, 1]}, TypeError, r"select=\[0, 1\]"),
        ({"select": ["c0", "c0"]}, ValueError, "twice"),
    ],
)
def test_options_out_of_range_are_refused_before_anything_is_read(options, kind, pattern):
    with pytest.raises(kind, match=pattern):
        batches(TABLE, **options)


def test_arrays_have_no_columns_to_name():
    refused(TypeError, r"rows 0 to 999: select= names a column.*leave select out", X, select="c0")
    with pytest.raises(TypeError, match=r"weights= names a column"):
        list(pieces(X, weights="w"))
    with pytest.raises(TypeError, match=r"weights of type ndarray"):
        pieces(TABLE, weights=np.ones(3))
    with pytest.raises(TypeError, match=r"timestamps='c0'|weights='s' is a column of type string"):
        list(pieces(pa.table({"x": [1.0], "s": ["a"]}), weights="s", select="x"))


def test_parts_of_a_list_column_cannot_be_selected():
    batch = pa.record_batch({"e": fixed_lists(np.ones((2, 3)))})
    with pytest.raises(ValueError, match=r"select takes lists whole"):
        matrix(batch, select=["e[0]", "e[2]"])


def test_sources_without_rows_give_no_batches(tmp_path):
    pq.write_table(TABLE[:0], tmp_path / "empty.parquet")
    np.save(tmp_path / "empty.npy", X[:0])
    for source in (
        TABLE[:0],
        X[:0],
        [],
        iter([]),
        tmp_path / "empty.parquet",
        tmp_path / "empty.npy",
        pl.from_arrow(TABLE[:0]),
    ):
        assert list(batches(source)) == []
    x, names = matrix(TABLE[:0])
    assert x.shape == (0, D)
    assert names == NAMES


def test_the_caller_sees_its_array_unchanged():
    mine = X.copy()
    mine.flags.writeable = False
    got = list(batches(mine, rows=100))
    assert all(np.shares_memory(x, mine) for x in got)
    assert all(a.shape == b.shape for a, b in pairwise(got))
