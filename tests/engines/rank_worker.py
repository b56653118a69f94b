"""One rank of a gloo group: merges its share of some streams and writes what came out. Run as: rank_worker.py FOLDER RANK SIZE."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
import torch.distributed as dist

import streamsvd as ss
from streamsvd.engines.ranks import merge_across_ranks
from streamsvd.engines.rows import normalised_across_ranks, svd_across_ranks

D = 30


def share(rank: int, n: int = 500) -> np.ndarray:
    rng = np.random.default_rng(rank)
    return rng.standard_normal((n + 10 * rank, D)) / np.arange(1, D + 1) + 1.0


def sketch(rows: np.ndarray | None, **options) -> ss.Sketch:
    empty = ss.sketch(**({"columns": D, "rank": 4, "kind": "truncated"} | options))
    return empty if rows is None else empty.update(rows)


def edges(rank: int, dtype=np.float32) -> sp.csr_array:
    """Users of a rank and all items; rank 1 has no user, and the last items no edge."""
    rng = np.random.default_rng(100 + rank)
    users = (300, 0, 170)[rank]
    dense = np.where(rng.random((users, 60)) < 0.15, rng.random((users, 60)) + 0.5, 0.0)
    dense[:, 57:] = 0.0
    return sp.csr_array((dense * (2.0 if rank else 1.0)).astype(dtype))


def solves(rank: int) -> dict:
    return {
        "graph": lambda: svd_across_ranks(normalised_across_ranks(edges(rank), t=0.5), 6, tol=1e-6),
        "sparse": lambda: svd_across_ranks(edges(rank, np.float64), 6, tol=1e-9),
        "dense": lambda: svd_across_ranks(share(rank), 4, tol=1e-9),
        "tiny": lambda: svd_across_ranks(share(rank) * 1e-170, 4, tol=1e-9),
        "wrong columns": lambda: svd_across_ranks(share(rank)[:, : D - rank], 4),
        "wrong rank": lambda: svd_across_ranks(share(rank), 4 + rank),
        "torch rows": lambda: svd_across_ranks(torch.asarray(share(rank)), 4, tol=1e-9),
        "nan": lambda: svd_across_ranks(np.where(share(rank) > 2, np.nan if rank == 2 else 0.0, share(rank)), 4),
        "mixed kinds": lambda: svd_across_ranks(sp.csr_array(share(rank)) if rank else share(rank), 4),
        "large rank": lambda: svd_across_ranks(share(rank), D + 1),
    }


def scenarios(rank: int) -> dict:
    x = share(rank)
    return {
        "truncated": lambda: sketch(x),
        "gram": lambda: sketch(x, kind="gram"),
        "single": lambda: sketch(x.astype(np.float32), dtype="float32"),
        "torch": lambda: sketch(torch.asarray(x)),
        "one empty": lambda: sketch(None if rank == 1 else x),
        "layers": lambda: {"b": sketch(x), "a": sketch(x[:, ::-1].copy())},
        "mixed rank": lambda: sketch(x, rank=4 + rank),
        "mixed dtype": lambda: sketch(x.astype(np.float32 if rank == 1 else np.float64)),
        "mixed layers": lambda: {f"layer{rank}": sketch(x)},
        "no state": lambda: x if rank == 1 else sketch(x),
        "left": lambda: sketch(x, keep_left=True),
    }


def main(folder: Path, rank: int, size: int) -> None:
    torch.set_num_threads(1)
    init = f"file://{folder / 'meet'}"
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=size, timeout=timedelta(seconds=60))
    told: dict[str, str] = {}
    for name, make in scenarios(rank).items():
        try:
            whole = merge_across_ranks(make())
        except (TypeError, ValueError) as error:
            told[name] = f"{type(error).__name__}: {error}"
            continue
        for key, state in (whole if isinstance(whole, dict) else {"": whole}).items():
            told[f"{name} array"] = type(state.like).__module__
            ss.save(state, folder / f"{name}{key}-{rank}.svd")
    for name, solve in solves(rank).items():
        try:
            found = solve()
        except (TypeError, ValueError) as error:
            told[name] = f"{type(error).__name__}: {error}"
            continue
        np.savez(
            folder / f"{name}-{rank}.npz",
            s=found.s,
            vt=found.vt,
            u=found.u,
            residual=found.bound.residual,
            rows=found.rows,
        )
    pair = dist.new_group([1, 2])
    if rank:
        ss.save(merge_across_ranks(sketch(share(rank)), pair), folder / f"pair-{rank}.svd")
    (folder / f"told-{rank}.json").write_text(json.dumps(told))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
