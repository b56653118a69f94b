"""What the files of a model hold for the faces: a state or factors, and the run that a checkpoint is of; many states as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import os

    from streamsvd.factors import Factors
    from streamsvd.flow.checkpoints import Checkpoint


# States of these have no factors of columns to show; the message says what takes them.
PIPELINES = ("graph", "background", "ctr-moments", "ctr-pass")


class Model(NamedTuple):
    """What a file holds."""

    state: Any  # Gram, Truncated, Keyed or Factors
    run: Checkpoint | None = None  # where the file is a checkpoint
    path: str = ""


def opened(path: str | os.PathLike[str], /) -> Model:
    """Read a state, factors or a checkpoint.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, ValueError
        As `streamsvd.load`.
    """
    from streamsvd.flow import statefile
    from streamsvd.flow.checkpoint import KINDS, class_of, restored

    kind, arrays, meta = statefile.read(path, kinds=[kind for kind in KINDS if kind not in PIPELINES])
    found: Any = class_of(kind).from_parts(arrays, restored(meta))  # type: ignore[attr-defined]
    return Model(found.state, found, str(path)) if kind == "run" else Model(found, None, str(path))


def stored(model: Any, target: Path, /) -> None:
    """Write a model to a file; states of keys that are on the disk are copied to the folder ``TARGET.keys`` beside it."""
    import shutil

    from streamsvd.flow.checkpoint import save

    spilled = model.live_files() if hasattr(model, "live_files") else ()
    if spilled:
        folder = target.absolute().with_name(f"{target.name}.keys")
        folder.mkdir(exist_ok=True)
        for name in spilled:
            if not (folder / name).exists():  # a name is the digest of what is in it
                shutil.copyfile(model.folder.path / name, folder / f".{name}.tmp")
                (folder / f".{name}.tmp").replace(folder / name)
        model = model.in_folder(folder)
    save(model, target)


def factors_of(model: Model, key: str | None = None, /) -> Factors:
    """Return the factors of a model, with the names of columns where a checkpoint has them.

    Raises
    ------
    ValueError
        The model has one state for each key and ``key`` names none of them, or the other way round, or there are no rows.
    """
    from streamsvd.report import origin

    state = model.state
    if hasattr(state, "keys"):
        state = state[_key_like(state, key, model.path)]
    elif key is not None:
        msg = f"--key {key} arrived, and {model.path} holds one state for all rows; leave it out"
        raise ValueError(msg)
    if not hasattr(state, "factors"):
        return state
    if state.rows == 0:
        msg = f"{model.path} holds a state without rows, which has no components yet"
        raise ValueError(msg)
    return replace(state.factors(), names=() if model.run is None else model.run.names, info=origin(state))


def matched(patterns: Sequence[str], /) -> list[str]:
    """Return the files that paths and patterns stand for, each once, in the order given; those of a pattern by name.

    Raises
    ------
    FileNotFoundError
        A pattern without a match.
    """
    found: list[str] = []
    for pattern in patterns:
        if Path(pattern).exists() or not any(sign in pattern for sign in "*?["):
            found.append(pattern)
            continue
        root = Path(pattern).anchor
        paths = sorted(str(path) for path in Path(root).glob(str(Path(pattern).relative_to(root))) if path.is_file())
        if not paths:
            msg = f"no file matches the pattern {pattern!r} (looked from {Path.cwd()}); check the folder and the suffix"
            raise FileNotFoundError(msg)
        found += paths
    return list(dict.fromkeys(found))


def merged(paths: Sequence[str], /) -> Any:
    """Merge the states of many files in a tree: neighbours first, so that rounding grows with the logarithm of their number.

    Raises
    ------
    TypeError
        A file that holds factors.
    ValueError
        States that do not go together; the message names the first file of each side.

    Notes
    -----
    Memory: one state for each level of the tree and one more, however many files there are.
    """
    if len(paths) == 1:
        state = opened(paths[0]).state
        if not hasattr(state, "merge"):
            msg = f"{paths[0]} holds factors, which have forgotten what merging needs; fit it again with --state"
            raise TypeError(msg)
        return state
    half = (len(paths) + 1) // 2
    left, right = merged(paths[:half]), merged(paths[half:])
    try:
        return left.merge(right)
    except (TypeError, ValueError) as error:
        msg = f"{paths[half]} does not go with {paths[0]}: {error}"
        raise ValueError(msg) from error


def position(run: Checkpoint, /) -> dict[str, Any]:
    """Return where a run stands, as plain values."""
    offset = run.offset or {}
    items = list(offset.get("items", []))
    last = items[-1] if items else {}
    return {
        "sequence": run.sequence,
        "finished": run.finished,
        "rows": run.state.rows,
        "items": sum(item.get("count", 1) for item in items),
        "last": last.get("path") or last.get("type"),
        "read": offset.get("rows", 0),
        **{name: run.intake.get(name) for name in ("seen", "dropped", "filled")},
        "settings": {name: value for name, value in run.settings.items() if value is not None},
        "event": run.events[-1] if run.events else None,
    }


def _key_like(keyed: Any, key: str | None, path: str) -> Any:
    """Return the key that a text stands for; keys may be whole numbers, true/false or dates too."""
    keys = {str(one): one for one in keyed.keys()}  # noqa: SIM118  (a state, no dict)
    if key in keys:
        return keys[key]
    shown = ", ".join(list(keys)[:20]) + (f", ... ({len(keys)} in all)" if len(keys) > 20 else "")
    had = f"--key {key} is none of them" if key is not None else "--key says which, and is missing"
    msg = f"{path} holds one state for each key, and {had}; the keys are {shown}"
    raise ValueError(msg)
