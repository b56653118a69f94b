"""Generated click data and embedding tables, for examples and benchmarks that need no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def clicks(rows: int, vocabulary: dict[str, int], /, *, seed: int = 0, dim: int = 4, exponent: float = 1.05) -> Any:
    """Return clicks as an Arrow table ``label, field, ...``: Zipf ids, a hidden model of pairwise products, a click in three.

    Parameters
    ----------
    rows : int
    vocabulary : dict of number of ids by field
    dim : int, of the hidden vectors
    exponent : float, of Zipf's law

    The hidden model depends on the vocabulary alone, so other seeds give more clicks of the same model.
    """
    import pyarrow as pa

    rng, hidden = np.random.default_rng(seed), np.random.default_rng(20240528)
    columns, logit, vectors = {}, np.zeros(rows), np.zeros((rows, dim))
    for name, size in vocabulary.items():
        popularity = np.arange(1, size + 1) ** -exponent
        ids = rng.choice(size, rows, p=popularity / popularity.sum())
        own = hidden.standard_normal((size, dim)) * 0.8 / np.sqrt(dim)
        logit += hidden.standard_normal(size)[ids] * 0.5 + 2.0 * (vectors * own[ids]).sum(1)
        vectors += own[ids]
        columns[name] = pa.array(ids.astype(np.int32))
    logit -= np.quantile(logit, 2 / 3)
    label = (rng.random(rows) < 1.0 / (1.0 + np.exp(-2.0 * logit))).astype(np.int8)
    return pa.table({"label": pa.array(label), **columns})


def write_table(
    path: str | Path, rows: int, columns: int, /, *, field: str = "item", seed: int = 0, first: int = 0
) -> None:
    """Write a Parquet table ``field, id, vector`` of float32 vectors with a falling spectrum and a mean, in row groups of 65,536."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng([seed, first])
    axes = np.linalg.qr(np.random.default_rng(seed).standard_normal((columns, columns)))[0]
    mix = (axes * np.arange(1, columns + 1) ** -0.5).T.astype(np.float32)
    number = pa.field("item", pa.float32(), nullable=False)
    schema = pa.schema(
        [("field", pa.dictionary(pa.int8(), pa.string())), ("id", pa.int64()), ("vector", pa.list_(number, columns))]
    )
    options: Any = {"use_dictionary": ["field"], "compression": "none"}
    with pq.ParquetWriter(path, schema, **options) as writer:
        for at in range(first, first + rows, 1 << 16):
            ids = np.arange(at, min(at + (1 << 16), first + rows))
            vectors = rng.standard_normal((len(ids), columns), dtype=np.float32) @ mix + np.float32(0.1)
            names = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(ids), np.int8)), pa.array([field]))
            packed = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=schema.field("vector").type)
            writer.write_batch(pa.record_batch([names, pa.array(ids), packed], schema=schema))


def zipf_counts(rows: int, /, *, lookups: int = 10**9, seed: int = 0) -> Any:
    """Return look-up counts ``id, count`` (int64) that follow Zipf's law, the ids in random order of popularity."""
    import pyarrow as pa

    rank = np.random.default_rng(seed).permutation(rows) + 1
    share = 1.0 / rank
    return pa.table({"id": np.arange(rows), "count": np.floor(lookups * share / share.sum()).astype(np.int64)})
