"""Files as partitions: which, in what order, and what a folded one is kept under."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from streamsvd.flow.files import find


def paths_of(source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], /) -> list[str]:
    """Return the files that a path, glob, folder or a list of these stand for, absolute, in the order of `streamsvd.batches`.

    Raises
    ------
    FileNotFoundError
        Nothing is there.
    TypeError, ValueError
        It is no path, or a URL, which the engines read by themselves.
    """
    many = [source] if isinstance(source, str | os.PathLike) else source
    if not isinstance(many, list | tuple) or not all(isinstance(one, str | os.PathLike) for one in many):
        msg = f"got {type(source).__name__}; expected a dataset of the engine, a path, a pattern, a folder, or a list of these"
        raise TypeError(msg)
    files = [file for one in many for file in find(one)]
    remote = [file for file in files if file.remote is not None]
    if remote:
        msg = f"{remote[0]} is a URL; read it with the engine (ray.data.read_parquet, spark.read.parquet), and pass the dataset"
        raise ValueError(msg)
    return [file.key for file in files]


def file_key(path: str, /) -> str:
    """Return what stands for a file as it is: its path, size and time."""
    stat = Path(path).stat()
    return hashlib.blake2b(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}".encode(), digest_size=16).hexdigest()
