"""Recall and NDCG of rankings against held-out edges, averaged over the users that have some."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from streamsvd.pipelines.graph.recommend import Histories

CUTS = (20, 40)


class Ranked(Protocol):
    """Factors or a model: what has ids of users and items in the order of rows."""

    @property
    def users(self) -> Any: ...  # noqa: D102
    @property
    def items(self) -> Any: ...  # noqa: D102


def metrics(ranked: np.ndarray, held_out: Histories, /, *, cuts: tuple[int, ...] = CUTS) -> dict[str, float]:
    """Return ``recall@k`` and ``ndcg@k`` averaged over users with held-out items.

    Parameters
    ----------
    ranked : array (b, k), int; rows of items, best first, -1 for none
    held_out : Histories of the same b users
    cuts : tuple of int, at most k

    Notes
    -----
    Recall is hits / held-out items; NDCG takes binary gains ``1 / log2(place + 1)`` against the ideal order of ``min(k, held-out)`` items
    (Järvelin and Kekäläinen 2002). Users, not batches of users, are averaged.
    """
    wanted = np.diff(held_out.indptr)
    judged = np.flatnonzero(wanted > 0)
    if judged.size == 0:
        msg = "none of the users has a held-out item; evaluate on edges of users that are ranked"
        raise ValueError(msg)
    hit = _hits(ranked, held_out)[judged]
    gain = 1.0 / np.log2(np.arange(2, max(cuts) + 2))
    ideal = np.concatenate([[0.0], np.cumsum(gain)])
    found: dict[str, float] = {}
    for cut in cuts:
        top = hit[:, :cut]
        found[f"recall@{cut}"] = float((top.sum(axis=1) / wanted[judged]).mean())
        found[f"ndcg@{cut}"] = float((top @ gain[: top.shape[1]] / ideal[np.minimum(wanted[judged], cut)]).mean())
    return found | {"users": float(judged.size)}


def held_out(
    edges: Any, factors: Ranked, /, *, limit: int | None = None, seed: int = 0
) -> tuple[np.ndarray, Histories]:
    """Return the rows of users who have held-out edges and are in the factors, and their held-out items by rows of the factors.

    Parameters
    ----------
    edges : Arrow table, frame or dict with user and item
        Items that the factors do not know count as held out, and no ranking can hit them.
    limit : int, optional
        Take at most so many users, drawn by ``seed``.
    """
    from streamsvd.pipelines.graph.batch import as_table, ids_of
    from streamsvd.pipelines.graph.store import rows_of

    table = as_table(edges, "the held-out edges")
    u = rows_of(factors.users, ids_of(table.column("user"), "user", "the held-out edges"))
    i = rows_of(factors.items, ids_of(table.column("item"), "item", "the held-out edges"))
    i = np.where(i < 0, len(factors.items) + np.arange(i.size), i)
    users = np.unique(u[u >= 0])
    if limit is not None and users.size > limit:
        users = np.sort(np.random.default_rng(seed).choice(users, limit, replace=False))
    keep = np.isin(u, users)
    place = np.searchsorted(users, u[keep])
    return users, _grouped(place, i[keep], users.size)


def of_filter(graph: Any, edges: Any, /, *, cuts: tuple[int, ...] = CUTS) -> dict[str, float]:
    """Return what the training-free filter of a `GraphSVD` scores on held-out edges; items of its edges are left out of rankings."""
    from streamsvd.pipelines.graph.recommend import filter_scores, histories

    factors, store = graph.state_.factors or graph.refresh(), graph.state_.store
    users, wanted = held_out(edges, factors)
    A = store.matrix()[users]
    given = histories(A.indptr.astype(np.int64), A.indices, A.data, factors.v.shape[0])
    return metrics(filter_scores(factors, given, k=max(cuts))[0], wanted, cuts=cuts)


def unknown_users(edges: Any, factors: Ranked, /) -> int:
    """Return how many users of held-out edges the factors do not know: no ranking serves them, and an average over all counts them as 0."""
    from streamsvd.pipelines.graph.batch import as_table, ids_of
    from streamsvd.pipelines.graph.store import rows_of

    ids = ids_of(as_table(edges).column("user"), "user", "the held-out edges").unique()
    return int((rows_of(factors.users, ids) < 0).sum())


def _grouped(rows: np.ndarray, items: np.ndarray, users: int) -> Histories:
    from streamsvd.pipelines.graph.recommend import Histories

    order = np.lexsort((items, rows))
    rows, items = rows[order], items[order]
    new = np.append(True, (rows[1:] != rows[:-1]) | (items[1:] != items[:-1])) if rows.size else np.zeros(0, bool)
    rows, items = rows[new], items[new]
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=users))])
    return Histories(indptr, items.astype(np.int32), np.ones(items.size, np.float32))


def _hits(ranked: np.ndarray, held_out: Histories) -> np.ndarray:
    width = int(max(ranked.max(initial=0), held_out.items.max(initial=0))) + 1
    rows = np.repeat(np.arange(held_out.users, dtype=np.int64), np.diff(held_out.indptr))
    keys = rows * width + held_out.items
    asked = np.arange(ranked.shape[0], dtype=np.int64)[:, None] * width + ranked
    at = np.minimum(np.searchsorted(keys, asked), max(keys.size - 1, 0))
    return (ranked >= 0) & (keys[at] == asked) if keys.size else np.zeros(ranked.shape, bool)
