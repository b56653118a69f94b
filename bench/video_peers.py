"""Frames, alterations and peers of the video benchmark; figures are of processor time, and all peers see the same decoded frames."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

THRESHOLD = 25  # gray levels, for methods that give a residual
KNOWN = 469  # frames before the first that highway scores


def highway(*, quick: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return CDnet's highway: frames (n, 240, 320, 3), truth (n, 240, 320) and region (240, 320), uint8, from STREAMSVD_DATA."""
    import cv2

    folder = Path(os.environ["STREAMSVD_DATA"]) / "video" / "cdnet_highway"
    count = KNOWN + 150 if quick else None
    inputs, truths = sorted(folder.glob("input/*.jpg"))[:count], sorted(folder.glob("groundtruth/*.png"))[:count]
    frames, truth = (np.stack([cv2.imread(str(f), flag) for f in files]) for files, flag in ((inputs, 1), (truths, 0)))
    return frames, truth, cv2.imread(str(folder / "ROI.bmp"), 0)


def scene(*, quick: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return the embedded scene and its masks, covered frames marked as not scored (170)."""
    from streamsvd.pipelines.video.demo import scene as made

    parts = list(made(160 if quick else 512))
    truth = np.concatenate([part.truth for part in parts])
    truth[np.concatenate([part.covered for part in parts])] = 170
    return np.concatenate([part.frames for part in parts]), truth


def gray(frames: np.ndarray) -> np.ndarray:
    """Return the luma of frames."""
    import cv2

    return np.stack([cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in frames])


def subtractor(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return the call of an OpenCV subtractor without shadows."""
    import cv2

    return getattr(cv2, f"createBackgroundSubtractor{name}")(detectShadows=False).apply


def median_masks(frames: np.ndarray) -> np.ndarray:
    """Return masks by the distance from the median of 100 frames over all."""
    center = np.median(frames[:: max(len(frames) // 100, 1)], axis=0)
    return np.stack([_far(frame, center) for frame in frames])


def svd_masks(frames: np.ndarray) -> np.ndarray:
    """Return masks by the distance from the plain rank-one SVD of all frames, by power iteration."""
    X = frames.reshape(len(frames), -1)
    v = X[0].astype(np.float32)
    for _ in range(10):
        v /= np.linalg.norm(v)
        c = np.concatenate([X[i : i + 64].astype(np.float32) @ v for i in range(0, len(X), 64)])
        v = sum((c[i : i + 64] @ X[i : i + 64].astype(np.float32) for i in range(0, len(X), 64)), np.zeros_like(v))
    v /= np.linalg.norm(v)
    return np.stack([_far(frame, ((x @ v) * v).reshape(frame.shape)) for frame, x in zip(frames, X, strict=True)])


def pcp_masks(frames: np.ndarray, *, steps: int = 40) -> np.ndarray:
    """Return masks by the sparse part of principal component pursuit, by the inexact augmented Lagrangian (Lin, Chen and Ma 2010)."""
    X = frames.reshape(len(frames), -1).astype(np.float32)
    n, m = X.shape
    weight, norm = 1 / np.sqrt(max(n, m)), np.sqrt(np.linalg.eigvalsh(X @ X.T)[-1])
    Y = X / max(norm, np.abs(X).max() / weight)
    mu, size, S, low = 1.25 / norm, np.linalg.norm(X), np.zeros_like(X), X
    for _ in range(steps):
        W = X - S + Y / mu
        values, vectors = np.linalg.eigh((W @ W.T).astype(np.float64))
        s = np.sqrt(np.maximum(values, 1e-12))
        low = ((vectors * (np.maximum(s - 1 / mu, 0) / s)) @ vectors.T).astype(np.float32) @ W
        W = X - low + Y / mu
        S = np.sign(W) * np.maximum(np.abs(W) - weight / mu, 0)
        gap = X - low - S
        Y += mu * gap
        mu *= 1.5
        if np.linalg.norm(gap) < 1e-7 * size:
            break
    return np.stack([_far(x, y) for x, y in zip(X, low, strict=True)]).reshape(frames.shape[:3])


def _far(frame: np.ndarray, background: np.ndarray) -> np.ndarray:
    distance = np.abs(frame.astype(np.float32) - background)
    distance = distance if distance.ndim < 3 else distance.max(2)
    return np.where(distance > THRESHOLD, 255, 0).astype(np.uint8)


def alterations(rng: np.random.Generator) -> dict[str, Callable[[np.ndarray, int], np.ndarray]]:
    """Return each kind of tampering as a function of a frame and its number."""
    import cv2

    def cover(share: float) -> Callable[[np.ndarray, int], np.ndarray]:
        def altered(x: np.ndarray, k: int) -> np.ndarray:
            x, width = x.copy(), int(x.shape[1] * share)
            start = 0 if k % 2 else x.shape[1] - width
            x[:, start : start + width] = rng.integers(20, 200)
            return x

        return altered

    def scaled(gain: float, offset: float = 0.0) -> Callable[[np.ndarray, int], np.ndarray]:
        return lambda x, k: np.clip(x * np.float32(gain) + offset, 0, 255).astype(np.uint8)

    return {
        "covered": lambda x, k: np.full_like(x, 12) + rng.integers(0, 6, x.shape).astype(np.uint8),
        "noise": lambda x, k: rng.integers(0, 256, x.shape).astype(np.uint8),
        "shift 40": lambda x, k: np.roll(x, 40, axis=1),
        "shift 4": lambda x, k: np.roll(x, 4, axis=1),
        "defocus 5": lambda x, k: cv2.GaussianBlur(x, (0, 0), 5),
        "defocus 2": lambda x, k: cv2.GaussianBlur(x, (0, 0), 2),
        "cover 20 %": cover(0.2),
        "cover 30 %": cover(0.3),
        "cover 40 %": cover(0.4),
        "flash": scaled(3.3, 60),
        "exposure x1.5": scaled(1.5),
        "exposure x0.6": scaled(0.6),
    }


def cleaned(masks: np.ndarray) -> np.ndarray:
    """Return the 5 x 5 median of masks."""
    import cv2

    return np.stack([cv2.medianBlur(mask, 5) for mask in masks])


def f_measure(masks: np.ndarray, truth: np.ndarray, region: np.ndarray | None, numbers: range) -> float:
    """Return CDnet's F of the frames with these numbers."""
    from streamsvd.pipelines.video.evaluate import Score

    score = Score()
    for k in numbers:
        score = score.add(masks[k], truth[k], region)
    return score.f


def turns(work: dict[str, Callable[[], Any]], runs: int) -> dict[str, float]:
    """Return the median processor seconds of each of some functions that take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(runs + 1):
        for name, function in work.items():
            began = time.process_time()
            function()
            if number:  # the first turn warms caches up
                seconds[name].append(time.process_time() - began)
    return {name: float(np.median(found)) for name, found in seconds.items()}
