"""What a run leaves in its folder: pictures, videos of masks, a table of frames; nothing half-written under its final name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from streamsvd.flow.sinks import draft_of, table_sink
from streamsvd.flow.statefile import write_atomically
from streamsvd.pipelines.video.model import Update
from streamsvd.pipelines.video.read import Frames, _package

Kind = Literal["video", "png", "none"]
RED = np.array([40, 40, 230], np.uint16)


class Outputs:
    """The files of a run, each open until `close`; a file that fails does not take the others with it."""

    def __init__(self, folder: Path, *, masks: Kind, overlay: Kind, fps: float, suffix: str = "") -> None:
        self.folder, self.fps, self.suffix = folder, fps, suffix
        self.kinds = {"mask": masks, "overlay": overlay}
        self.failed: list[tuple[str, OSError]] = []
        self._open: dict[str, tuple[ExitStack, Callable[..., None]]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._parts: dict[str, int] = {}

    def add(self, batch: Frames, out: Update, seconds: float) -> None:
        """Write what a batch brought."""
        self._write("frames", lambda: _table(self.folder / f"frames{self.suffix}.parquet"), batch, out, seconds)
        for name, kind in self.kinds.items():
            if kind == "none":
                continue
            pictures = out.mask if name == "mask" else overlays(batch.array, out.mask)
            if kind == "png":
                self._write(
                    name, lambda name=name: _folder(self.folder / f"{name}s{self.suffix}"), pictures, batch.first
                )
                continue
            self._write(self._part(name, pictures.shape[1:]), lambda key=name: self._video(key), pictures)

    def background(self, image: np.ndarray) -> None:
        """Write background.png."""
        cv2 = _package("cv2", "opencv-python-headless")
        write_atomically(self.folder / "background.png", [cv2.imencode(".png", image)[1].tobytes()])

    def close(self, *, whole: bool = True) -> None:
        """Finish what is open; without ``whole`` remove it."""
        for name, (stack, _) in list(self._open.items()):
            self._finish(name, stack, None if whole else RuntimeError("stopped"))
        self._open = {}

    def _part(self, name: str, shape: tuple[int, ...]) -> str:
        """Return the key of the video that pictures of this size go to: another size begins another file."""
        if self._shapes.get(name, shape) != shape:
            key = self._key(name)
            if key in self._open:
                self._finish(key, self._open.pop(key)[0], None)
            self._parts[name] = self._parts.get(name, 1) + 1
        self._shapes[name] = shape
        return self._key(name)

    def _key(self, name: str) -> str:
        return name if self._parts.get(name, 1) == 1 else f"{name}-{self._parts[name]}"

    def _video(self, name: str) -> Any:
        return _movie(self.folder / f"{self._key(name)}{self.suffix}.mp4", self.fps)

    def _write(self, name: str, opened: Callable[[], Any], *values: Any) -> None:
        if any(name == failed for failed, _ in self.failed):
            return
        try:
            if name not in self._open:
                stack = ExitStack()
                self._open[name] = (stack, stack.enter_context(opened()))
            self._open[name][1](*values)
        except OSError as error:
            self.failed.append((name, error))
            if name in self._open:
                self._finish(name, self._open.pop(name)[0], error)

    def _finish(self, name: str, stack: ExitStack, error: BaseException | None) -> None:
        try:
            if error is None:
                stack.close()
            else:
                stack.__exit__(type(error), error, None)
        except (OSError, RuntimeError) as found:
            if isinstance(found, OSError) and found is not error:
                self.failed.append((name, found))


def overlays(frames: np.ndarray, masks: np.ndarray, /) -> np.ndarray:
    """Return the frames in colour (b, h, w, 3) with their foreground in red."""
    frames = frames if frames.ndim == 4 else np.repeat(frames[..., None], 3, axis=3)
    mixed = ((frames.astype(np.uint16) + 2 * RED) // 3).astype(np.uint8)
    return np.where(masks[..., None] > 0, mixed, frames)


def schema() -> Any:
    """Return the columns of frames.parquet: one row for each frame."""
    import pyarrow as pa

    return pa.schema(
        [
            ("frame", pa.int64()),
            ("pts", pa.float64()),
            ("weight", pa.float32()),
            ("tampered", pa.bool_()),
            ("event", pa.string()),
            ("foreground", pa.float32()),
            ("sigma", pa.float32()),
            ("coefficients", pa.list_(pa.float32())),
            ("ms", pa.float32()),
        ]
    )


@contextmanager
def _table(path: Path) -> Iterator[Callable[[Frames, Update, float], None]]:
    import pyarrow as pa

    columns = schema()
    with table_sink(path, columns) as write:

        def add(batch: Frames, out: Update, seconds: float) -> None:
            b = len(batch.array)
            pts = pa.array(batch.pts, from_pandas=True)  # NaN is no time: null
            values = [batch.numbers, pts, out.weight, out.tampered, list(out.event), out.fraction]
            values += [np.full(b, out.sigma), list(out.coef), np.full(b, 1e3 * seconds / b)]
            arrays = [pa.array(value, field.type) for value, field in zip(values, columns, strict=True)]
            write(pa.record_batch(arrays, schema=columns))

        yield add


@contextmanager
def _movie(path: Path, fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Encode pictures (b, h, w[, 3]) as H.264; an odd width or height loses its last column or row, for 4:2:0 has no half pixels."""
    av = _package("av", "av")
    with draft_of(path) as draft:
        container = av.open(str(draft), "w", format="mp4")
        stream = None

        def write(pictures: np.ndarray) -> None:
            nonlocal stream
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
                stream.height, stream.width = (size - size % 2 for size in pictures.shape[1:3])
                stream.pix_fmt, stream.options = "yuv420p", {"preset": "veryfast", "crf": "20"}
            for picture in pictures[:, : stream.height, : stream.width]:
                layout = "bgr24" if picture.ndim == 3 else "gray"
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=layout)
                container.mux(stream.encode(frame))

        try:
            yield write
            if stream is not None:
                container.mux(stream.encode(None))
        finally:
            container.close()


@contextmanager
def _folder(path: Path) -> Iterator[Callable[[np.ndarray, int], None]]:
    """Write pictures as PNG files into a folder that appears when all are there."""
    cv2 = _package("cv2", "opencv-python-headless")
    draft = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")
    draft.mkdir()
    count = 0

    def write(pictures: np.ndarray, first: int) -> None:
        nonlocal count
        count = max(count, first)
        for picture in pictures:
            (draft / f"{count:06d}.png").write_bytes(cv2.imencode(".png", picture)[1].tobytes())
            count += 1

    try:
        yield write
        if path.exists():
            shutil.rmtree(path)
        draft.replace(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
