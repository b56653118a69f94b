"""Ray: a dataset in blocks becomes one model, whatever the schedule; the same bits as in one process.

python examples/10_ray.py [--quick]      (needs: pip install 'streamsvd[ray]'; starts a local cluster of 2 workers, and stops it)
"""

from __future__ import annotations

import os
import sys
import time

import numpy as np
import pyarrow as pa

import streamsvd as ss
from streamsvd.engines.local import fit_local

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def blocks(rows: int, columns: int, count: int) -> list[pa.Table]:
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((20, columns)) / np.arange(1, 21)[:, None]
    values = [rng.standard_normal((rows, 20)) @ mix + 0.05 * rng.standard_normal((rows, columns)) for _ in range(count)]
    return [pa.table({f"x{j}": block[:, j].astype(np.float32) for j in range(columns)}) for block in values]


def main(quick: bool) -> None:
    try:
        from streamsvd.engines.ray import connected, fit_ray, imported, transform_ray

        ray = imported()
    except ImportError as error:
        print(f"skipped: {error}")
        return
    tables = blocks(500 if quick else 5000, 64, 4 if quick else 16)
    with connected(num_cpus=2, object_store_memory=200 << 20):
        ray.data.DataContext.get_current().enable_progress_bars = False
        dataset = ray.data.from_arrow(tables)
        began = time.perf_counter()
        factors = fit_ray(dataset, rank=8, kind="truncated")
        seconds = time.perf_counter() - began
        scores = transform_ray(factors, dataset, residual=True)
        worst = max(row["residual"] for row in scores.select_columns(["residual"]).take_all())
    here = fit_local(tables, rank=8, kind="truncated")
    alone = ss.fit(tables, rank=8, kind="truncated")
    print(f"{factors.rows:,} rows of {len(tables)} blocks in {seconds:.1f} s, the start of the workers included")
    print(f"same bits as in one process:     {factors.vt.tobytes() == here.vt.tobytes()}")
    print("component   Ray          one stream   certified interval")
    lower, upper = factors.bound.sigma
    for j in range(5):
        print(f"{j:9d}   {factors.s[j]:<11.4f}  {alone.s[j]:<11.4f}  {lower[j]:.4f} .. {upper[j]:.4f}")
    print(f"worst row: squared residual {worst:.3f}")


if __name__ == "__main__":
    main("--quick" in sys.argv)
