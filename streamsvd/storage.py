"""States as named arrays and JSON-ready values, and back, bit for bit; ``flow.checkpoint`` writes them to files."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from streamsvd.arrays import Array, device_of, is_sparse, namespace, to_numpy
from streamsvd.certificate import Ledger
from streamsvd.gram import Gram, GramCore, block_rows
from streamsvd.left import LeftLog
from streamsvd.moments import Moments
from streamsvd.options import Options
from streamsvd.planner import Plan
from streamsvd.truncated import FLUSH, Core, Truncated
from streamsvd.truncation import Basis
from streamsvd.waiting import Pending, Piece

Parts = tuple[dict[str, Array], dict[str, Any]]
COMPILED = 1024


def truncated_parts(state: Truncated, /) -> Parts:
    """Return the parts of a truncated state."""
    arrays, meta = _common(state)
    core = state.core
    if core is not None:
        arrays |= {"vt": core.vt, "s": core.s, "products": core.basis.C, "test": core.test}
        if core.left is not None:
            arrays |= core.left.parts()
    return arrays, meta


def truncated_from_parts(arrays: dict[str, Array], meta: dict[str, Any], /) -> Truncated:
    """Restore a truncated state."""
    options = _options(arrays, meta)
    core = None
    if "core" in meta:
        left = None
        if options.keep_left:
            folder = options.keep_left if isinstance(options.keep_left, str) else None
            left = LeftLog.from_parts(
                {name: to_numpy(value) for name, value in arrays.items() if name.startswith("left_")}, folder
            )
        basis = Basis(arrays["vt"], *(to_numpy(arrays[name]).astype(np.float64) for name in ("s", "products")))
        core = Core(basis, arrays["test"], *_account(arrays, meta), left)
    return Truncated(options, core, _pending(arrays, meta, FLUSH * options.kept), arrays.get("like"), _plan(meta))


def gram_parts(state: Gram, /) -> Parts:
    """Return the parts of exact moments; of the symmetric matrix only the lower triangle is stored, row by row."""
    arrays, meta = _common(state)
    if state.core is not None:
        arrays["scatter"] = _lower(to_numpy(state.core.scatter))
    return arrays, meta


def gram_from_parts(arrays: dict[str, Array], meta: dict[str, Any], /) -> Gram:
    """Restore exact moments."""
    options = _options(arrays, meta)
    core = None
    if "core" in meta:
        scatter = np.zeros((options.columns, options.columns), order="F")
        scatter[np.tril_indices(options.columns)] = to_numpy(arrays["scatter"])
        like = arrays["like"]
        if not isinstance(like, np.ndarray):
            scatter = scatter + np.tril(scatter, -1).T
            scatter = namespace(like).asarray(np.ascontiguousarray(scatter), device=device_of(like))
        core = GramCore(scatter, *_account(arrays, meta))
    return Gram(options, core, _pending(arrays, meta, block_rows(options.columns)), arrays.get("like"), _plan(meta))


def _lower(S: np.ndarray, size: int = 64) -> np.ndarray:
    """Return the lower triangle row by row. Blocks of rows keep to the cache and, unlike indices, let other threads run.

    From 1024 columns on the loop is compiled: Python's lets others run between any two rows, but then waits for each of them in turn.
    """
    d, end = S.shape[0], 0
    packed = np.empty(d * (d + 1) // 2)
    if d >= COMPILED:
        from streamsvd.kernels.triangle_numba import pack

        pack(S, packed)
        return packed
    for start in range(0, d, size):
        rows = np.ascontiguousarray(S[start : start + size, : start + size])
        for i in range(rows.shape[0]):
            n = start + i + 1
            packed[end : end + n] = rows[i, :n]
            end += n
    return packed


def _common(state: Truncated | Gram) -> Parts:
    options = {f.name: getattr(state.options, f.name) for f in dataclasses.fields(Options)}
    arrays: dict[str, Array] = {}
    if options["scale"] is not None:
        arrays["scale"] = options["scale"]
    options["scale"] = None
    meta: dict[str, Any] = {"options": options, "pending": []}
    if state.plan is not None:
        meta["plan"] = dataclasses.asdict(state.plan)
    if state.like is not None:
        arrays["like"] = state.like
    if state.core is not None:
        moments = state.core.moments
        arrays |= {"shift": moments.shift, "delta": moments.delta}
        meta["core"] = {
            "moments": {name: getattr(moments, name) for name in ("rows", "weight", "weight_sq", "time")},
            "ledger": dataclasses.asdict(state.core.ledger),
            "exponent": state.core.exponent,
        }
    for number, piece in enumerate(state.pending.pieces):
        block, name = piece.block(), f"pending{number}"
        arrays |= {f"{name}_weights": block.weights, f"{name}_times": block.times}
        if is_sparse(block.rows):
            arrays |= {f"{name}_{part}": getattr(block.rows, part) for part in ("data", "indices", "indptr")}
        else:
            arrays[f"{name}_rows"] = block.rows
        meta["pending"].append("csr" if is_sparse(block.rows) else "dense")
    return arrays, meta


def _options(arrays: dict[str, Array], meta: dict[str, Any]) -> Options:
    scale = arrays.get("scale")
    return Options(**{**meta["options"], "scale": None if scale is None else to_numpy(scale)})


def _plan(meta: dict[str, Any]) -> Plan | None:
    return Plan(**meta["plan"]) if "plan" in meta else None


def _account(arrays: dict[str, Array], meta: dict[str, Any]) -> tuple[Moments, Ledger, int]:
    core = meta["core"]
    return (
        Moments(**core["moments"], shift=arrays["shift"], delta=arrays["delta"]),
        Ledger(**core["ledger"]),
        core["exponent"],
    )


def _pending(arrays: dict[str, Array], meta: dict[str, Any], capacity: int) -> Pending:
    pending = Pending()
    for number, layout in enumerate(meta["pending"]):
        name = f"pending{number}"
        weights, times = (to_numpy(arrays[f"{name}_{part}"]) for part in ("weights", "times"))
        if layout == "csr":
            from scipy.sparse import csr_array

            columns = meta["options"]["columns"]
            rows = csr_array(
                tuple(to_numpy(arrays[f"{name}_{part}"]) for part in ("data", "indices", "indptr")),
                shape=(weights.size, columns),
            )
            pending = Pending(
                (*pending.pieces, Piece(rows, weights.size, weights, times)), pending.count + weights.size
            )
        else:
            pending = pending.append(arrays[f"{name}_rows"], weights, times, capacity)
    return pending
