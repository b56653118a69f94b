"""EVA's results in the forms that PEFT reads, and checks that concern PEFT's layers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamsvd.pipelines.adapters.handover import PREFIX, lora_config, peft_version, state_dict, write_adapter

__all__ = ["PREFIX", "check_ranks", "config", "eva_state_dict", "out_features", "save_eva"]

Tensor = Any


@dataclass(frozen=True)
class _Adapted:
    """What ``lora_config`` reads of a set of adapters: here, the layers that have a rank."""

    model: Any
    layers: dict[str, Any]
    rank: int
    alpha: float
    rslora: bool


def eva_state_dict(result: Any, prefix: str, /) -> dict[str, Tensor]:
    """Return prefix + name to A (rank, in), a copy for each layer."""
    peft_version()
    return {f"{prefix}{name}": one.A.clone() for name, one in result.layers.items()}


def config(result: Any, /) -> dict[str, Any]:
    """Return the adapter's configuration; layers of rank 0 are no targets."""
    return lora_config(_adapted(result))


def save_eva(result: Any, path: Path, /) -> Path:
    """Write the adapter's folder: A as found, B zero."""
    import torch

    adapted = _adapted(result)
    pairs = {name: (one.A, torch.zeros(one.out_features, one.rank)) for name, one in adapted.layers.items()}
    return write_adapter(path, state_dict(pairs), config(result))


def out_features(module: Any, /) -> int:
    """Return the number of outputs of a linear layer (``nf`` of a Conv1D)."""
    out = getattr(module, "out_features", None)
    return int(module.nf if out is None else out)


def check_ranks(stats: Any, rank: int, /) -> None:
    """Raise ValueError where a rank is above ``min(in, out)`` of a layer."""
    modules = dict(stats.model.named_modules())
    for name, width in stats.widths.items():
        out = out_features(modules[name])
        limit = min(width, out)
        if rank > limit:
            why = f"rank={rank} is above the limit of layer {name!r}, which is {limit} ({width} inputs, {out} outputs)"
            msg = f"{why}; give rank={limit} or less, or leave it out of targets"
            raise ValueError(msg)


def _adapted(result: Any) -> _Adapted:
    layers = {name: one for name, one in result.layers.items() if one.rank > 0}
    if not layers:
        msg = "no layer has a rank, so there is no adapter to write"
        raise ValueError(msg)
    return _Adapted(result.model, layers, result.rank, result.alpha, result.rslora)
