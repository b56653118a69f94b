"""The left factor of a stream, rebuilt from the small rotations of its folds.

A fold replaces the stack ``[diag(s) V; X]`` by ``diag(s') V' = Q'[...]``, so the left factor of everything before it is
multiplied by the top block of Q, and the new rows have the middle block. Kept are these blocks, b r numbers for b rows; ``U`` follows
backwards, and ``||A - U diag(s) V||_F^2`` equals ``discarded``.
With centring, the stack holds the difference of the means along ``e``, the unit vector of the new rows' weights (see ``moments.Step``),
and the rows that are centred at the new mean hold it along ``sqrt(1 - f) e - sqrt(f) e_old``: the left factor is turned in that plane.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamsvd.moments import Step


@dataclass(frozen=True, eq=False)
class Rotation:
    """One fold: ``old`` (q, p), ``new`` (b, p), the component ``last`` (p,) along the difference of means, the weights' roots (b,)."""

    old: np.ndarray
    new: np.ndarray
    last: np.ndarray
    roots: np.ndarray
    gain: float
    fade: float


@dataclass(frozen=True, eq=False)
class LeftLog:
    """The rotations so far as a linked list: states that share a past share it here too; ``folder`` spills them to files."""

    folder: str | None = None
    newest: Rotation | str | None = None
    before: LeftLog | None = None
    folds: int = 0

    def push(self, Q: np.ndarray, q: int, step: Step, centered: bool, /) -> LeftLog:
        """Return the log with the rotation of one fold; ``Q`` is (q + b, p)."""
        roots, f = np.sqrt(step.weights), step.share
        W_b = float(step.weights.sum())
        W = step.moments.weight - W_b
        new, last, gain = Q[q:].copy(), np.zeros(Q.shape[1]), 0.0
        if centered and W > 0 and W_b > 0:
            last, gain = roots @ new / math.sqrt(W_b), -math.sqrt(f / W)
            new += np.outer(roots * ((math.sqrt(1.0 - f) - 1.0) / math.sqrt(W_b)), last)
        return self.append(Rotation(Q[:q].copy(), new, last, roots, gain, math.sqrt(step.past)))

    def append(self, rotation: Rotation, /) -> LeftLog:
        """Return the log with one more rotation, written to the folder where one is named."""
        kept = rotation if self.folder is None else _spill(rotation, self.folder, self.folds)
        return LeftLog(self.folder, kept, self, self.folds + 1)

    def rotations(self) -> Iterator[Rotation]:
        """Yield the rotations, newest first."""
        log: LeftLog | None = self
        while log is not None and log.newest is not None:
            yield log.newest if isinstance(log.newest, Rotation) else _read(log.newest)
            log = log.before

    def blocks(self, R: np.ndarray, /) -> Iterator[np.ndarray]:
        """Yield blocks of rows of ``U R``, R (p, k), from the last rows of the stream to the first. Cost: ``b r k`` a block."""
        h = np.zeros(R.shape[1])
        for turn in self.rotations():
            yield turn.new @ R + np.outer(turn.roots, h)
            h = turn.fade * (turn.gain * (turn.last @ R) + h)
            R = turn.old @ R

    def parts(self) -> dict[str, np.ndarray]:
        """Return the rotations, oldest first, as flat arrays for storage."""
        turns = list(self.rotations())[::-1]
        flat = {name: [getattr(turn, name) for turn in turns] for name in ("old", "new", "last", "roots")}
        arrays = {
            f"left_{name}": np.concatenate([x.ravel() for x in xs]) if xs else np.zeros(0) for name, xs in flat.items()
        }
        arrays["left_sizes"] = np.array([[*turn.old.shape, turn.new.shape[0]] for turn in turns], np.int64).reshape(
            len(turns), 3
        )
        arrays["left_scalars"] = np.array([[turn.gain, turn.fade] for turn in turns]).reshape(len(turns), 2)
        return arrays

    @classmethod
    def from_parts(cls, arrays: dict[str, np.ndarray], folder: str | None = None, /) -> LeftLog:
        """Restore a log; rotations stay in memory until the next one is spilled."""
        log, at = cls(folder), dict.fromkeys(["old", "new", "last", "roots"], 0)
        for (q, p, b), (gain, fade) in zip(arrays["left_sizes"], arrays["left_scalars"], strict=True):
            held: dict[str, Any] = {}
            shapes: tuple[tuple[str, tuple[int, ...]], ...] = (
                ("old", (q, p)),
                ("new", (b, p)),
                ("last", (p,)),
                ("roots", (b,)),
            )
            for name, shape in shapes:
                size = int(np.prod(shape))
                held[name] = arrays[f"left_{name}"][at[name] : at[name] + size].reshape(shape)
                at[name] += size
            log = cls(folder, Rotation(**held, gain=float(gain), fade=float(fade)), log, log.folds + 1)
        return log


def _spill(rotation: Rotation, folder: str, number: int) -> str:
    import hashlib

    from safetensors.numpy import save_file

    Path(folder).mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {
        name: np.ascontiguousarray(getattr(rotation, name)) for name in ("old", "new", "last", "roots")
    }
    arrays["scalars"] = np.array([rotation.gain, rotation.fade])
    digest = hashlib.blake2b(b"".join(a.tobytes() for a in arrays.values()), digest_size=8).hexdigest()
    path = Path(folder) / f"{number:08d}-{digest}.rotation"
    save_file(arrays, path)
    return str(path)


def _read(path: str) -> Rotation:
    from safetensors.numpy import load_file

    arrays = load_file(path)
    gain, fade = (float(x) for x in arrays.pop("scalars"))
    return Rotation(**arrays, gain=gain, fade=fade)
