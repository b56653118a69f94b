"""The demo: a photograph's patches are streamed from Parquet twice, exactly and truncated, and the certificate is held to the truth."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.flow.batches import batches
from streamsvd.flow.checkpoint import save
from streamsvd.flow.fold import fit
from streamsvd.flow.sinks import draft_of, table_sink
from streamsvd.report import summary
from streamsvd.verify import residual

if TYPE_CHECKING:
    from streamsvd.factors import Factors

SIDE = 8
COLUMNS = SIDE * SIDE * 3
STRIP = 10  # rows of patches in memory at a time
GROUP_BYTES = 4 << 20
COLUMN = "patch"
INK, TRUTH, SOFT = "#1f2430", "#d1495b", "#3d6fb6"


def photograph() -> np.ndarray:
    """Return scikit-learn's bundled photograph: array (427, 640, 3), uint8."""
    from sklearn.datasets import load_sample_image

    return load_sample_image("china.jpg")


def patches(strip: np.ndarray, /, *, step: int = 1) -> np.ndarray:
    """Return the patches of a strip of an image, array (b, 192), float32 in 0 .. 1; they overlap where ``step`` is below 8."""
    windows = np.lib.stride_tricks.sliding_window_view(strip, (SIDE, SIDE), axis=(0, 1))[::step, ::step]
    return windows.transpose(0, 1, 3, 4, 2).reshape(-1, COLUMNS).astype(np.float32) / np.float32(255)


def write_patches(path: Path, /) -> int:
    """Write all overlapping patches of the photograph to a Parquet file, strip by strip; return how many there are."""
    import pyarrow as pa

    image = photograph()
    schema = pa.schema([(COLUMN, pa.list_(pa.float32(), COLUMNS))])
    rows = 0
    packing: dict[str, Any] = {"compression": "zstd", "use_dictionary": False, "use_byte_stream_split": True}
    with table_sink(path, schema, group_bytes=GROUP_BYTES, **packing) as write:
        for top in range(0, image.shape[0] - SIDE + 1, STRIP):
            strip = patches(image[top : top + STRIP + SIDE - 1])
            lists = pa.FixedSizeListArray.from_arrays(pa.array(strip.reshape(-1)), COLUMNS)
            write(pa.record_batch([lists], schema=schema))
            rows += strip.shape[0]
    return rows


def run(folder: Path, /, *, rank: int = 8, kept: int = 32, progress: bool | None = None) -> dict[str, Any]:
    """Run the demo in a folder; return what it measured, ready for JSON.

    Parameters
    ----------
    folder : path
        Created where it does not exist. ``china-patches.parquet``, ``demo.svd`` and ``demo.png`` are written there.
    rank, kept : int
        Of the truncated run.
    progress : bool, optional
        As in `streamsvd.fit`.

    Raises
    ------
    ImportError
        Without matplotlib or scikit-learn; the message says what to install.
    """
    _check_installed()
    folder.mkdir(parents=True, exist_ok=True)
    data, model, image = folder / "china-patches.parquet", folder / "demo.svd", folder / "demo.png"
    rows = write_patches(data)
    options: dict[str, Any] = {"rank": rank, "select": COLUMN, "progress": progress}
    exact, exact_seconds = _timed(data, kind="gram", dtype="float64", **options)
    factors, seconds = _timed(data, kind="truncated", kept=kept, **options)
    factors = replace(factors, info={"kind": "truncated", "kept": kept})
    save(factors, model)
    # The rows are read once more, to hold the certificate to what the plain float64 formula says.
    left = sum(residual(X, factors.vt, mean=factors.mean) for X in batches(data, select=COLUMN))
    values = summary(factors)
    for part, truth in zip(values["components"], exact.s.tolist(), strict=True):
        part |= {"truth": truth, "inside": part["lower"] <= truth <= part["upper"]}
    values["true_residual"] = left
    values["holds"] = left <= values["bound"]["residual"] and all(part["inside"] for part in values["components"])
    values["seconds"] = {"exact": exact_seconds, "truncated": seconds}
    values["rows_per_second"] = {"exact": rows / exact_seconds, "truncated": rows / seconds}
    values["files"] = {"data": str(data), "model": str(model), "picture": str(image)}
    with draft_of(image) as draft:
        picture(draft, factors, values)
    return values


def picture(path: Path, factors: Factors, values: dict[str, Any], /) -> None:
    """Draw the photograph and what 8 numbers a patch keep of it, the components as tiles, and the spectrum with its certificate."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    style = {"color": INK, "fontsize": 11, "loc": "left"}
    spacing = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.02, hspace=0.02)
    figure = Figure(figsize=(12, 8.4), dpi=130, facecolor="white", layout=spacing)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2)
    image = photograph()
    for place, shown, title in (
        (grid[0, 0], image, f"the photograph: {values['rows']:,} patches of 8 × 8 × 3 = {COLUMNS} numbers"),
        (
            grid[0, 1],
            _rebuilt(image, factors),
            f"rebuilt from {factors.rank} numbers a patch (patches overlap: their mean)",
        ),
    ):
        axes = figure.add_subplot(place)
        axes.imshow(shown)
        axes.set_axis_off()
        axes.set_title(title, **style)
    _draw_tiles(figure.add_subplot(grid[1, 0]), factors, style)
    _draw_scree(figure.add_subplot(grid[1, 1]), values, style)
    figure.savefig(path, format="png")


def _timed(source: Path, /, **options: Any) -> tuple[Factors, float]:
    began = time.perf_counter()
    return fit(source, **options), time.perf_counter() - began


def _check_installed() -> None:
    from importlib.util import find_spec

    missing = [name for module, name in (("sklearn", "scikit-learn"), ("matplotlib",) * 2) if find_spec(module) is None]
    if missing:
        msg = f'the demo needs {" and ".join(missing)}, which is not installed: run pip install "streamsvd[demo]"'
        raise ImportError(msg)


def _rebuilt(image: np.ndarray, factors: Factors, step: int = 4) -> np.ndarray:
    """Return the image from k numbers a patch; where patches overlap, their mean."""
    again = factors.inverse_transform(factors.transform(patches(image, step=step)))
    tops, lefts = ((size - SIDE) // step + 1 for size in image.shape[:2])
    again = again.reshape(tops, lefts, SIDE, SIDE, 3)
    total, count = np.zeros(image.shape), np.zeros((*image.shape[:2], 1))
    for y in range(SIDE):
        for x in range(SIDE):
            place = slice(y, y + step * tops, step), slice(x, x + step * lefts, step)
            total[place] += again[:, :, y, x]
            count[place] += 1
    height, width = (tops - 1) * step + SIDE, (lefts - 1) * step + SIDE
    return np.clip(total / np.maximum(count, 1), 0.0, 1.0)[:height, :width]


def _draw_tiles(axes: Any, factors: Factors, style: dict[str, Any]) -> None:
    across = -(-factors.rank // 2)
    for j in range(factors.rank):
        tile = np.asarray(factors.vt[j]).reshape(SIDE, SIDE, 3)
        x, y = 1.12 * (j % across), -1.32 * (j // across)
        axes.imshow(0.5 + 0.5 * tile / np.abs(tile).max(), extent=(x, x + 1, y - 1, y), interpolation="nearest")
        axes.plot([x, x + 1, x + 1, x, x], [y, y, y - 1, y - 1, y], color="#b9bfc9", linewidth=0.8)
        label = f"{j + 1}: {100 * float(factors.explained_variance_ratio[j]):.2f} %"
        axes.text(x + 0.5, y - 1.06, label, ha="center", va="top", color=INK, fontsize=10)
    axes.set(xlim=(-0.02, 1.12 * across - 0.1), ylim=(-1.32 * 2 + 0.04, 0.02))
    axes.set_axis_off()
    axes.set_anchor("N")
    axes.set_title(f"the {factors.rank} components as patches, with their share of the energy", **style)


def _draw_scree(axes: Any, values: dict[str, Any], style: dict[str, Any]) -> None:
    parts = values["components"]
    j = [part["component"] for part in parts]
    truth, low, high = ([part[name] for part in parts] for name in ("truth", "lower", "upper"))
    axes.vlines(j, low, high, color=SOFT, linewidth=11, alpha=0.3, label="certified interval")
    axes.scatter(
        j, [part["s"] for part in parts], s=260, marker="_", linewidth=2.2, color=SOFT, label="truncated stream"
    )
    inside = sum(part["inside"] for part in parts)
    axes.scatter(j, truth, s=24, color=TRUTH, zorder=3, label=f"truth: {inside} of {len(parts)} inside")
    axes.set_yscale("log")
    ticks = [m * 10**e for e in range(-3, 9) for m in (1, 2, 5) if 0.8 * min(low) <= m * 10**e <= 1.3 * max(high)]
    axes.set_yticks(ticks, [f"{tick:,g}" for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.set_xticks(j)
    axes.tick_params(length=0, labelcolor=INK, labelsize=10)
    axes.set_xlabel("component", color=INK, fontsize=10)
    axes.set_title("singular values, and how far off they can be at most", **style)
    axes.grid(axis="y", color="#e3e6eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#b9bfc9")
    axes.legend(frameon=False, fontsize=10, loc="upper right", labelcolor=INK, labelspacing=0.7)
    certified, true = values["bound"]["relative"], values["true_residual"] / values["energy"]
    note = f"energy outside the {len(parts)} components\ncertified at most {100 * certified:.3f} %\ntrue {100 * true:.3f} %"
    axes.text(
        0.985, 0.68, note, transform=axes.transAxes, ha="right", va="top", fontsize=10, color=INK, linespacing=1.6
    )
