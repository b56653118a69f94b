"""Atomic feature mimicking of a linear layer, from a stream of its outputs."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamsvd.arrays import Array, to_numpy
from streamsvd.flow.fold import fold
from streamsvd.gram import Gram
from streamsvd.pipelines.ctr.model import spectrum
from streamsvd.planner import sketch

logger = logging.getLogger("streamsvd")


@dataclass(frozen=True, eq=False)
class LinearPair:
    """Two layers in the place of one: ``y ~ W2 (W1 x + b1) + b2``.

    Attributes
    ----------
    w1, b1 : arrays (r, in), (r,)
    w2, b2 : arrays (out, r), (out,)
    eigenvalues : array (out,), float64, falling
    dropped : float
        Expected squared error of the outputs: the sum of the dropped eigenvalues.
    rows : int, outputs seen
    """

    w1: Array
    b1: Array
    w2: Array
    b2: Array
    eigenvalues: Array
    dropped: float
    rows: int

    @property
    def error(self) -> float:
        """Share of the variance of the outputs that is dropped."""
        total = float(self.eigenvalues.sum())
        return self.dropped / total if total > 0 else 0.0

    def to_torch(self) -> Any:
        """Return the two as ``nn.Sequential`` of ``nn.Linear``."""
        from streamsvd.pipelines.ctr.torches import nn, torch

        pair = nn.Sequential(nn.Linear(self.w1.shape[1], len(self.b1)), nn.Linear(len(self.b1), len(self.b2)))
        arrays = {"0.weight": self.w1, "0.bias": self.b1, "1.weight": self.w2, "1.bias": self.b2}
        pair.load_state_dict({name: torch.tensor(np.ascontiguousarray(x)) for name, x in arrays.items()})
        return pair.to(torch.from_numpy(self.w1[:0].copy()).dtype)


def compress_linear(
    layer: Any, activations: Any, rank: int, /, *, select: str | None = None, weights: str | None = None
) -> LinearPair:
    """Factor a linear layer so that its outputs, over the data, change least.

    Parameters
    ----------
    layer : nn.Linear, or (W, b) with arrays (out, in) and (out,) or None
    activations : Gram state, array (n, out), Arrow or Polars tables, files, or any iterable of these
        Outputs y = W x + b before any nonlinearity. A state that was folded elsewhere (of hooks, of merged workers) is taken as it is.
    rank : int, 1 .. out
    select, weights : str, optional
        Column with the vector, and with the weight of each row, where activations are tables.

    Returns
    -------
    pair : LinearPair; with rank = out the same layer up to rounding

    Raises
    ------
    TypeError, ValueError
        For a rank out of range, outputs of another width, or rows that cannot be read.

    Notes
    -----
    With ``y ~ U U'(y - mu) + mu``: ``W1 = U'W, b1 = U'b, W2 = U, b2 = (I - U U') mu``. Parameters ``in out -> r (in + out)``. Cost:
    ``out^2 / 2`` multiply-adds an output. With fewer rows than ``out`` the covariance is of that few directions, which is logged.

    References
    ----------
    Yu and Wu 2023 (compressing transformers: features are low-rank, but weights are not!); Yu et al. 2024 (arXiv 2405.18146).
    """
    W, b = (layer.weight, layer.bias) if hasattr(layer, "weight") else layer
    W = to_numpy(W.detach() if hasattr(W, "detach") else W)
    out = W.shape[0]
    b = np.zeros(out, W.dtype) if b is None else to_numpy(b.detach() if hasattr(b, "detach") else b)
    if isinstance(rank, bool) or not 1 <= rank <= out:
        msg = f"rank={rank} arrived; expected a whole number from 1 to {out}, the outputs of the layer"
        raise ValueError(msg)
    moments = activations if isinstance(activations, Gram) else _folded(activations, out, select, weights)
    if moments.columns != out or moments.rows == 0:
        msg = (
            f"moments of {moments.rows} rows of {moments.columns} numbers arrived; "
            f"expected outputs of this layer, {out} numbers each"
        )
        raise ValueError(msg)
    if moments.rows < out:
        logger.warning(
            "%d outputs arrived for a layer of %d; give at least as many, better ten times", moments.rows, out
        )
    own = spectrum(moments)
    vt = own.vt[:rank]
    rest = own.mean - vt.T @ (vt @ own.mean)
    parts = (vt @ W.astype(np.float64), vt @ b.astype(np.float64), vt.T, rest)
    w1, b1, w2, b2 = (x.astype(W.dtype) for x in parts)
    return LinearPair(w1, b1, w2, b2, own.eigenvalues, own.dropped(rank), moments.rows)


def _folded(activations: Any, out: int, select: str | None, weights: str | None) -> Gram:
    empty = sketch(columns=out, rank=out, kind="gram", dtype=np.float64)
    return fold(empty, activations, select=select, weights=weights, progress=False)
