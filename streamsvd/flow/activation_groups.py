"""What activation statistics were asked for, and which layers share a sketch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from streamsvd.options import Options


@dataclass(frozen=True)
class Asked:
    """What the statistics were asked for; two only go together if these agree."""

    sketch: str = "auto"
    rank: int = 16
    kept: int | None = None
    center: bool = False
    dtype: str = "float32"
    normalise: str | None = None
    seed: int = 0

    def options(self, columns: int, /) -> Options:
        """Return the options of the sketch of a layer of this width."""
        rank = min(self.rank, columns)
        kept = min(columns, max(2 * rank, rank + 10) if self.kept is None else max(self.kept, rank))
        return Options(columns=columns, rank=rank, kept=kept, center=self.center, dtype=self.dtype, seed=self.seed)


def regrouped(
    groups: dict[str, str], keys: dict[str, tuple[Any, ...]], order: Iterable[str], /
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the groups after a forward, and for each new leader of a group that came apart the leader whose sketch it begins with.

    Layers that have a history stay together as long as they read the same; layers reached for the first time join each other.
    """
    new: dict[str, str] = {}
    clones: dict[str, str] = {}
    leaders: dict[tuple[Any, ...], str] = {}
    for name in order:
        if name not in groups and name not in keys:
            continue
        old = groups.get(name)
        home = (old, keys.get(name, ()))
        if home not in leaders:
            taken_over = old is not None and old not in leaders.values()
            leaders[home] = old if taken_over and old is not None else name
            if old is not None and not taken_over:
                clones[name] = old
        new[name] = leaders[home]
    return new, clones


def asked(
    sketch: str, rank: int | None, kept: int | None, center: bool, dtype: Any, normalise: str | None, seed: int
) -> Asked:
    """Check what was asked for; ValueError says what is wrong with it."""
    from streamsvd.planner import named_dtype

    if sketch not in ("auto", "gram", "truncated"):
        msg = f"sketch={sketch!r} is not known; expected 'auto', 'gram' (exact moments) or 'truncated' (merge and truncate)"
        raise ValueError(msg)
    if normalise not in (None, "peft"):
        msg = f"normalise={normalise!r} is not known; expected None (all rows count the same) or 'peft' (each call divided by |max x|)"
        raise ValueError(msg)
    rank = 16 if rank is None else int(rank)
    if rank < 1 or (kept is not None and kept < rank):
        msg = f"rank={rank} and kept={kept}; expected 1 <= rank <= kept"
        raise ValueError(msg)
    return Asked(sketch, rank, kept, bool(center), named_dtype(dtype) or "float32", normalise, int(seed))
