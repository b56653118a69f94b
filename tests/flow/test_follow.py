"""A followed folder: whole files only, each once, in the order they appear, until stop."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from streamsvd.flow import follow as module
from streamsvd.flow.follow import Follow
from streamsvd.flow.readahead import ahead
from streamsvd.flow.sources import read, total_rows


def table(value, rows=4):
    return pa.table({"x": np.full(rows, float(value))})


def put(folder, name, value, rows=4, mtime=None):
    """Rename a whole file in."""
    hidden = folder / f".{name}.writing"
    write = {".parquet": pq.write_table, ".csv": pyarrow.csv.write_csv, ".arrow": pyarrow.feather.write_feather}
    write[Path(name).suffix](table(value, rows), hidden)
    if mtime is not None:
        os.utime(hidden, (mtime, mtime))
    hidden.rename(folder / name)


class Clock:
    """Time that passes when somebody sleeps, and what happens meanwhile."""

    def __init__(self):
        self.now, self.events = 0.0, []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        while self.events and self.events[0][0] <= self.now:
            self.events.pop(0)[1]()

    def at(self, when, what):
        self.events = sorted([*self.events, (when, what)], key=lambda event: event[0])


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def until(clock, folder, stop, start=None, rows=None, **options):
    """Return the values of the blocks that are read until a time, and the last offset."""
    source = Follow(folder, **options)
    clock.at(stop, source.stop)
    values, last = [], None
    for block in read(source, start=start, rows=rows):
        last = block.offset
        if block.data is not None:
            values.append(int(block.data.column("x")[0].as_py()))
    return values, json.loads(json.dumps(last))


def test_files_are_read_as_they_appear(tmp_path, clock):
    put(tmp_path, "b.parquet", 0)
    clock.at(3, lambda: put(tmp_path, "a.parquet", 1))
    clock.at(5, lambda: (tmp_path / "deep").mkdir())
    clock.at(6, lambda: put(tmp_path / "deep", "c.arrow", 2))
    assert until(clock, tmp_path, 10)[0] == [0, 1, 2]


def test_files_of_one_look_are_read_by_time_of_change_then_name(tmp_path, clock):
    for name, value, mtime in (("a", 3, 200), ("b", 1, 100), ("c", 2, 100), ("d", 4, 300)):
        put(tmp_path, f"{name}.parquet", value, mtime=mtime)
    assert until(clock, tmp_path, 3)[0] == [1, 2, 3, 4]


def test_hidden_unfinished_and_unknown_names_are_passed_over(tmp_path, clock):
    for name in (
        ".a.parquet",
        "_b.parquet",
        "c.parquet.tmp",
        "d.csv.part",
        "e.parquet.crdownload",
        "f.txt",
        "_SUCCESS",
    ):
        pq.write_table(table(1), tmp_path / name)
    (tmp_path / "_temporary").mkdir()
    put(tmp_path / "_temporary", "g.parquet", 1)
    assert until(clock, tmp_path, 10)[0] == []


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_file_is_not_read_before_its_end_is_written(tmp_path, clock, suffix):
    put(tmp_path, f"whole{suffix}", 7)
    data = (tmp_path / f"whole{suffix}").read_bytes()
    (tmp_path / f"whole{suffix}").unlink()
    path = tmp_path / f"slow{suffix}"
    for i in range(10):
        clock.at(10 * i, lambda i=i: path.write_bytes(data[: len(data) * (i + 1) // 10]))
    assert until(clock, tmp_path, 89, settle=1.0)[0] == []
    clock.events.clear()
    path.write_bytes(data)
    assert until(clock, tmp_path, 100, settle=1.0)[0] == [7]


def test_text_is_read_when_it_has_not_changed_for_a_while(tmp_path, clock):
    path, lengths = tmp_path / "x.csv", []

    def grow():
        with path.open("a") as file:
            file.write("1.0\n")

    path.write_text("x\n")
    for i in range(10):
        clock.at(1.5 * i, grow)
    source = Follow(tmp_path, settle=2.0)
    clock.at(40, source.stop)
    for block in read(source):
        if block.data is not None:
            lengths.append(block.data.num_rows)
            assert 13.5 + 2 <= clock.now <= 13.5 + 4
    assert lengths == [10]


def test_a_stream_in_an_ipc_file_settles_like_text(tmp_path, clock):
    with pa.ipc.new_stream(tmp_path / "x.arrow", table(1).schema) as stream:
        stream.write_table(table(3))
    assert until(clock, tmp_path, 1.5, settle=2.0)[0] == []
    assert until(clock, tmp_path, 10, settle=2.0)[0] == [3]


@pytest.mark.parametrize("poll", [0.1, 1.0, 60.0])
def test_heartbeats_come_about_once_per_poll_and_at_least_once_a_second(tmp_path, clock, poll):
    source, beats = Follow(tmp_path, poll=poll), []
    clock.at(10, source.stop)
    for block in read(source):
        assert block.data is None
        assert block.offset["rows"] == 0
        beats.append(clock.now)
    assert np.allclose(np.diff(beats), min(poll, 1.0))


def test_a_heartbeat_carries_the_offset_of_what_was_read(tmp_path, clock):
    put(tmp_path, "a.parquet", 0, rows=5)
    source = Follow(tmp_path)
    clock.at(3, source.stop)
    (first, *beats) = read(source)
    assert beats[0].data is None
    assert beats[0].row == 5
    assert beats[0].offset == {**first.offset, "whole": True} | {"group": 0, "within": 0, "row": 0}


def test_following_goes_on_where_it_was(tmp_path, clock):
    for i, name in enumerate("cab"):
        put(tmp_path, f"{name}.parquet", i, rows=6, mtime=100 + i)
    whole = list(zip(*[iter([0, 0, 0, 1, 1, 1, 2, 2, 2])], strict=True))
    source = Follow(tmp_path)
    clock.at(3, source.stop)
    blocks = [block for block in read(source, rows=2) if block.data is not None]
    put(tmp_path, "0.parquet", 3, rows=6, mtime=1)
    for i, block in enumerate(blocks):
        rest, _ = until(clock, tmp_path, clock.now + 3, json.loads(json.dumps(block.offset)), rows=2)
        left = [value for (value,) in whole[i + 1 :]]
        assert sorted(rest) == sorted([*left, 3, 3, 3])
        assert rest[: len(left) % 3] == left[: len(left) % 3]  # first the rest of the file at hand


def test_files_that_were_read_may_go_but_not_change(tmp_path, clock):
    put(tmp_path, "a.parquet", 0, mtime=1)
    put(tmp_path, "b.parquet", 1, mtime=2)
    values, offset = until(clock, tmp_path, 3)
    assert values == [0, 1]
    (tmp_path / "a.parquet").unlink()
    assert until(clock, tmp_path, clock.now + 3, offset)[0] == []
    put(tmp_path, "b.parquet", 1, rows=5000, mtime=2)
    with pytest.raises(ValueError, match=r"b\.parquet' changed after it was read: its size"):
        read(Follow(tmp_path), start=offset)


def test_a_file_read_in_part_must_still_be_there(tmp_path, clock):
    put(tmp_path, "a.parquet", 0)
    first = next(read(Follow(tmp_path), rows=2))
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.parquet"):
        read(Follow(tmp_path), start=first.offset)


def test_a_file_that_changes_while_the_folder_is_followed_is_named(tmp_path, clock):
    put(tmp_path, "a.parquet", 0)
    clock.at(3, lambda: put(tmp_path, "a.parquet", 0, rows=5000))
    with pytest.raises(
        ValueError, match=r"a\.parquet' changed after it was read: its size in bytes was \d+ and is \d+"
    ):
        until(clock, tmp_path, 10)


def test_text_that_grows_while_another_file_is_read_waits_again(tmp_path, clock):
    put(tmp_path, "a.csv", 0, mtime=1)
    put(tmp_path, "b.csv", 1, mtime=2)
    source, rows = Follow(tmp_path, settle=2.0), []
    clock.at(20, source.stop)
    for block in read(source):
        if block.data is not None:
            rows.append(block.data.num_rows)
            if rows == [4]:
                with (tmp_path / "b.csv").open("a") as file:
                    file.write("5\n")
    assert rows == [4, 5]


def test_the_offset_of_something_else_is_refused(tmp_path):
    *_, last = read(np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"of type numpy\.ndarray was read before, and a followed folder is here"):
        read(Follow(tmp_path), start=last.offset)


def test_stop_ends_the_stream_after_the_block_at_hand(tmp_path, clock):
    put(tmp_path, "a.parquet", 0, rows=100)
    source = Follow(tmp_path)
    stream = read(source, rows=10)
    next(stream)
    assert not source.stopped
    source.stop()
    assert source.stopped
    assert list(stream) == []
    assert list(read(source)) == []


def test_stop_works_from_a_thread_and_from_a_signal_handler(tmp_path):
    source = Follow(tmp_path, poll=60.0)
    threading.Timer(0.1, source.stop).start()
    assert all(block.data is None for block in read(source))
    source = Follow(tmp_path, poll=60.0)
    before = signal.signal(signal.SIGUSR1, lambda *_: source.stop())
    try:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        assert all(block.data is None for block in read(source))
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_followed_folder_can_be_read_ahead_and_left(tmp_path):
    put(tmp_path, "a.parquet", 5)
    stream = ahead(read(Follow(tmp_path, poll=0.05)))
    assert next(stream).data.num_rows == 4
    assert next(stream).data is None
    stream.close()


def test_a_reader_never_sees_half_of_what_a_slow_writer_writes(tmp_path):
    """In real time: a Parquet file grows in place while the folder is followed."""
    data = pa.table({"x": np.random.default_rng(0).standard_normal(20_000)})

    def write():
        for i in range(3):
            with pq.ParquetWriter(tmp_path / f"{i}.parquet", data.schema) as writer:
                for _ in range(5):
                    writer.write_table(data)
                    time.sleep(0.01)

    writing = threading.Thread(target=write)
    source, rows = Follow(tmp_path, poll=0.01), 0
    writing.start()
    for block in read(source):
        rows += 0 if block.data is None else block.data.num_rows
        if rows == 300_000:
            source.stop()
    writing.join()
    assert rows == 300_000


@pytest.mark.parametrize(
    "options", [{"poll": 0}, {"poll": -1}, {"settle": -1}, {"poll": float("nan")}, {"settle": float("inf")}]
)
def test_times_out_of_range_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match=rf"{next(iter(options))}=.*expected seconds"):
        Follow(tmp_path, **options)


def test_only_a_folder_can_be_followed_and_only_alone(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'.*gone', does not exist; make it first"):
        Follow(tmp_path / "gone")
    put(tmp_path, "a.parquet", 0)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        Follow(tmp_path / "a.parquet")
    with pytest.raises(TypeError, match="pass it alone"):
        read([tmp_path, Follow(tmp_path)])
    assert total_rows(Follow(tmp_path)) is None
    assert "poll=1.0" in repr(Follow(tmp_path))
