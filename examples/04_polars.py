"""A lazy Polars query is streamed into factors, and the scores of its rows come back as a lazy frame that joins and filters.

python examples/04_polars.py [--quick]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

import streamsvd as ss

METERS, HOURS = 300, 24
DAYS = 20 if "--quick" in sys.argv else 120
ODD = {7: "nothing at all", 42: "the same all day", 99: "at night"}


def profiles(day: int) -> pl.DataFrame:
    """The hourly use of electricity of each meter on one day: mornings, evenings, and three meters that do otherwise."""
    rng, hour = np.random.default_rng(day), np.arange(HOURS)
    habits = np.stack([np.exp(-(((hour - at) / 2.0) ** 2)) for at in (7.5, 12.0, 19.0)])
    taste = np.random.default_rng(1000).gamma(3.0, 0.3, (METERS, 3)) * rng.gamma(20.0, 0.05, (METERS, 3))
    use = 0.3 + taste @ habits + 0.05 * rng.random((METERS, HOURS))
    use[7], use[42], use[99] = 0.0, 1.5, np.roll(use[99], 12)
    return pl.DataFrame({"meter": np.arange(METERS), "day": np.full(METERS, day), "use": use.astype(np.float32)})


with tempfile.TemporaryDirectory() as name:
    for day in range(DAYS):
        profiles(day).write_parquet(Path(name) / f"{day:03}.parquet")
    days = pl.scan_parquet(Path(name) / "*.parquet")

    # Nothing is collected: the query runs as a stream, and only a batch of it is ever in memory.
    factors = ss.fit(days.filter(pl.col("day") < DAYS // 2), rank=3, select="use")
    print(
        f"{factors.rows:,} daily profiles, {factors.explained_variance_ratio.sum():.2%} of their energy in 3 components"
    )

    # The scores are lazy too: what the query leaves out is neither read nor computed.
    scores = ss.scan_scores(factors, days, select="use", ids=["meter", "day"], residual=True)
    unusual = (
        scores.filter(pl.col("day") >= DAYS // 2)
        .group_by("meter")
        .agg(pl.col("residual").mean(), pl.col("scores").arr.get(0).mean().alias("first score"))
        .sort("residual", descending=True)
        .head(5)
        .collect()
    )
    print(
        f"\nmeters that later days show to be unlike the others:\n{'meter':>7}{'left over':>12}{'first score':>13}  uses electricity"
    )
    for meter, left, score in unusual.rows():
        print(f"{meter:>7}{left:>12.3f}{score:>13.3f}  {ODD.get(meter, 'as all do')}")
