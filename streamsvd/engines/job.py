"""What a worker does: fold one partition into bytes, merge the bytes of neighbours, and keep what was folded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from streamsvd.arrays import one_thread
from streamsvd.engines.contract import Part, merged, settled
from streamsvd.flow import statefile
from streamsvd.flow.pieces import located, pieces
from streamsvd.flow.policies import Intake
from streamsvd.flow.request import Request, check_settings
from streamsvd.planner import named_dtype

FAN_IN = 8


@dataclass(frozen=True)
class Job:
    """What workers need to know; small, plain, and the same for all partitions.

    Attributes
    ----------
    options : dict, those of `streamsvd.fit` that decide the result
    device : str or None, where torch holds the state while a partition is folded: "cuda", "cpu"; None for NumPy
    folder : str or None, where each folded partition is kept until all are merged; all workers must see it
    fan_in : int, so many neighbours are merged into one
    files : bool, whether partitions are paths, read by the worker
    """

    options: dict[str, Any]
    device: str | None = None
    folder: str | None = None
    fan_in: int = FAN_IN
    files: bool = False

    @classmethod
    def of(cls, *, device: str | None = None, folder: Any = None, fan_in: int = FAN_IN, **options: Any) -> Job:
        """Check the options of a run and return its job.

        Raises
        ------
        ValueError
            For options out of range, and those that have no meaning for partitions; the message says what to write instead.
        """
        if isinstance(fan_in, bool) or not isinstance(fan_in, int) or fan_in < 2:
            msg = f"fan_in={fan_in!r} arrived; expected how many neighbours are merged into one, 2 or more"
            raise ValueError(msg)
        asked = Request(**options)
        if asked.decay is not None or isinstance(asked.half_life, (int, float)):
            cure = "give timestamps= and a half_life in time, such as '1h'"
            msg = f"decay and a half-life in rows age rows by those after them, and partitions have no order; {cure}"
            raise ValueError(msg)
        if asked.quarantine is not None:
            msg = 'quarantine= is written in order, and partitions are read by many workers; leave it out (nulls="drop" counts the rows)'
            raise ValueError(msg)
        if asked.overflow != "error":
            msg = f"overflow={asked.overflow!r} keeps states on the disk of one machine; leave it out, or use streamsvd.fit"
            raise ValueError(msg)
        if asked.unit and asked.kind != "gram":
            msg = "scale='unit' reads the source twice here; pass the standard deviations, scale=std, or kind='gram'"
            raise ValueError(msg)
        return cls(
            {**options, "dtype": named_dtype(asked.dtype)}, device, None if folder is None else str(folder), fan_in
        )

    def fold(self, source: Any, number: int = 0, /, *, key: str | None = None) -> bytes:
        """Fold one partition (anything that `streamsvd.batches` reads) into bytes: the same rows give the same bytes.

        Rows that are refused become a part that says so, since the engine would only try again; whatever else goes wrong is raised, and
        left to the engine's retries. With a folder, a partition whose file is there is not folded again.
        """
        settings = Request(**self.options).settings()
        kept = self.kept(key or f"{number:06d}", settings)
        if kept is not None:
            return replace(kept, first=number).to_bytes()
        try:
            with one_thread():  # as many workers as cores, and the number of threads may show in the last bits
                part = self._folded(source, number, settings)
        except (TypeError, ValueError, MemoryError) as error:
            text = (
                str(error) or f"{type(error).__name__}: it does not fit in the memory of a worker; cut the data finer"
            )
            return Part(number, 1, None, Intake(), settings, failed={str(number): text}).to_bytes()
        data = part.to_bytes()
        if self.folder is not None and part.state is not None:
            statefile.write_atomically(self._file(key or f"{number:06d}"), [data])
        return data

    def merge(self, parts: Iterable[Any], /) -> bytes:
        """Merge the bytes of neighbours, in order."""
        return self.merge_parts(Part.from_bytes(data) for data in parts)

    def merge_parts(self, parts: Iterable[Part], /) -> bytes:
        """Merge neighbours, in order; memory: two of them."""
        with one_thread():
            return merged(parts).to_bytes()

    def kept(self, key: str, settings: dict[str, Any], /) -> Part | None:
        """Return what an earlier run left of a partition, or None; a file of other options is refused."""
        if self.folder is None or not self._file(key).exists():
            return None
        file = self._file(key)
        part = Part.from_bytes(file.read_bytes(), str(file))
        check_settings(part.settings, settings, file)
        return part

    def _file(self, key: str) -> Path:
        return Path(cast("str", self.folder)) / f"{key}.svd"

    def _folded(self, source: Any, number: int, settings: dict[str, Any]) -> Part:
        asked, state, intake, names = Request(**self.options), None, Intake(), ()
        stream: Any = pieces(source, **asked.reading())
        with closing(stream):
            for piece in stream:
                intake = piece.intake
                if piece.x is None or not piece.x.shape[0]:
                    continue
                if state is None:
                    names = piece.names
                    state = asked.keyed(asked.sketch(piece.x.shape[1], scale=asked.scale), None)
                keys = {} if piece.keys is None else {"keys": piece.keys}
                with located(piece):
                    state = state.update(self._placed(piece.x), **piece.beside, **keys)
        intake = replace(intake, count=None, mean=None, first=None)
        return Part(number, 1, None if state is None or state.rows == 0 else settled(state), intake, settings, names)

    def _placed(self, x: Any) -> Any:
        if self.device is None:
            return x
        import torch

        # torch warns of arrays that may not be written to, which those of Ray and Arrow are.
        x = x if not isinstance(x, np.ndarray) or x.flags.writeable else x.copy(order="K")
        return torch.asarray(x, device=self.device)


def content_key(table: Any, /) -> str:
    """Return the digest of a table's schema and numbers: the same for the same rows, wherever they lie in memory. Cost: 1 GB/s."""
    import pyarrow as pa

    digest = hashlib.blake2b(digest_size=16)

    class Sink:
        closed = False

        def write(self, data: Any) -> int:
            digest.update(data)
            return len(data)

        def flush(self) -> None: ...
        def close(self) -> None: ...

    # Chunks are joined, and slices cut out of what they are slices of, so that the bytes are those of the rows alone.
    with pa.ipc.new_stream(pa.PythonFile(cast("Any", Sink()), mode="w"), table.schema) as writer:
        for batch in table.combine_chunks().to_batches():
            writer.write_batch(batch)
    return digest.hexdigest()
