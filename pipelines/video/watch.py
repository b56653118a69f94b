"""What each frame is: normal, tampered, or the same scene in another exposure, judged on a sample of its pixels.

A frame's weight q is the mean DPD weight of the sample. Relative to running references of normal frames, a frame is tampered if

- q < 0.6, by luma alone < 0.75, and edges are not in place (covered, noise, moved); or q < 0.8 and few of them are (moved a little);
- edges < 0.35 (out of focus);
- q < 0.9 of its median over 16 frames, while the share of grid cells that foreground fills rises at once by more than 0.15, or by 0.075
  and edges go (partly covered; held until either returns).

A frame that fits well after its exposure was found anew, or whose edges are in place in other colours, is an exposure event instead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from streamsvd.kernels.video import Rule

HISTORY = 16
MISPLACED, IN_PLACE = (
    0.4,
    0.55,
)  # shares of the usual edges that are where they belong: moved, and the same view in other colours
RISE, LIKELY, SURE = (
    0.15,
    0.075,
    0.25,
)  # of the share of filled cells, from one frame to the next: by itself, where edges go too,
# and where the same view came in other colours
SAMPLE_LEAST, SAMPLE_MOST, SAMPLE_SHARE = 1200, 8192, 64


@dataclass(frozen=True)
class Sample:
    """Pixels of a picture (h, w) on a grid that are looked at to judge a frame, and the 8 x 8 cell of each."""

    index: np.ndarray
    cell: np.ndarray
    totals: np.ndarray

    @classmethod
    def of(cls, shape: tuple[int, int], roi: np.ndarray) -> Sample:
        """Return the sample of a picture within its region of interest (h w,), uint8."""
        h, w = shape
        wanted = min(max(h * w // SAMPLE_SHARE, SAMPLE_LEAST), SAMPLE_MOST)
        step = max(1, int(np.sqrt(h * w / wanted)))
        y, x = np.meshgrid(np.arange(step // 2, h, step), np.arange(step // 2, w - 1, step), indexing="ij")
        index, cell = (y * w + x).reshape(-1), (y * 8 // h * 8 + x * 8 // w).reshape(-1)
        inside = roi[index] > 0
        if not inside.any():  # a region too small for the grid
            index = np.flatnonzero(roi)
            index = index[index % w < w - 1][:SAMPLE_LEAST]
            cell = index // w * 8 // h * 8 + index % w * 8 // w
            inside = np.ones(index.size, bool)
        index, cell = index[inside].astype(np.int64), cell[inside].astype(np.int64)
        return cls(index, cell, np.bincount(cell, minlength=64))


@dataclass(frozen=True)
class Stats:
    """What the sample says of a frame.

    ``weight`` mean weight, ``first`` that without a second try from ``ratio``, the median of frame over prediction; ``crowded`` share of
    filled cells; ``edges`` and ``shared``: steps between neighbours relative to those expected, all and those in place; ``luma`` mean
    weight by brightness alone.
    """

    weight: float
    first: float
    ratio: float
    crowded: float
    edges: float
    shared: float
    luma: float

    def values(self) -> tuple[float, ...]:
        """Return what has a running reference."""
        return self.weight, self.edges, self.shared, self.luma


@dataclass(frozen=True)
class Verdict:
    """What a frame is; ``event`` is "none", "tampered" or "exposure"."""

    tampered: bool
    event: str


@dataclass(frozen=True)
class References:
    """Running values of normal frames: ``usual`` weight, edges, shared edges and luma weight.

    ``history`` has these and crowded for the last 16 of them, ``held`` the weight that ends a hold (0: none).
    """

    usual: tuple[float, ...] = ()
    history: tuple[tuple[float, ...], ...] = ()
    judged: int = 0
    held: float = 0.0

    def low(self) -> float:
        """Return the weight below which a fit is tried again with another exposure."""
        return 0.75 * self.usual[0] if self.usual else 0.3


def judge(ref: References, stats: Stats, /) -> tuple[Verdict, References]:
    """Return what a frame is, and the references after it."""
    if ref.judged < HISTORY:
        return Verdict(False, "none"), _normal(ref, stats)
    q, edges, shared, luma = (new / old for new, old in zip(stats.values(), ref.usual, strict=True))
    if stats.weight > stats.first and q > 0.75 and 0.6 < edges < 1.5:
        return Verdict(False, "exposure"), _normal(replace(ref, held=0.0), stats)
    usual, crowded = (_middle([entry[i] for entry in ref.history]) for i in (0, -1))
    strange, in_place = q < 0.6 and luma < 0.75, shared > IN_PLACE and 0.9 < edges < 1.5
    gone = (strange and not in_place) or (q < 0.8 and shared < MISPLACED)
    if ref.held and edges >= 0.35 and not gone and (stats.weight >= ref.held or stats.crowded - crowded < RISE / 3):
        return Verdict(False, "none"), _normal(replace(ref, held=0.0), stats)
    # Against the last frame too: who walks up to the camera fills the picture bit by bit, a cover does so at once.
    rise = stats.crowded - max(crowded, ref.history[-1][-1])
    filled = rise > SURE if strange and in_place else rise > RISE or (rise > LIKELY and edges < 0.96)
    if stats.weight < 0.9 * usual and filled and not ref.held:
        ref = replace(ref, held=0.9 * usual)
    if gone or edges < 0.35 or ref.held:
        return Verdict(True, "tampered"), ref
    return Verdict(False, "exposure" if strange else "none"), _normal(ref, stats)


def references(seen: list[Stats], /, *, judged: int) -> References:
    """Return the references that frames would have left, all of them normal."""
    ref = References()
    for stats in seen[-HISTORY:]:
        ref = _normal(ref, stats)
    return replace(ref, judged=judged)


def _normal(ref: References, stats: Stats) -> References:
    """Let a normal frame enter the references: their median until there are 16, then 2 % of each."""
    history = (*ref.history, (*stats.values(), stats.crowded))[-HISTORY:]
    judged = ref.judged + 1
    if judged <= HISTORY or not ref.usual:
        fresh = [_middle(list(column)) for column in zip(*history, strict=True)][:-1]
    else:
        fresh = [0.98 * old + 0.02 * new for old, new in zip(ref.usual, stats.values(), strict=True)]
    return replace(ref, usual=tuple(max(value, 1e-6) for value in fresh), history=history, judged=judged)


def _middle(values: list[float]) -> float:
    """Return the median of a few numbers; NumPy's takes longer than all else that is done for a frame here."""
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


@dataclass
class Gauge:
    """The sampled part of a state, gathered when the background changes, and the fit of a frame to it."""

    sample: Sample
    rule: Rule
    u: np.ndarray
    near: np.ndarray
    s2: np.ndarray

    @classmethod
    def of(cls, sample: Sample, rule: Rule, u: np.ndarray, s2: np.ndarray, channels: int) -> Gauge:
        """Gather the sampled pixels of a background (r C, m) and their right neighbours."""
        shape = (u.shape[0] // channels, channels, sample.index.size)
        at, near = (np.ascontiguousarray(u[:, sample.index + step]).reshape(shape) for step in (0, 1))
        return cls(sample, rule, at, near, s2[sample.index])

    def fit(self, frame: np.ndarray, c: np.ndarray, low: float) -> tuple[np.ndarray, Stats]:
        """Return the coefficients (r,) of a frame (m C,) from those before it, and what the sample says."""
        from streamsvd.kernels import video_sample_numba

        found, stats = c.copy(), np.zeros(7, np.float32)
        slope = np.float32(self.rule.alpha / 32)
        decision = (np.float32(self.rule.tau2), np.float32(self.rule.least))
        s = self.sample
        video_sample_numba.inspect(
            stats, found, frame, s.index, s.cell, s.totals, self.u, self.near, self.s2, np.float32(low), slope, decision
        )
        return found, Stats(*stats.tolist())

    def edges_of(self, other: Gauge) -> float:
        """Return the edges of another background relative to those of this one, both at coefficients 1, 0, ..."""
        seen, own = (float(np.abs(g.near[0] - g.u[0]).sum()) for g in (other, self))
        return (seen + self.u[0].size) / (own + self.u[0].size)
