"""``streamsvd video IN --out DIR`` and ``streamsvd video demo``: a thin face of `streamsvd.pipelines.video.run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from streamsvd.pipelines.video.settings import VideoSettings
from streamsvd.settings import Json
from streamsvd.terminal import (
    FAILED,
    REJECTED,
    UsageError,
    checked_folder,
    checked_target,
    print_json,
    resumable,
    say,
    usage,
)

app = App(name="video", help="A static camera: background, foreground masks, tamper flags.", help_format="plaintext")
Kind = Literal["video", "png", "none"]


@app.default
def video(
    source: str,
    /,
    *,
    out: str,
    settings: VideoSettings = VideoSettings(),  # noqa: B008
    masks: Kind = "video",
    overlay: Kind = "video",
    start: int = 0,
    end: int | None = None,
    stride: int = 1,
    size: str | None = None,
    roi: str | None = None,
    eval_: Annotated[str | None, Parameter(name="--eval")] = None,
    checkpoint: str | None = None,
    preview: int | None = None,
    json: Json = False,
) -> int:
    """Model the background of a video, a folder of images, a URL or a camera.

    Parameters
    ----------
    source
        Video file; folder or quoted pattern of images; Parquet or Arrow file of fixed_shape_tensor frames; URL; number of a camera.
    out
        Folder for background.png, mask.mp4, overlay.mp4, frames.parquet, summary.json.
    masks
        Masks as H.264 video, as a folder of PNG files, or not at all.
    overlay
        The same for frames with their foreground in red.
    start
        First frame to read.
    end
        First frame not to read.
    stride
        Read every so many frames.
    size
        Scale frames to WIDTHxHEIGHT.
    roi
        Image that is black where nothing is to be looked at.
    eval_
        Folder of ground truth as in CDnet: prints precision, recall and F.
    checkpoint
        File that keeps the model: gone on from where it exists, written every 30 s and at the end.
    preview
        Show the overlay at http://127.0.0.1:PORT while it runs (0: any free port).
    json
        Print one JSON object.
    """
    from streamsvd.pipelines.video.live import is_live
    from streamsvd.pipelines.video.read import Window
    from streamsvd.pipelines.video.run import Job, model_video

    with usage():
        region, truth, kept = (None if value is None else Path(value) for value in (roi, eval_, checkpoint))
        window = Window(start=start, end=end, stride=stride, size=_size(size))
        if is_live(source) and window != Window():
            msg = f"{source!r} is live, where --start, --end, --stride and --size have no meaning; leave them out"
            raise UsageError(msg)
    checked_folder(out)
    if checkpoint is not None and not Path(checkpoint).exists():
        checked_target(checkpoint, [source], option="checkpoint")
    if preview is not None and not 0 <= preview < 65536:
        msg = f"--preview {preview} is no port; expected 0 to 65535, for example --preview 8000"
        raise UsageError(msg)
    job = Job(
        masks=masks,
        overlay=overlay,
        window=window,
        preview=preview,
        progress=False if json else None,
        roi=region,
        truth=truth,
        checkpoint=kept,
    )
    with resumable(checkpoint), usage(FileNotFoundError):
        values = model_video(source, out, settings, job) | {"out": out}
    print_json(values) if json else _show(values)
    if values["skipped"]:
        return say(f"done, but {values['skipped']:,} packets or images could not be decoded and were skipped", REJECTED)
    return 0


@app.command
def demo(*, out: str = "out", settings: VideoSettings = VideoSettings(), json: Json = False) -> int:  # noqa: B008
    """Run on an embedded scene whose masks are known, beside OpenCV's MOG2.

    Parameters
    ----------
    out
        Folder for the results and a picture.
    json
        Print one JSON object.
    """
    from streamsvd.pipelines.video import demo as story

    values = story.run(out, settings, progress=False if json else None)
    print_json(values) if json else _show_demo(values)
    if values["tampering"]["false"] or values["streamsvd"]["f"] < values["mog2"]["f"]:
        return say("the scene was not solved as it should be; please report this", FAILED)
    return 0


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) > 1 and int(height) > 1):
        msg = f"--size {text} is no size; expected WIDTHxHEIGHT, for example 640x360"
        raise UsageError(msg)
    return int(width), int(height)


def _show(values: dict[str, Any]) -> None:
    events = ", ".join(f"{count:,} {name}" for name, count in values["events"].items()) or "nothing unusual"
    rate = f" at {values['fps']:,.0f} frames/s of modelling" if values["fps"] else ""
    print(f"{values['frames']:,} frames{rate}; {events}")
    if values.get("dropped") or values.get("reconnects"):
        print(f"{values['dropped']:,} frames dropped because they came too fast, {values['reconnects']:,} reconnects")
    if "evaluation" in values:
        found = values["evaluation"]
        print(
            f"precision {found['precision']:.4f}  recall {found['recall']:.4f}  F {found['f']:.4f}  ({found['frames']:,} frames)"
        )
    print(f"wrote {values['out']}")


def _show_demo(values: dict[str, Any]) -> None:
    print(f"{'':<18}{'F':>8}{'precision':>11}{'recall':>8}{'frames/s of CPU':>17}")
    for name, label in (("streamsvd", "streamsvd"), ("mog2", "OpenCV MOG2")):
        row = values[name]
        print(f"{label:<18}{row['f']:>8.4f}{row['precision']:>11.4f}{row['recall']:>8.4f}{row['fps']:>17,.0f}")
    flags = values["tampering"]
    print(f"covered frames found: {flags['found']} of {flags['covered']}, false flags: {flags['false']}")
    print(f"wrote {values['out']}; picture: {values['picture']}")
