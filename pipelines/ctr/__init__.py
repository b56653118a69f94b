"""Embedding tables and layers of click models, compressed after training so that the look-ups that are really made lose least."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamsvd.pipelines.ctr.apply import apply_to
    from streamsvd.pipelines.ctr.compress import Compressed, compress_tables, open_compressed
    from streamsvd.pipelines.ctr.counts import count_ids
    from streamsvd.pipelines.ctr.deepfm import DeepFM
    from streamsvd.pipelines.ctr.embedding import CompressedEmbedding, CompressedEmbeddingBag
    from streamsvd.pipelines.ctr.int8 import quantize
    from streamsvd.pipelines.ctr.linear import compress_linear
    from streamsvd.pipelines.ctr.moments import Weighting
    from streamsvd.pipelines.ctr.refreshing import refresh
    from streamsvd.pipelines.ctr.tuning import mimic

__all__ = [
    "Compressed", "CompressedEmbedding", "CompressedEmbeddingBag", "DeepFM", "Weighting", "apply_to", "compress_linear",
    "compress_tables", "count_ids", "mimic", "open_compressed", "quantize", "refresh",
]  # fmt: skip

_HOMES = {
    "Compressed": "compress", "compress_tables": "compress", "open_compressed": "compress", "Weighting": "moments",
    "count_ids": "counts", "compress_linear": "linear", "CompressedEmbedding": "embedding", "CompressedEmbeddingBag": "embedding",
    "apply_to": "apply", "mimic": "tuning", "DeepFM": "deepfm", "quantize": "int8", "refresh": "refreshing",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import what is asked for: torch alone where it is needed."""
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from importlib import import_module

    # Set at once, so that a function hides the module of its name however that was imported.
    globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return globals()[name]
