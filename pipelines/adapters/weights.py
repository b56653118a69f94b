"""Adapters of a whole model from its weights alone: PiSSA, MiLoRA and OLoRA for every target layer, no data needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamsvd.arrays import namespace
from streamsvd.pipelines.adapters import family
from streamsvd.pipelines.adapters.adapted import Adapters
from streamsvd.pipelines.adapters.corda import from_metrics
from streamsvd.pipelines.adapters.split import Split

METHODS = ("pissa", "milora", "olora")


def from_weights(
    model: Any,
    rank: int,
    *,
    method: str = "pissa",
    targets: Any = "all-linear",
    ranks: Mapping[str, int] | None = None,
    alpha: float | None = None,
    alphas: Mapping[str, float] | None = None,
    rslora: bool = False,
    tol: float | None = None,
    seed: int = 0,
) -> Adapters:
    """Return the adapters that a method makes of each target layer's weight; ``to_peft`` and ``save_adapter`` hand them over.

    Parameters
    ----------
    model : torch.nn.Module
    rank : int
    method : "pissa" (the leading components), "milora" (the smallest) or "olora" (the first columns of QR)
    targets : names, regular expression, or "all-linear"
    ranks, alphas : dict, optional
        Of single layers, by module name.
    alpha : float, optional (default: the rank, a scaling of 1)
    rslora : bool
    tol : float, optional
        For PiSSA: the share of the best energy that may be missed. By default a fixed number of products (see ``family.pissa``).
    seed : int

    Returns
    -------
    adapters : Adapters

    Raises
    ------
    ValueError
        No such targets (those that exist are listed), a rank above a layer's limit (it is named), an unknown method.
    """
    from streamsvd.flow.activation_inputs import find_layers

    if method not in METHODS:
        msg = f"got method={method!r}; expected one of {', '.join(METHODS)}"
        raise ValueError(msg)

    def decompose(weight: Any, r: int) -> Split:
        if method == "pissa":
            return family.pissa(weight, r, tol=tol, seed=seed)
        if method == "milora":
            return family.milora(weight, r)
        pair = family.olora(weight, r)
        # Q and R carry no singular values: they pass as they are.
        return Split(pair.B, namespace(pair.B).ones_like(pair.B[0, :]), pair.A, weight, "usv", "qr")

    names = dict.fromkeys(find_layers(model, targets))
    return from_metrics(
        model,
        names,
        rank,
        ranks=ranks,
        alpha=alpha,
        alphas=alphas,
        rslora=rslora,
        seed=seed,
        method=method,
        decompose=decompose,
    )
