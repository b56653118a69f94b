"""One picture for a set of EVA adapters: what each layer's components explain, and the rank it got."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw_eva(result: Any, path: Path, /) -> Path:
    """Draw a row of bars for each layer: explained variance of its candidates in grey, of those it got in colour, and its rank.

    Raises
    ------
    ImportError
        Without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        msg = "pictures are drawn by matplotlib: pip install 'streamsvd[plot]'"
        raise ImportError(msg) from error
    layers = list(result.layers.values())
    figure = Figure(figsize=(9, max(2.5, 0.28 * len(layers) + 1.2)), layout="constrained")
    shares, ranks = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    places = range(len(layers))
    shares.barh(
        places, [float(one.explained_variance_ratio.sum()) for one in layers], color="0.85", label="all candidates"
    )
    shares.barh(places, [one.captured for one in layers], color="C0", label="the components taken")
    ranks.barh(places, [one.rank for one in layers], color="C1")
    ranks.axvline(result.rank, color="0.3", linewidth=1, linestyle=":")
    shares.set_yticks(list(places), [one.name for one in layers], fontsize=7)
    shares.invert_yaxis()
    shares.set_xlabel("share of the variance of the layer's inputs")
    ranks.set_xlabel(f"rank (dotted: {result.rank}, as asked for)")
    shares.legend(fontsize=7, loc="lower right")
    figure.savefig(path, dpi=130)
    return path


def draw_adapters(adapters: Any, path: Path, /) -> Path:
    """Draw the singular values that each adapter took, one line for each layer.

    Raises
    ------
    ImportError
        Without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        msg = "pictures are drawn by matplotlib: pip install 'streamsvd[plot]'"
        raise ImportError(msg) from error
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for one in adapters.layers.values():
        axes.plot(range(1, one.rank + 1), one.s.cpu().numpy(), linewidth=1, label=one.name)
    axes.set_yscale("log")
    axes.set_xlabel("component")
    axes.set_ylabel("singular value")
    axes.set_title(f"{adapters.method}, rank {adapters.rank}")
    if len(adapters.layers) <= 12:
        axes.legend(fontsize=6)
    figure.savefig(path, dpi=130)
    return path
