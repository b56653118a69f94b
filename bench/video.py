"""The background model measured: ``python bench/video.py speed | accuracy | tampering | memory [--quick] [--json FILE]``.

Without STREAMSVD_DATA ``speed`` runs on the embedded scene; ``accuracy`` and ``tampering`` read CDnet's highway in the folder that it
names. One thread for everyone; a figure that misses its target is marked.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import machine
import memory as memories
import video_peers as peers

SIZES = {"320x240": (240, 320), "1280x720": (720, 1280)}
# Of the speed of MOG2 and KNN on the same frames: by the batch, and one by one.
GOALS = {"gray": {"MOG2": (4.0, 2.5), "KNN": (4.0, None)}, "colour": {"MOG2": (3.0, 1.5), "KNN": (None, None)}}
ACCURACY = {"colour": (0.90, 0.950), "gray": (0.87, 0.93)}
LIMITS = {"gray": 250.0, "colour": 600.0}


def main() -> None:
    """Read the options, fix the threads before anything numerical is imported, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", choices=tuple(TABLES), default="speed")
    parser.add_argument("--quick", action="store_true", help="few frames and runs: to see that it runs")
    parser.add_argument("--runs", type=int, default=7, help="turns of each method, for speed (default: 7)")
    parser.add_argument("--json", metavar="FILE", help="keep the rows")
    options = parser.parse_args()
    machine.set_threads(1)
    if options.table in ("accuracy", "tampering") and not os.environ.get("STREAMSVD_DATA"):
        parser.error(f"{options.table} reads highway: set STREAMSVD_DATA to the folder that holds video/cdnet_highway")
    rows = TABLES[options.table](options)
    _print(rows)
    print(f"\nMachine: {machine.sentence(machine.describe(1))}.")
    if options.json:
        Path(options.json).write_text(json.dumps({"machine": machine.describe(1), "rows": rows}, indent=1))


def speed(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Nanoseconds of processor time a pixel, ours in batches of 16 and 64 and one by one, against OpenCV's subtractors."""
    import cv2
    import numpy as np

    from streamsvd.pipelines.video import BackgroundModel

    cv2.setNumThreads(1)
    held = bool(os.environ.get("STREAMSVD_DATA"))
    source = peers.highway(quick=True)[0][300:] if held else peers.scene(quick=True)[0]
    rows = []
    for size, (h, w) in SIZES.items():
        frames = np.stack([cv2.resize(frame, (w, h)) for frame in source[: 64 if options.quick or h > 400 else 256]])
        for kind in ("gray", "colour"):
            shown = frames if kind == "colour" else peers.gray(frames)
            batch, single = (BackgroundModel(color=kind == "colour") for _ in range(2))
            for model in (batch, single):  # past the medians of the start, as nearly always
                for _ in range(288 // len(shown) + 1):
                    model.update(shown)
            work = {f"update {b}": lambda m=batch, x=shown, b=b: _batches(m, x, b) for b in (16, 64)}
            work["apply"] = lambda m=single, x=shown: [m.apply(frame) for frame in x]
            for name in ("MOG2", "KNN"):
                apply = peers.subtractor(name)
                work[name] = lambda f=apply, x=shown: [f(frame) for frame in x]
            target = np.empty_like(shown)
            work["copy"] = lambda x=shown, y=target: np.copyto(y, x)
            seconds = peers.turns(work, 1 if options.quick else options.runs)
            rows.append({"frames": f"{size} {kind}", **_speeds(kind, seconds, shown)})
    return rows


def _batches(model: Any, frames: Any, size: int) -> None:
    for i in range(0, len(frames), size):
        model.update(frames[i : i + size])


def _speeds(kind: str, seconds: dict[str, float], frames: Any) -> dict[str, Any]:
    pixels, values = frames.shape[0] * frames.shape[1] * frames.shape[2], frames.size // frames.shape[0]
    channels = values * frames.shape[0] // pixels
    row: dict[str, Any] = {f"{name} ns/px": 1e9 * seconds[name] / pixels for name in seconds if name != "copy"}
    row["update fps"] = len(frames) / seconds["update 16"]
    for peer, goals in GOALS[kind].items():
        for name, goal in zip(("update 16", "apply"), goals, strict=True):
            row[f"{name} / {peer}"] = _marked(seconds[peer] / seconds[name], goal, above=True)
    # Read the frame, write the mask, and bring the state in and out once in 16 frames.
    row["bytes/px"] = channels + 1 + 2 * 4 * (3 * channels + 3) / 16
    row["of bandwidth"] = row["bytes/px"] * pixels / seconds["update 16"] / (2 * frames.nbytes / seconds["copy"])
    return row


def accuracy(options: argparse.Namespace) -> list[dict[str, Any]]:
    """CDnet's F, raw and after a 5 x 5 median, on highway as it is and with 168 tampered frames, and on the embedded scene."""
    import numpy as np

    frames, truth, region = peers.highway(quick=options.quick)
    altered, bad = _tampered(frames)
    numbers, clean = range(peers.KNOWN, len(frames)), [k for k in range(peers.KNOWN, len(frames)) if not bad[k]]
    shown, marked = peers.scene(quick=options.quick)
    rows = []
    for name, masks_of in _methods().items():
        step = 10 if name == "PCP" else 1
        few = range(0, len(frames), step)
        masks = masks_of(frames[::step])
        scored = range(-(-peers.KNOWN // step), len(few))
        row: dict[str, Any] = {"method": name}
        for column, found in (("F", masks), ("F 5x5", peers.cleaned(masks))):
            row[column] = peers.f_measure(found, truth[::step], region, scored)
        if step == 1:
            kept = [peers.f_measure(found, truth, region, clean) for found in (masks, masks_of(altered))]
            row |= {"F, same frames": kept[0], "F, 168 tampered": kept[1]}
            found = masks_of(shown)
            row["F scene"] = peers.f_measure(found, marked, None, range(64, len(shown)))
            row["F scene 5x5"] = peers.f_measure(peers.cleaned(found), marked, None, range(64, len(shown)))
        if name.startswith("streamsvd"):
            goals = ACCURACY[name.split()[1]]
            row |= {
                column: _marked(row[column], goal, above=True)
                for column, goal in zip(("F", "F 5x5"), goals, strict=True)
            }
            lost = row["F, same frames"] - row["F, 168 tampered"]
            row["lost"] = _marked(lost, 0.005, above=False)
        row["frames"] = len(numbers) if step == 1 else len(scored)
        rows.append(row)
        print(row, file=sys.stderr)
        del masks
    assert np.count_nonzero(bad) == 168 or options.quick
    return rows


def _methods() -> dict[str, Any]:
    import numpy as np

    from streamsvd.pipelines.video import BackgroundModel

    def ours(color: bool) -> Any:
        def masks(frames: np.ndarray) -> np.ndarray:
            model = BackgroundModel(color=color)
            return np.concatenate([model.update(frames[i : i + 64]).mask for i in range(0, len(frames), 64)])

        return masks

    def opencv(name: str) -> Any:
        def masks(frames: np.ndarray) -> np.ndarray:
            apply = peers.subtractor(name)
            return np.stack([apply(frame) for frame in frames])

        return masks

    return {
        "streamsvd colour": ours(True),
        "streamsvd gray": ours(False),
        "MOG2": opencv("MOG2"),
        "KNN": opencv("KNN"),
        "median of 100, gray": lambda x: peers.median_masks(peers.gray(x)),
        "median of 100": peers.median_masks,
        "SVD rank 1, gray": lambda x: peers.svd_masks(peers.gray(x)),
        "PCP": lambda x: peers.pcp_masks(peers.gray(x)),
    }


def _tampered(frames: Any) -> tuple[Any, Any]:
    """Return frames with six runs of 28 covered, noisy or shifted ones, and which they are."""
    import numpy as np

    kinds = peers.alterations(np.random.default_rng(0))
    altered, bad = frames.copy(), np.zeros(len(frames), bool)
    for run, kind in enumerate(("covered", "noise", "shift 40", "covered", "noise", "shift 40")):
        for k in range(520 + 190 * run, min(548 + 190 * run, len(frames))):
            altered[k], bad[k] = kinds[kind](frames[k], k), True
    return altered, bad


def tampering(options: argparse.Namespace) -> list[dict[str, Any]]:
    """144 frames of each kind, each alone in clean highway: how many are flagged, and how many others; an exposure jump that stays."""
    import numpy as np

    from streamsvd.pipelines.video import BackgroundModel

    colour, truth, region = peers.highway(quick=options.quick)
    at = np.arange(300, 300 + 9 * (30 if options.quick else 144), 9)
    rows = []
    for shade, frames in (("colour", colour), ("gray", peers.gray(colour))):
        color = shade == "colour"
        clean = BackgroundModel(color=color).update(frames)
        rows.append({"frames": shade, "kind": "clean", "altered": 0, "false": int(clean.tampered.sum())})
        for kind, alter in peers.alterations(np.random.default_rng(1)).items():
            shown = frames.copy()
            for k in at:
                shown[k] = alter(frames[k], int(k))
            out = BackgroundModel(color=color).update(shown)
            named = np.array([out.event[k] == "exposure" for k in at]) if kind.startswith("exp") else out.tampered[at]
            others = int(out.tampered.sum() - out.tampered[at].sum())
            wanted = None if kind == "cover 20 %" else 0.95
            row = {"frames": shade, "kind": kind, "altered": len(at), "false": others}
            rows.append(row | {"found": _marked(float(named.mean()), wanted, above=True)})
            if kind.startswith("exposure"):
                rows[-1] |= _jump(frames, truth, region, alter, clean.mask, color)
            print(rows[-1], file=sys.stderr)
    return rows


def _jump(frames: Any, truth: Any, region: Any, alter: Any, clean: Any, color: bool) -> dict[str, Any]:
    from streamsvd.pipelines.video import BackgroundModel

    shown, start = frames.copy(), min(800, len(frames) - 100)
    for k in range(start, min(start + 400, len(frames))):
        shown[k] = alter(frames[k], k)
    masks, numbers = BackgroundModel(color=color).update(shown).mask, range(start, len(frames))
    lost = [
        peers.f_measure(a, truth, region, numbers) - peers.f_measure(b, truth, region, numbers)
        for a, b in ((clean, masks), (peers.cleaned(clean), peers.cleaned(masks)))
    ]
    return {"F lost by 400": _marked(lost[0], 0.03, above=False), "5x5": _marked(lost[1], 0.03, above=False)}


def memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Peak memory above the process before its first frame, each in a process of its own: 1080p at rank 3, and ten times the stream."""
    rows = []
    for kind in ("gray", "colour"):
        short = 288
        counts = (64, 96) if options.quick else (short, 2 * short)
        peaks = [_peak(kind, 1080, 1920, 3, count) for count in counts]
        row = {
            "frames": f"1080p rank 3 {kind}",
            "stream": counts[0],
            "MB": _marked(peaks[0], LIMITS[kind], above=False),
        }
        rows.append(row | {"longer": counts[1], "MB then": peaks[1]})
        small = [_peak(kind, 240, 320, 1, count) for count in (short, 10 * short)]
        row = {"frames": f"320x240 rank 1 {kind}", "stream": short, "MB": small[0], "longer": 10 * short}
        rows.append(row | {"MB then": _marked(small[1], small[0] + 2, above=False)})
    return rows


def _peak(kind: str, h: int, w: int, rank: int, count: int) -> float:
    return memories.in_child(
        kind, h, w, rank, count, threads=1, script=str(Path(__file__).with_name("video_memory.py"))
    )["MB"]


def _marked(value: float, goal: float | None, *, above: bool) -> str:
    if goal is None:
        return f"{value:.3f}"
    held = value >= goal if above else value <= goal
    return f"{value:.3f} ({'>=' if above else '<='} {goal:g}{'' if held else ', MISSED'})"


def _print(rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[f"{v:.4g}" if isinstance(v := row.get(name, ""), float) else str(v) for name in names] for row in rows]
    widths = [max(len(x) for x in column) for column in zip(names, *cells, strict=True)]
    for line in (names, *cells):
        print(
            "  ".join(x.ljust(n) if i == 0 else x.rjust(n) for i, (x, n) in enumerate(zip(line, widths, strict=True)))
        )


TABLES = {"speed": speed, "accuracy": accuracy, "tampering": tampering, "memory": memory}


if __name__ == "__main__":
    main()
