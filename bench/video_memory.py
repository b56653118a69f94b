"""Peak memory of a model above the process before its first frame: ``python bench/video_memory.py gray|colour H W RANK FRAMES``."""

from __future__ import annotations

import json
import resource
import sys

import numpy as np

from streamsvd.pipelines.video import BackgroundModel


def main() -> None:
    """Feed frames one by one, as a camera does, and print the peak in MB."""
    kind, h, w, rank, count = sys.argv[1], *map(int, sys.argv[2:])
    channels = (3,) if kind == "colour" else ()
    warm = BackgroundModel(rank=rank, color=bool(channels))
    warm.update(np.zeros((48, 40, 40, *channels), np.uint8))  # imports and compiled code are no part of it
    rng = np.random.default_rng(0)
    still = rng.integers(40, 200, (h, w, *channels)).astype(np.uint8)
    noise = rng.integers(0, 8, (2 * h, w, *channels)).astype(np.uint8)
    frame = np.empty_like(still)
    model = BackgroundModel(rank=rank, color=bool(channels))
    before = _peak()
    for i in range(count):
        np.add(still, noise[i % h : i % h + h], out=frame)
        model.apply(frame)
    print(json.dumps({"MB": _peak() - before}))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    main()
