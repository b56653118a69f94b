"""What a run was asked for: the options of `streamsvd.fit` as one frozen value."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from streamsvd.planner import in_seconds, named_dtype, sketch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta
    from pathlib import Path

Kind = Literal["auto", "gram", "truncated"]
READING = ("select", "nulls", "nonfinite", "weights", "timestamps", "by")
SKETCH = ("rank", "center", "kept", "shrink", "decay", "half_life", "dtype", "seed", "exact")
KEYED = ("keys", "overflow")


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """The options of `streamsvd.fit` that decide its result, with the same names and defaults."""

    rank: int
    kind: Kind = "auto"
    select: str | Sequence[str] | None = None
    center: bool = True
    weights: str | None = None
    timestamps: str | None = None
    nulls: str = "error"
    nonfinite: str = "error"
    quarantine: str | os.PathLike[str] | None = None
    kept: int | None = None
    shrink: float = 0.0
    decay: float | None = None
    half_life: float | str | timedelta | None = None
    dtype: Any = None
    seed: int = 0
    scale: Any = None
    exact: bool = False
    by: str | None = None
    keys: int = 1000
    overflow: Literal["error", "spill"] = "error"

    @property
    def unit(self) -> bool:
        """Whether columns are to be scaled to unit variance."""
        return isinstance(self.scale, str) and self.scale == "unit"

    def reading(self) -> dict[str, Any]:
        """Return the options of a pass over the source."""
        return {name: getattr(self, name) for name in READING}

    def sketch(self, columns: int, /, *, kind: Kind | None = None, scale: Any = None) -> Any:
        """Return the empty state for rows of this width."""
        options = {name: getattr(self, name) for name in SKETCH}
        return sketch(columns=columns, kind=kind or self.kind, scale=scale, **options)

    def keyed(self, empty: Any, folder: Path | None, /) -> Any:
        """Return a state for each key, none so far, where that was asked for; else the empty state itself."""
        if self.by is None:
            return empty
        from streamsvd.flow.keyed import Keyed

        return Keyed.make(empty, limit=self.keys, overflow=self.overflow, folder=folder)

    def settings(self) -> dict[str, Any]:
        """Return what the result depends on as plain JSON values."""
        values = {name: getattr(self, name) for name in ("kind", *READING, *SKETCH, *KEYED)}
        seconds = in_seconds(self.half_life)
        values |= {
            "select": [self.select] if isinstance(self.select, str) else self.select and list(self.select),
            "half_life": self.half_life if seconds is None else f"{seconds!r} s",
            "dtype": named_dtype(self.dtype),
            "scale": self.scale if self.scale is None or isinstance(self.scale, str) else _digest(self.scale),
            "quarantine": None if self.quarantine is None else os.fspath(self.quarantine),
        }
        return {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}


def check_settings(then: dict[str, Any], now: dict[str, Any], path: Any, /) -> None:
    """Refuse to go on with a run under other options; the message names each with both of its values."""
    different = [name for name in now if name in then and then[name] != now[name]]
    if different:
        changes = ", ".join(f"{name}={then[name]!r} became {name}={now[name]!r}" for name in different)
        msg = (
            f"the run in {str(path)!r} was begun with other options: {changes}; "
            "write the old ones to go on with it, or give another checkpoint= to begin anew"
        )
        raise ValueError(msg)


def _digest(scale: Any) -> str:
    vector = np.ascontiguousarray(np.asarray(scale), dtype=np.float64)
    return f"vector {hashlib.blake2b(vector.tobytes(), digest_size=8).hexdigest()}"
