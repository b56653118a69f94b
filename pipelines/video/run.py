"""A whole run: frames in, a folder of results out."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from streamsvd.flow.statefile import write_atomically
from streamsvd.pipelines.video.evaluate import Truth
from streamsvd.pipelines.video.live import is_live, live
from streamsvd.pipelines.video.model import BackgroundModel
from streamsvd.pipelines.video.read import Frames, Report, Window, _package, read
from streamsvd.pipelines.video.settings import VideoSettings
from streamsvd.pipelines.video.write import Kind, Outputs, overlays
from streamsvd.terminal import Terminated

logger = logging.getLogger("streamsvd")
FREE = ("fps", "threads")  # may change between the runs of a checkpoint


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a run reads and writes beside its frames; every field has the meaning of its option on the command line."""

    masks: Kind = "video"
    overlay: Kind = "video"
    window: Window = field(default_factory=Window)
    roi: Path | None = None
    truth: Path | None = None
    checkpoint: Path | None = None
    every: float = 30.0
    preview: int | None = None
    progress: bool | None = None


def model_video(
    source: Any, folder: Path | str, settings: VideoSettings | None = None, job: Job | None = None, /
) -> dict[str, Any]:
    """Model the background of a video and write what was found into a folder.

    A run that goes on from a checkpoint in the same folder writes files of its own, such as frames-512.parquet from frame 512 on.

    Parameters
    ----------
    source : path, pattern, URL, number of a camera, array or iterable of arrays
        See `streamsvd.pipelines.video.read.read` and `streamsvd.pipelines.video.live.live`.
    folder : path
        Gets background.png, mask and overlay (.mp4, or folders of .png), frames.parquet and summary.json; created where needed.
    settings : VideoSettings, optional
        ``fps`` is replaced by what the source says, where it says so.
    job : Job, optional

    Returns
    -------
    summary : dict
        What summary.json holds.

    Raises
    ------
    KeyboardInterrupt, Terminated
        After everything was finished with the frames so far.
    OSError
        A file could not be written, after the others were finished.
    ValueError, FileNotFoundError, ConnectionError
        See the readers.
    """
    job, report, stop = job or Job(), Report(), threading.Event()
    settings = settings or VideoSettings()
    target = Path(folder)
    roi = None if job.roi is None else _roi(job.roi)
    model = _resumed(settings, roi, job.checkpoint)
    if is_live(source):
        batches = live(source, color=settings.color, report=report, stop=stop)
    else:
        batches = _stored(source, settings, job.window, 0 if model is None else model.frames_, report)
    with ExitStack() as stack:
        run = _Run(target, job, settings, model, roi, report, stack)
        return run.drive(batches, stop, source)


def model_videos(
    sources: Mapping[str, Any],
    folder: Path | str,
    settings: VideoSettings | None = None,
    job: Job | None = None,
    /,
    *,
    mapper: Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]] = map,
) -> dict[str, dict[str, Any]]:
    """Model several cameras, each by itself: ``model_video`` into ``folder/NAME``, with a checkpoint there.

    Parameters
    ----------
    sources : mapping of names to sources that a worker can open (paths, URLs)
    folder : path, seen by all workers
    settings, job
        For every camera; a preview and a bar of progress are left out.
    mapper : function like the builtin ``map``
        ``streamsvd.engines.tasks.ray_map`` or ``spark_map`` give each camera a task: one that is run again because its worker died goes
        on from its checkpoint. Backgrounds of different cameras have nothing to merge.

    Returns
    -------
    summaries : dict by name
    """
    asked = replace(job or Job(), preview=None, progress=False)
    cameras = [(source, Path(folder).absolute() / name, settings, asked) for name, source in sources.items()]
    return dict(zip(sources, mapper(_camera, cameras), strict=True))


def _camera(camera: tuple[Any, Path, VideoSettings | None, Job]) -> dict[str, Any]:
    source, folder, settings, job = camera
    return model_video(source, folder, settings, replace(job, checkpoint=folder / "model.svd"))


class _Run:
    """One run: what is open, what was counted."""

    def __init__(
        self,
        folder: Path,
        job: Job,
        settings: VideoSettings,
        model: BackgroundModel | None,
        roi: np.ndarray | None,
        report: Report,
        stack: ExitStack,
    ) -> None:
        self.folder, self.job, self.settings, self.model, self.roi, self.report = (
            folder,
            job,
            settings,
            model,
            roi,
            report,
        )
        self.truth = None if job.truth is None else Truth.open(job.truth)
        self.events: Counter[str] = Counter()
        self.outputs: Outputs | None = None
        self.whole = True
        self.seconds, self.frames, self.saved = 0.0, 0, time.monotonic()
        self.bar = stack.enter_context(_progress(job.progress))
        self.show = stack.enter_context(_preview(job.preview))

    def drive(self, batches: Iterator[Frames], stop: threading.Event, source: Any) -> dict[str, Any]:
        """Take all batches; finish cleanly on Ctrl-C."""
        try:
            for batch in batches:
                self._take(batch)
        except (KeyboardInterrupt, Terminated):
            stop.set()
            self._finish(source, stopped=True)
            raise
        except BaseException:
            stop.set()
            if self.outputs is not None:
                self.outputs.close(whole=self.frames > 0)
            raise
        return self._finish(source, stopped=False)

    def _take(self, batch: Frames) -> None:
        if self.outputs is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            fps = (self.report.fps or self.settings.fps * self.job.window.stride) / self.job.window.stride
            if self.model is None:
                self.model = BackgroundModel(settings=replace(self.settings, fps=fps), roi=self.roi)
            self.outputs = Outputs(
                self.folder, masks=self.job.masks, overlay=self.job.overlay, fps=fps, suffix=self._suffix()
            )
        assert self.model is not None
        self.whole = False
        began = time.perf_counter()
        out = self.model.update(batch.array)
        took = time.perf_counter() - began
        self.seconds, self.frames = self.seconds + took, self.frames + len(batch.array)
        self.events.update(out.event)
        if self.truth is not None:
            self.truth.add(out.mask, batch.numbers)
        self.outputs.add(batch, out, took)
        self.whole = True
        if self.show is not None:
            self.show(overlays(batch.array[-1:], out.mask[-1:])[0])
        if self.bar is not None:
            self.bar(
                len(batch.array),
                f"{self.frames / max(self.seconds, 1e-9):,.0f} fps  {self.events['tampered']} tampered",
            )
        if time.monotonic() - self.saved > self.job.every:
            self._save()

    def _suffix(self) -> str:
        """Return what keeps the files of a run that goes on apart from those of the run before it in the same folder."""
        assert self.model is not None
        return f"-{self.model.frames_}" if self.model.frames_ and (self.folder / "summary.json").exists() else ""

    def _save(self) -> None:
        assert self.model is not None
        # A model that was interrupted within a batch would go on from half of it.
        if self.job.checkpoint is not None and self.whole:
            self.model.save(self.job.checkpoint)
        if self.outputs is not None and self.model.state_ is not None:
            self.outputs.background(self.model.getBackgroundImage())
        self.saved = time.monotonic()

    def _finish(self, source: Any, *, stopped: bool) -> dict[str, Any]:
        values: dict[str, Any] = {"source": str(source) if isinstance(source, str | Path) else type(source).__name__}
        values |= {
            "frames": self.frames,
            "fps": self.frames / self.seconds if self.seconds else None,
            "stopped": stopped,
        }
        values |= {"events": {name: count for name, count in self.events.items() if name != "none"}}
        values |= {"skipped": self.report.skipped, "dropped": self.report.dropped, "reconnects": self.report.reconnects}
        if self.truth is not None:
            values["evaluation"] = self.truth.score.values()
        if self.outputs is None:
            return values
        self.outputs.close()
        failed = list(self.outputs.failed)
        try:
            self._save()
            write_atomically(self.folder / "summary.json", [json.dumps(values, indent=1).encode()])
        except OSError as error:
            failed.append(("summary", error))
        if failed:
            named = "; ".join(f"{name}: {error.strerror or error}" for name, error in failed)
            msg = f"not everything could be written to {str(self.folder)!r} ({named}); the rest is complete: free some space and run again"
            raise OSError(failed[0][1].errno, msg)
        return values


def _resumed(settings: VideoSettings, roi: np.ndarray | None, checkpoint: Path | None) -> BackgroundModel | None:
    if checkpoint is None or not checkpoint.exists():
        return None
    model = BackgroundModel.load(checkpoint)
    logger.warning("%s has %d frames: going on after as many of a stored source", checkpoint, model.frames_)
    if replace(model.settings, fps=settings.fps, threads=settings.threads) != settings:
        pairs = [(f.name, getattr(model.settings, f.name), getattr(settings, f.name)) for f in fields(settings)]
        differs = [
            f"{name}={was!r} there, {name}={now!r} here" for name, was, now in pairs if was != now and name not in FREE
        ]
        msg = f"{str(checkpoint)!r} was written with other settings: {'; '.join(differs)}; give the same ones, or another checkpoint"
        raise ValueError(msg)
    if roi is not None and (model.roi is None or not np.array_equal(model.roi, roi != 0)):
        msg = f"{str(checkpoint)!r} was written with another roi; give the same one, or another checkpoint"
        raise ValueError(msg)
    return model


def _stored(source: Any, settings: VideoSettings, window: Window, done: int, report: Report) -> Iterator[Frames]:
    """Return the batches of a stored source that come after so many frames of it; none is fine where some were done."""
    start = window.start + done * window.stride
    if window.end is not None and start >= window.end:
        return iter(())
    return read(source, color=settings.color, window=replace(window, start=start), report=report, some=not done)


def _roi(path: Path) -> np.ndarray:
    cv2 = _package("cv2", "opencv-python-headless")
    if not path.exists():
        msg = (
            f"there is no file {str(path)!r} for the roi; give an image that is black where nothing is to be looked at"
        )
        raise FileNotFoundError(msg)
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        msg = f"{str(path)!r} is no image; give one that is black where nothing is to be looked at"
        raise ValueError(msg)
    return image


def _progress(progress: bool | None) -> Any:
    from streamsvd.pipelines.video.show import bar

    return bar(progress)


def _preview(port: int | None) -> Any:
    from streamsvd.pipelines.video.show import preview

    return preview(port)
