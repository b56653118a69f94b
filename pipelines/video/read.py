"""Frames from files, folders of images, Arrow and arrays, as batches of one size with their times."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamsvd.pipelines.video.settings import BLOCK

logger = logging.getLogger("streamsvd")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
TABLES = (".parquet", ".arrow", ".ipc", ".feather")
ERRORS = 100  # packets that may be unreadable before a file counts as broken
_PLANAR = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "nv12", "gray")


@dataclass(frozen=True)
class Frames:
    """A batch: ``array`` (b, h, w) or (b, h, w, 3) uint8, blue first; ``pts`` (b,) seconds, NaN where unknown; ``numbers`` (b,)."""

    array: np.ndarray
    pts: np.ndarray
    numbers: np.ndarray

    @property
    def first(self) -> int:
        """Return the number of the first frame in the source."""
        return int(self.numbers[0])


@dataclass
class Report:
    """What a reader met: frames a second where the source says so, and unreadable packets or images that were skipped."""

    fps: float | None = None
    skipped: int = 0
    dropped: int = 0
    reconnects: int = 0


@dataclass(frozen=True, kw_only=True)
class Window:
    """Which frames are read: from ``start`` to before ``end``, every ``stride``-th, scaled to ``size`` (width, height)."""

    start: int = 0
    end: int | None = None
    stride: int = 1
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.start < 0 or self.stride < 1 or (self.end is not None and self.end <= self.start):
            msg = f"got start={self.start}, end={self.end}, stride={self.stride}; expected 0 <= start < end and stride of at least 1"
            raise ValueError(msg)


def read(
    source: Any, /, *, color: bool = True, window: Window | None = None, report: Report | None = None, some: bool = True
) -> Iterator[Frames]:
    """Yield batches of at most 16 frames of one size.

    Parameters
    ----------
    source : path, pattern, array or iterable of arrays
        A video file; a folder or a quoted pattern of images; Parquet or Arrow IPC with a column of fixed_shape_tensor frames; an array
        (b, h, w[, 3]) uint8, or an iterable of such batches.
    color : bool
        Otherwise luma, which for most files is a plane that needs no conversion.
    window : Window, optional
    report : Report, optional
        Filled in while reading.
    some : bool
        No frame at all is an error.

    Raises
    ------
    FileNotFoundError, ValueError, ImportError
        There is nothing there, it is no video, it has no frame, too much of it cannot be decoded, or a package is missing.
    """
    window, report = window or Window(), report or Report()
    found = False
    for batch in _batched(_windowed(_frames(source, color, report), window)):
        found = True
        yield batch
    if some and not found:
        msg = f"{_name(source)} has no frames{' in this window' if window != Window() else ''}; check the path, and start and end"
        raise ValueError(msg)


def _frames(source: Any, color: bool, report: Report) -> Iterator[tuple[np.ndarray, float]]:
    if isinstance(source, np.ndarray):
        return ((frame, float(i)) for i, frame in enumerate(source))
    if not isinstance(source, str | Path):
        return ((frame, float("nan")) for batch in source for frame in np.asarray(batch))
    path = Path(source).expanduser()
    if path.is_dir():
        files = [file for file in path.iterdir() if file.suffix.lower() in IMAGES]
        return _images(files, f"the folder {str(source)!r}", color, report)
    if not path.exists() and glob.has_magic(str(path)):
        return _images([Path(name) for name in glob.glob(str(path))], f"the pattern {str(source)!r}", color, report)  # noqa: PTH207
    if not path.exists():
        msg = f"there is no file {str(source)!r} (looked from {Path.cwd()}); check the path"
        raise FileNotFoundError(msg)
    if path.suffix.lower() in TABLES:
        return _table(path)
    if path.suffix.lower() in IMAGES:
        return _images([path], str(source), color, report)
    return decoded(str(path), color, report)


def decoded(
    source: str, color: bool, report: Report, options: dict[str, str] | None = None
) -> Iterator[tuple[np.ndarray, float]]:
    """Yield the frames of a file or URL with PyAV, and their times; packets that cannot be decoded are skipped and counted."""
    av = _package("av", "av")
    try:
        container = av.open(source, options=options or {}, timeout=10.0 if options else None)
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        msg = f"{source!r} cannot be opened as video ({reason}); give a video file, a folder of images or a URL"
        raise ValueError(msg) from error
    with container:
        if not container.streams.video:
            msg = f"{source!r} holds no video stream; give a file with pictures"
            raise ValueError(msg)
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = stream.average_rate or stream.guessed_rate
        report.fps = float(rate) if rate else None
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                for frame in packet.decode():
                    yield _picture(frame, color, av, source), float(frame.time if frame.time is not None else "nan")
            except av.error.InvalidDataError as error:
                report.skipped += 1
                if report.skipped > ERRORS:
                    msg = f"more than {ERRORS} packets of {source!r} cannot be decoded ({error}); repair the file, or cut it with end=..."
                    raise ValueError(msg) from error


def _picture(frame: Any, color: bool, av: Any, source: str) -> np.ndarray:
    if not color and frame.format.name in _PLANAR:
        plane = frame.planes[0]
        return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]
    try:
        return frame.to_ndarray(format="bgr24" if color else "gray")
    except (av.FFmpegError, ValueError) as error:
        msg = f"{source!r} is stored as {frame.format.name}, which cannot be converted ({error}); convert it to yuv420p first"
        raise ValueError(msg) from error


def _images(files: list[Path], what: str, color: bool, report: Report) -> Iterator[tuple[np.ndarray, float]]:
    cv2 = _package("cv2", "opencv-python-headless")
    files = sorted((file for file in files if file.suffix.lower() in IMAGES), key=_natural)
    if not files:
        msg = f"{what} holds no images; expected files that end in {', '.join(IMAGES)}"
        raise ValueError(msg)
    for file in files:
        image = cv2.imread(str(file), cv2.IMREAD_COLOR if color else cv2.IMREAD_GRAYSCALE)
        if image is None:
            report.skipped += 1
            if report.skipped > ERRORS:
                msg = f"more than {ERRORS} files of {what} are no readable images, the last is {file.name!r}; check the folder"
                raise ValueError(msg)
            continue
        yield image, float("nan")


def _table(path: Path) -> Iterator[tuple[np.ndarray, float]]:
    """Yield the frames of the first column of fixed_shape_tensor (h, w) or (h, w, 3) of uint8."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def batches() -> Iterator[Any]:
        if path.suffix.lower() == ".parquet":
            with pq.ParquetFile(path) as file:
                yield from file.iter_batches(BLOCK)
            return
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as file:
            yield from (file.get_batch(i) for i in range(file.num_record_batches))

    for batch in batches():
        tensors = [
            name for name in batch.schema.names if isinstance(batch.schema.field(name).type, pa.FixedShapeTensorType)
        ]
        if not tensors:
            msg = f"{str(path)!r} has no column of frames; expected pyarrow.fixed_shape_tensor(pa.uint8(), (h, w)) or (h, w, 3)"
            raise ValueError(msg)
        yield from ((frame, float("nan")) for frame in batch.column(tensors[0]).to_numpy_ndarray())


def _windowed(frames: Iterable[tuple[np.ndarray, float]], window: Window) -> Iterator[tuple[np.ndarray, float, int]]:
    for number, (frame, pts) in enumerate(frames):
        if window.end is not None and number >= window.end:
            return
        if number < window.start or (number - window.start) % window.stride:
            continue
        if window.size is not None and frame.shape[1::-1] != window.size:
            cv2 = _package("cv2", "opencv-python-headless")
            frame = cv2.resize(frame, window.size, interpolation=cv2.INTER_AREA)
        yield frame, pts, number


def _batched(frames: Iterable[tuple[np.ndarray, float, int]]) -> Iterator[Frames]:
    waiting: list[tuple[np.ndarray, float, int]] = []
    for entry in frames:
        if waiting and entry[0].shape != waiting[0][0].shape:
            yield stacked(waiting)
            waiting = []
        # A luma plane belongs to the decoder, which may write the next frame there.
        waiting.append((entry[0].copy() if entry[0].base is not None else entry[0], *entry[1:]))
        if len(waiting) == BLOCK:
            yield stacked(waiting)
            waiting = []
    if waiting:
        yield stacked(waiting)


def stacked(entries: list[tuple[np.ndarray, float, int]]) -> Frames:
    """Return frames with their times and numbers as one batch."""
    frames, pts, numbers = zip(*entries, strict=True)
    return Frames(np.stack(frames), np.array(pts), np.array(numbers))


def _natural(path: Path) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _name(source: Any) -> str:
    return repr(str(source)) if isinstance(source, str | Path) else f"the {type(source).__name__} of frames"


def _package(module: str, package: str) -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        msg = f'this source needs {package}, which is not installed: run pip install "streamsvd[video]"'
        raise ImportError(msg) from error
