"""Nulls and numbers that are not finite: raised, left out or filled by one rule on every kind of array, and counted."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

import streamsvd as ss
from streamsvd.arrays import is_sparse, to_numpy
from streamsvd.flow import pieces as pieces_module
from streamsvd.flow.batches import batches, located, matrix, pieces, with_rows
from streamsvd.flow.policies import Intake
from streamsvd.flow.sources import Block

NAN, INF = float("nan"), float("inf")
ODD = st.sampled_from([0.0, 1.0, -2.0, 3.5, 1e6, NAN, INF, -INF])
ROWS = hnp.arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(1, 4)), elements=ODD)


def stacked(source, **options) -> np.ndarray:
    got = [to_numpy(x.toarray() if is_sparse(x) else x) for x in batches(source, **options)]
    return np.concatenate(got)


def running_fill(batches_of_rows, valid_of_rows, fill_of_rows):
    """The rule itself, number by number: the mean of valid numbers so far takes the place of those to fill."""
    d = batches_of_rows[0].shape[1]
    seen: list[list[float]] = [[] for _ in range(d)]
    out = []
    for x, valid, fill in zip(batches_of_rows, valid_of_rows, fill_of_rows, strict=True):
        y = x.copy()
        for j in range(d):
            seen[j] += x[valid[:, j], j].tolist()
            y[fill[:, j], j] = sum(seen[j]) / max(len(seen[j]), 1)
        out.append(y)
    return np.concatenate(out)


# The counts


@given(
    st.integers(0, 10**12),
    st.dictionaries(st.sampled_from(["null", "nonfinite"]), st.integers(1, 10**9)),
    st.none() | hnp.arrays(np.float64, 3, elements=st.floats(allow_nan=False, allow_infinity=False)),
)
def test_an_intake_survives_json_bit_for_bit(seen, dropped, mean):
    intake = Intake(seen, dropped, {"null": 2}, mean, mean, {"columns": ["a"], "widths": [None]})
    again = Intake.from_json(json.loads(json.dumps(intake.to_json())))
    assert again == intake
    assert mean is None or again.mean.tobytes() == mean.tobytes()
    assert intake != replace(intake, seen=seen + 1)


@pytest.mark.parametrize("name", ["nulls", "nonfinite"])
def test_an_unknown_policy_is_refused_with_those_that_exist(name):
    with pytest.raises(ValueError, match=rf'{name}=.fill. arrived; expected "error" .* "drop" .* "mean" \('):
        batches(np.ones((2, 2)), **{name: "fill"})


# Numbers that are not finite


def as_strict(X):
    return pytest.importorskip("array_api_strict").asarray(X)


def as_torch(X):
    return pytest.importorskip("torch").from_numpy(X.copy())


def read_only(X):
    X = X.copy()
    X.flags.writeable = False
    return X


ARRAYS = {
    "numpy": read_only,
    "column-major": lambda X: read_only(np.asfortranarray(X)),
    "strided": lambda X: np.repeat(np.repeat(X, 2, axis=0), 3, axis=1)[::2, ::3],
    "torch": as_torch,
    "strict": as_strict,
    "csr": sparse.csr_array,
    "csr with duplicates": lambda X: halves(X),
    "table": lambda X: pa.table({f"c{j}": X[:, j] for j in range(X.shape[1])}),
    "lists": lambda X: pa.table({"e": pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), X.shape[1])}),
}


def halves(X):
    """CSR in which each entry is stored in two halves."""
    whole = sparse.csr_array(X)
    parts = np.repeat(whole.data / 2, 2), np.repeat(whole.indices, 2), whole.indptr * 2
    return sparse.csr_array(parts, shape=X.shape)


@pytest.mark.parametrize("kind", ARRAYS)
@given(X=ROWS)
def test_dropping_leaves_exactly_the_finite_rows_of_any_array(kind, X):
    finite = np.isfinite(X).all(axis=1)
    got = list(pieces([ARRAYS[kind](X)], nonfinite="drop"))
    assert got[-1].intake.seen == len(X)
    assert got[-1].intake.dropped == ({"nonfinite": int((~finite).sum())} if not finite.all() else {})
    x = got[-1].x
    np.testing.assert_array_equal(to_numpy(x.toarray() if is_sparse(x) else x), X[finite])
    np.testing.assert_array_equal(np.arange(len(X)) if got[-1].kept is None else got[-1].kept, np.flatnonzero(finite))


@pytest.mark.parametrize("kind", ARRAYS)
@given(X=ROWS, rows=st.integers(1, 5))
def test_the_mean_is_that_of_all_valid_numbers_so_far(kind, X, rows):
    cut = [X[i : i + rows] for i in range(0, len(X), rows)]
    finite = [np.isfinite(x) for x in cut]
    expected = running_fill(cut, finite, [~f for f in finite])
    got = list(pieces(ARRAYS[kind](X), nonfinite="mean", rows=rows))
    x = np.concatenate([to_numpy(p.x.toarray() if is_sparse(p.x) else p.x) for p in got])
    np.testing.assert_allclose(x, expected, rtol=1e-12, atol=1e-9)
    last = got[-1].intake
    np.testing.assert_array_equal(last.count, np.isfinite(X).sum(axis=0))
    assert last.filled.get("nonfinite", 0) == int((~np.isfinite(X)).sum())
    assert not last.dropped


def test_finite_arrays_are_handed_on_as_they_are():
    X = np.random.default_rng(0).standard_normal((50, 4))
    for policy in ("error", "drop", "mean"):
        assert all(np.shares_memory(x, X) for x in batches(X, nonfinite=policy, rows=20))


def test_narrow_floats_and_whole_numbers_keep_their_type():
    X = np.array([[1, 2], [3, 4]])
    np.testing.assert_array_equal(stacked(X, nonfinite="mean"), X)
    assert stacked(X, nonfinite="mean").dtype == X.dtype
    half = np.array([[1, NAN], [3, 4]], dtype=np.float16)
    filled = stacked(half, nonfinite="mean")
    assert filled.dtype == np.float16
    np.testing.assert_array_equal(filled, [[1, 4], [3, 4]])


def test_bfloat16_rows_of_torch_are_filled_where_they_are():
    torch = pytest.importorskip("torch")
    x = torch.tensor([[1.0, NAN], [3.0, 4.0]], dtype=torch.bfloat16)
    (filled,) = batches(x, nonfinite="mean")
    assert filled.dtype == torch.bfloat16
    assert filled.tolist() == [[1.0, 4.0], [3.0, 4.0]]


def test_means_of_the_largest_numbers_do_not_overflow():
    big = np.finfo(np.float64).max
    X = np.array([[big, big], [big, -big], [NAN, NAN], [big, big], [NAN, NAN]])
    got = stacked(X, nonfinite="mean", rows=3)
    np.testing.assert_allclose(got[2], [big, 0.0])
    np.testing.assert_allclose(got[4], [big, big / 3])


def test_another_width_after_a_mean_is_refused():
    with pytest.raises(ValueError, match="rows 2 to 3: rows with 4 columns arrived after rows with 3"):
        list(batches([np.ones((2, 3)), np.ones((2, 4))], nonfinite="mean"))


def test_what_is_no_number_is_left_to_the_engine():
    for strange in (np.ones((2, 2), complex), np.ma.masked_greater(np.ones((2, 2)), 0)):
        for policy in ("drop", "mean"):
            (x,) = batches(strange, nonfinite=policy)
            assert type(x) is type(strange)
            assert x.dtype == strange.dtype


# Nulls


@st.composite
def tables_with_holes(draw):
    n = draw(st.integers(1, 9))
    values = draw(hnp.arrays(np.float64, (n, 4), elements=ODD))
    null = draw(hnp.arrays(np.bool_, (n, 4)))
    whole = draw(hnp.arrays(np.bool_, n))  # lists that are null themselves
    null[:, 2:] |= whole[:, None]
    flat = pa.array(values[:, 2:].ravel(), mask=null[:, 2:].ravel())
    lists = pa.FixedSizeListArray.from_arrays(flat, 2, mask=pa.array(whole))
    columns = {"a": pa.array(values[:, 0], mask=null[:, 0]), "b": pa.array(values[:, 1], mask=null[:, 1])}
    start, width = (
        draw(st.integers(0, n - 1)),
        draw(st.sampled_from([2, 4])),
    )  # Arrow converts tables without lists itself
    table = pa.table(columns | {"e": lists} if width == 4 else columns)
    return table[start:], values[start:, :width], null[start:, :width]


@given(tables_with_holes(), st.integers(1, 4), st.sampled_from(["mean", "drop"]))
def test_nulls_become_the_mean_of_valid_numbers_in_the_rows_kept(case, rows, nonfinite):
    table, values, null = case
    bad = ~np.isfinite(values) & ~null
    keep = np.ones(len(values), bool) if nonfinite == "mean" else ~bad.any(axis=1)
    at = [np.arange(i, min(i + rows, len(values))) for i in range(0, len(values), rows)]
    at = [i[keep[i]] for i in at]
    expected = running_fill(
        [values[i] for i in at], [(np.isfinite(values) & ~null)[i] for i in at], [(null | bad)[i] for i in at]
    )
    got = list(pieces(table, nulls="mean", nonfinite=nonfinite, rows=rows))
    np.testing.assert_allclose(np.concatenate([p.x for p in got]), expected, rtol=1e-12, atol=1e-9)
    last = got[-1].intake
    assert last.filled.get("null", 0) == int(null[keep].sum())
    assert last.dropped.get("nonfinite", 0) == int((~keep).sum())


@given(tables_with_holes(), st.integers(1, 4))
def test_rows_with_nulls_are_left_out_before_means_are_taken(case, rows):
    table, values, null = case
    keep = ~null.any(axis=1)
    at = [np.arange(i, min(i + rows, len(values))) for i in range(0, len(values), rows)]
    at = [i[keep[i]] for i in at]
    finite = np.isfinite(values)
    expected = running_fill([values[i] for i in at], [finite[i] for i in at], [~finite[i] for i in at])
    got = list(pieces(table, nulls="drop", nonfinite="mean", rows=rows))
    np.testing.assert_allclose(np.concatenate([p.x for p in got]), expected, rtol=1e-12, atol=1e-9)
    assert got[-1].intake.dropped.get("null", 0) == int((~keep).sum())
    assert got[-1].intake.rows == int(keep.sum())


@pytest.mark.parametrize("kind", ["float16", "float32", "int8", "int64", "uint8", "bool"])
@pytest.mark.parametrize("as_list", [False, True])
def test_nulls_of_every_type_of_number_are_filled(kind, as_list):
    column = pa.array(np.array([1, 0, 1]).astype(kind), mask=np.array([False, True, False]))
    if as_list:
        column = pa.FixedSizeListArray.from_arrays(column, 1)
    for other in (pa.nulls(3), pa.array([0.0, None, 0.0]), pa.array([0, None, 0], pa.int16())):
        table = pa.table({"a": column, "b": other})
        np.testing.assert_array_equal(matrix(table, nulls="mean")[0], [[1, 0], [1, 0], [1, 0]])
        rest = [[1, 0], [1, 0]] if other.null_count == 1 else np.empty((0, 2))
        np.testing.assert_array_equal(matrix(table, nulls="drop")[0], rest)


def test_a_table_in_chunks_is_filled_with_the_mean_of_all_of_it():
    table = pa.concat_tables([pa.table({"a": pa.array([None, 1.0])}), pa.table({"a": [3.0, 5.0]})])
    np.testing.assert_array_equal(matrix(table, nulls="mean")[0][:, 0], [3.0, 1.0, 3.0, 5.0])


def test_lists_that_begin_with_nulls_have_no_known_width():
    table = pa.table({"e": pa.array([None, [1.0, 2.0]], pa.list_(pa.float64()))})
    np.testing.assert_array_equal(stacked(table, nulls="mean"), [[1.0, 2.0], [1.0, 2.0]])
    with pytest.raises(ValueError, match=r"'e' begins with nulls.*lists of a fixed size"):
        stacked(table, nulls="mean", rows=1)


def test_the_error_names_the_first_row_that_has_a_null(tmp_path):
    pq.write_table(pa.table({"a": pa.array([1.0] * 7 + [None])}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"x\.parquet, rows 6 to 7: nulls.*'a' has 1;.*\(the first is in row 7\)"):
        stacked(tmp_path / "x.parquet", rows=3 * 2)


# What stands beside the rows


@pytest.mark.parametrize("role", ["weights", "timestamps", "by"])
def test_a_null_beside_the_rows_is_never_filled(role):
    table = pa.table({"x": [1.0, 2.0, 3.0], "r": pa.array([1, None, 3])})
    for policy in ("error", "mean"):
        with pytest.raises(ValueError, match=r"column 'r' has 1; write nulls=\"drop\".*row 1\)"):
            list(pieces(table, nulls=policy, **{role: "r"}))
    (piece,) = pieces(table, nulls="drop", **{role: "r"})
    np.testing.assert_array_equal(piece.x, [[1.0], [3.0]])
    assert piece.intake.dropped == {"null": 1}


def test_rows_whose_weight_or_time_is_not_finite_are_left_out_with_them():
    table = pa.table({"x": [1.0, 2.0, 3.0, NAN], "w": [1.0, NAN, INF, 1.0], "k": ["a", "b", "c", "d"]})
    (piece,) = pieces(table, weights="w", by="k", carry=["k"], nonfinite="drop")
    np.testing.assert_array_equal(piece.x, [[1.0]])
    np.testing.assert_array_equal(piece.beside["weights"], [1.0])
    assert piece.keys.to_pylist() == piece.carried["k"].to_pylist() == ["a"]
    assert piece.intake.dropped == {"nonfinite": 3}


@pytest.mark.parametrize(
    "keys",
    [
        pa.array(["a", "b", "a"]),
        pa.array(["a", "b", "a"]).dictionary_encode(),
        pa.array([1, 2, 1], pa.uint8()),
        pa.array([True, False, True]),
        pa.array([1, 2, 1], pa.date32()),
    ],
)
def test_keys_come_along_and_are_no_feature(keys):
    table = pa.table({"x": pa.array([1.0, None, 3.0]), "k": keys})
    (piece,) = pieces(table, by="k", nulls="drop")
    assert piece.names == ("x",)
    assert piece.keys.to_pylist() == [keys[0].as_py(), keys[2].as_py()]


def test_keys_that_are_no_keys_are_refused():
    with pytest.raises(TypeError, match="by='k' is a column of type double; expected text, whole numbers"):
        list(pieces(pa.table({"x": [1.0], "k": [1.0]}), by="k"))
    with pytest.raises(TypeError, match="by= names a column, and an array has no names"):
        list(pieces(np.ones((2, 2)), by="k"))
    with pytest.raises(TypeError, match="ids= names a column, and an array has no names"):
        list(pieces(np.ones((2, 2)), carry=["k"]))


def test_carried_columns_are_handed_on_as_they_were_read():
    table = pa.table({"x": pa.array([1.0, None, 3.0]), "id": pa.array([{"n": 1}, {"n": 2}, None])})
    for select in (None, ["x"]):
        (piece,) = pieces(table, carry=["id"], nulls="drop", select=select)
        assert piece.names == ("x",)
        assert piece.carried.to_pylist() == [{"id": {"n": 1}}, {"id": None}]
    assert next(pieces(table[:1], select=["x"], carry=["x"])).carried.to_pylist() == [{"x": 1.0}]


# The stream


def test_blocks_without_rows_left_still_say_where_the_stream_is():
    table = pa.table({"a": pa.array([None, None, 1.0, None])})
    got = list(pieces(table, nulls="drop", rows=1))
    assert [piece.x.shape[0] for piece in got] == [0, 0, 1, 0]
    assert [piece.intake.seen for piece in got] == [1, 2, 3, 4]
    assert [piece.intake.rows for piece in got] == [0, 0, 1, 1]
    assert all(piece.offset is not None for piece in got)
    assert len(list(with_rows(got))) == len(list(batches(table, nulls="drop", rows=1))) == 1


def test_a_source_that_is_waited_for_gives_pieces_without_rows(monkeypatch):
    blocks = [Block(np.ones((2, 2))), Block(None), Block(np.ones((3, 2)))]
    monkeypatch.setattr(pieces_module, "read", lambda *_, **__: iter(blocks))
    got = list(pieces("anything"))
    assert [None if piece.x is None else len(piece.x) for piece in got] == [2, None, 3]
    assert [piece.intake.seen for piece in got] == [2, 2, 5]
    assert [len(x) for x in batches("anything")] == [2, 3]


@pytest.fixture(scope="module")
def holed(tmp_path_factory):
    """Two Parquet files, the second with its columns in another order and wider, both with nulls, NaN and infinity."""
    folder, rng = tmp_path_factory.mktemp("holed"), np.random.default_rng(3)
    for number, kind in enumerate([pa.float32(), pa.float64()]):
        X = rng.standard_normal((200, 3))
        X[rng.random(X.shape) < 0.05] = NAN
        null = rng.random(X.shape) < 0.05
        columns = {f"c{j}": pa.array(X[:, j], mask=null[:, j]).cast(kind, safe=False) for j in range(3)}
        table = pa.table(columns).select([["c0", "c1", "c2"], ["c2", "c0", "c1"]][number])
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=70)
    return folder


@pytest.mark.parametrize(("nulls", "nonfinite"), [("drop", "drop"), ("mean", "mean"), ("drop", "mean")])
def test_a_stream_goes_on_after_any_piece_as_if_nothing_had_happened(holed, nulls, nonfinite):
    options = {"nulls": nulls, "nonfinite": nonfinite, "rows": 30}
    whole = list(pieces(holed, **options))
    assert len(whole) > 10
    for i, stop in enumerate(whole):
        plain = json.loads(json.dumps([stop.offset, stop.intake.to_json()]))
        rest = list(pieces(holed, **options, start=plain[0], intake=Intake.from_json(plain[1])))
        assert len(rest) == len(whole) - i - 1
        for a, b in zip(rest, whole[i + 1 :], strict=True):
            assert a.x.tobytes("A") == b.x.tobytes("A")
            assert (a.names, a.where, a.offset, a.intake) == (b.names, b.where, b.offset, b.intake)


def test_the_row_that_is_not_finite_is_named_as_it_stands_in_the_file(tmp_path):
    values = np.ones((50, 2))
    values[[3, 44], 1] = NAN, INF
    null = np.zeros((50, 2), bool)
    null[[3, 41], 0] = True
    table = pa.table({name: pa.array(values[:, j], mask=null[:, j]) for j, name in enumerate(["a", "b"])})
    pq.write_table(table, tmp_path / "x.parquet")
    last = list(pieces(tmp_path / "x.parquet", rows=20, nulls="drop"))[-1]
    refused = pytest.raises(
        ValueError, match=r"x\.parquet, rows 40 to 49: .*first is row 44 of .*x\.parquet, column 'b'"
    )
    with refused, located(last):
        ss.sketch(columns=2, rank=1).update(last.x)
    for source in (values, sparse.csr_array(values)):
        (piece,) = pieces(source)
        with (
            pytest.raises(ValueError, match=r"first is row 3 of the stream, column 1: nonfinite=\"drop\""),
            located(piece),
        ):
            ss.sketch(columns=2, rank=1).update(piece.x)


def test_errors_about_anything_else_get_their_place_only():
    (piece,) = pieces(np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"^rows 0 to 1: $"), located(piece):
        raise ValueError
