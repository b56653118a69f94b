"""The one order of merging: neighbours, ``fan_in`` at a time, level by level, by number; whatever the schedule, the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Tree:
    """Merges leaves that arrive in order, as soon as ``fan_in`` neighbours of a level are there.

    The node ``j`` of level ``l`` covers the leaves ``j f^l .. (j + 1) f^l - 1``; the last node of a level may cover fewer. Each
    level holds at most ``fan_in - 1`` nodes that wait: with ``fan_in=2`` one waits and one arrives, so two for each level.

    Parameters
    ----------
    merge : function of a list of 2 or more neighbours; it gets handles, so the work itself may be done elsewhere
    fan_in : int, at least 2
    """

    def __init__(self, merge: Callable[[list[Any]], Any], fan_in: int, /) -> None:
        self._merge, self._fan_in = merge, fan_in
        self._levels: list[list[Any]] = []

    def add(self, leaf: Any, /) -> None:
        """Take the next leaf."""
        self._put(0, leaf)

    def root(self) -> Any:
        """Merge what waits, from the leaves up, and return the whole; None where there was no leaf."""
        carried: list[Any] = []
        for waiting in self._levels:
            group = [*waiting, *carried]
            carried = [group[0] if len(group) == 1 else self._merge(group)] if group else []
        self._levels = [carried] if carried else []
        return carried[0] if carried else None

    def waiting(self) -> int:
        """Return how many nodes are held."""
        return sum(len(level) for level in self._levels)

    def _put(self, level: int, node: Any) -> None:
        if level == len(self._levels):
            self._levels.append([])
        self._levels[level].append(node)
        if len(self._levels[level]) == self._fan_in:
            group, self._levels[level] = self._levels[level], []
            self._put(level + 1, self._merge(group))


def groups(leaves: int, fan_in: int, /) -> int:
    """Return how many levels of merging a number of leaves takes."""
    depth = 0
    while leaves > 1:
        leaves, depth = -(-leaves // fan_in), depth + 1
    return depth
