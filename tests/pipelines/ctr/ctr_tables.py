"""Tables and counts that the tests of click models share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def vectors(rows: int, columns: int, seed: int = 0, mean: float = 0.5) -> np.ndarray:
    """Float32 vectors with a falling spectrum."""
    rng = np.random.default_rng(seed)
    mix = np.linalg.qr(rng.standard_normal((columns, columns)))[0] * 0.7 ** np.arange(columns)
    return (rng.standard_normal((rows, columns)) @ mix.T + mean).astype(np.float32)


def table(parts: dict[str, np.ndarray], ids: dict[str, object] | None = None, shuffle: int | None = None) -> pa.Table:
    """One Arrow table field, id, vector; lists of one length each, for widths differ by field."""
    found = [
        pa.table(
            {
                "field": [name] * len(x),
                "id": (ids or {}).get(name, np.arange(len(x))),
                "vector": pa.array(list(x), pa.list_(pa.float32())),
            }
        )
        for name, x in parts.items()
    ]
    whole = pa.concat_tables(found)
    return whole if shuffle is None else whole.take(pa.array(np.random.default_rng(shuffle).permutation(len(whole))))


def counts_table(counts: dict[str, np.ndarray]) -> pa.Table:
    """Counts as field, id, count."""
    return pa.concat_tables(
        [
            pa.table({"field": [name] * len(c), "id": np.arange(len(c)), "count": np.asarray(c, np.float64)})
            for name, c in counts.items()
        ]
    )


def write(path: Path, data: pa.Table, group: int = 500) -> str:
    """Write a Parquet file in small row groups."""
    pq.write_table(data, path, row_group_size=group)
    return str(path)


def truth(x: np.ndarray, weights: np.ndarray, center: bool = True) -> np.ndarray:
    """Eigenvalues of the weighted covariance in float64, falling."""
    w = np.asarray(weights, np.float64) / np.sum(weights)
    rows = x.astype(np.float64)
    rows = rows - (w @ rows if center else 0.0)
    return np.linalg.eigvalsh((rows * w[:, None]).T @ rows)[::-1]
