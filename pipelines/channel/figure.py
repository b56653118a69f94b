"""The picture of a sweep: error and support recovery against SNR, medians with quartile bands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streamsvd.pipelines.channel.compare import LABELS

COLORS = ("#3d6fb6", "#d1495b", "#2a9d8f", "#e9a03b", "#7b5ea7", "#8c6d46", "#4c566a", "#c77fb0", "#9aa5b5")
PLAIN = {"oracle": ("#1f2430", ":"), "omp": ("#9aa5b5", "--"), "komp": ("#6c7686", "--")}


def draw(rows: Sequence[dict[str, Any]], path: str | Path, /) -> Path:
    """Draw the rows of `sweep` and write a PNG, PDF or SVG; return its path.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        msg = 'the picture needs matplotlib, which is not installed: run pip install "streamsvd[plot]"'
        raise ImportError(msg) from error
    figure = Figure(figsize=(10, 4.4), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for i, method in enumerate(methods):
        mine = sorted((row for row in rows if row["method"] == method), key=lambda row: row["snr_db"])
        color, line = PLAIN.get(method, (COLORS[i % len(COLORS)], "-"))
        for axes, name in ((left, "nmse"), (right, "support")):
            low, mid, high = zip(*(row[name] for row in mine), strict=True)
            snr = [row["snr_db"] for row in mine]
            axes.fill_between(snr, low, high, color=color, alpha=0.15, linewidth=0)
            axes.plot(snr, mid, color=color, linestyle=line, marker="o", markersize=4, label=LABELS[method])
    left.set(xlabel="SNR (dB)", ylabel="normalised squared error", yscale="log")
    right.set(xlabel="SNR (dB)", ylabel="support recovery rate", ylim=(-0.02, 1.05))
    left.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    first = rows[0]
    figure.suptitle(f"{first['scenario']}, {first['trials']} trials: medians and quartiles", fontsize=11)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)
    return target
