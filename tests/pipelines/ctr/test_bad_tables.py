from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from ctr_tables import counts_table, table, vectors

from streamsvd.pipelines.ctr.compress import compress_tables
from streamsvd.pipelines.ctr.counts import count_ids
from streamsvd.pipelines.ctr.moments import Moments

X, C = vectors(20, 4), np.ones(20)


def lists(rows: list, kind: pa.DataType | None = None) -> pa.Table:
    return pa.table({"field": ["item"] * len(rows), "id": np.arange(len(rows)) + 100, "vector": pa.array(rows, kind)})


COUNTS = pa.table({"field": ["item"] * 3, "id": [100, 101, 102], "count": [1, 2, 3]})
BAD = {
    "ragged": (lists([[1.0, 2.0], [1.0], [3.0, 4.0]]), "'item', id 101.*1 numbers among vectors of 2"),
    "nan": (lists([[1.0, 2.0], [1.0, np.nan], [3.0, 4.0]]), "'item', id 101.*NaN or infinity"),
    "infinity": (lists([[1.0, 2.0], [1.0, 2.0], [3.0, -np.inf]]), "'item', id 102.*NaN or infinity"),
    "null vector": (lists([[1.0, 2.0], None, [3.0, 4.0]]), "'item', id 101.*null"),
    "null number": (lists([[1.0, 2.0], [None, 1.0], [3.0, 4.0]], pa.list_(pa.float32(), 2)), "'item', id 101.*null"),
    "quantized": (lists([[1, 2], [3, 4], [5, 6]], pa.list_(pa.int8(), 2)), "quantized table without scales"),
    "no list": (pa.table({"field": ["item"], "id": [100], "vector": ["x"]}), "expected a list of floats"),
    "no id": (pa.table({"field": ["item"], "vector": [[1.0]]}), "id is missing"),
    "twice": (pa.concat_tables([lists([[1.0, 2.0], [1.0, 3.0], [3.0, 4.0]])] * 2), "id 100 stands twice"),
    "mixed widths": (pa.concat_tables([lists([[1.0, 2.0]] * 3), lists([[1.0]] * 9).slice(5)]), "numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tables_are_refused_by_field_and_id(name: str) -> None:
    data, message = BAD[name]
    with pytest.raises((ValueError, TypeError), match=message):
        compress_tables(data, COUNTS, rank=1)


def test_mixed_widths_across_batches_name_the_field() -> None:
    with pytest.raises(ValueError, match="'a' has vectors of 4 and of 3"):
        Moments().update("a", X, C).update("a", X[:, :3], C)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (-C, "'a', id 0: count -1"),
        (C * np.nan, "'a', id 0: count nan"),
        (C * 0, "all counts are zero"),
        (C[:5], "5 counts"),
        (np.ones(30), "30 counts"),
        ({0: 1.0, 99: 3.0}, r"1 ids that have counts are not in the table \(such as 99; 75.00%.*ignore_unknown=True"),
        (pa.table({"id": [1, 1], "count": [2, 3]}), "id 1 twice"),
        (pa.table({"id": ["x"], "count": [2]}), "integers and those of the counts are text"),
        (pa.table({"id": [1]}), "count is missing"),
    ],
)
def test_bad_counts_are_refused(counts, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compress_tables({"a": X}, {"a": counts}, rank=2)


def test_unknown_ids_are_counted_where_they_are_ignored() -> None:
    done = compress_tables({"a": X}, {"a": {0: 1.0, 1: 2.0, 99: 3.0}}, rank=2, ignore_unknown=True)
    assert done.unknown["a"] == {"ids": 1, "lookups": 3.0}


def test_fields_without_counts_and_counts_without_fields_are_refused() -> None:
    with pytest.raises(ValueError, match="no counts for field 'b'"):
        compress_tables({"a": X, "b": X}, {"a": C}, rank=2)
    with pytest.raises(ValueError, match="counts for b and no such table"):
        compress_tables({"a": X}, {"a": C, "b": C}, rank=2)


@pytest.mark.parametrize("rank", [0, 5, -1, 2.5, True])
def test_a_rank_out_of_range_is_refused(rank) -> None:
    with pytest.raises(ValueError, match="from 1 to 4"):
        compress_tables({"a": X}, {"a": C}, rank=rank)


@pytest.mark.parametrize("options", [{}, {"rank": 2, "energy": 0.5}])
def test_exactly_one_size_is_wanted(options: dict) -> None:
    with pytest.raises(ValueError, match="exactly one of budget_bytes"):
        compress_tables({"a": X}, {"a": C}, **options)


def test_a_budget_below_the_smallest_possible_says_what_that_is() -> None:
    with pytest.raises(ValueError, match="smallest possible, 16 bytes") as error:
        compress_tables({"a": X}, {"a": C}, budget_bytes=10)
    assert "give at least that" in str(error.value)
    assert compress_tables({"a": X}, {"a": C}, budget_bytes=16)["a"].rank == 0


def test_statistics_of_another_model_do_not_merge() -> None:
    with pytest.raises(ValueError, match="model 'a' and of model 'b'"):
        Moments(model="a").update("f", X, C).merge(Moments(model="b").update("f", X, C))


def test_int8_tables_with_scales_are_read() -> None:
    codes = np.random.default_rng(0).integers(-127, 128, (50, 4)).astype(np.int8)
    scale = np.linspace(0.1, 1.0, 50).astype(np.float32)
    data = pa.table(
        {"id": np.arange(50), "vector": pa.FixedSizeListArray.from_arrays(pa.array(codes.ravel()), 4), "scale": scale}
    )
    done = compress_tables({"a": data}, {"a": np.ones(50)}, rank=4, keep_dense=False)
    np.testing.assert_allclose(done["a"].reconstruct(), codes * scale[:, None], atol=1e-4)


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        compress_tables(table({"a": X}).slice(0, 0), counts_table({"a": C}), rank=1)


def test_a_log_without_the_column_is_refused() -> None:
    with pytest.raises(ValueError, match="no column item"):
        count_ids(pa.table({"user": [1]}), ["item"])
