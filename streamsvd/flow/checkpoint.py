"""States and factors as files, bit for bit, and back to where they are wanted (NumPy, or the library and device of an array)."""

from __future__ import annotations

import math
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.arrays import device_of, namespace, to_numpy
from streamsvd.flow import statefile

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

# What a file may hold: the class, or where to import it from when it is met.
KINDS: dict[str, str | type] = {
    "gram": "streamsvd.gram:Gram",
    "truncated": "streamsvd.truncated:Truncated",
    "factors": "streamsvd.factors:Factors",
    "run": "streamsvd.flow.checkpoints:Checkpoint",
    "keyed": "streamsvd.flow.keyed:Keyed",
    "robust": "streamsvd.robust_stream:Robust",
    "robust-factors": "streamsvd.robust:RobustFactors",
    "graph": "streamsvd.pipelines.graph.graphsvd:GraphSVD",
    "background": "streamsvd.pipelines.video.model:BackgroundModel",
    "ctr-moments": "streamsvd.pipelines.ctr.moments:Moments",
    "ctr-pass": "streamsvd.pipelines.ctr.passes:Pass",
}


def save(obj: Any, path: str | os.PathLike[str], /) -> None:
    """Write a state or factors to a file, bit for bit.

    Parameters
    ----------
    obj : Gram, Truncated or Factors
        A state is written with its rows that wait to be folded, so that a stream which goes on from the file ends in the same bits.
    path : path
        Replaced in one step when everything is on the disk; until then what was there stays.

    Raises
    ------
    TypeError
        Something that is no state and no factors.
    OSError
        The folder does not exist or may not be written, or the disk is full; a file that was there before is unchanged.

    Notes
    -----
    Cost: the arrays are hashed (about 1 GB/s) and written once, without a copy of arrays that are contiguous on the CPU.
    """
    statefile.write(path, *contents(obj))


def load(path: str | os.PathLike[str], /, *, like: Any = None, device: Any = None) -> Any:
    """Read a state or factors from a file, after checking every bit of it.

    Parameters
    ----------
    path : path
    like : array, optional
        Arrays come back in its library and on its device (torch, CuPy, ...); NumPy otherwise.
    device : str or torch.device, optional
        Arrays come back as torch tensors there: "cpu", "cuda", "cuda:1".

    Returns
    -------
    obj : Gram, Truncated or Factors
        Of the checkpoint of a run, its state.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError
        There is no such file, or it cannot be opened.
    ValueError
        The file was cut short, has a wrong bit, was not written by streamsvd, or by a newer version; the message says which.

    Notes
    -----
    Cost: the file is read twice, once for its digest (about 1 GB/s). Memory: the arrays.
    """
    place = _placer(like, device)
    kind, arrays, meta = statefile.read(path, kinds=KINDS)
    loaded = class_of(kind).from_parts({name: place(array) for name, array in arrays.items()}, restored(meta))
    return loaded.state if kind == "run" else loaded


def class_of(kind: str, /) -> Any:
    """Return the class whose objects a file of this kind holds."""
    target = KINDS[kind]
    if isinstance(target, str):
        module, _, name = target.partition(":")
        target = getattr(import_module(module), name)
    return target


def contents(obj: Any, /) -> tuple[str, dict[str, np.ndarray], Any]:
    """Return the kind, the arrays and the JSON values that a file of a state or factors holds, as `statefile.write` takes them."""
    kind = kind_of(obj)
    parts, meta = obj.parts()
    return kind, {name: storable(name, value) for name, value in parts.items()}, plain(meta, "meta")


def kind_of(obj: Any, /) -> str:
    """Return the kind of file that holds an object like this one; TypeError where there is none."""
    for kind, target in KINDS.items():
        if target in (type(obj), f"{type(obj).__module__}:{type(obj).__qualname__}"):
            return kind
    msg = f"got {type(obj).__name__}; expected a state (streamsvd.sketch) or factors (streamsvd.fit), which are what a file can hold"
    raise TypeError(msg)


def storable(name: str, value: Any, /) -> np.ndarray:
    """Return an array as a state file holds it (NumPy, contiguous, little-endian); TypeError for a dtype that it cannot."""
    array = np.asarray(to_numpy(value), order="C")
    if array.dtype.name not in statefile.DTYPES:
        msg = f"the array {name!r} is of dtype {array.dtype}, which a state file cannot hold; it holds {', '.join(statefile.DTYPES)}"
        raise TypeError(msg)
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def plain(value: Any, where: str, /) -> Any:
    """Return JSON values; numbers that JSON lacks become ``{"$float": "inf"}``."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) and not key.startswith("$") for key in value):
        return {key: plain(item, f"{where}.{key}") for key, item in value.items()}
    msg = f"{where} is of type {type(value).__name__}; expected numbers, strings, lists and dicts with string keys that do not begin with $"
    raise TypeError(msg)


def restored(value: Any, /) -> Any:
    """Return the values that a file holds as plain JSON."""
    if isinstance(value, list):
        return [restored(item) for item in value]
    if not isinstance(value, dict):
        return value
    return float(value["$float"]) if "$float" in value else {key: restored(item) for key, item in value.items()}


def _placer(like: Any, device: Any) -> Callable[[np.ndarray], Any]:
    """Return what brings a NumPy array to where it is wanted."""
    if like is not None and device is not None:
        msg = "got both like and device; give one: like=array for its library and device, or device='cuda' for torch"
        raise ValueError(msg)
    if device is not None:
        import torch

        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, TypeError) as error:
            msg = f"device={device!r} is not a device that torch has here ({error}); write device='cpu', or leave it out for NumPy"
            raise ValueError(msg) from error
        return lambda x: torch.asarray(x, device=device)
    if like is None or isinstance(like, np.ndarray):
        return lambda x: x
    try:
        xp, where = namespace(like), device_of(like)
    except (TypeError, AttributeError) as error:
        msg = f"like is of type {type(like).__name__}; expected an array, such as torch.empty(0)"
        raise TypeError(msg) from error
    return lambda x: xp.asarray(x, device=where)
