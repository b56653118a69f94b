"""The state file of a graph: edges, ids, batch ids and factors, bit for bit (docs/format.md, kind "graph")."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.pipelines.graph.factors import GraphFactors
from streamsvd.pipelines.graph.io import SIDES
from streamsvd.pipelines.graph.refresh import GraphState
from streamsvd.pipelines.graph.settings import GraphSettings
from streamsvd.pipelines.graph.store import EdgeStore

if TYPE_CHECKING:
    import os


def save_state(state: GraphState, path: str | os.PathLike[str], /) -> None:
    """Write a state as a state file (docs/format.md) of kind "graph"."""
    from streamsvd.flow import statefile

    statefile.write(path, "graph", *state_parts(state))


def state_parts(state: GraphState, /) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return a state as named arrays and JSON values."""
    store, factors = state.store, state.factors
    arrays = {name: getattr(store, name) for name in ("indptr", "indices", "weights")}
    meta: dict[str, Any] = {"settings": dataclasses.asdict(state.settings), "t": state.t, "why": state.why}
    meta |= {
        "folded": state.folded,
        "fresh": state.fresh,
        "operations": store.operations,
        "batches": store.batches,
        "ids": {},
    }
    for side in SIDES:
        meta["ids"][side] = _pack_ids(getattr(store, side), side, arrays)
    if factors is not None:
        arrays |= {f"factors_{name}": getattr(factors, name) for name in ("s", "u", "v", "rotation", "item_scale")}
        meta["factors"] = {"version": factors.version, "info": factors.info}
    return {name: np.ascontiguousarray(x) for name, x in arrays.items()}, meta


def load_state(path: str | os.PathLike[str], /) -> GraphState:
    """Read a state that `save_state` wrote, after checking every bit of it."""
    from streamsvd.flow import statefile

    _, arrays, meta = statefile.read(path, kinds=("graph",))
    return state_from_parts(arrays, meta)


def state_from_parts(arrays: dict[str, np.ndarray], meta: dict[str, Any], /) -> GraphState:
    """Restore a state from its parts."""
    ids = {side: _unpack_ids(meta["ids"][side], side, arrays) for side in SIDES}
    edges = {name: arrays[name] for name in ("indptr", "indices", "weights")}
    store = EdgeStore(**ids, **edges, batches=meta["batches"], operations=meta["operations"])
    state = GraphState(GraphSettings(**meta["settings"]), store)
    state = dataclasses.replace(state, t=meta["t"], why=meta["why"], folded=meta["folded"], fresh=meta["fresh"])
    if "factors" not in meta:
        return state
    parts = {name: arrays[f"factors_{name}"] for name in ("s", "u", "v", "rotation", "item_scale")}
    users, items = (ids[side].slice(0, parts[x].shape[0]) for side, x in (("users", "u"), ("items", "v")))
    return dataclasses.replace(state, factors=GraphFactors(users=users, items=items, **parts, **meta["factors"]))


def _pack_ids(ids: Any, side: str, arrays: dict[str, np.ndarray]) -> str:
    import pyarrow as pa

    if ids is None:
        return "none"
    if pa.types.is_integer(ids.type):
        arrays[f"{side}_ids"] = ids.to_numpy()
        return "int64"
    text = [value.encode() for value in ids.to_pylist()]
    arrays[f"{side}_ids"] = np.frombuffer(b"".join(text), np.uint8)
    arrays[f"{side}_ends"] = np.cumsum([len(value) for value in text], dtype=np.int64)
    return "string"


def _unpack_ids(kind: str, side: str, arrays: dict[str, np.ndarray]) -> Any:
    import pyarrow as pa

    if kind == "none":
        return None
    if kind == "int64":
        return pa.array(arrays[f"{side}_ids"])
    ends = np.concatenate([[0], arrays[f"{side}_ends"]]).astype(np.int32)
    buffers = [None, pa.py_buffer(ends.tobytes()), pa.py_buffer(arrays[f"{side}_ids"].tobytes())]
    return pa.Array.from_buffers(pa.string(), ends.size - 1, buffers)
