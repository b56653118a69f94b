"""Files as sources: which files a path, glob, folder or URL stands for, and what a file is known by."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit
from urllib.request import url2pathname

SUFFIXES = (".parquet", ".arrow", ".ipc", ".feather", ".csv", ".ndjson", ".jsonl", ".npy", ".npz")
ARRAYS = (".npy", ".npz")
HEAD_BYTES = 4096


@dataclass(frozen=True)
class File:
    """A file on this machine, or where an fsspec filesystem reaches it."""

    path: str
    remote: Any = None  # an fsspec filesystem
    name: str = ""  # for messages and offsets, where it is not the path: a URL without what may be secret in it

    @property
    def suffix(self) -> str:
        """The suffix in small letters, which says how to read it."""
        return PurePosixPath(str(self)).suffix.lower()

    @property
    def key(self) -> str:
        """What it is called in offsets: the path from the root, so that the working folder does not matter, or the URL."""
        return os.path.abspath(self.path) if self.remote is None else str(self)  # noqa: PTH100 - links stay what they are

    def __str__(self) -> str:
        return self.name or self.path

    def open(self) -> BinaryIO:
        """Open it for reading bytes."""
        opened = Path(self.path).open("rb") if self.remote is None else self.remote.open(self.path, "rb")  # noqa: SIM115
        return cast("BinaryIO", opened)

    def stat(self) -> tuple[int, int]:
        """Return its size in bytes and the time of its last change in nanoseconds since 1970 (0 where that is not known)."""
        if self.remote is None:
            found = Path(self.path).stat()
            return found.st_size, found.st_mtime_ns
        size = self.remote.info(self.path).get("size")
        try:
            changed = int(self.remote.modified(self.path).timestamp() * 10**6) * 1000
        except (NotImplementedError, KeyError, AttributeError, TypeError):
            changed = 0
        return int(size or 0), changed

    def mark(self) -> dict[str, Any]:
        """Return what it is known by: path, size, time of change, and a digest of its first bytes."""
        with naming(self):
            size, mtime_ns = self.stat()
            with self.open() as opened:
                head = blake2b(opened.read(HEAD_BYTES), digest_size=8).hexdigest()
        return {"path": self.key, "size": size, "mtime_ns": mtime_ns, "head": head}


def find(source: str | os.PathLike[str], /) -> list[File]:
    """Return the files that a path, a glob, a folder or a URL stands for, sorted by name.

    A folder is searched at any depth. What starts with a dot or an underscore there, and files of another kind, are passed over.

    Raises
    ------
    FileNotFoundError
        Nothing is there: no such path, no match for the glob, no readable file in the folder.
    ValueError
        A URL of an unknown scheme, or a file whose suffix does not say how to read it.
    ImportError
        A URL whose scheme wants a package that is not installed; the message has the pip command.
    """
    text = os.fspath(source)
    if not text:
        msg = "an empty path arrived; write '.' for the current folder"
        raise ValueError(msg)
    if "://" in text and not text.startswith("file://"):
        from streamsvd.flow.remote import find as find_remote

        return find_remote(text)
    path = Path(url2pathname(urlsplit(text).path) if text.startswith("file://") else text).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.exists():
        return [known(File(str(path)))]
    if any(sign in text for sign in "*?["):
        root = Path(path.anchor)
        found = sorted(p for p in root.glob(str(path.relative_to(root))) if not p.name.startswith("."))
        if not found:
            msg = f"no file matches the pattern {text!r} (looked from {Path.cwd()}); check the folder and the suffix"
            raise FileNotFoundError(msg)
        return [file for p in found for file in (_folder(p) if p.is_dir() else [known(File(str(p)))])]
    parent = path.absolute().parent
    reason = f"the folder {parent} has no {path.name!r}" if parent.is_dir() else f"there is no folder {parent}"
    msg = f"{text!r} does not exist: {reason}; check the path"
    raise FileNotFoundError(msg)


def inside(folder: Path, /) -> list[Path]:
    """Return the files of a folder that are data, at any depth, sorted: of a known kind, none of them hidden."""
    found = []
    for at, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if wanted(name)]
        found += [Path(at, name) for name in names if wanted(name) and Path(name).suffix.lower() in SUFFIXES]
    return sorted(file for file in found if file.is_file())


def wanted(name: str, /) -> bool:
    """Whether the name of a file or folder is one of data: dots and underscores hide, as Hadoop and Spark do."""
    return not name.startswith((".", "_"))


def known(file: File, /) -> File:
    """Return the file, or raise where its suffix does not say how to read it."""
    if file.suffix not in SUFFIXES:
        msg = (
            f"the suffix of {str(file)!r} does not say how to read it; expected one of {', '.join(SUFFIXES)}: "
            "rename the file, or open it yourself and pass the table"
        )
        raise ValueError(msg)
    return file


def no_data(folder: object, /) -> FileNotFoundError:
    """Return the error of a folder without data."""
    return FileNotFoundError(
        f"the folder {str(folder)!r} holds no file to read; expected at least one of {', '.join(SUFFIXES)}"
    )


class UnsuitedError(ValueError):
    """A file is whole, and yet cannot be read as rows; the message says why and what to do."""


@contextmanager
def naming(file: File, /) -> Iterator[None]:
    """Put the name of the file into what goes wrong while it is read."""
    try:
        yield
    except UnsuitedError as error:
        msg = f"{str(file)!r} cannot be read as rows: {error}"
        raise ValueError(msg) from error
    except (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        msg = f"{str(file)!r} cannot be read: it is damaged, or not what its suffix says ({error})"
        raise kind_of(error)(msg) from error


def kind_of(error: Exception, /) -> type[Exception]:
    """Return the kind of error to raise in place of one: its own for Python's errors of files, which take a message alone."""
    if isinstance(error, OSError):
        return type(error) if type(error).__module__ == "builtins" else OSError
    return ValueError


def _folder(path: Path) -> list[File]:
    found = inside(path)
    if not found:
        raise no_data(path)
    return [File(str(file)) for file in found]
