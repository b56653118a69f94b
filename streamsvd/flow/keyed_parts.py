"""The states of all keys as named arrays and JSON-ready values, and back, bit for bit."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.arrays import to_numpy
from streamsvd.flow.checkpoint import class_of, kind_of
from streamsvd.flow.keyed import Keyed
from streamsvd.flow.spill import DIGITS, Folder, Spilled

if TYPE_CHECKING:
    from streamsvd.arrays import Array
    from streamsvd.flow.groups import Key

SHARED = ("options", "plan")  # what all states have in common is written once, and so is the array "scale"


def keyed_parts(state: Keyed, /) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return the parts of a keyed state; the files of its spilled states are on the disk when this returns."""
    if state.folder is not None:
        state.folder.sync(state.live_files())
    arrays, shared = state.empty.parts()
    metas = []
    for number, one in enumerate(state.states.values()):
        own, meta = one.parts()
        arrays |= {f"state{number}_{name}": value for name, value in own.items() if name != "scale"}
        metas.append({name: value for name, value in meta.items() if name not in SHARED})
    if state.spilled:
        digests = b"".join(bytes.fromhex(entry.digest) for entry in state.spilled.values())
        arrays["spilled_digests"] = np.frombuffer(digests, np.uint8).reshape(-1, DIGITS // 2)
        arrays["spilled_rows"] = np.array([entry.rows for entry in state.spilled.values()], np.int64)
    return arrays, {
        "empty": {"kind": kind_of(state.empty), **{name: shared[name] for name in SHARED if name in shared}},
        "limit": state.limit,
        "folder": None if state.folder is None else str(state.folder.path),
        "key_type": state.key_type,
        "keys": [_plain(key) for key in state.states],
        "states": metas,
        "spilled": [_plain(key) for key in state.spilled],
    }


def keyed_from_parts(arrays: dict[str, Array], meta: dict[str, Any], /) -> Keyed:
    """Restore a keyed state."""
    kind = class_of(meta["empty"]["kind"])
    own: list[dict[str, Array]] = [{} for _ in meta["states"]]
    for name, value in arrays.items():
        owner, _, rest = name.partition("_")
        if owner.startswith("state"):
            own[int(owner.removeprefix("state"))][rest] = value
    scale = {"scale": arrays["scale"]} if "scale" in arrays else {}
    shared = {name: meta["empty"][name] for name in SHARED if name in meta["empty"]}
    states = [kind.from_parts(mine | scale, rest | shared) for mine, rest in zip(own, meta["states"], strict=True)]
    spilled = []
    if meta["spilled"]:
        digests, rows = to_numpy(arrays["spilled_digests"]), to_numpy(arrays["spilled_rows"]).tolist()
        spilled = [Spilled(bytes(digest).hex(), count) for digest, count in zip(digests, rows, strict=True)]
    return Keyed(
        kind.from_parts(scale, {"pending": [], **shared}),
        dict(zip(_keys(meta, "keys"), states, strict=True)),
        dict(zip(_keys(meta, "spilled"), spilled, strict=True)),
        meta["limit"],
        None if meta["folder"] is None else Folder(Path(meta["folder"]), {entry.name for entry in spilled}),
        meta["key_type"],
        sum(entry.rows for entry in [*states, *spilled]),
    )


def _plain(key: Key) -> str | int:
    return key.isoformat() if isinstance(key, date) else key


def _keys(meta: dict[str, Any], name: str) -> list[Key]:
    return [date.fromisoformat(key) for key in meta[name]] if meta["key_type"] == "date" else meta[name]
