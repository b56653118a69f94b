"""The loop gives what updates by hand give, from any source; weights, scales, names and errors find their way through it."""

from __future__ import annotations

import datetime
import io
import sys

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsvd import fit, sketch
from streamsvd.flow.fold import fold

N, D = 900, 12
RNG = np.random.default_rng(7)
X = (RNG.standard_normal((N, D)) * 0.8 ** np.arange(D) + 3).astype(np.float32)
W = RNG.random(N) + 0.1
NAMES = tuple(f"c{j}" for j in range(D))
TABLE = pa.table({name: X[:, j] for j, name in enumerate(NAMES)})


def same(a, b) -> None:
    for name in ("s", "vt", "mean"):
        np.testing.assert_array_equal(np.asarray(getattr(a, name)), np.asarray(getattr(b, name)))
    assert (a.rows, a.norm) == (b.rows, b.norm)
    assert a.bound.residual == b.bound.residual > 0


def by_hand(rows=X, weights=None, **options):
    return sketch(columns=D, rank=3, **options).update(rows, weights=weights).factors()


SOURCES = {
    "array": lambda folder: X,
    "table": lambda folder: TABLE,
    "lazy": lambda folder: pl.from_arrow(TABLE).lazy(),
    "parquet": lambda folder: folder / "parts",
    "generator": lambda folder: (X[i : i + 77] for i in range(0, N, 77)),
    "one row at a time": lambda folder: (X[i : i + 1] for i in range(N)),
    "mixed": lambda folder: [TABLE[:100], X[100:350], pl.from_arrow(TABLE[350:])],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("fold")
    (path / "parts").mkdir()
    pq.write_table(TABLE[:400], path / "parts" / "a.parquet", row_group_size=150)
    pq.write_table(TABLE[400:], path / "parts" / "b.parquet")
    return path


@pytest.mark.parametrize("kind", ["gram", "truncated"])
@pytest.mark.parametrize("name", SOURCES)
def test_every_source_gives_the_bits_of_updates_by_hand(folder, name, kind):
    same(fit(SOURCES[name](folder), rank=3, kind=kind), by_hand(kind=kind))


def test_options_reach_the_sketch():
    for options in (
        {"center": False},
        {"decay": 0.99},
        {"half_life": 50},
        {"kind": "truncated", "kept": 7, "shrink": 0.5, "seed": 3},
        {"dtype": "float64"},
    ):
        same(fit(TABLE, rank=3, **options), by_hand(**options))
    assert fit(TABLE, rank=3, dtype="float64").vt.dtype == np.float64


def test_factors_carry_the_names_of_the_columns(folder):
    assert fit(folder / "parts", rank=2).names == NAMES
    assert fit(TABLE, rank=2, select=["c3", "c1", "c0"]).names == ("c3", "c1", "c0")
    assert fit(X, rank=2).names == ()
    lists = pa.table({"id": ["a"] * N, "e": pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), D)})
    factors = fit(lists, rank=3, select="e")
    assert factors.names == tuple(f"e[{j}]" for j in range(D))
    same(factors, by_hand())
    np.testing.assert_allclose(factors.transform(lists), factors.transform(X), rtol=1e-6)


@pytest.mark.parametrize("kind", ["gram", "truncated"])
def test_the_column_of_weights_weighs_rows(kind):
    table = TABLE.append_column("w", pa.array(W))
    factors = fit(table, rank=3, kind=kind, weights="w")
    same(factors, by_hand(weights=W, kind=kind))
    assert factors.names == NAMES
    assert abs(factors.s[0] - by_hand(kind=kind).s[0]) > 1e-3 * factors.s[0]


def test_the_column_of_times_ages_rows():
    begin = datetime.datetime(2024, 1, 1)
    times = [begin + datetime.timedelta(seconds=0.5 * i) for i in range(N)]
    table = TABLE.append_column("t", pa.array(times))
    factors = fit(table, rank=3, timestamps="t", half_life="20s")
    expected = sketch(columns=D, rank=3, half_life="20s").update(X, timestamps=np.arange(N) * 0.5).factors()
    np.testing.assert_allclose(factors.s, expected.s, rtol=1e-6)
    np.testing.assert_allclose(factors.weight, sum(0.5 ** (0.5 * i / 20) for i in range(N)), rtol=1e-9)
    with pytest.raises(ValueError, match="timestamps"):
        fit(TABLE, rank=3, half_life="20s")


@given(
    st.sampled_from([True, False]),
    st.sampled_from([None, 0.99]),
    st.booleans(),
    st.sampled_from([np.float32, np.float64]),
)
def test_unit_scale_gives_every_column_unit_variance_in_both_kinds(center, decay, weighted, dtype):
    table = pa.table({name: X[:, j].astype(dtype) for j, name in enumerate(NAMES)}).append_column(
        "w", pa.array(np.where(np.arange(N) % 7, W, 0.0))
    )
    options = {"center": center, "decay": decay, "weights": "w" if weighted else None, "select": NAMES}
    exact = fit(table, rank=D, kind="gram", scale="unit", **options)
    passed = fit(table, rank=D, kind="truncated", scale="unit", **options)
    np.testing.assert_allclose(passed.scale, exact.scale, rtol=1e-5)
    np.testing.assert_allclose(passed.s, exact.s, rtol=1e-4)
    np.testing.assert_allclose(float(np.sum(exact.explained_variance)), D, rtol=1e-4)


def test_unit_scale_leaves_constant_columns_as_they_are_and_takes_sparse_rows():
    from scipy import sparse

    dense = np.where(RNG.random((300, 8)) < 0.3, RNG.standard_normal((300, 8)), 0.0)
    dense[:, 2] = 0.0
    exact = fit(dense, rank=3, kind="gram", scale="unit")
    passed = fit(sparse.csr_array(dense), rank=3, kind="truncated", scale="unit")
    assert passed.scale[2] == 1.0
    others = np.arange(8) != 2
    np.testing.assert_allclose(passed.scale[others], exact.scale[others], rtol=1e-9)
    np.testing.assert_allclose(passed.s, exact.s, rtol=1e-6)


def test_unit_scale_in_two_passes_wants_a_source_that_can_be_read_twice():
    for source in (iter([X]), (rows for rows in [X]), TABLE.to_reader(), [X, iter([X])]):
        with pytest.raises(
            ValueError, match=r"reads the source twice.*gives its rows once; pass something.*kind='gram'"
        ):
            fit(source, rank=3, kind="truncated", scale="unit")
    assert fit(iter([X]), rank=3, kind="gram", scale="unit").s[0] > 0

    class Once:
        def __init__(self):
            self.parts = [X[:500], X[500:]]

        def __iter__(self):
            while self.parts:
                yield self.parts.pop()

    with pytest.raises(
        ValueError,
        match=r"gave 500 rows when its columns were measured and 400 when .*pass something that can be read twice",
    ):
        fit(Once(), rank=3, kind="truncated", scale="unit")


def test_nulls_are_dropped_where_asked():
    holes = np.arange(N) % 10 == 0
    column = pa.array(X[:, 0], mask=holes)
    table = TABLE.set_column(0, "c0", column)
    same(fit(table, rank=3, nulls="drop"), by_hand(X[~holes]))
    with pytest.raises(ValueError, match=r"rows 0 to 899: nulls in 900 rows: column 'c0' has 90"):
        fit(table, rank=3)


def test_fold_goes_on_from_a_state_and_leaves_it_as_it_was():
    start = sketch(columns=D, rank=3).update(X[:300])
    before = start.factors()
    same(fold(start, TABLE[300:]).factors(), by_hand())
    same(start.factors(), before)
    assert start.rows == 300
    weighted = fold(sketch(columns=D, rank=3), TABLE.append_column("w", pa.array(W)), weights="w")
    same(weighted.factors(), by_hand(weights=W))


EMPTY = {
    "list": lambda: [],
    "iterator": lambda: iter([]),
    "table": lambda: TABLE[:0],
    "array": lambda: X[:0],
    "lazy": lambda: pl.from_arrow(TABLE[:0]).lazy(),
    "parts": lambda: [X[:0], TABLE[:0]],
}


@pytest.mark.parametrize("name", EMPTY)
def test_a_source_without_rows_is_refused(name):
    with pytest.raises(ValueError, match="gave no rows, and factors need at least one"):
        fit(EMPTY[name](), rank=3)


def test_a_file_without_rows_is_refused_by_name(tmp_path):
    pq.write_table(TABLE[:0], tmp_path / "none.parquet")
    with pytest.raises(ValueError, match=r"none\.parquet.*gave no rows"):
        fit(tmp_path / "none.parquet", rank=3)


def test_what_the_engine_refuses_is_told_with_file_and_rows(tmp_path):
    bad = X.copy()
    bad[321, 4] = np.nan
    pq.write_table(TABLE, tmp_path / "a.parquet")
    pq.write_table(
        pa.table({name: bad[:, j] for j, name in enumerate(NAMES)}), tmp_path / "b.parquet", row_group_size=300
    )
    with pytest.raises(ValueError, match=r"b\.parquet, rows 300 to 599: .*NaN.*row 21, column 4"):
        fit(tmp_path, rank=3)
    with pytest.raises(ValueError, match=r"^rows 900 to 909: .*7 columns"):
        fit([X, X[:10, :7]], rank=3)
    with pytest.raises(TypeError, match=r"^rows 0 to 1: .*complex"):
        fit(np.ones((2, 3), complex), rank=1)
    negative = TABLE.append_column("w", pa.array(-W))
    with pytest.raises(ValueError, match=r"^rows 0 to 899: weights must be finite and not negative"):
        fit(negative, rank=3, weights="w")
    with pytest.raises(ValueError, match=r"no column 'w'; the columns are 'c0'"):
        fit(TABLE, rank=3, weights="w")


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 0},
        {"rank": D + 1},
        {"rank": 3, "kind": "magic"},
        {"rank": 3, "decay": 2.0},
        {"rank": 3, "scale": "std"},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=r"rank=|kind=|decay=|scale="):
        fit(TABLE, **options)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("name", ["array", "table", "generator"])
def test_progress_is_shown_on_a_terminal(monkeypatch, name):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    factors = fit(SOURCES[name](None), rank=2)
    assert factors.rows == N
    assert "folding 900 rows" in screen.getvalue()
    assert "rows/s" in screen.getvalue()


def test_progress_is_silent_elsewhere(monkeypatch):
    for screen, progress in ((io.StringIO(), None), (Terminal(), False)):
        monkeypatch.setattr(sys, "stderr", screen)
        fit(X, rank=2, progress=progress)
        assert screen.getvalue() == ""
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    fit(X, rank=2, kind="truncated", scale="unit", progress=True)
    assert "measuring" in screen.getvalue()
    assert "folding" in screen.getvalue()


def test_many_rows_one_by_one_are_all_counted():
    row = np.ones((1, 2), np.float32)
    factors = fit((row for _ in range(10_000)), rank=1, center=False)
    assert factors.rows == 10_000
    np.testing.assert_allclose(factors.s[0] ** 2, 20_000, rtol=1e-5)
