"""Matrices that are held: the SVD, SpMM and memory tables (``python bench/matrices.py``, options below).

Every library runs in a process of its own, since thread pools that spin share the cores with whoever runs next; the processes take
turns, run after run, so that a machine that drifts drifts for all. Captured energy is measured in float64 against ``svds``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import machine

if TYPE_CHECKING:
    from collections.abc import Callable

CACHE = Path(__file__).parent / ".cache"
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Graph:
    """A bipartite graph, symmetrically normalised: from real edges (``t`` regularises), or generated with power-law degrees."""

    name: str
    title: str
    shape: tuple[int, int] = (0, 0)
    edges: int = 0
    giant: bool = False
    t: float = 0.0


GRAPHS = {
    g.name: g
    for g in (
        Graph("yelp", "yelp_sparse, giant component", giant=True),
        Graph("yelp-t", "yelp_sparse, whole, t = 0.5", t=0.5),
        Graph("law6", "power law, 100,000 x 40,000, 10^6 edges", (100_000, 40_000), 10**6),
        Graph("law7", "power law, 1,000,000 x 400,000, 10^7 edges", (1_000_000, 400_000), 10**7),
        Graph("small", "power law, 6,000 x 3,000, 40,000 edges", (6_000, 3_000), 40_000),
    )
}
SVD = {"yelp": 5, "law6": 5, "law7": 5, "yelp-t": 64}
SPMM = {"yelp": (16, 64), "law6": (16, 64), "law7": (16, 64)}
METHODS = ("ours", "ours .99", "ours .999", "torch", "sklearn", "svds", "svds .99")


def graph(name: str) -> Any:
    """Return the normalised graph as a float32 CSR array with int32 indices, made once and kept in ``bench/.cache``."""
    from scipy.sparse import csr_array, load_npz, save_npz

    file = CACHE / f"graph-{name}.npz"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        part = file.with_name(f"{os.getpid()}-{file.name}")
        save_npz(part, normalised(*edges(GRAPHS[name]), GRAPHS[name]), compressed=False)
        part.replace(file)
    return csr_array(load_npz(file))


def available(name: str) -> bool:
    """Tell whether a graph can be made: the real ones need the folder that STREAMSVD_DATA names."""
    return GRAPHS[name].edges > 0 or bool(os.environ.get("STREAMSVD_DATA"))


def edges(g: Graph) -> Any:
    """Return users, items and the shape."""
    import numpy as np

    if g.edges:
        keys = np.empty(0, np.int64)
        for draw in range(1000):
            rng = np.random.default_rng([draw, *g.shape, g.edges])
            drawn = power_law(rng, g.shape[0], g.edges, 0.6) * g.shape[1] + power_law(rng, g.shape[1], g.edges, 0.8)
            keys = np.unique(np.concatenate([keys, drawn]))
            if keys.size >= g.edges:
                break
        keys = np.sort(np.random.default_rng(g.edges).permutation(keys)[: g.edges])
        return keys // g.shape[1], keys % g.shape[1], g.shape
    import pyarrow.parquet as pq

    table = pq.read_table(Path(os.environ["STREAMSVD_DATA"]) / "recsys" / "yelp_sparse" / "train.parquet")
    return table["user"].to_numpy(), table["item"].to_numpy(), (42_712, 26_822)


def power_law(rng: Any, size: int, count: int, exponent: float) -> Any:
    """Draw ids whose frequencies fall as ``(rank + 10)^-exponent``, in random order; the order does not depend on the draw."""
    import numpy as np

    total = np.cumsum((np.arange(size) + 11.0) ** -exponent)
    order = np.random.default_rng(size).permutation(size)
    return order[np.searchsorted(total, rng.random(count) * total[-1])]


def normalised(users: Any, items: Any, shape: tuple[int, int], g: Graph) -> Any:
    """Return ``A_ui / sqrt((d_u + tau_u) (d_i + tau_i))``, tau = t times the mean degree, of the giant component where asked for."""
    import numpy as np
    from scipy.sparse import block_array, csr_array
    from scipy.sparse.csgraph import connected_components

    A = csr_array((np.ones(users.size, np.float32), (users.astype(np.int32), items.astype(np.int32))), shape=shape)
    if g.giant:
        _, label = connected_components(block_array([[None, A], [A.T, None]]).tocsr())
        chosen = label == np.bincount(label).argmax()
        A = A[chosen[: shape[0]]][:, chosen[shape[0] :]].tocsr()
    du, di = A.sum(axis=1), A.sum(axis=0)
    du, di = (np.maximum(x + g.t * x.mean(), 1e-9) for x in (du, di))
    A.data = (A.data / np.sqrt(np.repeat(du, np.diff(A.indptr)) * di[A.indices])).astype(np.float32)
    return A


def best(name: str, k: int) -> float:
    """Return the energy of the best k columns by ``svds`` in float64."""
    import numpy as np
    from scipy.sparse.linalg import svds

    file = CACHE / f"best-{name}-{k}.json"
    if not file.exists():
        A = graph(name).astype(np.float64)
        tol = 1e-6 if A.nnz > 10**6 else 0
        s = svds(A, k=k, tol=tol, ncv=max(40, 2 * k + 20), return_singular_vectors=False, random_state=0)
        file.write_text(json.dumps(float(np.sum(s**2))))
    return json.loads(file.read_text())


def svd_methods(A: Any, k: int) -> dict[str, Callable[[], Any]]:
    """Return callables that give V (d, k)."""
    from scipy.sparse.linalg import svds

    import streamsvd.randomized as ours

    ncv = 20 if k <= 5 else 2 * k + 1
    fast, close = ({"passes": 11}, {"passes": 14}) if k <= 5 else ({"tol": 0.03}, {"tol": 0.005})
    seeds = iter(range(10**6))

    def torch_way() -> Any:
        import numpy as np
        import torch

        rows = np.repeat(np.arange(A.shape[0]), np.diff(A.indptr))
        T = torch.sparse_coo_tensor(np.stack([rows, A.indices]), A.data, A.shape, check_invariants=False).coalesce()
        return lambda: torch.svd_lowrank(T, q=k, niter=2)[2].numpy()

    def sklearn_way() -> Any:
        from sklearn.utils.extmath import randomized_svd

        return lambda: randomized_svd(A, k, random_state=next(seeds))[2].T

    return {
        "ours": lambda: lambda: ours.svd(A, k, seed=next(seeds)).vt.T,
        "ours .99": lambda: lambda: ours.svd(A, k, **fast, seed=next(seeds)).vt.T,
        "ours .999": lambda: lambda: ours.svd(A, k, **close, seed=next(seeds)).vt.T,
        "torch": torch_way,
        "sklearn": sklearn_way,
        "svds": lambda: lambda: svds(A, k=k, tol=0.1, ncv=ncv, random_state=next(seeds))[2].T,
        "svds .99": lambda: lambda: svds(A, k=k, tol=0.15, ncv=ncv, random_state=next(seeds))[2].T,
    }


def work(task: str, name: str, method: str, size: int, threads: int) -> None:
    """Serve as a worker: run once for each line of input, and answer with one line of JSON."""
    machine.set_threads(threads)
    A = graph(name)
    call = spmm_call(A, method, size, threads) if task == "spmm" else svd_methods(A, size)[method]()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    wide = A.astype("float64") if task == "svd" else None
    call()
    print("ready", flush=True)
    for _ in sys.stdin:
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(repeats := 1 if task == "svd" else max(1, 4 * 10**8 // (A.nnz * size))):
            V = call()
        answer = {"seconds": (time.perf_counter() - start) / repeats, "cpu": (time.process_time() - cpu) / repeats}
        if wide is not None:
            answer["captured"] = float(((wide @ V.astype("float64")) ** 2).sum())
        print(json.dumps(answer), flush=True)


def spmm_call(A: Any, method: str, width: int, threads: int) -> Any:
    """Return a callable that multiplies by a matrix with so many columns."""
    import numpy as np

    X = np.random.default_rng(0).standard_normal((A.shape[1], width), dtype=np.float32)
    if method == "scipy":
        return lambda: A @ X
    from streamsvd.kernels.spmm import spmm

    out = np.empty((A.shape[0], width), np.float32)
    return lambda: spmm(A, X, out, threads=threads)


def race(
    task: str, name: str, entrants: list[tuple[str, int]], size: int, runs: int
) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Start a worker for each (method, threads) and let them take turns."""
    workers, found = {}, {entrant: [] for entrant in entrants}
    for method, threads in entrants:
        command = [sys.executable, __file__, "--worker", task, name, method, str(size), str(threads)]
        env = machine.environment(threads) | {"OMP_WAIT_POLICY": "passive"}
        worker = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        workers[method, threads] = worker
        if worker.stdout.readline().strip() != "ready":
            msg = f"{method} failed on {name}"
            raise RuntimeError(msg)
    for _ in range(runs):
        for entrant, worker in workers.items():
            worker.stdin.write("\n")
            worker.stdin.flush()
            found[entrant].append(json.loads(worker.stdout.readline()))
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return found


def svd_table(names: list[str], runs: int, threads: list[int]) -> list[dict[str, Any]]:
    """Measure and print the SVD table; ratios are of medians, to torch.svd_lowrank(q=k, niter=2)."""
    rows = []
    for name in names:
        k, optimum = SVD.get(name, 5), best(name, SVD.get(name, 5))
        print(
            f"\n{GRAPHS[name].title}, rank {k}\n{'method':<12}{'threads':>8}{'ms':>10}{'cpu ms':>10}{'to torch':>10}{'captured':>20}"
        )
        for count in threads:
            chosen = [m for m in METHODS if m != "svds .99" or k > 5]
            found = race("svd", name, [(m, count) for m in chosen], k, runs)
            base = median(x["seconds"] for x in found["torch", count])
            for method in chosen:
                seen = found[method, count]
                ms, cpu = (1e3 * median(x[key] for x in seen) for key in ("seconds", "cpu"))
                held = sorted(x["captured"] / optimum for x in seen)
                rows.append(
                    {
                        "graph": name,
                        "rank": k,
                        "method": method,
                        "threads": count,
                        "ms": ms,
                        "cpu": cpu,
                        "captured": held,
                    }
                )
                spread = f"{median(held):.4f} [{held[0]:.4f}, {held[-1]:.4f}]"
                print(f"{method:<12}{count:>8}{ms:>10.1f}{cpu:>10.1f}{ms / 1e3 / base:>10.2f}   {spread}", flush=True)
    return rows


def spmm_table(names: list[str], runs: int, threads: list[int]) -> list[dict[str, Any]]:
    """Measure and print the SpMM table: gathered GB/s counts the numbers of X that the entries ask for, most of them from caches."""
    rows = []
    print(
        f"\n{'graph':<8}{'l':>4}{'SciPy ms':>10}"
        + "".join(f"{f'ours {c} ms':>12}{'GB/s':>8}" for c in threads)
        + f"{'to SciPy':>10}{'2 to 1':>8}"
    )
    for name in names:
        entries = graph(name).nnz
        for width in SPMM.get(name, (16, 64)):
            found = race("spmm", name, [("scipy", 1), *(("ours", c) for c in threads)], width, runs)
            ms = {entrant: 1e3 * median(x["seconds"] for x in seen) for entrant, seen in found.items()}
            text = "".join(f"{ms['ours', c]:>12.2f}{entries * width * 4e-6 / ms['ours', c]:>8.1f}" for c in threads)
            gain = f"{ms['ours', 1] / ms['ours', 2]:>8.2f}" if {1, 2} <= set(threads) else ""
            faster = ms["scipy", 1] / ms["ours", threads[0]]
            rows.append({"graph": name, "width": width, "ms": {f"{m} {c}": x for (m, c), x in ms.items()}})
            print(f"{name:<8}{width:>4}{ms['scipy', 1]:>10.2f}{text}{faster:>10.2f}{gain}", flush=True)
    return rows


def memory_table(names: list[str]) -> list[dict[str, Any]]:
    """Measure and print the peak memory of ``svd``, each graph in a process of its own."""
    rows = []
    print(
        f"\n{'graph':<8}{'CSR MB':>8}{'basis MB':>10}{'factors MB':>12}{'peak MB (CSR included)':>24}{'limit MB':>10}"
    )
    for name in names:
        command = [sys.executable, __file__, "--worker", "memory", name, "ours", str(SVD.get(name, 5)), "1"]
        done = subprocess.run(command, env=machine.environment(1), capture_output=True, text=True, check=True)
        x = json.loads(done.stdout.splitlines()[-1])
        limit = 2.2 * x["csr"] + 1.5 * (x["basis"] + x["factors"])
        rows.append({"graph": name, **x, "limit": limit})
        print(
            f"{name:<8}{x['csr']:>8.1f}{x['basis']:>10.1f}{x['factors']:>12.1f}{x['peak']:>24.1f}{limit:>10.1f}",
            flush=True,
        )
    return rows


def weigh(name: str, k: int) -> dict[str, float]:
    """Return in MB what the memory table shows; a small graph goes first, so that compiled code and libraries are in place."""
    import memory

    import streamsvd.randomized as ours

    machine.set_threads(1)
    ours.svd(graph("small"), k)
    A = graph(name)
    csr = (A.data.nbytes + A.indices.nbytes + A.indptr.nbytes) / 1e6
    before = memory._start()
    f = ours.svd(A, k)
    peak = (memory.peak() - before) / 1e6 + csr
    basis, factors = f.info["columns"] * min(A.shape) * 4e-6, (f.u.nbytes + f.vt.nbytes) / 1e6
    return {"csr": csr, "basis": basis, "factors": factors, "peak": peak}


def main(arguments: list[str] | None = None) -> None:
    """Read the options and make the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="a small generated graph only")
    add("--only", default="spmm,svd,memory", help="tables, with commas (default: all)")
    add("--graphs", help=f"graphs, with commas, of {','.join(GRAPHS)}")
    add("--runs", type=int, default=5, help="timed runs (default: 5)")
    add("--threads", default="1,2", help="thread counts, with commas (default: 1,2)")
    add("--json", metavar="FILE", help="keep the results; a bare name goes to bench/results/")
    add("--worker", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        task, name, method, size, threads = options.worker
        if task == "memory":
            return print(json.dumps(weigh(name, int(size))))
        return work(task, name, method, int(size), int(threads))
    names = options.graphs.split(",") if options.graphs else ["small"] if options.quick else list(SVD)
    for name in [n for n in names if not available(n)]:
        print(f"{GRAPHS[name].title}: left out, set STREAMSVD_DATA to the folder of real data")
    names, threads = [n for n in names if available(n)], [int(c) for c in options.threads.split(",")]
    for name in names:
        graph(name)
    results: dict[str, Any] = {"machine": machine.describe(threads[0])}
    print(machine.sentence(results["machine"]))
    for table in options.only.split(","):
        make = {"svd": svd_table, "spmm": spmm_table, "memory": memory_table}[table]
        spmm_names = [n for n in names if n != "yelp-t"]
        results[table] = (
            make(names) if table == "memory" else make(spmm_names if table == "spmm" else names, options.runs, threads)
        )
    if options.json:
        file = Path(options.json) if Path(options.json).parent != Path() else RESULTS / options.json
        file.write_text(json.dumps(results, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
