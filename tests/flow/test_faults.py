"""What may happen to a run: killed, out of disk, damaged files, two at a time, readers that fail. Nothing is lost or counted twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import killed
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import streamsvd as ss
from streamsvd.flow import statefile
from streamsvd.flow.checkpoint import contents
from streamsvd.flow.checkpoints import read_run
from streamsvd.flow.fold import run

N, D = 8_000, 12
RNG = np.random.default_rng(3)
X = (RNG.standard_normal((N, D)) * 0.8 ** np.arange(D) + 3).astype(np.float32)
TABLE = pa.table({f"c{j}": X[:, j] for j in range(D)})
OPTIONS = {"rank": 3, "kind": "truncated"}


def same_state(a, b) -> None:
    """Bit for bit, with the rows that wait."""
    (kind_a, arrays_a, meta_a), (kind_b, arrays_b, meta_b) = contents(a), contents(b)
    assert (kind_a, meta_a) == (kind_b, meta_b)
    assert arrays_a.keys() == arrays_b.keys()
    for name, array in arrays_a.items():
        assert array.tobytes() == arrays_b[name].tobytes(), name


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    for i in range(4):
        pq.write_table(TABLE[i * 2000 : (i + 1) * 2000], folder / f"{i}.parquet", row_group_size=130)
    return folder


@pytest.fixture(scope="module")
def bad_source(tmp_path_factory):
    """The same with a row in a hundred that cannot be folded."""
    folder, rows = tmp_path_factory.mktemp("bad"), X.copy()
    rows[::101, 4] = np.nan
    for i in range(4):
        table = pa.table({f"c{j}": rows[i * 2000 : (i + 1) * 2000, j] for j in range(D)})
        pq.write_table(table, folder / f"{i}.parquet", row_group_size=130)
    return folder


@pytest.fixture(scope="module")
def whole(source):
    return run(source, **OPTIONS).state


# The processes started here import what is tested here, installed or not.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(ss.__file__).parents[1]), *sys.path])}


def child(*args):
    command = [sys.executable, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_at_any_moment_the_same_bits_come_out(bad_source, tmp_path, kills):
    done = child(killed.__file__, bad_source, tmp_path, kills, 5)
    assert done.returncode == 0, done.stderr
    ways = json.loads(done.stdout)
    assert len(ways) == kills
    assert kills < 10 or set(ways) == {"time", *killed.STEPS}
    whole = run(bad_source, **killed.OPTIONS)
    for path in tmp_path.glob("*run.svd"):
        last = read_run(path)
        assert last.finished
        assert last.intake["seen"] == N
        assert last.intake["dropped"] == {"nonfinite": N - last.state.rows} == whole.intake.dropped
        same_state(last.state, whole.state)
        rejected = pq.read_table(path.with_name(path.name.replace("run.svd", "rejected"))).select(["source", "row"])
        assert rejected.num_rows == N - last.state.rows
        assert rejected.group_by(["source", "row"]).aggregate([]).num_rows == rejected.num_rows
    assert not list(tmp_path.glob(".*"))


RUN = "import sys; from streamsvd.flow.fold import run; run(sys.argv[1], checkpoint=sys.argv[2], rank=3, kind='truncated', progress=False, "


class Stop(Exception):
    pass


def stop_after(rows):
    """Return an ``on_event`` that ends the run there, as a crash would, once the checkpoint is on the disk."""

    def on_event(event):
        if event.rows >= rows:
            raise Stop

    return on_event


def partly(source, path, rows=3000, **options):
    with pytest.raises(Stop):
        run(source, checkpoint=path, every=500, on_event=stop_after(rows), **OPTIONS | options)


def test_a_run_that_broke_off_goes_on_where_it_was(source, whole, tmp_path):
    partly(source, tmp_path / "run.svd")
    outcome = run(source, checkpoint=tmp_path / "run.svd", **OPTIONS)
    assert 3000 <= outcome.resumed_rows < N
    same_state(outcome.state, whole)
    again = run(source, checkpoint=tmp_path / "run.svd", **OPTIONS)
    assert again.resumed_rows == N
    same_state(again.state, whole)


def test_a_full_disk_leaves_the_old_checkpoint_and_says_so(source, whole, tmp_path, monkeypatch):
    path, write, count = tmp_path / "run.svd", statefile.write_atomically, 0

    def no_space(target, chunks, **options):
        nonlocal count
        count += 1

        def cut():
            for number, chunk in enumerate(chunks):
                if count >= 3 and number:
                    raise OSError(28, "No space left on device")
                yield chunk

        write(target, cut(), **options)

    monkeypatch.setattr(statefile, "write_atomically", no_space)
    slow = lambda event: time.sleep(0.05)  # noqa: E731  so that each checkpoint is on the disk before the next
    with pytest.raises(
        OSError,
        match=r"checkpoint of row \d[\d,]* was not written, the checkpoint of row [\d,]+ stays good.*No space left",
    ) as caught:
        run(source, checkpoint=path, every=500, on_event=slow, **OPTIONS)
    monkeypatch.undo()
    kept = read_run(path)
    assert f"the checkpoint of row {kept.state.rows:,} stays good" in str(caught.value)
    assert kept.sequence == 2
    assert not list(tmp_path.glob(".*"))
    same_state(run(source, checkpoint=path, **OPTIONS).state, whole)


def test_an_error_of_the_writer_arrives_with_the_next_batch_and_not_with_the_next_checkpoint(tmp_path, monkeypatch):
    def full(target, chunks, **options):
        raise OSError(28, "No space left on device")

    def rows():
        for start in range(0, N, 100):
            given.append(start)
            time.sleep(0.05)
            yield X[start : start + 100]

    given = []
    monkeypatch.setattr(statefile, "write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        run(rows(), checkpoint=tmp_path / "run.svd", every=1000, **OPTIONS)
    assert 900 <= given[-1] < 1900


def test_a_limit_on_the_size_of_files_is_told_as_an_error(source, tmp_path):
    """A real failure of the system's write, in a process of its own."""
    done = child(
        "-c",
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); {RUN} every=500)",
        source,
        tmp_path / "run.svd",
    )
    assert done.returncode == 1
    assert "was not written, there is none yet: cannot write" in done.stderr
    assert "File too large" in done.stderr
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".lock"] == []


@pytest.mark.parametrize("how", ["cut", "flip"])
def test_a_damaged_checkpoint_costs_the_rows_since_the_one_before(source, whole, tmp_path, how, caplog):
    path = tmp_path / "run.svd"
    partly(source, path)
    newest, older = read_run(path), read_run(tmp_path / "run.svd.1")
    assert older.sequence == newest.sequence - 1
    data = bytearray(path.read_bytes())
    data[-9] ^= 4
    path.unlink()
    path.write_bytes(data[:-5] if how == "cut" else data)
    outcome = run(source, checkpoint=path, **OPTIONS)
    assert outcome.resumed_rows == older.state.rows
    assert "passed over" in outcome.notes[0]
    assert outcome.info["notes"] == list(outcome.notes)
    assert "passed over" in caplog.text
    same_state(outcome.state, whole)


def test_no_whole_checkpoint_is_an_error_and_no_fresh_start(source, tmp_path):
    partly(source, tmp_path / "run.svd")
    for file in tmp_path.glob("run.svd*"):
        file.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="no checkpoint of this run can be read"):
        run(source, checkpoint=tmp_path / "run.svd", **OPTIONS)


def test_two_runs_on_one_checkpoint_the_second_refuses(source, tmp_path):
    path = tmp_path / "run.svd"
    first = subprocess.Popen(
        [sys.executable, "-c", f"import time; {RUN} every=100, on_event=lambda e: time.sleep(60))", source, path],
        env=ENVIRONMENT,
    )
    try:
        until(lambda: path.exists() or first.poll() is not None)
        with pytest.raises(BlockingIOError, match=rf"another run \(process {first.pid}\) is writing .*run\.svd"):
            run(source, checkpoint=path, **OPTIONS)
    finally:
        first.kill()
        first.wait()
    assert run(source, checkpoint=path, **OPTIONS).state.rows == N  # its lock died with it


def until(condition, seconds=60):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "waited too long"
        time.sleep(0.01)


def test_a_corrupt_page_names_file_and_row_group_and_what_came_before_is_kept(source, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    bad = folder / "2.parquet"
    group = pq.read_metadata(bad).row_group(4).column(0)
    sound = bytearray(bad.read_bytes())
    start = group.dictionary_page_offset or group.data_page_offset
    broken = bytearray(sound)
    broken[start : start + 40] = b"\xff" * 40
    bad.write_bytes(broken)
    with pytest.raises((ValueError, OSError), match=r"2\.parquet.*row group 4"):
        run(folder, checkpoint=tmp_path / "run.svd", **OPTIONS)
    kept = read_run(tmp_path / "run.svd")
    assert kept.state.rows == 4000 + 4 * 130
    assert not kept.finished
    np.testing.assert_array_equal(kept.state.factors().vt, ss.fit(X[: kept.state.rows], **OPTIONS).vt)


def test_a_batch_that_is_refused_leaves_all_before_it_in_the_checkpoint(tmp_path):
    bad = X[:1000].copy()
    bad[700, 2] = np.nan
    np.save(tmp_path / "a.npy", X[:1000])
    np.save(tmp_path / "b.npy", bad)
    sources = [tmp_path / "a.npy", tmp_path / "b.npy"]
    with pytest.raises(ValueError, match=r"b\.npy.*row 700"):
        run(sources, checkpoint=tmp_path / "run.svd", **OPTIONS)
    assert read_run(tmp_path / "run.svd").state.rows == 1000


@pytest.mark.parametrize("options", [{}, {"checkpoint": "run.svd"}])
def test_a_source_without_rows_is_refused_and_leaves_no_checkpoint(tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="gave no rows, and factors need at least one"):
        run(TABLE[:0], **OPTIONS, **options)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_thread_that_reads_ahead_arrives_and_nothing_hangs(source, tmp_path, monkeypatch):
    from streamsvd.flow import pieces

    convert, count = pieces.convert, 0

    def failing(*args, **options):
        nonlocal count
        count += 1
        if count > 20:
            assert threading.current_thread() is not threading.main_thread()
            msg = "the disk went away"
            raise OSError(5, msg)
        return convert(*args, **options)

    monkeypatch.setattr(pieces, "convert", failing)
    before = threading.active_count()
    with pytest.raises(OSError, match="the disk went away"):
        run(source, checkpoint=tmp_path / "run.svd", **OPTIONS)
    assert threading.active_count() == before
    assert read_run(tmp_path / "run.svd").state.rows == 2000 + 4 * 130  # 16 row groups a file


def test_an_error_of_the_one_who_iterates_arrives_with_the_rows_before_it_kept(tmp_path):
    def rows():
        yield X[:300]
        yield X[300:500]
        if broken:
            msg = "the sensor fell off"
            raise RuntimeError(msg)
        yield X[500:]

    broken = True
    with pytest.raises(RuntimeError, match="the sensor fell off"):
        run(rows(), checkpoint=tmp_path / "run.svd", **OPTIONS)
    assert read_run(tmp_path / "run.svd").state.rows == 500
    broken = False
    outcome = run(rows(), checkpoint=tmp_path / "run.svd", **OPTIONS)
    assert outcome.resumed_rows == 500
    same_state(outcome.state, run(rows(), **OPTIONS).state)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_batch_with_a_checkpoint(source, whole, tmp_path, number):
    path = tmp_path / "run.svd"
    process = subprocess.Popen(
        [sys.executable, "-c", f"import time; {RUN} every=100, on_event=lambda e: time.sleep(0.2))", source, path],
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    until(lambda: path.exists() or process.poll() is not None)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    # What would have happened without us: Python ends on SIGINT by KeyboardInterrupt, and SIGTERM ends the process.
    assert process.returncode == -number
    assert number == signal.SIGTERM or "KeyboardInterrupt" in said
    kept = read_run(path)
    assert 0 < kept.state.rows < N
    assert not kept.finished
    assert not list(tmp_path.glob(".*"))
    same_state(run(source, checkpoint=path, **OPTIONS).state, whole)


def test_a_second_signal_acts_at_once(source, tmp_path):
    path = tmp_path / "run.svd"
    process = subprocess.Popen(
        [sys.executable, "-c", f"import time; {RUN} every=100, on_event=lambda e: time.sleep(60))", source, path],
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT,
    )
    until(lambda: path.exists() or process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == -signal.SIGTERM


def test_signals_elsewhere_than_in_the_main_thread_and_ignored_ones_are_left_alone(source, tmp_path):
    seen = []

    def on_event(event):
        seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        run(source, checkpoint=tmp_path / "a.svd", every=1000, on_event=on_event, **OPTIONS)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert set(seen) == {signal.SIG_IGN}
    seen.clear()
    call = lambda: run(source, checkpoint=tmp_path / "b.svd", every=1000, on_event=on_event, **OPTIONS)  # noqa: E731
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert set(seen) == {before}
    assert read_run(tmp_path / "b.svd").finished


@pytest.mark.parametrize("count", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_batches_of_one_row_are_counted_once(tmp_path, count):
    row = np.ones((1, 2), np.float32)
    source = (row for _ in range(count))
    outcome = run(source, rank=1, center=False, checkpoint=tmp_path / "run.svd", every=count // 3)
    assert outcome.state.rows == outcome.intake.seen == count
    np.testing.assert_allclose(outcome.state.factors().s[0] ** 2, 2 * count, rtol=1e-5)
    assert read_run(tmp_path / "run.svd").intake["seen"] == count
    assert len(outcome.events) >= 3
