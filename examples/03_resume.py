"""A long fit whose process is killed with SIGKILL, again and again, and which ends in the bits of one that never stopped.

python examples/03_resume.py [--quick]
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

import streamsvd as ss

COLUMNS, RANK, FILES = 64, 8, 6
ROWS = 2_000 if "--quick" in sys.argv else 40_000  # in each file


def write_files(folder: Path) -> None:
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((RANK, COLUMNS)) / np.arange(1, RANK + 1)[:, None]
    for i in range(FILES):
        rows = rng.standard_normal((ROWS, RANK)) @ mixing + 0.1 * rng.standard_normal((ROWS, COLUMNS))
        frame = pl.DataFrame(rows.astype(np.float32), schema=[f"c{j}" for j in range(COLUMNS)])
        frame.write_parquet(folder / f"{i}.parquet", row_group_size=ROWS // 10)


def die_at_the_second(event: object, seen: list[object] = []) -> None:  # noqa: B006
    """Kill this process while it writes its second checkpoint."""
    seen.append(event)
    if len(seen) == 2:
        os.kill(os.getpid(), signal.SIGKILL)


def fit(folder: Path, **options) -> ss.Factors:
    return ss.fit(folder / "*.parquet", rank=RANK, kind="truncated", every=ROWS, **options)


if "--child" in sys.argv:  # go on with the run, and be killed
    fit(Path(sys.argv[-1]), checkpoint=Path(sys.argv[-1]) / "run.svd", on_event=die_at_the_second)
else:
    with tempfile.TemporaryDirectory() as name:
        folder, run = Path(name), Path(name) / "run.svd"
        write_files(folder)
        print(f"{'process':<10}{'ended by':<12}{'rows in the checkpoint':>24}")
        for number in range(1, 4):
            child = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--child", name])
            rows = ss.load(run).rows if run.exists() else 0
            print(f"{number:<10}{signal.Signals(-child.returncode).name:<12}{rows:>24,}")
        resumed = fit(folder, checkpoint=run)
        print(f"{'this one':<10}{'the end':<12}{resumed.rows:>24,}")

        whole = fit(folder)
        same = np.array_equal(resumed.vt, whole.vt)
        print(f"\nrows in the files: {FILES * ROWS:,}; the same bits as a run that never stopped: {same}")
