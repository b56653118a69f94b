"""From edges to factors: the state of a graph, and its refresh, which starts from the factors before and ends aligned to them."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.operators import Csr
from streamsvd.pipelines.graph import model
from streamsvd.pipelines.graph.factors import GraphFactors
from streamsvd.pipelines.graph.solve import solve, turned
from streamsvd.pipelines.graph.store import EdgeStore

if TYPE_CHECKING:
    from streamsvd.pipelines.graph.settings import GraphSettings

SMALL_RANK, LARGE_GRAPH = 5, 1000


@dataclass(frozen=True, eq=False)
class GraphState:
    """The edges (the truth), the factors made of them, where the next refresh starts unless ``fresh`` is set, and t.

    Invariant: ``factors`` belong to the edges as they were after ``folded`` operations; the edges alone decide what the next ones
    converge to, however they came, and the factors before only how soon.
    """

    settings: GraphSettings
    store: EdgeStore
    factors: GraphFactors | None = None
    fresh: bool = False
    t: float | None = None
    why: str = ""
    folded: int = 0


@dataclass(frozen=True, eq=False)
class Problem:
    """What is solved: an operator, the rows of users and items it is about (None: all), and what is known of the components."""

    operator: Any
    users: np.ndarray | None
    items: np.ndarray | None
    components: str
    parts: model.Parts | None


def refreshed(state: GraphState, /) -> GraphState:
    """Return the state with factors of all its edges, once ``t`` is chosen.

    Raises
    ------
    ValueError
        If the graph has no edges, or fewer users or items with edges than the rank.

    Notes
    -----
    Cost: the products of a warm start (``nnz l`` each, one to three pairs of them), or of a fresh solve the first time.
    """
    began, store, rank = time.perf_counter(), state.store, state.settings.rank
    assert state.t is not None
    check_rank(store, state.settings)
    scale = model.scaling(store, state.t, normalise=state.settings.normalise)
    problem = posed(store, scale, state.settings)
    found = solve(problem.operator, rank, state.settings, _start(state, problem))
    v = _lifted(found.basis, problem.items, store.shape[1])
    # A node without edges has no part in any vector; a random start may leave one, of the size of a rounding error.
    v[scale.right == 0] = 0
    rotation, moved = _alignment(v, state.factors)
    u = _lifted(turned(found.left, found.mix @ rotation), problem.users, store.shape[0])
    u[scale.left == 0] = 0
    v = turned(v, rotation)
    version = 1 if state.factors is None else state.factors.version + 1
    manifest = _manifest(state, scale, problem, v, found.info) | moved | {"version": version}
    manifest["seconds"] = time.perf_counter() - began
    degree = store.degrees()[1]
    item_scale = np.sqrt(np.where(degree > 0, degree + scale.tau[1], 0.0))
    factors = GraphFactors(store.users, store.items, found.s, u, v, rotation, item_scale, version, manifest)
    return replace(state, factors=factors, fresh=False, folded=store.operations)


def posed(store: EdgeStore, scale: model.Scaling, settings: GraphSettings, /) -> Problem:
    """Return the operator of the graph; without regularisation, the trivial vectors of small components are kept out."""
    wanted = settings.components
    if settings.normalise == "raw":
        wanted = "all"
    if wanted == "auto":
        wanted = "all" if scale.t > 0 else "giant"
    N = normalised(store, scale)
    if wanted == "all":
        return Problem(Csr(N), None, None, wanted, None)
    parts = model.components(store)
    if wanted == "deflate":
        return Problem(model.deflated(Csr(N), scale, parts), None, None, wanted, parts)
    users, items = np.flatnonzero(parts.users == parts.giant), np.flatnonzero(parts.items == parts.giant)
    return Problem(Csr(N[users][:, items].tocsr()), users, items, wanted, parts)


def normalised(store: EdgeStore, scale: model.Scaling, /) -> Any:
    """Return N as a SciPy CSR array, float32, with values of its own: scaled once, they spare two copies of a block in each product."""
    from streamsvd.pipelines.graph.store_numba import scaled

    A, values = store.matrix(), np.empty(store.edges, np.float32)
    scaled(store.indptr, store.indices, store.weights, scale.left, scale.right, values)
    A.data = values
    return A


def check_rank(store: EdgeStore, settings: GraphSettings, /) -> None:
    """Refuse a rank that the graph does not allow, and warn of one that is known to be too small."""
    if store.edges == 0:
        msg = (
            f"the graph has no edges after {store.operations:,} rows; update(edges) with some before asking for factors"
        )
        raise ValueError(msg)
    there = tuple(int((degree > 0).sum()) for degree in store.degrees())
    if settings.rank > min(there):
        held = f"{there[0]} users and {there[1]} items have edges"
        msg = f"rank={settings.rank} is larger than the graph allows: {held}; write rank={min(there)} or less"
        raise ValueError(msg)
    if settings.rank <= SMALL_RANK and min(there) >= LARGE_GRAPH:
        why = "(LightGCL's 5 gave half of the recall of 64 where that was measured)"
        msg = f"rank={settings.rank} is too small to rank the {there[1]:,} items of a graph {why}; write rank=64"
        warnings.warn(msg, UserWarning, stacklevel=4)


def _start(state: GraphState, problem: Problem) -> np.ndarray | None:
    if state.factors is None or state.fresh:
        return None
    v = model.grown(state.factors.v, state.store.shape[1])
    return v if problem.items is None else v[problem.items]


def _lifted(x: np.ndarray, rows: np.ndarray | None, size: int) -> np.ndarray:
    """Return rows of a component in their places among all, zeros elsewhere."""
    if rows is None:
        return x
    out = np.zeros((size, x.shape[1]), x.dtype)
    out[rows] = x
    return out


def _alignment(v: np.ndarray, before: GraphFactors | None) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the rotation to the version before, and how far a component is from it on average (0: the same, sqrt(2): orthogonal)."""
    if before is None or before.rank != v.shape[1]:
        return np.eye(v.shape[1]), {"alignment": "none: first version"}
    rotation, distance = model.alignment(v, model.grown(before.v, v.shape[0]))
    return rotation, {"alignment": f"Procrustes to version {before.version}", "moved": distance}


def _manifest(
    state: GraphState, scale: model.Scaling, problem: Problem, v: np.ndarray, info: dict[str, Any]
) -> dict[str, Any]:
    store, degrees = state.store, state.store.degrees()
    found: dict[str, Any] = {"edges": store.edges, "users": store.shape[0], "items": store.shape[1], "rank": v.shape[1]}
    for side, degree in zip(("user", "item"), degrees, strict=True):
        there = degree[degree > 0]
        found[f"{side}_degrees"] = {"min": float(there.min()), "mean": float(there.mean()), "max": float(there.max())}
        found[f"{side}s_without_edges"] = int(degree.size - there.size)
    found |= {"normalise": state.settings.normalise, "regularise": state.t, "regularise_because": state.why}
    found |= {"tau_users": scale.tau[0], "tau_items": scale.tau[1], "components_used": problem.components}
    if problem.parts is not None:
        found |= {"components": problem.parts.count, "largest_component": int(problem.parts.sizes.max())}
    found["participation_median"] = float(np.median(model.participation(v)))
    found |= {"seed": state.settings.seed, "operations": store.operations, "batches": len(store.batches)}
    return found | info
