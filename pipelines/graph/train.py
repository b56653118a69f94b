"""``LightGCL``: a trained recommender on a graph and its factors, with early stopping on held-out edges."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.pipelines.graph import evaluate as judge
from streamsvd.pipelines.graph import io
from streamsvd.pipelines.graph.factors import GraphFactors
from streamsvd.pipelines.graph.graphsvd import GraphSVD
from streamsvd.pipelines.graph.recommend import as_arrow, best, histories
from streamsvd.pipelines.graph.run import Run
from streamsvd.pipelines.graph.settings import TrainSettings
from streamsvd.pipelines.graph.store import EdgeStore, rows_of, update

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    import pyarrow as pa

JUDGES = 4000


class LightGCL:
    """LightGCL with factors that `GraphSVD` made.

    Parameters
    ----------
    device : str
        "cpu", "cuda", "cuda:1".
    **options
        The fields of `TrainSettings`: ``width``, ``layers``, ``propagate``, ``init``, ``contrast``, ``epochs``, ``seed``, ...

    Attributes
    ----------
    users_, items_ : Arrow arrays of ids
    user_embedding_, item_embedding_ : array (m, d), (n, d), float32; their products rank
    history_ : list of dict, one for each epoch: loss, and recall@20 and ndcg@20 where it was evaluated
    """

    def __init__(self, *, device: str = "cpu", **options: Any) -> None:
        self.settings = options.pop("settings", None) or TrainSettings(**options)
        self.device = device
        self.history_: list[dict[str, float]] = []

    def fit(
        self,
        graph: GraphSVD | Any,
        /,
        *,
        factors: GraphFactors | str | os.PathLike[str] | None = None,
        validation: Any = None,
        progress: bool | None = None,
    ) -> LightGCL:
        """Train on a graph; the embeddings of the best evaluation are kept.

        Parameters
        ----------
        graph : GraphSVD, whose factors are taken too, or a table of edges
        factors : GraphFactors or a folder of them, optional
            Rows are matched by id; a user or item without factors has zeros.
        validation : table of held-out edges, optional
            Recall@20 on at most 4000 of its users decides which epoch is kept and when to stop; without it the last epoch is kept.
        progress : bool, optional
            Show a progress bar; by default on a terminal only.

        Raises
        ------
        ValueError
            If factors are needed and none are given, or the loss is no longer finite.
        """
        held = isinstance(graph, GraphSVD)
        store = graph.state_.store if held else update(EdgeStore(), graph, duplicates="ignore")
        factors = graph.factors() if held and factors is None else factors
        if factors is not None and not isinstance(factors, GraphFactors):
            factors = io.read_factors(factors)
        self.users_, self.items_, self._store = store.users, store.items, store
        run = Run(store, self._matched(store, factors), self.settings, self.device)
        check = None if validation is None else self._checker(validation)
        self.history_ = _trained(run, check, self._keep, progress)
        return self

    def recommend(self, users: Sequence[Any] | None = None, *, k: int = 20, exclude_seen: bool = True) -> pa.Table:
        """Return the best items of users (all by default): Arrow table user, item, score."""
        import pyarrow as pa

        rows = np.arange(len(self.users_)) if users is None else rows_of(self.users_, users)
        if (rows < 0).any():
            few = f"{int((rows < 0).sum())} of {rows.size} users were not in the training edges"
            msg = f"{few}; GraphSVD.recommend(histories=...) serves those"
            raise ValueError(msg)
        items, scores = self._ranked(rows, k, exclude_seen)
        return as_arrow(self.users_.take(pa.array(rows)), self.items_, items, scores, {})

    def evaluate(
        self, edges: Any, /, *, limit: int | None = None, cuts: tuple[int, ...] = judge.CUTS
    ) -> dict[str, float]:
        """Return Recall and NDCG on held-out edges, averaged over the users that have some; training items are left out."""
        rows, wanted = judge.held_out(edges, self, limit=limit)
        return judge.metrics(self._ranked(rows, max(cuts), True)[0], wanted, cuts=cuts)

    def save(self, folder: str | os.PathLike[str], /) -> Path:
        """Write ``user_embeddings.parquet``, ``item_embeddings.parquet`` (id, row, embedding) and ``training.json``."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        for name, ids, vectors in (
            ("user", self.users_, self.user_embedding_),
            ("item", self.items_, self.item_embedding_),
        ):
            io.write_table(io.vectors_table(name, ids, vectors), target / f"{name}_embeddings.parquet")
        said = {"settings": asdict(self.settings), "history": self.history_}
        (target / "training.json").write_text(json.dumps(said, indent=1) + "\n")
        return target

    @classmethod
    def load(cls, folder: str | os.PathLike[str], edges: Any, /) -> LightGCL:
        """Read embeddings that `save` wrote; ``edges`` are the training edges, whose items rankings leave out."""
        import pyarrow.parquet as pq

        source = Path(folder)
        if not (source / "training.json").exists():
            cure = "name a folder that LightGCL.save or `streamsvd graph train` wrote"
            msg = f"{str(folder)!r} holds no training.json (looked from {Path.cwd()}); {cure}"
            raise FileNotFoundError(msg)
        said = json.loads((source / "training.json").read_text())
        found = cls(settings=TrainSettings(**said["settings"]))
        found.history_, found._store = said["history"], update(EdgeStore(), edges, duplicates="ignore")
        for side in ("user", "item"):
            table = pq.read_table(source / f"{side}_embeddings.parquet")
            rows = rows_of(table.column(side), ids := getattr(found._store, f"{side}s"))
            vectors = io.as_matrix(table.column("embedding"))
            setattr(found, f"{side}s_", ids)
            setattr(found, f"{side}_embedding_", np.where((rows >= 0)[:, None], vectors[rows], np.float32(0)))
        return found

    @property
    def users(self) -> Any:
        """Ids of the users, as factors have them."""
        return self.users_

    @property
    def items(self) -> Any:
        """Ids of the items, as factors have them."""
        return self.items_

    def _keep(self, users: Any, items: Any) -> None:
        self.user_embedding_, self.item_embedding_ = (x.detach().cpu().numpy().copy() for x in (users, items))

    def _ranked(self, rows: np.ndarray, k: int, exclude_seen: bool) -> tuple[np.ndarray, np.ndarray]:
        A = self._store.matrix()[rows]
        seen = histories(A.indptr.astype(np.int64), A.indices, A.data, len(self.items_)) if exclude_seen else None
        right = np.ascontiguousarray(self.item_embedding_.T)
        return best(self.user_embedding_[rows], right, seen, np.zeros(0, np.int32), k)

    def _checker(self, validation: Any) -> Callable[[], dict[str, float]]:
        return lambda: self.evaluate(validation, limit=JUDGES, cuts=(20,))

    def _matched(self, store: EdgeStore, factors: GraphFactors | None) -> GraphFactors | None:
        """Return factors with their rows in the order of the store."""
        s = self.settings
        if factors is None:
            if s.propagate == "lowrank" or s.init == "factors" or s.contrast != "off":
                asked = {"propagate": "plain", "init": "random", "contrast": "off"}
                using = {name: value for name, value in asked.items() if getattr(s, name) != value}
                said = " and ".join(f"{name}={getattr(s, name)!r}" for name in using)
                cure = ", ".join(f"{name}={value!r}" for name, value in using.items())
                msg = f"{said}: that needs factors, and none came; give the factors of the graph (a folder), or write {cure}"
                raise ValueError(msg)
            return None
        sides = []
        for x, known, ids in ((factors.u, factors.users, store.users), (factors.v, factors.items, store.items)):
            rows = rows_of(known, ids)
            if (rows < 0).all():
                side = "users" if x is factors.u else "items"
                msg = f"none of the {rows.size} {side} of the edges ({ids.type}) has factors ({known.type}); give those of this graph"
                raise ValueError(msg)
            sides.append(np.where((rows >= 0)[:, None], x[rows], np.float32(0)))
        scale = np.where((rows := rows_of(factors.items, store.items)) >= 0, factors.item_scale[rows], 0.0)
        u, v = sides
        return GraphFactors(
            store.users, store.items, factors.s, u, v, factors.rotation, scale, factors.version, factors.info
        )


def _trained(run: Run, check: Any, keep: Any, progress: bool | None) -> list[dict[str, float]]:
    """Train until the epochs end or ``patience`` evaluations brought nothing better; return what happened."""
    s, history, best_recall, waited, chosen = run.settings, [], -1.0, 0, None
    with _shown(progress, s.epochs) as tick:
        for epoch in range(1, s.epochs + 1):
            entry = {"epoch": float(epoch), "loss": _epoch(run)}
            history.append(entry)
            tick(entry)
            if check is None or (epoch % s.every and epoch < s.epochs):
                continue
            found = run.embeddings()
            keep(*found)
            entry |= check()
            tick(entry)
            better = entry["recall@20"] > best_recall
            best_recall, waited, chosen = (
                (entry["recall@20"], 0, found) if better else (best_recall, waited + 1, chosen)
            )
            if waited >= s.patience:
                break
    keep(*(run.embeddings() if chosen is None else chosen))
    return history


def _epoch(run: Run) -> float:
    total, count = 0.0, 0
    for u, p, n in run.sampler.batches(run.settings.batch):
        run.optimiser.zero_grad()
        loss = run.loss(u, p, n)
        loss.backward()
        run.optimiser.step()
        total, count = total + float(loss.detach()) * u.size, count + u.size
    if not np.isfinite(total):
        msg = f"the loss is {total} after an epoch; write a lower learning_rate than {run.settings.learning_rate}, or a higher temperature"
        raise ValueError(msg)
    return total / count


@contextmanager
def _shown(progress: bool | None, epochs: int) -> Iterator[Callable[[dict[str, float]], None]]:
    if not (sys.stderr.isatty() if progress is None else progress):
        yield lambda entry: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=epochs)

        def tick(entry: dict[str, float]) -> None:
            said = "  ".join(f"{name} {value:.4f}" for name, value in entry.items() if name not in ("epoch", "users"))
            bar.update(task, completed=entry["epoch"], description=f"epoch {entry['epoch']:.0f}  {said}")

        yield tick
