"""What the graph tables compare: factors in another's place, svd_lowrank, popularity; their scores, the data, the clock."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamsvd.pipelines.graph import GraphFactors, GraphSVD


@dataclass
class With:
    """Factors in the place of a graph's own."""

    graph: Any
    factors_: Any

    def __call__(self) -> GraphSVD:
        found = self.graph.afresh()
        found.state_ = replace(found.state_, factors=self.factors_, folded=found.state_.store.operations)
        return found


def scores(graph: GraphSVD, valid: Any, test: Any) -> dict[str, float]:
    from streamsvd.pipelines.graph.evaluate import of_filter, unknown_users

    found = of_filter(graph, test)
    share = found["users"] / (found["users"] + unknown_users(test, graph.factors()))
    scores = {key: value * share for key, value in found.items() if key != "users"}
    return {"valid R@20": of_filter(graph, valid)["recall@20"], **scores}


def popular(graph: GraphSVD, valid: Any, test: Any) -> dict[str, float]:
    """Score the filter of one vector that is the items' degrees: everyone is offered the most popular items they have not seen."""
    import numpy as np

    f, scale = graph.factors(), np.sqrt(np.maximum(graph.state_.store.degrees()[1], 0))
    flat = (scale / np.linalg.norm(scale)).astype(np.float32)[:, None]
    one = replace(f, v=flat, u=f.u[:, :1], s=f.s[:1], rotation=np.eye(1), item_scale=scale)
    return scores(With(graph, one)(), valid, test)


def graph_of(train: Any, t: float, rank: int = 64) -> GraphSVD:
    from streamsvd.pipelines.graph import GraphSVD

    return GraphSVD(rank=rank, regularise=t, energy=0.999, duplicates="ignore").update(train)


def at_rank(graph: GraphSVD, rank: int) -> GraphSVD:
    return With(graph, truncated(graph.factors(), rank))()


def truncated(f: GraphFactors, rank: int) -> GraphFactors:
    import numpy as np

    return replace(f, s=f.s[:rank], u=f.u[:, :rank].copy(), v=f.v[:, :rank].copy(), rotation=np.eye(rank))


def zeroed(f: GraphFactors) -> GraphFactors:
    return replace(f, u=0 * f.u, v=0 * f.v)


def lowrank(graph: GraphSVD, rank: int, seed: int) -> GraphSVD:
    """Give a graph the factors of torch.svd_lowrank(q=rank, niter=2) of its whole normalised matrix, as LightGCL has them."""
    import numpy as np
    import torch

    from streamsvd.pipelines.graph import GraphFactors, model
    from streamsvd.pipelines.graph.refresh import normalised

    store, t = graph.state_.store, float(graph.settings.regularise)
    scale = model.scaling(store, t)
    A = normalised(store, scale).tocoo()
    torch.manual_seed(seed)
    N = torch.sparse_coo_tensor(
        torch.tensor(np.stack(A.coords).astype(np.int64)), torch.tensor(A.data), A.shape, check_invariants=True
    ).coalesce()
    u, s, v = (x.numpy() for x in torch.svd_lowrank(N, q=rank, niter=2))
    degree = store.degrees()[1]
    root = np.sqrt(np.where(degree > 0, degree + scale.tau[1], 0.0))
    return With(graph, GraphFactors(store.users, store.items, s, u, v, np.eye(rank), root))()


def fresh_of(graph: GraphSVD, passes: int) -> tuple[tuple[float, float], float]:
    """Time a fresh solve of at most so many passes and return what it captured."""
    one = graph.afresh()
    one.state_ = replace(one.state_, settings=replace(one.settings, passes=passes))
    return clock(one.refresh), one.factors().info["captured_energy"]


def cheapest(graph: GraphSVD, captured: float) -> int:
    """Return the fewest passes with which a fresh solve captures no less."""
    passes = 14
    while passes > 1 and fresh_of(graph, passes - 1)[1] >= captured:
        passes -= 1
    while fresh_of(graph, passes)[1] < captured and passes < 40:
        passes += 1
    return passes


def edge_bytes(graph: GraphSVD) -> int:
    """Bytes of the edges while a refresh runs, without factors: the store, the scaled values, and the transpose."""
    store = graph.state_.store
    m, n = store.shape
    return store.nbytes + 4 * store.edges + 8 * store.edges + 4 * (m + 1) + 4 * (n + 1) + 16 * (m + n)


def splits() -> list[Any]:
    import pyarrow.parquet as pq

    folder = os.environ.get("STREAMSVD_DATA")
    if not folder:
        sys.exit("this table reads yelp_sparse: set STREAMSVD_DATA to the folder that holds recsys/yelp_sparse")
    return [
        pq.read_table(Path(folder) / "recsys" / "yelp_sparse" / f"{name}.parquet")
        for name in ("train", "valid", "test")
    ]


def frappe() -> tuple[Any, Any]:
    """Distinct user-item pairs of frappe's positive rows, a tenth of them held out."""
    import polars as pl

    folder = Path(os.environ["STREAMSVD_DATA"]) / "ctr" / "frappe"
    frame = pl.concat([pl.read_parquet(file) for file in sorted(folder.glob("*.parquet"))])
    pairs = frame.filter(pl.col("label") > 0).select("user", "item").unique(maintain_order=True).to_arrow()
    pairs = pairs.take(order(pairs.num_rows))
    cut = int(0.9 * pairs.num_rows)
    return pairs.slice(0, cut), pairs.slice(cut)


def order(size: int) -> Any:
    import numpy as np

    return np.random.default_rng(0).permutation(size)


def clock(call: Any) -> tuple[float, float]:
    start, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - cpu


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)
