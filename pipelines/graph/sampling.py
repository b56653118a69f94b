"""What a training step draws: edges in random order, items that a user has not seen, and nodes to contrast."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamsvd.pipelines.graph.store import EdgeStore


class Sampler:
    """Draws from the edges of a store, by a seed."""

    def __init__(self, store: EdgeStore, seed: int) -> None:
        self.rng = np.random.default_rng([seed, 1])
        self.items = store.shape[1]
        self.users = np.repeat(np.arange(store.shape[0], dtype=np.int64), np.diff(store.indptr))
        self.targets = store.indices.astype(np.int64)
        self.keys = self.users * self.items + self.targets

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield users, their items and negative items of one pass over the edges in random order."""
        order = self.rng.permutation(self.users.size)
        for start in range(0, order.size, size):
            rows = order[start : start + size]
            users = self.users[rows]
            yield users, self.targets[rows], self.negatives(users)

    def negatives(self, users: np.ndarray) -> np.ndarray:
        """Return an item for each user, drawn anew where the user has it (a user who has nearly all may get one of them)."""
        items = self.rng.integers(0, self.items, users.size)
        for _ in range(10):
            keys = users * self.items + items
            at = np.minimum(np.searchsorted(self.keys, keys), self.keys.size - 1)
            seen = np.flatnonzero(self.keys[at] == keys)
            if not seen.size:
                break
            items[seen] = self.rng.integers(0, self.items, seen.size)
        return items

    def contrasted(
        self, rows: np.ndarray, size: int, anchors: int, nodes: int | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return anchors among the distinct rows of a batch, and nodes among ``size``, None for all of them."""
        distinct = np.unique(rows)
        chosen = distinct if distinct.size <= anchors else self.rng.choice(distinct, anchors, replace=False)
        if nodes is None or nodes >= size:
            return chosen, None
        return chosen, self.rng.choice(size, nodes, replace=False)
