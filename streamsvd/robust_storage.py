"""Robust states as named arrays and JSON-ready values, and back, bit for bit."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from streamsvd.arrays import Array, to_numpy
from streamsvd.recursion import Core, RobustOptions

if TYPE_CHECKING:
    from streamsvd.robust_stream import Robust

ARRAYS = ("vt", "moments", "cross", "s2", "sums", "gram", "last")
HOST = ("gram", "last")


def robust_parts(state: Robust, /) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return the parts of a robust state."""
    arrays: dict[str, Array] = {}
    meta: dict[str, Any] = {"options": dataclasses.asdict(state.options)}
    if state.core is not None:
        held = {f.name: getattr(state.core, f.name) for f in dataclasses.fields(Core)}
        arrays |= {name: held.pop(name) for name in ARRAYS}
        meta["core"] = held
    for name in ("rows_waiting", "weights_waiting", "like"):
        if getattr(state, name) is not None:
            arrays[name] = getattr(state, name)
    return arrays, meta


def robust_from_parts(arrays: dict[str, Array], meta: dict[str, Any], /) -> tuple[Any, ...]:
    """Return the fields of a robust state."""
    core = None
    if "core" in meta:
        held = {name: arrays[name] for name in ARRAYS}
        held |= {name: to_numpy(held[name]) for name in HOST}
        core = Core(**held, **meta["core"])
    weights = arrays.get("weights_waiting")
    waiting = None if weights is None else to_numpy(weights)
    return RobustOptions(**meta["options"]), core, arrays.get("rows_waiting"), waiting, arrays.get("like")
