"""One state for each key: rows are told apart by the value of a column, and the states of all values are one state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from streamsvd.batch import as_batch
from streamsvd.flow.groups import Group, Key, encoded, grouped
from streamsvd.flow.spill import Folder, Spilled

if TYPE_CHECKING:
    import os

    from streamsvd.arrays import Array
    from streamsvd.factors import Factors
    from streamsvd.options import Options
    from streamsvd.planner import Plan, Sketch


@dataclass(frozen=True, eq=False)
class Keyed:
    """The states of many streams that come as one, told apart by a key.

    Invariant: the state of a key is, bit for bit, what folding the rows of that key alone, in their order, gives. It depends neither on how
    the stream was cut into batches, nor on how many states fit in memory, nor on whether it was on the disk in between.

    At most ``limit`` states are in memory. A further key is refused (``overflow="error"``), or the least recently seen state goes to a
    folder and comes back when its key is seen again (``overflow="spill"``). All rows of a batch count as seen together.
    """

    empty: Sketch
    states: Mapping[Key, Sketch] = field(default_factory=dict)  # least recently seen first
    spilled: Mapping[Key, Spilled] = field(default_factory=dict)
    limit: int = 1000
    folder: Folder | None = None  # None: a key beyond the limit is an error
    key_type: str | None = None  # that of the first batch
    rows: int = 0

    kind = "keyed"

    @classmethod
    def make(
        cls,
        empty: Sketch,
        /,
        *,
        limit: int = 1000,
        overflow: Literal["error", "spill"] = "error",
        folder: str | os.PathLike[str] | None = None,
    ) -> Keyed:
        """Return the state of a stream without rows.

        Parameters
        ----------
        empty : Gram or Truncated, without rows
            What each key begins with (``streamsvd.sketch(...)``).
        limit : int, at least 1
            Most states in memory.
        overflow : {"error", "spill"}
            What one key more does: raise, or send the least recently seen state to the folder.
        folder : path, for ``overflow="spill"``
            It is made when it is needed. `streamsvd.flow.spill.prune` removes from it what nothing needs any more.

        Raises
        ------
        TypeError, ValueError
            For a sketch that has rows or logs its left factor in a folder, and for options out of range.
        """
        _check_options(empty, limit, overflow, folder)
        place = Folder(Path(cast("Any", folder))) if overflow == "spill" else None
        return cls(empty, limit=int(limit), folder=place)

    @property
    def overflow(self) -> str:  # noqa: D102
        return "error" if self.folder is None else "spill"

    @property
    def options(self) -> Options:
        """What each of the states was asked for."""
        return cast("Any", self.empty).options

    @property
    def plan(self) -> Plan | None:  # noqa: D102
        return self.empty.plan

    @property
    def columns(self) -> int:  # noqa: D102
        return self.empty.columns

    @property
    def rank(self) -> int:  # noqa: D102
        return self.empty.rank

    @property
    def center(self) -> bool:  # noqa: D102
        return self.empty.center

    def update(self, X: Any, /, *, keys: Any, weights: Any = None, timestamps: Any = None) -> Keyed:
        """Return the state with the rows of a batch added, each to the state of its key.

        Parameters
        ----------
        X : array (b, d), rows are samples
        keys : Arrow array, or sequence (b,)
            Text, whole numbers, true/false or dates; of one type throughout the stream, without nulls. Dictionary-encoded ones cost least.
        weights, timestamps : array (b,), optional
            As in the states. Times must be in order within each key.

        Raises
        ------
        TypeError, ValueError
            For what the states refuse (the message names row or key), for other keys, and for a key too many. The state stays valid.
        OSError
            A state could not be written to the folder, or not read from it.

        Notes
        -----
        Cost: that of the states, and one copy of a batch whose keys are mixed. Memory: ``limit`` states and that copy.
        """
        batch = as_batch(X, columns=self.columns, finite=False)
        if batch.shape[0] == 0:
            return self
        key_type, values, codes = encoded(keys, batch.shape[0])
        self._same_type(key_type)
        draft = _Draft(replace(self, key_type=key_type))
        # Those in memory first: a new key then sends no state away that this batch still needs.
        for group in sorted(grouped(batch, codes, values, weights, timestamps), key=lambda g: g.key not in self.states):
            old = draft.take(group.key)
            draft.put(group.key, _updated(old, group, self, batch, weights))
            draft.rows += draft.states[group.key].rows - old.rows if group.key in draft.states else 0
        return draft.done()

    def merge(self, other: Keyed, /) -> Keyed:
        """Return the state of both streams together: keys that both have are merged. Limit and folder stay those of this state.

        Raises
        ------
        TypeError, ValueError, OSError
            For keys of another type, states made with other options, or more keys than the limit.

        Notes
        -----
        Cost: one merge for each key of the other.
        """
        if not isinstance(other, Keyed):
            msg = f"cannot merge one state for each key with a {getattr(other, 'kind', type(other).__name__)!r}; merge it with state[key]"
            raise TypeError(msg)
        self.empty.merge(other.empty)  # compares what they were asked for
        if other.rows == 0:
            return self
        self._same_type(cast("str", other.key_type))
        draft = _Draft(replace(self, key_type=other.key_type, rows=self.rows + other.rows))
        for key, state in other.items():
            draft.put(key, draft.take(key).merge(state))
        return draft.done()

    def __add__(self, other: Keyed) -> Keyed:
        """Merge: ``keyed + other``."""
        return self.merge(other) if isinstance(other, Keyed) else NotImplemented

    def keys(self) -> list[Key]:
        """Return the keys seen, in order of their values."""
        return sorted([*self.states, *self.spilled])  # pyright: ignore[reportArgumentType, reportCallIssue]  (all of one type)

    def items(self) -> Iterator[tuple[Key, Sketch]]:
        """Yield each key with its state, one after the other, so that those on the disk need not fit in memory together."""
        return ((key, self[key]) for key in self.keys())

    def __getitem__(self, key: Key) -> Sketch:
        """Return the state of a key."""
        if key in self.states:
            return self.states[key]
        if key in self.spilled:
            return _Draft(self).read(key)
        msg = f"there is no key {key!r} among {len(self.states) + len(self.spilled)}; .keys() lists them"
        raise KeyError(msg)

    def factors(self, rank: int | None = None, /) -> dict[Key, Factors]:
        """Return the factors of each key, in the order of `keys`; empty before any row."""
        return {key: state.factors(rank) for key, state in self.items()}

    def live_files(self) -> frozenset[str]:
        """Return the names of the files in the folder that this state needs."""
        return frozenset(entry.name for entry in self.spilled.values())

    def parts(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Return the arrays and the JSON-ready rest; spilled states are named, and their files are on the disk when this returns."""
        from streamsvd.flow.keyed_parts import keyed_parts

        return keyed_parts(self)

    @classmethod
    def from_parts(cls, arrays: dict[str, Array], meta: dict[str, Any], /) -> Keyed:
        """Restore the state from ``parts``. Spilled states are read when they are asked for."""
        from streamsvd.flow.keyed_parts import keyed_from_parts

        return keyed_from_parts(arrays, meta)

    def in_folder(self, folder: str | os.PathLike[str], /) -> Keyed:
        """Return the state with its spilled files looked for in another folder, such as one that was moved."""
        return replace(self, folder=Folder(Path(folder))) if self.folder is not None else self

    def _same_type(self, key_type: str) -> None:
        if self.key_type not in (None, key_type):
            msg = (
                f"keys of type {key_type} arrived, and those so far are of type {self.key_type}; cast them to one type"
            )
            raise TypeError(msg)


class _Draft:
    """The states that one update or merge works on, apart from those of the `Keyed` that it began with."""

    def __init__(self, keyed: Keyed) -> None:
        self.keyed, self.rows = keyed, keyed.rows
        self.states, self.spilled = dict(keyed.states), dict(keyed.spilled)

    def take(self, key: Key) -> Sketch:
        """Return the state of a key: from memory, from the disk, or the empty one."""
        if key in self.states:
            return self.states[key]
        return self.read(key) if key in self.spilled else self.keyed.empty

    def read(self, key: Key) -> Sketch:
        folder = self.keyed.folder
        assert folder is not None
        like = next((cast("Any", state).like for state in self.states.values()), None)
        try:
            return folder.read(self.spilled[key], like=like)
        except (OSError, ValueError) as error:
            msg = f"key {key!r}: {error}"
            raise (ValueError if isinstance(error, ValueError) else type(error))(msg) from error

    def put(self, key: Key, state: Sketch) -> None:
        """Enter a state as the most recently seen one, and make room for it where there is none."""
        if state.rows == 0:  # rows of weight 0 alone make no stream
            return
        if key not in self.states and len(self.states) >= self.keyed.limit:
            self._evict(key)
        self.states.pop(key, None)
        self.spilled.pop(key, None)
        self.states[key] = state

    def _evict(self, key: Key) -> None:
        folder = self.keyed.folder
        if folder is None:
            cure = 'allow more (keys=), let the least recently seen go to the disk (overflow="spill"), or check what the column holds'
            msg = f"{key!r} would be key {self.keyed.limit + 1}, and at most {self.keyed.limit} are allowed; the state is unchanged: {cure}"
            raise ValueError(msg)
        oldest = next(iter(self.states))
        self.spilled[oldest] = folder.write(self.states.pop(oldest))

    def done(self) -> Keyed:
        return replace(self.keyed, states=self.states, spilled=self.spilled, rows=self.rows)


def _updated(state: Sketch, group: Group, keyed: Keyed, batch: Array, weights: Any) -> Sketch:
    """Return the state with the rows of its group; what is wrong with a row is told by its number in the batch."""
    try:
        return state.update(group.x, weights=group.weights, timestamps=group.timestamps)
    except (TypeError, ValueError) as error:
        times = None if keyed.options.half_life is None else np.zeros(batch.shape[0])
        keyed.empty.update(batch, weights=weights, timestamps=times)
        kind = TypeError if isinstance(error, TypeError) else ValueError
        msg = f"among the {group.x.shape[0]} rows of key {group.key!r}: {error}"
        raise kind(msg) from error


def _check_options(empty: Any, limit: Any, overflow: str, folder: Any) -> None:
    if getattr(empty, "rows", None) != 0 or not hasattr(empty, "options"):
        msg = f"got {type(empty).__name__} with {getattr(empty, 'rows', 'no')} rows; expected an empty state: streamsvd.sketch(...)"
        raise TypeError(msg)
    if isinstance(empty.options.keep_left, str):
        msg = f"keep_left={empty.options.keep_left!r} is one folder for one stream, and here each key is one; write keep_left=False"
        raise ValueError(msg)
    if isinstance(limit, bool) or not hasattr(limit, "__index__") or int(limit) < 1:
        msg = f"keys={limit!r} arrived; expected how many states may be in memory, a whole number of at least 1"
        raise ValueError(msg)
    if overflow not in ("error", "spill"):
        cure = 'expected "error" (a key too many raises) or "spill" (the least recently seen state goes to a folder)'
        msg = f"overflow={overflow!r} arrived; {cure}"
        raise ValueError(msg)
    if overflow == "spill" and folder is None:
        msg = 'overflow="spill" wants a folder for the states that do not fit; name one with folder=PATH'
        raise ValueError(msg)
