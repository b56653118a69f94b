"""From an edge Parquet to recommendations without training, and to a trained LightGCL, scored on edges that both have not seen.

python examples/05_graph_recommend.py [--quick]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from streamsvd.pipelines.graph import GraphSVD, LightGCL
from streamsvd.pipelines.graph.evaluate import of_filter
from streamsvd.pipelines.graph.io import edge_batches, load_tensors, write_factors
from streamsvd.pipelines.graph.synthetic import power_law

USERS, ITEMS, EDGES, EPOCHS = (1_500, 800, 12_000, 3) if "--quick" in sys.argv else (12_000, 6_000, 90_000, 8)
rows: list[tuple[str, float, dict[str, float]]] = []

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    edges = power_law(USERS, ITEMS, EDGES, communities=40, loyalty=0.8)
    parts = {"train": edges.slice(0, int(0.8 * EDGES)), "valid": edges.slice(int(0.8 * EDGES), EDGES // 10)}
    parts["test"] = edges.slice(int(0.9 * EDGES))
    for part, table in parts.items():
        pq.write_table(table, folder / f"{part}.parquet")

    # The edges go in by batches; the regularisation is chosen by ranking the validation edges.
    began = time.perf_counter()
    graph = GraphSVD(rank=40, validation=parts["valid"])
    for batch_id, batch in edge_batches([str(folder / "train.parquet")]):
        graph.update(batch, batch_id=batch_id)
    factors = graph.factors()
    rows.append(("training-free filter", time.perf_counter() - began, of_filter(graph, parts["test"])))
    print(f"regularise={factors.info['regularise']}: {factors.info['regularise_because']}")

    # What LightGCL and its ports consume: four tensors from a folder of Parquet files.
    write_factors(factors, folder / "factors")
    print("tensors for LightGCL:", ", ".join(str(tuple(x.shape)) for x in load_tensors(folder / "factors")))

    for title, options in (("LightGCL, low-rank term", {}), ("LightGCL, no SVD view", {"propagate": "plain"})):
        began = time.perf_counter()
        model = LightGCL(epochs=EPOCHS, **options).fit(graph, validation=parts["valid"])
        rows.append((title, time.perf_counter() - began, model.evaluate(parts["test"])))

model.user_embedding_ = np.ones((len(model.users), 1), np.float32)
model.item_embedding_ = factors.item_scale[:, None].astype(np.float32)
rows.append(("most popular items", 0.0, model.evaluate(parts["test"])))

print(f"\n{'ranking by':<26}{'seconds':>9}{'Recall@20':>11}{'NDCG@20':>9}{'Recall@40':>11}")
for title, seconds, found in rows:
    print(f"{title:<26}{seconds:>9.1f}{found['recall@20']:>11.4f}{found['ndcg@20']:>9.4f}{found['recall@40']:>11.4f}")

top = graph.recommend(histories={"someone new": edges["item"].to_pylist()[:3]}, k=5)
print(f"\nfor someone new with three items: {top['item'].to_pylist()}")
