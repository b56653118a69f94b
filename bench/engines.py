"""One worker against two, on Ray and Spark, and what reaches the driver. ``python bench/engines.py [--quick] [--engine ray]``

Runs of one and of two workers are interleaved; a partition holds about 2 s of work. A run over two partitions goes first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import numpy as np

TARGET = 1.6
OPTIONS = {"rank": 32, "kind": "truncated", "select": None}


def main() -> None:
    """Read the options, measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--engine", choices=("ray", "spark", "both"), default="both")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    asked = parser.parse_args()
    machine.set_threads(1)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        files, seconds = partitions(Path(name), quick=asked.quick)
        for engine in ("ray", "spark") if asked.engine == "both" else (asked.engine,):
            rows.append(compared(engine, files, 1 if asked.quick else asked.repeats) | {"partition s": seconds})
    for row in rows:
        missed = "" if row["speedup"] >= TARGET else " MISSED"
        print(
            f"{row['engine']}: {row['rows/s, 1']:,.0f} rows/s on 1 worker, {row['rows/s, 2']:,.0f} on 2: {row['speedup']:.2f}x "
            f"(target {TARGET}{missed}); {row['partition s']:.1f} s of work a partition; {row['driver bytes']:,} bytes to the driver"
        )
    print(f"\nMachine: {machine.sentence(machine.describe(1))}.")
    if asked.json:
        Path(asked.json).write_text(json.dumps({"machine": machine.describe(1), "rows": rows}, indent=1))


def partitions(folder: Path, *, quick: bool, count: int = 8) -> tuple[list[str], float]:
    """Write partitions of about 2 s of work each and return them with the seconds that one takes here."""
    from streamsvd.engines.job import Job

    columns, rows = 256, 2_000
    block = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    began = time.perf_counter()
    Job.of(**OPTIONS).fold(block)
    began = time.perf_counter()
    Job.of(**OPTIONS).fold(block)
    one = time.perf_counter() - began
    times = 2 if quick else max(2, round(2.2 / one))
    for number in range(count):
        np.save(folder / f"{number}.npy", np.tile(block, (times, 1)))
    return [str(folder / f"{number}.npy") for number in range(count)], one * times


def compared(engine: str, files: list[str], repeats: int) -> dict[str, Any]:
    """Return rows/s on one and two workers, medians of interleaved runs."""
    from streamsvd.engines.contract import Part

    took: dict[int, list[float]] = {1: [], 2: []}
    outcome: Any = None
    for _ in range(repeats):
        for workers in (1, 2):
            with connected(engine, workers) as run:
                run(files[:2])
                began = time.perf_counter()
                outcome = run(files)
                took[workers].append(time.perf_counter() - began)
    rows = outcome.state.rows
    speeds = {workers: rows / statistics.median(seconds) for workers, seconds in took.items()}
    sent = len(Part(0, 1, outcome.state, outcome.intake, {}, outcome.names).to_bytes())
    told = {"engine": engine, "rows": rows, "rows/s, 1": speeds[1], "rows/s, 2": speeds[2]}
    return told | {"speedup": speeds[2] / speeds[1], "driver bytes": sent}


def connected(engine: str, workers: int) -> Any:
    """Return a context whose value folds files on so many workers."""
    from contextlib import contextmanager

    @contextmanager
    def ray() -> Any:
        from streamsvd.engines import ray as engine

        with engine.connected(num_cpus=workers, object_store_memory=200 << 20) as cluster:
            cluster.data.DataContext.get_current().enable_progress_bars = False
            yield lambda files: engine.run_ray(files, **OPTIONS)

    @contextmanager
    def spark() -> Any:
        from streamsvd.engines import spark as engine

        quiet = {"spark.ui.enabled": "false", "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
        with engine.connected(f"local[{workers}]", **quiet, **{"spark.sql.shuffle.partitions": "2"}) as session:
            session.sparkContext.setLogLevel("ERROR")
            yield lambda files: engine.run_spark(files, **OPTIONS)

    return ray() if engine == "ray" else spark()


if __name__ == "__main__":
    main()
