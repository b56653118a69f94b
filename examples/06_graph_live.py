"""Edges arrive and go; factors stay fresh at a fraction of a new solve, and users are served the moment they come.

python examples/06_graph_live.py [--quick]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure

from streamsvd.pipelines.graph import GraphSVD
from streamsvd.pipelines.graph.synthetic import power_law

USERS, ITEMS, EDGES = (2_000, 1_000, 20_000) if "--quick" in sys.argv else (30_000, 12_000, 400_000)
BATCHES, RANK = 10, 32
edges = power_law(USERS, ITEMS, EDGES, communities=30, loyalty=0.8)
half, step = EDGES // 2, EDGES // 2 // BATCHES

graph = GraphSVD(rank=RANK, regularise=0.5).update(edges.slice(0, half), batch_id="start")
began = time.perf_counter()
graph.refresh()
print(f"{half:,} edges, first factors in {time.perf_counter() - began:.2f} s\n")
print("batch    edges  users  refresh s  fresh s  captured / fresh  moved  new users served at once")

shares, moves = [], []
for number in range(BATCHES):
    arriving = edges.slice(half + number * step, step)
    leaving = edges.slice(number * step // 10, step // 10)  # some of the oldest edges are taken back
    graph.update(arriving, batch_id=f"add-{number}")
    graph.update(leaving.append_column("op", pa.array(["remove"] * leaving.num_rows)), batch_id=f"remove-{number}")
    graph.update(arriving, batch_id=f"add-{number}")  # sent twice by mistake: left out, and the log says so

    # Before any refresh: users who have just come, from their own few items.
    known = len(graph.state_.factors.users)
    new = graph.state_.store.users[known : known + 200]
    served = len(graph.recommend(new, k=10)["user"].unique()) if len(new) else 0

    times = []
    for one in (graph, graph.afresh()):  # what a refresh costs, and what a solve from nothing would
        began = time.perf_counter()
        one.refresh()
        times.append(time.perf_counter() - began)
        shares.append(one.factors().info["captured_energy"])
    moves.append(graph.factors().info["moved"])
    print(
        f"{number:>5}{graph.state_.store.edges:>9,}{graph.state_.store.shape[0]:>7,}{times[0]:>11.2f}{times[1]:>9.2f}"
        f"{shares[-2] / shares[-1]:>18.4f}{moves[-1]:>7.3f}{served:>14} of {len(new)}"
    )

figure = Figure(figsize=(7, 3), dpi=120, layout="constrained")
axes = figure.add_subplot(xlabel="batch", ylabel="captured energy, refreshed / fresh", ylim=(0.98, 1.001))
axes.plot(np.array(shares[::2]) / np.array(shares[1::2]), marker="o", color="#3d6fb6")
Path("out").mkdir(exist_ok=True)
figure.savefig("out/graph_live.png")
print("\npicture: out/graph_live.png")
