"""Masks against ground truth by the rule of CDnet 2014 (Wang, Jodoin, Porikli, Konrad, Benezeth and Ishwar, CVPR workshops 2014)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FOREGROUND, OUTSIDE, UNKNOWN = 255, 85, 170


@dataclass(frozen=True)
class Score:
    """Pixels pooled over all frames: true positives, false positives, false negatives."""

    hits: int = 0
    false: int = 0
    missed: int = 0
    frames: int = 0

    def add(self, mask: np.ndarray, truth: np.ndarray, roi: np.ndarray | None = None) -> Score:
        """Return the score after one more frame.

        Parameters
        ----------
        mask : array (h, w)
            Foreground where not 0.
        truth : array (h, w), uint8
            255 foreground; 0 background and 50 shadow, both background; 85 outside the region and 170 unknown, neither scored.
        roi : array (h, w), optional
            Not scored where 0.
        """
        if mask.shape != truth.shape:
            msg = f"the mask is {mask.shape} and the ground truth {truth.shape} (height, width); they must be of one size: check the folder"
            raise ValueError(msg)
        scored = (truth != OUTSIDE) & (truth != UNKNOWN)
        if roi is not None:
            scored &= roi > 0
        found, true = mask > 0, truth == FOREGROUND
        hits, false = int((found & true & scored).sum()), int((found & ~true & scored).sum())
        return Score(
            self.hits + hits, self.false + false, self.missed + int((~found & true & scored).sum()), self.frames + 1
        )

    @property
    def precision(self) -> float:
        """Share of what was found that is true; 1 where nothing was found."""
        return self.hits / max(self.hits + self.false, 1) if self.hits + self.false else 1.0

    @property
    def recall(self) -> float:
        """Share of what is true that was found; 1 where there is nothing to find."""
        return self.hits / (self.hits + self.missed) if self.hits + self.missed else 1.0

    @property
    def f(self) -> float:
        """Harmonic mean of precision and recall."""
        whole = 2 * self.hits + self.false + self.missed
        return 2 * self.hits / whole if whole else 1.0

    def values(self) -> dict[str, Any]:
        """Return what a summary shows."""
        return {"precision": self.precision, "recall": self.recall, "f": self.f, "frames": self.frames}


@dataclass
class Truth:
    """A folder of ground truth, laid out as in CDnet: files that end in the number of their frame, counted from 1.

    Beside the folder, ``ROI.bmp`` says where and ``temporalROI.txt`` which frames are scored, if they are there.
    """

    files: dict[int, Path]
    roi: np.ndarray | None
    frames: tuple[int, int]
    score: Score = Score()

    @classmethod
    def open(cls, folder: Path | str) -> Truth:
        """Find the files.

        Raises
        ------
        FileNotFoundError, ValueError
            There is no such folder, or no file in it that is named as a mask.
        """
        path = Path(folder)
        if not path.is_dir():
            msg = f"there is no folder {str(folder)!r} of ground truth; give one with files such as gt000001.png"
            raise FileNotFoundError(msg)
        found = {
            int(m[1]): file
            for file in sorted(path.iterdir())
            if (m := re.search(r"(\d+)\.(?:png|bmp|jpg)$", file.name))
        }
        if not found:
            msg = f"the folder {str(folder)!r} holds no masks; expected files that end in a frame number, such as gt000001.png"
            raise ValueError(msg)
        region, span = path.parent / "ROI.bmp", path.parent / "temporalROI.txt"
        frames = tuple(int(word) for word in span.read_text().split()[:2]) if span.exists() else (0, 1 << 62)
        return cls(found, _gray(region) if region.exists() else None, (frames[0], frames[1]))

    def add(self, masks: np.ndarray, numbers: np.ndarray) -> None:
        """Score masks (b, h, w) of the frames with these numbers, counted from 0."""
        for mask, number in zip(masks, numbers.tolist(), strict=True):
            file = self.files.get(number + 1)
            if file is not None and self.frames[0] <= number + 1 <= self.frames[1]:
                self.score = self.score.add(mask, _gray(file), self.roi)


def _gray(path: Path) -> np.ndarray:
    from streamsvd.pipelines.video.read import _package

    image = _package("cv2", "opencv-python-headless").imread(str(path), 0)
    if image is None:
        msg = f"{str(path)!r} is no readable image; check the folder of ground truth"
        raise ValueError(msg)
    return image
