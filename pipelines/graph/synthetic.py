"""Generated bipartite graphs: power-law degrees and communities, by seed, for tests, benchmarks and examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa


def power_law(
    users: int,
    items: int,
    edges: int,
    /,
    *,
    communities: int = 64,
    loyalty: float = 0.7,
    exponent: float = 0.5,
    seed: int = 0,
) -> pa.Table:
    """Return a graph as an Arrow table user, item (int32) of distinct edges in random order.

    Parameters
    ----------
    users, items, edges : int
        Ids are 0 .. users - 1 and 0 .. items - 1; not all of them need come up.
    communities : int
        User u belongs to community ``u % communities``, and so do items.
    loyalty : float
        Share of the edges within a community.
    exponent : float below 1
        The expected degree of the j-th of n nodes is proportional to ``(j / n)^-exponent``.

    Raises
    ------
    ValueError
        If so many distinct edges are not found in the graph.
    """
    import pyarrow as pa

    rng, keys = np.random.default_rng([seed, users, items, edges]), np.zeros(0, np.int64)
    group = -(-items // communities)
    for _ in range(40):
        missing = edges - keys.size
        if missing <= 0:
            break
        draw = int(1.1 * missing) + 100
        u = _places(rng, users, exponent, draw)
        own = u % communities + communities * _places(rng, group, exponent, draw)
        i = np.where((rng.random(draw) < loyalty) & (own < items), own, _places(rng, items, exponent, draw))
        keys = np.unique(np.concatenate([keys, (u << 32) | i]))
    if keys.size < edges:
        msg = f"found {keys.size} distinct edges of {edges} between {users} users and {items} items; ask for fewer"
        raise ValueError(msg)
    keys = rng.permutation(keys)[:edges]
    return pa.table({"user": (keys >> 32).astype(np.int32), "item": (keys & 0xFFFFFFFF).astype(np.int32)})


def _places(rng: np.random.Generator, n: int, exponent: float, size: int) -> np.ndarray:
    """Draw from the power law by its inverse distribution function."""
    return np.minimum((n * rng.random(size) ** (1.0 / (1.0 - exponent))).astype(np.int64), n - 1)
