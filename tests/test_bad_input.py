"""Bad input is refused in one sentence with cause and cure, and changes nothing: not the state, not the caller's array."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from backends import digest
from streams import feed
from streamsvd.batch import as_batch
from streamsvd.planner import sketch

D = 30
KINDS = ["gram", "truncated"]


def empty(kind="truncated", **options):
    return sketch(**{"columns": D, "rank": 3, "kept": 6, "kind": kind, **options})


def good(n=50, seed=0, d=D):
    return np.random.default_rng(seed).standard_normal((n, d))


def spoilt(value, n=20, where=(7, 4)):
    rows = good(n, 1)
    rows[where] = value
    return rows


def refused(state, X, kind, *words, **options):
    """Assert the type of the error, the words of its message and that the state is what it was."""
    before = digest(state)
    with pytest.raises(kind) as caught:
        state.update(X, **options)
    message = str(caught.value)
    for word in words:
        assert word in message, f"{word!r} is not in {message!r}"
    assert "\n" not in message
    assert digest(state) == before
    return message


@pytest.fixture(params=KINDS)
def state(request):
    return feed(empty(request.param), good(), 9)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("make", [np.asarray, np.asfortranarray, lambda x: x.astype("float32"), sparse.csr_array])
def test_nan_and_infinity_are_named_by_row_and_column(state, value, make):
    refused(
        state,
        make(spoilt(value)),
        ValueError,
        "NaN or infinity",
        "1 of 20 rows",
        "row 7, column 4",
        "unchanged",
        "drop",
    )


@pytest.mark.parametrize("row", [0, 2000, 2999])
@pytest.mark.parametrize(
    "make", [np.asarray, np.asfortranarray, lambda x: x[::-1][::-1], lambda x: np.repeat(x, 2, 1)[:, ::2]]
)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_nan_in_a_large_batch_is_named_wherever_it_is(state, row, make, dtype):
    """Large batches are checked where they are read anyway, in the fold or in the copy: no row may slip through."""
    rows = make(spoilt(np.nan, 3000, (row, 4)).astype(dtype))
    refused(state, rows, ValueError, "NaN or infinity", "1 of 3000 rows", f"row {row}, column 4")
    refused(empty(state.kind), rows, ValueError, f"row {row}, column 4")


def test_all_bad_rows_are_counted(state):
    rows = spoilt(np.nan)
    rows[[3, 9]] = np.inf
    refused(state, rows, ValueError, "3 of 20 rows", "row 3, column 0")


def test_the_largest_numbers_are_not_taken_for_infinity(state):
    rows = good(20, 2)
    rows[3] = 1.7e308
    assert state.update(rows).rows == 70
    assert state.update(rows * 1e-300).rows == 70


@pytest.mark.parametrize(
    ("X", "kind", "words"),
    [
        (good(4, d=D - 1), ValueError, (f"{D - 1} columns", f"has {D}", "widen")),
        (good(4, d=D + 2), ValueError, (f"{D + 2} columns", f"has {D}")),
        (good(4)[0], ValueError, ("shape (30,)", "2-D", "reshape(1, -1)")),
        (good(4)[None], ValueError, ("shape (1, 4, 30)", "2-D", "flattens")),
        (np.float64(3.0), ValueError, ("shape ()", "2-D")),
        (np.zeros((4, 0)), ValueError, ("shape (4, 0)", "no columns")),
        (good(4).astype(complex), TypeError, ("complex128", "real and imaginary")),
        (good(4).astype(object), TypeError, ("object", "astype")),
        (good(4).astype(str), TypeError, ("str", "numbers")),
        (np.zeros((4, D), "datetime64[s]"), TypeError, ("datetime64", "astype")),
        (np.zeros((4, D), "timedelta64[s]"), TypeError, ("timedelta64", "astype")),
        (sparse.csr_array(good(4).astype(complex)), TypeError, ("complex128",)),
        (sparse.csr_array(good(4, d=D - 1)), ValueError, (f"{D - 1} columns",)),
        (sparse.coo_array(good(4)[0]), ValueError, ("2-D",)),
        (3, TypeError, ("int", "array")),
        ("rows.parquet", TypeError, ("str", "array")),
        (None, TypeError, ("NoneType", "array")),
        ([[1.0] * D, [2.0] * (D - 1)], ValueError, ()),
        (np.ma.masked_less(good(4), 0), ValueError, ("masked", "fill")),
    ],
)
def test_what_is_no_matrix_of_real_numbers_is_refused(state, X, kind, words):
    refused(state, X, kind, *words)


def test_a_masked_array_without_masked_entries_is_rows(state):
    assert state.update(np.ma.masked_array(good(4))).rows == 54


@pytest.mark.parametrize(
    ("weights", "kind", "words"),
    [
        (-np.ones(20), ValueError, ("not negative", "row 0", "clip")),
        (np.r_[np.ones(19), -1e-9], ValueError, ("row 19", "(1 such rows)")),
        (np.r_[np.ones(5), np.nan, np.ones(14)], ValueError, ("finite", "row 5")),
        (np.full(20, np.inf), ValueError, ("finite", "20 such rows")),
        (np.ones(19), ValueError, ("(19,)", "20 rows", "(20,)")),
        (np.ones((20, 1)), ValueError, ("(20, 1)", "(20,)")),
        (np.ones(()), ValueError, ("()", "(20,)")),
        (2.0, ValueError, ("()", "(20,)")),
        (["a"] * 20, TypeError, ("weights of dtype",)),
        (np.ones(20, complex), TypeError, ("complex",)),
    ],
)
def test_weights_are_checked(state, weights, kind, words):
    refused(state, good(20, 3), kind, *words, weights=weights)


@pytest.mark.parametrize("weights", [[1.0] * 20, np.ones(20, int), np.ones(20, bool), np.ones(20, "float32")])
def test_numbers_of_any_kind_are_weights(state, weights):
    rows = good(20, 4)
    assert digest(state.update(rows, weights=weights)) == digest(state.update(rows))


def test_weights_may_live_in_another_library(state):
    torch = pytest.importorskip("torch")
    rows, weights = good(20, 5), np.linspace(0, 1, 20)
    assert digest(state.update(rows, weights=torch.from_numpy(weights))) == digest(state.update(rows, weights=weights))


@pytest.mark.parametrize("kind", KINDS)
def test_timestamps_are_checked(kind):
    rows, times = good(20, 6), np.arange(20.0)
    timed = empty(kind, half_life="10s").update(rows, timestamps=times)
    refused(timed, rows, ValueError, "timestamps=t")
    refused(timed, rows, ValueError, "order", "row 0", "after 19.0", timestamps=times)
    refused(timed, rows, ValueError, "order", "row 1", "sort", timestamps=100 - times)
    refused(timed, rows, ValueError, "finite", "row 3", timestamps=np.where(times == 3, np.nan, times + 50))
    refused(timed, rows, ValueError, "(19,)", "20 rows", timestamps=times[:19] + 50)
    plain = empty(kind).update(rows)
    refused(plain, rows, ValueError, "half_life", timestamps=times)


@pytest.mark.parametrize("kind", KINDS)
def test_dates_and_seconds_are_the_same_time(kind):
    rows, seconds = good(20, 7), np.cumsum(np.random.default_rng(8).integers(0, 9, 20))
    start = np.datetime64("2024-03-01T00:00:00", "ms")
    base = (start - np.datetime64(0, "s")) / np.timedelta64(1, "s")
    dated = empty(kind, half_life=dt.timedelta(seconds=10)).update(rows, timestamps=start + seconds * 1000)
    timed = empty(kind, half_life="10s").update(rows, timestamps=base + seconds)
    assert digest(dated.factors()) == digest(timed.factors())
    listed = empty(kind, half_life="10s").update(rows, timestamps=(base + seconds).tolist())
    assert digest(listed) == digest(timed)


@pytest.mark.parametrize("kind", KINDS)
def test_factors_before_any_row_say_what_to_call(kind):
    for state in (empty(kind), empty(kind).update(np.zeros((0, D))), empty(kind).update(good(3), weights=np.zeros(3))):
        with pytest.raises(ValueError, match=r"no rows.*update"):
            state.factors()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [0, -1, D + 1])
def test_a_rank_out_of_range_is_refused_when_reading(kind, rank):
    with pytest.raises(ValueError, match=f"rank={rank} is outside 1 .."):
        empty(kind).update(good()).factors(rank)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("library", ["polars", "pyarrow", "pandas"])
def test_tables_are_rows_and_their_nulls_are_named(kind, library):
    module = pytest.importorskip(library)
    rows = good(20, 9)
    columns = {f"c{i}": rows[:, i] for i in range(D)}
    make = {"polars": "DataFrame", "pyarrow": "table", "pandas": "DataFrame"}[library]
    state = empty(kind).update(good())
    assert digest(state.update(getattr(module, make)(columns)).factors()) == digest(state.update(rows).factors())
    if library == "pandas":
        return
    holes = {**columns, "c3": [None, None, *rows[2:, 3]]}
    refused(state, getattr(module, make)(holes), ValueError, "null", "'c3'", "2", 'nulls="drop"')
    words = {**columns, "c5": ["x"] * 20}
    refused(state, getattr(module, make)(words), (TypeError, ValueError), "c5")


@given(
    kind=st.sampled_from(KINDS),
    shape=st.tuples(st.integers(0, 6), st.integers(0, D + 3)),
    dtype=st.sampled_from(
        ["float64", "float32", "int64", "bool", "complex64", "U3", "object", "float16", "datetime64[s]"]
    ),
    poison=st.sampled_from([None, np.nan, np.inf]),
    weights=st.sampled_from([None, 1.0, -1.0, np.nan, "short"]),
)
def test_any_batch_is_taken_or_refused_without_a_trace(kind, shape, dtype, poison, weights):
    """Whatever comes: either the rows are counted, or a TypeError or ValueError, and the state and the batch are untouched."""
    rows = np.random.default_rng(10).integers(0, 2, shape).astype(dtype)
    if poison is not None and rows.dtype.kind == "f" and rows.size:
        rows[-1, -1] = poison
    given_weights = weights
    if weights is not None:
        given_weights = np.ones(shape[0] + 1) if weights == "short" else np.full(shape[0], weights)
    state = empty(kind).update(good(20))
    before, copy = digest(state), rows.copy()
    bad = (
        shape[1] != D
        or rows.dtype.kind not in "fiub"
        or (poison is not None and rows.dtype.kind == "f" and rows.size > 0)
        or weights == "short"
        or ((weights in (-1.0,) or (weights is not None and weights != weights)) and shape[0] > 0)
    )
    try:
        after = state.update(rows, weights=given_weights)
    except (TypeError, ValueError) as error:
        message = str(error)
        assert bad
        assert len(message) > 20
    else:
        assert not bad
        assert after.rows == 20 + shape[0]
        assert digest(feed(after, good(30, 11))) == digest(
            feed(empty(kind), np.concatenate([good(20), rows.astype(float), good(30, 11)]))
        )
    assert digest(state) == before
    np.testing.assert_array_equal(rows, copy)


def test_a_batch_is_checked_without_being_copied():
    rows = good(100)
    assert as_batch(rows, columns=D) is rows
    single = rows.astype("float32")
    assert as_batch(single, columns=D) is single
    assert as_batch(rows.astype("int16")).dtype == np.float32
    assert as_batch(rows.astype("int32")).dtype == np.float64
    assert as_batch(sparse.csr_array(rows > 1)).dtype == np.float32


def test_the_columns_of_a_table_are_taken_by_name():
    pl = pytest.importorskip("polars")
    rows = good(5, d=3)
    table = pl.DataFrame({"b": rows[:, 1], "junk": rows[:, 2] * np.nan, "a": rows[:, 0]})
    np.testing.assert_array_equal(as_batch(table, columns=2, names=("a", "b")), rows[:, :2])
