"""The state file: safetensors with one JSON metadata key and a digest of the whole file, written in one step, read with suspicion.

``docs/format.md`` describes it for other programs. Nothing in it is ever unpickled or evaluated.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

KEY, FORMAT, VERSION = "streamsvd", "streamsvd/", 1
BLANK = "0" * 64  # what stands in the place of the digest while it is computed
DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bool": "BOOL"}
DTYPES |= {f"{sign}int{bits}": f"{sign[:1].upper() or 'I'}{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
HEADER_LIMIT = 100_000_000
FIT_AGAIN = "restore it from a copy, or fit again"
# Of each kind: what it holds, and what takes it.
OWNERS = {
    **dict.fromkeys(
        ("gram", "truncated", "keyed", "run"), ("a state of a stream", "streamsvd inspect, or streamsvd.load")
    ),
    **dict.fromkeys(
        ("factors", "robust", "robust-factors"), ("factors or their state", "streamsvd inspect, or streamsvd.load")
    ),
    "graph": ("a graph", "streamsvd graph recommend, or streamsvd.load"),
    "activations": ("statistics of a torch model", "ActivationStats.load(path, model)"),
    "background": ("a background model", "streamsvd video --checkpoint, or streamsvd.load"),
    "ctr-moments": ("moments of embedding tables", "streamsvd ctr refresh, which takes its folder, or streamsvd.load"),
    "ctr-pass": ("a pass over embedding tables that was stopped", "streamsvd ctr compress, which takes its folder"),
    "ctr-bases": ("bases of embedding tables", "streamsvd ctr eval and refresh, which take its folder"),
    "ctr-deepfm": ("a click model", "streamsvd ctr eval and compress, which take its folder"),
}
GIVE_STATE = "give a file that streamsvd.save has written"


def write(path: str | os.PathLike[str], kind: str, arrays: dict[str, np.ndarray], meta: Any, /) -> None:
    """Write C-ordered little-endian arrays and JSON values to a state file. Cost: one hash (about 1 GB/s) and one write, no copy."""
    write_atomically(path, encode(kind, arrays, meta)[1])


def encode(kind: str, arrays: dict[str, np.ndarray], meta: Any, /) -> tuple[str, list[Any]]:
    """Return the digest of a state file and its bytes in pieces, most of them views of the arrays."""
    stored = {"digest": BLANK, "format": f"{FORMAT}{VERSION}", "kind": kind, "meta": meta}
    text = json.dumps(stored, sort_keys=True, separators=(",", ":"), allow_nan=False)
    # Large items first keeps every array aligned, and the order depends on names and types alone.
    arrays = dict(sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])))
    header = _header(text, arrays)
    if len(header) > HEADER_LIMIT:
        msg = f"{len(arrays)} arrays want a header of {len(header):,} bytes, and a state file has one of at most {HEADER_LIMIT:,}"
        raise ValueError(msg)
    data = [array.reshape(-1).view(np.uint8).data for array in arrays.values()]
    digest = hashlib.blake2b(header, digest_size=32)
    for chunk in data:
        digest.update(chunk)
    return digest.hexdigest(), [header.replace(BLANK.encode(), digest.hexdigest().encode(), 1), *data]


def read(path: str | os.PathLike[str], /, *, kinds: Collection[str]) -> tuple[str, dict[str, np.ndarray], Any]:
    """Return the kind, the arrays and the JSON values of a state file, after checking every bit of it.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError
        There is no such file, or it cannot be opened.
    ValueError
        The file was cut short, has a wrong bit, was not written by streamsvd, or by a newer version; the message says which.
    """
    from safetensors import safe_open

    file = _existing(path)
    with file.open("rb") as handle:
        stored = _checked(str(file), handle, file.stat().st_size, kinds)
    with safe_open(file, framework="np") as content:
        return stored["kind"], {name: content.get_tensor(name) for name in content.keys()}, stored["meta"]  # noqa: SIM118


def decode(data: Any, name: str, /, *, kinds: Collection[str]) -> tuple[str, dict[str, np.ndarray], Any]:
    """Return what `read` does, of the bytes of a state file that came another way; ``name`` stands for it in messages.

    Raises
    ------
    ValueError
        As `read`. The arrays are copies, which may be written to.
    """
    from safetensors.numpy import load

    data = bytes(data)
    stored = _checked(name, io.BytesIO(data), len(data), kinds)
    return stored["kind"], load(data), stored["meta"]


def digest(path: str | os.PathLike[str], /) -> str:
    """Return the digest that a state file carries, after checking that its content agrees with it."""
    file = _existing(path)
    with file.open("rb") as handle:
        return _verified(str(file), handle, file.stat().st_size)["digest"]


def write_atomically(
    path: str | os.PathLike[str],
    chunks: Iterable[Any],
    /,
    *,
    sync: bool = True,
    before: Callable[[], None] | None = None,
) -> None:
    """Write bytes to a file that appears, or replaces another, in one step and (``sync``) only when all of it is on the disk.

    ``before`` is called when everything is written, just before the file takes its place.
    """
    final = Path(os.path.realpath(Path(path).expanduser()))  # what a link points to is replaced, not the link
    if final.is_dir():
        msg = f"{str(path)!r} is a folder; name a file in it, such as {str(final / 'state.svd')!r}"
        raise IsADirectoryError(msg)
    if not final.parent.is_dir():
        msg = f"there is no folder {str(final.parent)!r} to write {final.name!r} into; create it first"
        raise FileNotFoundError(msg)
    draft = final.with_name(f".{final.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        if before is not None:
            before()
        draft.replace(final)
    except OSError as error:
        there = "the file that was there is unchanged" if final.exists() else "nothing was written"
        msg = f"cannot write {str(path)!r}: {error.strerror or error}; {there}"
        raise type(error)(error.errno, msg) from error
    finally:
        draft.unlink(missing_ok=True)
    if sync:
        sync_folder(final.parent)


def sync_folder(folder: Path, /) -> None:
    """Bring the names of the files in a folder to the disk."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _existing(path: str | os.PathLike[str]) -> Path:
    file = Path(path).expanduser()
    if file.is_dir():
        msg = f"{str(path)!r} is a folder; name the state file in it"
        raise IsADirectoryError(msg)
    if not file.exists():
        msg = f"there is no file {str(path)!r} (looked from {Path.cwd()}); check the path, or make it with streamsvd.save(state, path)"
        raise FileNotFoundError(msg)
    return file


def _checked(file: str, handle: BinaryIO, size: int, kinds: Collection[str]) -> dict[str, Any]:
    stored = _verified(file, handle, size)
    if stored["kind"] not in kinds:
        kind, known = stored["kind"], ", ".join(kinds)
        if kind in OWNERS:
            what, how = OWNERS[kind]
            raise _refusal(file, f"holds {what}, and what belongs here is of kind {known}", f"it is for {how}")
        raise _refusal(
            file, f"holds a {kind!r}, which this version does not know (it knows {known})", "upgrade streamsvd"
        )
    return stored


def _verified(file: str, handle: BinaryIO, size: int) -> dict[str, Any]:
    """Return what the metadata key says, once the digest of the whole file agrees with it."""
    start = handle.read(9)
    length = int.from_bytes(start[:8], "little")
    if size < 10 or start[8:] != b"{" or not 2 <= length <= HEADER_LIMIT:
        cut = "was cut short, or is no state file" if size < 10 else "is no state file of streamsvd"
        raise _refusal(file, cut if size else "is empty", GIVE_STATE)
    if 8 + length > size:
        raise _refusal(file, f"was cut short within its header: {size} of {8 + length} bytes are there")
    header = start + handle.read(length - 1)
    stored, end = _parsed(file, header[8:])
    if size < 8 + length + end:
        raise _refusal(file, f"was cut short: {size} of {8 + length + end} bytes are there")
    digest = hashlib.blake2b(header.replace(stored["digest"].encode(), BLANK.encode(), 1), digest_size=32)
    while chunk := handle.read(1 << 20):
        digest.update(chunk)
    if digest.hexdigest() != stored["digest"]:
        what = f"its digest is {stored['digest'][:12]}... and its content gives {digest.hexdigest()[:12]}..."
        raise _refusal(file, f"is damaged: {what}")
    return stored


def _parsed(file: str, header: bytes) -> tuple[dict[str, Any], int]:
    """Return what the metadata key holds, and how many bytes of arrays follow the header."""
    try:
        head = json.loads(header)
        end = max((entry["data_offsets"][1] for key, entry in head.items() if key != "__metadata__"), default=0)
        text = head.get("__metadata__", {}).get(KEY)
        stored = None if text is None else json.loads(text)
        version = 0 if stored is None else int(stored["format"].removeprefix(FORMAT))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise _refusal(file, f"is damaged: its header cannot be read ({type(error).__name__}: {error})") from error
    if stored is None:
        raise _refusal(file, f"is a safetensors file without the key {KEY!r}, so no state", GIVE_STATE)
    if version > VERSION:
        what = f"was written by a newer streamsvd (format {version}, and this one reads up to {VERSION})"
        raise _refusal(file, what, "upgrade streamsvd")
    if not (isinstance(end, int) and isinstance(stored.get("digest"), str) and {"kind", "meta"} <= stored.keys()):
        raise _refusal(file, "is damaged: its header lacks the digest, the kind or the values")
    return stored, end


def _refusal(file: str, what: str, cure: str = FIT_AGAIN) -> ValueError:
    return ValueError(f"{file!r} {what}; {cure}")


def _header(text: str, arrays: dict[str, np.ndarray]) -> bytes:
    """Return the length and the JSON that begin the file. The library's own writer makes files that only their owner may read."""
    head: dict[str, Any] = {"__metadata__": {KEY: text}}
    end = 0
    for name, array in arrays.items():
        head[name] = {
            "dtype": DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [end, end + array.nbytes],
        }
        end += array.nbytes
    header = json.dumps(head, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header
