from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsvd.pipelines.ctr.counts import as_table, count_ids, lookup


@given(ids=st.lists(st.integers(-(2**40), 2**40) | st.integers(0, 9), max_size=60))
def test_counting_a_log_is_counting(ids: list[int]) -> None:
    found = count_ids(pl.DataFrame({"item": pl.Series(ids, dtype=pl.Int64)}), ["item"])["item"]
    assert dict(zip(found["id"].to_pylist(), found["count"].to_pylist(), strict=True)) == Counter(ids)


def test_nulls_are_not_counted_and_fields_may_have_other_names(tmp_path) -> None:
    pl.DataFrame({"u": ["x", None, "x", "y"], "i": [1, 1, 2, None]}).write_parquet(tmp_path / "log.parquet")
    found = count_ids(str(tmp_path / "log.parquet"), {"user": "u", "item": "i"})
    assert found["user"].to_pydict() == {"id": ["x", "y"], "count": [2.0, 1.0]}
    assert found["item"].to_pydict() == {"id": [1, 2], "count": [2.0, 1.0]}
    assert as_table(found)["id"].to_pylist() == ["x", "y", "1", "2"]


def test_a_look_up_one_half_life_ago_counts_half() -> None:
    now = datetime(2024, 1, 31)
    log = pl.DataFrame({"item": [1, 1, 2], "at": [now, now - timedelta(days=7), now - timedelta(days=14)]})
    found = count_ids(log, ["item"], timestamps="at", half_life="7d")["item"]
    np.testing.assert_allclose(found["count"].to_numpy(), [1.5, 0.25])
    with pytest.raises(ValueError, match="give both, or neither"):
        count_ids(log, ["item"], half_life="7d")


@given(
    ids=st.lists(st.integers(-1000, 1000), min_size=1, max_size=50, unique=True),
    asked=st.lists(st.integers(-1100, 1100), max_size=50),
)
@pytest.mark.parametrize("text", [False, True])
def test_ids_are_found_where_they_are(text: bool, ids: list[int], asked: list[int]) -> None:
    kind = (lambda x: pa.array([str(v) for v in x], pa.string())) if text else (lambda x: np.array(x, np.int64))
    held = lookup(kind(ids), np.arange(1.0, len(ids) + 1))
    at = held.find(kind(asked))
    got = np.where(at >= 0, held.counts[at], 0.0)
    assert got.tolist() == [ids.index(x) + 1.0 if x in ids else 0.0 for x in asked]


@pytest.mark.parametrize("shuffle", [False, True])
def test_counts_of_a_file_are_those_of_its_table(tmp_path, shuffle: bool) -> None:
    from ctr_tables import counts_table, write

    from streamsvd.pipelines.ctr.counts import read_counts

    whole = counts_table({"a": np.arange(1.0, 1201.0), "b": np.arange(50.0)})
    if shuffle:
        whole = whole.take(pa.array(np.random.default_rng(0).permutation(len(whole))))
    found, want = read_counts(write(tmp_path / "c.parquet", whole, group=100)), read_counts(whole)
    for name in ("a", "b"):
        assert list(found[name].keys) == list(want[name].keys)
        assert np.array_equal(found[name].counts, want[name].counts)
    with pytest.raises(ValueError, match="no counts for field 'z'"):
        read_counts({"z": tmp_path / "c.parquet"})
