"""What EVA found, and its hand-over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.pipelines.adapters import peft_io

if TYPE_CHECKING:
    import os

Tensor = Any


@dataclass(frozen=True, eq=False)
class EvaLayer:
    """What EVA found for one layer.

    Attributes
    ----------
    name : str, of the module
    rank : int, after redistribution; 0 means no adapter
    A : tensor (rank, in), float32: orthonormal rows (divided by the root of their singular values with ``whiten``); B is zero
    explained_variance, explained_variance_ratio : array (cap,), float64, of all components that the layer could have had
    captured : float, share of the energy of the layer's inputs that its ``rank`` components hold; certified from below
    stability : float or None, share of the best energy that the components from at most half of the rows capture of all rows
    rows : int, tokens seen
    done : bool or None, ``stability`` reached ``stop``; None where nothing was asked for (``stop=None``)
    shared_with : str, the layer whose sketch this one shares
    kind : "gram" or "truncated"
    scaling : float, of the adapter
    out_features : int
    transposed : bool, the module stores (in, out), as Conv1D does
    """

    name: str
    rank: int
    A: Tensor
    explained_variance: np.ndarray
    explained_variance_ratio: np.ndarray
    captured: float
    stability: float | None
    rows: int
    done: bool | None
    shared_with: str
    kind: str
    scaling: float
    out_features: int
    transposed: bool


@dataclass(frozen=True, eq=False)
class EvaResult:
    """EVA for a model: ``layers`` by name, in the model's order.

    Attributes
    ----------
    model : torch.nn.Module, unchanged
    layers : dict of EvaLayer
    rank, alpha, rho : as asked for
    rslora, whiten : bool
    unreached : names of targets that no batch reached; PEFT gives them its ordinary initialisation
    stats : ActivationStats, to be saved, merged, or used for CorDA
    seconds, batches : of the pass
    """

    model: Any
    layers: Mapping[str, EvaLayer]
    rank: int
    alpha: float
    rho: float
    rslora: bool
    whiten: bool
    unreached: tuple[str, ...]
    stats: Any = field(repr=False)
    seconds: float = 0.0
    batches: int = 0

    @property
    def converged(self) -> bool:
        """Whether every layer is done."""
        return all(one.done for one in self.layers.values())

    @property
    def not_done(self) -> tuple[str, ...]:
        """Layers whose components were still moving when the data, or the cap on rows, came to its end."""
        return tuple(name for name, one in self.layers.items() if one.done is False)

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of each layer."""
        return {name: one.rank for name, one in self.layers.items()}

    def rows(self) -> list[dict[str, Any]]:
        """Return a table: layer, inputs, rank, captured share, stability, rows, whether it is done."""
        return [
            {
                "layer": one.name,
                "inputs": int(one.A.shape[1]),
                "rank": one.rank,
                "captured": one.captured,
                "stability": one.stability,
                "rows": one.rows,
                "done": one.done,
                "shared with": "" if one.shared_with == one.name else one.shared_with,
            }
            for one in self.layers.values()
        ]

    def to_peft(self, *, prefix: str = peft_io.PREFIX) -> dict[str, Tensor]:
        """Return the ``eva_state_dict`` that ``peft.initialize_lora_eva_weights`` takes: prefix + name to A (rank, in).

        A rank of 0 is a tensor (0, in), for which PEFT removes the adapter. PEFT empties the dict that it gets. It looks names up with its
        own prefix, and only warns where it finds none; ``prefix=""`` is the form of ``peft.get_eva_state_dict`` for a plain model.
        """
        return peft_io.eva_state_dict(self, prefix)

    def config(self) -> dict[str, Any]:
        """Return PEFT's ``adapter_config.json`` as a dict, ranks and alphas of single layers in its patterns."""
        return peft_io.config(self)

    def save_adapter(self, path: str | os.PathLike[str]) -> Path:
        """Write a folder that ``PeftModel.from_pretrained(model, path)`` loads; B is zero, so the model computes what it did.

        Raises
        ------
        ValueError
            No layer has a rank.
        """
        return peft_io.save_eva(self, Path(path))

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draw explained variance and rank of each layer into a picture (needs matplotlib)."""
        from streamsvd.pipelines.adapters.picture import draw_eva

        return draw_eva(self, Path(path))
