"""Initial LoRA adapters from streamed activations (EVA, CorDA, LoRA-GA) and from the weights alone (PiSSA and its family)."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamsvd.pipelines.adapters.adapted import Adapters, LayerAdapter
    from streamsvd.pipelines.adapters.allocate import allocate_ranks
    from streamsvd.pipelines.adapters.corda import corda
    from streamsvd.pipelines.adapters.eva import eva
    from streamsvd.pipelines.adapters.eva_result import EvaLayer, EvaResult
    from streamsvd.pipelines.adapters.family import effort, kasa, milora, nlora, olora, pissa, sorsa, svfit
    from streamsvd.pipelines.adapters.lora_ga import lora_ga
    from streamsvd.pipelines.adapters.split import Split, split
    from streamsvd.pipelines.adapters.weights import from_weights

_HOMES = {
    "Adapters": "adapted",
    "EvaLayer": "eva_result",
    "EvaResult": "eva_result",
    "LayerAdapter": "adapted",
    "Split": "split",
    "allocate_ranks": "allocate",
    "corda": "corda",
    "eva": "eva",
    "lora_ga": "lora_ga",
    "split": "split",
    "from_weights": "weights",
    **dict.fromkeys(("effort", "kasa", "milora", "nlora", "olora", "pissa", "sorsa", "svfit"), "family"),
}
__all__ = [
    "Adapters",
    "EvaLayer",
    "EvaResult",
    "LayerAdapter",
    "Split",
    "allocate_ranks",
    "corda",
    "effort",
    "eva",
    "from_weights",
    "kasa",
    "lora_ga",
    "milora",
    "nlora",
    "olora",
    "pissa",
    "sorsa",
    "split",
    "svfit",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


class _Package(ModuleType):
    """Importing the module ``eva`` would put it in the place of the function ``eva``; here the function stays."""

    def __setattr__(self, name: str, value: Any) -> None:
        same = isinstance(value, ModuleType) and _HOMES.get(name) == name
        super().__setattr__(name, getattr(value, name) if same else value)


sys.modules[__name__].__class__ = _Package
