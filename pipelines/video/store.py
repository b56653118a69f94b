"""A scene as named arrays and JSON values, and back, to the bit."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from streamsvd.kernels.video import Arrays
from streamsvd.pipelines.video.scene import Scene
from streamsvd.pipelines.video.settings import VideoSettings
from streamsvd.pipelines.video.start import FrameBuffer
from streamsvd.pipelines.video.watch import References

_COUNTS = ("seen", "flagged", "attempt")


def scene_parts(scene: Scene, /) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the parts of a scene."""
    arrays = {"coef": scene.coef, "roi": scene.roi}
    meta: dict[str, Any] = {name: getattr(scene, name) for name in _COUNTS}
    meta |= {"shape": list(scene.shape), "channels": scene.channels, "restarts": list(scene.restarts)}
    meta["references"] = dataclasses.asdict(scene.ref)
    if scene.state is not None:
        arrays |= {f.name: getattr(scene.state, f.name) for f in dataclasses.fields(Arrays)}
    for name in ("buffer", "candidate"):
        kept: FrameBuffer | None = getattr(scene, name)
        if kept is not None:
            arrays[name] = kept.view()
            meta[name] = [len(kept.frames), kept.stride, kept.offered]
    if scene.waiting:
        assert scene.pending is not None
        arrays["pending"] = scene.pending[: len(scene.waiting)]
        arrays["pending_coef"] = np.array([c for c, _ in scene.waiting], np.float32)
        arrays["pending_usable"] = np.array([good for _, good in scene.waiting], bool)
    return arrays, meta


def scene_from_parts(arrays: dict[str, np.ndarray], meta: dict[str, Any], settings: VideoSettings, /) -> Scene:
    """Restore a scene."""
    scene = Scene(tuple(meta["shape"]), meta["channels"], settings, arrays["roi"])
    for name in _COUNTS:
        setattr(scene, name, int(meta[name]))
    scene.restarts, scene.coef = tuple(meta["restarts"]), arrays["coef"].copy()
    known = meta["references"]
    history = tuple(tuple(entry) for entry in known["history"])
    scene.ref = References(**{**known, "history": history, "usual": tuple(known["usual"])})
    scene.buffer = None
    if "u" in arrays:
        scene.state = Arrays(**{f.name: np.array(arrays[f.name]) for f in dataclasses.fields(Arrays)})
        scene._refresh()
    for name in ("buffer", "candidate"):
        if name in meta:
            setattr(scene, name, _buffer(arrays[name], *meta[name]))
    if "pending" in arrays:
        good = [(c, bool(usable)) for c, usable in zip(arrays["pending_coef"], arrays["pending_usable"], strict=True)]
        scene._wait(arrays["pending"], good)
    return scene


def _buffer(frames: np.ndarray, capacity: int, stride: int, offered: int) -> FrameBuffer:
    kept = FrameBuffer(frames.shape[1], capacity)
    kept.frames[: len(frames)] = frames
    kept.count, kept.stride, kept.offered = len(frames), stride, offered
    return kept
