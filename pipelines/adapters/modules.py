"""Linear layers that train a decomposition of their weight: SORSA, SVFit, KaSA, Effort and NLoRA, each mergeable into one weight.

Every layer is made of a layer like ``torch.nn.Linear`` and leaves that layer alone; ``merged()`` returns an ordinary one.
"""

from __future__ import annotations

import math
from typing import Any

try:
    import torch
    from torch import nn
except ImportError as error:
    _msg = "the adapter modules need torch: pip install 'streamsvd[torch]'"
    raise ImportError(_msg) from error

from streamsvd.pipelines.adapters import family


class Decomposed(nn.Module):
    """A linear layer ``x -> x (weight + delta)' + bias`` with a frozen ``weight`` (out, in) and trained factors of ``delta``.

    Subclasses define ``delta_of(x)``, the product with the trained part, and ``delta()``, the trained part formed.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, layer: nn.Module, weight: Any, scale: float = 1.0) -> None:
        super().__init__()
        original, bias = _weight(layer), layer.bias
        self.scale = float(scale)
        self.register_buffer("weight", _tensor(weight, original).to(original.dtype))
        self.register_buffer("bias", None if bias is None else bias.detach().clone())  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x (weight + delta)' + bias`` for x (..., in)."""
        wide = self.delta_of(x.to(next(self.parameters()).dtype))
        return nn.functional.linear(x, self.weight, self.bias) + (self.scale * wide).to(x.dtype)

    def delta_of(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x delta'``, without the scale."""
        raise NotImplementedError

    def delta(self) -> torch.Tensor:
        """Return the trained part (out, in), without the scale."""
        raise NotImplementedError

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return an ordinary layer with the weight ``weight + scale delta``."""
        out, columns = self.weight.shape
        layer = nn.Linear(columns, out, bias=self.bias is not None, device=self.weight.device, dtype=self.weight.dtype)
        layer.weight.copy_(self.weight.float() + self.scale * self.delta().float())
        if self.bias is not None:
            layer.bias.copy_(self.bias)
        return layer


class SorsaLinear(Decomposed):
    """``W_res + scale U diag(S) V'`` with all of U, S and V trained (Cao 2024, SORSA)."""

    def __init__(self, layer: nn.Module, rank: int, *, scale: float = 1.0, tol: float = 1e-4) -> None:
        weight = _weight(layer)
        parts = family.sorsa(weight, rank, tol=tol)
        super().__init__(layer, parts.residual, scale)
        self.u, self.s, self.vt = (nn.Parameter(_tensor(x, weight)) for x in (parts.u, parts.s / self.scale, parts.vt))

    def delta_of(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x V diag(S) U'``."""
        return ((x @ self.vt.T) * self.s) @ self.u.T

    def delta(self) -> torch.Tensor:
        """Return ``U diag(S) V'``."""
        return (self.u * self.s) @ self.vt

    def penalty(self) -> torch.Tensor:
        """Return the regulariser ``||U'U - I||_F + ||V'V - I||_F``."""
        return _off(self.u) + _off(self.vt.T)


class SvfitLinear(Decomposed):
    """``W_e + U diag(S) V'`` with S trained alone (Sun et al. 2024, SVFit)."""

    u: torch.Tensor
    vt: torch.Tensor

    def __init__(self, layer: nn.Module, rank: int | None = None, *, energy: float = 0.99) -> None:
        weight = _weight(layer)
        parts = family.svfit(weight, rank, energy=energy)
        super().__init__(layer, parts.residual)
        self.register_buffer("u", _tensor(parts.u, weight))
        self.register_buffer("vt", _tensor(parts.vt, weight))
        self.s = nn.Parameter(_tensor(parts.s, weight))

    def delta_of(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x V diag(S) U'``."""
        return ((x @ self.vt.T) * self.s) @ self.u.T

    def delta(self) -> torch.Tensor:
        """Return ``U diag(S) V'``."""
        return (self.u * self.s) @ self.vt


class KasaLinear(Decomposed):
    """``W - U_m S_m V_m' + scale B diag(d) A``: the smallest components are cut, an update with its own scale for each is trained (KaSA).

    ``B = 0`` at the start, so the layer begins as the truncated weight, which is not the original one.
    """

    def __init__(self, layer: nn.Module, rank: int, *, scale: float = 1.0, seed: int = 0) -> None:
        weight = _weight(layer)
        super().__init__(layer, family.kasa(weight, rank).residual, scale)
        draw = torch.Generator().manual_seed(seed)
        bound = 1.0 / math.sqrt(weight.shape[1])  # kaiming_uniform_ with a = sqrt(5), as LoRA starts
        A = (2.0 * torch.rand(rank, weight.shape[1], generator=draw) - 1.0) * bound
        self.a = nn.Parameter(A.to(weight.device))
        self.d = nn.Parameter(torch.randn(rank, generator=draw).to(weight.device))
        self.b = nn.Parameter(torch.zeros(weight.shape[0], rank, device=weight.device))

    def delta_of(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x A' diag(d) B'``."""
        return ((x @ self.a.T) * self.d) @ self.b.T

    def delta(self) -> torch.Tensor:
        """Return ``B diag(d) A``."""
        return (self.b * self.d) @ self.a

    def penalty(self, beta: float = 1e-4, gamma: float = 1e-3) -> torch.Tensor:
        """Return ``beta ||d||^2 + gamma (||B'B - I||_F + ||A A' - I||_F)`` (Wang et al. 2024, KaSA, equations 9 to 11).

        The Gram matrices are of the rank-sized side: those of the other side can never be I.
        """
        return beta * (self.d**2).sum() + gamma * (_off(self.b) + _off(self.a.T))


class EffortLinear(Decomposed):
    """``U_r S_r V_r' + U S V'``: the principal part is frozen, the smallest components are trained (Yan et al. 2025, Effort)."""

    u0: torch.Tensor
    v0: torch.Tensor
    range_u: torch.Tensor | None
    range_v: torch.Tensor | None

    def __init__(self, layer: nn.Module, rank: int) -> None:
        weight = _weight(layer)
        parts = family.effort(weight, rank)
        super().__init__(layer, parts.residual)
        self.u, self.s, self.vt = (nn.Parameter(_tensor(x, weight)) for x in (parts.u, parts.s, parts.vt))
        self.register_buffer("u0", self.u.detach().clone())
        self.register_buffer("v0", self.vt.detach().T.clone())
        out, columns = weight.shape
        wide = weight.detach().double()
        # The principal vectors are what is left of the range of W, so they need not be known one by one.
        tall, flat = out > columns, columns > out
        self.register_buffer("range_u", torch.linalg.qr(wide)[0].to(self.u.dtype) if tall else None)
        self.register_buffer("range_v", torch.linalg.qr(wide.T)[0].to(self.u.dtype) if flat else None)
        self.energy0 = float((wide**2).sum())

    def delta_of(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x V diag(S) U'``."""
        return ((x @ self.vt.T) * self.s) @ self.u.T

    def delta(self) -> torch.Tensor:
        """Return ``U diag(S) V'``."""
        return (self.u * self.s) @ self.vt

    def orthogonality(self) -> torch.Tensor:
        """Return ``||[U_r U]'[U_r U] - I||_F + ||[V_r V]'[V_r V] - I||_F``, the principal vectors U_r, V_r being frozen."""
        return _apart(self.u, self.u0, self.range_u) + _apart(self.vt.T, self.v0, self.range_v)

    def energy(self) -> torch.Tensor:
        """Return ``| ||W||_F^2 - ||W_0||_F^2 |``, W being the whole weight now and W_0 at the start."""
        return ((self.weight.float() + self.delta()).pow(2).sum() - self.energy0).abs()


class NloraLinear(Decomposed):
    """``W_res + scale B N A`` with B, N and A (``train="all"``) or N alone (``train="core"``, IntTune) trained (Guo et al. 2025, NLoRA).

    ``subtract=False`` leaves W as it is, as the published code does; the layer's output then changes at the start.
    """

    def __init__(
        self,
        layer: nn.Module,
        rank: int,
        *,
        scale: float = 1.0,
        sampling: str = "first",
        core: str = "copy",
        subtract: bool = True,
        train: str = "all",
        seed: int = 0,
    ) -> None:
        if train not in ("all", "core"):
            msg = f"got train={train!r}; expected 'all' or 'core'"
            raise ValueError(msg)
        weight = _weight(layer)
        pair = family.nlora(weight, rank, sampling=sampling, core=core, seed=seed)
        assert pair.core is not None
        super().__init__(layer, pair.residual if subtract else weight.detach(), scale)
        self.b, self.n, self.a = (
            nn.Parameter(_tensor(x, weight), requires_grad=trained)
            for x, trained in ((pair.B, train == "all"), (pair.core / self.scale, True), (pair.A, train == "all"))
        )

    def delta_of(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x A' N' B'``."""
        return ((x @ self.a.T) @ self.n.T) @ self.b.T

    def delta(self) -> torch.Tensor:
        """Return ``B N A``."""
        return self.b @ (self.n @ self.a)


def _weight(layer: nn.Module) -> torch.Tensor:
    """Return the weight (out, in) of a layer; Conv1D of transformers stores the transpose."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2 or not hasattr(layer, "bias"):
        msg = f"got a {type(layer).__name__}; expected a linear layer with a weight (out, in) and a bias or None"
        raise TypeError(msg)
    return weight.detach().T if type(layer).__name__ == "Conv1D" else weight.detach()


def _tensor(x: Any, like: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(x, device=like.device).clone(memory_format=torch.contiguous_format)


def _off(X: torch.Tensor) -> torch.Tensor:
    """Return ``||X'X - I||_F`` in float32."""
    X = X.float()
    return torch.linalg.norm(X.T @ X - torch.eye(X.shape[1], device=X.device))


def _apart(X: torch.Tensor, X0: torch.Tensor, basis: torch.Tensor | None) -> torch.Tensor:
    """Return ``||[P X]'[P X] - I||_F`` for the frozen orthonormal P: the whole space, or ``basis``, without X0."""
    inside = X if basis is None else basis @ (basis.T @ X)
    crossed = inside - X0 @ (X0.T @ X)
    own = X.T @ X - torch.eye(X.shape[1], device=X.device, dtype=X.dtype)
    return torch.linalg.vector_norm(torch.cat([math.sqrt(2.0) * crossed.flatten(), own.flatten()]))
