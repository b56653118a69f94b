"""What a run tells of itself at each checkpoint: its speed, and how far the rows have drifted from the components."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from streamsvd.arrays import to_numpy
from streamsvd.verify import angles

SHARE = 0.01  # of the time of a run may go into measuring drift, unless somebody listens
PACE = {"gram": 5e9, "truncated": 2e10}  # multiply-adds a second, for a guess before the first measurement


@dataclass(frozen=True)
class Event:
    """What was known of a run when a checkpoint was taken. What was not measured, or cannot be known, is None.

    Attributes
    ----------
    rows : int, folded so far
    seconds : float, that the run has taken so far, those before it was resumed included
    rows_per_second : float, since the event before
    captured : float, share (0 .. 1) of the energy of the rows since drift was last measured that lies in the components of then
    angle : float, largest principal angle between the components now and then, in radians
    residual : float, certified bound of what the components leave out, as a share of the energy (``bound.relative``)
    estimate : float, the unbiased estimate of the same
    path : str or None, the checkpoint
    seen, dropped, filled : rows read; rows left out and numbers filled in, by reason
    """

    rows: int
    seconds: float
    rows_per_second: float
    captured: float | None = None
    angle: float | None = None
    residual: float | None = None
    estimate: float | None = None
    path: str | None = None
    seen: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    filled: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, ready for one line of JSON."""
        return asdict(self)


class Reading(NamedTuple):
    """The components of a state, and all that later ones are compared with."""

    vt: np.ndarray  # (k, d) float64
    s: np.ndarray  # (k,)
    norm: float
    rows: int
    time: float


class Drift:
    """Compares a state with what it was at the event before; each time costs a ``factors()``.

    Parameters
    ----------
    always : bool
        Measure at every event. Otherwise only where that takes less than 1 % of the time since the last measurement (or less than
        10 ms), and None is given elsewhere: reading 4000 x 4000 second moments takes seconds.
    """

    def __init__(self, *, always: bool) -> None:
        self._always = always
        self._before: Reading | None = None
        self._cost: float | None = None
        self._ended = time.monotonic()

    def measure(self, state: Any) -> dict[str, float | None]:
        """Return ``captured``, ``angle``, ``residual`` and ``estimate`` of a state, and take it as what the next is compared with."""
        began = time.monotonic()
        if hasattr(state, "keys") or not (self._always or self._affordable(state, began)):
            return {}
        factors = state.factors(state.options.kept)
        bound = factors.truncate(rank=state.rank).bound
        values = {"residual": _finite(bound.relative), "estimate": _share(bound.estimate, factors.energy)}
        now = _reading(state, factors)
        if self._before is not None:
            values["captured"] = _captured(state, factors, self._before)
            values["angle"] = _finite(float(angles(self._before.vt, now.vt)[-1]))
        self._before, self._ended = now, time.monotonic()
        self._cost = self._ended - began
        return values

    def _affordable(self, state: Any, now: float) -> bool:
        cost = _guess(state) if self._cost is None else self._cost
        return cost <= SHARE * max(now - self._ended, 1.0)


def _guess(state: Any) -> float:
    """Return about how many seconds ``factors()`` will take."""
    d, r = state.columns, state.options.kept
    return (d**3 if state.kind == "gram" else 3 * r * (4.0 * r * d + 110.0 * r * r)) / PACE[state.kind]


def _reading(state: Any, factors: Any) -> Reading:
    k, times = state.rank, state.core.moments.time if state.core is not None else -math.inf
    s, vt = (to_numpy(array)[:k].astype(np.float64) for array in (factors.s, factors.vt))
    return Reading(vt, s, float(factors.norm), state.rows, state.pending.last_time(times))


def _captured(state: Any, factors: Any, then: Reading) -> float | None:
    """Return the share of the energy since ``then`` that lies in the components of then.

    Energies along fixed directions only age and grow: ``tr V A'A V' - fade tr V A_then'A_then V'`` is that of the rows since. Of truncated
    states it is what they still hold of it, so at most the truth. Amplitudes are taken as shares of the norm, which stay finite.
    """
    if state.options.unit or not factors.norm > 0:  # energies in the units of another moment do not compare
        return None
    now = _reading(state, factors)
    root = math.sqrt(_fade(state.options, then, now)) * then.norm / now.norm
    fresh = 1.0 - root * root
    if not fresh > 1e-9:
        return None
    s, vt = to_numpy(factors.s).astype(np.float64), to_numpy(factors.vt).astype(np.float64)
    along = float(np.sum(((s / now.norm)[:, None] * (vt @ then.vt.T)) ** 2))
    held = float(np.sum((then.s / then.norm) ** 2)) * root * root if then.norm > 0 else 0.0
    return min(1.0, max(0.0, (along - held) / fresh))


def _fade(options: Any, then: Reading, now: Reading) -> float:
    """Return the factor by which energies have aged between two readings."""
    if options.half_life is not None:
        passed = now.time - then.time
        return 0.5 ** (passed / options.half_life) if math.isfinite(passed) else 1.0
    return options.decay ** (now.rows - then.rows)


def _share(part: float | None, whole: float) -> float | None:
    return None if part is None or not whole > 0 else _finite(part / whole)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
