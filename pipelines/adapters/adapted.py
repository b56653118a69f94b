"""``Adapters``: the factors of every adapted layer, ready to be used, saved for PEFT, or turned into a form for the unmodified model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamsvd.pipelines.adapters import handover

if TYPE_CHECKING:
    import os

Tensor = Any


@dataclass(frozen=True, eq=False)
class LayerAdapter:
    """The adapter of one layer: ``scaling * B A`` was taken out of its weight.

    Attributes
    ----------
    name : str, of the module
    A : tensor (rank, in), float32
    B : tensor (out, rank), float32
    s : tensor (rank,), the singular values behind them
    u, vt : tensor (out, rank), (rank, in): ``scaling * B A = u diag(s) vt``
    scaling : float, alpha / rank (alpha / sqrt(rank) with rslora)
    how : str, the algorithm that found them
    transposed : bool, the module stores (in, out), as Conv1D does
    """

    name: str
    A: Tensor
    B: Tensor
    s: Tensor
    u: Tensor
    vt: Tensor
    scaling: float
    how: str
    transposed: bool

    @property
    def rank(self) -> int:  # noqa: D102
        return int(self.s.shape[0])

    def residual(self, weight: Tensor) -> Tensor:
        """Return ``weight - scaling * B A`` in the dtype and layout of the weight as the module stores it."""
        delta = self.scaling * (self.B @ self.A)
        delta = (delta.T if self.transposed else delta).to(weight.device)
        return (weight.detach().to(delta.dtype) - delta).to(weight.dtype).contiguous()


@dataclass(frozen=True, eq=False)
class Adapters:
    """Initial adapters of a model, by layer.

    Attributes
    ----------
    model : torch.nn.Module, as it was given: nothing here changes it, except ``to_peft`` and ``apply``
    layers : dict of LayerAdapter, by module name, in the model's order
    rank, alpha : of the configuration; layers that differ are listed in its patterns
    rslora : bool
    method : str, such as "corda-ipm"
    skipped : names of targets without an adapter (never reached by the data)
    covariances : callable, optional: name -> (in, in) float32, for ``save_covariances``
    """

    model: Any
    layers: Mapping[str, LayerAdapter]
    rank: int
    alpha: float
    rslora: bool
    method: str
    skipped: tuple[str, ...] = ()
    covariances: Any = field(default=None, repr=False)

    def rows(self) -> list[dict[str, Any]]:
        """Return a table: layer, shape, rank, largest and smallest singular value taken, algorithm."""
        return [
            {
                "layer": one.name,
                "shape": f"{one.B.shape[0]} x {one.A.shape[1]}",
                "rank": one.rank,
                "s first": float(one.s[0]),
                "s last": float(one.s[-1]),
                "how": one.how,
            }
            for one in self.layers.values()
        ]

    def config(self, **more: Any) -> dict[str, Any]:
        """Return PEFT's ``adapter_config.json`` for these adapters as a dict."""
        return handover.lora_config(self, **more)

    def state_dict(self) -> dict[str, Tensor]:
        """Return PEFT's names and tensors: ``base_model.model.<module>.lora_A.weight`` (rank, in) and ``lora_B.weight`` (out, rank)."""
        return handover.state_dict({name: (one.A, one.B) for name, one in self.layers.items()})

    def residual_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the residual weight of each layer, one at a time."""
        modules = dict(self.model.named_modules())
        for name, one in self.layers.items():
            yield name, one.residual(modules[name].weight)

    def apply(self) -> Any:
        """Replace the weights of ``model`` by the residuals, in place, and return the model."""
        modules = dict(self.model.named_modules())
        for name, weight in self.residual_weights():
            modules[name].weight.data = weight
        return self.model

    def to_peft(self) -> Any:
        """Return a ``PeftModel`` around ``model``, whose weights become the residuals: ready to train.

        Raises
        ------
        ImportError
            Without peft.
        """
        return handover.to_peft(self)

    def save_adapter(self, path: str | os.PathLike[str], *, residual: bool = True) -> Path:
        """Write a folder that ``PeftModel.from_pretrained`` loads, with the residual model in its sub-folder ``residual``.

        ``PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(path / "residual"), path)`` computes what the original model does.
        ``init_lora_weights`` is written as true: "corda" cannot be loaded again, and "pissa" would decompose the residual.
        """
        return handover.save_adapter(self, Path(path), residual=residual)

    def save_for_original(self, path: str | os.PathLike[str], trained: Any = None) -> Path:
        """Write an adapter of twice the rank for the unmodified model: ``A' = [A; A_0]``, ``B' = [B, -B_0]``.

        Parameters
        ----------
        path : path
            Of the folder; ``PeftModel.from_pretrained(original model, path)`` loads it.
        trained : path or dict of tensors, optional
            A trained adapter, a folder or a state dict with PEFT's names; these initial ones by default.

        Raises
        ------
        ValueError
            With rslora and layers of different rank (PEFT's scaling cannot say it), and for a trained adapter of other layers or ranks.
        """
        return handover.save_for_original(self, Path(path), trained)

    def save_cache(self, path: str | os.PathLike[str]) -> Path:
        """Write PEFT's CorDA ``cache_file``: PEFT then only takes the residual. The configuration must have the same targets and ranks."""
        return handover.save_cache(self, Path(path))

    def save_covariances(self, path: str | os.PathLike[str]) -> Path:
        """Write PEFT's CorDA ``covariance_file``: PEFT damps, decomposes and takes the residual by itself.

        Raises
        ------
        ValueError
            If the covariances were not kept exactly (``covariance="exact"``).
        """
        return handover.save_covariances(self, Path(path))
