"""Frames and masks as the model takes them."""

from __future__ import annotations

from typing import Any

import numpy as np


def checked(frames: Any, *, single: bool) -> np.ndarray:
    """Return frames as a batch (b, h, w) or (b, h, w, 3) of uint8, contiguous."""
    array = np.asarray(frames)
    if array.dtype != np.uint8:
        msg = f"got frames of dtype {array.dtype}; expected uint8 (0 to 255): write frames.astype('uint8') if they have that range"
        raise TypeError(msg)
    array = array[None] if single else array
    fits = array.ndim == 3 or (array.ndim == 4 and array.shape[3] == 3)
    if not fits or min(array.shape[1:3]) < 2:
        wanted = "(h, w) or (h, w, 3)" if single else "(b, h, w) or (b, h, w, 3)"
        msg = f"got an array of shape {np.shape(frames)}; expected {wanted} of at least 2 x 2 pixels"
        raise ValueError(msg)
    return np.ascontiguousarray(array)


def region(roi: Any) -> np.ndarray:
    """Return a region of interest (h, w) as 0 and 1."""
    array = np.asarray(roi)
    if array.ndim != 2 or not array.any():
        empty = "" if array.any() else " without a pixel that is not 0"
        msg = f"got a roi of shape {array.shape}{empty}; expected (h, w), not 0 where to look"
        raise ValueError(msg)
    return (array != 0).astype(np.uint8)


def gray(array: np.ndarray) -> np.ndarray:
    """Return the luma (b, h, w) of frames (b, h, w, 3), blue first."""
    from streamsvd.kernels import video_image_numba

    out = np.empty(array.shape[:3], np.uint8)
    video_image_numba.luma(out.reshape(-1), np.ascontiguousarray(array).reshape(-1))
    return out


def cleaned(out: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Clean masks (b, h w), in place, by a 5 x 5 median, and return the foreground pixels of each."""
    from streamsvd.kernels import video_image_numba

    clean, counts = np.empty_like(out[0]), np.zeros(len(out), np.int64)
    for i, mask in enumerate(out):
        video_image_numba.median5(clean, mask, shape)
        mask[:] = clean
        counts[i] = np.count_nonzero(clean)
    return counts
