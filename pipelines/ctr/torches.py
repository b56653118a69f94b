"""Torch, imported where it is needed, and named in one place."""

from __future__ import annotations

try:
    import torch
except ImportError as error:  # pragma: no cover
    msg = "models of click data need torch, which is not installed; write: pip install 'streamsvd[torch]'"
    raise ImportError(msg) from error

from torch import nn
from torch.nn import functional

__all__ = ["functional", "nn", "torch"]
