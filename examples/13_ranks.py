"""torch.distributed: each rank sketches its own activations; one call gives all ranks the model of all rows.

python examples/13_ranks.py [--quick]      (needs: pip install 'streamsvd[torch]'; starts two ranks with gloo, and stops them)
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

import streamsvd as ss

RANKS, WIDTH = 2, 128


def activations(rank: int, rows: int) -> np.ndarray:
    rng = np.random.default_rng(rank)
    basis = np.random.default_rng(99).standard_normal((12, WIDTH)) / np.arange(1, 13)[:, None]
    return (rng.standard_normal((rows, 12)) @ basis + 0.05 * rng.standard_normal((rows, WIDTH))).astype(np.float32)


def work(rank: int, folder: str, rows: int) -> None:
    import torch.distributed as dist

    from streamsvd.engines.ranks import merge_across_ranks

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    sketches = {layer: ss.sketch(columns=WIDTH, rank=6, kind="truncated") for layer in ("q_proj", "v_proj")}
    for batch in np.array_split(activations(rank, rows), 10):
        sketches = {layer: sketch.update(batch) for layer, sketch in sketches.items()}
    whole = merge_across_ranks(sketches)  # the same bits on every rank; (kept x d) numbers travel, no activations
    ss.save(whole["q_proj"], Path(folder) / f"{rank}.svd")
    dist.destroy_process_group()


def main(quick: bool) -> None:
    try:
        import torch.multiprocessing as processes
    except ImportError:
        print("skipped: this needs torch, run pip install 'streamsvd[torch]'")
        return
    rows = 1_000 if quick else 50_000
    with tempfile.TemporaryDirectory() as folder:
        processes.spawn(work, (folder, rows), nprocs=RANKS)
        same = (Path(folder) / "0.svd").read_bytes() == (Path(folder) / "1.svd").read_bytes()
        factors = ss.load(Path(folder) / "0.svd").factors()
    truth = np.concatenate([activations(rank, rows) for rank in range(RANKS)]).astype(np.float64)
    s = np.linalg.svd(truth - truth.mean(axis=0), compute_uv=False)
    lower, upper = factors.bound.sigma
    print(f"{factors.rows:,} rows of {RANKS} ranks; both hold the same bits: {same}")
    print("component   merged       truth        certified interval")
    for j in range(6):
        print(f"{j:9d}   {factors.s[j]:<11.4f}  {s[j]:<11.4f}  {lower[j]:.4f} .. {upper[j]:.4f}")


if __name__ == "__main__":
    main("--quick" in sys.argv)
