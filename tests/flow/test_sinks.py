"""Tables written as they stream: complete or not there at all, in row groups of bounded size."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import streamsvd as ss
from streamsvd.flow.scores import write_scores
from streamsvd.flow.sinks import GROUP_ROWS, check_target, draft_of, table_sink

SCHEMA = pa.schema([("x", pa.float64())])


def batch(values) -> pa.RecordBatch:
    return pa.record_batch([pa.array(np.asarray(values, dtype=np.float64))], schema=SCHEMA)


def read(path):
    return pq.read_table(path) if path.suffix == ".parquet" else pa.ipc.open_file(str(path)).read_all()


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow", "t.feather"])
def test_what_is_written_is_read_in_order(tmp_path, name):
    with table_sink(tmp_path / name, SCHEMA) as write:
        for start in range(0, 1000, 7):
            write(batch(range(start, min(start + 7, 1000))))
    assert read(tmp_path / name)["x"].to_pylist() == list(range(1000))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_small_batches_become_few_row_groups(tmp_path):
    with table_sink(tmp_path / "t.parquet", SCHEMA) as write:
        for _ in range(150):
            write(batch(np.zeros(1000)))
    meta = pq.read_metadata(tmp_path / "t.parquet")
    assert (meta.num_rows, meta.num_row_groups) == (150_000, 3)
    assert meta.row_group(0).num_rows < GROUP_ROWS + 1000


def test_no_batch_makes_a_valid_empty_table(tmp_path):
    with table_sink(tmp_path / "t.parquet", SCHEMA):
        pass
    assert read(tmp_path / "t.parquet").schema == SCHEMA


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow"])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, name):
    (tmp_path / name).write_bytes(b"old")

    def fail():
        with table_sink(tmp_path / name, SCHEMA) as write:
            write(batch([1.0]))
            assert (tmp_path / name).read_bytes() == b"old"
            write(batch([np.nan] * 3).rename_columns(["y"]))

    with pytest.raises(ValueError, match=r"[Ss]chema"):
        fail()
    assert (tmp_path / name).read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    with draft_of(tmp_path / "link.txt") as draft:
        draft.write_text("new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("t.txt", ValueError, r"t\.txt.*expected one of \.parquet, \.arrow"),
        ("no/t.parquet", FileNotFoundError, r"no folder.*create it"),
        ("folder.parquet", IsADirectoryError, r"is a folder"),
    ],
)
def test_a_target_is_refused_before_work(tmp_path, name, error, words):
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(error, match=words):
        check_target(tmp_path / name, suffixes=(".parquet", ".arrow"))


def test_scores_of_any_source_are_those_of_one_array(tmp_path):
    X = np.random.default_rng(0).standard_normal((500, 8)) * 0.5 ** np.arange(8)
    factors = ss.fit(X, rank=3)
    count = write_scores(
        factors, (X[i : i + 90] for i in range(0, 500, 90)), tmp_path / "z.parquet", residual=True
    ).rows
    table = read(tmp_path / "z.parquet")
    assert count == table.num_rows == 500
    scores = table["scores"].combine_chunks().flatten().to_numpy().reshape(500, 3)
    np.testing.assert_allclose(scores, factors.transform(X), atol=1e-12)
    np.testing.assert_allclose(table["residual"].to_numpy(), factors.residual(X), rtol=1e-9)
    assert table.schema.metadata[b"streamsvd.columns"] == b"8"
    # Parseval: what the scores and the residual hold together is the whole centred row.
    whole = np.sum((X - factors.mean) ** 2, axis=1)
    np.testing.assert_allclose(np.sum(scores**2, axis=1) + table["residual"].to_numpy(), whole, rtol=1e-9)
