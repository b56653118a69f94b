"""Rows that are left out are all in the quarantine, once, as they were read, with their place and the reason."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from streamsvd.flow import quarantine as module
from streamsvd.flow.batches import pieces
from streamsvd.flow.policies import Intake
from streamsvd.flow.quarantine import Quarantine

NAN = float("nan")
DROP = {"nulls": "drop", "nonfinite": "drop"}


def holes(rows: int, seed: int = 0) -> tuple[pa.Table, list[str | None]]:
    """A table, and for each of its rows why it is left out."""
    rng = np.random.default_rng(seed)
    null, bad = rng.random((rows, 2)) < 0.1, rng.random((rows, 2)) < 0.1
    values = np.where(bad, NAN, rng.standard_normal((rows, 2)))
    table = pa.table({name: pa.array(values[:, j], mask=null[:, j]) for j, name in enumerate(["a", "b"])})
    why = ["null" if n else "nonfinite" if b else None for n, b in zip(null.any(1), (bad & ~null).any(1), strict=True)]
    return table.append_column("id", pa.array([f"row {i}" for i in range(rows)])), why


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two files, and what is to be rejected of them: (file, row, reason)."""
    folder, rejected = tmp_path_factory.mktemp("files"), []
    for number in range(2):
        table, why = holes(300, number)
        path = folder / f"{number}.parquet"
        pq.write_table(table, path, row_group_size=110)
        rejected += [(str(path), i, reason) for i, reason in enumerate(why) if reason]
    return folder, rejected


def written(path) -> list[tuple[str, int, str]]:
    parts = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    return [(r["source"], r["row"], r["reason"]) for part in parts for r in pq.read_table(part).to_pylist()]


def read_all(source, **options) -> int:
    *_, last = pieces(source, carry=["id"], rows=40, **DROP, **options)
    return last.intake.rows


@pytest.mark.parametrize("name", ["bad", "bad.parquet"])
def test_all_rejected_rows_are_written_with_their_place_and_reason(files, tmp_path, name):
    folder, rejected = files
    kept = read_all(folder, quarantine=tmp_path / name)
    assert written(tmp_path / name) == rejected
    assert kept == 600 - len(rejected)


def test_rejected_rows_keep_all_columns_that_were_read(files, tmp_path):
    folder, rejected = files
    read_all(folder, quarantine=tmp_path / "bad.parquet")
    table = pq.read_table(tmp_path / "bad.parquet")
    assert table.schema.names == ["a", "b", "id", "source", "row", "reason"]
    originals = {str(path): pq.read_table(path) for path in folder.iterdir()}
    for found, (source, row, _) in zip(table.select(["a", "b", "id"]).slice(0).to_pylist(), rejected, strict=True):
        assert repr(found) == repr(originals[source].slice(row, 1).to_pylist()[0])  # NaN is not equal to itself


@pytest.mark.parametrize("make", [np.asarray, np.asfortranarray, sparse.csr_array, "torch", "bfloat16"])
def test_rejected_rows_of_arrays_are_lists(tmp_path, make):
    X = np.array([[1.0, 2.0], [NAN, 3.0], [4.0, 5.0], [6.0, NAN]], dtype=np.float32)
    if isinstance(make, str):
        torch = pytest.importorskip("torch")
        source = torch.from_numpy(X).to(torch.bfloat16 if make == "bfloat16" else torch.float32)
    else:
        source = make(X)
    assert sum(piece.x.shape[0] for piece in pieces(source, nonfinite="drop", quarantine=tmp_path / "bad")) == 2
    (part,) = (tmp_path / "bad").iterdir()
    table = pq.read_table(part)
    np.testing.assert_array_equal(np.stack(table["x"].to_numpy()), X[[1, 3]])
    assert table["row"].to_pylist() == [1, 3]
    assert all(table["source"].to_pylist())


def test_names_that_are_taken_get_an_underscore(tmp_path):
    table = pa.table({"row": [1.0, NAN], "source": [2.0, 3.0], "_row": [1.0, 1.0]})
    list(pieces(table, nonfinite="drop", quarantine=tmp_path / "bad.parquet"))
    found = pq.read_table(tmp_path / "bad.parquet")
    assert found.schema.names == ["row", "source", "_row", "_source", "__row", "reason"]
    assert found["__row"].to_pylist() == [1]


def test_rows_that_are_read_ahead_are_not_written_ahead(files, tmp_path):
    folder, rejected = files
    sink = Quarantine(tmp_path / "bad")
    for piece in pieces(folder, carry=["id"], rows=40, **DROP, quarantine=sink):
        assert sink.rows == sum(piece.intake.dropped.values())
    assert sink.rows == len(rejected)


# Exactly once


def run(source, folder, saved, checkpoints: set[int], killed: int | None):
    """Read on from what was saved, with checkpoints after some pieces, until killed at a piece: the sink is left as it is then.

    Returns what was saved last, the number of the piece in it included, and the sink.
    """
    offset, seen, number = saved
    sink = Quarantine(folder)
    sink.resume(seen)
    intake = Intake(seen=seen)
    for piece in pieces(source, carry=["id"], rows=40, **DROP, quarantine=sink, start=offset, intake=intake):
        number += 1
        if number in checkpoints:
            sink.close_part(piece.intake.seen)
        if number == killed:  # also between the end of a part and its checkpoint
            return saved, sink
        if number in checkpoints:
            saved = piece.offset, piece.intake.seen, number
    sink.close()
    return None, sink


@given(st.sets(st.integers(1, 16)), st.lists(st.integers(1, 16), max_size=4))
def test_a_run_that_is_killed_and_goes_on_writes_every_rejected_row_once(files, tmp_path_factory, checkpoints, kills):
    source, rejected = files
    folder, saved, alive = tmp_path_factory.mktemp("killed") / "bad", (None, 0, 0), []
    for killed in [*kills, None]:
        if killed is not None and killed <= saved[2]:
            continue
        after, sink = run(source, folder, saved, checkpoints, killed)
        alive.append(sink)  # as long as it lives its draft does
        saved = after or saved
    assert sorted(written(folder)) == sorted(rejected)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_fresh_run_removes_parts_and_nothing_else(files, tmp_path):
    source, rejected = files
    for name in ("part-000000000000-007.parquet", "part-000000009999-000.parquet", "mine.parquet", ".part-x"):
        (tmp_path / name).write_text("?")
    sink = Quarantine(tmp_path)
    sink.resume(9999)
    assert {path.name for path in tmp_path.iterdir()} == {"part-000000000000-007.parquet", "mine.parquet", ".part-x"}
    for _ in range(2):
        read_all(source, quarantine=tmp_path)
        (tmp_path / "mine.parquet").unlink(missing_ok=True)
        assert written(tmp_path) == rejected
    assert (tmp_path / ".part-x").exists()


def test_parts_begin_where_the_one_before_ended(tmp_path):
    sink = Quarantine(tmp_path / "bad")
    for start, stop in pairwise([0, 100, 250, 300]):
        if start != 100:
            sink.write(np.ones((1, 2)), "a", np.array([start]), ["nonfinite"])
        sink.close_part(stop)
    sink.close()
    names = sorted(path.name for path in (tmp_path / "bad").iterdir())
    assert names == ["part-000000000000-000.parquet", "part-000000000250-000.parquet"]


def test_rows_with_other_columns_go_to_a_part_of_their_own(tmp_path):
    sources = [pa.table({"a": [1.0, NAN]}), pa.table({"a": pa.array([1, None, 3])}), pa.table({"a": [NAN]})]
    options = {"nulls": "drop", "nonfinite": "drop"}
    source = [sources[0], sources[1].cast(pa.schema([("a", pa.float64())])), sources[2]]
    list(pieces(source, **options, quarantine=tmp_path / "one"))
    assert len(list((tmp_path / "one").iterdir())) == 1
    widened = [sources[1], sources[0]]
    list(pieces(widened, **options, quarantine=tmp_path / "two"))
    assert [pq.read_schema(part).field("a").type for part in sorted((tmp_path / "two").iterdir())] == [
        pa.int64(),
        pa.float64(),
    ]
    list(
        pieces(
            [sources[0].cast(pa.schema([("a", pa.float32())])), sources[2]],
            **options,
            quarantine=tmp_path / "x.parquet",
        )
    )
    assert pq.read_table(tmp_path / "x.parquet")["a"].type == pa.float32()


def test_one_file_with_rows_of_other_columns_is_refused(tmp_path):
    sink = Quarantine(tmp_path / "bad.parquet")
    sink.write(pa.record_batch({"a": [1.0]}), "", np.array([0]), ["null"])
    with pytest.raises(ValueError, match=r"\['b', .* here and had \['a', .*write quarantine='bad', a folder"):
        sink.write(pa.record_batch({"b": [1.0]}), "", np.array([0]), ["null"])
    sink.close()


# Names and faults


def test_one_file_cannot_be_resumed(tmp_path):
    for method in ("resume", "close_part"):
        with pytest.raises(ValueError, match=r"is one file.*write quarantine='.*bad', a folder"):
            getattr(Quarantine(tmp_path / "bad.parquet"), method)(0)
    assert not list(tmp_path.iterdir())


def test_where_nothing_was_rejected_no_file_is_left_of_an_earlier_run(files, tmp_path):
    read_all(files[0], quarantine=tmp_path / "bad.parquet")
    assert (tmp_path / "bad.parquet").exists()
    list(pieces(np.ones((3, 2)), nonfinite="drop", quarantine=tmp_path / "bad.parquet"))
    assert not list(tmp_path.iterdir())


def test_what_is_not_ours_is_never_replaced(tmp_path):
    pq.write_table(pa.table({"precious": [1]}), tmp_path / "a.parquet")
    (tmp_path / "b").write_text("precious")
    for name in ("a.parquet", "b"):
        with pytest.raises(FileExistsError, match="holds no rejected rows of streamsvd; choose another name"):
            pieces(np.ones((3, 2)), nonfinite="drop", quarantine=tmp_path / name)
    with pytest.raises(
        ValueError, match=r"expected a folder \(a name without a suffix\) or a file that ends in \.parquet"
    ):
        Quarantine(tmp_path / "bad.csv")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        Quarantine(tmp_path / "gone" / "bad")


def test_rows_rejected_before_an_error_are_written(tmp_path):
    def source():
        yield np.array([[NAN], [1.0]])
        msg = "the reader fails"
        raise OSError(msg)

    with pytest.raises(OSError, match="the reader fails"):
        list(pieces(source(), nonfinite="drop", quarantine=tmp_path / "bad.parquet"))
    assert len(written(tmp_path / "bad.parquet")) == 1


def test_a_full_disk_is_an_error_and_leaves_no_draft(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    sink = Quarantine(tmp_path / "bad")
    sink.write(np.ones((1, 2)), "a", np.array([0]), ["nonfinite"])
    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        sink.close_part(1)
    monkeypatch.undo()
    assert not list((tmp_path / "bad").iterdir())
    sink.write(np.ones((1, 2)), "a", np.array([5]), ["nonfinite"])
    sink.close()
    assert [row for _, row, _ in written(tmp_path / "bad")] == [5]
