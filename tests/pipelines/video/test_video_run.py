"""A whole run and its command line: files, resumption to the bit, evaluation, interruption, a full disk, wrong use."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from video_scenes import equal, walking

from streamsvd.launch import run
from streamsvd.pipelines.video import BackgroundModel, VideoSettings
from streamsvd.pipelines.video.cli import app
from streamsvd.pipelines.video.read import Window, read
from streamsvd.pipelines.video.run import Job, model_video, model_videos

av = pytest.importorskip("av")
cv2 = pytest.importorskip("cv2")
FRAMES, TRUTH = walking(100)
QUIET = {"progress": False}


def decoded(path: Path, layout: str = "gray") -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format=layout) for frame in container.decode(video=0)])


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A folder of images and one of ground truth, as CDnet lays them out."""
    for folder, pictures, name in (("input", FRAMES, "in"), ("groundtruth", TRUTH, "gt")):
        (tmp_path / folder).mkdir()
        for i, picture in enumerate(pictures):
            cv2.imwrite(str(tmp_path / folder / f"{name}{i + 1:06d}.png"), picture)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(capsys, *words: str) -> dict:
    assert run(app, [*words, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_a_run_writes_what_it_found(tmp_path):
    frames = FRAMES.copy()
    frames[70:75] = 12
    values = model_video(frames, tmp_path / "out", VideoSettings(), Job(**QUIET))
    out = BackgroundModel().update(frames)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "background.png",
        "frames.parquet",
        "mask.mp4",
        "overlay.mp4",
        "summary.json",
    ]
    table = pq.read_table(tmp_path / "out" / "frames.parquet")
    columns = "frame pts weight tampered event foreground sigma coefficients ms"
    assert table.column_names == columns.split()
    assert table["frame"].to_pylist() == list(range(100))
    np.testing.assert_array_equal(table["tampered"].to_numpy(), out.tampered)
    np.testing.assert_allclose(table["weight"].to_numpy(), out.weight, rtol=1e-6)
    np.testing.assert_allclose(table["foreground"].to_numpy(), out.fraction, rtol=1e-6)
    assert np.flatnonzero(out.tampered).tolist() == list(range(70, 75))
    shown = cv2.imread(str(tmp_path / "out" / "background.png"))
    np.testing.assert_array_equal(shown, out.background)
    masks = decoded(tmp_path / "out" / "mask.mp4")
    assert masks.shape == out.mask.shape
    assert ((masks > 127) != (out.mask > 0)).mean() < 0.01
    overlay = decoded(tmp_path / "out" / "overlay.mp4", "bgr24")
    red = overlay[-1][out.mask[-1] > 0].mean(0)
    assert red[2] > red[0] + 50
    kept = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert kept == values
    assert values["frames"] == 100
    assert values["events"] == {"tampered": 5}


@pytest.mark.parametrize("size", [(71, 96), (72, 95)])
def test_odd_sizes_are_encoded(tmp_path, size):
    frames = np.ascontiguousarray(FRAMES[:20, : size[0], : size[1]])
    model_video(frames, tmp_path, VideoSettings(), Job(**QUIET))
    assert decoded(tmp_path / "mask.mp4").shape == (20, size[0] // 2 * 2, size[1] // 2 * 2)
    assert cv2.imread(str(tmp_path / "background.png")).shape[:2] == size


def test_masks_as_images_keep_every_bit_and_the_number_of_their_frame(tmp_path):
    job = Job(masks="png", overlay="none", window=Window(start=10), **QUIET)
    model_video(FRAMES, tmp_path, VideoSettings(), job)
    files = sorted((tmp_path / "masks").iterdir())
    assert [file.name for file in files[:2]] == ["000010.png", "000011.png"]
    found = np.stack([cv2.imread(str(file), 0) for file in files])
    np.testing.assert_array_equal(found, BackgroundModel().update(FRAMES[10:]).mask)
    assert not (tmp_path / "overlay.mp4").exists()


@pytest.mark.parametrize("cut", [5, 50, 64])
def test_a_run_that_goes_on_from_its_checkpoint_is_exact(tmp_path, cut):
    kept, out = tmp_path / "m.svd", tmp_path / "out"
    first = Job(masks="png", overlay="none", checkpoint=kept, window=Window(end=cut), **QUIET)
    model_video(FRAMES, out, VideoSettings(), first)
    rest = Job(masks="png", overlay="none", checkpoint=kept, **QUIET)
    values = model_video(FRAMES, out, VideoSettings(), rest)
    assert values["frames"] == 100 - cut
    whole = BackgroundModel()
    masks = whole.update(FRAMES).mask
    assert equal(BackgroundModel.load(kept), whole)
    files = [*sorted((out / "masks").iterdir()), *sorted((out / f"masks-{cut}").iterdir())]
    np.testing.assert_array_equal(np.stack([cv2.imread(str(file), 0) for file in files]), masks)
    assert pq.read_table(out / f"frames-{cut}.parquet")["frame"].to_pylist() == list(range(cut, 100))
    assert model_video(FRAMES, out, VideoSettings(), rest)["frames"] == 0  # nothing is left to do
    with pytest.raises(ValueError, match="other settings"):
        model_video(FRAMES, out, VideoSettings(alpha=0.5), rest)


def test_a_checkpoint_with_another_roi_is_refused(tmp_path):
    for i, value in enumerate((255, 0)):
        roi = np.full((72, 96), 255, np.uint8)
        roi[:9] = value
        cv2.imwrite(str(tmp_path / f"roi{i}.png"), roi)
    jobs = [Job(roi=tmp_path / f"roi{i}.png", checkpoint=tmp_path / "m.svd", **QUIET) for i in range(2)]
    model_video(FRAMES[:20], tmp_path, None, jobs[0])
    with pytest.raises(ValueError, match="another roi"):
        model_video(FRAMES[:20], tmp_path, None, jobs[1])


@pytest.mark.parametrize("late", [False, True])
def test_an_interrupted_run_finishes_its_files_and_can_go_on(tmp_path, late, monkeypatch):
    def source():
        yield from (FRAMES[i : i + 16] for i in range(0, 48, 16))
        if late:  # within a batch that was not wholly folded
            monkeypatch.setattr(BackgroundModel, "update", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            yield FRAMES[48:64]
        raise KeyboardInterrupt

    job = Job(checkpoint=tmp_path / "m.svd", **QUIET)
    with pytest.raises(KeyboardInterrupt):
        model_video(source(), tmp_path / "out", None, job)
    monkeypatch.undo()
    assert pq.read_table(tmp_path / "out" / "frames.parquet").num_rows == 48
    assert len(decoded(tmp_path / "out" / "mask.mp4")) == 48
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["stopped"]
    assert job.checkpoint.exists() is not late
    model_video(FRAMES, tmp_path / "out", None, job)
    whole = BackgroundModel()
    whole.update(FRAMES)
    assert equal(BackgroundModel.load(job.checkpoint), whole)


def test_a_source_that_breaks_leaves_whole_files_and_no_drafts(tmp_path):
    def source():
        yield FRAMES[:32]
        msg = "the cable was cut"
        raise ValueError(msg)

    with pytest.raises(ValueError, match="cable"):
        model_video(source(), tmp_path, None, Job(masks="png", **QUIET))
    assert pq.read_table(tmp_path / "frames.parquet").num_rows == 32
    assert len(list((tmp_path / "masks").iterdir())) == 32
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


FULL = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from video_scenes import still
from streamsvd.pipelines.video.run import Job, model_video
frames = still(48, noise=30.0)
model_video(frames[:16], {warm!r}, None, Job(progress=False))
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
try:
    model_video(frames, {out!r}, None, Job(masks="png", overlay="video", progress=False))
except OSError as error:
    print(error)
"""


def test_a_full_disk_spoils_only_what_did_not_fit(tmp_path):
    out = tmp_path / "out"
    script = FULL.format(tests=str(Path(__file__).parent), warm=str(tmp_path / "warm"), out=str(out))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "overlay" in done.stdout
    assert "free some space" in done.stdout
    assert len(list((out / "masks").iterdir())) == 48
    assert pq.read_table(out / "frames.parquet").num_rows == 48
    assert not (out / "overlay.mp4").exists()
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_the_command_reads_a_folder_and_scores_it(images, capsys):
    words = ["input", "--out", "out", "--eval", "groundtruth", "--median", "--overlay", "none"]
    values = said(capsys, *words)
    assert values["frames"] == 100
    assert values["evaluation"]["f"] > 0.9
    assert values["evaluation"]["frames"] == 100
    (images / "temporalROI.txt").write_text("65 100")
    assert run(app, words) == 0
    shown = capsys.readouterr().out
    assert "precision" in shown
    assert "(36 frames)" in shown
    assert "wrote out" in shown


def test_the_command_goes_on_from_a_checkpoint(images, capsys):
    words = ["input", "--out", "out", "--checkpoint", "m.svd", "--masks", "none", "--overlay", "none"]
    assert [said(capsys, *words, "--end", "40")["frames"] for _ in range(2)] == [40, 0]
    assert said(capsys, *words)["frames"] == 60
    assert run(app, [*words, "--tau", "3"]) != 0
    assert "other settings" in capsys.readouterr().err


def test_images_that_were_skipped_are_an_exit_code_of_their_own(images, capsys):
    (images / "input" / "in000050.png").write_bytes(b"broken")
    assert run(app, ["input", "--out", "out", "--masks", "none", "--overlay", "none"]) == 3
    assert "1 packets or images could not be decoded" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none.mp4", "--out", "out"], "there is no file"),
        (["input", "--out", "m.txt"], "is a file"),
        (["input", "--out", "out", "--size", "big"], "WIDTHxHEIGHT"),
        (["input", "--out", "out", "--rank", "0"], "rank"),
        (["input", "--out", "out", "--start", "9", "--end", "3"], "start"),
        (["input", "--out", "out", "--roi", "m.txt"], "no image"),
        (["input", "--out", "out", "--roi", "small.png"], "of the size of the frames"),
        (["input", "--out", "out", "--eval", "none"], "no folder"),
        (["input", "--out", "out", "--eval", "small"], "must be of one size"),
        (["rtsp://127.0.0.1:9/x", "--out", "out", "--stride", "2"], "is live"),
    ],
)
def test_wrong_use_is_one_sentence_and_leaves_nothing(images, capsys, words, said):
    (images / "m.txt").write_text("text")
    cv2.imwrite("small.png", np.full((5, 5), 255, np.uint8))
    (images / "small").mkdir()
    cv2.imwrite("small/gt000001.png", np.zeros((5, 5), np.uint8))
    assert run(app, words) in (1, 2)
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    out = images / "out"
    assert not out.exists() or not [p for p in out.iterdir() if p.suffix in (".mp4", ".parquet", ".json")]


def test_the_preview_is_a_page_on_this_machine_only(caplog):
    from streamsvd.pipelines.video.show import preview

    with preview(0) as show:
        assert show is not None
        address = caplog.records[-1].getMessage().split()[-1]
        assert address.startswith("http://127.0.0.1:")
        show(FRAMES[0])
        with urllib.request.urlopen(address, timeout=5) as page:
            assert "multipart/x-mixed-replace" in page.headers["Content-Type"]
            data = page.read(400)
        assert b"image/jpeg" in data
        assert b"\xff\xd8" in data
    with preview(None) as show:
        assert show is None


def test_a_video_goes_in_and_comes_out_with_the_same_times(tmp_path, capsys):
    model_video(FRAMES, tmp_path / "a", VideoSettings(fps=10), Job(**QUIET))
    values = said(capsys, str(tmp_path / "a" / "overlay.mp4"), "--out", str(tmp_path / "b"), "--no-color")
    assert values["frames"] == 100
    pts = pq.read_table(tmp_path / "b" / "frames.parquet")["pts"].to_numpy()
    np.testing.assert_allclose(pts, np.arange(100) / 10, atol=1e-6)
    times = np.concatenate([batch.pts for batch in read(tmp_path / "b" / "mask.mp4")])
    np.testing.assert_allclose(times, np.arange(100) / 10, atol=1e-6)


@pytest.mark.slow
def test_the_demo_solves_its_scene_and_beats_mog2(tmp_path, capsys):
    pytest.importorskip("sklearn")
    values = said(capsys, "demo", "--out", str(tmp_path))
    assert values["streamsvd"]["f"] > values["mog2"]["f"] + 0.05
    assert values["tampering"] == {"found": 35, "false": 0, "covered": 35}
    assert (tmp_path / "video.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("input --rank 0", "--rank 0 has no meaning here"),
        ("input --preview 99999", "--preview 99999 is no port"),
        ("none.mp4", "there is no file 'none.mp4'"),
        ("input --roi none.png", "there is no file 'none.png' for the roi"),
        ("input --checkpoint no/m.svd", "to write 'm.svd' into; create it first"),
        ("input --eval none", "there is no folder 'none' of ground truth"),
    ],
)
def test_wrong_use_leaves_no_folder(images, capsys, words, said):
    assert run(app, [*words.split(), "--out", "out"]) == 2
    assert said in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_checkpoint_says_where_it_goes_on_and_which_settings_differ(images, capsys):
    words = ["input", "--masks", "none", "--overlay", "none", "--checkpoint", "m.svd"]
    assert run(app, [*words, "--out", "out"]) == 0
    capsys.readouterr()
    assert run(app, [*words, "--out", "again"]) == 0
    assert "m.svd has 100 frames: going on after as many of a stored source" in capsys.readouterr().err
    assert not Path("again").exists()  # nothing was left to do
    assert run(app, [*words, "--out", "again", "--alpha", "0.5"]) == 1
    assert "was written with other settings: --alpha 0.3 there, --alpha 0.5 here; give" in capsys.readouterr().err


def test_cameras_go_on_one_by_one_from_their_checkpoints(tmp_path) -> None:
    cameras, told = {"east": FRAMES[:24], "west": FRAMES[8:40]}, []

    def mapper(function, items):
        for item in items:
            told.append(item[1].name)
            yield function(item)

    out = model_videos(cameras, tmp_path, VideoSettings(), Job(**QUIET), mapper=mapper)
    assert told == ["east", "west"]
    for name, frames in cameras.items():
        assert out[name]["frames"] == len(frames)
        assert BackgroundModel.load(tmp_path / name / "model.svd").frames_ == len(frames)
        alone = model_video(frames, tmp_path / f"{name} alone", VideoSettings(), Job(**QUIET))
        assert {k: v for k, v in out[name].items() if k in ("frames", "events")} == {
            k: v for k, v in alone.items() if k in ("frames", "events")
        }
    again = model_videos(cameras, tmp_path, VideoSettings(), Job(**QUIET))  # what a worker that takes over finds
    assert all(BackgroundModel.load(tmp_path / name / "model.svd").frames_ == len(cameras[name]) for name in again)
