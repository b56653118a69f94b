"""A year of sensor readings, one Parquet file a month, becomes principal components that know how far they are from the truth.

python examples/01_stream_with_a_certificate.py [--quick]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

import streamsvd as ss

SENSORS, CAUSES, RANK = 96, 6, 6
ROWS = 1_000 if "--quick" in sys.argv else 10_000


def write_month(folder: Path, month: int) -> None:
    """Sensors that follow a few causes (season, load, ...) on different baselines, each with its own noise."""
    rng = np.random.default_rng(month)
    mixing = np.random.default_rng(100).standard_normal((CAUSES, SENSORS)) / np.arange(1, CAUSES + 1)[:, None]
    season = np.cos(2 * np.pi * month / 12)
    causes = rng.standard_normal((ROWS, CAUSES)) + np.eye(CAUSES)[0] * 2 * season
    readings = causes @ mixing + 20.0 + 0.1 * rng.standard_normal((ROWS, SENSORS))
    frame = pl.DataFrame(readings.astype(np.float32), schema=[f"sensor_{i:02}" for i in range(SENSORS)])
    frame.with_columns(month=pl.lit(month)).write_parquet(folder / f"2024-{month:02}.parquet")


with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    for month in range(1, 13):
        write_month(folder, month)

    # Merge-and-truncate, asked for here to have something to certify; the planner would take exact moments for 96 columns.
    state = ss.sketch(columns=SENSORS, rank=RANK, kind="truncated")
    print(f"{'file':<18}{'rows so far':>12}{'explained':>12}{'certified: left over at most':>32}")
    for file in sorted(folder.iterdir()):
        readings = pl.scan_parquet(file).drop("month")  # lazy: read in batches, never as a whole
        for batch in ss.batches(readings):
            state = state.update(batch)
        factors = state.factors()  # at any time, and later updates do not notice
        explained = factors.explained_variance_ratio.sum()
        print(f"{file.name:<18}{state.rows:>12,}{100 * explained:>10.3f} %{100 * factors.bound.relative:>30.3f} %")

    # The same rows once more, only to see whether the certificate told the truth: nobody needs to do this.
    year = pl.scan_parquet(folder / "*.parquet").drop("month")
    truth = sum(ss.verify.residual(batch, factors.vt, mean=factors.mean) for batch in ss.batches(year))
    holds = truth <= factors.bound.residual
    print(f"\nleft over, measured on all rows: {100 * truth / factors.energy:.3f} %, within the certificate: {holds}")

    print("\ncomponent   singular value   certified to lie in        explained")
    for j, (low, high) in enumerate(zip(*factors.bound.sigma, strict=True)):
        print(
            f"{j + 1:>9}{factors.s[j]:>17.2f}   {low:>10.2f} .. {high:<10.2f}{100 * factors.explained_variance_ratio[j]:>9.2f} %"
        )
