"""Four workers fold their own share of normal traffic; their merged state finds two kinds of anomalies in new rows.

python examples/02_anomalies_from_merged_workers.py [--quick]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import streamsvd as ss

COLUMNS, RANK, WORKERS = 200, 8, 4
ROWS = 2_000 if "--quick" in sys.argv else 15_000
MIXING = np.random.default_rng(0).standard_normal((RANK, COLUMNS))


def traffic(rows: int, *, seed: int, gain: float = 1.0) -> np.ndarray:
    """Normal rows: a few hidden causes and a little noise."""
    rng = np.random.default_rng(seed)
    causes = gain * rng.standard_normal((rows, RANK))
    return (causes @ MIXING + 0.5 * rng.standard_normal((rows, COLUMNS))).astype(np.float32)


with tempfile.TemporaryDirectory() as name:
    files = [Path(name) / f"worker-{i}.svd" for i in range(WORKERS)]
    for i, file in enumerate(files):  # each could run on another machine
        state = ss.sketch(columns=COLUMNS, rank=RANK, kind="truncated")
        for batch in np.array_split(traffic(ROWS, seed=i), 20):
            state = state.update(batch)
        ss.save(state, file)
    states = [ss.load(file) for file in files]
normal = sum(states[1:], start=states[0]).factors()  # + is merge
print(f"merged: {normal.rows:,} rows, certified: at most {100 * normal.bound.relative:.2f} % left over\n")

# Broken: some columns stop following the causes, which the residual sees. Extreme: causes as always, but far too large: the leverage.
kinds = {"normal": traffic(1000, seed=99), "broken": traffic(100, seed=98), "extreme": traffic(100, seed=97, gain=5.0)}
kinds["broken"][:, :6] += 6.0
scores = {kind: (normal.residual(X), normal.leverage(X)) for kind, X in kinds.items()}
limits = [np.quantile(score, 0.99) for score in scores["normal"]]

print(f"{'rows':<10}{'count':>7}{'residual over its limit':>26}{'leverage over its limit':>26}")
for kind, both in scores.items():
    shares = [f"{100 * np.mean(score > limit):>24.1f} %" for score, limit in zip(both, limits, strict=True)]
    print(f"{kind:<10}{len(both[0]):>7}{''.join(shares)}")

figure = Figure(figsize=(7, 5), dpi=120, layout="constrained")
axes = figure.add_subplot(xlabel="leverage (Hotelling's T²)", ylabel="residual", xscale="log", yscale="log")
for (kind, (residual, leverage)), color in zip(scores.items(), ("#9aa5b5", "#d1495b", "#3d6fb6"), strict=True):
    axes.scatter(leverage, residual, s=9, color=color, label=kind)
for line, limit in zip((axes.axhline, axes.axvline), limits, strict=True):
    line(limit, color="#1f2430", linewidth=0.8, linestyle=":")
axes.legend(frameon=False)
Path("out").mkdir(exist_ok=True)
figure.savefig("out/anomalies.png")
print("\npicture: out/anomalies.png")
