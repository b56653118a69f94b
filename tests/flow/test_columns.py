"""Columns that change within a stream, and columns that are no numbers: what is taken, and what is said about the rest."""

from __future__ import annotations

import decimal
import json
import re
from datetime import date, datetime, time, timedelta

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsvd.flow.batches import Intake, batches, pieces
from streamsvd.flow.numbers import widens

KINDS = {str(kind): kind for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16())}
KINDS |= {str(kind): kind for kind in (pa.uint32(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.bool_())}
kinds = st.sampled_from(list(KINDS.values()))


def stacked(source, **options) -> np.ndarray:
    return np.concatenate([np.asarray(x) for x in batches(source, **options)])


def files(folder, *tables):
    for number, table in enumerate(tables):
        pq.write_table(table, folder / f"{'abc'[number]}.parquet")
    return folder


# Widening


@given(kinds, kinds)
def test_a_type_widens_only_to_one_that_is_at_least_as_large(old, new):
    def largest(kind):
        if pa.types.is_floating(kind):
            return float(np.finfo(kind.to_pandas_dtype()).max)
        return 1 if pa.types.is_boolean(kind) else int(np.iinfo(kind.to_pandas_dtype()).max)

    if widens(old, new):
        assert largest(new) >= largest(old) or old == pa.uint16()  # float16 ends at 65504
        assert old == new or not widens(new, old)
        assert pa.types.is_integer(new) <= (pa.types.is_integer(old))
    assert widens(old, old)
    assert widens(pa.null(), old)
    assert widens(old, pa.null())


@pytest.mark.parametrize(
    ("old", "new", "dtype"),
    [
        ("int32", "int64", "float64"),
        ("int8", "int16", "float32"),
        ("int8", "float", "float32"),
        ("int32", "double", "float64"),
        ("uint8", "int32", "float64"),
        ("halffloat", "float", "float32"),
        ("float", "double", "float64"),
    ],
)
def test_numbers_may_become_wider_and_go_back(tmp_path, old, new, dtype):
    tables = [pa.table({"x": pa.array([1, 2]).cast(KINDS[kind])}) for kind in (old, new, old)]
    got = list(batches(files(tmp_path, *tables)))
    np.testing.assert_array_equal(np.concatenate(got)[:, 0], [1, 2] * 3)
    assert got[1].dtype == dtype
    assert got[2].dtype == got[0].dtype


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("int64", "int32"),
        ("double", "float"),
        ("double", "int64"),
        ("int32", "uint32"),
        ("uint64", "int64"),
        ("bool", "int8"),
    ],
)
def test_other_changes_are_refused_by_file_column_and_both_types(tmp_path, old, new):
    tables = [pa.table({"x": pa.array([0, 1]).cast(KINDS[kind])}) for kind in (old, new)]
    with pytest.raises(
        ValueError, match=rf"b\.parquet: column 'x' is of type {new} here and was of type {old} in the first batch"
    ):
        stacked(files(tmp_path, *tables))
    with pytest.raises(ValueError, match=r"rows 2 to 3: column 'x' is of type"):
        stacked(tables)


def test_a_column_that_turns_into_text_is_refused_with_both_types_and_a_cure(tmp_path):
    folder = files(tmp_path, pa.table({"x": [1.0], "y": [1.0]}), pa.table({"x": ["1"], "y": [1.0]}))
    with pytest.raises(
        TypeError, match=r"b\.parquet: column 'x' is of type string here and was of type double.*pl\.Float64"
    ):
        stacked(folder)
    np.testing.assert_array_equal(stacked(folder, select="y"), [[1.0], [1.0]])


def test_rows_of_a_narrower_type_take_the_type_of_the_first_batch(tmp_path):
    for name, text in (("a", "0.5"), ("b", "2"), ("c", "")):
        (tmp_path / f"{name}.csv").write_text(f"x,y\n{text},0.5\n1,1\n")
    got = list(batches(tmp_path, nulls="drop"))
    assert [x.dtype for x in got] == [np.float64] * 3
    np.testing.assert_array_equal(np.concatenate(got)[:, 0], [0.5, 1.0, 2.0, 1.0, 1.0])


def test_frames_of_pandas_guess_their_types_too():
    pandas = pytest.importorskip("pandas")
    frames = [pandas.DataFrame({"x": np.array(x, kind)}) for x, kind in (([0.5, 1], "f8"), ([1, 2], "i8"), ([3], "i1"))]
    got = list(batches(frames))
    assert [x.dtype for x in got] == [np.float64] * 3
    np.testing.assert_array_equal(np.concatenate(got)[:, 0], [0.5, 1.0, 1.0, 2.0, 3.0])


def test_a_stream_that_goes_on_keeps_the_columns_of_its_first_batch(tmp_path):
    first = pa.table({"a": [1.0], "b": [2.0]})
    start = next(pieces(files(tmp_path, first, first.select(["b", "a"]))))
    intake = Intake.from_json(json.loads(json.dumps(start.intake.to_json())))
    (rest,) = pieces(tmp_path, start=start.offset, intake=intake)
    np.testing.assert_array_equal(rest.x, [[1.0, 2.0]])
    assert rest.names == ("a", "b")
    pq.write_table(pa.table({"b": pa.array([2.0], pa.float32()), "a": [1.0]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet: column 'b' is of type float here and was of type double"):
        list(pieces(tmp_path, start=start.offset, intake=intake))


# Columns that are no numbers

BAD = {
    "string": ["1.5", "2"],
    "decimal": [decimal.Decimal("1.5"), decimal.Decimal(2)],
    "dictionary of numbers": pa.array([1.5, 2.0]).dictionary_encode(),
    "dictionary of text": pa.array(["a", "b"]).dictionary_encode(),
    "datetime": [datetime(2024, 1, 1), datetime(2024, 1, 2)],
    "date": [date(2024, 1, 1), date(2024, 1, 2)],
    "time": [time(1), time(2)],
    "duration": [timedelta(1), timedelta(2)],
    "struct": [{"p": 1.0, "q": 2.0}, {"p": 3.0, "q": 4.0}],
    "list of text": [["1", "2"], ["3", "4"]],
    "list of lists": [[[1.0], [2.0, 3.0]], [[4.0, 5.0], [6.0]]],
    "list of structs": [[{"p": 1.0}], [{"p": 2.0}]],
    "binary": [b"a", b"b"],
    "map": pa.array([[("a", 1.0)], [("b", 2.0)]], pa.map_(pa.string(), pa.float64())),
    "list of maps": pa.array([[[("a", 1.0)]], []], pa.list_(pa.map_(pa.string(), pa.float64()))),
    "uuid": pa.array([b"0" * 16, b"1" * 16], pa.uuid()),
}
NO_CAST = ("binary", "list of structs", "map", "list of maps", "uuid")


@pytest.mark.parametrize("kind", [kind for kind in BAD if kind not in NO_CAST])
@pytest.mark.parametrize("library", ["polars", "pyarrow"])
def test_the_cast_that_the_error_proposes_makes_numbers_of_the_column(kind, library):
    table = pa.table({"x": [1.0, 2.0], "bad": BAD[kind]})
    with pytest.raises(
        TypeError, match=r"columns are not numbers: 'bad' \(.*write select=\['x'\] to take the others, or"
    ) as caught:
        stacked(table)
    said = re.search(rf"{library}: (.*?)(?:, pyarrow: .*|\)| makes one .*)$", str(caught.value))
    if said is None:
        assert kind.startswith(("list", "dictionary of text"))
        assert library == "pyarrow"
        return
    n = 3 if kind == "list of lists" else 2
    frame = pl.from_arrow(table)
    made = eval(said[1], {"pl": pl, "table": table, "frame": frame, "n": n})
    source = frame.with_columns(made) if isinstance(made, pl.Expr) else made
    x = stacked(source)
    assert x.shape[0] == 2
    assert np.isfinite(x).all()


@pytest.mark.parametrize("kind", BAD)
def test_every_column_that_is_no_number_is_refused_in_one_line(kind):
    with pytest.raises(TypeError, match="columns are not numbers: 'bad'") as caught:
        stacked(pa.table({"x": [1.0, 2.0], "bad": BAD[kind]}), select=["x", "bad"])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    np.testing.assert_array_equal(stacked(pa.table({"x": [1.0, 2.0], "bad": BAD[kind]}), select="x"), [[1.0], [2.0]])


def test_columns_of_one_name_are_refused_wherever_they_are_used():
    table = pa.table([[1.0], [2.0], [3.0]], names=["x", "x", "y"])
    for options in ({}, {"weights": "x"}, {"by": "x"}, {"select": ["y"], "carry": ["x"]}):
        with pytest.raises(ValueError, match="several columns called 'x'"):
            list(pieces(table, **options))
