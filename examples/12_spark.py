"""Spark: a DataFrame becomes one model on the executors; the driver sees one small state.

python examples/12_spark.py [--quick]      (needs: pip install 'streamsvd[spark]' and Java 17; starts a local session, and stops it)
"""

from __future__ import annotations

import sys
import time

import numpy as np
import pyarrow as pa

import streamsvd as ss
from streamsvd.engines.spark import connected, fit_spark, transform_spark

QUIET = {"spark.ui.enabled": "false", "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}


def ratings(rows: int, columns: int) -> pa.Table:
    rng = np.random.default_rng(0)
    taste = rng.standard_normal((rows, 6)) @ rng.standard_normal((6, columns)) / 3
    values = taste + 0.3 * rng.standard_normal((rows, columns))
    return pa.table({"user": np.arange(rows), **{f"item{j}": values[:, j] for j in range(columns)}})


def main(quick: bool) -> None:
    table = ratings(2_000 if quick else 20_000, 24)
    items = [name for name in table.column_names if name != "user"]
    try:
        with connected("local[2]", **QUIET, **{"spark.sql.shuffle.partitions": "2"}) as spark:
            spark.sparkContext.setLogLevel("ERROR")
            frame = spark.createDataFrame(table).repartitionByRange(2, "user").sortWithinPartitions("user")
            began = time.perf_counter()
            factors = fit_spark(frame, rank=6, select=items)
            seconds = time.perf_counter() - began
            scores = transform_spark(factors, frame, ids="user", residual=True).orderBy("residual", ascending=False)
            strange = scores.select("user", "residual").take(3)
    except (ImportError, RuntimeError) as error:
        print(f"skipped: {error}")
        return
    alone = ss.fit(table, rank=6, select=items)
    print(f"{factors.rows:,} users in {seconds:.1f} s, the start of the Python workers included")
    print("component   Spark        one stream   share of energy")
    for j, share in enumerate(factors.explained_variance_ratio):
        print(f"{j:9d}   {factors.s[j]:<11.4f}  {alone.s[j]:<11.4f}  {share:.3f}")
    print("users that the components explain least:", [row["user"] for row in strange])


if __name__ == "__main__":
    main("--quick" in sys.argv)
