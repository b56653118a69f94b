"""LightGCL in torch: propagation over the graph and over its factors, and the losses (Cai et al. 2023, "LightGCL", ICLR).

Needs torch. Where the published code differs: log-sum-exp is stable, contrast is over sampled nodes, and the factors enter the propagation
itself (``lowrank``), which is what helped where it was measured (bench/graph.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from streamsvd.pipelines.graph.io import need_torch

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = need_torch("LightGCL")

CLAMP = 5.0


class Views(NamedTuple):
    """Embeddings of users (m, d) and items (n, d), summed over the layers: of the graph, and of the factors' view."""

    users: Tensor
    items: Tensor
    users_view: Tensor | None = None
    items_view: Tensor | None = None


class Factored(NamedTuple):
    """Factors as tensors: u (m, k) and v (n, k), and both times the core."""

    u: Tensor
    v: Tensor
    us: Tensor
    vs: Tensor


class Product(torch.autograd.Function):
    """``N X`` with gradient ``N' G``, for an operator on NumPy (CPU) or on torch (elsewhere); no copies on the CPU."""

    @staticmethod
    def forward(ctx: Any, X: Tensor, op: Any) -> Tensor:
        """Return ``N X``."""
        ctx.op = op
        return _applied(op.matmat, X)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Return ``N' G`` and no gradient of the graph."""
        return _applied(ctx.op.rmatmat, grads[0]), None


class OnDevice:
    """A sparse operator (m, n) held by torch, for devices other than the CPU, with an explicit transpose."""

    def __init__(self, matrix: Any, device: Any) -> None:
        self.there, self.back = (self._moved(A, device) for A in (matrix.tocsr(), matrix.T.tocsr()))
        self.shape = matrix.shape

    @staticmethod
    def _moved(A: Any, device: Any) -> Tensor:
        parts = (
            torch.tensor(x, device=device) for x in (A.indptr.astype(np.int64), A.indices.astype(np.int64), A.data)
        )
        return torch.sparse_csr_tensor(*parts, size=A.shape)

    def matmat(self, X: Tensor) -> Tensor:
        """Return ``N X``."""
        return self.there @ X

    def rmatmat(self, Y: Tensor) -> Tensor:
        """Return ``N' Y``."""
        return self.back @ Y

    @property
    def T(self) -> OnDevice:
        """The transpose; it shares everything."""
        flipped = object.__new__(OnDevice)
        flipped.there, flipped.back, flipped.shape = self.back, self.there, self.shape[::-1]
        return flipped


def forward(
    users: Tensor, items: Tensor, op: Any, factors: Factored | None, /, *, layers: int, lowrank: bool, contrast: bool
) -> Views:
    """Propagate embeddings and sum over the layers 0 .. L.

    Each layer is ``Z_u = N E_i``, ``Z_i = N' E_u`` (LightGCN, He et al. 2020, eq. 3), with ``lowrank`` plus ``U V' E_i`` and ``V U' E_u``
    (singular values set to 1); the view is ``(U S) V' E_i`` of the layer before (LightGCL, eq. 6).

    Parameters
    ----------
    users, items : tensor (m, d), (n, d)
    op : operator (m, n)
    factors : Factored or None

    Notes
    -----
    Cost of a layer: ``2 nnz d`` multiply-adds, with factors of rank k ``2 (m + n) k d`` more, and as much again for the view.
    """
    back = op.T
    eu, ei = users, items
    sums, views = [users, items], [users, items]
    for _ in range(layers):
        if contrast and factors is not None:
            views[0] = views[0] + factors.us @ (factors.v.T @ ei)
            views[1] = views[1] + factors.vs @ (factors.u.T @ eu)
        zu, zi = Product.apply(ei, op), Product.apply(eu, back)
        if lowrank and factors is not None:
            zu = zu + factors.u @ (factors.v.T @ ei)
            zi = zi + factors.v @ (factors.u.T @ eu)
        eu, ei = zu, zi
        sums = [sums[0] + eu, sums[1] + ei]
    return Views(sums[0], sums[1], *(views if contrast else (None, None)))


def bpr(users: Tensor, positive: Tensor, negative: Tensor, /) -> Tensor:
    """Return ``mean -log sigmoid(u.p - u.n)`` of rows (b, d) (Rendle et al. 2009)."""
    return -torch.nn.functional.logsigmoid((users * (positive - negative)).sum(dim=1)).mean()


def contrast_loss(
    view: Tensor, main: Tensor, nodes: Tensor | None, /, *, anchors: Tensor, temperature: float, kind: str
) -> Tensor:
    """Return the contrast between anchors in the view and nodes of the graph (InfoNCE, van den Oord et al. 2018; LightGCL, eq. 8).

    ``mean_a log sum_j exp(<g_a, e_j> / temperature) - mean_a <g_a, e_a> / temperature``; with kind "dot", as published, the second
    term is clamped to -5 .. 5; "cosine" takes unit vectors.

    Parameters
    ----------
    view, main : tensor (n, d)
    nodes : indices of the j, or None for all n
    anchors : indices of the a
    """
    g, e, own = view[anchors], main if nodes is None else main[nodes], main[anchors]
    if kind == "cosine":
        g, e, own = (torch.nn.functional.normalize(x, dim=1) for x in (g, e, own))
    pull = (g * own).sum(dim=1) / temperature
    pull = pull.clamp(-CLAMP, CLAMP) if kind == "dot" else pull
    return (torch.logsumexp(g @ e.T / temperature, dim=1) - pull).mean()


def _applied(product: Any, X: Tensor) -> Tensor:
    X = X.detach()
    return torch.from_numpy(product(np.ascontiguousarray(X.numpy()))) if X.device.type == "cpu" else product(X)
