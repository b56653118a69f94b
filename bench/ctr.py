"""Compressed embedding tables: ``python bench/ctr.py [--quick] [--parts scale,quality,serving] [--json FILE]``.

scale: a Parquet table larger than memory allows, against reading and writing alone. quality: weighted error and AUC on real clicks (the
folder that STREAMSVD_DATA names). serving: look-ups and the first layer, dense against compressed. What is compared takes turns.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import machine
import memory

PARTS = ("scale", "quality", "serving")
Row = tuple[str, str, str, str]


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    if options.child:
        print(json.dumps(child(Path(options.child))))
        return
    machine.set_threads(1)
    described, rows = machine.describe(1), []
    for part in options.parts.split(","):
        with tempfile.TemporaryDirectory(prefix="streamsvd-bench-", dir=options.folder) as folder:
            rows += {"scale": scale, "quality": quality, "serving": serving}[part](Path(folder), options)
    if options.json:
        Path(options.json).write_text(
            json.dumps({"machine": described, "quick": options.quick, "rows": rows}, indent=1) + "\n"
        )
    widths = [max(len(row[j]) for row in rows) for j in range(4)]
    print("\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows))
    print(
        f"\nMachine: {machine.sentence(described)}."
        + (" Tiny sizes: these ratios mean nothing." if options.quick else "")
    )


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__)
    found.add_argument("--quick", action="store_true")
    found.add_argument("--parts", default=",".join(PARTS))
    found.add_argument("--runs", type=int, default=3)
    found.add_argument("--json")
    found.add_argument("--folder", help="where large files go; the system's folder for temporary files by default")
    found.add_argument("--child", help=argparse.SUPPRESS)
    return found


def gate(what: str, measured: str, limit: str, reached: bool | None) -> Row:
    return what, measured, limit, "" if reached is None else "reached" if reached else "MISSED"


def turns(runs: int, **ways: Callable[[], Any]) -> dict[str, float]:
    """Median seconds of each way; they take turns."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            found[name].append(time.perf_counter() - began)
    return {name: median(values[1:]) for name, values in found.items()}


def read_only(path: Path) -> None:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    for group in range(file.num_row_groups):
        file.read_row_group(group, use_threads=False)


def read_and_write(path: Path, out: Path, rank: int) -> None:
    """Read all row groups and write as many rows of id and r numbers, in one thread."""
    import numpy as np
    import pyarrow.parquet as pq

    from streamsvd.pipelines.ctr.io import OPTIONS, as_batch

    table = np.random.default_rng(0).standard_normal((1 << 16, rank), dtype=np.float32)
    file, writer = pq.ParquetFile(path), None
    for group in range(file.num_row_groups):
        found = file.read_row_group(group, use_threads=False)
        batch = as_batch(found["id"].combine_chunks(), table[: found.num_rows], {})
        writer = writer or pq.ParquetWriter(out, batch.schema, **OPTIONS)
        writer.write_batch(batch)
    assert writer is not None
    writer.close()


def scale(folder: Path, options: argparse.Namespace) -> list[Row]:
    import numpy as np
    import pyarrow.parquet as pq

    from streamsvd.pipelines.ctr import io
    from streamsvd.pipelines.ctr.choosing import Target, choose
    from streamsvd.pipelines.ctr.counts import read_counts
    from streamsvd.pipelines.ctr.passes import measure
    from streamsvd.pipelines.ctr.synthetic import write_table, zipf_counts

    rows, rank = 100_000 if options.quick else 10_000_000, 16
    path, counts = folder / "item.parquet", folder / "counts.parquet"
    write_table(path, rows, 64)
    pq.write_table(zipf_counts(rows), counts)
    # The peak of a child may begin at that of its parent, so this comes before anything large.
    peak = memory.in_child("--child", folder, threads=1, script=__file__)["bytes"]
    known = read_counts(str(counts), ["item"])
    found = turns(options.runs, read=lambda: read_only(path), moments=lambda: measure(str(path), known))
    moments, _ = measure(str(path), known)
    fields = choose(moments, Target(rank=rank))
    out = turns(
        options.runs,
        parts=lambda: read_and_write(path, folder / "copy.parquet", rank),
        project=lambda: io.write_rows(str(path), fields, folder / "rows"),
    )
    difference = sharded(path, known["item"], moments, folder)
    speed = found["moments"] / found["read"], out["project"] / out["parts"]
    size = f"{rows:,} x 64 float32, {path.stat().st_size / 1e9:.2f} GB of Parquet"
    said = [
        f"{found['moments']:.2f} s, reading {found['read']:.2f} s: {speed[0]:.2f}",
        f"{out['project']:.2f} s, {out['parts']:.2f} s: {speed[1]:.2f}",
    ]
    return [
        gate(f"moments against reading, {size}", said[0], "<= 1.3", speed[0] <= 1.3),
        gate(f"projection to {rank} against reading and writing", said[1], "<= 1.3", speed[1] <= 1.3),
        gate("peak resident memory: counts, moments, projection", f"{peak / 1e6:.0f} MB", "< 600 MB", peak < 600e6),
        gate(
            "eigenvalues of 4 shards merged against one pass",
            f"{difference:.1e}",
            "<= 1e-10",
            difference <= 1e-10 and np.isfinite(difference),
        ),
    ]


def sharded(path: Path, known: Any, whole: Any, folder: Path) -> float:
    """Largest relative difference of the eigenvalues after a pass in four shards, merged in another order."""
    import numpy as np

    from streamsvd.pipelines.ctr.model import spectrum
    from streamsvd.pipelines.ctr.moments import Moments
    from streamsvd.pipelines.ctr.tables import batches

    shards = [Moments() for _ in range(4)]
    for i, batch in enumerate(batches(str(path))):
        shards[i % 4] = shards[i % 4].update("item", batch.vectors, known.counts[known.find(batch.ids)])
    merged = shards[2].merge(shards[0]).merge(shards[3].merge(shards[1]))
    a, b = (spectrum(m.basis("item")).eigenvalues for m in (whole, merged))
    return float(np.max(np.abs(a - b) / a))


def child(folder: Path) -> dict[str, int]:
    """Peak resident memory of this process over all three passes, everything counted."""
    from streamsvd.pipelines.ctr.compress import compress_tables

    out = folder / "child"
    compress_tables(str(folder / "item.parquet"), {"item": str(folder / "counts.parquet")}, rank=16, out=out)
    shutil.rmtree(out)
    return {"bytes": memory.peak()}


def quality(folder: Path, options: argparse.Namespace) -> list[Row]:
    data = os.environ.get("STREAMSVD_DATA")
    if not data or not (Path(data) / "ctr/frappe").is_dir():
        return [("quality on frappe", "needs STREAMSVD_DATA", "", "")]
    seeds, trained = (0,) if options.quick else (0, 1, 2), []
    for seed in seeds:
        trained.append(judged(Path(data) / "ctr/frappe", seed, 1 if options.quick else 5))
    rows = [
        gate(
            f"weighted error against plain SVD, rank {r} of 16",
            said(one["svd"][r] for one in trained),
            "<= 0.7",
            max(one["svd"][r] for one in trained) <= 0.7,
        )
        for r in (2, 4, 8)
    ]
    worst = [max(one["budget"][r] for one in trained) for r in range(1, 16)]
    rows.append(gate("budget against the uniform rank of its bytes, ranks 1 to 15", said(worst), "< 1", max(worst) < 1))
    before = [one["auc"] for one in trained]
    spread = max(before) - min(before)
    rows.append(gate(f"AUC of the model, seeds {seeds}; spread {spread:.4f}", said(before, 4), "", None))
    for name in ("uniform rank 5", "budget of a third"):
        gaps, tuned = [one[name][0] for one in trained], [one[name][1] for one in trained]
        smaller = min(one[name][2] for one in trained)
        rows.append(
            gate(
                f"AUC change at {smaller:.2f}x smaller tables, {name}", said(gaps, 4), ">= -0.002", min(gaps) >= -0.002
            )
        )
        rows.append(
            gate("  after one epoch of fine-tuning", said(tuned, 4), f">= -{spread:.4f}", min(tuned) >= -spread)
        )
    return rows


def said(values: Any, digits: int = 3) -> str:
    return " ".join(f"{value:.{digits}f}" for value in values)


def judged(folder: Path, seed: int, epochs: int) -> dict[str, Any]:
    """Train one model and compress it in all the ways that the table compares."""
    from streamsvd.pipelines.ctr import apply_to, compress_tables, mimic
    from streamsvd.pipelines.ctr.training import evaluate, shuffled, train

    log = str(folder / "train.parquet")
    model, vocab = train(log, epochs=epochs, seed=seed)
    test, clicks, tables, counts = (
        vocab.encode(str(folder / "test.parquet")),
        vocab.encode(log),
        model.tables(),
        vocab.counts(log),
    )
    dense = sum(table.nbytes for table in tables.values())
    found: dict[str, Any] = {"auc": evaluate(model, *test)["auc"], "svd": {}, "budget": {}}
    for r in (2, 4, 8):
        plain, size = plain_svd(tables, counts, r)
        done = compress_tables(tables, counts, budget_bytes=size)  # exactly the bytes of the plain SVD, means included
        uniform = compress_tables(tables, counts, rank=r, keep_dense=False)
        found["svd"][r] = max(served(tables, counts, one) for one in (done, uniform)) / plain
    for r in range(1, 16):
        uniform = compress_tables(tables, counts, rank=r)
        found["budget"][r] = compress_tables(tables, counts, budget_bytes=uniform.bytes_after).error / uniform.error
    for name, size in {"uniform rank 5": {"rank": 5}, "budget of a third": {"budget_bytes": dense // 3}}.items():
        done = compress_tables(tables, counts, **size)
        small = apply_to(model, done)
        raw = evaluate(small, *test)["auc"]
        mimic(model, small, shuffled(*clicks, 2048, 100 + seed))
        found[name] = raw - found["auc"], evaluate(small, *test)["auc"] - found["auc"], dense / done.bytes_after
    return found


def plain_svd(tables: Any, counts: Any, rank: int) -> tuple[float, int]:
    """Summed squared error over all look-ups of a plain SVD of each table, and its bytes."""
    import numpy as np

    lost, size = 0.0, 0
    for name, table in tables.items():
        u, s, vt = np.linalg.svd(table.astype(np.float64), full_matrices=False)
        r = min(rank, len(s))
        lost += float(counts[name] @ ((table - (u[:, :r] * s[:r]) @ vt[:r]) ** 2).sum(axis=1))
        size += 4 * (table.shape[0] + table.shape[1]) * r
    return lost, size


def served(tables: Any, counts: Any, done: Any) -> float:
    """Summed squared error over all look-ups."""
    return sum(float(counts[k] @ ((table - done[k].reconstruct()) ** 2).sum(axis=1)) for k, table in tables.items())


def serving(folder: Path, options: argparse.Namespace) -> list[Row]:
    found = []
    for d in (64, 16):
        found += served_at(d, 10_000 if options.quick else 1_000_000, 30 if options.quick else 200)
    return found


def served_at(
    d: int, vocabulary: int, repeats: int, fields: int = 10, batch: int = 4096, hidden: int = 256
) -> list[Row]:
    """Look-ups of all fields and the first linear layer: dense, projection kept, projection merged."""
    import torch
    from torch import nn

    from streamsvd.pipelines.ctr.embedding import CompressedEmbedding, MergedLookup

    torch.manual_seed(0)
    r, linear = d // 4, nn.Linear(fields * d, hidden)
    dense = [nn.Embedding(vocabulary, d, _weight=torch.randn(vocabulary, d)) for _ in range(fields)]
    small = [
        CompressedEmbedding(torch.randn(vocabulary, r), torch.linalg.qr(torch.randn(d, r))[0].T, torch.randn(d))
        for _ in range(fields)
    ]
    merged, inputs = MergedLookup(small, linear), [torch.randint(vocabulary, (batch, fields)) for _ in range(8)]

    def of(tables: list[Any]) -> Callable[[Any], Any]:
        return lambda x: linear(torch.cat([one(x[:, k]) for k, one in enumerate(tables)], dim=1))

    ways, seconds = {"dense": of(dense), "kept": of(small), "merged": merged}, {}
    with torch.inference_mode():
        gap = float((merged(inputs[0]) - ways["kept"](inputs[0])).abs().max())
        assert gap < 1e-3, f"the merged layer differs by {gap}"
        times: dict[str, list[float]] = {name: [] for name in ways}
        for i in range(repeats):
            for name, way in ways.items():
                began = time.perf_counter()
                way(inputs[i % 8])
                times[name].append(time.perf_counter() - began)
        seconds = {name: median(values) for name, values in times.items()}
    speed = {name: seconds["dense"] / seconds[name] for name in ("merged", "kept")}
    read = f"{batch * fields / seconds['dense'] / 1e6:.1f} M look-ups/s dense"
    title = f"look-ups and first layer, d = {d}, rank {r}, {fields} fields of {vocabulary:,}"
    limits = {"merged": 1.5, "kept": 0.6}
    return [
        gate(
            f"{title}, projection {name}",
            f"{speed[name]:.2f}x of {read}; {4 * r} bytes a look-up instead of {4 * d}",
            f">= {limits[name]:g}" if d == 64 else "",
            speed[name] >= limits[name] if d == 64 else None,
        )
        for name in ("merged", "kept")
    ]


if __name__ == "__main__":
    main()
