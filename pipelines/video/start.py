"""The first background: medians over a few frames that span all that were seen, and further components from what the medians leave."""

from __future__ import annotations

import numpy as np

from streamsvd.kernels.video import Arrays

CAPACITY = 32
TRUST = 10.0  # frames' worth of trust in a start
CHUNK = 1 << 16


class FrameBuffer:
    """At most ``capacity`` frames, evenly spread over all that were offered: when full, every second goes and the stride doubles."""

    def __init__(self, values: int, capacity: int = CAPACITY) -> None:
        self.frames = np.empty((capacity, values), np.uint8)
        self.count, self.stride, self.offered = 0, 1, 0

    def add(self, frame: np.ndarray) -> None:
        """Offer a frame (values,), uint8; a copy is kept if its turn has come."""
        if self.offered % self.stride == 0:
            if self.count == len(self.frames):
                self.frames[: self.count // 2] = self.frames[: self.count : 2].copy()
                self.count //= 2
                self.stride *= 2
            if self.offered % self.stride == 0:
                self.frames[self.count] = frame
                self.count += 1
        self.offered += 1

    def view(self) -> np.ndarray:
        """Return the frames that are kept, in order."""
        return self.frames[: self.count]


def begin(frames: np.ndarray, /, *, rank: int, channels: int, rival: bool, old: Arrays | None = None) -> Arrays:
    """Return the state that the medians of frames give.

    Parameters
    ----------
    frames : array (b, m channels), uint8, 1 <= b <= 255
    rank, channels : int
    rival : bool
        Keep a further colour for each pixel.
    old : Arrays, optional
        Its further colours stay, and its arrays are reused.

    Returns
    -------
    state : Arrays
        ``u`` median, ``s2`` squared MAD between 4 and 100 (an unbounded one is inflated by traffic), moments worth 10 frames.

    Notes
    -----
    Cost: about 50 ns a value for 32 frames. Memory: nothing but the state.
    """
    from streamsvd.kernels import video_image_numba
    from streamsvd.kernels.video_numba import TILE

    m, pairs = frames.shape[1] // channels, rank * (rank + 1) // 2
    state = old if old is not None else _empty(m, rank, channels, pairs, rival=rival)
    video_image_numba.begin(state.u, state.s2, frames, channels, TILE)
    state.u[channels:] = 0.0
    if rank > 1 and len(frames) > 2:
        _components(state, frames, rank, channels)
    state.moments[:] = 0.0
    for k in range(rank):
        state.moments[k * (k + 3) // 2] = TRUST
    np.multiply(state.u, np.float32(TRUST), out=state.moments[pairs:])
    return state


def _empty(m: int, rank: int, channels: int, pairs: int, *, rival: bool) -> Arrays:
    kept = m if rival else 0
    rows = (rank * channels, pairs + rank * channels)
    u, moments = (np.zeros((count, m), np.float32) for count in rows)
    return Arrays(
        u, moments, np.zeros(m, np.float32), np.zeros((channels, kept), np.float32), np.zeros(kept, np.float32)
    )


def _components(state: Arrays, frames: np.ndarray, rank: int, channels: int) -> None:
    """Write the leading singular vectors of the residuals, clipped at three scales; their coefficients have mean square 1."""
    b = len(frames)
    gram = np.zeros((b, b))
    for part in _residuals(state, frames, channels):
        gram += part @ part.T
    values, vectors = np.linalg.eigh(gram)
    leading = np.ascontiguousarray(vectors[:, ::-1][:, : rank - 1].T)
    found = min(rank - 1, int((values[::-1][: rank - 1] > 1e-6 * max(values[-1], 1.0)).sum()))
    m, start = state.s2.size, 0
    flat = state.u[channels:].reshape(rank - 1, channels, m)
    for part in _residuals(state, frames, channels):
        n = part.shape[1] // channels
        rows = leading[:found] @ part / np.sqrt(b)
        flat[:found, :, start : start + n] = rows.reshape(found, n, channels).transpose(0, 2, 1)
        start += n


def _residuals(state: Arrays, frames: np.ndarray, channels: int):
    """Yield the clipped residuals of all frames, array (b, n channels), float32, a part of the picture at a time."""
    m = state.s2.size
    for start in range(0, m, CHUNK):
        stop = min(start + CHUNK, m)
        center = state.u[:channels, start:stop].T.reshape(-1)
        bound = 3 * np.sqrt(np.repeat(state.s2[start:stop], channels))
        yield np.clip(frames[:, channels * start : channels * stop] - center, -bound, bound)
