"""Checkpoint files: what is written is read, the newest whole one counts, old ones move on, one run at a time, one writer."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamsvd as ss
from streamsvd.flow import lock
from streamsvd.flow.checkpoint import contents
from streamsvd.flow.checkpoints import Checkpoint, Store, Writer, read_run
from streamsvd.flow.lock import locked

X = np.random.default_rng(0).standard_normal((200, 6)).astype(np.float32)


def made(sequence=1, rows=50, kind="truncated") -> Checkpoint:
    state = ss.sketch(columns=6, rank=2, kind=kind).update(X[:rows])
    offset = {"items": [{"path": "/data/ä b.parquet", "size": 1 << 60}], "rows": rows}
    intake = {"seen": rows, "dropped": {"null": 1}, "mean": [0.1, float("inf")]}
    return Checkpoint(
        state, offset, intake, {"rank": 2, "select": None}, ("a", "b"), sequence, events=({"rows": rows},)
    )


def same(a: Checkpoint, b: Checkpoint) -> None:
    (_, arrays, meta), (_, others, rest) = contents(a), contents(b)
    assert meta == rest
    assert {k: v.tobytes() for k, v in arrays.items()} == {k: v.tobytes() for k, v in others.items()}


@pytest.mark.parametrize("kind", ["gram", "truncated"])
def test_what_is_written_is_read_bit_for_bit(tmp_path, kind):
    checkpoint = made(kind=kind)
    Store(tmp_path / "run.svd").write(checkpoint)
    found, notes = Store(tmp_path / "run.svd").newest()
    same(found, checkpoint)
    same(read_run(tmp_path / "run.svd"), checkpoint)
    assert notes == []
    assert found.names == ("a", "b")


def test_load_gives_the_state_of_a_checkpoint(tmp_path):
    Store(tmp_path / "run.svd").write(made(rows=70))
    state = ss.load(tmp_path / "run.svd")
    assert state.rows == 70
    np.testing.assert_array_equal(state.factors().vt, made(rows=70).state.factors().vt)


@settings(max_examples=15)
@given(st.integers(1, 5), st.integers(1, 8))
def test_the_last_few_are_kept_newest_first(tmp_path_factory, keep, count):
    folder = tmp_path_factory.mktemp("keep")
    store = Store(folder / "run.svd", keep)
    for sequence in range(1, count + 1):
        store.write(made(sequence))
        assert read_run(folder / "run.svd").sequence == sequence
    numbers = [read_run(file).sequence for file in store.files()]
    assert numbers == list(range(count, max(0, count - keep), -1))
    assert len(list(folder.iterdir())) == len(numbers)
    fewer = Store(folder / "run.svd", 1)
    fewer.write(made(count + 1))
    assert [read_run(file).sequence for file in fewer.files()] == [count + 1]


def test_the_file_exists_at_every_moment_of_a_write(tmp_path, monkeypatch):
    store = Store(tmp_path / "run.svd")
    seen = []
    for home, name in ((os, "link"), (Path, "replace"), (Path, "unlink")):
        original = getattr(home, name)

        def watched(*args, original=original, **options):
            result = original(*args, **options)
            seen.append(store.path.exists() and len(store.files()))
            return result

        monkeypatch.setattr(home, name, watched)
    store.write(made(1))
    seen.clear()
    for sequence in range(2, 6):
        store.write(made(sequence))
    assert len(seen) > 10
    assert all(seen)


def test_without_hard_links_the_last_few_are_kept_too(tmp_path, monkeypatch):
    def refused(*args, **options):
        raise PermissionError

    monkeypatch.setattr(os, "link", refused)
    store = Store(tmp_path / "run.svd")
    for sequence in range(1, 5):
        store.write(made(sequence))
    assert [read_run(file).sequence for file in store.files()] == [4, 3, 2]


def damage(path: Path, how: str, position: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    at = min(int(position * len(data)), len(data) - 1)
    if how == "cut":
        data = data[:at]
    else:
        data[at] ^= 1 << (at % 8)
    path.unlink()  # the older one may be the same file
    path.write_bytes(data)


@given(st.sampled_from(["cut", "flip"]), st.floats(0, 1))
def test_a_damaged_checkpoint_is_passed_over_and_that_is_said(tmp_path_factory, how, position):
    folder = tmp_path_factory.mktemp("damaged")
    store = Store(folder / "run.svd")
    for sequence in (1, 2):
        store.write(made(sequence, rows=10 * sequence))
    damage(folder / "run.svd", how, position)
    found, notes = store.newest()
    assert found.sequence == 1
    assert len(notes) == 1
    assert "run.svd" in notes[0]
    assert "passed over for an older checkpoint (number 1)" in notes[0]


def test_a_passed_over_checkpoint_is_logged(tmp_path, caplog):
    store = Store(tmp_path / "run.svd")
    for sequence in (1, 2):
        store.write(made(sequence))
    damage(tmp_path / "run.svd", "cut")
    store.newest()
    assert "cut short" in caplog.text


def test_with_no_whole_checkpoint_left_nothing_begins_anew(tmp_path):
    store = Store(tmp_path / "run.svd")
    for sequence in (1, 2):
        store.write(made(sequence))
    for file in store.files():
        damage(file, "flip", 0.9)
    with pytest.raises(
        ValueError, match=r"no checkpoint of this run can be read.*run\.svd.*damaged.*run\.svd\.1.*begin anew, remove"
    ):
        store.newest()


def test_the_highest_number_counts_and_not_the_name(tmp_path):
    store = Store(tmp_path / "run.svd")
    for sequence in (1, 2, 3):
        store.write(made(sequence))
    (tmp_path / "run.svd").rename(tmp_path / "run.svd.9")
    assert store.newest()[0].sequence == 3


@pytest.mark.parametrize("what", ["gram", "factors"])
def test_a_file_of_another_kind_is_refused_by_name(tmp_path, what):
    state = ss.sketch(columns=6, rank=2, kind="gram").update(X)
    ss.save(state if what == "gram" else state.factors(), tmp_path / "run.svd")
    with pytest.raises(ValueError, match=rf"holds .*{what}.* no run that could go on; give another name"):
        Store(tmp_path / "run.svd").newest()


def test_a_newer_version_is_refused_by_name(tmp_path, monkeypatch):
    from streamsvd.flow import statefile

    monkeypatch.setattr(statefile, "VERSION", 2)
    Store(tmp_path / "run.svd").write(made())
    monkeypatch.undo()
    with pytest.raises(ValueError, match="newer streamsvd"):
        Store(tmp_path / "run.svd").newest()


def test_without_a_file_there_is_nothing_to_go_on_from(tmp_path):
    assert Store(tmp_path / "run.svd").newest() == (None, [])


@pytest.mark.parametrize("keep", [0, -1, 2.0, True, "3"])
def test_keep_is_a_positive_number(tmp_path, keep):
    with pytest.raises(ValueError, match="how many checkpoints to keep"):
        Store(tmp_path / "run.svd", keep)


def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        Store(tmp_path / "nowhere" / "run.svd")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        Store(tmp_path)


def test_drafts_of_a_killed_process_are_removed_and_those_of_others_are_not(tmp_path):
    for name in (".run.svd.12-ab.tmp", ".run.svd2.12-ab.tmp", ".else.svd.1-a.tmp"):
        (tmp_path / name).touch()
    Store(tmp_path / "run.svd").clean()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".else.svd.1-a.tmp", ".run.svd2.12-ab.tmp"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "run.svd").symlink_to(tmp_path / "far" / "real.svd")
    for sequence in (1, 2):
        Store(tmp_path / "run.svd").write(made(sequence))
    assert (tmp_path / "run.svd").is_symlink()
    assert sorted(p.name for p in (tmp_path / "far").iterdir()) == ["real.svd", "real.svd.1"]


def test_one_run_at_a_time(tmp_path):
    with locked(tmp_path / "run.svd"):
        with (
            pytest.raises(BlockingIOError, match=rf"another run \(process {os.getpid()}\) is writing .*run\.svd"),
            locked(tmp_path / "run.svd"),
        ):
            pass
        with locked(tmp_path / "other.svd"):
            pass
    with locked(tmp_path / "run.svd"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_nobody_holds_is_no_lock(tmp_path):
    (tmp_path / "run.svd.lock").write_text("1")
    with locked(tmp_path / "run.svd"):
        pass


def test_a_lock_that_was_removed_in_between_is_taken_anew(tmp_path, monkeypatch):
    """The holder before removes its name between our opening it and our locking it: a lock on that would be no lock."""
    path, flock, first = tmp_path / "run.svd", lock.fcntl.flock, True

    def late(handle, how):
        nonlocal first
        if first:
            first = False
            (tmp_path / "run.svd.lock").unlink()
        flock(handle, how)

    monkeypatch.setattr(lock.fcntl, "flock", late)
    with locked(path), pytest.raises(BlockingIOError), locked(path):
        pass


def test_the_writer_writes_in_one_other_thread_and_in_order():
    begin, written = threading.Event(), []

    def write(checkpoint):
        begin.wait(10)
        written.append((checkpoint.sequence, threading.current_thread().name))

    writer = Writer(write)
    writer.submit(made(1))
    assert writer.busy
    begin.set()
    writer.submit(made(2))
    writer.wait()
    writer.close()
    assert not writer.busy
    assert [sequence for sequence, _ in written] == [1, 2]
    assert len({thread for _, thread in written}) == 1
    assert written[0][1] != threading.current_thread().name


def test_an_error_of_the_writer_arrives_and_says_what_stays_good():
    def write(checkpoint):
        if checkpoint.sequence == 2:
            raise OSError(28, "No space left on device")

    writer = Writer(write)
    writer.submit(made(1, rows=40))
    writer.wait()
    writer.submit(made(2, rows=60))
    with pytest.raises(
        OSError, match=r"checkpoint of row 60 was not written, the checkpoint of row 40 stays good: No space"
    ) as caught:
        writer.wait()
    assert caught.value.errno == 28
    writer.check()  # said once
    writer.close()


def test_parts_hold_everything_but_nothing_of_the_next_rows(tmp_path):
    """The state is frozen: rows that come while it is written are no part of the file."""
    state = ss.sketch(columns=6, rank=2, kind="truncated").update(X[:5])
    checkpoint = replace(made(), state=state)
    arrays, meta = checkpoint.parts()
    state.update(X[5:9])
    again = Checkpoint.from_parts({k: np.array(v) for k, v in arrays.items()}, meta)
    assert again.state.rows == 5


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_large_matrix_is_packed_as_a_small_one(order, frozen):
    from streamsvd import storage

    S = np.asarray(np.random.default_rng(0).standard_normal((storage.COMPILED + 3,) * 2), order=order)
    for matrix in (S, S[:-1, :-1], S[: storage.COMPILED - 1, : storage.COMPILED - 1]):
        matrix.flags.writeable = not frozen and matrix.flags.writeable
        assert np.array_equal(storage._lower(matrix), matrix[np.tril_indices(len(matrix))])
