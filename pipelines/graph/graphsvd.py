"""``GraphSVD``: a bipartite graph that arrives as batches of edges, its factors kept fresh, recommendations from them."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.pipelines.graph import recommend as filters
from streamsvd.pipelines.graph import store as stores
from streamsvd.pipelines.graph.refresh import GraphState, refreshed
from streamsvd.pipelines.graph.settings import GraphSettings

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from streamsvd.pipelines.graph.factors import GraphFactors

logger = logging.getLogger("streamsvd")


class GraphSVD:
    """The normalised SVD of a growing bipartite graph, and a training-free recommender on it.

    Parameters
    ----------
    rank : int
    validation : Arrow table or frame of held-out edges (user, item), optional
        ``regularise="auto"`` then takes the t of {0, 0.25, 0.5, 1} whose factors rank them best (Recall@20 of the filter); without it,
        t follows from how localised the factors are at t = 0. It is chosen once, at the first refresh; `retune` chooses anew.
    **options
        The fields of `GraphSettings`: ``regularise``, ``normalise``, ``components``, ``duplicates``, ``energy``, ``passes``, ``seed``.

    Notes
    -----
    The edges are the truth: a new edge rescales a row and a column, which is no low-rank update, so a refresh is one or more passes over
    all edges that start from the factors before. Removals are exact. Not for graphs whose edges do not fit in memory (about 12 bytes each,
    28 while a refresh runs, and the factors).

    Examples
    --------
    >>> edges = {"user": ["ann", "ann", "bob", "bob", "cleo"], "item": [1, 2, 1, 3, 3]}
    >>> g = GraphSVD(rank=2, regularise=0.5).update(edges)
    >>> g.recommend(histories={"dan": [1]}, k=1).to_pylist()
    [{'user': 'dan', 'item': ..., 'score': ...}]
    """

    def __init__(self, rank: int = 64, *, validation: Any = None, **options: Any) -> None:
        settings = options.pop("settings", None) or GraphSettings(rank=rank, **options)
        self.state_ = GraphState(settings, stores.EdgeStore())
        self.validation = validation

    @property
    def settings(self) -> GraphSettings:
        """The options."""
        return self.state_.settings

    @property
    def pending(self) -> int:
        """Rows of batches that came after the last refresh."""
        return self.state_.store.operations - self.state_.folded

    def update(self, edges: Any, /, *, batch_id: str | None = None) -> GraphSVD:
        """Take in a batch of edges, whole or, where it is refused, not at all; see `store.update` for its columns and its errors.

        A batch whose id went in before is left out, and the log says so. Factors are made at the next `refresh` or `factors`.
        """
        before = self.state_.store
        store = stores.update(before, edges, duplicates=self.settings.duplicates, batch_id=batch_id)
        if store is before:
            logger.warning("batch %r went in before and was left out", batch_id)
        self.state_ = replace(self.state_, store=store)
        return self

    def refresh(self) -> GraphFactors:
        """Make factors of all edges, from those before where there are some, and return them."""
        state = self.state_
        if state.t is None:
            from streamsvd.pipelines.graph.tune import choose

            t, why = choose(state, self.validation)
            state = replace(state, t=t, why=why)
        self.state_ = refreshed(state)
        assert self.state_.factors is not None
        return self.state_.factors

    def factors(self) -> GraphFactors:
        """Return factors of all edges; they are made where edges came since the last refresh."""
        factors = self.state_.factors
        return self.refresh() if factors is None or self.pending else factors

    def retune(self, validation: Any = None, /) -> GraphSVD:
        """Have ``regularise="auto"`` choose anew at the next refresh, which starts afresh."""
        self.validation = self.validation if validation is None else validation
        self.state_ = replace(self.state_, t=None, fresh=True, folded=-1)
        return self

    def afresh(self) -> GraphSVD:
        """Return another one of the same edges and t, without factors: its refresh starts from nothing. Nothing is copied."""
        found = GraphSVD(settings=self.settings, validation=self.validation)
        found.state_ = replace(self.state_, factors=None, folded=0)
        return found

    def recommend(
        self,
        users: Sequence[Any] | pa.Array | None = None,
        *,
        histories: Mapping[Any, Sequence[Any]] | Any = None,
        k: int = 20,
        exclude_seen: bool = True,
    ) -> pa.Table:
        """Return the best items of users, with the factors as they are (`refresh` first for those of the newest edges).

        Parameters
        ----------
        users : ids of users in the graph, optional
            Their histories are their edges, also those that came after the last refresh. All users by default.
        histories : dict of user -> items, or a table user, item[, weight]; optional
            Users who need not be in the graph. Items that the factors do not know are left out.
        k : int
            Items for each user; fewer where fewer are left, none for a user without known items.
        exclude_seen : bool
            Leave out the items of the history.

        Returns
        -------
        table : Arrow table user, item, score (float32), best first; its schema metadata says the version and how many rows are pending

        Raises
        ------
        ValueError
            For both users and histories, unknown users, and a k below 1.
        """
        factors = self.state_.factors if self.state_.factors is not None else self.refresh()
        if k < 1:
            msg = f"k={k} items for each user; expected at least 1, for example k=20"
            raise ValueError(msg)
        if users is not None and histories is not None:
            msg = "got both users and histories; users are of the graph and have theirs; leave one of the two out"
            raise ValueError(msg)
        ids, given = self._known(users) if histories is None else filters.from_ids(histories, factors)
        items, scores = filters.filter_scores(factors, given, k=k, exclude_seen=exclude_seen)
        said = {"version": str(factors.version), "pending": str(self.pending)}
        return filters.as_arrow(ids, factors.items, items, scores, said)

    def _known(self, users: Any) -> tuple[Any, filters.Histories]:
        store, factors = self.state_.store, self.state_.factors
        assert factors is not None
        if users is None:
            rows = np.arange(store.shape[0])
        else:
            rows = store.user_rows(users)
            strange = np.flatnonzero(rows < 0)
            if strange.size:
                first = users[int(strange[0])]
                first = first.as_py() if hasattr(first, "as_py") else first
                few = f"{strange.size} of {rows.size} users are not in the graph, the first is {first!r}"
                msg = f"{few}; give histories of such users: user and item"
                raise ValueError(msg)
        import pyarrow as pa

        A = store.matrix()[rows] if users is not None else store.matrix()
        given = filters.histories(A.indptr.astype(np.int64), A.indices, A.data, factors.v.shape[0])
        return store.users.take(pa.array(rows)), given

    def save(self, path: str | os.PathLike[str], /) -> None:
        """Write the state to a file, in one step: edges, batch ids, factors. A run that goes on from it ends in the same bits."""
        from streamsvd.pipelines.graph.state import save_state

        save_state(self.state_, path)

    def parts(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return the state as named arrays and JSON values, as `streamsvd.save` takes them."""
        from streamsvd.pipelines.graph.state import state_parts

        return state_parts(self.state_)

    @classmethod
    def from_parts(cls, arrays: dict[str, np.ndarray], meta: dict[str, Any], /) -> GraphSVD:
        """Restore what `parts` returned."""
        from streamsvd.pipelines.graph.state import state_from_parts

        state = state_from_parts(arrays, meta)
        found = cls(settings=state.settings)
        found.state_ = state
        return found

    @classmethod
    def load(cls, path: str | os.PathLike[str], /, *, settings: GraphSettings | None = None) -> GraphSVD:
        """Read a state that `save` wrote; with ``settings``, one of other options is refused.

        Raises
        ------
        FileNotFoundError, ValueError
            There is no such file, it is damaged, or its options are others.
        """
        from streamsvd.pipelines.graph.state import load_state

        state = load_state(path)
        if settings is not None and state.settings != settings:
            differs = "; ".join(settings.difference(state.settings))
            msg = f"{str(path)!r} is a state of other options: {differs}; write the same ones, or start a new state"
            raise ValueError(msg)
        found = cls(settings=state.settings)
        found.state_ = state
        return found
