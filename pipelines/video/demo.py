"""The embedded scene: a photograph as the view of a camera; its light drifts, patches move through it, and it is covered twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamsvd.pipelines.video.evaluate import Score
from streamsvd.pipelines.video.model import BackgroundModel
from streamsvd.pipelines.video.settings import BLOCK, VideoSettings

FRAMES, WARM = 512, 64
COVERED = (range(230, 250), range(390, 405))
PATCHES, NOISE = 7, 3.0


@dataclass(frozen=True)
class SceneBatch:
    """Frames (b, h, w, 3) uint8 in the order blue, green, red, their true masks (b, h, w) uint8 and which are covered (b,)."""

    frames: np.ndarray
    truth: np.ndarray
    covered: np.ndarray


def scene(frames: int = FRAMES, /, *, seed: int = 0, batch: int = BLOCK, gray: bool = False) -> Iterator[SceneBatch]:
    """Yield the scene in batches; the same seed gives the same frames.

    Parameters
    ----------
    frames : int
        Frames in all; 25 a second.
    seed : int
        Of noise and patches.
    batch : int
    gray : bool
        Frames (b, h, w): the luma.

    Raises
    ------
    ImportError
        Without scikit-learn, whose photograph it is; the message says what to install.
    """
    view, other = _photographs()
    rng = np.random.default_rng(seed)
    patches = [_patch(other, rng, view.shape[:2]) for _ in range(PATCHES)]
    for start in range(0, frames, batch):
        numbers = range(start, min(start + batch, frames))
        made = [_frame(view, patches, number, rng) for number in numbers]
        covered = np.array([any(number in span for span in COVERED) for number in numbers])
        pictures = np.stack([picture for picture, _ in made])
        if gray:
            pictures = np.rint(pictures @ np.array([0.114, 0.587, 0.299])).astype(np.uint8)
        yield SceneBatch(pictures, np.stack([mask for _, mask in made]), covered)


def run(
    folder: Path | str, settings: VideoSettings | None = None, /, *, progress: bool | None = None
) -> dict[str, Any]:
    """Model the scene, write what a run writes and a picture into a folder, and return what was found beside OpenCV's MOG2.

    Raises
    ------
    ImportError
        Without scikit-learn, PyAV or OpenCV.
    """
    from streamsvd.pipelines.video.run import Job, model_video

    target, settings = Path(folder), settings or VideoSettings()
    made = list(scene(gray=not settings.color))
    values = model_video((part.frames for part in made), target, settings, Job(progress=progress))
    values |= scores(made, settings)
    values["picture"] = str(target / "video.png")
    picture(target / "video.png", made, settings)
    values["out"] = str(target)
    return values


def scores(made: list[SceneBatch], settings: VideoSettings, /) -> dict[str, Any]:
    """Return F-measure, processor time and tamper flags of ours, and the first two of MOG2, on uncovered frames from frame 64 on."""
    import cv2

    model, peer = BackgroundModel(settings=settings), cv2.createBackgroundSubtractorMOG2(detectShadows=False)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    BackgroundModel(settings=settings).update(
        np.concatenate([part.frames for part in made[:2]])
    )  # compiled or read from the cache
    ours, theirs, spent, flags = Score(), Score(), [0.0, 0.0], [0, 0, 0]
    for number, part in enumerate(made):
        began = time.process_time()
        out = model.update(part.frames)
        between = time.process_time()
        masks = np.stack([peer.apply(frame) for frame in part.frames])
        spent = [spent[0] + between - began, spent[1] + time.process_time() - between]
        for found, false, there in zip(out.tampered, out.tampered & ~part.covered, part.covered, strict=True):
            flags = [flags[0] + int(found and there), flags[1] + int(false), flags[2] + int(there)]
        if number * BLOCK >= WARM:
            for i in np.flatnonzero(~part.covered):
                ours, theirs = ours.add(out.mask[i], part.truth[i]), theirs.add(masks[i], part.truth[i])
    cv2.setNumThreads(threads)
    frames = sum(len(part.frames) for part in made)
    tampering = {"found": flags[0], "false": flags[1], "covered": flags[2]}
    return {
        "streamsvd": {**ours.values(), "fps": frames / max(spent[0], 1e-9)},
        "mog2": {**theirs.values(), "fps": frames / max(spent[1], 1e-9)},
        "tampering": tampering,
    }


def picture(path: Path, made: list[SceneBatch], settings: VideoSettings, /, *, at: int = 330) -> None:
    """Draw a frame, the background, the mask and the overlay as one image."""
    import cv2

    from streamsvd.flow.statefile import write_atomically
    from streamsvd.pipelines.video.write import overlays

    model = BackgroundModel(settings=settings)
    for before in made[: at // BLOCK]:
        model.update(before.frames)
    part = made[at // BLOCK]
    out, i = model.update(part.frames), at % BLOCK
    shown = overlays(part.frames[i : i + 1], out.mask[i : i + 1])[0]
    panels = [part.frames[i], out.background, out.mask[i], shown]
    panels = [panel if panel.ndim == 3 else np.repeat(panel[..., None], 3, axis=2) for panel in panels]
    gap = np.full((panels[0].shape[0], 8, 3), 255, np.uint8)
    upper, lower = (np.concatenate([left, gap, right], axis=1) for left, right in (panels[:2], panels[2:]))
    sheet = np.concatenate([upper, np.full((8, upper.shape[1], 3), 255, np.uint8), lower])
    write_atomically(path, [cv2.imencode(".png", sheet)[1].tobytes()])


def _photographs() -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's two photographs at half size, (213, 320, 3) float32, blue first."""
    try:
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        msg = 'the scene is made of photographs of scikit-learn, which is not installed: run pip install "streamsvd[demo]"'
        raise ImportError(msg) from error
    return tuple(_half(load_sample_image(name)[..., ::-1]) for name in ("china.jpg", "flower.jpg"))  # type: ignore[return-value]


def _half(image: np.ndarray) -> np.ndarray:
    h, w = (size - size % 2 for size in image.shape[:2])
    return image[:h, :w].reshape(h // 2, 2, w // 2, 2, 3).mean((1, 3)).astype(np.float32)


@dataclass(frozen=True)
class _Patch:
    """A textured ellipse and its path: where it is at frame 0 and how far it goes in a frame, in pixels (y, x)."""

    texture: np.ndarray
    inside: np.ndarray
    start: np.ndarray
    step: np.ndarray


def _patch(image: np.ndarray, rng: np.random.Generator, shape: tuple[int, int]) -> _Patch:
    h, w = (int(size) for size in rng.integers(22, 48, 2))
    top, left = (int(rng.integers(0, size - part)) for size, part in zip(image.shape[:2], (h, w), strict=True))
    y, x = np.mgrid[:h, :w]
    inside = ((y + 0.5) / h - 0.5) ** 2 + ((x + 0.5) / w - 0.5) ** 2 < 0.25
    step = rng.uniform(1.0, 3.0) * np.array([np.sin(a := rng.uniform(0, 2 * np.pi)), np.cos(a)])
    return _Patch(image[top : top + h, left : left + w], inside, rng.uniform(0, 1, 2) * shape, step)


def _frame(
    view: np.ndarray, patches: list[_Patch], number: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    noise = NOISE * rng.standard_normal(view.shape, dtype=np.float32)
    height, width = view.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    if any(number in span for span in COVERED):
        return np.clip(18 + noise, 0, 255).astype(np.uint8), mask
    picture = view * np.float32(1.0 + 0.12 * np.sin(2 * np.pi * number / 400))
    for patch in patches:
        h, w = patch.inside.shape
        room = np.array([height + 2 * h, width + 2 * w])  # out of sight between two visits
        top, left = ((patch.start + number * patch.step) % room).astype(int) - (h, w)
        y, x = max(top, 0), max(left, 0)
        bottom, right = min(top + h, height), min(left + w, width)
        if y < bottom and x < right:
            part = (slice(y - top, bottom - top), slice(x - left, right - left))
            there = patch.inside[part]
            picture[y:bottom, x:right][there] = patch.texture[part][there]
            mask[y:bottom, x:right][there] = 255
    return np.clip(picture + noise, 0, 255).astype(np.uint8), mask
