"""Background and foreground of a static camera, in bounded memory for ever: `BackgroundModel`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.pipelines.video.pictures import checked, cleaned, gray, region
from streamsvd.pipelines.video.scene import Rows, Scene
from streamsvd.pipelines.video.settings import VideoSettings

if TYPE_CHECKING:
    import os
    from concurrent.futures import ThreadPoolExecutor


@dataclass(frozen=True)
class Update:
    """What an update says of its b frames.

    ``mask`` (b, h, w) uint8, 0 or 255; ``weight`` (b,) mean weight of each frame, about 0.7 to 0.9 for a clean one; ``tampered`` (b,) bool;
    ``event`` one of none, tampered, exposure, scene_reset for each frame; ``fraction`` (b,) share of foreground pixels; ``coef`` (b, r)
    coefficients; ``sigma`` median scale of the pixels in gray levels; ``background`` (h, w[, 3]) uint8 after the last frame.
    """

    mask: np.ndarray
    weight: np.ndarray
    tampered: np.ndarray
    event: tuple[str, ...]
    fraction: np.ndarray
    coef: np.ndarray
    sigma: float
    background: np.ndarray


class BackgroundModel:
    """Streaming robust low-rank background: per-pixel weighted recursive least squares with the weights of the density power divergence.

    A drop-in for OpenCV's background subtractors (``apply``, ``getBackgroundImage``), and faster by the batch (``update``). The result does
    not depend, to the bit, on how the stream is cut into batches, and a model that was saved goes on as if it had not been.

    Parameters
    ----------
    rank : int
        Components: 1 for a still scene with one light.
    roi : array (h, w), optional
        Pixels at 0 are never foreground and are not looked at to judge a frame.
    settings : VideoSettings, optional
        All other options as one object; or give them by name.
    **options
        See `streamsvd.pipelines.video.VideoSettings`.

    Notes
    -----
    Cost at rank 1, one core, in batches of 16: 2 to 3 ns a pixel, colour included. Memory: 4 (r C + r (r + 1) / 2 + r C + 2 + C) bytes a
    pixel, 32 frames until frame 256, and 16 frames where batches are no multiple of 16. Reference: rSVDdpd (Roy, Basu and Ghosh 2021,
    2024), which alternates weighted regressions over all frames in memory; forgetting recursive least squares for each row as in PETRELS
    (Chi, Eldar and Calderbank 2013).

    Examples
    --------
    >>> import numpy as np
    >>> frames = np.full((40, 24, 32), 90, np.uint8)
    >>> frames[30:, 4:9, 4:9] = 200
    >>> out = BackgroundModel(rank=1, color=False).update(frames)
    >>> out.mask.shape, int((out.mask[35] > 0).sum()), bool(out.tampered.any())
    ((40, 24, 32), 25, False)
    """

    def __init__(
        self, rank: int = 1, *, roi: Any = None, settings: VideoSettings | None = None, **options: Any
    ) -> None:
        if settings is None:
            settings = VideoSettings(rank=rank, **options)
        elif options or rank != 1:
            msg = f"got both settings and {', '.join(options) or 'rank'}; give one of them, as BackgroundModel(settings=VideoSettings(...))"
            raise TypeError(msg)
        self.settings = settings
        self.state_: Scene | None = None
        self.frames_ = 0
        self.roi = None if roi is None else region(roi)
        self._pool: ThreadPoolExecutor | None = None

    def update(self, frames: Any, /) -> Update:
        """Take a batch of frames, and return their masks and what they are.

        Parameters
        ----------
        frames : array (b, h, w) or (b, h, w, 3), uint8
            Read as it is, without a float copy; batches whose size is a multiple of 16 are not copied at all.

        Raises
        ------
        TypeError, ValueError
            Not uint8, not of these shapes, smaller than 2 x 2, or of another size than before with ``resize="error"``; nothing is changed.
        """
        array = checked(frames, single=False)
        mask, rows, counts = self._take(array)
        scene = self.state_
        if scene is None:  # an empty batch before any frame
            nothing = np.zeros(0)
            return Update(
                mask,
                nothing,
                nothing > 0,
                (),
                nothing,
                np.zeros((0, self.settings.rank)),
                0.0,
                np.zeros(array.shape[1:], np.uint8),
            )
        inside = max(int(np.count_nonzero(scene.roi)), 1)
        sigma = 0.0 if scene.gauge is None else float(np.sqrt(np.median(scene.gauge.s2)))
        coef = np.array(rows.coef, np.float32).reshape(-1, self.settings.rank)
        weight, tampered = np.array(rows.weight), np.array(rows.tampered, bool)
        return Update(mask, weight, tampered, tuple(rows.event), counts / inside, coef, sigma, scene.render())

    def apply(self, image: Any, fgmask: Any = None, learningRate: float = -1) -> np.ndarray:
        """Take one frame, and return its mask (h, w), uint8: the call of OpenCV's background subtractors.

        Parameters
        ----------
        image : array (h, w) or (h, w, 3), uint8
        fgmask : array (h, w), uint8, optional
            Written to and returned, where given.
        learningRate : float
            -1 learns at the rate of ``memory``, the only one there is.

        Notes
        -----
        All background before the 8th frame. The background moves at every 16th call, which takes longer.
        """
        if learningRate != -1:
            msg = f"learningRate={learningRate}; here the rate is set by BackgroundModel(memory='30s'): leave learningRate out"
            raise ValueError(msg)
        array = checked(image, single=True)
        mask = self._take(array)[0][0]
        if fgmask is None:
            return mask
        fgmask[...] = mask
        return fgmask

    def getBackgroundImage(self) -> np.ndarray:
        """Return the background (h, w) or (h, w, 3), uint8, as the camera would see it now; empty before the first frame."""
        return np.zeros((0, 0), np.uint8) if self.state_ is None else self.state_.render()

    def save(self, path: str | os.PathLike[str], /) -> None:
        """Write the model to a file in one step, with the frames that wait; `load` goes on from it to the bit."""
        from streamsvd.flow import statefile

        arrays, meta = self.parts()
        statefile.write(path, "background", arrays, meta)

    @classmethod
    def load(cls, path: str | os.PathLike[str], /) -> BackgroundModel:
        """Read a model that `save` wrote.

        Raises
        ------
        FileNotFoundError, ValueError
            There is no such file, or it is damaged or holds something else.
        """
        from streamsvd.flow import statefile

        _, arrays, meta = statefile.read(Path(path), kinds=("background",))
        return cls.from_parts(arrays, meta)

    def parts(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return the model as named arrays and JSON values."""
        from streamsvd.pipelines.video.store import scene_parts

        arrays, meta = scene_parts(self.state_) if self.state_ is not None else ({}, None)
        if self.roi is not None:
            arrays["region"] = self.roi
        return arrays, {"settings": dataclasses.asdict(self.settings), "frames": self.frames_, "scene": meta}

    @classmethod
    def from_parts(cls, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> BackgroundModel:
        """Restore a model from its parts."""
        from streamsvd.pipelines.video.store import scene_from_parts

        model = cls(settings=VideoSettings(**meta["settings"]), roi=arrays.get("region"))
        model.frames_ = int(meta["frames"])
        if meta["scene"] is not None:
            model.state_ = scene_from_parts(arrays, meta["scene"], model.settings)
        return model

    def _take(self, array: np.ndarray) -> tuple[np.ndarray, Rows, np.ndarray]:
        array = array if array.ndim == 3 or self.settings.color else gray(array)
        b, (h, w) = len(array), array.shape[1:3]
        out, rows = np.empty((b, h * w), np.uint8), Rows.empty()
        if b == 0:
            return out.reshape(b, h, w), rows, np.zeros(0)
        channels = 3 if array.ndim == 4 else 1
        event = self._enter((h, w), channels)
        assert self.state_ is not None
        counts = self.state_.update(out, array.reshape(b, h * w * channels), rows, self._threads())
        self.frames_ += b
        if event:
            rows.event[0] = event
        if self.settings.median:
            counts = cleaned(out, (h, w))
        return out.reshape(b, h, w), rows, counts

    def _enter(self, shape: tuple[int, int], channels: int) -> str:
        """Begin a scene where there is none of this size; return its event."""
        scene = self.state_
        if scene is not None and scene.shape == shape and scene.channels == channels:
            return ""
        if scene is not None and self.settings.resize == "error":
            was, now = (
                f"{a[0]} x {a[1]} with {c} channel(s)" for a, c in ((scene.shape, scene.channels), (shape, channels))
            )
            msg = (
                f"frames were {was} and are now {now} (height x width); write resize='reset' to begin a new scene there"
            )
            raise ValueError(msg)
        if self.roi is not None and self.roi.shape != shape:
            msg = f"the roi is {self.roi.shape} and frames are {shape} (height, width); give a roi of the size of the frames"
            raise ValueError(msg)
        self.state_ = Scene(shape, channels, self.settings, self.roi)
        return "scene_reset" if scene is not None else ""

    def _threads(self) -> ThreadPoolExecutor | None:
        if self.settings.threads == 1:
            return None
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor

            self._pool = ThreadPoolExecutor(self.settings.threads, thread_name_prefix="background")
        return self._pool
