"""What engines share: a partition is folded into bytes, bytes of neighbours are merged, and both know which partitions they hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from streamsvd import __version__
from streamsvd.arrays import device_of, namespace
from streamsvd.flow import statefile
from streamsvd.flow.checkpoint import KINDS, class_of, contents, restored
from streamsvd.flow.checkpoints import Checkpoint
from streamsvd.flow.pieces import located
from streamsvd.flow.policies import Intake
from streamsvd.flow.request import check_settings
from streamsvd.waiting import Pending

NOTHING = "partition"  # the kind of file that holds a partition without rows, or what failed of it


@dataclass(frozen=True, eq=False)
class Part:
    """What partitions ``first .. first + count - 1`` became.

    Invariant: ``state`` holds each row of these partitions once, less the rows that ``intake`` counts as dropped and those of the
    partitions named in ``failed``; None where that leaves none.

    Attributes
    ----------
    first, count : int
        Numbers of partitions; parts merge only with their right neighbour, so that no partition can count twice or be passed over.
    state : Gram, Truncated, Keyed or None
    intake : Intake, rows seen, dropped and filled
    settings : dict, the options that decide the result
    names : tuple of str, the columns
    failed : dict of str by number (as a string), what was wrong with partitions that could not be folded
    """

    first: int
    count: int
    state: Any
    intake: Intake
    settings: dict[str, Any]
    names: tuple[str, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def place(self) -> dict[str, Any]:
        """Return what the file of a part says in the place of an offset."""
        return {"partitions": [self.first, self.count], "failed": self.failed, "version": __version__}

    def to_bytes(self) -> bytes:
        """Return a state file of kind "run", which `streamsvd.load` reads; of kind "partition" where there is no state."""
        if self.state is None:
            meta = {"offset": self.place, "intake": self.intake.to_json(), "settings": self.settings}
            return b"".join(statefile.encode(NOTHING, {}, {**meta, "names": list(self.names)})[1])
        run = Checkpoint(self.state, self.place, self.intake.to_json(), self.settings, self.names, finished=True)
        return b"".join(statefile.encode(*contents(run))[1])

    @classmethod
    def from_bytes(cls, data: Any, name: str = "a part", /) -> Part:
        """Restore a part from ``to_bytes``.

        Raises
        ------
        ValueError
            The bytes are damaged, hold something else, or come from another version of streamsvd, whose bits may differ.
        """
        kind, arrays, meta = statefile.decode(data, name, kinds=(*KINDS, NOTHING))
        meta = restored(meta)
        if kind not in ("run", NOTHING) or "partitions" not in (meta["offset"] or {}):
            msg = f"{name} holds a {kind!r} that no engine made; expected what folding a partition gives"
            raise ValueError(msg)
        place = meta["offset"]
        if place["version"] != __version__:
            msg = f"{name} was made by streamsvd {place['version']}, and this is {__version__}; install one version on all workers"
            raise ValueError(msg)
        state = Checkpoint.from_parts(arrays, meta).state if kind == "run" else None
        first, count = place["partitions"]
        intake, names = Intake.from_json(meta["intake"]), tuple(meta["names"])
        return cls(first, count, state, intake, meta["settings"], names, place["failed"])

    def merge(self, other: Part, /) -> Part:
        """Return both parts together; the other must begin where this one ends.

        Raises
        ------
        TypeError, ValueError
            For partitions that are in both or lie between, other options, other columns, another dtype; the message names them.
        """
        end = self.first + self.count
        if other.first != end:
            what = "a partition would count twice" if other.first < end else f"those from {end} on are missing"
            msg = f"{self.label} and {other.label} do not join: {what}"
            raise ValueError(msg)
        check_settings(self.settings, other.settings, f"{self.label} and {other.label}")
        both = self.state is not None and other.state is not None
        with located(f"{other.label}, after {self.label}"):
            if both and self.names != other.names:
                _different_names(self.names, other.names)
            mine: Any = self.state if self.state is not None else other.state
            state = mine.merge(other.state) if both else mine
        names = other.names if self.state is None and other.state is not None else self.names
        return Part(
            self.first,
            self.count + other.count,
            state,
            together(self.intake, other.intake),
            self.settings,
            names,
            {**self.failed, **other.failed},
        )

    @property
    def label(self) -> str:
        """Return the name of these partitions in messages."""
        return (
            f"partition {self.first}"
            if self.count == 1
            else f"partitions {self.first} to {self.first + self.count - 1}"
        )


def merged(parts: Iterable[Part], /) -> Part:
    """Merge parts from the left; memory: two of them."""
    whole: Part | None = None
    for part in parts:
        whole = part if whole is None else whole.merge(part)
    assert whole is not None
    return whole


def settled(state: Any, /) -> Any:
    """Return a state whose waiting rows are folded, so that (kept x d) numbers travel instead of five times as many."""
    if hasattr(state, "keys"):
        return replace(state, states={key: settled(one) for key, one in state.states.items()})
    return replace(state, core=state._folded(), pending=Pending()) if state.pending.count else state


def packed(obj: Any, /) -> bytes:
    """Return the bytes of the file that `streamsvd.save` would write."""
    return b"".join(statefile.encode(*contents(obj))[1])


def unpacked(data: Any, like: Any = None, /) -> Any:
    """Restore a state or factors from ``packed``, in the library and on the device of an array."""
    kind, arrays, meta = statefile.decode(data, "what another process sent", kinds=KINDS)
    if like is not None and not isinstance(like, np.ndarray):
        xp, where = namespace(like), device_of(like)
        arrays = {name: xp.asarray(array, device=where) for name, array in arrays.items()}
    return class_of(kind).from_parts(arrays, restored(meta))


def together(a: Intake, b: Intake, /) -> Intake:
    """Return the counts of two streams; what "mean" filled in came from the rows of each partition."""

    def total(x: dict[str, int], y: dict[str, int]) -> dict[str, int]:
        return {why: x.get(why, 0) + y.get(why, 0) for why in {**x, **y}}

    return Intake(a.seen + b.seen, total(a.dropped, b.dropped), total(a.filled, b.filled))


def _different_names(mine: Sequence[str], theirs: Sequence[str]) -> None:
    lacks, adds = [n for n in mine if n not in theirs], [n for n in theirs if n not in mine]
    what = f"lacks {lacks[:5]} and has {adds[:5]} besides" if lacks or adds else "has the columns in another order"
    msg = f"it {what}; write select=[...] to take the same columns everywhere"
    raise ValueError(msg)
