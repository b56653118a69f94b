"""What is measured: shapes, the data of each, and the truth in float64 (both kept in ``bench/.cache``)."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

CACHE = Path(__file__).parent / ".cache"
SEED = 20240
CHUNK_BYTES = 1 << 26


@dataclass(frozen=True)
class Goals:
    """What the default state has to reach: speed against the peers, time over the floor, accuracy against IncrementalPCA."""

    sklearn: float | None = None
    peft: float | None = None
    floor: float | None = None
    accuracy: float | None = None
    slack: float = 1.05


@dataclass(frozen=True)
class Case:
    """A stream of ``rows`` rows in batches of ``batch``; ``slow_rows`` is how many of them the slow peers are timed on.

    Where ``batch`` is 1 the first batch has ``rank`` rows, for everyone, because IncrementalPCA refuses to start with fewer.
    """

    name: str
    columns: int
    rank: int
    batch: int
    rows: int
    slow_rows: int | None = None
    goals: Goals = Goals()

    @property
    def title(self) -> str:
        """Return d, k, batch and rows, as the table shows them."""
        return f"{self.columns}, {self.rank}, {self.batch}, {self.rows}"

    def batches(self, X: np.ndarray) -> list[np.ndarray]:
        """Cut the stream into views."""
        first = self.rank if self.batch == 1 else self.batch
        cuts = [0, *range(first, X.shape[0], self.batch), X.shape[0]]
        return [X[i:j] for i, j in pairwise(cuts)]


CASES = [
    Case("d784", 784, 32, 256, 8192, goals=Goals(8, 5, None, 40)),
    Case("d1024", 1024, 32, 1024, 8192, goals=Goals(16, 4.5, None, 40)),
    Case("d4096", 4096, 64, 1024, 8192, goals=Goals(15, 9, 7, 40)),
    Case("d16384", 16384, 32, 256, 4096, goals=Goals(16, 16, 3.8, 40)),
    Case("d76800", 76800, 5, 25, 300, goals=Goals(12, 20, 4.5, 15)),
    Case("push", 784, 32, 1, 4096, slow_rows=512, goals=Goals(100, None, None, 40)),
]
TINY = [Case("tiny", 60, 4, 32, 256), Case("tiny-push", 60, 4, 1, 96, slow_rows=32)]


def find(names: str | None) -> list[Case]:
    """Return the cases of a comma-separated list, or all but the tiny ones."""
    if not names:
        return CASES
    known = {case.name: case for case in CASES + TINY}
    unknown = [name for name in names.split(",") if name not in known]
    if unknown:
        msg = f"no case is called {', '.join(unknown)}; the cases are {', '.join(known)}"
        raise ValueError(msg)
    return [known[name] for name in names.split(",")]


def data(case: Case, *, cache: Path | None = CACHE) -> np.ndarray:
    """Return ``X = (G * s) V' + 0.001 E``, float32: ``s_j = 1/j``, V orthonormal (d, r), r = min(d, 400), G and E standard normal."""
    file = None if cache is None else cache / f"data-{SEED}-{case.columns}x{case.rows}.npy"
    if file is not None and file.exists():
        return np.load(file)
    m, d = case.rows, case.columns
    r = min(d, 400)
    rng = np.random.default_rng([SEED, d, m])
    V, _ = np.linalg.qr(rng.standard_normal((d, r), dtype=np.float32))
    G = rng.standard_normal((m, r), dtype=np.float32) / np.arange(1, r + 1, dtype=np.float32)
    X = np.empty((m, d), dtype=np.float32)
    for rows in chunks(m, d):
        np.matmul(G[rows], V.T, out=X[rows])
        X[rows] += np.float32(0.001) * rng.standard_normal(X[rows].shape, dtype=np.float32)
    if file is not None:
        _keep(file, lambda stream: np.save(stream, X))
    return X


@dataclass(frozen=True)
class Truth:
    """The leading singular values (float64) and the energy of the stream, centred or as it is."""

    s: np.ndarray
    energy: float

    def error(self, s: np.ndarray) -> float:
        """Return the largest relative error among the leading singular values; one that is missing counts as 0."""
        found = np.zeros(self.s.size)
        found[: min(s.size, found.size)] = s[: found.size]
        return float(np.max(np.abs(found - self.s) / self.s))


def truth(X: np.ndarray, rank: int, *, center: bool, cache: Path | None = CACHE) -> Truth:
    """Return the truth for a stream, from the smaller of its two Gram matrices in float64.

    The squares cost half the digits: a singular value is right to ``1e-16 (s_1 / s_j)^2``, here 1e-12, far below any error measured.
    """
    digest = hashlib.blake2b(np.ascontiguousarray(X), digest_size=8).hexdigest()
    file = None if cache is None else cache / f"truth-{digest}-{rank}-{'centred' if center else 'plain'}.npz"
    if file is not None and file.exists():
        with np.load(file) as kept:
            return Truth(kept["s"], float(kept["energy"]))
    from scipy.linalg import eigh

    G = _gram(X, center)
    m = G.shape[0]
    w = eigh(G, eigvals_only=True, driver="evr", subset_by_index=(m - rank, m - 1), overwrite_a=True)
    found = Truth(np.sqrt(np.maximum(w[::-1], 0.0)), _energy(X, center))
    if file is not None:
        _keep(file, lambda stream: np.savez(stream, s=found.s, energy=found.energy))
    return found


def residual(X: np.ndarray, vt: np.ndarray, *, center: bool) -> float:
    """Return ``||A - A V'V||_F^2`` in float64, independent of the product's own ``verify``."""
    V = np.asarray(vt, dtype=np.float64)
    total = 0.0
    for A in _pieces(X, center):
        R = A - (A @ V.T) @ V
        total += float(np.vdot(R, R))
    return total


def chunks(rows: int, columns: int) -> list[slice]:
    """Return slices of rows whose float64 copies take about 64 MB."""
    step = max(1, CHUNK_BYTES // (8 * columns))
    return [slice(i, min(i + step, rows)) for i in range(0, rows, step)]


def _pieces(X: np.ndarray, center: bool):
    mean = X.mean(axis=0, dtype=np.float64) if center else np.zeros(X.shape[1])
    for rows in chunks(*X.shape):
        yield X[rows] - mean


def _gram(X: np.ndarray, center: bool) -> np.ndarray:
    m, d = X.shape
    if d <= m:
        G = np.zeros((d, d))
        for A in _pieces(X, center):
            G += A.T @ A
        return G
    G = np.zeros((m, m))
    for columns in chunks(d, m):
        A = X[:, columns].astype(np.float64)
        A -= A.mean(axis=0) if center else 0.0
        G += A @ A.T
    return G


def _energy(X: np.ndarray, center: bool) -> float:
    return sum(float(np.vdot(A, A)) for A in _pieces(X, center))


def _keep(file: Path, write) -> None:
    file.parent.mkdir(exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}")
    with part.open("wb") as stream:
        write(stream)
    part.replace(file)
