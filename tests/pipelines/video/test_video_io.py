"""Frames in: every source gives the same frames; damage is skipped and counted; live sources drop, reconnect and give up."""

from __future__ import annotations

import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from video_scenes import still

from streamsvd.pipelines.video.live import drained, is_live, live
from streamsvd.pipelines.video.read import Frames, Report, Window, _picture, read

av = pytest.importorskip("av")
cv2 = pytest.importorskip("cv2")
FRAMES = still(40)


def encoded(path, frames=FRAMES, *, codec="libx264", layout="yuv420p", rate=10, **options) -> str:
    """Write frames as video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], layout
        stream.options = {"crf": "1", **options} if codec == "libx264" else options
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24" if picture.ndim == 3 else "gray")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


def joined(batches) -> Frames:
    found = list(batches)
    assert all(len(batch.array) <= 16 for batch in found)
    return Frames(*(np.concatenate([getattr(batch, name) for batch in found]) for name in ("array", "pts", "numbers")))


def test_a_video_file_gives_its_frames_and_times(tmp_path):
    report = Report()
    found = joined(read(encoded(tmp_path / "a.mp4"), report=report))
    assert found.array.shape == FRAMES.shape
    assert np.abs(found.array.astype(int) - FRAMES).mean() < 3
    np.testing.assert_allclose(found.pts, np.arange(40) / 10)
    np.testing.assert_array_equal(found.numbers, np.arange(40))
    assert report.fps == 10


def test_luma_is_read_from_its_plane(tmp_path):
    gray = still(20, color=False)
    found = joined(read(encoded(tmp_path / "a.mkv", gray, codec="ffv1", layout="gray"), color=False))
    np.testing.assert_array_equal(found.array, gray)
    found = joined(read(encoded(tmp_path / "b.mp4"), color=False)).array
    assert found.shape == FRAMES.shape[:3]
    full = np.stack([cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in FRAMES])
    # The plane as it is: limited range, 16 to 235.
    assert np.corrcoef(found.reshape(-1).astype(float), full.reshape(-1).astype(float))[0, 1] > 0.99


@pytest.mark.parametrize("layout", ["yuv444p", "rgb24", "gray10le"])
def test_other_pixel_formats_are_converted(tmp_path, layout):
    codec, name = ("png", "a.avi") if layout == "rgb24" else ("ffv1", "a.mkv")
    path = encoded(tmp_path / name, codec=codec, layout=layout)
    for color in (True, False):
        assert joined(read(path, color=color)).array.shape == (FRAMES.shape if color else FRAMES.shape[:3])


def test_a_pixel_format_that_cannot_be_converted_is_named():
    class Frame:
        class format:
            name = "bayer_bggr16le"

        def to_ndarray(self, format):
            msg = "no conversion"
            raise ValueError(msg)

    for color in (True, False):
        with pytest.raises(ValueError, match=r"bayer_bggr16le.*convert it to yuv420p"):
            _picture(Frame(), color, av, "a.mkv")


def test_a_folder_a_pattern_and_one_image_are_read_in_order_of_their_numbers(tmp_path):
    for i in (10, 9, 100, 2):
        cv2.imwrite(str(tmp_path / f"f{i}.png"), np.full((8, 8, 3), i, np.uint8))
    (tmp_path / "notes.txt").write_text("not an image")
    for source in (tmp_path, str(tmp_path / "f*.png")):
        assert joined(read(source)).array[:, 0, 0, 0].tolist() == [2, 9, 10, 100]
    assert joined(read(tmp_path / "f9.png", color=False)).array.shape == (1, 8, 8)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("color", [True, False])
def test_frames_as_arrow_tensors_are_read(tmp_path, suffix, color):
    frames = FRAMES if color else FRAMES[..., 0].copy()
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(frames)
    table = pa.table({"id": range(40), "frame": column})
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    np.testing.assert_array_equal(joined(read(path)).array, frames)
    pq.write_table(table.select(["id"]), tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="fixed_shape_tensor"):
        list(read(tmp_path / "none.parquet"))


def test_arrays_and_iterables_are_read():
    np.testing.assert_array_equal(joined(read(FRAMES)).array, FRAMES)
    np.testing.assert_array_equal(joined(read(FRAMES[i : i + 7] for i in range(0, 40, 7))).array, FRAMES)


def test_a_window_takes_every_so_manieth_frame_and_scales():
    found = joined(read(FRAMES, window=Window(start=5, end=30, stride=3, size=(48, 36))))
    assert found.numbers.tolist() == list(range(5, 30, 3))
    assert found.array.shape == (9, 36, 48, 3)
    with pytest.raises(ValueError, match="no frames in this window"):
        list(read(FRAMES, window=Window(start=99)))
    with pytest.raises(ValueError, match="stride"):
        Window(stride=0)


def test_another_size_begins_another_batch():
    batches = list(read([FRAMES[:5], FRAMES[:5, :20]]))
    assert [batch.array.shape[:2] for batch in batches] == [(5, 72), (5, 20)]


def test_packets_that_cannot_be_decoded_are_skipped_and_counted_up_to_a_limit(tmp_path, monkeypatch):
    path = tmp_path / "a.avi"
    encoded(path, codec="mjpeg", layout="yuvj420p")
    data = bytearray(path.read_bytes())
    at = [i for i in range(len(data) - 1) if data[i : i + 3] == b"\xff\xd8\xff"]
    assert len(at) == 40
    for i in at[10:13]:
        data[i : i + 600] = bytes(600)
    path.write_bytes(data)
    report = Report()
    found = joined(read(path, report=report))
    assert report.skipped == 3
    assert len(found.array) == 37
    monkeypatch.setattr("streamsvd.pipelines.video.read.ERRORS", 2)
    with pytest.raises(ValueError, match="more than 2 packets"):
        list(read(path))


def test_images_that_cannot_be_read_are_skipped_and_counted(tmp_path, monkeypatch):
    for i in range(5):
        cv2.imwrite(str(tmp_path / f"{i}.png"), FRAMES[i])
    (tmp_path / "2.png").write_bytes(b"broken")
    report = Report()
    assert len(joined(read(tmp_path, report=report)).array) == 4
    assert report.skipped == 1
    monkeypatch.setattr("streamsvd.pipelines.video.read.ERRORS", 0)
    with pytest.raises(ValueError, match=r"2\.png"):
        list(read(tmp_path))


def test_what_is_no_video_is_refused(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"this is no video" * 100)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for name, error, words in [
        ("a.mp4", ValueError, "cannot be opened as video"),
        ("empty.mp4", ValueError, "cannot be opened as video"),
        ("none.mp4", FileNotFoundError, "there is no file"),
        ("folder", ValueError, "holds no images"),
        ("*.jpg", ValueError, "holds no images"),
    ]:
        with pytest.raises(error, match=words):
            list(read(str(tmp_path / name)))
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(ValueError, match="no video stream"):
        list(read(tmp_path / "sound.wav"))
    with pytest.raises(ValueError, match="no frames"):
        list(read(FRAMES[:0]))


def test_a_missing_package_is_named_with_its_extra(monkeypatch, tmp_path):
    path = encoded(tmp_path / "a.mp4")
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ImportError, match=r"streamsvd\[video\]"):
        list(read(path))


def test_urls_and_cameras_are_live():
    assert is_live("rtsp://camera/stream")
    assert is_live("0")
    assert not is_live("a.mp4")
    assert not is_live(FRAMES)


def test_a_slow_reader_drops_the_oldest_frames():
    sent, report = threading.Event(), Report()

    def grab():
        for i in range(100):
            yield np.full((4, 4), i, np.uint8), float(i)
        sent.set()

    batches = drained(grab, "camera", report, threading.Event(), retries=0, queue=20)
    first = next(batches)
    assert sent.wait(5)
    got = [value for batch in (first, *batches) for value in batch.array[:, 0, 0].tolist()]
    assert got[-20:] == list(range(80, 100))
    assert got == sorted(set(got))
    assert report.dropped == 100 - len(got)


def test_a_lost_connection_is_tried_again_after_a_growing_pause():
    tries: list[float] = []

    def grab():
        tries.append(time.monotonic())
        if len(tries) in (2, 3):
            msg = "no route"
            raise ValueError(msg)
        yield np.zeros((4, 4), np.uint8), 0.0

    report, stop = Report(), threading.Event()
    got = 0
    for batch in drained(grab, "camera", report, stop, retries=8, pause=0.05):
        got += len(batch.array)
        if got >= 2:
            stop.set()
    pauses = np.diff(tries[:4])
    assert pauses[1] > 0.08  # twice the first, which was 0.05
    assert pauses[2] > 0.16
    assert report.reconnects >= 3


def test_a_source_that_never_comes_is_given_up_and_named():
    def grab():
        msg = "no route to host"
        raise ValueError(msg)
        yield

    with pytest.raises(ConnectionError, match=r"'rtsp://x' in 3 attempts \(no route to host\)"):
        list(drained(grab, "rtsp://x", Report(), threading.Event(), retries=2, pause=0.001))


def test_an_unreachable_url_is_an_error_that_names_it():
    with pytest.raises(ConnectionError, match=r"http://127\.0\.0\.1:9"):
        list(live("http://127.0.0.1:9/a.mp4", retries=0))
