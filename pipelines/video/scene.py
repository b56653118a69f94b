"""One scene: frames of one size, folded in blocks of 16 that do not depend on how the stream was cut into batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamsvd.kernels import video as kernels
from streamsvd.kernels.video import Arrays, Rule
from streamsvd.pipelines.video.settings import BLOCK, VideoSettings, seconds
from streamsvd.pipelines.video.start import FrameBuffer, begin
from streamsvd.pipelines.video.watch import HISTORY, Gauge, References, Sample, Stats, judge, references

FIRST = 8
JUMP = math.log(1.15)  # of the gain from one frame to the next
RESTARTS = (32, 64, 128, 256)


@dataclass
class Rows:
    """What is known of each frame of a batch; lists of one length."""

    weight: list[float]
    tampered: list[bool]
    event: list[str]
    coef: list[np.ndarray]

    @classmethod
    def empty(cls) -> Rows:
        """Return no rows."""
        return cls([], [], [], [])

    def add(self, weight: float, event: str, coef: np.ndarray) -> None:
        """Add a frame."""
        self.weight.append(weight)
        self.tampered.append(event == "tampered")
        self.event.append(event)
        self.coef.append(coef)


class Scene:
    """The state of one scene; see `streamsvd.kernels.video` for what moves it and `streamsvd.pipelines.video.watch` for what is flagged.

    Frames wait in ``pending`` until their block of 16 (counted from the first frame of the scene) is full; their masks are written at once.
    The first background is the median of 8 frames, and it starts again from up to 32 frames that span the first 32, 64, 128 and 256.
    """

    def __init__(
        self, shape: tuple[int, int], channels: int, settings: VideoSettings, roi: np.ndarray | None = None
    ) -> None:
        self.shape, self.channels, self.settings = shape, channels, settings
        m = shape[0] * shape[1]
        self.roi = np.ones(m, np.uint8) if roi is None else np.ascontiguousarray(roi, np.uint8).reshape(-1)
        self.rule: Rule = settings.rule(channels)
        self.sample = Sample.of(shape, self.roi)
        self.state: Arrays | None = None
        self.gauge: Gauge | None = None
        self.buffer: FrameBuffer | None = FrameBuffer(m * channels)
        self.candidate: FrameBuffer | None = None
        self.ref = References()
        self.coef = np.zeros(settings.rank, np.float32)
        self.coef[0] = 1.0
        self.seen = self.flagged = 0
        self.restarts = RESTARTS
        self.patience = max(int(settings.fps * seconds(settings.reset, "reset")), 4 * BLOCK)
        self.attempt = self.patience
        self.pending: np.ndarray | None = None
        self.waiting: list[tuple[np.ndarray, bool]] = []

    def update(self, out: np.ndarray, frames: np.ndarray, rows: Rows, pool: Any = None) -> np.ndarray:
        """Write the masks of frames (b, m channels) into ``out`` (b, m), add their rows, and return the foreground pixels of each."""
        counts, done = np.zeros(len(frames), np.int64), 0
        while done < len(frames):
            take = min(len(frames) - done, BLOCK - self.seen % BLOCK)
            if self.state is None:
                out[done] = 0
                self._collect(frames[done], rows)
                done += 1
                continue
            part = slice(done, done + take)
            counts[part] = self._fold(out[part], frames[part], rows, pool)
            done += take
        return counts

    def render(self) -> np.ndarray:
        """Return the background as the camera would see it now: array (h, w) or (h, w, 3), uint8; black before the start."""
        from streamsvd.kernels import video_image_numba
        from streamsvd.kernels.video_numba import TILE

        out = np.zeros(self.shape[0] * self.shape[1] * self.channels, np.uint8)
        if self.state is not None:
            video_image_numba.render(out, self.state.u, self.coef, self.channels, TILE)
        return out.reshape(*self.shape, 3) if self.channels == 3 else out.reshape(self.shape)

    def _collect(self, frame: np.ndarray, rows: Rows) -> None:
        assert self.buffer is not None
        self.buffer.add(frame)
        self.seen += 1
        rows.add(1.0, "none", self.coef.copy())
        if self.seen == FIRST:
            self._begin(self.buffer.view(), judged=0)

    def _fold(self, out: np.ndarray, frames: np.ndarray, rows: Rows, pool: Any) -> np.ndarray:
        """Fold frames that lie within one block; judge them first, so that no flagged frame moves the state."""
        assert self.state is not None
        judged = [self._judge(frame, rows) for frame in frames]
        coef = np.array([c for c, _ in judged], np.float32)
        settings = {"pool": pool, "threads": self.settings.threads}
        self.seen += len(frames)
        if len(frames) == BLOCK:
            usable = np.array([good for _, good in judged], np.uint8)
            counts = kernels.learn(out, frames, coef, usable, self.state, self.roi, self.rule, **settings)
        else:
            counts = kernels.look(out, frames, coef, self.state, self.roi, self.rule)
            self._wait(frames, judged)
            if self.seen % BLOCK:
                return counts
            assert self.pending is not None
            coef = np.array([c for c, _ in self.waiting], np.float32)
            usable = np.array([good for _, good in self.waiting], np.uint8)
            block = self.pending[: len(self.waiting)]
            kernels.learn(None, block, coef, usable, self.state, self.roi, self.rule, **settings)
            self.waiting = []
        self._refresh()
        self._boundary(rows)
        return counts

    def _wait(self, frames: np.ndarray, judged: list[tuple[np.ndarray, bool]]) -> None:
        if self.pending is None:
            self.pending = np.empty((BLOCK, frames.shape[1]), np.uint8)
        at = len(self.waiting)
        self.pending[at : at + len(frames)] = frames
        self.waiting += judged

    def _judge(self, frame: np.ndarray, rows: Rows) -> tuple[np.ndarray, bool]:
        """Return the coefficients that a frame is marked with, and whether it may move the state."""
        assert self.gauge is not None
        found, stats = self.gauge.fit(frame, self.coef, self.ref.low())
        known = self.ref.judged >= HISTORY
        verdict, self.ref = judge(self.ref, stats)
        event, step = verdict.event, abs(math.log(max(float(found[0]), 1e-6) / max(float(self.coef[0]), 1e-6)))
        if event == "none" and known and step > JUMP:
            event = "exposure"
        if verdict.tampered:
            self.flagged += 1
            if self.candidate is None:
                self.candidate = FrameBuffer(frame.size, BLOCK)
            self.candidate.add(frame)
        else:
            self.flagged, self.candidate, self.attempt, self.coef = 0, None, self.patience, found
            if self.buffer is not None:
                self.buffer.add(frame)
        rows.add(stats.weight, event, self.coef)
        return self.coef, not verdict.tampered

    def _begin(self, frames: np.ndarray, *, judged: int) -> None:
        """Start the background again from frames, and the references from how they fit it."""
        rival = seconds(self.settings.absorb, "absorb") > 0
        options = {"rank": self.settings.rank, "channels": self.channels, "rival": rival}
        self.state = begin(frames, old=self.state, **options)
        self.coef = np.zeros(self.settings.rank, np.float32)
        self.coef[0] = 1.0
        self._refresh()
        stats = self._fits(frames[-BLOCK:])
        self.ref = references(stats, judged=judged)

    def _fits(self, frames: np.ndarray) -> list[Stats]:
        assert self.gauge is not None
        found: list[Stats] = []
        for frame in frames:
            self.coef, stats = self.gauge.fit(frame, self.coef, 0.3)
            found.append(stats)
        return found

    def _refresh(self) -> None:
        assert self.state is not None
        self.gauge = Gauge.of(self.sample, self.rule, self.state.u, self.state.s2, self.channels)

    def _boundary(self, rows: Rows) -> None:
        """Between two blocks: start again where that is due, or take a picture that has stayed as the new scene."""
        if self.flagged:
            if self.flagged >= self.attempt and self._settled():
                rows.event[-1] = "scene_reset"
            return
        if self.buffer is not None and self.restarts and self.seen >= self.restarts[0]:
            self._begin(self.buffer.view(), judged=self.ref.judged)
            self.restarts = tuple(due for due in self.restarts if due > self.seen)
            if not self.restarts:
                self.buffer = None

    def _settled(self) -> bool:
        """Begin a new scene from the frames that were flagged, if they agree with each other and are no covered or blurred view."""
        assert self.candidate is not None
        assert self.gauge is not None
        self.attempt = self.flagged + self.patience // 2
        frames = self.candidate.view()
        fresh = begin(frames, rank=self.settings.rank, channels=self.channels, rival=False)
        gauge = Gauge.of(self.sample, self.rule, fresh.u, fresh.s2, self.channels)
        one = np.zeros(self.settings.rank, np.float32)
        one[0] = 1.0
        weight = float(np.median([gauge.fit(frame, one, 0.0)[1].weight for frame in frames]))
        _, expected = kernels.correction(self.rule.alpha, self.channels)
        sharp = self.gauge.edges_of(gauge) / self.ref.usual[1]
        if weight < 0.5 * expected or sharp < 0.35:
            return False
        self._begin(frames, judged=0)
        self.buffer, self.candidate = FrameBuffer(frames.shape[1]), None
        self.restarts = tuple(self.seen + due for due in RESTARTS)
        self.flagged, self.attempt = 0, self.patience
        return True
