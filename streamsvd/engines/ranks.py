"""torch.distributed: the states of all ranks become one, the same bits on every rank, over any backend (gloo, NCCL)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from streamsvd import __version__
from streamsvd.arrays import dtype_name, one_thread
from streamsvd.engines.contract import packed, settled, unpacked
from streamsvd.engines.link import Link, linked

COMPARED = ("columns", "center", "decay", "half_life", "rank", "kept", "shrink", "seed", "unit")


def merge_across_ranks(sketch: Any, group: Any = None, /) -> Any:
    """Return the state of all ranks together; call it on every rank of the group, with states made under the same options.

    Parameters
    ----------
    sketch : Gram, Truncated or Keyed, or a mapping of names to these (one for each layer of a model)
        What this rank has seen, perhaps no rows.
    group : torch.distributed.ProcessGroup, optional
        All ranks by default.

    Returns
    -------
    sketch : like the argument; the same bits on every rank, on the device of the rank's own state

    Raises
    ------
    ValueError, TypeError
        On all ranks alike: the ranks do not agree on names, kinds, options, dtype or version of streamsvd; the message names the rank.
    RuntimeError
        There is no process group, or a rank is gone (after the timeout of the group).

    Notes
    -----
    Binary tree over send and receive, in the order of ranks: ``ceil(log2 ranks)`` merges one after another, then one broadcast. Each
    rank sends its (kept x d) factors once. A sum (``all_reduce``) of factors would mean nothing, so there is none.
    """
    link, many = linked(group), isinstance(sketch, Mapping)
    states = dict(sketch) if many else {"": sketch}
    _agree(link, states)
    whole = {name: _merged(link, states[name]) for name in sorted(states)}
    return {name: whole[name] for name in states} if many else whole[""]


def _merged(link: Link, state: Any) -> Any:
    """Merge over ``rank + 1, rank + 2, rank + 4, ...`` to rank 0, and hand the result to all."""
    like, whole, step = getattr(state, "like", None), settled(state), 1
    with one_thread():
        while step < link.size:
            if link.rank % (2 * step) == step:
                link.send(packed(whole), link.rank - step)
                break
            if link.rank % (2 * step) == 0 and link.rank + step < link.size:
                whole = _host(whole).merge(unpacked(link.receive(link.rank + step)))
            step *= 2
    return unpacked(link.broadcast(packed(whole) if link.rank == 0 else None), like)


def _host(state: Any) -> Any:
    return unpacked(packed(state))


def _agree(link: Link, states: dict[str, Any]) -> None:
    """Compare what must be alike before anything is sent: a rank that raised alone would leave the others waiting."""
    mine = {
        "version": __version__,
        "names": sorted(states),
        "options": {name: _options(state) for name, state in states.items()},
        "dtypes": {name: dtype_name(state.like) for name, state in states.items() if _has_rows(state)},
    }
    told = [json.loads(text) for text in link.gather(json.dumps(mine, sort_keys=True).encode())]
    for rank, theirs in enumerate(told):
        for name, options in theirs["options"].items():
            if "wrong" in options:
                msg = f"rank {rank}{f', {name!r}' if name else ''}: {options['wrong']}"
                raise TypeError(msg)
        for what in ("version", "names", "options"):
            if theirs[what] != told[0][what]:
                mine, first = _short(theirs[what], told[0][what]), _short(told[0][what], theirs[what])
                _refuse(f"rank {rank} has {what} {mine}, and rank 0 has {first}")
        for name, dtype in theirs["dtypes"].items():
            first = next(k for k in range(rank + 1) if name in told[k]["dtypes"])
            if told[first]["dtypes"][name] != dtype:
                _refuse(f"rank {rank} has rows of {dtype}, and rank {first} of {told[first]['dtypes'][name]}")


def _refuse(what: str) -> None:
    msg = f"{what}; make the sketches alike on all ranks (dtype= says in which precision)"
    raise ValueError(msg)


def _has_rows(state: Any) -> bool:
    return getattr(state, "like", None) is not None and state.rows > 0


def _options(state: Any) -> dict[str, Any]:
    options = getattr(getattr(state, "empty", state), "options", None)
    if options is None:
        return {
            "wrong": f"got {type(state).__name__}; expected a state (streamsvd.sketch), or a mapping of names to states"
        }
    if options.keep_left:
        return {
            "wrong": "a state with keep_left=True cannot be merged, its rows belong to one stream; make it with keep_left=False"
        }
    told = {field: getattr(options, field) for field in COMPARED}
    scale = None if options.scale is None else hashlib.blake2b(options.scale.tobytes(), digest_size=8).hexdigest()
    return told | {"scale": scale, "kind": getattr(state, "kind", "keyed")}


def _short(value: Any, other: Any) -> str:
    """Show of nested values what differs."""
    if not (isinstance(value, dict) and isinstance(other, dict)):
        return str(value)
    parts = (
        _short(mine, other.get(name)) if isinstance(mine, dict) else f"{name}={mine}"
        for name, mine in value.items()
        if other.get(name) != mine
    )
    return ", ".join(parts)
