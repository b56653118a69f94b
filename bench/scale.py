"""Sizes that no machine here can run: bytes, depth, memory, seconds and certified error of a merge tree, from rates measured here.

    python bench/scale.py [--rows 1e12 --columns 10000 --rank 64 --workers 1000] [--quick] [--json FILE]

The model is checked against real merges (up to 4,096 states) in the same run.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import streamsvd as ss
from streamsvd.engines.contract import settled
from streamsvd.engines.tree import Tree, groups
from streamsvd.testsketch import TEST_ROWS

FAN_INS = (2, 4, 8, 16, 32, 64, 1000)


@dataclass(frozen=True)
class Rates:
    """What one worker does in a second, measured on this machine or given."""

    fold: float  # float32-equivalent multiply-adds
    merge: float  # the same, of merging
    read: float = 1e9  # bytes from storage
    network: float = 1.25e9  # bytes, in each direction
    start: float = 0.01  # seconds that a task costs before it works


@dataclass(frozen=True)
class Size:
    """What is to be folded, by whom."""

    rows: float
    columns: int
    rank: int
    workers: int
    fan_in: int = 8
    states: int = 0  # that enter the tree; 0: one for each worker

    @property
    def kept(self) -> int:
        return max(2 * self.rank, self.rank + 10)


@dataclass(frozen=True)
class Cost:
    """What it takes."""

    state_bytes: int
    moved_bytes: float  # over the network
    to_driver: int
    depth: int
    worker_bytes: float  # memory
    read_seconds: float
    fold_seconds: float
    tree_seconds: float
    bottleneck: str


def state_bytes(columns: int, kept: int, itemsize: int = 4) -> int:
    """Return the bytes of a folded state: rows, test sketch, means, and the Gram matrix of the rows."""
    return (kept + TEST_ROWS) * columns * itemsize + 2 * 8 * columns + 8 * kept * kept + 8 * kept


def cost(size: Size, rates: Rates, itemsize: int = 4) -> Cost:
    """Return what a run takes. All levels but the last have work for every worker only while nodes outnumber them."""
    r, d = size.kept, size.columns
    one, leaves = state_bytes(d, r, itemsize), size.states or size.workers
    fold_row, merge_work = 4.0 * r * d + 110.0 * r * r, 2.0 * (4.0 * r * r * d + 110.0 * r * r * r)
    depth, tree, moved, nodes = groups(leaves, size.fan_in), 0.0, 0.0, leaves
    for _ in range(depth):
        parents = math.ceil(nodes / size.fan_in)
        fan = min(size.fan_in, nodes)
        rounds = math.ceil(parents / size.workers)
        tree += rounds * (rates.start + (fan - 1) * (merge_work / rates.merge + one / rates.network))
        moved += (nodes - parents) * one
        nodes = parents
    read = size.rows * d * itemsize / (rates.read * size.workers)
    fold = size.rows * fold_row / (rates.fold * size.workers)
    parts = {"reading": read, "folding": fold, "the tree": tree}
    memory = itemsize * d * (4 * r + 3 * r) + 2 * one + (16 << 20)
    return Cost(one, moved, one, depth, memory, read, fold, tree, max(parts, key=lambda name: parts[name]))


def error_along(discarded: float, noise_kept: float, level: int, fan_in: int) -> float:
    """Return the certified residual of a tree after so many levels.

    Leaves of one spectrum share their strong directions, and each keeps weak ones of its own. Merging f states leaves room for the weak
    ones of one: a level discards ``1 - 1/f`` of the weak energy that is left, so all levels together discard at most what the leaves kept.
    """
    return discarded + noise_kept * (1.0 - float(fan_in) ** -level)


def leaves_of(count: int, *, columns: int, rank: int, rows: int, seed: int = 0) -> list[Any]:
    """Return states of one spectrum: ``rank`` strong directions, everything else noise of one size."""
    rng = np.random.default_rng(seed)
    strong = np.linalg.qr(rng.standard_normal((columns, rank)))[0].T * (10.0 / np.arange(1, rank + 1))[:, None]
    empty = ss.sketch(columns=columns, rank=rank, kind="truncated", center=False)
    make = lambda: rng.standard_normal((rows, rank)) @ strong + 0.1 * rng.standard_normal((rows, columns))  # noqa: E731
    return [settled(empty.update(make())) for _ in range(count)]


def ledger(state: Any) -> tuple[float, float]:
    """Return the certified discarded energy of a state, and the energy that it keeps beyond its reported rank."""
    core, unit = state.core, 4.0**state.core.exponent
    return core.ledger.discarded * unit, float((core.s[state.rank :] ** 2).sum()) * unit


def checked(count: int, fan_in: int, *, columns: int = 192, rank: int = 6, rows: int = 120) -> list[dict[str, float]]:
    """Merge real states level by level and compare the certified error with the model, which knows 32 of the leaves."""
    nodes = leaves_of(count, columns=columns, rank=rank, rows=rows)
    probe = [ledger(state) for state in nodes[:32]]
    discarded, weak = (count * float(np.mean([one[i] for one in probe])) for i in (0, 1))
    told, level = [], 0
    while len(nodes) > 1:
        groups_of = [nodes[i : i + fan_in] for i in range(0, len(nodes), fan_in)]
        nodes, level = [_fold_left(group) for group in groups_of], level + 1
        found, model = sum(ledger(state)[0] for state in nodes), error_along(discarded, weak, level, fan_in)
        told.append({"states": count, "level": level, "real": found, "model": model, "ratio": found / model})
    factors = nodes[0].factors()
    told[-1]["noise"] = factors.bound.rounding
    return told


def measured(columns: int, rank: int, states: int) -> tuple[Rates, dict[str, float]]:
    """Return the rates of one thread of this machine, and how merging compares with folding the same stack."""
    r = max(2 * rank, rank + 10)
    leaves = leaves32(states, columns, rank, r)
    stack = np.concatenate([state.core.vt * state.core.s[:, None].astype(np.float32) for state in leaves])
    times: dict[str, list[float]] = {"fold32": [], "fold64": [], "merge": []}
    for _ in range(3):
        for name, dtype in (("fold32", "float32"), ("fold64", "float64")):
            rows, empty = (
                stack.astype(dtype),
                ss.sketch(columns=columns, rank=rank, kind="truncated", kept=r, center=False),
            )
            began = time.perf_counter()
            empty.update(rows).factors()
            times[name].append(time.perf_counter() - began)
        began = time.perf_counter()
        tree = Tree(lambda pair: pair[0].merge(pair[1]), 2)
        for state in leaves:
            tree.add(state)
        tree.root()
        times["merge"].append(time.perf_counter() - began)
    took = {name: float(np.median(values)) for name, values in times.items()}
    work, merge_work = (
        stack.shape[0] * (4.0 * r * columns + 110.0 * r * r),
        2.0 * (4.0 * r * r * columns + 110.0 * r**3),
    )
    return Rates(work / took["fold32"], (states - 1) * merge_work / took["merge"]), took


def leaves32(states: int, columns: int, rank: int, r: int) -> list[Any]:
    """Return float32 states with a decaying spectrum."""
    rng = np.random.default_rng(1)
    mix = (rng.standard_normal((4 * r, columns)) / np.arange(1, 4 * r + 1)[:, None]).astype(np.float32)
    empty = ss.sketch(columns=columns, rank=rank, kind="truncated", kept=r, center=False, dtype="float32")
    return [settled(empty.update(rng.standard_normal((3 * r, 4 * r)).astype(np.float32) @ mix)) for _ in range(states)]


def _fold_left(group: list[Any]) -> Any:
    whole = group[0]
    for state in group[1:]:
        whole = whole.merge(state)
    return whole


def shown(seconds: float) -> str:
    return (
        f"{seconds:.2g} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def main() -> None:
    """Measure, check the model, and print the plan."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, kind, value in (
        ("rows", float, 1e12),
        ("columns", int, 10_000),
        ("rank", int, 64),
        ("workers", int, 1000),
    ):
        parser.add_argument(f"--{name}", type=kind, default=value)
    parser.add_argument("--read", type=float, default=1e9, help="bytes/s that a worker reads")
    parser.add_argument("--start", type=float, default=0.01, help="seconds before a task works (Spark: about 0.5)")
    parser.add_argument("--network", type=float, default=1.25e9, help="bytes/s of a worker's network")
    parser.add_argument("--states", type=int, default=48, help="of 128 x 4096, merged and folded (1024 takes 5 GB)")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rates, took = measured(1024 if asked.quick else 4096, 64, 8 if asked.quick else asked.states)
    rates = Rates(rates.fold, rates.merge, asked.read, asked.network, asked.start)
    print(f"one thread: folding {rates.fold:.3g}, merging {rates.merge:.3g} multiply-adds/s")
    for name in ("fold32", "fold64"):
        ratio = took["merge"] / took[name]
        print(
            f"merging a stack of states takes {ratio:.2f}x folding it in float{name[-2:]} (target 1.3{'' if ratio <= 1.3 else ' MISSED'})"
        )
    table = checked(256 if asked.quick else 4096, 2) + checked(64 if asked.quick else 512, 8)
    print("\ncertified error along the tree: states, level, real / model")
    for line in table:
        print(
            f"  {line['states']:5d} {line['level']:3d}  {line['real']:.4g} / {line['model']:.4g} = {line['ratio']:.3f}"
        )
    print(f"\n{asked.rows:.3g} rows x {asked.columns} columns, rank {asked.rank}, {asked.workers} workers")
    plans = []
    for fan_in in FAN_INS:
        size = Size(asked.rows, asked.columns, asked.rank, asked.workers, fan_in)
        one = cost(size, rates)
        plans.append({"fan_in": fan_in, **asdict(one)})
        tree = f"tree {shown(one.tree_seconds):>7}, moved {one.moved_bytes / 1e9:.2f} GB, driver {one.to_driver / 1e6:.1f} MB"
        rest = f"reading {shown(one.read_seconds)}, folding {shown(one.fold_seconds)}: {one.bottleneck}"
        print(f"  fan-in {fan_in:4d}: depth {one.depth:2d}, {tree}, worker {one.worker_bytes / 1e6:.0f} MB; {rest}")
    if asked.json:
        asked.json.write_text(
            json.dumps({"rates": asdict(rates), "seconds": took, "checked": table, "plans": plans}, indent=1)
        )


if __name__ == "__main__":
    main()
