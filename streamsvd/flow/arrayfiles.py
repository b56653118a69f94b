"""One 2-D array in a .npy or .npz file, read block by block: mapped where it lies plain in a local file, else as a stream of bytes."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from streamsvd.flow.blocks import Part, array_step
from streamsvd.flow.files import File, UnsuitedError, naming

LOCAL_HEADER = 30  # bytes of a zip member's own header before its name


class Layout(NamedTuple):
    """What the header of a .npy says; `array_step` takes it for the array."""

    shape: tuple[int, ...]
    by_columns: bool
    dtype: np.dtype[Any]
    offset: int  # of the numbers, in bytes from the first one of the header

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)


def array_parts(file: File, rows: int | None, first: int) -> Iterator[Part]:
    """Read the rows of an array file from a row on.

    Mapped, it holds a block at a time; so does an array in row order elsewhere (compressed, or remote). One in column order elsewhere is
    read whole.
    """
    with ExitStack() as stack:
        with naming(file):
            plain = _plain_bytes(file)
            stream = _member(file, stack)
            layout = _layout(stream)
        step = array_step(layout, rows, f"{str(file)!r}: ")
        if plain is not None:
            cuts = _mapped(file.path, layout, plain, step, first)
        elif layout.by_columns:
            cuts = _whole(stream, layout, step, first)
        else:
            cuts = _streamed(stream, layout, step, first)
        with naming(file):
            for start, data in cuts:
                yield Part(data, start, 0, str(file), start)


def array_rows(file: File) -> int | None:
    """Return the number of rows that the header declares."""
    with ExitStack() as stack:
        shape = _layout(_member(file, stack)).shape
    return int(shape[0]) if shape else None


def _member(file: File, stack: ExitStack) -> IO[bytes]:
    """Return the bytes of the .npy: the file itself, or the one array in an .npz."""
    opened = stack.enter_context(file.open())
    if file.suffix == ".npy":
        return opened
    archive = stack.enter_context(zipfile.ZipFile(opened))
    return stack.enter_context(archive.open(_only(archive)))


def _only(archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    if len(names) == 1:
        return archive.getinfo(f"{names[0]}.npy")
    if {"data", "indices", "indptr", "shape"} <= set(names):
        cure = "these are the parts of a sparse matrix: pass scipy.sparse.load_npz(path)"
    else:
        cure = "pass the one that is meant, as numpy.load(path)[name]"
    msg = f"it holds {len(names)} arrays ({', '.join(names)}) and one was expected; {cure}"
    raise UnsuitedError(msg)


def _layout(stream: IO[bytes]) -> Layout:
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        msg = f"its header is of version {version}, which is for columns with names; expected an array of numbers"
        raise UnsuitedError(msg)
    shape, by_columns, dtype = readers[version](stream)
    if dtype.hasobject:
        msg = "it holds Python objects, which are never loaded; expected an array of numbers"
        raise UnsuitedError(msg)
    return Layout(shape, by_columns, dtype, stream.tell())


def _plain_bytes(file: File) -> int | None:
    """Return where in a local file the .npy begins, None where its bytes do not lie there as they are."""
    if file.remote is not None:
        return None
    if file.suffix == ".npy":
        return 0
    with zipfile.ZipFile(file.path) as archive:
        info = _only(archive)
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        return None
    with Path(file.path).open("rb") as opened:
        opened.seek(info.header_offset)
        header = opened.read(LOCAL_HEADER)
    return info.header_offset + LOCAL_HEADER + sum(int.from_bytes(header[i : i + 2], "little") for i in (26, 28))


def _mapped(path: str, layout: Layout, plain: int, step: int, first: int) -> Iterator[tuple[int, np.ndarray]]:
    order = "F" if layout.by_columns else "C"
    for start in range(first, layout.shape[0], step):
        # Mapped anew for each block: pages that were read count as memory of this process until their map is gone.
        whole = np.memmap(path, layout.dtype, "r", plain + layout.offset, layout.shape, order)
        yield start, whole[start : start + step]


def _streamed(stream: IO[bytes], layout: Layout, step: int, first: int) -> Iterator[tuple[int, np.ndarray]]:
    n, d = layout.shape
    per_row = d * layout.dtype.itemsize
    stream.seek(layout.offset + first * per_row)
    for start in range(first, n, step):
        rows = min(step, n - start)
        yield start, np.frombuffer(_exactly(stream, rows * per_row), layout.dtype).reshape(rows, d)


def _whole(stream: IO[bytes], layout: Layout, step: int, first: int) -> Iterator[tuple[int, np.ndarray]]:
    n, d = layout.shape
    whole = np.frombuffer(_exactly(stream, n * d * layout.dtype.itemsize), layout.dtype).reshape(n, d, order="F")
    for start in range(first, n, step):
        yield start, whole[start : start + step]


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        msg = f"it ends {size - len(data)} bytes before its last row"
        raise ValueError(msg)
    return data
