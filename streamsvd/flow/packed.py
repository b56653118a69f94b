"""Exact second moments of torch rows, kept as a packed triangle: what ``flow.activations`` holds for a layer between two batches.

``Gram`` folds in float64 and keeps the whole square. Here products of float32 rows are taken in float32, a block at a time, and added up in
float64; only the lower triangle is stored, in panels of a few rows, so 4 d^2 bytes stand where 8 d^2 would.
"""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.arrays import blas_threads, dtype_name
from streamsvd.certificate import EPS64, Ledger
from streamsvd.gram import Gram, GramCore
from streamsvd.moments import LARGEST, LEAST, Moments, exponent_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamsvd.options import Options

HEIGHT, GROUP, CHUNK, WHOLE = 32, 256, 1024, 2048
Tensor = Any
_local = threading.local()


def buffer_rows(columns: int, /) -> int:
    """Return how many rows wait: few enough to be small beside the triangle, and enough for one product to pay for its addition."""
    return 128 if columns > 2048 else 512


def packed_bytes(columns: int, /) -> int:
    """Return the bytes of the panels of one triangle, the squares on the diagonal included."""
    return 8 * sum((b - a) * b for a, b in _panels(columns, HEIGHT))


class Packed:
    """Running ``sum (x - shift)(x - shift)'`` and ``sum (x - shift)`` of rows x, on the rows' device.

    Parameters
    ----------
    options : Options
        Columns, rank, centring.
    like : tensor
        Prototype: device, and float32 or float64, the precision of the products.
    """

    kind = "gram"

    def __init__(self, options: Options, like: Tensor) -> None:
        import torch

        self.options, self.like = options, like[:0].reshape(-1)
        d, f64 = options.columns, {"dtype": torch.float64, "device": like.device}
        self.panels = [torch.zeros((b - a, b), **f64) for a, b in _panels(d, HEIGHT)]
        self.shift: Tensor = None
        self.sums = torch.zeros(d, **f64)
        self.waiting = torch.empty((buffer_rows(d), d), dtype=like.dtype, device=like.device)
        self.count = self.rows = 0

    def add(self, X: Tensor, /) -> None:
        """Take rows (n, d), finite, of the dtype and on the device of the prototype. Cost: ``n d^2 / 2`` multiply-adds."""
        room = self.waiting.shape[0] - self.count
        if X.shape[0] < room:
            self._wait(X)
            return
        if self.count:
            self._wait(X[:room])
            X = X[room:]
            self.flush()
        whole = X.shape[0] - X.shape[0] % self.waiting.shape[0]
        for start in range(0, whole, CHUNK):
            self._fold(X[start : min(start + CHUNK, whole)])
        self._wait(X[whole:])

    def flush(self) -> None:
        """Fold the rows that wait."""
        count, self.count = self.count, 0
        if count:
            self._fold(self.waiting[:count])

    def copy(self) -> Packed:
        """Return an independent state with the same rows."""
        twin = Packed.__new__(Packed)
        twin.__dict__.update(self.__dict__)
        twin.panels, twin.sums, twin.waiting = [p.clone() for p in self.panels], self.sums.clone(), self.waiting.clone()
        return twin

    def merge(self, other: Packed, /) -> None:
        """Take in the rows of another state of the same options. Cost: ``d^2`` additions."""
        self.flush()
        other = other.copy() if other.count else other
        other.flush()
        if other.rows == 0:
            return
        if self.shift is None:
            self.shift = other.shift
        apart = other.shift.double() - self.shift.double()
        n, u = other.rows, other.sums
        for (a, b), mine, theirs in zip(_panels(self.options.columns, HEIGHT), self.panels, other.panels, strict=True):
            mine += theirs
            if apart.any():
                mine += u[a:b, None] * apart[None, :b] + apart[a:b, None] * (u + n * apart)[None, :b]
        self.sums += u + n * apart
        self.rows += n

    def gram(self) -> Gram:
        """Return the same moments as a ``Gram`` state (8 d^2 bytes)."""
        self.flush()
        if self.rows == 0:
            return Gram(self.options)
        C = self.matrix()
        trace = float(C.diagonal().sum())
        exponent = 0 if LEAST < trace < LARGEST else exponent_for(math.sqrt(trace))
        C = C.mul_(2.0**-exponent).mul_(2.0**-exponent)
        on_host = C.device.type == "cpu"
        host = (lambda x: x.numpy()) if on_host else (lambda x: x)
        shift = self.shift.double()
        eps = float(np.finfo(dtype_name(self.like)).eps)
        moments = Moments(
            rows=self.rows,
            weight=float(self.rows),
            weight_sq=float(self.rows),
            shift=host(shift),
            delta=host(self.sums / self.rows if self.options.center else self.sums * 0.0),
            time=0.0,
        )
        raw = trace + float(self.sums.square().sum() / self.rows if self.options.center else 0.0)
        total, raw = (math.ldexp(x, -2 * exponent) for x in (trace, raw))
        ledger = Ledger(total=total, noise=4.0 * (eps + EPS64) * raw)
        scatter = np.asfortranarray(C.numpy()) if on_host else C
        return Gram(self.options, GramCore(scatter, moments, ledger, exponent), like=host(self.like))

    def matrix(self) -> Tensor:
        """Return the (centred, where asked for) scatter as a whole symmetric matrix (d, d), float64."""
        import torch

        self.flush()
        d = self.options.columns
        C = torch.empty((d, d), dtype=torch.float64, device=self.like.device)
        for (a, b), panel in zip(_panels(d, HEIGHT), self.panels, strict=True):
            C[a:b, :b] = panel
            C[:b, a:b] = panel.T
            C[a:b, a:b] = panel[:, a:].tril() + panel[:, a:].tril(-1).T
        if self.options.center and self.rows:
            C.addr_(self.sums, self.sums, alpha=-1.0 / self.rows)
        return C

    def parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return arrays and JSON-ready values, from which ``restore`` makes the same bits."""
        arrays = {"panels": _flat(self.panels), "sums": self.sums, "waiting": self.waiting[: self.count]}
        if self.shift is not None:
            arrays["shift"] = self.shift
        return arrays, {"rows": self.rows}

    @classmethod
    def restore(cls, options: Options, arrays: dict[str, Tensor], meta: dict[str, Any], /) -> Packed:
        """Return the state that ``parts`` described (tensors, on the device where it shall live)."""
        state = cls(options, arrays["waiting"])
        start = 0
        for panel in state.panels:
            panel.copy_(arrays["panels"][start : start + panel.numel()].view_as(panel))
            start += panel.numel()
        state.sums, state.shift, state.rows = arrays["sums"].clone(), arrays.get("shift"), int(meta["rows"])
        state._wait(arrays["waiting"])
        return state

    def _wait(self, X: Tensor) -> None:
        self.waiting[self.count : self.count + X.shape[0]] = X
        self.count += X.shape[0]

    def _fold(self, X: Tensor) -> None:
        if self.shift is None:
            # Rounded to the dtype of the rows, so that subtracting it from rows near to it is exact (Sterbenz 1974).
            self.shift = (X.mean(0) if self.options.center else X[0] * 0).clone()
        if self.options.center:
            X = X - self.shift
        with _FullPrecision(X):
            if self.options.center:
                self.sums += X.new_ones(X.shape[0]) @ X
            for a, b, P in _products(X):
                for row in range(a, b, HEIGHT):
                    stop = min(row + HEIGHT, b)
                    self.panels[row // HEIGHT] += P[row - a : stop - a, :stop]
        self.rows += X.shape[0]


class _FullPrecision:
    """Keep TF32 off inside (on a GPU, float32 products are otherwise allowed to lose 13 bits)."""

    def __init__(self, X: Tensor) -> None:
        self.cuda = X.device.type == "cuda"

    def __enter__(self) -> None:
        if self.cuda:
            import torch

            self.before = torch.backends.cuda.matmul.allow_tf32
            torch.backends.cuda.matmul.allow_tf32 = False

    def __exit__(self, *_: object) -> None:
        if self.cuda:
            import torch

            torch.backends.cuda.matmul.allow_tf32 = self.before


def _panels(columns: int, height: int) -> list[tuple[int, int]]:
    return [(a, min(a + height, columns)) for a in range(0, columns, height)]


def _products(X: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (a, b, P): rows a .. b of ``X'X``, of whose first b columns at least the lower triangle is right."""
    import torch

    d = X.shape[1]
    if X.device.type != "cpu":
        for a, b in _panels(d, max(GROUP, (1 << 23) // d // HEIGHT * HEIGHT)):
            yield a, b, X[:, a:b].T @ X[:, :b]
        return
    # NumPy knows X'X as symmetric and takes half the products; its BLAS was twice as fast as the one that comes with torch, and this
    # a sixth faster than `ssyrk` through SciPy.
    A = np.ascontiguousarray(X.numpy())
    if d <= WHOLE:
        P = _scratch(d, A.dtype)
        with blas_threads(1.0 * A.shape[0] * d * d):
            np.matmul(A.T, A, out=P)
        yield 0, d, torch.from_numpy(P)
        return
    for a, b in _panels(d, GROUP):
        with blas_threads(2.0 * A.shape[0] * (b - a) * b):
            P = A[:, a:b].T @ A[:, :b]
        yield a, b, torch.from_numpy(P)


def _scratch(d: int, dtype: Any) -> np.ndarray:
    """Return a (d, d) array of this thread that the next product writes over: fresh pages would cost a fifth of the product."""
    kept = getattr(_local, "scratch", None)
    if kept is None or kept.size < d * d or kept.dtype != dtype:
        kept = _local.scratch = np.empty(d * d, dtype)
    return kept[: d * d].reshape(d, d)


def _flat(panels: list[Tensor]) -> Tensor:
    import torch

    return torch.cat([panel.reshape(-1) for panel in panels])
