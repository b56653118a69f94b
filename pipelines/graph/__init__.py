"""Bipartite graphs: their normalised SVD kept fresh, training-free recommendations, and LightGCL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamsvd.pipelines.graph.factors import GraphFactors
    from streamsvd.pipelines.graph.graphsvd import GraphSVD
    from streamsvd.pipelines.graph.train import LightGCL

_HOMES = {"GraphFactors": "factors", "GraphSVD": "graphsvd", "LightGCL": "train"}
__all__ = ["GraphFactors", "GraphSVD", "LightGCL"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
