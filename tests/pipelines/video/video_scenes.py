"""Small scenes whose background, masks and events are known."""

from __future__ import annotations

import numpy as np


def view(h: int = 72, w: int = 96, *, color: bool = True) -> np.ndarray:
    """A still picture with edges at every scale, 40 to 200."""
    y, x = np.mgrid[:h, :w]
    base = 110 + 35 * np.sin(x / 3.0) + 30 * np.cos(y / 2.5) + 15 * np.sign(np.sin(x / 9.0) * np.cos(y / 11.0))
    return np.stack([base, 0.8 * base + 12, 0.6 * base + 40], axis=-1) if color else base


def still(
    n: int, *, color: bool = True, noise: float = 2.0, seed: int = 0, gain: float = 1.0, **size: int
) -> np.ndarray:
    """That picture n times with noise: (n, h, w[, 3]) uint8."""
    picture = gain * view(color=color, **size)
    drawn = np.random.default_rng(seed).normal(0, noise, (n, *picture.shape))
    return np.clip(np.rint(picture + drawn), 0, 255).astype(np.uint8)


def walking(n: int, *, color: bool = True, **options) -> tuple[np.ndarray, np.ndarray]:
    """The picture with a bright block that walks through, and its masks."""
    frames = still(n, color=color, **options)
    truth = np.zeros(frames.shape[:3], np.uint8)
    width = frames.shape[2]
    for i in range(n):
        at = (2 * i) % (width + 20) - 20
        truth[i, 20:44, max(at, 0) : max(at + 20, 0)] = 255
    frames[truth > 0] = 245
    return frames, truth


def f_measure(masks: np.ndarray, truth: np.ndarray) -> float:
    found, true = masks > 0, truth > 0
    return 2 * (found & true).sum() / max(found.sum() + true.sum(), 1)


def equal(one, other) -> bool:
    """Whether two models hold the same bits."""
    (a, b), (c, d) = one.parts(), other.parts()
    return b == d and a.keys() == c.keys() and all(np.array_equal(a[name], c[name]) for name in a)
