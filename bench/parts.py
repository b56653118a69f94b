"""What is measured of the data flow, each part in turn against what it may cost (see ``flow.py``)."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import compare
import machine
import memory

if TYPE_CHECKING:
    import argparse

    import numpy as np
    import pyarrow as pa

GROUP = 50_000  # rows of a row group
BATCHES = 8


@dataclass(frozen=True)
class Sizes:
    """How much is measured: rows of the file that is folded and of those whose memory is watched; states whose checkpoints cost most."""

    rows: int = 500_000  # x 512 float32 = 1.02 GB
    columns: int = 512
    rank: int = 32
    batch_bytes: int = 1 << 24
    marks: tuple[int, int] = (10**5, 10**7)
    states: tuple[tuple[str, int, int], ...] = (("gram", 3800, 32), ("truncated", 58_000, 32))  # up to 64 MB each
    seconds: float = 20.0
    every: float = 5.0


QUICK = Sizes(20_000, 64, 8, 1 << 24, (10**5, 3 * 10**5), (("gram", 300, 8), ("truncated", 2000, 8)), 1.0, 0.2)


@dataclass
class Entry:
    """One line of the table: what was measured, run by run, and the ratio that has a limit."""

    part: str
    what: str
    unit: str = "s"
    measured: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def folds(sizes: Sizes, folder: Path, options: argparse.Namespace) -> Iterator[Entry]:
    """Time ``fit`` of a file, reading it in one thread, and folding the batches that it is read as from memory."""
    import pyarrow.parquet as pq

    import streamsvd as ss

    for lists in (False, True):
        file = folder / "rows.parquet"
        write(file, sizes.rows, sizes.columns, lists=lists)
        held = list(ss.batches(file))

        def read(file: Path = file) -> None:
            opened = pq.ParquetFile(file)  # by row groups, which is faster than iter_batches
            _through(opened.read_row_group(group, use_threads=False) for group in range(opened.num_row_groups))

        def fold(held: list[np.ndarray] = held) -> None:
            state = ss.sketch(columns=sizes.columns, rank=sizes.rank)
            for X in held:
                state = state.update(X)
            state.factors()

        ways = {"fit": lambda file=file: ss.fit(file, rank=sizes.rank, progress=False), "read": read, "fold": fold}
        columns = f"one list of {sizes.columns} float32" if lists else f"{sizes.columns} float32 columns"
        what = f"fit, {file.stat().st_size / 1e9:.2f} GB Parquet, {columns}"
        yield Entry("fold", what, measured=_in_turn(ways, what, options.runs))
        file.unlink()


def conversions(sizes: Sizes, _: Path, options: argparse.Namespace) -> Iterator[Entry]:
    """Time the way of batches, of the size that files are read in, to the engine's matrices, and copies of as many bytes."""
    import numpy as np
    import pyarrow as pa

    import streamsvd as ss
    from streamsvd.flow.columns import plan
    from streamsvd.flow.convert import convert

    for columns, lists in ((32, False), (sizes.columns, False), (sizes.columns, True)):
        X = _numbers(np.random.default_rng(0), sizes.batch_bytes // (4 * columns), columns)
        batch = _batch(X, lists=lists)
        table, layout = pa.Table.from_batches([batch] * BATCHES), plan(batch, None, {})
        found = convert(batch, layout, "error").x
        assert np.array_equal(found, X)
        kind = f"one list of {columns} float32" if lists else f"{columns} float32 columns"
        what = f"{BATCHES} batches of {sizes.batch_bytes >> 20} MiB, {kind}, to matrices"
        ways = {
            "convert": lambda batch=batch, layout=layout: _through(
                convert(batch, layout, "error").x for _ in range(BATCHES)
            ),
            "memcpy": lambda X=X: _through(X.copy() for _ in range(BATCHES)),
            "batches": lambda table=table: _through(ss.batches(table)),
        }
        measured = _in_turn(ways, what, 4 * options.runs)
        notes = [f"all of ss.batches(table) {amount(median(measured.pop('batches')), 's')}"]
        if lists:
            shared = np.shares_memory(found, batch.column(0).flatten().to_numpy())
            notes.append("not copied" if shared else "COPIED")
        yield Entry("convert", what, measured=measured, notes=notes)


def _through(batches: Iterable[Any]) -> None:
    for _ in batches:
        pass


def peaks(sizes: Sizes, folder: Path, options: argparse.Namespace) -> Iterator[Entry]:
    """Watch the peak memory of a process that fits a short file, and of one that fits a long file."""
    short, long = (folder / f"{rows}.parquet" for rows in sizes.marks)
    for file, rows in zip((short, long), sizes.marks, strict=True):
        write(file, rows, 32, lists=False)
    what = f"peak memory of fit, {sizes.marks[0]:,} and {sizes.marks[1]:,} rows of 32 columns"
    compare.say(what)
    runs: dict[str, list[float]] = {"long": [], "short": []}
    for _ in range(min(options.runs, 3)):
        for name, file in (("short", short), ("long", long)):
            runs[name].append(memory.in_child(file, threads=options.threads, script=__file__)["bytes"])
    yield Entry("memory", what, "B", runs)
    short.unlink()
    long.unlink()


def checkpoints(sizes: Sizes, folder: Path, options: argparse.Namespace) -> Iterator[Entry]:
    """Time a long fold of batches in memory with checkpoints and without, until the last batch is folded.

    The last checkpoint, for which a run waits, comes once however long the stream is, and is noted apart.
    """
    import numpy as np

    from streamsvd.flow.fold import run as fold

    for kind, columns, rank in sizes.states:
        X = _numbers(np.random.default_rng(0), max(1, sizes.batch_bytes // (4 * columns)), columns)
        settings = {"rank": rank, "kind": kind, "progress": False}
        file, found = folder / "run.svd", []

        def one(count: int, X: np.ndarray = X, settings: dict[str, Any] = settings, **more: Any) -> tuple[Any, float]:
            ended = []

            def batches() -> Iterator[np.ndarray]:
                for _ in range(count):
                    yield X
                ended.append(time.perf_counter())

            return fold(batches(), **settings, **more), ended[0]

        def kept(
            count: int, file: Path = file, found: list[tuple[int, int, float]] = found, one: Callable[..., Any] = one
        ) -> float:
            done, ended = one(count, checkpoint=file, every=f"{sizes.every} s")
            waited = time.perf_counter() - ended
            found.append((len(done.events), max(path.stat().st_size for path in folder.glob("run.svd*")), waited))
            for path in folder.glob("run.svd*"):
                path.unlink()
            return ended

        one(4)
        began = time.perf_counter()
        one(8)
        count = max(8, round(8 * sizes.seconds / (time.perf_counter() - began)))
        ways = {"with": lambda count=count: kept(count), "without": lambda count=count: one(count)[1]}
        what = f"fold, checkpoint every {sizes.every:g} s, {kind} state of {columns:,} columns"
        entry = Entry("checkpoint", what, measured=_in_turn(ways, what, options.runs))
        number, size, waited = (median(column) for column in zip(*found, strict=True))
        entry.notes.append(f"{number:g} checkpoints of {size / 1e6:.1f} MB, {amount(waited, 's')} after the last batch")
        yield entry


def write(file: Path, rows: int, columns: int, *, lists: bool) -> None:
    """Write seeded float32 rows in row groups of 50,000, without the dictionaries that random numbers only outgrow."""
    import cases
    import numpy as np
    import pyarrow.parquet as pq

    compare.say(f"writing {rows:,} rows of {columns} columns")
    rng = np.random.default_rng([cases.SEED, columns])
    first = _batch(_numbers(rng, min(GROUP, rows), columns), lists=lists)
    with pq.ParquetWriter(file, first.schema, use_dictionary=False) as writer:
        writer.write_batch(first)
        for start in range(GROUP, rows, GROUP):
            writer.write_batch(_batch(_numbers(rng, min(GROUP, rows - start), columns), lists=lists))


def _numbers(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    import numpy as np

    return rng.standard_normal((rows, columns), dtype=np.float32) / np.arange(1, columns + 1, dtype=np.float32)


def _batch(X: np.ndarray, *, lists: bool) -> pa.RecordBatch:
    import pyarrow as pa

    if lists:
        return pa.record_batch({"x": pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), X.shape[1])})
    return pa.record_batch({f"c{i}": pa.array(column) for i, column in enumerate(X.T)})


def _in_turn(ways: dict[str, Callable[[], object]], what: str, runs: int) -> dict[str, list[float]]:
    """Call each once to warm up, and then all of them in turn, so many times; a function may return when it had done what is timed."""
    compare.say(f"{what}, warming up")
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    gc.collect()
    for number in range(runs):
        if runs <= 10:
            compare.say(f"{what}, run {number + 1} of {runs}")
        for name, way in ways.items():
            start = time.perf_counter()
            ended = way()
            seconds[name].append((ended if isinstance(ended, float) else time.perf_counter()) - start)
    return seconds


def peak(file: str) -> dict[str, int]:
    """Fit a file and return the peak memory of this process.

    Not from getrusage where /proc has it: that begins at the peak of the process that started this one.
    """
    machine.set_threads(int(os.environ["OPENBLAS_NUM_THREADS"]))
    import streamsvd as ss

    ss.fit(file, rank=8, progress=False)
    return {"bytes": memory.peak()}


def amount(value: float, unit: str) -> str:
    """Return seconds or bytes as the table shows them."""
    if unit == "B":
        return f"{value / 1e6:,.0f} MB"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.2f} ms"


if __name__ == "__main__":
    print(json.dumps(peak(sys.argv[1])))
