"""How a background is modelled: one frozen dataclass that the Python call and the command line share."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from streamsvd.kernels.video import Rule

BLOCK = 16  # frames between two refreshes of the background
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
Flag = Annotated[bool, Parameter(negative=())]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class VideoSettings:
    """How a background is modelled; the options of `BackgroundModel` under the same names and with the same defaults."""

    rank: int = 1
    """Components: 1 for a still scene with one light, more for lights that change apart."""
    alpha: float = 0.3
    """Of the density power divergence: 0 is least squares, 1 most robust."""
    color: bool = True
    """Model the three channels of colour frames; otherwise their luma."""
    memory: str = "30s"
    """Time constant with which the background forgets."""
    absorb: str = "4s"
    """What stays the same colour for so long becomes background; 0s: never."""
    tau: float | None = None
    """Threshold in standard deviations of a pixel; 5 in colour, 4 in gray by default."""
    least: float | None = None
    """Smallest threshold in gray levels; 14 in colour, 10 in gray by default."""
    median: Flag = False
    """Clean masks by a 5 x 5 median."""
    fps: float = 25.0
    """Frames a second, by which the times above become frames."""
    reset: str = "30s"
    """A picture that stays flagged so long and agrees with itself is a new scene."""
    resize: Literal["reset", "error"] = "reset"
    """What a frame of another size does: begin a new scene, or stop."""
    threads: int = 1
    """Threads for the pixels; the result is the same to the bit."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or not 1 <= self.rank <= 16:
            _refuse("rank", self.rank, "a whole number from 1 to 16", "rank=1")
        if not isinstance(self.threads, int) or self.threads < 1:
            _refuse("threads", self.threads, "a whole number of at least 1", "threads=2")
        if not 0.0 <= self.alpha <= 1.0:
            _refuse("alpha", self.alpha, "a number from 0 to 1", "alpha=0.3")
        if not (self.fps > 0 and math.isfinite(self.fps)):
            _refuse("fps", self.fps, "frames a second above 0", "fps=25")
        for name in ("tau", "least"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                _refuse(name, value, "a number above 0", f"{name}=5")
        if self.resize not in ("reset", "error"):
            _refuse("resize", self.resize, "'reset' or 'error'", "resize='reset'")
        for name in ("memory", "reset"):
            if seconds(getattr(self, name), name) <= 0:
                _refuse(name, getattr(self, name), "a time above 0", f"{name}='30s'")
        seconds(self.absorb, "absorb")

    def rule(self, channels: int, /) -> Rule:
        """Return the constants of the sweep, by which each block of `BLOCK` frames enters."""
        tau = self.tau if self.tau is not None else (5.0 if channels == 3 else 4.0)
        least = self.least if self.least is not None else (14.0 if channels == 3 else 10.0)
        memory, absorb = self.fps * seconds(self.memory, "memory"), self.fps * seconds(self.absorb, "absorb")
        return Rule(
            tau2=tau**2,
            least=least**2,
            alpha=self.alpha,
            decay=math.exp(-BLOCK / memory),
            # The scale follows five times faster than the background, and a rival colour is forgotten in five absorb times.
            eta=math.exp(-5 * BLOCK / memory),
            floor=4.0,
            patience=max(absorb, 4.0),
            keep=math.exp(-BLOCK / (5.3 * absorb)) if absorb else 1.0,
        )


def seconds(value: str | float, name: str, /) -> float:
    """Return a time in seconds.

    >>> seconds("1.5m", "memory"), seconds("400ms", "absorb"), seconds(30, "memory")
    (90.0, 0.4, 30.0)
    """
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|m|h)?", str(value).strip())
    if found is None:
        _refuse(name, value, "a time as a number and ms, s, m or h", f"{name}='30s'")
        return 0.0
    return float(found[1]) * _UNITS[found[2] or "s"]


def _refuse(name: str, value: object, expected: str, cure: str) -> None:
    msg = f"{name}={value!r} has no meaning here; expected {expected}, for example {cure}"
    raise ValueError(msg)
