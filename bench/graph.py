"""The graph pipeline measured: ``python bench/graph.py [refresh | recommend | threshold | lightgcl] [--quick] [--json FILE]``.

``refresh`` and ``threshold`` run on generated graphs; the others read yelp_sparse in the folder that STREAMSVD_DATA names. Recall and NDCG
are averaged over all users of the test split; one who has no training edge counts as 0. Choices are made on the validation split.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import graph_peers as peers
import machine

GRAPHS = {"1e6": (100_000, 40_000, 10**6), "1e7": (1_000_000, 400_000, 10**7), "quick": (6_000, 3_000, 60_000)}


def main() -> None:
    """Read the options, fix the threads before anything numerical is imported, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("table", nargs="?", choices=tuple(TABLES), help="default: all but lightgcl, which trains for hours")
    add("--quick", action="store_true", help="small graphs, one seed, two epochs: to see that it runs")
    add("--graph", choices=tuple(GRAPHS), default="1e7", help="for refresh (default: 1e7)")
    add("--yelp", action="store_true", help="for refresh: yelp_sparse in place of a generated graph")
    add("--batches", type=int, default=10, help="for refresh (default: 10)")
    add("--epochs", type=int, default=8, help="for lightgcl (default: 8)")
    add("--threads", type=int, default=1, help="for everyone (default: 1)")
    add(
        "--json",
        metavar="FILE",
        help="keep the rows, and beside them as Markdown (.md); a bare name goes to bench/results/",
    )
    options = parser.parse_args()
    machine.set_threads(options.threads)
    needs_data = ("recommend", "lightgcl")
    for name in [options.table] if options.table else [name for name in TABLES if name != "lightgcl"]:
        if options.table is None and name in needs_data and not os.environ.get("STREAMSVD_DATA"):
            print(f"{name}: left out, set STREAMSVD_DATA to the folder that holds recsys/yelp_sparse\n")
            continue
        described, rows = machine.describe(options.threads), TABLES[name](options)
        print(f"{name}\n{plain(rows)}\n\nMachine: {machine.sentence(described)}.\n", flush=True)
        if options.json:
            file = results_file(options.json, "" if options.table else f"-{name}")
            file.write_text(json.dumps({"machine": described, "rows": rows}, indent=1) + "\n")
            file.with_suffix(".md").write_text(f"{markdown(rows)}\n\nMachine: {machine.sentence(described)}.\n")


def results_file(name: str, suffix: str = "") -> Path:
    """Return where results go: a bare name belongs to bench/results."""
    file = Path(name) if Path(name).parent != Path() else Path(__file__).parent / "results" / name
    return file.with_name(f"{file.stem}{suffix}.json")


def refresh(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Half of the edges, then ten batches: each refresh against a fresh solve, and one of equal capture (at the first batch)."""
    from streamsvd.pipelines.graph import GraphSVD
    from streamsvd.pipelines.graph.synthetic import power_law

    if options.yelp:
        table = peers.splits()[0]
        table = table.take(peers.order(table.num_rows))
    else:
        table = power_law(*GRAPHS["quick" if options.quick else options.graph])
    n, rows = table.num_rows, []
    graph = GraphSVD(rank=16 if options.quick else 64, regularise=0.5).update(table.slice(0, n // 2))
    graph.refresh()
    passes = None
    for number in range(options.batches):
        taken = peers.clock(lambda at=number: graph.update(table.slice(n // 2 + at * n // 20, n // 20)))
        warm, cold = peers.clock(graph.refresh), graph.afresh()
        fresh = peers.clock(cold.refresh)
        captured = [one.factors().info["captured_energy"] for one in (graph, cold)]
        passes = peers.cheapest(graph, captured[0]) if passes is None else passes
        equal, reached = peers.fresh_of(graph, passes)
        peers.say(f"batch {number}: {warm[0]:.2f} s, fresh {fresh[0]:.2f} s")
        rows.append(
            {
                "edges": graph.state_.store.edges,
                "update s": taken[0],
                "refresh s": warm[0],
                "fresh s": fresh[0],
                "fresh, equal capture s": equal[0],
                "cpu / fresh": warm[1] / fresh[1],
                "cpu / equal": warm[1] / equal[1],
                "captured / fresh": captured[0] / captured[1],
                "captured / equal": captured[0] / reached,
                "passes": graph.factors().info["passes"],
                "bytes/edge": peers.edge_bytes(graph) / graph.state_.store.edges,
            }
        )
    return rows


def recommend(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Training-free ranking: regularised, exact and svd_lowrank factors, ranks and t, and popularity."""
    train, valid, test = peers.splits()
    rows = []
    ranks = (64,) if options.quick else (5, 16, 32, 64)
    for t in (0.0, 0.5) if options.quick else (0.0, 0.25, 0.5, 1.0):
        graph = peers.graph_of(train, t)
        seconds = peers.clock(graph.refresh)
        for rank in ranks:
            part = peers.at_rank(graph, rank)
            served = peers.clock(lambda part=part: part.recommend(k=20))
            row = {"factors": f"t={t:g}" + (", giant component" if t == 0 else ""), "rank": rank, "svd s": seconds[0]}
            rows.append(
                row | {"all users s": served[0], "all users cpu s": served[1]} | peers.scores(part, valid, test)
            )
    graph = peers.graph_of(train, 0.0)
    graph.refresh()
    for t in (0.0, 0.5):
        graph = peers.lowrank(peers.graph_of(train, t), 64, seed=0)
        rows.append({"factors": f"svd_lowrank(64, 2), t={t:g}", "rank": 64} | peers.scores(graph, valid, test))
    rows.append({"factors": "popularity", "rank": 0} | peers.popular(graph, valid, test))
    return rows


def threshold(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Participation at t=0 against the t that ranks held-out edges best: what the automatic choice without validation rests on."""
    from streamsvd.pipelines.graph.synthetic import power_law

    rows = []
    cases = [("yelp_sparse", *peers.splits()[:2])] if os.environ.get("STREAMSVD_DATA") else []
    if os.environ.get("STREAMSVD_DATA"):
        cases.append(("frappe", *peers.frappe()))
    for degree in (3, 5, 10, 20, 50):
        for loyalty in (0.3, 0.7):
            m, n = (1_500, 1_000) if options.quick else (12_000, 8_000)
            edges = power_law(m, n, degree * n, communities=40, loyalty=loyalty, seed=degree)
            cut = int(0.9 * edges.num_rows)
            cases.append(
                (f"generated, {degree} edges an item, loyalty {loyalty}", edges.slice(0, cut), edges.slice(cut))
            )
    for name, train, valid in cases:
        rows.append({"graph": name, **_judged(train, valid, 16 if options.quick else 64)})
        peers.say(str(rows[-1]))
    return rows


def _judged(train: Any, valid: Any, rank: int) -> dict[str, Any]:
    import numpy as np

    from streamsvd.pipelines.graph import model
    from streamsvd.pipelines.graph.tune import recall

    found: dict[str, Any] = {}
    for t in (0.0, 0.25, 0.5, 1.0):
        graph = peers.graph_of(train, t, rank)
        f = graph.factors()
        if t == 0:
            items = int((f.item_scale > 0).sum())
            found |= {"items": items, "mean degree": graph.state_.store.edges / items}
            found["participation"] = float(np.median(model.participation(f.v)))
            found["share"] = found["participation"] / items
        found[f"t={t:g}"] = recall(graph.state_, valid)
    return found


def cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Return the head and the rows of a table as text."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [names, *([f"{v:.4g}" if isinstance(v := row.get(k, ""), float) else str(v) for k in names] for row in rows)]


def plain(rows: list[dict[str, Any]]) -> str:
    """Return a table for a terminal."""
    lines = cells(rows)
    widths = [max(len(x) for x in column) for column in zip(*lines, strict=True)]
    first, *others = widths
    return "\n".join(
        "  ".join([line[0].ljust(first), *(x.rjust(w) for x, w in zip(line[1:], others, strict=True))])
        for line in lines
    )


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return a table in Markdown."""
    head, *body = cells(rows)
    rule = ["---", *(["---:"] * (len(head) - 1))]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *body])


def lightgcl(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train LightGCL and its variants."""
    import graph_training

    return graph_training.table(options)


TABLES = {"refresh": refresh, "recommend": recommend, "lightgcl": lightgcl, "threshold": threshold}


if __name__ == "__main__":
    main()
